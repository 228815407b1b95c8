"""The files of a run (incomplete lines, changes by the user, older forms), and the selection of articles."""

import json

import pytest
from corpora import made_up_articles, write_jsonl

from minigpt.common.errors import UserError
from minigpt.corpus.questions import read_questions
from minigpt.corpus.records import Problems
from minigpt.settings.stages import GenerateSettings
from minigpt.synth.articles import ArticleSource, article_key, short_hash, source_names
from minigpt.synth.store import Appender, finished_articles


def row_about(id, count=3):
    pairs = [{"question": f"{id}问{n}", "answer": "答"} for n in range(count)]
    return {"source": "w/a", "id": id, "subject": f"第{id}镇", "pairs": pairs}


def hashes_of(ids):
    return {short_hash(article_key("w/a", id)) for id in ids}


def test_an_incomplete_line_loses_only_its_own_article(tmp_path):
    path, own = tmp_path / "saves.jsonl", [{"question": "我的", "answer": "自己写的"}, "no JSON", ["x"]]
    whole = write_jsonl(path, [own[0], row_about(1), *own[1:], row_about(2)]).read_bytes()
    end_of_1 = whole.index(b"\n", whole.index(b"w/a"))
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        finished = [1] * (size >= end_of_1) + [2] * (size >= len(whole) - 1)  # a line end alone may be missing
        assert finished_articles(path) == hashes_of(finished), size
        assert path.read_bytes() == whole[:size]
        if size % 50 == 0 or size >= len(whole) - 2:
            Appender(path).add(row_about(3))
            problems = Problems()
            asked = [(qa.id, qa.question, qa.subject) for _, qa in read_questions([str(path)], problems)]
            assert asked[-3:] == [(3, f"3问{n}", "第3镇") for n in range(3)]
            assert {id for id, *_ in asked} - {None} == {*finished, 3}
            assert finished_articles(path) == hashes_of([*finished, 3])


def test_files_with_one_row_a_pair_and_rejects_are_read_and_a_missing_file_has_no_articles(tmp_path):
    about = [{"id": id, "source": "w/a", "subject": "镇", "pair": n, "pairs": 2} for id in (1, 2) for n in (1, 2)]
    former = [{"question": f"{row['id']}问{row['pair']}", "answer": "答", **row} for row in about]
    path = write_jsonl(tmp_path / "saves.jsonl", [*former, row_about(3, 1)])
    assert finished_articles(path) == hashes_of([1, 2, 3])
    questions = [(qa.id, qa.question) for _, qa in read_questions([str(path)], Problems())]
    assert questions == [(1, "1问1"), (1, "1问2"), (2, "2问1"), (2, "2问2"), (3, "3问0")]
    rejects = write_jsonl(tmp_path / "rejects.jsonl", [{"source": "w/a", "id": n, "reasons": []} for n in (4, 5)])
    assert finished_articles(rejects) == hashes_of([4, 5])
    assert finished_articles(tmp_path / "none.jsonl") == set()


def test_rejects_that_were_only_refused_do_not_count_as_finished(tmp_path):
    refused, crashed = (f"http://x/v1 refused the request with status {status}: no" for status in (400, 500))
    reasons = {
        1: [[refused]],
        2: [[crashed]],
        3: [["共有2对问答"], [refused]],
        4: [[refused]],
        5: [[refused], [refused]],
    }
    rows = [
        {"source": "w/a", "id": n, "reasons": each, "replies": ["好"] if n == 4 else []} for n, each in reasons.items()
    ]
    assert finished_articles(write_jsonl(tmp_path / "rejects.jsonl", rows)) == hashes_of([2, 3, 4])


def test_a_bad_pair_does_not_lose_the_other_pairs_of_its_article(tmp_path):
    row = row_about(1)
    row["pairs"] += ["x", {"question": "只有问"}, {"question": "好", "answer": "好。"}]
    path = write_jsonl(tmp_path / "saves.jsonl", [row, {**row, "pairs": []}])
    problems = Problems()
    questions = [qa.question for _, qa in read_questions([str(path)], problems, turns="first")]
    assert questions == ["1问0", "1问1", "1问2", "好"]
    counts = {reason.partition(" (")[0]: count for reason, count in problems.counts.items()}
    assert counts == {'no "question"': 2, 'no "answer"': 1}


def test_nothing_is_added_to_a_closed_file(tmp_path):
    saves = Appender(tmp_path / "saves.jsonl")
    saves.add({"x": 1})
    saves.close()
    with pytest.raises(UserError, match="closed already"):
        saves.add({"x": 2})
    assert json.loads((tmp_path / "saves.jsonl").read_bytes()) == {"x": 1}


def test_articles_are_identified_by_file_and_id_and_sampled_by_hash(tmp_path):
    rows = [
        {"id": 1, "title": "甲", "text": "甲在乙。" * 99},
        {"text": "没有编号。"},
        {"id": 1, "text": "又一个。"},
        {"text": ""},
    ]
    write_jsonl(tmp_path / "wiki/deep/a.jsonl", rows)
    write_jsonl(tmp_path / "wiki/b.jsonl", [{"id": 1, "text": "另一篇。"}])
    settings = GenerateSettings()
    settings.input_dir, settings.article_chars = [str(tmp_path / "wiki")], 50
    source = ArticleSource(settings)
    found = [(article.source, article.id, article.text) for article in source]
    ends = [("wiki/deep/a.jsonl", 1, "甲在乙。" * 12), ("wiki/deep/a.jsonl", "line 2", "没有编号。")]
    assert found == [("wiki/b.jsonl", 1, "另一篇。"), *ends]
    assert source.skipped.total() == 1 and source.problems.counts.total() == 1 and source.read == source.total
    settings.article_sample = 0.3
    write_jsonl(tmp_path / "wiki/b.jsonl", made_up_articles(200, 1))
    first = [article.key for article in ArticleSource(settings) if article]
    assert 30 < len(first) < 100 and first == [article.key for article in ArticleSource(settings) if article]


def test_two_folders_with_the_same_name_are_reported(tmp_path):
    for name in ("x", "y"):
        write_jsonl(tmp_path / name / "wiki/a.jsonl", made_up_articles(1))
    with pytest.raises(UserError, match=r"both have the source wiki/a\.jsonl"):
        source_names(GenerateSettings(input_dir=[f"{tmp_path}/x/wiki", f"{tmp_path}/y/wiki"]))
    same = GenerateSettings(input_dir=[f"{tmp_path}/x/wiki", f"{tmp_path}/x/wiki/a.jsonl"])
    assert list(source_names(same).values()) == ["wiki/a.jsonl"]
