"""A hundred thousand lines, one in fifty broken in one of ten ways: no good line is lost, every bad one is counted."""

import json
from collections import Counter

import numpy as np
import pytest
from corpora import write_jsonl

from minigpt.bench.corpora import varied_articles
from minigpt.tokenizer import load_tokenizer

WAYS = {
    "cut JSON": (lambda line: line.decode()[:60].encode(), "bad JSON"),
    "wrong type": (lambda line: b'{"id": 1, "text": 7}', '"text" is not a text'),
    "no text": (lambda line: b'{"id": 1, "title": "x"}', 'no "text"'),
    "bad UTF-8": (lambda line: line[:-2] + b"\xff\xfe" + line[-2:], "bad UTF-8"),
    "NUL": (lambda line: line[:-2] + b"\0" + line[-2:], "NUL character"),
    "endless": (None, "longer than 8 MiB"),
    "empty": (lambda line: b"", "empty line"),
    "twice": (lambda line: line[:-1] + b', "text": "again"}', "duplicate key"),
    "half a pair": (lambda line: line[:-2] + b'\\ud83d"}', "half of a surrogate pair"),
    "nested": (lambda line: b'{"id": 1, "text": {"text": "nested."}}', '"text" is nested'),
}


@pytest.mark.soak
def test_every_good_line_is_in_and_every_bad_one_counted_under_its_reason(tmp_path, script, rounds):
    n_lines, n_endless, endless = rounds(5_000, 100_000), rounds(1, 20), rounds(9_000_000, 50_000_000)
    others = [way for way in WAYS if way != "endless"]
    articles, expected, good = varied_articles(), Counter(), []

    def lines():
        for number in range(n_lines):
            row = next(articles)
            line = json.dumps(row, ensure_ascii=False).encode()
            if number % 50:
                good.append(row["text"].partition("\n\n")[2])
                yield line
                continue
            count = number // 50
            way = "endless" if count < n_endless else others[count % len(others)]
            expected[WAYS[way][1]] += 1
            yield b'{"text": "' + b"x" * endless + b'"}' if way == "endless" else WAYS[way][0](line)

    write_jsonl(tmp_path / "wiki/a.jsonl", lines())
    run = script("data/prepare.py", "--input_dir=wiki", "--val_share=0", "--clean=title", "--workers=2")
    assert run.returncode == 0, run.stderr
    meta = json.loads((tmp_path / "data/processed/meta.json").read_text(encoding="utf-8"))
    assert meta["dropped"] == dict(expected) and len(expected) == len(WAYS)
    assert meta["parts"]["train"]["rows"] == len(good) == n_lines - sum(expected.values())

    tokenizer = load_tokenizer()
    rows = np.fromfile(tmp_path / "data/processed/train.bin", dtype="<u2").reshape(-1, 512)
    for text, row in zip(good, rows, strict=True):
        ids = tokenizer.encode(text)
        assert row[: len(ids) + 1].tolist() == [*ids, tokenizer.eot_id]
