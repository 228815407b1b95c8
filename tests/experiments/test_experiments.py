"""The experiments: planned runs, claims, kept results, and a small comparison from beginning to end."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from corpora import ROOT, made_up_articles, made_up_questions, write_jsonl
from planning import UntrainedPlan
from processes import run_in_process
from runs import finish_run

from minigpt.common.errors import UserError
from minigpt.evaluation.plots import plt
from minigpt.experiments import build, data, measure, results
from minigpt.experiments.build import is_ready
from minigpt.experiments.claims import COLUMNS, EXPERIMENTS, Claim, Column, column_values, judge_claim
from minigpt.experiments.data import concatenate_rows
from minigpt.experiments.plan import Plan
from minigpt.experiments.report import (
    CURVES,
    PAGE_TITLE,
    claims_table,
    cost_line,
    experiment_table,
    prompts_table,
    read_page,
    verdict_lines,
    write_page,
)
from minigpt.experiments.results import Cost
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import ExperimentSettings, TrainSettings


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
            assert {claim.column, claim.against or claim.column} <= set(experiment.columns)


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
    assert not is_ready(plan, tuned, 1, {("gpt2", 1): {}, ("tuned", 2): {}})
    assert is_ready(plan, tuned, 1, {("gpt2", 1): {}, ("tuned", 1): {}})


def losses(*values):
    return [{"loss": value} for value in values]


def test_a_claim_holds_where_every_seed_says_so_and_ties_settle_nothing():
    claim = Claim("a", "b", COLUMNS["validation_loss"], "", "")
    for a, b, holds in (
        ((1.0, 2.0), (1.5, 2.1), True),
        ((1.5, 2.1), (1.0, 2.0), False),
        ((1.0, 2.1), (1.5, 2.0), None),
        ((1.0, 2.0), (1.0, 2.0), None),
    ):
        assert judge_claim(claim, {"a": losses(*a), "b": losses(*b)}).holds is holds
    verdict = judge_claim(claim, {"a": losses(1.0, 2.0), "b": losses(1.5, 2.1)})
    assert verdict.differences == pytest.approx([0.5, 0.1]) and verdict.seeds_in_favour == 2
    assert verdict.standard_error == pytest.approx(np.std([0.5, 0.1], ddof=1) / 2**0.5)


def test_a_claim_of_two_columns_of_one_run_and_one_of_equal_figures():
    rise, fall = Column("rise", "rise"), Column("fall", "fall", more_is="worse")
    results = {"a": [{"rise": 0.5, "fall": 0.75}, {"rise": 1.0, "fall": 1.25}]}
    against = replace(Claim("a", "a", fall, "", ""), against=rise)
    verdict = judge_claim(against, results)
    assert verdict.differences == pytest.approx([-0.25, -0.25]) and verdict.holds is False
    above_zero = judge_claim(Claim("a", "a", rise, "", "", share=0.0), results)
    assert above_zero.differences == pytest.approx([0.5, 1.0]) and above_zero.holds
    for within, holds, seeds in ((0.3, True, 2), (0.2, False, 0)):
        equal = judge_claim(replace(against, within=within), results)
        assert equal.differences == pytest.approx([0.25, 0.25])  # the first above the second, whichever is better
        assert (equal.holds, equal.seeds_in_favour) == (holds, seeds)


def test_figures_of_articles_are_not_shown_beside_those_of_answers():
    assert list(column_values(COLUMNS["validation_loss"], losses(1.0))) == [1.0]
    assert not len(column_values(COLUMNS["validation_loss"], [{"loss": 1.0, "trained": {}}]))
    assert list(column_values(COLUMNS["never_asked_match"], [{"never_asked": {"exact_match": 0.25}}])) == [0.25]


def test_concatenated_rows_have_the_same_tokens_without_padding(tmp_path):
    rows = np.array([[1, 2, 9, 0], [3, 9, 0, 0], [4, 5, 6, 9], [7, 9, 0, 0]], dtype=np.uint16)
    rows.tofile(tmp_path / "train.bin")
    meta = {"block_size": 4, "special_ids": {"pad": 0}, "parts": {"train": {"rows": 4, "tokens": 11}}}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    concatenate_rows(tmp_path)
    joined = np.fromfile(tmp_path / "train.bin", dtype=np.uint16).reshape(-1, 4)
    assert joined.tolist() == [[1, 2, 9, 3], [9, 4, 5, 6]]  # tokens that do not fill a row are left out
    after = json.loads((tmp_path / "meta.json").read_text())
    assert after["parts"]["train"] == {"rows": 2, "tokens": 8} and after["train_layout"] == "concatenated"


def made_up_results():
    """Results in which the first run of each claim is the better one in both seeds."""
    known = {"exact_match": 0.5, "rouge_l_f": 0.6, "numbers": 0.7, "changed_by_heat": 0.2, "exact_match_hot": 0.4}
    known |= {"wrong": 0.5, "wrong_rouge_l": 0.4, "other_rouge_l": 0.4}
    sampled = {"repeated": 0.1, "rouge_l": 0.3, "exact_match": 0.5, "numbers": 0.5}
    at = {"t01": sampled, "t04": sampled, "t15": sampled, "articles": sampled, "perplexity": 7.4, "alike": 0.5}
    kinds = {"digits": 1.0, "han": 1.0, "punctuation": 1.0}
    steps = [{"step": step, **kinds} for step in (0, 10)]
    asked = {"to_change": 0.1, "to_keep": 0.2, "edit_f": 0.3, "unchanged": 0.4, "cut": 0.0}
    prompts = [{"system": system, "shots": shots, **asked} for system in ("none", "said") for shots in (0, 1, 2)]
    more = {
        "losses": dict.fromkeys(("rebound", "best_train", "last_train", "best_val", "last_val", "steps_to_loss"), 0.0),
        "repetition": at, "heat": at, "early": at, "texts": {"articles": 2.0, "starts": 2.0, "answers": 2.0},
        "characters": {"train": steps, "val": steps, "learned": {"train": kinds, "val": kinds}},
        "corrections": asked, "prompts": prompts, "test_loss": 2.0, "cpu_seconds": 60.0,
    }  # fmt: skip
    plan, results = Plan(ExperimentSettings()), {}
    for name, run in plan.runs.items():
        figures = {"loss": 2.0, "bits_per_char": 3.0, "perplexity": 7.4, "steps": 10, "empty_brackets": 0.1}
        figures |= {"continuation_rouge_l": 0.3} | more
        figures["curve"] = [{"step": 9, "epoch": 1, "train_loss": 2.0, "val_loss": 2.5}]
        if run.tunes:
            figures |= {key: known for key in ("trained", "never_asked", "never_seen")}
            figures["epochs"] = [{**figures, "epoch": 1}]
        results[name] = [figures, figures]
    return results


DRAWN = ("perplexity", "overfitting", "digits", "correction")


def test_the_page_has_every_table_plot_and_claim(tmp_path):
    """Of some experiments, since plots take long; the tables of all."""
    results = made_up_results()
    drawn = [experiment for experiment in EXPERIMENTS if experiment.name in DRAWN]
    write_page(tmp_path / "page.md", drawn, results, "head\n")
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    for experiment in drawn:
        assert experiment_table(experiment, results) in text
        assert "\n".join(verdict_lines(experiment, results)) in text
        assert (tmp_path / "page" / f"{experiment.name}.png").stat().st_size > 1000
    assert claims_table(drawn, results) in text and (tmp_path / "page" / "epochs.png").exists()
    assert "does not settle" in text and "\n- **digits are learned last" in text  # all figures are equal
    assert prompts_table(results) in text and len(prompts_table(results).splitlines()) == 2 + 6
    lines = claims_table(EXPERIMENTS, results).splitlines()
    names, marks = (line.strip("| ").split(" | ") for line in lines[:2])
    assert dict(zip(names, marks, strict=True)) == {
        "experiment": "---", "claim": "---", "what it comes to": "---", "figure": "---",
        "better by": "---:", "seeds": "---:",
    }  # fmt: skip
    assert len(lines) == 2 + sum(len(experiment.claims) for experiment in EXPERIMENTS)
    for experiment in EXPERIMENTS:
        table = experiment_table(experiment, results)
        assert all(f"| {name} |" in table for name in experiment.runs)


def test_losses_are_drawn_of_every_run_with_the_range_of_its_seeds():
    results = made_up_results()
    by_name = {experiment.name: experiment for experiment in EXPERIMENTS}
    for name, lines in (("rebound", [4, 4]), ("falls", [2, 2, 2, 2]), ("shortens", [3])):
        figure = CURVES[name](by_name[name], results)
        assert [len(panel.lines) for panel in figure.axes] == lines
        plt.close(figure)


def test_a_part_of_the_page_is_renewed_and_the_rest_stays(tmp_path):
    path, results = tmp_path / "page.md", made_up_results()
    drawn = [experiment for experiment in EXPERIMENTS if experiment.name in ("perplexity", "correction")]
    write_page(path, drawn, results, "head\n", {"correction": "two minutes"})
    before = path.read_text(encoding="utf-8")
    head, *kept = read_page(path)
    assert head == "head\n" and [list(part) for part in kept] == [["perplexity", "correction"]] * 2
    write_page(path, [], {}, head, kept=kept)
    assert path.read_text(encoding="utf-8") == before
    for figures in results["corrected_long"]:
        figures["corrections"] = {**figures["corrections"], "to_change": 0.75}
    write_page(path, drawn[1:], results, head, kept=kept)
    after = read_page(path)
    assert after[1]["perplexity"] == kept[0]["perplexity"] and after[2]["perplexity"] == kept[1]["perplexity"]
    assert "0.750" in after[2]["correction"] and "two minutes" not in after[2]["correction"]
    assert [line for line in after[1]["correction"] if "as the report found" in line and "0.650 | 2 of 2" in line]
    (tmp_path / "other.md").write_text("# Another page\n", encoding="utf-8")
    with pytest.raises(UserError, match="is no page of the experiments"):
        read_page(tmp_path / "other.md")


def test_what_a_section_took_is_the_sum_of_its_runs_where_it_is_known():
    results = {"a": [{"cpu_seconds": 60.0}, {"cpu_seconds": 120.0}], "b": [{"cpu_seconds": 240.0}]}
    assert cost_line(["a", "b"], results, "a machine").startswith("7 CPU minutes on a machine")
    assert cost_line(["a"], {"a": [{"cpu_seconds": float("nan")}]}, "a machine") == ""


SMALL = [
    "--input_dir=wiki", "--articles=wiki", "--qa_files=qa.jsonl", "--max_iters=6", "--tune_iters=4", "--n_layer=1",
    "--n_head=1", "--n_embd=16", "--tokenizer_vocab=400", "--block_size=48", "--seeds=1", "--out_dir=out/x",
    "--dtype=float32", "--val_share=0.2", "--workers=1",
]  # fmt: skip


def run(folder, *arguments):
    return run_in_process(folder, "experiments/run.py", *arguments)


def test_a_comparison_from_beginning_to_end_and_again_from_what_was_kept(tmp_path, monkeypatch):
    def train_here(script, *flags, log, threads):
        finish_run(**load_settings(TrainSettings, list(flags)).to_dict())
        return Cost()

    monkeypatch.setattr(build, "run_logged", train_here)
    monkeypatch.setattr(build, "ProcessPoolExecutor", lambda workers, _: ThreadPoolExecutor(workers))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    write_jsonl(tmp_path / "wiki" / "towns.jsonl", made_up_articles(60))
    write_jsonl(tmp_path / "qa.jsonl", made_up_questions(60))
    first = run(tmp_path, "layout", *SMALL)
    assert first.returncode == 0, first.stderr
    assert "| tuned_concatenated |" in first.stdout and "better by" in first.stdout
    results = sorted((tmp_path / "out" / "x").glob("*/seed1/result.json"))
    assert [path.parts[-3] for path in results] == ["base", "concatenated", "tuned", "tuned_concatenated"]
    stamps = [path.stat().st_mtime_ns for path in results]
    again = run(tmp_path, "layout", *SMALL)
    assert first.stdout.endswith(again.stdout) and "better by" in again.stdout
    renew_a_page(tmp_path, first.stdout)
    assert stamps == [path.stat().st_mtime_ns for path in results]


def renew_a_page(folder, printed):
    """A page that was made with other settings stays as it is; one made with the same ones gets the section."""
    page = folder / "docs" / "experiments.md"
    page.parent.mkdir()
    write_page(page, [], {}, "Made by `python experiments/run.py`")
    before = page.read_text(encoding="utf-8")
    said = run(folder, "layout", *SMALL).stdout
    assert "stays as it is" in said and page.read_text(encoding="utf-8") == before
    command = said[said.index("than python") + 5 :].strip()
    write_page(page, [], {}, f"Made by `{command}`")
    assert "renewed in docs/experiments.md: layout" in run(folder, "layout", *SMALL).stdout
    head, rows, sections = read_page(page)
    assert (
        command in head
        and list(rows) == list(sections) == ["layout"]
        and (page.parent / "experiments/layout.png").exists()
    )
    table = printed[printed.index("| run |") : printed.index("- **")].strip()
    assert table in sections["layout"] and page.read_text(encoding="utf-8").startswith(PAGE_TITLE)


def test_runs_are_made_in_processes_of_their_own_each_after_its_base(tmp_path):
    plan = UntrainedPlan(replace(ExperimentSettings(), out_dir=str(tmp_path)))
    made = build.run_all(plan, ["tuned_gpt2"], [1, 2], 2, 1)
    assert list(made) == ["base", "gpt2", "tuned", "tuned_gpt2"]
    for name, each in made.items():
        assert [figures["seed"] for figures in each] == [1, 2]
        assert not {figures["process"] for figures in each} & {os.getpid()}
        assert all(figures["there"] == [run.name for run in plan.needed([name])[:-1]] for figures in each)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small corpus in tmp_path, a copy of the project's code whose changes count, and scripts that only take notes.

    ran(): names of the scripts that a base run with its rows and tokenizer takes now.
    """
    code = tmp_path / "code"
    shutil.copytree(ROOT / "minigpt", code / "minigpt", ignore=shutil.ignore_patterns("__pycache__"))
    (code / "data").mkdir()
    for path in [*ROOT.glob("*.py"), *ROOT.glob("data/*.py")]:
        shutil.copy(path, code / path.relative_to(ROOT))
    write_jsonl(tmp_path / "wiki" / "towns.jsonl", made_up_articles(60))
    write_jsonl(tmp_path / "qa.jsonl", made_up_questions(60))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "PROJECT", code)
    calls = []

    def note(script, *flags, log, threads=0):
        calls.append(script)
        (tmp_path / "out/tokenizer.tiktoken").touch()

    for module in (data, build):
        monkeypatch.setattr(module, "run_logged", note)
    monkeypatch.setattr(measure, "measure_run", lambda *_: calls.append("measured") or {"loss": 1.0})
    settings = replace(ExperimentSettings(), input_dir=["wiki"], articles=[], qa_files=["qa.jsonl"], out_dir="out")
    plan = Plan(settings)

    def ran():
        calls.clear()
        data.write_questions(plan)
        tokenizer = data.make_tokenizer(plan, data.hash_sources(settings))
        data.prepare_rows(plan, plan.rows["plain"], tokenizer)
        build.train_and_measure(plan, plan.runs["base"], 1, 1)
        return calls

    return code, ran


ALL = ["data/train_tokenizer.py", "data/prepare.py", "train.py", "measured"]


def test_a_result_is_kept_until_a_byte_of_its_data_or_of_its_code_changes(project, tmp_path):
    code, ran = project
    assert ran() == ALL and ran() == []
    for changed, made_anew in (
        (tmp_path / "wiki/towns.jsonl", ALL),
        (tmp_path / "qa.jsonl", ALL),
        (code / "minigpt/tokenizer.py", ALL),
        (code / "minigpt/corpus/cutting.py", ALL[1:]),
        (code / "minigpt/training/optim.py", ALL[2:]),
        (code / "model.py", ALL[2:]),
        (code / "minigpt/inference/likelihood.py", ALL[2:]),
        (code / "minigpt/evaluation/correction.py", ALL[3:]),
        (code / "minigpt/serving/app.py", []),
    ):
        content = changed.read_bytes()
        old, new = (b".", b",") if changed.suffix == ".py" else ("3座桥".encode(), "7座桥".encode())
        changed.write_bytes(content.replace(old, new, 1))
        assert changed.stat().st_size == len(content) and ran() == made_anew, changed
        changed.write_bytes(content)
        assert ran() == made_anew and ran() == []


def test_a_wrong_name_is_said_with_those_that_there_are(tmp_path):
    said = run(tmp_path, "ordr")
    assert said.returncode == 1 and "no experiment 'ordr'; there are order, layout" in said.stderr
    assert "seeds wants a list of int" in run(tmp_path, "order", "--seeds=a").stderr
