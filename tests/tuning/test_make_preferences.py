"""sft/make_preferences.py: a model's answers to training questions become pairs, by their scores."""

import json
from types import SimpleNamespace

import pytest
from evaluation_fakes import BLOCK, QUESTIONS, load_script, run_here, save_tiny
from tiny import EOT, MARK, tiny_tokenizer, write_rows

from minigpt.common.errors import UserError
from minigpt.corpus.records import Problems
from minigpt.settings.stages import PreferenceDataSettings
from minigpt.tuning.pairs import read_pairs

SCRIPT = load_script("sft/make_preferences.py")
HELD_BACK = ("没有训练过的问题？", "没有。")


@pytest.mark.parametrize(
    ("given", "answers", "pairs"),
    [
        ({}, ["东河。", "西河。", "西。", "西河。", "东河。"], [("东河。", "西河。")]),
        ({"rejected": "worst"}, ["东河。", "西河。", "西。", "西河。"], [("东河。", "西。")]),
        ({"pairs_a_question": 2}, ["西。", "西河。", "西河。", "河"], [("东河。", "西河。"), ("东河。", "西。")]),
        ({"chosen": "best"}, ["东。", "西河的", "的"], [("东。", "的")]),
        ({"chosen": "best"}, ["的", "的"], []),
        ({"min_gap": 0.7}, ["西河。"], []),
        ({}, ["东河。", " 东河。", ""], []),
    ],
)
def test_answers_that_are_worse_by_enough_are_rejected(given, answers, pairs):
    assert SCRIPT.choose_pairs(answers, "东河。", PreferenceDataSettings(**given)) == pairs


@pytest.mark.parametrize(
    ("answer", "score"),
    [("有12座桥", 1.0), ("有13座桥", (0 + 0.8 + 0) / 3), ("12", (0 + 4 / 7 + 1) / 3), ("没", 0.0)],
)
def test_an_answer_is_scored_by_its_text_and_its_numbers(answer, score):
    assert SCRIPT.score_sample(answer, "有12座桥") == pytest.approx(score)
    assert SCRIPT.score_sample(answer, "无") == 0.0  # no numbers are asked for


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a fine-tuned checkpoint and rows; `make(*flags)` runs the script there, and returns its rows."""
    save_tiny(tmp_path / "out/tuned/ckpt.pt")
    encode = tiny_tokenizer().encode
    rows, held_back = (
        [[*encode(question), MARK, *encode(answer), EOT] for question, answer in some]
        for some in (QUESTIONS, [HELD_BACK])
    )
    write_rows(tmp_path / "data/processed_sft", {"train": rows, "val": held_back, "test": held_back}, BLOCK, "sft")

    def make(*flags):
        run_here(monkeypatch, tmp_path, SCRIPT, "--pairs=a.jsonl", "--max_new_tokens=12", "--samples=4", *flags)
        return [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]

    return SimpleNamespace(make=make, file=tmp_path / "a.jsonl")


def test_training_questions_alone_give_pairs_that_training_reads(project, capsys):
    rows = project.make()
    assert {row["prompt"]: row["chosen"] for row in rows} == dict(QUESTIONS)
    assert "4 questions, 16 answers, of which 0 are right; 4 pairs from 4 questions (100.0%" in capsys.readouterr().out
    problems = Problems()
    read = [(pair.prompt_text, pair.chosen, pair.rejected) for _, _, pair in read_pairs([project.file], problems)]
    assert read == [tuple(row.values()) for row in rows] and not problems.counts
    # The samples depend on the seed alone.
    assert project.make("--max_batch=1") == rows
    assert project.make("--seed=5") != rows


def test_ctrl_c_keeps_the_pairs_of_the_questions_that_are_done(project, monkeypatch, capsys):
    asked, answers = [], SCRIPT.LocalModel.answers

    def interrupted(self, prompts, *more):
        asked.append(len(prompts))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return answers(self, prompts, *more)

    monkeypatch.setattr(SCRIPT.LocalModel, "answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        project.make("--max_batch=1")
    assert asked == [4, 4, 4] and "2 of 4 questions are used" in capsys.readouterr().out
    assert len(project.file.read_text(encoding="utf-8").splitlines()) == 2


def test_where_no_answer_is_wrong_nothing_is_written(project, monkeypatch):
    monkeypatch.setattr(
        SCRIPT.LocalModel, "answers", lambda self, prompts, *more: [dict(QUESTIONS)[p] for p in prompts]
    )
    with pytest.raises(UserError, match="gave no pair"):
        project.make()
    assert not project.file.exists()


def test_rows_of_articles_are_refused(project, tmp_path):
    write_rows(tmp_path / "articles", {"train": [[1, 2, EOT]]}, BLOCK, "pretrain")
    with pytest.raises(UserError, match="holds pretrain rows"):
        project.make("--data_dir=articles")
