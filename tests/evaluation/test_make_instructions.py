"""sft/make_instructions.py: tasks told in words, mixed, without one that is left out."""

import json
from collections import Counter

import pytest
from evaluation_fakes import load_script
from tiny import tiny_tokenizer

from minigpt.common.errors import UserError
from minigpt.corpus.questions import read_questions
from minigpt.corpus.records import Problems
from minigpt.corpus.row_files import RowWriter
from minigpt.corpus.task_rows import make_task_row
from minigpt.corpus.tasks import LabelledExample
from minigpt.evaluation.task_prompts import word_task
from minigpt.settings.stages import InstructionDataSettings

SCRIPT = load_script("sft/make_instructions.py")
TASKS = {
    "reviews": ("classify", ["0", "1"], [LabelledExample("", i, f"{i}号书", label=str(i % 2)) for i in range(9)]),
    "pairs": ("pair", ["否", "是"], [LabelledExample("", i, f"{i}", f"{i + 1}", "是") for i in range(9)]),
    "places": ("tag", ["O", "B-地", "I-地"], [LabelledExample("", 1, "去京都", tags=["O", "B-地", "I-地"])]),
}
HELD_BACK = LabelledExample("", 1, "没有训练过的书", label="1")


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Make the instructions of TASKS with settings; returns the rows of the file. Test rows are held back."""
    monkeypatch.chdir(tmp_path)
    for name, (kind, labels, examples) in TASKS.items():
        tokenizer, indices = tiny_tokenizer(), {label: i for i, label in enumerate(labels)}
        with RowWriter(f"data/processed_{name}", ["train", "test"], 64, tokenizer) as writer:
            for part, some in (("train", examples), ("test", [HELD_BACK] if name == "reviews" else [])):
                for example in some:
                    row, n_chars = make_task_row(tokenizer, 64, example, indices)
                    writer.add_rows(part, row[None], (row[0] != tokenizer.pad_id).sum(), n_chars)
            writer.finish({"stage": "task", "task": {"kind": kind, "labels": labels}})

    def run(**given):
        folders = [f"data/processed_{name}" for name in TASKS]
        SCRIPT.make_instructions(InstructionDataSettings(**{"tasks": folders, "instructions": "a.jsonl", **given}))
        return [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]

    return run


def test_every_train_row_is_told_in_words_and_read_as_a_question(make):
    rows = make(label_words=["0:差", "1:好"])
    assert Counter(row["task"] for row in rows) == {"reviews": 9, "pairs": 9, "places": 1}
    assert [row["task"] for row in rows] != sorted(row["task"] for row in rows)  # mixed
    assert not any(HELD_BACK.text in row["question"] for row in rows)
    review = word_task("reviews", "classify", ["0", "1"], {"0": "差", "1": "好"})
    reviews = sorted((row for row in rows if row["task"] == "reviews"), key=lambda row: row["subject"])
    assert [row["answer"] for row in reviews] == ["差", "好"] * 4 + ["差"]
    for i, row in enumerate(reviews):
        assert row["question"] == f"{review.instructions[i % len(review.instructions)]}\n文本：{i}号书"
    assert next(row["answer"] for row in rows if row["task"] == "places") == "地：京都"
    read = [(qa.question, qa.answer, qa.subject) for _, qa in read_questions(["a.jsonl"], Problems())]
    assert read == [(row["question"], row["answer"], row["subject"]) for row in rows]


def test_a_task_that_is_left_out_is_not_there(make):
    rows = make(leave_out=["pairs"], max_examples=4)
    assert Counter(row["task"] for row in rows) == {"reviews": 4, "places": 1}
    assert not any("句子" in row["question"] for row in rows)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"leave_out": ["names"]}, "names is none of the tasks"),
        ({"leave_out": list(TASKS)}, "every task is left out"),
        ({"tasks": ["data/processed_pairs", "other/pairs"]}, "have one name"),
        ({"tasks": ["data/none"]}, "no prepared data"),
        ({"label_words": ["2:中"]}, "2 is no label"),
        ({"tasks": []}, "name the folders"),
    ],
)
def test_wrong_settings_are_told_in_a_line(make, tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        make(**given)
    assert not (tmp_path / "a.jsonl").exists()
