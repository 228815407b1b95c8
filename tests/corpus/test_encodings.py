"""Encodings are told by their marks or by the lines of the first block; a broken line costs only itself."""

import json
import random

import pytest

from minigpt.common.errors import UserError
from minigpt.corpus.readers import blocks as reader_blocks
from minigpt.corpus.readers.rows import read_blocks
from minigpt.corpus.records import Problems, read_articles, read_rows

MARK = "\ufeff"


def lines_of(texts, encoding):
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode(encoding)


def read(path, **settings):
    """([text], {reason: count}) of a file's rows."""
    problems = Problems()
    return [row["text"] for _, row in read_rows(str(path), problems, **settings)], dict(problems.counts)


TEXTS = [f"第{i}座桥在河上，春天开放。" for i in range(12)]
GBK_LINE = lines_of(["桥在河上。"], "gbk")


@pytest.mark.parametrize(
    ("content", "texts", "counts"),
    [
        # GB18030: by over half of the lines that are not ASCII
        (lines_of(TEXTS, "gbk"), TEXTS, {}),
        (lines_of(["𠮷野家在桥边。", "㐀字很少见。"], "gb18030"), ["𠮷野家在桥边。", "㐀字很少见。"], {}),
        (lines_of(["臺灣銀行在橋邊，於民國三十五年建立。"], "gbk"), ["臺灣銀行在橋邊，於民國三十五年建立。"], {}),
        (b'{"text": "plain"}\n' * 5 + GBK_LINE, ["plain"] * 5 + ["桥在河上。"], {}),
        (b'{"text": "\xff"}\n' + lines_of(TEXTS, "gbk") + b'{"text": "\xe9"}\n', TEXTS, {"bad GB18030": 2}),
        (lines_of(TEXTS, "gbk") + lines_of(TEXTS[:3], "utf-8"), TEXTS + TEXTS[:3], {}),
        # UTF-8: the others
        (lines_of(TEXTS, "utf-8") + lines_of(TEXTS[:3], "gbk"), TEXTS, {"bad UTF-8": 3}),
        (lines_of(TEXTS[:3], "utf-8") + lines_of(TEXTS[:3], "gbk"), TEXTS[:3], {"bad UTF-8": 3}),
        (b"".join(line[:30] + line[31:] for line in lines_of(TEXTS, "utf-8").splitlines(True)), [], {"bad UTF-8": 12}),
        # Marks, at the head and where files were joined
        (MARK.encode() + lines_of(TEXTS, "utf-8"), TEXTS, {}),
        (f'{MARK}{{"text": "甲"}}\n{MARK}{{"text": "乙{MARK}"}}{MARK}{{"text": "丙"}}\n{MARK}\n'.encode(),
         ["甲", f"乙{MARK}", "丙"], {"empty line": 1}),
        (f'{MARK}[{{"text": "甲"}}]{MARK}[{{"text": "乙"}}]'.encode(), ["甲", "乙"], {}),
        (f"{MARK}text\n甲\n{MARK}text\n乙\n".encode(), ["甲", "乙"], {}),
        # UTF-16 and UTF-32
        ((MARK + lines_of(TEXTS, "utf-8").decode()).encode("utf-16-le"), TEXTS, {}),
        ((MARK + lines_of(TEXTS, "utf-8").decode()).encode("utf-16-be"), TEXTS, {}),
        ((MARK + f'{{"text": "甲"}}\n{MARK}{{"text": "乙"}}\n').encode("utf-16-le"), ["甲", "乙"], {}),
        ((MARK + lines_of(TEXTS, "utf-8").decode()).encode("utf-32-be"), TEXTS, {}),
        (b'\xff\xfe{\0"\0t\0\n\0' + lines_of(["甲"], "utf-16-le").replace(b"\n\0", b'\n\0"\0\x00\xd8\n\0') +
         lines_of(["乙"], "utf-16-le"), ["甲", "乙"], {"bad JSON": 1, "bad UTF-16-LE": 1}),
    ],
)  # fmt: skip
def test_an_encoding_is_told_by_marks_or_lines_and_broken_lines_cost_no_other(tmp_path, content, texts, counts):
    name = "a.csv" if b"text\n" in content else "a.jsonl"
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == (texts, counts)


def test_a_file_of_gb18030_is_said_once_and_utf8_is_not(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(lines_of(TEXTS, "gbk"))
    (tmp_path / "b.jsonl").write_bytes(lines_of(TEXTS, "utf-8"))
    for _ in range(2):
        assert len(list(read_articles([f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl"], Problems()))) == 24
    assert capsys.readouterr().err == f"note: {tmp_path}/a.jsonl is read as GB18030; --encoding= forces another\n"


def test_an_encoding_can_be_forced(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines_of(["橋在河上"], "big5"))
    assert read(path, encoding="big5") == (["橋在河上"], {})
    path.write_bytes(lines_of(["桥", "河"], "gbk"))
    assert read(path, encoding="gbk") == (["桥", "河"], {}) and read(path, encoding="UTF8") == ([], {"bad UTF-8": 2})
    assert not capsys.readouterr().err
    path.write_bytes(MARK.encode() + lines_of(["桥"], "utf-8"))
    assert read(path, encoding="utf-8") == (["桥"], {})
    for wrong in ("nope", "hex", "a\0b"):
        with pytest.raises(UserError, match="which Python does not know"):
            read(path, encoding=wrong)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "gb18030"])
@pytest.mark.parametrize("end", ["\n", ""])
def test_blocks_are_the_same_in_each_reading_whatever_their_size(tmp_path, monkeypatch, encoding, end):
    rng = random.Random(0)
    texts = ["".join(rng.choice("桥河船岸春天开放ab，。") for _ in range(rng.randrange(1, 60))) for _ in range(200)]
    path = tmp_path / "a.txt"
    path.write_bytes("".join(text + "。" + end for text in texts).encode(encoding))
    monkeypatch.setattr(reader_blocks, "BLOCK_BYTES", 1001)
    blocks = list(read_blocks(str(path)))
    assert blocks == list(read_blocks(str(path))) and len(blocks) > (10 if end else 0)
    assert sum(block.n_bytes for block in blocks) == path.stat().st_size
    assert read(path) == ([text + "。" for text in texts] if end else ["".join(text + "。" for text in texts)], {})
