"""Runs of divided models in small, and what they must be equal to: the run of one process."""

import pytest
import torch
from ranks import run_ranks
from runs import arguments, log_of, run_here

from minigpt.checkpoint import load_checkpoint

# Dropout differs between processes, so it is off. Batches of so many rows are the same ones, padded to the block or
# not; those of the epoch's end have fewer.
STEP = {
    "dropout": 0.0, "n_layer": 4, "n_head": 4, "n_embd": 64, "batch_size": 3, "gradient_accumulation_steps": 4,
    "max_iters": 6, "eval_interval": 3, "learning_rate": 3e-3,
}  # fmt: skip
TOLERANCES = {"adamw": 1e-4, "muon": 1e-3}  # of losses, as in test_distributed.py


def run_divided(folder, data, tensor=1, pipeline=1, groups=1, **settings):
    """What a run printed whose model is divided over so many processes, times so many groups."""
    divided = {"tensor_parallel": tensor, "pipeline_parallel": pipeline}
    given = {"data_dir": data, "out_dir": str(folder), **divided, **STEP, **settings}
    processes = tensor * pipeline * groups
    return run_here(**given) if processes == 1 else run_ranks(folder / "output", processes, arguments(**given))


def assert_same_run(folder, other, tolerance):
    """Logs and checkpoints are the same, but for rounding."""
    left, right = log_of(folder), log_of(other)
    assert [line["step"] for line in left] == [line["step"] for line in right]
    for a, b in zip(left, right, strict=True):
        assert (a["tokens"], a["epoch"]) == (b["tokens"], b["epoch"])
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=tolerance)
        assert (a["val_loss"] is None) == (b["val_loss"] is None)
        assert a["val_loss"] is None or a["val_loss"] == pytest.approx(b["val_loss"], abs=tolerance)
    assert right[-1]["train_loss"] < right[0]["train_loss"] - 0.1

    content, expected = load_checkpoint(folder / "last.pt"), load_checkpoint(other / "last.pt")
    assert list(content["model"]) == list(expected["model"])
    for name, value in expected["model"].items():
        torch.testing.assert_close(content["model"][name], value, rtol=0, atol=10 * tolerance)
    for ours, theirs in zip(content["optimizers"], expected["optimizers"], strict=True):
        assert ours["param_groups"] == theirs["param_groups"]
        assert ours["state"].keys() == theirs["state"].keys()
        for i, values in theirs["state"].items():
            assert ours["state"][i].keys() == values.keys()
            for key, value in values.items():
                assert (ours["state"][i][key] - value).norm() <= 10 * tolerance * value.norm()
    sizes = [(place / "last.pt").stat().st_size for place in (folder, other)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)  # the tied table is in it once
