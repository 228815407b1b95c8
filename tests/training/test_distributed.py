"""Runs of several processes, on the CPU over gloo, against the run of one."""

import pytest
import torch
from runs import arguments, finish, log_of, start, write_stages

from minigpt.checkpoint import load_checkpoint

# Dropout differs between processes, so it is off. 7 rows a batch do not divide by two.
STEP = {"dropout": 0.0, "batch_size": 7, "max_iters": 10, "eval_interval": 5}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Function: (folder, output) of a run with some settings, made once."""
    root, made = tmp_path_factory.mktemp("runs"), {}
    data = write_stages(root)

    def run(processes, name=None, **settings):
        key = name or str((processes, settings))
        if key not in made:
            folder = root / f"run{len(made)}"
            flags = arguments(data_dir=data["pretrain"], out_dir=folder, **{**STEP, **settings})
            made[key] = folder, finish(start(*flags, processes=processes))
        return made[key]

    return run


def assert_same_curve(folder, other, tolerance):
    left, right = log_of(folder), log_of(other)
    assert [line["step"] for line in left] == [line["step"] for line in right]
    for a, b in zip(left, right, strict=True):
        assert a["tokens"] == b["tokens"] and a["epoch"] == b["epoch"]
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=tolerance)
        assert (a["val_loss"] is None) == (b["val_loss"] is None)
        assert a["val_loss"] is None or a["val_loss"] == pytest.approx(b["val_loss"], abs=tolerance)


@pytest.mark.parametrize(
    ("optimizer", "tolerance", "accumulation", "fsdp"),
    [
        ("adamw", 1e-4, 1, False),  # the rows of a batch are shared out
        ("adamw", 1e-4, 2, False),  # whole batches are
        ("adamw", 1e-4, 2, True),
        ("muon", 1e-3, 2, False),
        ("muon", 1e-3, 2, True),
    ],
)
def test_two_processes_give_the_curve_of_one(runs, optimizer, tolerance, accumulation, fsdp):
    settings = {"optimizer": optimizer, "gradient_accumulation_steps": accumulation, "learning_rate": 3e-3}
    alone, _ = runs(1, **settings)
    together, out = runs(2, fsdp=fsdp, **settings)
    assert ("FSDP2" if fsdp else "DDP") in out
    assert log_of(alone)[-1]["train_loss"] < log_of(alone)[0]["train_loss"] - 0.1
    assert_same_curve(together, alone, tolerance)
    sizes = [(folder / "ckpt.pt").stat().st_size for folder in (together, alone)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)  # the tied table is in it once


@pytest.mark.parametrize("optimizer", [pytest.param("adamw", marks=pytest.mark.soak_only), "muon"])
def test_a_checkpoint_goes_from_shards_to_one_process_and_back(runs, optimizer):
    settings = {"optimizer": optimizer, "learning_rate": 3e-3, "gradient_accumulation_steps": 2}
    alone, _ = runs(1, **settings)
    tolerance = 1e-4 if optimizer == "adamw" else 1e-3
    for first, then in (((2, True), (1, False)), ((2, False), (2, True))):
        name = f"{optimizer}{first}{then}"
        folder, _ = runs(first[0], name, fsdp=first[1], decay_lr=False, **{**settings, "max_iters": 5})
        again = arguments(
            data_dir=alone.parent / "pretrain", out_dir=folder, init_from="resume", fsdp=then[1], decay_lr=False,
            **{**STEP, **settings},
        )  # fmt: skip
        finish(start(*again, processes=then[0]))
        whole, _ = runs(1, decay_lr=False, **settings)
        assert_same_curve(folder, whole, tolerance)
        content, expected = load_checkpoint(folder / "last.pt"), load_checkpoint(whole / "last.pt")
        assert content["model"].keys() == expected["model"].keys()
        for key, value in expected["model"].items():
            torch.testing.assert_close(content["model"][key], value, rtol=0, atol=10 * tolerance)
