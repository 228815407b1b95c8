"""Mistakes that are put into correct sentences, and the rows that sft/make_correction.py writes."""

import importlib.util
import json
import random
import re
import sys
from collections import Counter, defaultdict

import pytest
from corpora import ROOT, made_up_articles, write_jsonl

from minigpt.common.errors import UserError
from minigpt.evaluation.mistakes import (
    MISTAKE_KINDS,
    REPLACEMENTS,
    add_mistake,
    frequent_characters,
    is_complete,
    sentences_of,
)

HAN = re.compile("[\u4e00-\u9fff]")
FREQUENT_HERE = list("的是在了有")
WORDS = "北京 天安门 的 是 人人 1949 年 tiger 《 》 ， ； 河河 一 “ ” 。 很大".split()


def random_sentences(n):
    rng = random.Random(7)
    return ["".join(rng.choices(WORDS, k=rng.randint(1, 12))) + "。" for _ in range(n)]


def without_han(text):
    return HAN.sub("", text)


def check_dropped(right, wrong):
    assert any(right[:i] + right[i + 1 :] == wrong and HAN.match(right[i]) for i in range(len(right)))


def check_doubled(right, wrong):
    (i,) = [i for i in range(len(right)) if right[:i] + right[i] + right[i:] == wrong][:1]
    assert HAN.match(right[i]) and right[i] * 2 not in right[max(0, i - 1) : i + 2]


def check_swapped(right, wrong):
    i, j = (k for k in range(len(right)) if right[k] != wrong[k])
    assert j == i + 1 and right[i] == wrong[j] and right[j] == wrong[i] and HAN.match(right[i]) and HAN.match(right[j])


def check_wrong(right, wrong):
    (i,) = [k for k in range(len(right)) if right[k] != wrong[k]]
    assert HAN.match(right[i]) and wrong[i] in FREQUENT_HERE


def check_order(right, wrong):
    assert Counter(right) == Counter(wrong) and re.sub("[^，；。《》“”]", "", right) == re.sub(
        "[^，；。《》“”]", "", wrong
    )
    assert sorted(re.findall(r"\d+|[a-z]+", right)) == sorted(re.findall(r"\d+|[a-z]+", wrong))


@pytest.mark.parametrize("kind", MISTAKE_KINDS)
def test_a_mistake_is_one_of_its_kind_falls_on_han_characters_and_always_changes_the_sentence(kind, rounds):
    made = 0
    for number, sentence in enumerate(random_sentences(rounds(150, 3000))):
        wrong = add_mistake(sentence, kind, random.Random(number), FREQUENT_HERE)
        if wrong is None:
            continue
        made += 1
        assert wrong != sentence and wrong == add_mistake(sentence, kind, random.Random(number), FREQUENT_HERE)
        globals()[f"check_{kind}"](sentence, wrong)
        if kind != "order":
            assert without_han(wrong) == without_han(sentence)
    assert made > 75


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("dropped", "王。"),
        ("dropped", "A1。"),
        ("doubled", "人人。"),
        ("swapped", "人人，1年。"),
        ("wrong", "的的的。"),
        ("order", "桥，桥。"),
        ("order", "“甲，乙”。"),
    ],
)
def test_a_mistake_that_would_change_nothing_or_break_quotes_is_not_made(kind, sentence):
    assert all(add_mistake(sentence, kind, random.Random(seed), ["的"]) is None for seed in range(20))


def test_clauses_are_swapped_and_their_punctuation_stays():
    found = {add_mistake("石桥在南，木桥1座在北；", "order", random.Random(seed), []) for seed in range(40)}
    assert "木桥1座在北，石桥在南；" in found


def test_a_taken_text_is_not_returned():
    assert add_mistake("桥河。", "swapped", random.Random(1), []) == "河桥。"
    assert add_mistake("桥河。", "swapped", random.Random(1), [], taken={"河桥。"}) is None


def test_sentences_are_cut_at_their_ends_and_no_text_is_lost(rounds):
    assert sentences_of("甲。乙！”丙？！尾\n丁。 ") == ["甲。", "乙！”", "丙？！", "尾\n", "丁。 "]
    assert [is_complete(text) for text in ("甲。", "乙！”", "丙", "甲。乙", "")] == [True, True, False, False, False]
    rng = random.Random(3)
    for _ in range(rounds(200, 5000)):
        text = "".join(rng.choices("甲乙。！？”’ \n，1", k=rng.randint(0, 30)))
        assert "".join(sentences_of(text)) == text


def test_a_wrong_character_comes_from_the_most_frequent_han_characters():
    counts = Counter({chr(0x4E00 + i): i + 1 for i in range(REPLACEMENTS + 50)}) + Counter({"，": 10**6, "1": 10**6})
    frequent = frequent_characters(counts)
    assert len(frequent) == REPLACEMENTS and frequent[0] == chr(0x4E00 + REPLACEMENTS + 49) and "，" not in frequent


# The script


def the_script():
    """sft/make_correction.py as a module."""
    spec = importlib.util.spec_from_file_location("make_correction", ROOT / "sft/make_correction.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_correction"] = module
    spec.loader.exec_module(module)
    return module


def rows_in(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def wiki(tmp_path):
    """A folder of made-up articles and some bad rows."""
    rows = ["{broken", *made_up_articles(), {"title": "短", "text": "短。没有句末"}]
    return write_jsonl(tmp_path / "wiki/a.jsonl", rows).parent


@pytest.fixture
def make(wiki, tmp_path, monkeypatch, capsys):
    """Run the script on them in this process; returns (what it printed, the rows)."""

    def run(*flags, name="c.jsonl"):
        argv = ["make_correction.py", "--input_dir=wiki", f"--corrections=deep/{name}", *flags]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", argv)
        the_script().main()
        return capsys.readouterr().out, rows_in(tmp_path / "deep" / name)

    return run


def test_rows_are_right_and_wrong_sentences_of_the_articles_each_once(make, tmp_path):
    said, rows = make("--unchanged_share=0.4")
    articles = {row["id"]: row for row in made_up_articles()}
    answers = [row["answer"] for row in rows]
    assert len(set(answers)) == len(answers) == 3 * 40  # each town's three sentences, in three articles
    assert len({row["question"] for row in rows}) == len(rows)
    for row in rows:
        assert row["answer"] in articles[row["id"]]["text"] and row["subject"] == articles[row["id"]]["title"]
        assert (row["kind"] == "unchanged") == (row["question"] == row["answer"])
        assert row["question"] == row["answer"] or row["question"] not in answers
    counts = Counter(row["kind"] for row in rows)
    assert set(counts) == {*MISTAKE_KINDS, "unchanged"} and 25 < counts["unchanged"] < 75
    assert all(f"{n} {kind}" in said for kind, n in counts.items())
    assert "1 bad JSON" in said and "240 there already" in said and "1 without an end" in said
    assert "1 fewer than 4 Han characters" in said and "wiki/a.jsonl, line 1" in said


def test_the_same_seed_makes_the_same_bytes_and_another_seed_others(make, tmp_path):
    make("--max_sentences=50")
    _, rows = make("--max_sentences=50", name="again.jsonl")
    assert (tmp_path / "deep/c.jsonl").read_bytes() == (tmp_path / "deep/again.jsonl").read_bytes() and len(rows) == 50
    _, other = make("--max_sentences=50", "--seed=2", name="other.jsonl")
    assert {row["answer"] for row in other} != {row["answer"] for row in rows}
    _, more = make("--max_sentences=60", name="more.jsonl")  # a larger sample contains the smaller one
    assert {row["answer"] for row in rows} < {row["answer"] for row in more}


def test_kinds_variants_lengths_and_shares_are_as_the_settings_say(make):
    said, rows = make("--mistakes=dropped,swapped", "--unchanged_share=0", "--variants=3", "--max_sentence_chars=8")
    kinds_of = defaultdict(list)
    for row in rows:
        assert len(row["answer"]) <= 8
        kinds_of[row["answer"]].append(row["kind"])
    assert all(set(kinds) == {"dropped", "swapped"} and len(kinds) == 3 for kinds in kinds_of.values())
    assert len({row["question"] for row in rows}) == len(rows) and "longer than max_sentence_chars" in said


def test_prepared_rows_keep_the_sentences_of_a_subject_together(make, script, tmp_path):
    _, rows = make()
    flags = ["--qa_files=deep/c.jsonl", "--val_share=0.2", "--test_share=0.2", "--sft_data_dir=rows"]
    process = script("data/prepare_sft.py", *flags)
    assert process.returncode == 0, process.stderr
    meta = json.loads((tmp_path / "rows/meta.json").read_text(encoding="utf-8"))
    assert meta["without_article"] == 0 and "whose article is not known: 0" in process.stdout
    counts = [part["rows"] for part in meta["parts"].values()]
    assert sum(counts) == len(rows) and min(counts) > 0 and all(count % 3 == 0 for count in counts)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input_dir=nowhere"], "nowhere is not there"),
        (["--mistakes="], "mistakes is empty"),
        (["--mistakes=typo"], "mistakes is one of"),
        (["--max_sentence_chars=4"], "no sentence in wiki could be used"),
        (["--corrections=wiki"], "could not be written"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_user_error_leaves_nothing_written(make, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        make(*flags)
    assert not list(tmp_path.rglob("*.partial")) and not list(tmp_path.rglob("c.jsonl"))


def test_an_error_of_the_script_is_one_line_and_leaves_an_older_file(make, script, tmp_path):
    said, _ = make()
    assert "go on with: python data/prepare_sft.py --qa_files=deep/c.jsonl" in said
    before = (tmp_path / "deep/c.jsonl").read_bytes()
    flags = "--input_dir=wiki", "--corrections=deep/c.jsonl", "--max_sentence_chars=4"
    process = script("sft/make_correction.py", *flags)
    errors = [line for line in process.stderr.splitlines() if "error" in line]
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert len(errors) == 1 and errors[0].startswith("error: no sentence in wiki could be used")
    assert (tmp_path / "deep/c.jsonl").read_bytes() == before and not list(tmp_path.rglob("*.partial"))
