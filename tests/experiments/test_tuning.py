"""The comparison of tuning methods: its plan, its data, its figures, and a small one from beginning to end."""

import json
import math
import sys
from functools import partial

import numpy as np
import pytest
import torch
from corpora import ROOT, made_up_articles, made_up_questions, write_jsonl
from processes import run_in_process
from tiny import write_rows

import train
from data_utils import open_rows
from minigpt.experiments import build, tuning_measure, tuning_plan
from minigpt.experiments.claims import Claim, judge_claim
from minigpt.experiments.report import verdicts_of
from minigpt.experiments.results import Cost, run_logged
from minigpt.experiments.tuning_data import copy_share_of_rows, make_tuning_data
from minigpt.experiments.tuning_measure import change_figures
from minigpt.experiments.tuning_plan import BASE_RUN, FEW_SHOT, LORA_RANKS, TUNED_TASKS, TuningPlan
from minigpt.experiments.tuning_report import QUALITY, TUNING_EXPERIMENTS, write_tuning_page
from minigpt.inference.params import SamplingParams
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import TrainSettings, TuningPageSettings
from minigpt.training.setup import TrainingRun

BASE_CONFIG = """
input_dir = ["wiki.jsonl"]
tokenizer_vocab = 400
block_size = 96
val_share = 0.2
n_layer = 1
n_head = 1
n_embd = 16
max_iters = 20
batch_size = 4
"""
QUESTIONS_CONFIG = """
qa_files = ["qa.jsonl"]
articles = ["wiki.jsonl"]
heldout = "heldout.txt"
"""
FIELD_CONFIG = """
task_files = ["field.jsonl"]
"""
CORRECTION_CONFIG = """
input_dir = ["wiki.jsonl"]
variants = 2
"""


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Settings of a small comparison in tmp_path, where its data is, too."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "wiki.jsonl", made_up_articles(40))
    write_jsonl(tmp_path / "qa.jsonl", made_up_questions(40))
    fields = [{"text": row["text"][:20], "label": f"{i % 3}"} for i, row in enumerate(made_up_articles(40))]
    write_jsonl(tmp_path / "field.jsonl", fields)
    (tmp_path / "heldout.txt").write_text("".join(f"第{i}镇\n" for i in range(0, 40, 5)), encoding="utf-8")
    configs = {
        "base": BASE_CONFIG,
        "questions": QUESTIONS_CONFIG,
        "field": FIELD_CONFIG,
        "correction": CORRECTION_CONFIG,
    }
    for name, text in configs.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    return TuningPageSettings(
        **{f"{name}_config": f"{name}.py" for name in configs},
        tune_iters=1, batch_size=4, max_samples=3, seeds=[1, 2], out_dir="out", docs="page.md",
    )  # fmt: skip


@pytest.fixture
def trained_here(monkeypatch):
    """train.py runs in this process instead of its own; the list of what it was called with. Fewer runs are compared
    and answers are shorter than in earnest."""
    left_out = {"lora_1", "lora_4", "lora_16", "lora_32", "lora_64", "adapter", "p-tuning"}
    few = {name: given for name, given in tuning_plan.TUNING_METHODS.items() if name not in left_out}
    monkeypatch.setattr(tuning_plan, "TUNING_METHODS", few)
    monkeypatch.setattr(tuning_plan, "REPEATED_METHODS", ("full", FEW_SHOT))
    monkeypatch.setattr(tuning_plan, "REPEATED_BASES", ())
    monkeypatch.setattr(tuning_plan, "SWEPT_METHODS", ("full", "prompt"))
    monkeypatch.setattr(tuning_plan, "LONG_METHODS", {"full": False, "prefix": False})
    monkeypatch.setattr(tuning_measure, "TUNED_GREEDY", SamplingParams(temperature=0.0, max_new_tokens=4))
    calls = []

    def train_here(script, *flags, log, threads=0):
        calls.append(flags)
        train.train(TrainingRun(load_settings(TrainSettings, list(flags)), say=lambda line: None))
        return Cost(2.0, 3e8)

    monkeypatch.setattr(build, "run_logged", train_here)
    return calls


def make_all(plan):
    """The results of all runs of a plan, as `run_all` returns them."""
    results = {}
    for run, seed in plan.tasks([], plan.settings.seeds):
        results.setdefault(run.name, []).append(build.train_and_measure(plan, run, seed, 1))
    return results


def test_a_comparison_from_its_data_to_its_page_and_again_from_what_was_kept(settings, trained_here, tmp_path):
    plan = TuningPlan(settings)
    counts = make_tuning_data(plan)
    results = make_all(plan)

    # Every run trained what its method says, from the base's checkpoint that its name says.
    sizes = {name: each[0].get("parameters") for name, each in results.items()}
    assert set(results) == {run.name for run in plan.runs.values() if plan.can_run(run)}
    assert sizes["questions_full"] > sizes["questions_lora_8"] == 4 * sizes["questions_lora_2"]
    assert (sizes["questions_prompt"], sizes["questions_few_shot"]) == (20 * 16, 0)
    assert sizes["field_head"] == 3 * 16 and sizes["field_prompt"] == 20 * 16 + 3 * 16
    assert {len(results[name]) for name in ("questions_full", "field_full", "correction_few_shot")} == {2}
    assert {len(results[name]) for name in ("questions_lora_2", "questions_prompt_base10%", BASE_RUN)} == {1}
    begun = {flags[1]: flags for flags in trained_here if any("_base30%" in flag for flag in flags)}
    assert all(any(flag.endswith("step_000006.pt") for flag in flags) for flags in begun.values()) and begun
    assert {each["quality"] <= 1 for name in results if name != BASE_RUN for each in results[name]} == {True}
    assert all(math.isfinite(each["perplexity"]) for each in results["correction_prefix"])
    assert "perplexity" not in results["field_full"][0]
    assert set(results[BASE_RUN][0]["perplexities"]) == {"0.1", "0.3", "1.0"}

    # The page has every table, plot and claim.
    write_tuning_page(plan, results, counts, 60.0)
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    for experiment in TUNING_EXPERIMENTS:
        assert f"## {experiment.title} / {experiment.title_zh}" in text
        assert all(f"| {name} |" in text for name in experiment.runs if name in results)
        assert all(verdict.claim.text in text for verdict in verdicts_of(experiment, results))
    for name in ("methods", "bases", "amounts", "rates", "ranks", "replay"):
        assert (tmp_path / "page" / f"{name}.png").stat().st_size > 1000
        assert f"page/{name}.png" in text
    assert "0 q_proj" not in text and "0 c_attn" in text  # gpt2 has the three in one matrix
    assert ("Not made" in text) is not plan.has_bitsandbytes

    # What is kept is not made again, also where one result is lost; a run whose training's record is lost, too, is.
    trained_here.clear()
    for lost in (
        "questions_full/seed2/result.json",
        "questions_full/seed2/trained.json",
        "field_full/seed1/result.json",
    ):
        (tmp_path / "out" / lost).unlink()
    assert make_tuning_data(plan) == counts
    again = make_all(TuningPlan(settings))
    assert len(trained_here) == 1 and f"--out_dir={tuning_plan.Path('out/questions_full/seed2')}" in trained_here[0]
    kept = json.loads((tmp_path / "out/questions_full/seed2/result.json").read_text(encoding="utf-8"))["figures"]
    assert again["questions_full"][1] == kept
    assert kept["heldout"] == results["questions_full"][1]["heldout"] and kept["cpu_seconds"] == 2.0


def test_every_claim_names_runs_and_columns_that_there_are():
    runs = TuningPlan(TuningPageSettings(base_config=str(ROOT / "config/demo.py"))).runs
    for experiment in TUNING_EXPERIMENTS:
        assert set(experiment.runs) <= set(runs)
        for claim in experiment.claims:
            assert {claim.better, claim.worse} <= set(experiment.runs) and claim.column in experiment.columns
    shown = {name for experiment in TUNING_EXPERIMENTS for name in experiment.runs}
    assert set(runs) - shown == {BASE_RUN}
    for task in TUNED_TASKS:
        assert {f"{task}_lora_{rank}" for rank in LORA_RANKS} | {f"{task}_{FEW_SHOT}"} <= set(runs)


def test_without_bitsandbytes_qlora_is_left_out_and_the_page_says_so(settings, monkeypatch):
    monkeypatch.setattr(tuning_plan.importlib.util, "find_spec", lambda name: None)
    plan = TuningPlan(settings)
    assert not [run.name for run, _ in plan.tasks([], [1]) if "qlora" in run.name]


def test_a_claim_of_a_share_and_of_unequal_numbers_of_seeds():
    claim = Claim("a", "b", QUALITY, "", "", share=0.9)
    for a, b, holds, count in (
        ([0.92, 0.95], [1.0, 1.0], True, 2),
        ([0.92, 0.85], [1.0, 1.0], None, 2),
        ([0.85], [1.0, 0.5], False, 1),  # the first seeds are compared
    ):
        verdict = judge_claim(claim, {"a": [{"quality": v} for v in a], "b": [{"quality": v} for v in b]})
        assert (verdict.holds, len(verdict.differences)) == (holds, count)


@pytest.mark.numeric
def test_the_rank_of_a_change_is_that_of_its_singular_values():
    weight = torch.ones(4, 4)
    for values, effective, stable, energy in (
        ([2, 2, 2, 2], 4.0, 4.0, 4),
        ([5, 0, 0, 0], 1.0, 1.0, 1),
        ([4, 1, 0, 0], math.exp(-0.8 * math.log(0.8) - 0.2 * math.log(0.2)), 17 / 16, 1),
        ([2, 1, 1, 1], math.exp(-0.4 * math.log(0.4) - 0.6 * math.log(0.2)), 7 / 4, 4),
    ):
        # A rotation on each side leaves the singular values.
        left, right = (torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0] for _ in range(2))
        found = change_figures(left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right, weight.double())
        assert (found["effective_rank"], found["stable_rank"]) == pytest.approx((effective, stable))
        assert found["energy_rank"] == energy and found["values"] == pytest.approx(
            [v / max(values) for v in values], abs=1e-4
        )
        assert found["relative"] == pytest.approx(math.sqrt(sum(v**2 for v in values)) / 4)
    assert change_figures(torch.zeros(3, 2), weight)["effective_rank"] == 0


def test_a_share_of_rows_is_the_same_at_each_call_and_leaves_the_other_parts(tmp_path):
    rows = [[1 + i, 2] for i in range(20)]
    write_rows(tmp_path / "all", {"train": rows, "test": rows[:3]}, stage="sft")
    for share, count in ((0.1, 2), (0.01, 1)):
        copy_share_of_rows(tmp_path / "all", tmp_path / "few", share)
        few, meta = open_rows(tmp_path / "few", "train")
        kept = few[:, 0].tolist()
        assert len(kept) == count and set(kept) <= set(range(1, 21)) and meta["parts"]["train"]["rows"] == count
        assert len(open_rows(tmp_path / "few", "test")[0]) == 3
        copy_share_of_rows(tmp_path / "all", tmp_path / "few", share)
        assert open_rows(tmp_path / "few", "train")[0][:, 0].tolist() == kept


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say what a process took")
def test_the_cost_of_a_script_is_that_of_its_own_process(tmp_path, monkeypatch):
    ballast = np.ones(60_000_000)  # 480 MB, which the script's process does not have
    cost = run_logged("data/prepare.py", "--help", log=tmp_path / "log")
    assert 0 < cost.cpu_seconds < 100
    assert 1e6 < cost.peak_bytes < ballast.nbytes


def test_tuning_is_asked_for_by_its_name_alone_and_has_settings_of_its_own(tmp_path):
    run = partial(run_in_process, tmp_path, "experiments/run.py")
    said = run("--help")
    assert said.returncode == 0 and "run.py tuning`" in said.stdout and "--base_config=" not in said.stdout
    own = run("tuning", "--help")
    assert own.returncode == 0 and "--base_config=" in own.stdout
    both = run("tuning", "order")
    assert both.returncode == 1 and "tuning has a page and settings of its own" in both.stderr
    missing = run("tuning", "--base_config=nothing.py")
    assert missing.returncode == 1 and "nothing.py" in missing.stderr and "Traceback" not in missing.stderr
