"""evaluations-RougeL.py over checkpoints and servers: figures, intervals, comparisons, what is printed and written."""

import csv
import json
import re

import numpy as np
import pytest
from corpora import write_jsonl
from evaluation_fakes import QUESTIONS, add_picky, load_script, make_project, run_here
from peer_fakes import peer
from tiny import EOT, MARK, padded_rows, tiny_meta, tiny_tokenizer

from minigpt.common.errors import UserError
from minigpt.evaluation.asking import lowest_and_highest, shorten, strip_controls
from minigpt.evaluation.prompts import pairs_of_rows

SCRIPT = load_script("evaluations-RougeL.py")
TUNED, BASE = "--ckpt=out/tuned/ckpt.pt", "--ckpt=out/base/ckpt.pt"
DATA = "--data_dir=data/tuned"
QUICK = ("--max_new_tokens=8", "--temperature=1", "--json=figures.json", "--resamples=200")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def rouge(project, monkeypatch, capsys):
    """Run the script with flags; returns (what it printed, its JSON)."""

    def run(*flags):
        run_here(monkeypatch, project, SCRIPT, *QUICK, *flags)
        return capsys.readouterr().out, json.loads((project / "figures.json").read_text(encoding="utf-8"))

    return run


def rows_of(path):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_the_figures_of_one_checkpoint_are_on_the_top_level_and_in_models(rouge, project):
    said, figures = rouge(TUNED, DATA, "--csv=answers.csv", "--show=3", "--words")
    assert figures["models"] == [{k: v for k, v in figures.items() if k not in ("models", "comparisons")}]
    assert (figures["checkpoint"], figures["step"], figures["pairs"]) == ("out/tuned/ckpt.pt", 20, 24)
    assert (figures["failed"], figures["pairs_with_numbers"], figures["comparisons"]) == (0, 12, [])
    rows = rows_of(project / "answers.csv")
    assert len(rows) == 24 and {row["model"] for row in rows} == {"tuned"}
    for name in ("rouge_l_recall", "rouge_l_precision", "rouge_l_f", "char_f1", "exact_match", "rouge_l_words_f"):
        values = [float(row[name]) for row in rows]
        low, high = figures["intervals"][name]
        assert figures[name] == pytest.approx(np.mean(values)) and low <= figures[name] <= high
    assert sum(row["numbers"] != "" for row in rows) == 12
    assert said.count("预测 prediction:") == 3
    assert f"exact match {figures['exact_match']:.4f}" in said and "contamination check" in said


def test_figures_are_reproducible_at_any_batch_size(rouge):
    _, first = rouge(TUNED, DATA, "--max_samples=10", "--show=0")
    assert first["rouge_l_f"] > 0 and first["pairs"] == 10
    for flags in ((), ("--max_batch=1",), ("--max_batch=3",)):
        assert rouge(TUNED, DATA, "--max_samples=10", "--show=0", *flags)[1] == first
    assert rouge(TUNED, DATA, "--max_samples=10", "--show=0", "--seed=2")[1] != first


def test_a_run_and_a_server_are_compared_and_failures_are_counted(rouge, project, monkeypatch):
    add_picky(monkeypatch)
    write_jsonl(project / "many.jsonl", [{"question": q, "answer": a} for q, a in QUESTIONS * 7])
    with peer(models=("picky",)) as about:
        address = f"picky@http://{about.address}/v1"
        said, figures = rouge(f"--ckpt=out/tuned,{address}", "--questions=many.jsonl", "--csv=answers.csv")
    names = [entry["name"] for entry in figures["models"]]
    assert names == ["tuned/step_10", "tuned", address]
    server = figures["models"][2]
    assert (server["pairs"], server["failed"], server["exact_match"]) == (21, 7, pytest.approx(2 / 3))
    assert "7 without an answer are not counted" in said and f"prediction ({address}): no answer" in said
    against = {(c["a"], c["b"], c["figure"]): c for c in figures["comparisons"]}
    assert len(against) == 6  # every two of three, by F and by exact match
    assert against["tuned", address, "exact_match"]["rows"] == 21
    assert against["tuned", address, "rouge_l_f"]["difference"] < 0
    failed = [row for row in rows_of(project / "answers.csv") if row["model"] == address and "桥" in row["prompt"]]
    assert [(row["prediction"], row["rouge_l_f"], row["exact_match"]) for row in failed] == [("", "", "")] * 7
    assert "A > B" in said and "95% interval" in said


def test_a_pretrained_checkpoint_continues_articles(rouge, project):
    said, figures = rouge(BASE, "--data_dir=data/base")
    assert figures["pairs"] == 5 and figures["stage"] == "pretrain"
    assert "问题 question:   第0镇，\n答案 reference:  位于东河边。" in said


def test_a_pretrained_and_a_fine_tuned_one_are_asked_the_same_questions(rouge):
    _, figures = rouge("--ckpt=out/base/ckpt.pt,out/tuned/ckpt.pt", "--questions=mine.jsonl")
    assert [(entry["stage"], entry["pairs"]) for entry in figures["models"]] == [("pretrain", 4), ("sft", 4)]


def test_a_few_questions_give_no_interval_and_no_comparison(rouge):
    said, figures = rouge("--ckpt=out/tuned", "--questions=mine.jsonl")
    few = "too few rows (4) for an interval; give at least 20"
    assert (
        f"note: answers of tuned/step_10, answers of tuned: {few}" in said and f"tuned/step_10 > tuned: {few}" in said
    )
    assert "95%" not in said and "A better in" not in said
    assert set(figures["models"][0]["intervals"].values()) == {None}
    result = figures["comparisons"][0]
    assert result["difference"] is not None and [result[name] for name in ("low", "high", "a_better")] == [None] * 3
    said, _ = rouge("--ckpt=out/tuned", "--questions=mine.jsonl", "--resamples=0")
    assert "too few" not in said  # where no interval is wanted, none is missing


def test_rows_that_do_not_fit_a_model_are_an_error_before_any_is_asked(rouge, monkeypatch):
    monkeypatch.setattr(SCRIPT, "collect_answers", None)
    with pytest.raises(UserError, match="holds sft rows, but the checkpoint is of stage pretrain"):
        rouge("--ckpt=out/tuned/ckpt.pt,out/base/ckpt.pt", DATA)
    with peer() as about, pytest.raises(UserError, match="holds no questions"):
        rouge(f"--ckpt=http://{about.address}/v1", "--data_dir=data/base")


def test_a_failing_server_is_left_out(rouge):
    with peer(models=("junk",)) as about:
        address = f"http://{about.address}/v1"
        said, figures = rouge(f"--ckpt={address},out/tuned/ckpt.pt", "--questions=mine.jsonl")
        assert [entry["name"] for entry in figures["models"]] == ["tuned"] and figures["pairs"] == 4
        assert "answered none of 4 prompts" in said and "it is left out" in said
        with pytest.raises(UserError, match="answered none"):
            rouge(f"--ckpt={address}", "--questions=mine.jsonl")


def test_ctrl_c_keeps_the_figures_of_the_models_that_were_asked(rouge, project, monkeypatch, capsys):
    whole, asked = SCRIPT.collect_answers, []

    def collect_answers(model, *more):
        asked.append(model)
        if len(asked) > 1:
            raise KeyboardInterrupt
        return whole(model, *more)

    monkeypatch.setattr(SCRIPT, "collect_answers", collect_answers)
    with pytest.raises(KeyboardInterrupt):
        rouge("--ckpt=out/tuned", "--questions=mine.jsonl")
    figures = json.loads((project / "figures.json").read_text(encoding="utf-8"))
    assert figures["name"] == "tuned/step_10" and "1 of 2 models" in capsys.readouterr().out


def test_the_worst_and_the_best_of_many_answers_are_listed(rouge, project, monkeypatch):
    questions = [{"question": f"{i}" * (i + 1), "answer": f"{i}啊啊啊"} for i in range(25)]
    write_jsonl(project / "many.jsonl", questions)
    with peer() as about:
        said, _ = rouge(f"--ckpt=http://{about.address}/v1", "--questions=many.jsonl", "--show=0")
        assert "the worst 10 by F" in said and "the best 10 by F" in said
        listed = re.findall(r"^  (\d\.\d{4})  问 ", said, re.MULTILINE)
        assert len(listed) == 20
        assert listed[:10] == sorted(listed[:10]) and listed[10:] == sorted(listed[10:], reverse=True)
        said, _ = rouge(f"--ckpt=http://{about.address}/v1", "--questions=mine.jsonl")
        assert "worst" not in said


def test_lowest_and_highest_are_stable_and_leave_out_nan():
    nan = float("nan")
    assert lowest_and_highest([0.5, nan, 0.1, 0.5, 0.9, 0.1, 0.9], count=2) == ([2, 5], [4, 6])
    assert lowest_and_highest([1.0, 0.2, 1.0, 1.0, 1.0], count=2) == ([1], [0, 2])  # nothing is both
    assert lowest_and_highest([0.1, 0.2, nan, 0.3, 0.4], count=2) == ([], [])


def test_no_resamples_means_no_intervals(rouge):
    said, figures = rouge(TUNED, DATA, "--max_samples=4", "--resamples=0", "--check_leak=False")
    assert set(figures["intervals"].values()) == {None} and figures["leak"] is None
    assert "interval" not in said and "contamination" not in said


def test_control_characters_do_not_reach_the_console():
    assert strip_controls("a\x1b[31m红\x07\n\tb\x9b") == "a�[31m红�\n\tb�"
    assert shorten("天\n地 \x1b玄" + "黄" * 50, max_chars=8) == "天 地 �玄黄…"


def test_pairs_of_rows_use_the_first_article_and_need_a_clause():
    encode = tiny_tokenizer().encode
    lists = [[*encode("河，的。"), EOT, *encode("a，b。"), EOT], [*encode("河的"), EOT], [*encode("河。"), EOT]]
    pairs = pairs_of_rows(padded_rows(lists, 48), tiny_meta("pretrain"), tiny_tokenizer())
    assert pairs == [("河，", "的。")]
    lists = [[*encode(QUESTIONS[0][0]), MARK, *encode(QUESTIONS[0][1]), EOT]]
    assert pairs_of_rows(padded_rows(lists, 64), tiny_meta("sft"), tiny_tokenizer()) == [QUESTIONS[0]]
