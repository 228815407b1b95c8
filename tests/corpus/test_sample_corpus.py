"""The embedded corpus: that it is what the generator makes, and what the README says of it."""

import collections
import importlib.util
import json

import pytest
from corpora import ROOT

from minigpt.corpus.cleaning import LITTER, SENTENCE_END, drop_title

ARTICLES = sorted((ROOT / "data" / "wiki_sample").glob("*.jsonl"))


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def articles():
    return [row for path in ARTICLES for row in rows_of(path)]


@pytest.fixture(scope="module")
def questions():
    return rows_of(ROOT / "sft" / "sample_qa.jsonl")


def test_the_generator_gives_the_bytes_that_are_committed(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("make_sample", ROOT / "data" / "make_sample.py")
    make_sample = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_sample)
    monkeypatch.setattr(make_sample, "ARTICLES", tmp_path / "wiki")
    monkeypatch.setattr(make_sample, "QUESTIONS", tmp_path / "qa.jsonl")
    monkeypatch.setattr(make_sample, "HELDOUT", tmp_path / "heldout.txt")
    make_sample.main()
    committed = {path.name: path.read_bytes() for path in (ROOT / "data" / "wiki_sample").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "wiki").iterdir()} == committed
    assert (tmp_path / "qa.jsonl").read_bytes() == (ROOT / "sft" / "sample_qa.jsonl").read_bytes()
    assert (tmp_path / "heldout.txt").read_bytes() == (ROOT / "sft" / "sample_heldout.txt").read_bytes()


def test_articles_have_title_blank_line_and_three_sentences(articles):
    for row in articles:
        assert set(row) == {"id", "title", "text"}
        assert row["text"].startswith(row["title"] + "\n\n")
        body = drop_title(row["text"], row["title"])
        ends = [match.end() for match in SENTENCE_END.finditer(body)]
        assert len(ends) >= 3 and ends[-1] == len(body), row


def test_there_are_600_subjects_in_five_fields_each_with_articles_in_different_words(articles):
    texts_by_title = collections.defaultdict(set)
    for row in articles:
        texts_by_title[row["title"]].add(row["text"])
    assert len(texts_by_title) >= 600
    assert len(ARTICLES) >= 5
    assert all(len(texts) >= 15 for texts in texts_by_title.values())


def test_some_rows_have_litter_and_most_do_not(articles):
    littered = sum(bool(LITTER.search(drop_title(row["text"], row["title"]))) for row in articles)
    assert 0.05 * len(articles) < littered < 0.2 * len(articles)


def test_ids_name_one_article_and_every_question_names_its_subject(articles, questions):
    title = {row["id"]: row["title"] for row in articles}
    assert len(title) == len(articles)
    assert len(questions) >= 2500
    for row in questions:
        assert set(row) == {"question", "answer", "id"}
        assert title[row["id"]] in row["question"]
        assert 1 <= len(row["question"]) <= 25 and 1 <= len(row["answer"]) <= 300


def test_a_question_has_one_answer(questions):
    answers = collections.defaultdict(set)
    for row in questions:
        answers[row["question"]].add(row["answer"])
    assert [q for q, a in answers.items() if len(a) > 1] == []


def test_at_least_60_subjects_are_held_out_and_all_are_subjects(articles):
    heldout = (ROOT / "sft" / "sample_heldout.txt").read_text(encoding="utf-8").split()
    assert len(heldout) >= 60
    assert set(heldout) <= {row["title"] for row in articles}
