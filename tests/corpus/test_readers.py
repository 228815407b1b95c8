"""Every input format, compressed or not, gives the same rows; damage costs no other record."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from corpora import write_jsonl

from minigpt.corpus.readers import blocks as reader_blocks
from minigpt.corpus.readers import json_rows, tables
from minigpt.corpus.readers.files import find_files
from minigpt.corpus.readers.rows import read_blocks
from minigpt.corpus.records import Problems, read_articles, read_rows

ROWS = [
    {"id": i, "title": f"第{i}镇", "text": f'第{i}镇，\n"有"{{括号}}]、\\反斜线、<和&，还有 {i} 座桥。'}
    for i in range(60)
]
COMPRESSORS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def lines(rows=ROWS):
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def docs(rows=ROWS):
    """As wikiextractor writes them, its texts escaped."""
    escaped = [{**row, "text": row["text"].replace("&", "&amp;").replace("<", "&lt;")} for row in rows]
    return "".join(
        f'<doc id="{row["id"]}" url="https://x/?curid=1&amp;a=2" title="{row["title"]}">\n{row["text"]}\n</doc>\n'
        for row in escaped
    ).encode()


FORMS = {
    "a.jsonl": lines(),
    "wiki_00": lines(),
    "array.json": json.dumps(ROWS, ensure_ascii=False, indent=2).encode(),
    "tight.json": json.dumps(ROWS, separators=(",", ":")).encode(),
    "lines.json": lines(),
    "docs_00": docs(),
}


def read(path):
    problems, sizes = Problems(), []
    rows = [row for _, row in read_rows(str(path), problems, sizes.append)]
    return rows, problems, sum(sizes)


@pytest.fixture(params=[reader_blocks.BLOCK_BYTES, 700])
def blocks(request, monkeypatch):
    """Also with blocks so small that records span two of them."""
    monkeypatch.setattr(reader_blocks, "BLOCK_BYTES", request.param)
    monkeypatch.setattr(tables, "PARQUET_BLOCK_ROWS", 7)


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("name", FORMS)
def test_every_form_and_compression_gives_the_rows_and_the_bytes_read(tmp_path, blocks, name, compression):
    path = tmp_path / (name + compression)
    path.write_bytes(COMPRESSORS[compression](FORMS[name]))
    rows, problems, n_bytes = read(path)
    got = [{"id": int(row["id"]), "title": row["title"], "text": row["text"].removesuffix("\n")} for row in rows]
    assert got == ROWS and not problems.counts and n_bytes == path.stat().st_size
    assert find_files([str(tmp_path)]) == [path.as_posix()]


def test_a_parquet_file_gives_its_rows(tmp_path, blocks):
    path = tmp_path / "train-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=25, compression="zstd")
    rows, problems, n_bytes = read(path)
    assert rows == ROWS and not problems.counts and n_bytes == path.stat().st_size
    assert find_files([str(tmp_path)]) == [path.as_posix()]


def test_all_members_and_frames_of_a_compressed_file_are_read(tmp_path):
    for compression in (".gz", ".bz2", ".xz", ".zst"):
        path = tmp_path / f"a.jsonl{compression}"
        path.write_bytes(COMPRESSORS[compression](lines(ROWS[:20])) + COMPRESSORS[compression](lines(ROWS[20:])))
        assert read(path)[0] == ROWS


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst"])
def test_a_truncated_compressed_file_gives_its_complete_records_and_a_problem(tmp_path, blocks, compression):
    rng = random.Random(0)
    rows = [{"id": i, "text": "".join(chr(rng.randrange(0x4E00, 0x9000)) for _ in range(300))} for i in range(500)]
    path = tmp_path / f"a.jsonl{compression}"
    data = COMPRESSORS[compression](lines(rows))
    path.write_bytes(data[: len(data) // 2])
    got, problems, _ = read(path)
    assert got == rows[: len(got)] and sum(problems.counts.values()) <= 2
    assert any("damaged" in reason for reason in problems.counts) or "bad JSON" in problems.counts
    assert len(got) > 100 or compression == ".bz2"  # its blocks are large


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.jsonl.xz", "a.jsonl.bz2", "a.parquet"])
def test_a_file_of_another_format_is_a_problem_with_its_place(tmp_path, name):
    (tmp_path / name).write_bytes(b"not what the name says" * 50)
    write_jsonl(tmp_path / "b.jsonl", ROWS[:2])
    problems = Problems()
    articles = list(read_articles(find_files([str(tmp_path)]), problems))
    assert len(articles) == 2 and len(problems.places) == 1 and "damaged" in problems.places[0]


def test_an_endless_line_is_skipped_and_the_lines_around_it_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(reader_blocks, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(reader_blocks, "MAX_RECORD_BYTES", 5000)
    long_one = json.dumps({"text": "长" * 9000}).encode()
    for name, data in {
        "a.jsonl": lines(ROWS[:2]) + long_one + b"\n" + lines(ROWS[2:4]),
        "b.json": b"[" + b",\n".join([*map(json_bytes, ROWS[:2]), long_one, *map(json_bytes, ROWS[2:4])]) + b"]",
        "wiki_00": docs(ROWS[:2]) + b'<doc id="1">\n' + b"long\n" * 9000 + b"</doc>\n" + docs(ROWS[2:4]),
    }.items():
        (tmp_path / name).write_bytes(data)
        rows, problems, _ = read(tmp_path / name)
        assert [int(row["id"]) for row in rows] == [0, 1, 2, 3], name
        assert list(problems.counts.values()) == [1] and "longer than" in problems.places[0]
    assert problems.places[0].startswith(f"{tmp_path / 'wiki_00'}, line 9: ")  # behind two articles of four lines
    (tmp_path / "end.jsonl").write_bytes(lines(ROWS[:1]) + long_one)
    rows, problems, _ = read(tmp_path / "end.jsonl")
    assert len(rows) == 1 and "line 2: longer than" in problems.places[0]


def json_bytes(row):
    return json.dumps(row, ensure_ascii=False).encode()


def test_a_missing_or_wrong_trailer_of_a_compressed_file_costs_no_row(tmp_path):
    rows = [{"id": i, "text": "桥" * 50 + str(i)} for i in range(500)]
    for compression in (".gz", ".bz2", ".xz", ".zst"):
        data = COMPRESSORS[compression](lines(rows))
        for name, damaged in {
            "a": data[:-4] if compression == ".gz" else data,
            "b": data + b"garbage at the end",
        }.items():
            path = tmp_path / f"{name}.jsonl{compression}"
            path.write_bytes(damaged)
            got, problems, _ = read(path)
            assert got == rows and (name == "a" or "damaged" in problems.places[0]), path


def test_values_of_a_table_that_cannot_be_read_cost_no_text(tmp_path):
    table = pyarrow.table(
        {
            "text": pyarrow.array([b"\xe6\xa1\xa5", b"\xff\xfe", b"ok"]).view(pyarrow.utf8()),
            "when": pyarrow.array([1, 2, 2**62], pyarrow.timestamp("us")),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    rows, problems, _ = read(tmp_path / "a.parquet")
    assert [row["text"] for row in rows] == ["桥", "ok"] and dict(problems.counts) == {'"text" cannot be read': 1}


def test_large_rows_of_a_table_come_a_few_at_a_time(tmp_path):
    rows = [{"text": "桥" * 100_000 + str(i)} for i in range(40)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    blocks = list(read_blocks(str(tmp_path / "a.parquet")))
    assert len(blocks) > 10 and sum(block.n_bytes for block in blocks) == (tmp_path / "a.parquet").stat().st_size


def csv_of(rows):
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, ["id", "title", "text"])
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def test_a_csv_gives_its_rows_and_a_broken_record_costs_no_other(tmp_path, blocks):
    first, second = csv_of(ROWS[:30]), csv_of(ROWS[30:]).partition(b"\r\n")[2]
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(first + b"7,bad,\xff\r\n\r\n8\r\n" + second))
    rows, problems, n_bytes = read(path)
    assert [{**row, "id": int(row["id"])} for row in rows if "text" in row] == ROWS
    assert n_bytes == path.stat().st_size and [row for row in rows if "text" not in row] == [{"id": "8"}]
    line = first.count(b"\n") + 1
    assert problems.places == [f"{path}, line {line}: bad UTF-8"]


def test_an_endless_cell_of_a_csv_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(reader_blocks, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(reader_blocks, "MAX_RECORD_BYTES", 5000)
    good = b"text,id\n" + "好。,1\n".encode()
    for name, endless in {"line": b"x" * 9000, "cell": b'"' + b"x\n" * 4500}.items():
        path = tmp_path / f"{name}.csv"
        path.write_bytes(good + endless + b"\n" + "坏。,2\n".encode())
        rows, problems, _ = read(path)
        assert rows[0] == {"text": "好。", "id": "1"} and rows[-1] == {"text": "坏。", "id": "2"}
        assert f"{path}, line 3: longer than 0 MiB" in problems.places


@pytest.mark.parametrize("between", [b" ", b"", b"\n"], ids=["space", "nothing", "newline"])
def test_a_missing_comma_costs_no_row(tmp_path, between):
    good = [json_bytes(row) for row in ROWS[:6]]
    data = b"[" + b",".join([*good[:2], good[2] + between + good[3], *good[4:]]) + b"]"
    (tmp_path / "a.json").write_bytes(data)
    rows, problems, _ = read(tmp_path / "a.json")
    assert rows == ROWS[:6] and not problems.counts


def test_a_missing_quote_among_rows_with_objects_in_them_costs_none_of_them(tmp_path):
    talks = [
        {"messages": [{"role": "user", "content": f"问{i}"}, {"role": "assistant", "content": f"答{i}"}]}
        for i in range(5)
    ]
    good = list(map(json_bytes, talks))
    (tmp_path / "a.json").write_bytes(b"[" + b", ".join([*good[:2], b'{"messages": [{"role": "us}', *good[2:]]) + b"]")
    rows, problems, _ = read(tmp_path / "a.json")
    assert rows == talks and problems.counts


def test_a_document_without_an_end_swallows_no_other(tmp_path):
    good = docs(ROWS[:2]).decode()
    (tmp_path / "wiki_00").write_text(f'<doc id="7" title="x">\n没有结尾\n{good}', encoding="utf-8")
    rows, problems, _ = read(tmp_path / "wiki_00")
    assert [row["id"] for row in rows] == ["0", "1"] and problems.places == [
        f"{tmp_path / 'wiki_00'}, line 1: no </doc>"
    ]
    (tmp_path / "wiki_01").write_bytes(docs(ROWS[:2])[:-20])  # cut off
    rows, problems, _ = read(tmp_path / "wiki_01")
    assert [row["id"] for row in rows] == ["0"] and dict(problems.counts) == {"no </doc>": 1}


def test_hidden_and_left_out_files_and_what_is_no_file_are_skipped(tmp_path):
    for name in ("in/a.jsonl", "in/.git/HEAD", "in/.x/b.jsonl", "in/out/meta.json"):
        write_jsonl(tmp_path / name, ROWS[:1])
    (tmp_path / "in/d.jsonl").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "in/pipe.jsonl")
        os.symlink(tmp_path / "nowhere", tmp_path / "in/gone.jsonl")
    assert find_files([f"{tmp_path}/in"], leave_out=f"{tmp_path}/in/out") == [f"{tmp_path.as_posix()}/in/a.jsonl"]
    problems = Problems()
    assert list(read_articles([f"{tmp_path}/vanished.jsonl"], problems)) == [] and "gone" in problems.places[0]


BROKEN_ELEMENTS = ['{"id": 1', '{"id" 1}', '{"text": "断\n}', "[1, 2]", "7", '"text"', "null", '{"a": 1, "a": 2}', "{]"]


@pytest.mark.parametrize("element", BROKEN_ELEMENTS)
def test_a_broken_element_of_an_array_costs_no_other(tmp_path, blocks, element):
    good = [json_bytes(row) for row in ROWS[:6]]
    path = tmp_path / "a.json"
    path.write_bytes(b"[\n" + b",\n".join([*good[:3], element.encode(), *good[3:]]) + b"\n]")
    rows, problems, _ = read(path)
    assert rows == ROWS[:6] and sum(problems.counts.values()) == 1 and ", row " in problems.places[0]


def test_rows_that_a_missing_quote_has_merged_are_recovered(tmp_path):
    good = [json_bytes(row) for row in ROWS[:6]]
    path = tmp_path / "a.json"
    path.write_bytes(b"[" + b",".join([*good[:3], b'{"text": "x}', *good[3:]]) + b"]")  # all on one line
    rows, problems, _ = read(path)
    assert [row["id"] for row in rows] == [0, 1, 2, 3, 4, 5] and problems.counts


def test_a_truncated_array_gives_its_complete_elements(tmp_path, blocks):
    data = json.dumps(ROWS, ensure_ascii=False).encode()
    (tmp_path / "a.json").write_bytes(data[: data.index(b'{"id": 50') + 20])
    rows, problems, _ = read(tmp_path / "a.json")
    assert rows == ROWS[:50] and sum(problems.counts.values()) == 1


def test_lines_parsed_together_give_the_rows_of_lines_parsed_alone(tmp_path):
    rng = random.Random(1)
    pieces = ['{"a": 1}', '{"a": [{}', '{"b": 1}]}', '{"a": 1}, {"a": 2}', '{"a": 1},0,{"b": 2}', "", "0",
              '{"a": {"b": 1}', '{"t": "x', 'y"}', '{"t": "]"}', "null", '{"a": 1, "a": 2}']  # fmt: skip
    for _ in range(300):
        chosen = [rng.choice(pieces).encode() for _ in range(rng.randrange(1, 6))]
        together = json_rows.parse_lines_together(chosen)
        alone = [json_rows.parse_json_record(line)[0] for line in chosen]
        assert together is None or together == alone
    assert json_rows.parse_lines_together([b'{"a": 1}', b'{"b": 2}']) == [{"a": 1}, {"b": 2}]


def test_plain_text_has_a_document_between_blank_lines_or_on_each_line(tmp_path, blocks, script):
    texts = [f"第{i}镇。\n它有{i}座桥。" for i in range(200)]
    for name, data in {
        "a.txt": "\n\n".join(texts),
        "b.txt": "\r\n\r\n".join(text.replace("\n", "\r\n") for text in texts) + "\r\n",
        "c.txt": "\n\n\n\n" + "\n\n\n".join(texts) + "\n",
        "d.txt": "\n".join(text.replace("\n", "") for text in texts),
    }.items():
        (tmp_path / name).write_text(data, encoding="utf-8", newline="")
        rows, problems, _ = read(tmp_path / name)
        got = [row["text"].strip().replace("\r", "") for row in rows]
        assert got == (texts if name != "d.txt" else [text.replace("\n", "") for text in texts]), name
        assert not problems.counts
    assert find_files([str(tmp_path)], plain_text=True) == [f"{tmp_path.as_posix()}/{n}.txt" for n in "abcd"]
    (tmp_path / "e.txt").write_bytes("一。\n\n".encode() + b"\xff\n\n" + "二。".encode())
    rows, problems, _ = read(tmp_path / "e.txt")
    assert [row["text"].strip() for row in rows] == ["一。", "二。"]
    assert problems.places == [f"{tmp_path / 'e.txt'}, line 3: bad UTF-8"]
    (tmp_path / "wiki").mkdir()
    (tmp_path / "wiki/a.txt").write_text("\n\n".join(texts), encoding="utf-8")
    write_jsonl(tmp_path / "wiki/news.json", [{"content": "桥通车了。", "title": "桥"}])
    run = script("data/prepare.py", "--input_dir=wiki", "--plain_text", "--text_field=content")
    assert run.returncode == 0 and "articles 201" in run.stdout, run.stderr
