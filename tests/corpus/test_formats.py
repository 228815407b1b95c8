"""A file's format is told by its content: the same rows in any format, encoding, compression and name."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import sqlite3
import zipfile

import pyarrow
import pytest
import zstandard

from minigpt.common.errors import UserError
from minigpt.corpus.readers import blocks as reader_blocks
from minigpt.corpus.readers import json_values
from minigpt.corpus.readers.blocks import PLAIN_MARK
from minigpt.corpus.readers.files import find_files
from minigpt.corpus.readers.rows import record_unit
from minigpt.corpus.records import Problems, read_articles, read_rows

ROWS = [
    {"id": str(i), "title": f"第{i}镇", "text": f'第{i}镇，\n"有"{{括号}}]、\\反斜线和&。\t制表;分号,逗号。'}
    for i in range(50)
]
TALK = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]


def dumps(value, **settings):
    return json.dumps(value, ensure_ascii=False, **settings)


def table_of(rows, delimiter, **settings):
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, **settings)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def columns_of(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


FORMATS = {
    "lines": "\n".join(map(dumps, ROWS)),
    "lines of Windows": "\r\n".join(map(dumps, ROWS)),
    "lines with commas": ",\n".join(map(dumps, ROWS)),
    "array": dumps(ROWS),
    "indented array": dumps(ROWS, indent=2),
    "array, an element a line": "[\n" + ",\n".join(map(dumps, ROWS)) + "\n]",
    "array that begins on its first line": "[" + ",\n".join(map(dumps, ROWS)) + "]",
    "two arrays": dumps(ROWS[:20]) + "\n" + dumps(ROWS[20:]),
    "indented objects": "\n".join(dumps(row, indent=2) for row in ROWS),
    "indented objects with commas": ",\n".join(dumps(row, indent=0) for row in ROWS),
    "rows under a key": dumps({"data": ROWS}),
    "rows among other keys": dumps({"version": "1", "info": {"by": [1, {"a": 2}]}, "data": ROWS, "n": 50}, indent=1),
    "rows under a key, one a line": '{"data": [\n' + ",\n".join(map(dumps, ROWS)) + "\n]}",
    "parts": dumps({"train": ROWS[:30], "validation": ROWS[30:]}),
    "columns of objects": dumps(
        {n: dict(zip(map(str, range(50)), c, strict=True)) for n, c in columns_of(ROWS).items()}
    ),
    "columns of lists": dumps(columns_of(ROWS)),
    "pandas' split": dumps({"columns": list(ROWS[0]), "index": [*range(50)], "data": [[*r.values()] for r in ROWS]}),
    "pandas' index": dumps({str(i): row for i, row in enumerate(ROWS)}),
    "CSV": table_of(ROWS, ","),
    "CSV, all quoted": table_of(ROWS, ",", quoting=csv.QUOTE_ALL),
    "CSV of Excel": "sep=;\r\n" + table_of(ROWS, ";"),
    "semicolons": table_of(ROWS, ";"),
    "TSV": table_of(ROWS, "\t"),
}
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "gb18030", "gbk"]
COMPRESSORS = [bytes, gzip.compress, bz2.compress, lzma.compress, zstandard.ZstdCompressor().compress]
NAMES = [
    "a.jsonl",
    "a.json",
    "a.csv",
    "a.tsv",
    "a.txt",
    "a",
    "a.ndjson",
    "a.parquet",
    "a.jsonl.gz",
    "a.csv.xz",
    "a.rows",
]


def read(path, **settings):
    """(rows, problems, bytes) of a file."""
    problems, sizes = Problems(), []
    return [row for _, row in read_rows(str(path), problems, sizes.append, **settings)], problems, sum(sizes)


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_any_format_encoding_compression_and_name_give_the_same_rows(tmp_path, monkeypatch, name):
    rng = random.Random(name)
    for _ in range(15):
        encoding, compress, file_name = rng.choice(ENCODINGS), rng.choice(COMPRESSORS), rng.choice(NAMES)
        monkeypatch.setattr(reader_blocks, "BLOCK_BYTES", rng.choice([1 << 20, 2000]))
        mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
        path = write(tmp_path / file_name, compress(mark + FORMATS[name].encode(encoding)))
        rows, problems, n_bytes = read(path)
        rows = [{**row, "text": row["text"].replace("\r\n", "\n")} for row in rows]
        assert rows == ROWS and not problems.counts, (encoding, compress, file_name)
        assert n_bytes == path.stat().st_size


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", '["甲。", "乙。"]', [{"text": "甲。"}, {"text": "乙。"}]),
        ("a.jsonl", '"甲。"\n"乙。"\n', [{"text": "甲。"}, {"text": "乙。"}]),
        ("a.json", '{"data": ["甲。", "乙。"]}', [{"text": "甲。"}, {"text": "乙。"}]),
        ("a.jsonl", f"{dumps(TALK)}\n{dumps(TALK)}\n", [{"messages": TALK}] * 2),
        ("a.jsonl", dumps(TALK), [{"messages": TALK}]),
        ("a.json", dumps(TALK, indent=1), [{"messages": TALK}]),
        ("a.json", dumps([TALK, TALK]), [{"messages": TALK}] * 2),
        ("a.json", '[["你好", "好"], ["一", "二", "三"]]', [{"turns": ["你好", "好"]}, {"turns": ["一", "二", "三"]}]),
        ("a.jsonl", '["你好", "好"]\n["一", "二"]', [{"turns": ["你好", "好"]}, {"turns": ["一", "二"]}]),
        ("a.json", '{"text": "甲。"}', [{"text": "甲。"}]),
        ("a.json", dumps({"messages": TALK}, indent=1), [{"messages": TALK}]),
        ("a.json", '{"chat": {"turn_1": {"Human": "问"}}}', [{"chat": {"turn_1": {"Human": "问"}}}]),
        (
            "a.json",
            '{"data": [{"title": "桥", "qas": [{"a": 1}]}]}',
            [{"title": "桥", "qas": [{"a": 1}]}],
        ),
        ("a.tsv", "你好\t你好啊\n再见\t拜拜\n", [{"columns": ["你好", "你好啊"]}, {"columns": ["再见", "拜拜"]}]),
        ("a.tsv", '甲"乙\t"丙\n戊\t己"\n', [{"columns": ['甲"乙', '"丙']}, {"columns": ["戊", '己"']}]),
        ("a.tsv", "text_a\ttext_b\n甲\t乙\n", [{"text_a": "甲", "text_b": "乙"}]),
        ("a.csv", "你好,你好啊。\n再见,拜拜。\n", [{"columns": ["你好", "你好啊。"]}, {"columns": ["再见", "拜拜。"]}]),
        ("a.csv", "标题列,正文列\n桥,甲。\n", [{"标题列": "桥", "正文列": "甲。"}]),
        ("a.csv", "id,text\n1,甲。\nid,text\n2,乙。\n", [{"id": "1", "text": "甲。"}, {"id": "2", "text": "乙。"}]),
        (
            "a.csv",
            'id,text\n1,"没有结束\n2,"乙\n。"\n',
            [{"id": "1", "text": '"没有结束'}, {"id": "2", "text": "乙\n。"}],
        ),
    ],
)
def test_rows_that_are_no_objects_and_tables_without_a_header(tmp_path, name, content, expected):
    rows, problems, _ = read(write(tmp_path / name, content))
    assert [{key: row[key] for key in row if key != PLAIN_MARK} for row in rows] == expected and not problems.counts


@pytest.mark.parametrize(
    ("name", "content", "texts", "place"),
    [
        ("a.json", '["甲", 乙", "丙"]', ["甲", "丙"], "row 2: bad JSON"),
        ("a.json", '["甲", "乙, "丙"]', ["甲", "丙"], "row 2: bad JSON"),
        ("a.jsonl", '{"data": [{"text": "甲"}, {"text" 1}, {"text": "丙"}], "n": 1}', ["甲", "丙"], "row 2: bad JSON"),
        ("a.json", '{"data": [{"text": "甲"}, {"text": "乙"}, {"te', ["甲", "乙"], "row 3: bad JSON"),
        ("a.jsonl", '{"text": "甲"}\n{"messages": [{"role"\n{"text": "丙"}\n', ["甲", "丙"], "line 2: bad JSON"),
        ("a.jsonl", '{"data": [{"a": 1\n{"text": "甲"}\n{"text": "乙"}\n', ["甲", "乙"], "line 1: bad JSON"),
        ("a.csv", "id,text\n1,甲\n2,乙,丙\n3,丁,\n", ["甲", "丁"], "line 3: more cells than the first line has"),
    ],
)  # fmt: skip
def test_a_broken_element_costs_only_itself_and_is_counted_in_the_files_own_unit(tmp_path, name, content, texts, place):
    path = write(tmp_path / name, content)
    rows, problems, _ = read(path)
    assert [row["text"] for row in rows] == texts and problems.places == [f"{path}, {place}"]
    assert record_unit(str(path)) == place.split()[0]


def test_an_object_that_must_be_held_as_a_whole_has_a_limit(tmp_path, monkeypatch):
    path = write(tmp_path / "a.json", dumps(columns_of(ROWS)))
    monkeypatch.setattr(json_values, "MAX_WHOLE_BYTES", 1000)
    with pytest.raises(UserError, match=r"a\.json: .*orient='records'"):
        read(path)


def test_lines_of_questions_may_hold_an_answer_behind_a_tab(tmp_path):
    path = write(tmp_path / "a.txt", "问一\t答一\n问二\t答二\n")
    assert read(path, one_per_line=True)[0] == [{"columns": ["问一", "答一"]}, {"columns": ["问二", "答二"]}]
    write(path, "问题\t答案\n问二\t答二\n")
    assert read(path, one_per_line=True)[0] == [{"问题": "问二", "答案": "答二"}]
    write(path, "问一\n问\t二\n问三\n")
    assert [row["text"] for row in read(path, one_per_line=True)[0]] == ["问一", "问\t二", "问三"]


def test_a_row_without_a_text_names_its_fields_and_alike_rows_are_counted_together(tmp_path):
    rows = [
        {"title": "桥", "inhalt": "甲。"},
        {"contenu": "乙。"},
        *({f"x{i}": "丙。"} for i in range(5)),
        {"id": 1, "title": "桥"},
    ]
    problems = Problems()
    assert not list(read_articles([str(write(tmp_path / "a.jsonl", "\n".join(map(dumps, rows))))], problems))
    assert problems.counts == {'no "text" (it has title, inhalt: name one with --text_field=…)': 7, 'no "text"': 1}


# Files that are not read


def excel_bytes():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/workbook.xml", "<x/>")
    return file.getvalue()


def sqlite_bytes(folder):
    with sqlite3.connect(folder / "made") as connection:
        connection.execute("create table a (b)")
    connection.close()
    return (folder / "made").read_bytes()


def arrow_bytes(new_file):
    sink = io.BytesIO()
    table = pyarrow.Table.from_pylist(ROWS)
    with new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


WIKI_DUMP = b'<mediawiki xml:lang="zh">\n<page></page>\n</mediawiki>'
UNREAD = {
    "a.xlsx": (excel_bytes(), "an Excel workbook.*read_excel"),
    "b.jsonl": (excel_bytes(), "an Excel workbook"),  # a wrong name
    "a.arrow": (arrow_bytes(pyarrow.ipc.new_stream), "an Arrow file.*to_json"),
    "b.arrow": (arrow_bytes(pyarrow.ipc.new_file), "an Arrow file"),
    "a.zip": (b"PK\x03\x04" + b"\0" * 30, "a ZIP archive.*unzip"),
    "a.xml.bz2": (bz2.compress(WIKI_DUMP), "Wikipedia.*wikiextractor"),
    "b.json": (WIKI_DUMP, "Wikipedia"),
    "a.tar.gz": (gzip.compress(b"\0" * 257 + b"ustar" + b"\0" * 250), "a tar archive.*tar xf"),
    "a.7z": (b"7z\xbc\xaf\x27\x1c\0\x04", "a 7z archive"),
    "a.h5": (b"\x89HDF\r\n\x1a\n\0", "an HDF5 file"),
    "a.pdf": (b"%PDF-1.7\n", "a PDF document"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_a_format_that_is_not_read_is_named_with_the_way_to_convert_it(tmp_path, capsys, name):
    content, words = UNREAD[name]
    path = write(tmp_path / name, content)
    for ask in (lambda: find_files([str(path)]), lambda: find_files([str(tmp_path)]), lambda: read(path)):
        with pytest.raises(UserError, match=words):
            ask()
    write(tmp_path / "rows.jsonl", dumps(ROWS[0]))
    assert find_files([str(tmp_path)]) == [f"{tmp_path.as_posix()}/rows.jsonl"]
    note = capsys.readouterr().err
    assert note.startswith("note: 1 .") and f"in {tmp_path} is not read (" in note and note.count("\n") == 1
    assert find_files([str(tmp_path)]) and not capsys.readouterr().err  # said once


def test_a_database_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a SQLite database.*sqlite3 -json"):
        find_files([str(write(tmp_path / "a.data", sqlite_bytes(tmp_path)))])


def test_texts_in_a_folder_are_read_where_it_has_nothing_else_and_else_named(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in ("a.txt", "b.txt", "README.txt", "LICENSE", "README.md", "dataset_info.json", "state.json"):
        write(tmp_path / "in" / name, "甲。\n")
    folder = f"{tmp_path}/in"
    texts = [f"{tmp_path.as_posix()}/in/{name}.txt" for name in "ab"]
    assert find_files([folder]) == texts and not capsys.readouterr().err
    for name in ("c.csv", "d.tsv", "e.jsonl.gz"):
        write(tmp_path / "in" / name, "id,text\n")
    rows = [f"{tmp_path.as_posix()}/in/{name}" for name in ("c.csv", "d.tsv", "e.jsonl.gz")]
    assert find_files([folder]) == rows
    assert capsys.readouterr().err == f"note: 2 .txt files in {folder} are not read; --plain_text reads them\n"
    assert find_files([folder], plain_text=True) == texts + rows and not capsys.readouterr().err
    os.remove(texts[0])
    find_files([folder])
    assert "1 .txt file in" in capsys.readouterr().err
