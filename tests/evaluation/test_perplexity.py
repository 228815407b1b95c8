"""evaluations-perplexity.py: known answers, several checkpoints, batch sizes, files, contamination."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from corpora import byte_tokenizer, made_up_articles
from evaluation_fakes import BLOCK, load_script, make_project, run_here, save_tiny
from runs import TINY
from tiny import EOT, tiny_tokenizer, write_rows

from data_utils import open_rows
from minigpt.checkpoint import load_checkpoint, load_model
from minigpt.common.errors import UserError
from minigpt.corpus.row_files import META, RowWriter
from minigpt.settings.stages import TrainSettings
from minigpt.training.setup import TrainingRun
from minigpt.training.state import save_run
from train import train_step

SCRIPT = load_script("evaluations-perplexity.py")
FIGURES = ("perplexity", "loss", "bits_per_token", "bits_per_char")
BASE, TUNED = ("--ckpt=out/base/ckpt.pt", "--data_dir=data/base"), ("--ckpt=out/tuned", "--data_dir=data/tuned")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """As `make_project`, with a second pretrained checkpoint, and articles of different lengths."""
    folder = make_project(tmp_path_factory.mktemp("project"))
    encode = tiny_tokenizer().encode
    articles = [[*encode("第" * (i % 5 + 1) + f"{i}镇的河。" * (i % 3 + 1))[: BLOCK - 2], EOT] for i in range(20)]
    write_rows(folder / "data/base", {"train": articles[:4], "val": articles}, BLOCK, "pretrain")
    save_tiny(folder / "out/other/ckpt.pt", "pretrain", seed=5, data_dir="data/base", architecture="qwen3")
    return folder


@pytest.fixture
def measure(project, monkeypatch, capsys):
    """Run the script with flags; returns (what it printed, its JSON)."""

    def run(*flags):
        run_here(monkeypatch, project, SCRIPT, "--json=figures.json", *flags)
        return capsys.readouterr().out, json.loads((project / "figures.json").read_text(encoding="utf-8"))

    return run


def rows_of(path):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@torch.no_grad()
def plain_figures(folder, ckpt="out/base/ckpt.pt", data="data/base"):
    """(nats, tokens, text nats, characters) of each row of a validation part, by a plain loop over rows and tokens."""
    model, tokenizer = load_model(load_checkpoint(folder / ckpt))
    found = []
    for row in open_rows(folder / data, "val")[0]:
        ids = row[row != tokenizer.pad_id].tolist()
        log_p = model(torch.tensor([ids[:-1]]))[0].double().log_softmax(dim=1)
        nats = [-log_p[t - 1, ids[t]].item() for t in range(1, len(ids))]
        text = [nat for nat, token in zip(nats, ids[1:], strict=True) if token != tokenizer.eot_id]
        characters = len(tokenizer.decode(ids)) - len(tokenizer.decode(ids[:1]))
        found.append((sum(nats), len(nats), sum(text), characters))
    return np.array(found)


@pytest.mark.numeric
@pytest.mark.parametrize("batch_size", [0, 1, 3, 64])
def test_the_figures_equal_a_plain_loop_at_any_batch_size(measure, project, batch_size):
    _, found = measure(*BASE, f"--batch_size={batch_size}", "--csv=rows.csv")
    expected = plain_figures(project)
    nats, tokens, text_nats, characters = expected.sum(axis=0)
    assert found["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert found["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert found["bits_per_token"] == pytest.approx(nats / tokens / math.log(2), rel=1e-5)
    assert found["bits_per_char"] == pytest.approx(text_nats / math.log(2) / characters, rel=1e-5)
    assert (found["tokens"], found["characters"], found["rows"]) == (tokens, characters, 20)
    for row, values in zip(rows_of(project / "rows.csv"), expected, strict=True):
        assert [float(row[name]) for name in ("nats", "tokens", "characters")] == pytest.approx(values[[0, 1, 3]])
        assert float(row["perplexity"]) == pytest.approx(math.exp(values[0] / values[1]), rel=1e-4)
        assert float(row["bits_per_char"]) == pytest.approx(values[2] / math.log(2) / values[3], rel=1e-4)


@pytest.mark.numeric
def test_the_interval_is_of_the_ratio_over_resampled_rows(measure, project):
    said, found = measure(*BASE, "--resamples=2000", "--seed=3")
    nats, tokens, _, _ = plain_figures(project).T
    rng = np.random.default_rng(7)  # another seed: the two agree as two samples do
    drawn = rng.integers(20, size=(2000, 20))
    losses = nats[drawn].sum(axis=1) / tokens[drawn].sum(axis=1)
    spread = losses.std()
    assert found["intervals"]["loss"] == pytest.approx(np.quantile(losses, [0.025, 0.975]).tolist(), abs=spread / 3)
    low, high = found["intervals"]["loss"]
    assert found["intervals"]["perplexity"] == pytest.approx([math.exp(low), math.exp(high)])
    assert found["intervals"]["bits_per_token"] == pytest.approx([low / math.log(2), high / math.log(2)])
    for name in FIGURES:
        assert found["intervals"][name][0] <= found[name] <= found["intervals"][name][1]
    assert f"perplexity {found['perplexity']:.3f} ({math.exp(low):.3f}–{math.exp(high):.3f})" in said
    _, none = measure(*BASE, "--resamples=0")
    assert none["intervals"] == dict.fromkeys(FIGURES) and none["loss"] == pytest.approx(found["loss"])


def test_the_figures_of_one_checkpoint_are_on_the_top_level_and_in_models(measure, project):
    said, found = measure(*BASE, "--csv=rows.csv")
    assert found["models"] == [{k: v for k, v in found.items() if k not in ("models", "comparisons")}]
    assert (found["checkpoint"], found["step"], found["comparisons"]) == ("out/base/ckpt.pt", 1, [])
    assert "bits per character" in said and "contamination check" in said and "A < B" not in said
    rows = rows_of(project / "rows.csv")
    assert [row["row"] for row in rows] == [str(i + 1) for i in range(20)]
    assert rows[1]["text"] == "第第1镇的河。1镇的河。" and {row["checkpoint"] for row in rows} == {"base"}


def test_every_checkpoint_of_a_run_is_compared_with_the_best(measure, project):
    said, found = measure(*TUNED, "--split=test", "--csv=rows.csv")
    assert [(model["name"], model["step"]) for model in found["models"]] == [("tuned/step_10", 10), ("tuned", 20)]
    assert "perplexity" not in found and len(rows_of(project / "rows.csv")) == 48
    best, other = sorted(found["models"], key=lambda model: model["loss"])
    (result,) = found["comparisons"]
    assert (result["a"], result["b"], result["figure"]) == (best["name"], other["name"], "loss")
    assert result["difference"] == pytest.approx(other["loss"] - best["loss"], rel=1e-5)
    assert result["low"] <= result["difference"] <= result["high"]
    assert f"{best['name']} < {other['name']}" in said and said.count("contamination check") == 1  # one run


def test_a_few_rows_give_no_interval_and_no_comparison(measure):
    said, found = measure(*TUNED)
    assert "too few rows (4) for an interval; give at least 20" in said and "95%" not in said and "A < B" not in said
    assert set(found["models"][0]["intervals"].values()) == {None}
    (result,) = found["comparisons"]
    assert result["difference"] > 0 and result["rows"] == 4
    assert [result[key] for key in ("low", "high", "a_better")] == [None] * 3


def test_only_answers_count_for_a_fine_tuned_checkpoint(measure):
    _, found = measure("--ckpt=out/tuned/ckpt.pt", "--data_dir=data/tuned", "--split=test")
    assert (found["rows"], found["part"], found["stage"]) == (24, "test", "sft")
    assert found["characters"] == 6 * len("东河。" + "12座桥。" + "3?" + "河的名字？")


def test_two_checkpoints_are_compared_by_nats_over_tokens_of_resampled_rows(measure, project):
    _, found = measure("--ckpt=out/base/ckpt.pt,out/other/ckpt.pt", "--data_dir=data/base", "--resamples=500")
    a, b = (plain_figures(project, f"out/{name}/ckpt.pt") for name in ("base", "other"))
    (result,) = found["comparisons"]
    difference = (b - a)[:, 0] if result["a"] == "base" else (a - b)[:, 0]
    drawn = np.random.default_rng(1).integers(20, size=(4000, 20))
    values = difference[drawn].sum(axis=1) / a[:, 1][drawn].sum(axis=1)
    assert result["difference"] == pytest.approx(difference.sum() / a[:, 1].sum(), rel=1e-4)
    assert result["a_better"] == pytest.approx((values > 0).mean(), abs=0.1)
    assert [result["low"], result["high"]] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=values.std() / 2)


def test_an_address_is_refused_and_rows_that_do_not_fit_name_the_checkpoint(measure, project):
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/v1 .*needs a checkpoint"):
        measure("--ckpt=out/base/ckpt.pt,http://127.0.0.1:9/v1", "--data_dir=data/base")
    with pytest.raises(UserError, match=r"out.tuned.ckpt\.pt: .*--data_dir=data/tuned"):
        measure("--ckpt=out/base/ckpt.pt,out/tuned/ckpt.pt", "--data_dir=data/base")
    write_rows(project / "data/wide", {"val": [[65, EOT]]}, BLOCK + 8, "pretrain")
    with pytest.raises(UserError, match=rf"out.base.ckpt\.pt: rows of {BLOCK + 8} do not fit"):
        measure("--ckpt=out/base/ckpt.pt", "--data_dir=data/wide")
    write_rows(project / "data/bytes", {"val": [[65, 66]]}, BLOCK, "pretrain", byte_tokenizer())
    with pytest.raises(UserError, match=r"out.base.ckpt\.pt: .*tokenizer bytes.*tiny\.tiktoken"):
        measure("--ckpt=out/base/ckpt.pt", "--data_dir=data/bytes")


def test_truncated_rows_are_noted(measure, project):
    shutil.copytree(project / "data/base", project / "data/cut", dirs_exist_ok=True)
    meta = json.loads((project / "data/cut" / META).read_text(encoding="utf-8"))
    meta.update(overflow="truncate", characters_cut=5)
    (project / "data/cut" / META).write_text(json.dumps(meta), encoding="utf-8")
    assert "--overflow=split" in measure(BASE[0], "--data_dir=data/cut")[0]
    assert "--overflow=split" not in measure(*BASE)[0]


def test_ctrl_c_keeps_what_was_measured(measure, project, monkeypatch):
    measured = SCRIPT.MeasuredCheckpoint.measure
    tries = iter([True, False])

    def once(self, *more):
        if not next(tries):
            raise KeyboardInterrupt
        return measured(self, *more)

    monkeypatch.setattr(SCRIPT.MeasuredCheckpoint, "measure", once)
    with pytest.raises(KeyboardInterrupt):
        measure(*TUNED)
    found = json.loads((project / "figures.json").read_text(encoding="utf-8"))
    assert [model["name"] for model in found["models"]] == ["tuned/step_10"] and found["rows"] == 4


def test_the_contamination_check_is_in_the_json_and_can_be_skipped(measure):
    said, found = measure(*BASE)  # whose first rows are its training rows
    assert found["leak"]["verdict"] == "leaked" and found["leak"]["leaked_rows"] >= 4 and "WARNING" in said
    said, found = measure(*BASE, "--check_leak=False")
    assert found["leak"] is None and "contamination" not in said
    said, found = measure(*BASE, "--split=train")
    assert found["leak"]["verdict"] == "trained on" and "these rows were trained on" in said and "WARNING" not in said


def test_models_trained_on_the_validation_part_are_detected_end_to_end(tmp_path, monkeypatch, capsys):
    tokenizer = byte_tokenizer()
    texts = [tokenizer.encode(row["text"])[:90] for row in made_up_articles(40)]
    val, train = texts[:18], texts[18:]
    runs = {"clean": train, "tenth": [*train, *val[:2]], "whole": [*train, *val]}
    for name, rows in runs.items():
        folder = tmp_path / name
        with RowWriter(folder, ["train", "val"], TINY["block_size"], tokenizer) as writer:
            for part, ids in [("train", ids) for ids in rows] + [("val", ids) for ids in val]:
                writer.add(part, ids, len(tokenizer.decode(ids)))
            writer.finish({"stage": "pretrain"})
        trainer = TrainingRun(TrainSettings(**TINY, data_dir=str(folder), out_dir=str(tmp_path / "out" / name)))
        train_step(trainer)
        save_run(trainer, "ckpt.pt")
        trainer.close()
    ckpt = "--ckpt=" + ",".join(f"out/{name}" for name in runs)
    run_here(monkeypatch, tmp_path, SCRIPT, ckpt, f"--data_dir={tmp_path / 'clean'}", "--json=f.json")
    found = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert [model["leak"]["verdict"] for model in found["models"]] == ["clean", "leaked", "leaked"]
    assert found["models"][2]["leak"]["leaked_rows"] == 18 and capsys.readouterr().out.count("WARNING") == 2
