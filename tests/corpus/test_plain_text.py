"""Plain text: what separates its documents, headings, lines that cannot be read, and texts of any length."""

import pytest

from minigpt.corpus.readers import blocks as reader_blocks
from minigpt.corpus.readers.rows import read_blocks
from minigpt.corpus.records import Problems, read_rows

INDENTED = "".join(f"\u3000\u3000第{i}段。\n" for i in range(6))
WRAPPED = "这一行在第三十个字那里被\n折断了，下一行也是这样的，\n直到最后。\n"


def read(path):
    """([text], [place of a problem]) of a plain text."""
    problems = Problems()
    return [row["text"] for _, row in read_rows(str(path), problems)], problems.places


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("甲。\n\n乙。\r\n\r\n丙。\n \t\u3000\n丁。\n\u3000\n\n\n戊。", ["甲。", "乙。", "丙。", "丁。", "戊。"]),
        ("甲。\n<|endoftext|>\n乙。\n\n丙。<|endoftext|>丁。", ["甲。", "乙。\n\n丙。", "丁。"]),
        ("甲。\n乙。\n丙。", ["甲。", "乙。", "丙。"]),
        ("“甲。”\n乙？\n丙！）\n丁", ["“甲。”", "乙？", "丙！）", "丁"]),
        (INDENTED, [INDENTED[:-1]]),
        (INDENTED.replace("\u3000\u3000", "    "), [INDENTED.replace("\u3000\u3000", "    ")[:-1]]),
        (WRAPPED, [WRAPPED[:-1]]),
        ("书名\n作者：某人\n\n" + INDENTED, ["书名\n作者：某人\n\n" + INDENTED[:-1]]),
        ("第一章 风\n\n甲。\n乙。\n\n第二章 雨\n \n丙。", ["第一章 风\n\n甲。\n乙。", "第二章 雨\n \n丙。"]),
        ("上部\n\n第一章\n\n甲。\n\n乙。\n\n尾声", ["上部\n\n第一章\n\n甲。", "乙。", "尾声"]),
        ("[第一章]\n\n甲。\n\n\ufeff乙。", ["[第一章]\n\n甲。", "乙。"]),
        ("", []),
        ("\n \n<|endoftext|>\n", []),
    ],
)
def test_what_separates_documents(tmp_path, monkeypatch, text, documents):
    path = tmp_path / "a.txt"
    for content in (text, text.replace("\r\n", "\n").replace("\n", "\r\n")):
        path.write_text(content, encoding="utf-8", newline="")
        texts, places = read(path)
        plain = [document.replace("\r", "") for document in texts]
        assert plain == documents and not places
    # Small blocks are cut between documents, once the first has told what separates them.
    monkeypatch.setattr(reader_blocks, "BLOCK_BYTES", 100)
    long = "\n\n".join(["很长的一段文字，写到这里。" * 2] * 3 + ["小标题", text or "空。"])
    path.write_text(long, encoding="utf-8")
    assert "小标题\n\n" in "\n\n".join(read(path)[0]) and "小标题" not in read(path)[0]


def test_a_line_that_is_no_utf8_costs_only_itself(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("甲。\n".encode() + b"\xff\xfe\n" + "乙。\n\n丙。\n".encode())
    assert read(path) == (["甲。\n乙。", "丙。"], [f"{path}, line 2: bad UTF-8"])


SENTENCE = "他走过那座桥，看见了河里的船。"


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (f"\u3000\u3000{SENTENCE}\n" * 400, "。"),  # at the end of a line
        (SENTENCE * 400, "。"),  # at the end of a sentence
        ("桥河船岸" * 2000, ""),  # between two characters
        ("短。\n\n" + SENTENCE * 400 + "\n\n短。", "。"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_a_long_text_is_cut_and_nothing_of_it_is_lost(tmp_path, monkeypatch, text, end, encoding):
    monkeypatch.setattr(reader_blocks, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(reader_blocks, "MAX_RECORD_BYTES", 5000)
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(encoding))
    texts, places = read(path)
    assert "".join("".join(texts).split()) == "".join(text.split()) and not places
    assert len(texts) > 3 and all(len(piece.encode()) <= 5000 and piece.endswith(end) for piece in texts)
    assert sum(block.n_bytes for block in read_blocks(str(path))) == path.stat().st_size
