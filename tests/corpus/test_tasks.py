"""Labelled examples in all their forms, and the rows of tasks, by data/prepare_task.py as a user runs it."""

import json
import math

import numpy as np
import pytest
from corpora import byte_tokenizer, write_jsonl
from processes import done, error_of
from tiny import EOT, PAD, tiny_tokenizer

from minigpt.common.errors import UserError
from minigpt.corpus.records import Problems
from minigpt.corpus.task_rows import encode_characters, encode_texts, make_task_row
from minigpt.corpus.tasks import ExampleReader, LabelledExample, order_labels


def read(path, **options):
    """(examples as tuples, {reason: count}) of a file."""
    problems = Problems()
    found = [
        (e.kind, e.text, e.text_b, e.label if e.tags is None else " ".join(e.tags))
        for e in ExampleReader(problems, **options).read(path)
    ]
    return found, dict(problems.counts)


FORMS = {
    "text, label": ({"text": "好书", "label": "好"}, ("classify", "好书", None, "好")),
    "a number": ({"Review": "好书", "Label": 1}, ("classify", "好书", None, "1")),
    "a float, among other fields": ({"id": 7, "sentence": "好书", "target": 0.0}, ("classify", "好书", None, "0")),
    "sentiment": ({"content": "好书", "sentiment": True}, ("classify", "好书", None, "true")),
    "text_a alone": ({"label": "0", "text_a": "好书"}, ("classify", "好书", None, "0")),
    "text_a, text_b": ({"text_a": "甲", "text_b": "乙", "label": 0}, ("pair", "甲", "乙", "0")),
    "sentence1, sentence2": ({"sentence1": "甲", "sentence2": "乙", "label": "1"}, ("pair", "甲", "乙", "1")),
    "premise, hypothesis": ({"premise": "甲", "hypothesis": "乙", "gold_label": "中"}, ("pair", "甲", "乙", "中")),
    "a large number": ({"text": "好书", "label": 10000000}, ("classify", "好书", None, "10000000")),
    "tags": ({"text": "去京都", "tags": ["O", "B-P", "I-P"]}, ("tag", "去京都", None, "O B-P I-P")),
    "tags in a text": ({"text": "去京都", "tags": "O B-P I-P"}, ("tag", "去京都", None, "O B-P I-P")),
    "one tag": ({"text": "去", "tags": "O"}, ("tag", "去", None, "O")),
    "tokens": ({"tokens": ["去", "京"], "ner_tags": ["O", "S-P"]}, ("tag", "去京", None, "O B-P")),
    "tokens beside a text": (
        {"text": "去 京", "tokens": ["去", "京"], "labels": ["O", "O"]},
        ("tag", "去京", None, "O O"),
    ),
    "BMES": ({"text": "京都去了", "tags": ["B-P", "E-P", "O", "O"]}, ("tag", "京都去了", None, "B-P I-P O O")),
    "without types": ({"text": "京都府去", "tags": "B M E S"}, ("tag", "京都府去", None, "B I I B")),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_row_of_each_form_is_read(tmp_path, name):
    row, expected = FORMS[name]
    assert read(write_jsonl(tmp_path / "a.jsonl", [row] * 2)) == ([expected] * 2, {})


TABLES = {
    "a.csv": ("text,label\n好书,1\n坏书,0\n", [("classify", "好书", None, "1"), ("classify", "坏书", None, "0")]),
    "a.tsv": ("好书\t1\n坏书\t0\n", [("classify", "好书", None, "1"), ("classify", "坏书", None, "0")]),
    "pairs.tsv": ("甲\t乙\t1\n丙\t丁\t0\n", [("pair", "甲", "乙", "1"), ("pair", "丙", "丁", "0")]),
    "a.txt": (
        "去 O\n京\tB-P\n都 x I-P\n\n\n好 O\r\n",
        [("tag", "去京都", None, "O B-P I-P"), ("tag", "好", None, "O")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables_and_lines_of_tags_are_read(tmp_path, name):
    text, expected = TABLES[name]
    (tmp_path / name).write_bytes(text.encode())
    assert read(str(tmp_path / name)) == (expected, {})


def test_numbers_are_places_in_the_labels_that_are_given(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "甲", "label": 1}, {"text": "乙", "label": "坏"}])
    assert [example[-1] for example in read(path, labels=["坏", "好"])[0]] == ["好", "坏"]
    path = write_jsonl(tmp_path / "b.jsonl", [{"tokens": ["甲", "乙"], "ner_tags": [0, 1]}] * 2)
    assert read(path, labels=["O", "B-P"])[0] == [("tag", "甲乙", None, "O B-P")] * 2
    assert read(path, labels=["B-P", "E-P"])[0] == [("tag", "甲乙", None, "B-P I-P")] * 2


def test_fields_of_any_name_are_read_where_they_are_given(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"问": "甲", "答": "乙", "对": 1, "text": "丙"}])
    assert read(path, text_field="问,答", label_field="对")[0] == [("pair", "甲", "乙", "1")]
    assert read(path, label_field="对")[0] == [("classify", "丙", None, "1")]


NAME_FIELDS = "; name the fields with --text_field=… and --label_field=…"
BAD = {
    "no label": ({"text": "甲", "id": 1}, f'no "label"{NAME_FIELDS}'),
    "no text": ({"正": "甲", "label": 1}, f'no "text"{NAME_FIELDS}'),
    "an empty label": ({"text": "甲", "label": " "}, f'no "label"{NAME_FIELDS}'),
    "an empty text": ({"text": " ", "label": 1}, '"text" is empty'),
    "an empty second text": ({"text_a": "甲", "text_b": "", "label": 1}, '"text_b" is empty'),
    "a nested label": ({"text": "甲", "label": {"a": 1}}, '"label" has a list or an object in place of a label'),
    "an empty cell": ({"text": "甲", "label": math.nan}, '"label" has no label (nan)'),
    "no agreement": ({"text": "甲", "label": "-"}, '"label" has no label (-)'),
    "fewer tags": ({"text": "甲乙", "tags": ["O"]}, '"tags" has not as many tags as the text has characters'),
    "other tags": ({"text": "甲", "tags": ["NR"]}, '"tags" has a tag that is not O, B-… or I-…'),
    "numbers": (
        {"text": "甲", "tags": [1]},
        '"tags" has a tag that is not O, B-… or I-…: name the tags of its numbers with --labels=…',
    ),
    "words": ({"tokens": ["甲乙"], "tags": ["O"]}, '"tokens" has a token that is no single character'),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_dropped_with_its_reason(tmp_path, name):
    row, reason = BAD[name]
    assert read(write_jsonl(tmp_path / "a.jsonl", [row] * 2)) == ([], {reason: 2})


def test_a_label_that_is_not_among_those_given_is_dropped(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "甲", "label": 2}, {"text": "甲", "label": "中"}])
    assert read(path, labels=["坏", "好"]) == ([], {'"label" is none of --labels': 2})


def test_a_bad_line_costs_its_text_alone(tmp_path):
    (tmp_path / "a.bio").write_text("去 O\n京 B-P\n\n" * 40 + "甲\n乙 O\n\n丙 O\n", encoding="utf-8")
    found, dropped = read(str(tmp_path / "a.bio"))
    assert len(found) == 41 and dropped == {"a line that is no character and tag": 1}


def test_rows_of_two_kinds_are_refused_with_both_places(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "甲", "label": 1}, {"text": "甲", "tags": ["O"]}])
    with pytest.raises(UserError, match=r"a\.jsonl, line 2 is of kind tag, but .*a\.jsonl, line 1 is of kind classify"):
        read(path)


def labelled(*labels):
    return [LabelledExample("a", i, "甲", label=label) for i, label in enumerate(labels)]


def test_labels_are_sorted_numbers_by_their_value():
    assert order_labels(labelled("10", "2", "乙", "a")) == ["2", "10", "a", "乙"]
    assert order_labels(labelled("b", "a"), ["b", "c", "a", "b"]) == ["b", "c", "a"]
    tagged = [LabelledExample("a", 1, "甲", tags=["O"])]
    assert order_labels(tagged, ["O", "B-P", "M-P", "E-P", "S-P"]) == ["O", "B-P", "I-P"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [(["a"] * 3, "all rows have the label a"), ([f"x{i}" for i in range(30)], "30 different labels in 30 rows")],
)
def test_what_are_no_labels_is_refused(labels, message):
    with pytest.raises(UserError, match=message):
        order_labels(labelled(*labels))


# Rows. In the tiny tokenizer 的 and 河 are a token each, other Chinese characters are three.


def ids_of(text):
    return tiny_tokenizer().encode(text)


@pytest.mark.parametrize(
    ("block_size", "texts", "expected", "left_out"),
    [
        (8, ["abc"], [*b"abc", EOT], 0),
        (8, ["abcdefg"], [*b"abcdefg", EOT], 0),
        (8, ["abcdefghij"], [*b"abcdhij", EOT], 3),
        (9, ["ab", "cde"], [*b"ab", EOT, *b"cde", EOT], 0),
        (8, ["ab", "cdefgh"], [*b"ab", EOT, *b"cdgh", EOT], 2),  # what the first does not need, the second has
        (8, ["abcdefgh", "ijklmnop"], [*b"abh", EOT, *b"ijp", EOT], 10),
    ],
)
def test_texts_too_long_lose_their_middle_and_a_pair_shares_the_row(block_size, texts, expected, left_out):
    assert encode_texts(tiny_tokenizer(), block_size, *texts) == (expected, left_out)


def test_each_character_is_encoded_by_itself_and_marked_at_its_last_token():
    ids, ends = encode_characters(tiny_tokenizer(), 16, "a京的ab")
    assert ids == [*b"a", *ids_of("京"), *ids_of("的"), *b"ab", EOT] and ends == [0, 3, 4, 5, 6]
    ids, ends = encode_characters(tiny_tokenizer(), 8, "a京京b")  # 8 tokens with the EOT would be 9
    assert ids == [*b"a", *ids_of("京京"), EOT] and ends == [0, 3, 6]


def test_a_row_has_tokens_and_labels_from_one_on():
    example = LabelledExample("a", 1, "的京河", tags=["O", "B-P", "O"])
    row, n_chars = make_task_row(tiny_tokenizer(), 8, example, {"B-P": 0, "O": 1})
    assert row.tolist() == [[*ids_of("的京河"), EOT, PAD, PAD], [2, 0, 0, 1, 2, 0, 0, 0]] and n_chars == 3
    row, n_chars = make_task_row(tiny_tokenizer(), 8, LabelledExample("a", 1, "的", "河", "b"), {"a": 0, "b": 1})
    assert row.tolist() == [[*ids_of("的"), EOT, *ids_of("河"), EOT, *[PAD] * 4], [0, 0, 0, 2, 0, 0, 0, 0]]
    assert n_chars == 2


# The script


def rows_of(folder):
    """(meta, {part: rows (n, 2, block_size)}) of a task's folder."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    shape = (-1, 2, meta["block_size"])
    return meta, {part: np.fromfile(folder / f"{part}.bin", dtype="<u2").reshape(shape) for part in meta["parts"]}


def test_the_script_splits_by_the_text_and_tells_what_it_wrote(script, tmp_path):
    rows = [{"text": f"第{i % 60}本书很{'好' if i % 2 else '坏'}", "label": i % 2} for i in range(120)]
    write_jsonl(tmp_path / "a.jsonl", [*rows, {"text": "", "label": 1}, {"text": "x" * 100, "label": 0}])
    (tmp_path / "t.tiktoken").write_bytes(byte_tokenizer().vocabulary)
    said = done(script("data/prepare_task.py", "--task_files=a.jsonl", "--tokenizer=t.tiktoken", "--block_size=64"))
    meta, parts = rows_of(tmp_path / "data/processed_task")
    assert meta["stage"] == "task" and meta["task"] == {"kind": "classify", "labels": ["0", "1"]}
    assert meta["dropped"] == {'"text" is empty': 1} and (meta["texts_cut"], meta["characters_cut"]) == (1, 37)
    texts = {part: {tuple(row[0]) for row in rows} for part, rows in parts.items()}
    assert sum(map(len, parts.values())) == 121 and sum(map(len, texts.values())) == 61  # equal texts are in one part
    for part, rows in parts.items():
        labels = [int(row[1].max()) for row in rows]
        counts = meta["parts"][part]
        assert counts["labels"] == {"0": labels.count(1), "1": labels.count(2)}
        assert counts["rows"] == len(rows) > 0 and counts["tokens"] == (rows[:, 0] != 257).sum()
        assert ((rows[:, 1] > 0).sum(axis=1) == 1).all()
    assert "lost their middle: 1 (37 characters)" in said and '1 "text" is empty' in said
    assert math.isclose(meta["parts"]["train"]["tokens_per_character"], 3, abs_tol=1)  # bytes of Chinese, and digits


def test_given_parts_stay_as_they_are_and_shared_texts_are_told(script, tmp_path):
    rows = [{"tokens": ["去", chr(0x4E00 + i)], "tags": ["O", "B-P"]} for i in range(30)]
    write_jsonl(tmp_path / "train.jsonl", rows[:25])
    write_jsonl(tmp_path / "dev.jsonl", rows[23:])
    flags = ["--dev_files=dev.jsonl", "--test_files=dev.jsonl", "--task_data_dir=out", "--labels=O,B-P,I-P"]
    said = done(script("data/prepare_task.py", "--task_files=train.jsonl", *flags))
    meta, parts = rows_of(tmp_path / "out")
    assert [len(parts[part]) for part in ("train", "val", "test")] == [25, 7, 7]
    assert meta["task"] == {"kind": "tag", "labels": ["O", "B-P", "I-P"]}
    assert meta["parts"]["val"]["labels"] == {"O": 7, "B-P": 7, "I-P": 0}
    assert "2 of 7 texts of val are in train, too" in said and "no row of train has the label I-P" in said
    # Without task_files the embedded task would replace these rows.
    assert "holds rows made of train.jsonl" in error_of(script("data/prepare_task.py", "--task_data_dir=out"))


MISTAKES = {
    "no file": ([], ["--task_files=no.jsonl"], "no.jsonl is not there; name your labelled texts with --task_files"),
    "nothing usable": ([{"a": "甲", "b": 1}], [], 'none of 1 rows could be used, for the reason: no "text"; name'),
    "three fields": ([], ["--text_field=a,b,c"], "names 3 fields; name one, or two of a pair"),
    "no validation": ([{"text": "甲", "label": i % 2} for i in range(9)], [], "has none of the 9 rows, and training"),
    "one label": ([{"text": f"甲{i}", "label": 1} for i in range(9)], [], "all rows have the label 1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_a_line_and_writes_nothing(script, tmp_path, name):
    rows, flags, message = MISTAKES[name]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert message in error_of(script("data/prepare_task.py", "--task_files=a.jsonl", *flags))
    assert not (tmp_path / "data/processed_task").exists() or not any((tmp_path / "data/processed_task").iterdir())
