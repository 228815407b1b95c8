"""The experiments: which runs there are, what a claim comes to, and a small one from beginning to end."""

import json
import subprocess
import sys

import numpy as np
import pytest
from corpora import ROOT, made_up_articles, made_up_questions, write_jsonl

from minigpt.experiments.build import concatenate
from minigpt.experiments.claims import ASKED, EXPERIMENTS, LOSS, Claim, judge, values_of
from minigpt.experiments.plan import Plan
from minigpt.experiments.report import summary, table, verdict_lines, write_page
from minigpt.experiments.scheduling import is_ready
from minigpt.settings.stages import ExperimentSettings


@pytest.fixture
def plan():
    return Plan(ExperimentSettings())


def test_help_names_every_experiment_with_what_it_is_about(script):
    run = script("experiments/run.py", "--help")
    assert run.returncode == 0 and "--tune_iters=" in run.stdout
    lines = run.stdout.splitlines()
    for experiment in EXPERIMENTS:
        assert [line for line in lines if line.split()[:1] == [experiment.name] and experiment.title_zh in line]


def test_every_experiment_names_runs_and_columns_that_there_are(plan):
    for experiment in EXPERIMENTS:
        assert set(experiment.runs) <= set(plan.runs)
        for claim in experiment.claims:
            assert {claim.better, claim.worse} <= set(experiment.runs)
            assert claim.column in experiment.columns


def test_rows_and_bases_of_runs_are_there_and_names_are_unlike(plan):
    for run in plan.runs.values():
        assert run.rows in plan.rows and (not run.base or run.base in plan.runs)
    assert len(plan.runs) == len(list(plan._runs())) and len(plan.rows) == len(list(plan._rows()))


def test_what_a_run_needs_comes_before_it_and_once(plan):
    names = [run.name for run in plan.needed(["tuned_gpt2", "tuned", "tuned_in_order"])]
    assert len(names) == len(set(names)) == 6
    for first, then in (("base", "gpt2"), ("base", "tuned"), ("gpt2", "tuned_gpt2"), ("tuned", "tuned_gpt2")):
        assert names.index(first) < names.index(then)


def test_a_run_waits_for_its_base_with_its_own_seed(plan):
    tuned = plan.runs["tuned_gpt2"]
    assert not is_ready(tuned, 1, {("gpt2", 1): {}, ("tuned", 2): {}})
    assert is_ready(tuned, 1, {("gpt2", 1): {}, ("tuned", 1): {}})


def losses(*values):
    return [{"loss": value} for value in values]


def test_a_claim_holds_where_every_seed_says_so_and_ties_settle_nothing():
    claim = Claim("a", "b", LOSS, "", "")
    for a, b, holds in (
        ((1.0, 2.0), (1.5, 2.1), True),
        ((1.5, 2.1), (1.0, 2.0), False),
        ((1.0, 2.1), (1.5, 2.0), None),
        ((1.0, 2.0), (1.0, 2.0), None),
    ):
        assert judge(claim, {"a": losses(*a), "b": losses(*b)}).holds is holds
    verdict = judge(claim, {"a": losses(1.0, 2.0), "b": losses(1.5, 2.1)})
    assert verdict.differences == pytest.approx([0.5, 0.1]) and verdict.for_it == 2
    assert verdict.error == pytest.approx(np.std([0.5, 0.1], ddof=1) / 2**0.5)


def test_figures_of_articles_are_not_shown_beside_those_of_answers():
    assert list(values_of(LOSS, losses(1.0))) == [1.0]
    assert not len(values_of(LOSS, [{"loss": 1.0, "trained": {}}]))
    assert list(values_of(ASKED, [{"never_asked": {"exact_match": 0.25}}])) == [0.25]


def test_concatenated_rows_have_the_same_tokens_without_padding(tmp_path):
    rows = np.array([[1, 2, 9, 0], [3, 9, 0, 0], [4, 5, 6, 9], [7, 9, 0, 0]], dtype=np.uint16)
    rows.tofile(tmp_path / "train.bin")
    meta = {"block_size": 4, "special_ids": {"pad": 0}, "parts": {"train": {"rows": 4, "tokens": 11}}}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    concatenate(tmp_path)
    joined = np.fromfile(tmp_path / "train.bin", dtype=np.uint16).reshape(-1, 4)
    assert joined.tolist() == [[1, 2, 9, 3], [9, 4, 5, 6]]  # what does not fill a row is left out
    after = json.loads((tmp_path / "meta.json").read_text())
    assert after["parts"]["train"] == {"rows": 2, "tokens": 8} and after["train_layout"] == "concatenated"


def made_up_results():
    """Results in which the first run of each claim is the better one in both seeds."""
    known = {"exact_match": 0.5, "rouge_l_f": 0.6, "numbers": 0.7, "changed_by_heat": 0.2, "exact_match_hot": 0.4}
    plan, results = Plan(ExperimentSettings()), {}
    for name, run in plan.runs.items():
        figures = {"loss": 2.0, "bits_per_char": 3.0, "perplexity": 7.4, "steps": 10, "empty_brackets": 0.1}
        figures |= {"continuation_rouge_l": 0.3, "curve": [{"epoch": 1, "train_loss": 2.0, "val_loss": 2.5}]}
        if run.tunes:
            figures |= {key: known for key in ("trained", "never_asked", "never_seen")}
            figures["epochs"] = [{**figures, "epoch": 1}]
        results[name] = [figures, figures]
    return results


def test_the_page_has_every_table_plot_and_claim(tmp_path):
    results = made_up_results()
    write_page(tmp_path / "page.md", EXPERIMENTS, results, ["head"])
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    for experiment in EXPERIMENTS:
        assert table(experiment, results) in text and "\n".join(verdict_lines(experiment, results)) in text
        assert (tmp_path / "page" / f"{experiment.name}.png").stat().st_size > 1000
    names, marks = (line.strip("| ").split(" | ") for line in summary(EXPERIMENTS, results).splitlines()[:2])
    assert dict(zip(names, marks, strict=True)) == {
        "experiment": "---", "claim": "---", "what it comes to": "---", "figure": "---",
        "better by": "---:", "seeds": "---:",
    }  # fmt: skip
    assert summary(EXPERIMENTS, results) in text and (tmp_path / "page" / "epochs.png").exists()
    assert "does not settle" in text and "as the report found" not in text  # all are alike


SMALL = [
    "--input_dir=wiki", "--articles=wiki", "--qa_files=qa.jsonl", "--max_iters=6", "--tune_iters=4", "--n_layer=1",
    "--n_head=1", "--n_embd=16", "--tokenizer_vocab=400", "--block_size=48", "--seeds=1", "--out_dir=out/x",
    "--dtype=float32", "--val_share=0.2",
]  # fmt: skip


def run(folder, *arguments):
    command = [sys.executable, str(ROOT / "experiments/run.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", timeout=240)


def test_a_comparison_from_beginning_to_end_and_again_from_what_was_kept(tmp_path):
    write_jsonl(tmp_path / "wiki" / "towns.jsonl", made_up_articles(60))
    write_jsonl(tmp_path / "qa.jsonl", made_up_questions(60))
    first = run(tmp_path, "perplexity", "layout", *SMALL, "--workers=2", "--resamples=0")
    assert first.returncode == 1 and "--resamples is a setting of" in first.stderr
    first = run(tmp_path, "layout", *SMALL)
    assert first.returncode == 0, first.stderr
    assert "| tuned_concatenated |" in first.stdout and "better by" in first.stdout
    results = sorted((tmp_path / "out" / "x").glob("*/seed1/result.json"))
    assert [path.parts[-3] for path in results] == ["base", "concatenated", "tuned", "tuned_concatenated"]
    stamps = [path.stat().st_mtime_ns for path in results]
    again = run(tmp_path, "layout", *SMALL)
    assert again.stdout == first.stdout
    assert stamps == [path.stat().st_mtime_ns for path in results]
    write_jsonl(tmp_path / "wiki" / "towns.jsonl", made_up_articles(61))  # other articles: nothing of before counts
    assert run(tmp_path, "layout", *SMALL).returncode == 0
    assert not set(stamps) & {path.stat().st_mtime_ns for path in results}


def test_a_wrong_name_is_said_with_those_that_there_are(tmp_path):
    said = run(tmp_path, "ordr")
    assert said.returncode == 1 and "no experiment 'ordr'; there are order, layout" in said.stderr
    assert "whole numbers" in run(tmp_path, "order", "--seeds=a").stderr
