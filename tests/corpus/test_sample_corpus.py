"""The embedded corpus: that it is what the generator makes, and what the README says of it."""

import collections
import importlib.util
import json
import re

import pytest
from corpora import ROOT

from minigpt.corpus.cleaning import LITTER, SENTENCE_END, drop_title
from minigpt.corpus.records import Problems
from minigpt.corpus.tasks import ExampleReader
from minigpt.metrics import find_entities

TASKS = ROOT / "data" / "task_sample"
GRAMMAR = ROOT / "data" / "grammar_sample"
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
    monkeypatch.setattr(make_sample, "TASKS", tmp_path / "tasks")
    monkeypatch.setattr(make_sample, "GRAMMAR", tmp_path / "grammar")
    make_sample.main()
    grammar = {path.name: path.read_bytes() for path in GRAMMAR.iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "grammar").iterdir()} == grammar
    tasks = {path.name: path.read_bytes() for path in TASKS.iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "tasks").iterdir()} == tasks
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


# The tasks

SUBJECT_WORDS = ("它", "这里", "这个国家", "此人")
KINDS = {"field": "classify", "same_subject": "pair", "names": "tag"}


@pytest.fixture(scope="module")
def heldout():
    return set((ROOT / "sft" / "sample_heldout.txt").read_text(encoding="utf-8").split())


def examples_of(task, part):
    """All examples of a part of a task; each row of the file is one."""
    path, problems = TASKS / f"{task}_{part}.jsonl", Problems()
    examples = list(ExampleReader(problems).read(str(path)))
    assert not problems.counts and len(examples) == len(rows_of(path)) and path.stat().st_size < 1e6
    return examples


@pytest.mark.parametrize("task", KINDS)
def test_a_task_has_a_few_thousand_rows_of_its_kind_and_each_part_has_all_labels(task):
    parts = [examples_of(task, part) for part in ("train", "dev", "test")]
    assert 2500 < sum(map(len, parts)) < 6000 and min(map(len, parts)) > 200
    assert {example.kind for part in parts for example in part} == {KINDS[task]}
    labels = [{name for example in part for name in example.names} for part in parts]
    assert labels[1] <= labels[0] and labels[2] <= labels[0]
    if task != "names":
        assert labels[0] == labels[1] == labels[2]
    texts = [{example.key for example in part} for part in parts]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]


def test_the_test_parts_are_about_the_subjects_that_are_held_out(heldout):
    for task in ("field", "names"):
        assert all(any(name in example.text for name in heldout) for example in examples_of(task, "test"))
        trained = [any(name in example.text for name in heldout) for example in examples_of(task, "train")]
        assert sum(trained) < 0.1 * len(trained)  # as a value, or as a part of a word


def test_half_of_the_pairs_tell_of_one_subject_and_no_copied_value_does_where_it_is_named():
    examples = examples_of("same_subject", "train")
    counts = collections.Counter(example.label for example in examples)
    assert abs(counts["是"] - counts["否"]) < 0.02 * counts.total()
    unnamed = [any(word in example.text for word in SUBJECT_WORDS) for example in examples]
    assert 0.7 < sum(unnamed) / len(unnamed) < 0.8
    for example, is_unnamed in zip(examples, unnamed, strict=True):
        values = [set(re.findall("[0-9]{3,}|[A-Za-z]{3,}", text)) for text in (example.text, example.text_b)]
        assert any(word in example.text_b for word in SUBJECT_WORDS)
        assert is_unnamed or not values[0] & values[1], example


def test_names_are_tagged_wherever_they_stand():
    kinds, examples = collections.defaultdict(set), examples_of("names", "train")
    for example in examples:
        for kind, start, end in find_entities(example.tags):
            kinds[example.text[start:end]].add(kind)
    long_names = [name for name, found in kinds.items() if len(name) > 2 and len(found) == 1]
    assert len(long_names) > 200
    for example in examples:
        for name in long_names:
            place = example.text.find(name)
            assert place < 0 or example.tags[place] != "O", (example.text, name)


def test_minimal_pairs_differ_in_one_place_and_no_article_has_them(articles):
    rows = [row for path in GRAMMAR.iterdir() for row in rows_of(path)]
    assert 300 <= len(rows) <= 900 and len({row["good"] for row in rows}) == len(rows)
    paradigms = collections.Counter((row["phenomenon"], row["paradigm"]) for row in rows)
    assert len({phenomenon for phenomenon, _ in paradigms}) >= 8 and set(paradigms.values()) == {20}
    corpus = "\n".join(row["text"] for row in articles)
    for row in rows:
        good, bad = row["good"], row["bad"]
        assert len(good) == len(bad) and good[0] == bad[0] and good[-1] == bad[-1] == "。"
        places = [i for i, chars in enumerate(zip(good, bad, strict=True)) if chars[0] != chars[1]]
        assert places[-1] - places[0] < 2 or sorted(good) == sorted(bad)  # a word exchanged, or two swapped
        assert good.rstrip("。") not in corpus and bad.rstrip("。") not in corpus
