"""A folder of many formats and encodings, some of its rows broken, gives every script the same articles."""

import csv
import gzip
import io
import json
import re

import pyarrow
import pyarrow.parquet
import pytest
from processes import done

from minigpt.settings.stages import GenerateSettings
from minigpt.synth.articles import ArticleSource


def as_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_csv(rows):
    sink = io.StringIO()
    writer = csv.DictWriter(sink, ["title", "text"])
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue()


def as_parquet(rows):
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


def as_content(rows):
    return as_lines([{"title": row["title"], "content": row["text"]} for row in rows])


def as_texts(rows):
    return [row["text"] for row in rows]


# The name of a file, and its bytes made of rows.
FILES = {
    "lines.jsonl": lambda rows: as_lines(rows).encode(),
    "array.jsonl": lambda rows: json.dumps(rows, ensure_ascii=False).encode(),
    "indented.json": lambda rows: json.dumps(rows, ensure_ascii=False, indent=2).encode(),
    "under_a_key.json": lambda rows: json.dumps({"data": rows}).encode(),
    "strings.json": lambda rows: json.dumps(as_texts(rows), ensure_ascii=False).encode(),
    "mark.jsonl": lambda rows: b"\xef\xbb\xbf" + as_lines(rows).replace("\n", "\r\n").encode(),
    "chinese.jsonl": lambda rows: as_lines(rows).encode("gb18030"),
    "windows.jsonl": lambda rows: as_lines(rows).encode("utf-16"),
    "content.jsonl": lambda rows: as_content(rows).encode(),
    "excel.csv": lambda rows: as_csv(rows).encode("gb18030"),
    "tabs.tsv": lambda rows: as_csv(rows).replace(",", "\t").encode(),
    "table.parquet": as_parquet,
    "packed.jsonl.gz": lambda rows: gzip.compress(as_lines(rows).encode()),
    "paragraphs.txt": lambda rows: "\n\n".join(as_texts(rows)).encode(),
    "lines.txt": lambda rows: "\n".join(as_texts(rows)).encode(),
    "marks.txt": lambda rows: "<|endoftext|>".join(as_texts(rows)).encode("gb18030"),
}
BROKEN = ['{"title": "断', '{"id": 3}', '{"text": 5}', "[]", '{"text": ""}']


def write_folder(folder, n_good, n_broken):
    """Writes a folder of that many good and broken rows."""
    folder.mkdir()
    rows = [
        {"title": f"第{i}镇", "text": f"第{i}镇位于{'东西南北'[i % 4]}河边，那里有{i % 97 + 2}座桥。桥上每天有人走过。"}
        for i in range(n_good)
    ]
    share = -(-n_good // len(FILES))
    for i, (name, write) in enumerate(FILES.items()):
        (folder / name).write_bytes(write(rows[i * share : (i + 1) * share]))
    with open(folder / "lines.jsonl", "ab") as file:
        file.writelines(BROKEN[i % len(BROKEN)].encode() + b"\n" for i in range(n_broken))


def count_articles(script, folder):
    """{script: articles that it used} of a folder, by the scripts that read articles."""
    flags = [f"--input_dir={folder}", "--plain_text"]
    prepared = done(script("data/prepare.py", *flags, "--data_dir=rows", "--val_share=0.2", "--workers=1"))
    meta = json.loads((folder.parent / "rows/meta.json").read_text(encoding="utf-8"))
    trained = done(script("data/train_tokenizer.py", *flags, "--tokenizer_path=t.tiktoken", "--tokenizer_vocab=300"))
    corrected = done(script("sft/make_correction.py", *flags, "--corrections=c.jsonl"))
    source = ArticleSource(GenerateSettings(input_dir=[str(folder)], plain_text=True))
    asked = [article for article in source if article]
    assert source.used == len(asked) == len({article.key for article in asked})
    return {
        "prepare": int(re.search(r"^articles (\d+)", prepared, re.MULTILINE)[1]),
        "rows": sum(part["rows"] for part in meta["parts"].values()),
        "tokenizer": int(re.search(r"^articles (\d+)", trained, re.MULTILINE)[1]),
        "correction": int(re.search(r"^(\d+) articles", corrected, re.MULTILINE)[1]),
        "generator": len(asked),
        "dropped": sum(meta["dropped"].values()),
        "dropped by the generator": source.problems.counts.total(),
    }


@pytest.mark.parametrize(("n_good", "n_broken"), [(160, 12), pytest.param(9800, 200, marks=pytest.mark.soak_only)])
def test_every_script_reads_the_same_articles_of_a_mixed_folder(tmp_path, script, n_good, n_broken):
    write_folder(tmp_path / "in", n_good, n_broken)
    counts = count_articles(script, tmp_path / "in")
    dropped = {name: counts.pop(name) for name in list(counts) if name.startswith("dropped")}
    assert set(counts.values()) == {n_good} and set(dropped.values()) == {n_broken}, (counts, dropped)
