"""bench.py: both ways of training do the work that is timed, and the figures become ratios and tables."""

import itertools
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from corpora import ROOT, byte_tokenizer
from tiny import write_rows

import bench
from minigpt.bench import common, training
from minigpt.common.errors import UserError

FIGURES = {"tokens_per_second": 10.0, "characters_per_second": 5.0, "peak_memory_mb": 300, "mfu": None}
SPEED = {
    ("sft", "recipe", "sft"): FIGURES,
    ("sft", "ours", "sft"): {**FIGURES, "tokens_per_second": 90.0},
    ("pretrain", "recipe", "gpt2"): FIGURES,
    ("pretrain", "ours", "gpt2"): {**FIGURES, "tokens_per_second": 30.0, "characters_per_second": 15.0},
    ("pretrain", "ours", "own"): {**FIGURES, "tokens_per_second": 50.0, "characters_per_second": 200.0},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Rows of 32 tokens under tmp_path, and a model to match."""
    monkeypatch.setattr(training, "BLOCK_SIZE", 32)
    monkeypatch.setattr(training, "SIZES", {training.SMALL: {"n_layer": 1, "n_head": 2, "n_embd": 16}})
    rows = [[(7 * i + k) % 250 for k in range(3 + i % 25)] for i in range(60)]
    write_rows(tmp_path / "rows", {"train": rows, "val": rows[:9]}, 32, tokenizer=byte_tokenizer())
    return tmp_path / "rows"


@pytest.mark.parametrize("way", ["recipe", "ours"])
def test_a_way_of_training_trains_and_counts_tokens_without_padding(folder, way):
    side = training.WAYS[way](folder, training.SIZES[training.SMALL], "cpu")
    before = side.model.wte.weight.detach().clone()
    tokens, flops = side.step()
    assert not torch.equal(side.model.wte.weight, before)
    assert 3 * training.BATCH_ROWS < tokens < 60 * 32
    matrices = sum(p.numel() for p in side.model.parameters() if p.dim() == 2) - side.model.wpe.weight.numel()
    assert 5 * matrices * tokens < flops < 8 * matrices * tokens


@pytest.fixture
def clock(monkeypatch):
    """Time in which every look at the clock takes a second, so that a step does, too."""
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=itertools.count().__next__))


def test_the_recipe_learns(folder, clock):
    ((_, before),) = training.measure_quality("recipe", folder, training.SMALL, "cpu", 2)
    ((seconds, after),) = training.measure_quality("recipe", folder, training.SMALL, "cpu", 100)
    assert after < before and seconds == 100


def test_quality_is_measured_until_the_target_and_no_longer(folder, clock):
    first = training.measure_quality("ours", folder, training.SMALL, "cpu", 600, target=100.0)
    assert len(first) == 1
    curve = training.measure_quality("ours", folder, training.SMALL, "cpu", 600, target=first[0][1] - 0.5)
    assert len(curve) > 1 and curve[-1][0] < 600
    assert curve[-1][1] <= first[0][1] - 0.5 < curve[-2][1]


def test_speed_has_every_figure(folder, clock):
    figures = training.measure_speed("ours", folder, training.SMALL, "cpu", 5)
    assert figures.keys() == FIGURES.keys()
    assert figures["tokens_per_second"] > figures["characters_per_second"] > 0  # EOT has no character


def test_ratios_are_ours_over_the_recipe():
    quality = {"recipe_seconds": 600.0, "our_seconds": 12.0}
    assert training.training_ratios(SPEED, quality) == {
        "sft_useful_tokens_ratio": 9.0,
        "pretrain_useful_tokens_ratio": 3.0,
        "characters_ratio": 40.0,
        "same_table_ratio": 3.0,
        "time_to_bpc_ratio": 50.0,
    }
    assert training.training_ratios(SPEED, None)["time_to_bpc_ratio"] is None
    assert training.training_ratios(SPEED, {**quality, "our_seconds": None})["time_to_bpc_ratio"] is None


def test_the_ratio_over_minimind_is_of_characters_with_the_own_tokenizers():
    speed = {**SPEED, ("pretrain", "minimind", "minimind"): {**FIGURES, "characters_per_second": 50.0}}
    ratios = training.training_ratios(speed, None)
    assert ratios["characters_over_minimind"] == 4.0
    bits = {"seconds": 300, "minimind": 9.931, "ours": 7.884}
    table = training.training_table({training.SMALL: speed}, None, ratios, bits)
    assert "| characters_over_minimind | 4.0 |" in table and "| pretrain | minimind | minimind |" in table
    assert "9.93" in table and "7.88" in table


def test_the_table_says_what_was_not_measured(tmp_path):
    table = training.training_table({training.SMALL: SPEED}, None, training.training_ratios(SPEED, None))
    assert "| time_to_bpc_ratio | not measured |" in table and "| characters_ratio | 40.0 |" in table


def test_a_section_of_the_docs_replaces_its_older_one_and_leaves_the_others(tmp_path):
    path = tmp_path / "benchmarks.md"
    for title, text in (("A", "one"), ("B", "two"), ("A", "three\n\n| x |")):
        common.write_docs(path, title, text)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Benchmarks\n") and "one" not in text
    assert text.index("## B") < text.index("## A") and "two" in text and "three" in text


def test_what_cannot_be_measured_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments, said in (([], "train"), (["trian"], "train"), (["train", "--input_dir=nowhere"], "nowhere")):
        monkeypatch.setattr(sys, "argv", ["bench.py", *arguments])
        with pytest.raises(UserError, match=said):
            bench.main()
    monkeypatch.setattr(sys, "argv", ["bench.py", "train", "--help"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "--quick" in capsys.readouterr().out


@pytest.mark.soak_only
def test_the_quick_measurement_of_the_embedded_corpus(script, tmp_path):
    before = (ROOT / "docs" / "benchmarks.md").read_bytes()
    done = script("bench.py", "train", "--quick", f"--json={tmp_path / 'figures.json'}", own_process=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["time_to_bpc_ratio"] is None and figures["sft_useful_tokens_ratio"] > 1
    assert (ROOT / "docs" / "benchmarks.md").read_bytes() == before
