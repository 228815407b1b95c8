"""Reading files with every kind of damage, and splitting subjects into parts."""

from collections import Counter

import pytest
from corpora import made_up_articles, write_jsonl

from minigpt.common.errors import UserError
from minigpt.corpus.questions import read_questions
from minigpt.corpus.readers.files import find_files
from minigpt.corpus.records import Problems, read_articles
from minigpt.corpus.splits import hash_share, pretrain_part, read_heldout, sft_part, subjects_by_id

GOOD = {"id": 1, "title": "桥", "text": "桥在河上。"}
BROKEN = [
    ("{", "bad JSON"),
    ('{"text": "没有写完', "bad JSON"),
    ("not json", "bad JSON"),
    ("[" * 100_000, "bad JSON"),
    ('{"id": ' + "9" * 5000 + ', "text": "x"}', "bad JSON"),
    (b'{"text": "\xff\xfe"}', "bad UTF-8"),
    ("甲。".encode("gbk"), "bad UTF-8"),
    ("[1, 2]", "not a JSON object"),
    ('"text"', "not a JSON object"),
    ("null", "not a JSON object"),
    ('{"id": 1}', 'no "text"'),
    ('{"text": 5}', '"text" is not a text'),
    ('{"text": null}', '"text" is not a text'),
    ('{"text": ["甲。"]}', '"text" is nested'),
    ('{"text": {"text": "甲。"}}', '"text" is nested'),
    ('{"text": " \\n "}', '"text" is empty'),
    ('{"text": "甲\\ud83d。"}', "half of a surrogate pair"),
    ('{"text": "甲\\u0000。"}', "NUL character"),
    (b'{"text": "a\0b"}', "NUL character"),
    (b"\0", "NUL character"),
    ('{"text": "甲。", "text": "乙。"}', "duplicate key"),
    ("  ", "empty line"),
    ('{"text": "甲。"} {"text": "乙。"}', "bad JSON"),
]


def read(*paths):
    """(articles, problems) of files."""
    problems = Problems()
    return [article for _, article in read_articles(list(map(str, paths)), problems)], problems


# Files


def test_files_are_found_at_any_depth_sorted_and_without_others(tmp_path):
    for name in ["b.jsonl", "a/deep/er/wiki_00", "a/x.y.jsonl", "notes.txt", "a/.DS_Store", "z.jsonl.bak"]:
        write_jsonl(tmp_path / name, [GOOD])
    found = find_files([str(tmp_path)])
    assert found == [f"{tmp_path.as_posix()}/{name}" for name in ["a/deep/er/wiki_00", "a/x.y.jsonl", "b.jsonl"]]


def test_hidden_files_are_left_out_also_where_they_end_in_jsonl(tmp_path):
    for name in ["a.jsonl", "._a.jsonl"]:  # macOS writes the second beside the first on foreign disks
        write_jsonl(tmp_path / name, [GOOD])
    assert find_files([str(tmp_path)]) == [f"{tmp_path.as_posix()}/a.jsonl"]


def test_a_file_named_twice_is_read_once_and_one_named_directly_may_have_any_ending(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "in" / "a.rows", [GOOD])
    write_jsonl(tmp_path / "in" / "b.jsonl", [GOOD])
    assert find_files(["in", "./in", "in/b.jsonl", "in/a.rows"]) == ["in/a.rows", "in/b.jsonl"]


def test_a_folder_that_is_not_there_or_has_no_rows_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere is not there"):
        find_files([str(tmp_path), str(tmp_path / "nowhere")])
    (tmp_path / "notes.py").write_text("x")
    with pytest.raises(UserError, match=f"no .jsonl, .json or .parquet file in {tmp_path}"):
        find_files([str(tmp_path)])


# Rows


@pytest.mark.parametrize(("line", "reason"), BROKEN, ids=lambda value: str(value)[:24])
def test_a_broken_line_is_counted_with_its_place_and_costs_no_good_row(tmp_path, line, reason):
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD, "", line, {**GOOD, "id": 2}])
    articles, problems = read(path)
    assert [article.id for article in articles] == [1, 2]
    assert problems.counts == Counter(["empty line", reason])
    assert problems.places == [f"{path}, line 2: empty line", f"{path}, line 3: {reason}"]


def test_all_broken_lines_are_counted_and_the_first_ten_are_shown(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [line for line, _ in BROKEN])
    _, problems = read(path)
    assert sum(problems.counts.values()) == len(BROKEN) > 10
    assert problems.places == [f"{path}, line {n}: {reason}" for n, (_, reason) in enumerate(BROKEN[:10], start=1)]


def test_a_byte_order_mark_windows_line_ends_and_a_missing_last_line_end_lose_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": 1, "text": "A"}\r\n\r\n{"id": 2, "text": "B"}\r\n{"id": 3, "text": "C"}')
    articles, problems = read(path)
    assert [(a.id, a.text) for a in articles] == [(1, "A"), (2, "B"), (3, "C")]
    assert dict(problems.counts) == {"empty line": 1}


def test_line_numbers_count_every_line_and_progress_every_byte(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["", GOOD, "{", "  ", GOOD])
    sizes = []
    lines = [line for line, _ in read_articles([str(path)], Problems(), sizes.append)]
    assert lines == [2, 5] and sum(sizes) == path.stat().st_size


def test_the_subject_is_subject_else_title_else_of_the_text_alone(tmp_path):
    rows = [
        {"subject": " 河 ", "title": "桥", "text": "甲。"},
        {"subject": "", "title": " 桥 ", "text": "甲。"},
        {"subject": 3, "title": "桥", "text": "甲。"},
        {"title": ["桥"], "text": "甲。"},
        {"text": "甲。"},
        {"title": " ", "text": "乙。"},
    ]
    articles, problems = read(write_jsonl(tmp_path / "a.jsonl", rows))
    subjects = [article.subject for article in articles]
    assert subjects[:3] == ["河", "桥", "桥"] and articles[1].title == "桥"
    assert subjects[3] == subjects[4] != subjects[5] and not problems.counts


def test_questions_are_read_trimmed_and_broken_ones_named(tmp_path):
    rows = [
        {"question": " 问？\n", "answer": " 答。 ", "id": 4},
        {"question": "问？"},
        {"answer": "答。"},
        {"question": "问？", "answer": 3},
        {"question": " ", "answer": "答。"},
        "{",
        {"question": "问？", "answer": "答。"},
    ]
    problems = Problems()
    got = list(read_questions([str(write_jsonl(tmp_path / "q.jsonl", rows))], problems))
    assert [(line, qa.question, qa.answer, qa.id) for line, qa in got] == [
        (1, "问？", "答。", 4),
        (7, "问？", "答。", None),
    ]
    reasons = ['no "answer"', 'no "question"', '"answer" is not a text', '"question" is empty', "bad JSON"]
    assert [reason.partition(" (")[0] for reason in problems.counts] == reasons


QUESTION_FILES = {
    "a.jsonl": (
        '{"question": "一", "answer": "壹"}\n{broken\n{"prompt": "二", "output": "贰"}\n',
        [(1, "壹"), (3, "贰")],
    ),
    "a.json": ('[{"问题": "一", "答案": "壹"}, 5, {"instruction": "二", "reference": "贰"}]', [(1, "壹"), (3, "贰")]),
    "a.csv": ('\ufeffquestion, answer\r\n一,壹\r\n,空\r\n\r\n"二","贰"\r\n', [(2, "壹"), (5, "贰")]),
    "a.txt": ("一\n\n二\n", []),
}


@pytest.mark.parametrize("name", QUESTION_FILES)
def test_questions_are_read_from_every_format_under_every_name(tmp_path, name):
    content, with_answer = QUESTION_FILES[name]
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", newline="")
    problems = Problems()
    rows = list(read_questions([str(path)], problems))
    assert [(line, qa.answer) for line, qa in rows] == with_answer and all(qa.question in "一二" for _, qa in rows)
    assert sum(problems.counts.values()) == (1 if with_answer else 2)
    rows = [qa for _, qa in read_questions([str(path)], Problems(), answer_required=False)]
    assert [qa.question for qa in rows] == ["一", "二"] and rows[0].answer == ("壹" if with_answer else "")


# Parts


def test_parts_have_about_the_share_asked_for():
    subjects = [f"第{i}镇" for i in range(4000)]
    pretrain = [pretrain_part(s, 0.1) for s in subjects]
    sft = [sft_part(s, 0.1, 0.2) for s in subjects]
    assert set(pretrain) == {"train", "val"} and 320 < pretrain.count("val") < 480
    assert 320 < sft.count("val") < 480 and 680 < sft.count("test") < 920 and sft.count("train") > 2600
    assert all(0 <= hash_share(s) < 1 for s in subjects)


def test_a_share_of_zero_makes_no_part_and_a_share_of_one_all():
    subjects = [f"第{i}镇" for i in range(200)]
    assert {pretrain_part(s, 0.0) for s in subjects} == {"train"} == {sft_part(s, 0.0, 0.0) for s in subjects}
    assert {pretrain_part(s, 1.0) for s in subjects} == {"val"} and {sft_part(s, 0.0, 1.0) for s in subjects} == {
        "test"
    }


def test_heldout_subjects_are_pretrained_on_and_alone_make_the_test_part():
    subjects = [f"第{i}镇" for i in range(400)]
    heldout = frozenset(subjects[::7])
    assert {pretrain_part(s, 1.0, heldout) for s in heldout} == {"train"}
    assert {s for s in subjects if sft_part(s, 0.3, 0.5, heldout) == "test"} == heldout
    # Naming some moves none of the others between training and validation of the pretraining.
    others = set(subjects) - heldout
    assert all(pretrain_part(s, 0.3, heldout) == pretrain_part(s, 0.3) for s in others)


def test_subjects_of_the_pretraining_validation_are_not_those_of_the_fine_tuning():
    subjects = [f"第{i}镇" for i in range(400)]
    held = [s for s in subjects if pretrain_part(s, 0.2) == "val"]
    assert "train" in {sft_part(s, 0.2, 0.0) for s in held}


def test_heldout_subjects_are_read_a_line_each(tmp_path):
    path = tmp_path / "held.txt"
    path.write_bytes("\ufeff桥\r\n\r\n 河 \n镇".encode())
    assert read_heldout(str(path)) == {"桥", "河", "镇"} and read_heldout("") == frozenset()


@pytest.mark.parametrize("content", [None, "桥\n".encode("gbk")])
def test_a_heldout_file_that_cannot_be_read_is_named(tmp_path, content):
    if content:
        (tmp_path / "held.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"held\.txt"):
        read_heldout(str(tmp_path / "held.txt"))


def test_subjects_are_found_by_id_over_all_files(tmp_path):
    rows = made_up_articles(4, tellings=2)
    write_jsonl(tmp_path / "a.jsonl", [*rows[:4], "{"])
    write_jsonl(tmp_path / "b.jsonl", [{**row, "id": str(row["id"])} for row in rows[2:]])
    assert subjects_by_id([str(tmp_path)]) == {str(i): f"第{i // 2}镇" for i in range(8)}


def test_one_id_with_two_subjects_is_refused_with_both_and_the_way_out(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [GOOD])
    write_jsonl(tmp_path / "b.jsonl", [{**GOOD, "title": "河"}])
    with pytest.raises(UserError) as caught:
        subjects_by_id([str(tmp_path)])
    for message in ("id 1", "'桥'", "'河'", "a.jsonl", "b.jsonl", "--articles="):
        assert message in str(caught.value)


def test_articles_without_an_id_name_no_subject_and_stop_nothing(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"title": "河", "text": "甲。"}, {"title": "镇", "text": "乙。"}, GOOD])
    assert subjects_by_id([str(path)]) == {"1": "桥"}
