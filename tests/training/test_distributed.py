"""Runs of several processes, on the CPU over gloo, against the run of one."""

from types import SimpleNamespace

import pytest
import torch
from ranks import run_ranks
from runs import arguments, log_of, run_here, write_stages
from tiny import ARCHITECTURE_FIELDS, tiny_model

import train
from minigpt.checkpoint import load_checkpoint
from minigpt.common.errors import UserError
from minigpt.training.distributed import check_nccl, shard
from minigpt.training.pipeline import Pipeline
from minigpt.training.tensor_parallel import TensorParallel

# Dropout differs between processes, so it is off. 7 rows a batch do not divide by two.
STEP = {"dropout": 0.0, "batch_size": 7, "max_iters": 10, "eval_interval": 5}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Function: (folder, output) of a run with some settings, made once."""
    root, made = tmp_path_factory.mktemp("runs"), {}
    data = write_stages(root)["pretrain"]

    def run(processes, **settings):
        key = str((processes, settings))
        if key not in made:
            folder = root / f"run{len(made)}"
            made[key] = folder, run_in(folder, data, processes, **settings)
        return made[key]

    run.data = data
    return run


def run_in(folder, data, processes, **settings):
    """What a run of so many processes in a folder printed."""
    given = {"data_dir": data, "out_dir": str(folder), **STEP, **settings}
    return run_here(**given) if processes == 1 else run_ranks(folder / "output", processes, arguments(**given))


def assert_same_curve(folder, other, tolerance):
    left, right = log_of(folder), log_of(other)
    assert [line["step"] for line in left] == [line["step"] for line in right]
    for a, b in zip(left, right, strict=True):
        assert a["tokens"] == b["tokens"] and a["epoch"] == b["epoch"]
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=tolerance)
        assert (a["val_loss"] is None) == (b["val_loss"] is None)
        assert a["val_loss"] is None or a["val_loss"] == pytest.approx(b["val_loss"], abs=tolerance)


@pytest.mark.parametrize(
    ("architecture", "optimizer", "tolerance", "accumulation", "fsdp"),
    [
        ("gpt2", "adamw", 1e-4, 1, False),  # the rows of a batch are shared out
        ("qwen3", "muon", 1e-3, 2, True),  # whole batches are
        pytest.param("qwen3", "muon", 1e-3, 1, False, marks=pytest.mark.soak_only),
        pytest.param("gpt2", "adamw", 1e-4, 2, False, marks=pytest.mark.soak_only),
        pytest.param("gpt2", "adamw", 1e-4, 2, True, marks=pytest.mark.soak_only),
        pytest.param("gpt2", "muon", 1e-3, 2, False, marks=pytest.mark.soak_only),
        pytest.param("gpt2", "muon", 1e-3, 2, True, marks=pytest.mark.soak_only),
    ],
)
def test_two_processes_give_the_curve_of_one(runs, architecture, optimizer, tolerance, accumulation, fsdp):
    settings = {"optimizer": optimizer, "gradient_accumulation_steps": accumulation, "learning_rate": 3e-3}
    settings.update(ARCHITECTURE_FIELDS[architecture])
    alone, _ = runs(1, **settings)
    together, out = runs(2, fsdp=fsdp, **settings)
    assert ("FSDP2" if fsdp else "DDP") in out and "FutureWarning" not in out
    assert log_of(alone)[-1]["train_loss"] < log_of(alone)[0]["train_loss"] - 0.1
    assert_same_curve(together, alone, tolerance)
    sizes = [(folder / "ckpt.pt").stat().st_size for folder in (together, alone)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)  # the tied table is in it once


@pytest.mark.parametrize("optimizer", [pytest.param("adamw", marks=pytest.mark.soak_only), "muon"])
def test_a_run_goes_from_process_to_processes_and_shards_and_back(runs, tmp_path, optimizer):
    """Ten steps in four parts: two processes (DDP), one, two with shards (FSDP2), one."""
    settings = {"optimizer": optimizer, "learning_rate": 3e-3, "gradient_accumulation_steps": 2, "decay_lr": False}
    tolerance = 1e-4 if optimizer == "adamw" else 1e-3
    whole, _ = runs(1, **settings)
    folder, init_from = tmp_path / "run", "scratch"
    for processes, fsdp, until in ((2, False, 4), (1, False, 6), (2, True, 8), (1, False, 10)):
        part = {"init_from": init_from, "max_iters": until, "fsdp": fsdp}
        run_in(folder, runs.data, processes, **{**settings, **part})
        init_from = "resume"
    losses, expected = ([line["train_loss"] for line in log_of(place)] for place in (folder, whole))
    assert losses == pytest.approx(expected, abs=tolerance)
    content, expected = load_checkpoint(folder / "last.pt"), load_checkpoint(whole / "last.pt")
    assert content["model"].keys() == expected["model"].keys()
    for key, value in expected["model"].items():
        torch.testing.assert_close(content["model"][key], value, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("name", ["fsdp", "tensor_parallel", "pipeline_parallel"])
def test_gpus_without_nccl_are_refused_where_a_model_is_divided(name, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    gpu = torch.device("cuda")
    run = SimpleNamespace(device=gpu, model=tiny_model(), processes=SimpleNamespace(parts=2), data=None)
    divide = {
        "fsdp": lambda: shard(run.model, gpu),
        "tensor_parallel": lambda: TensorParallel(run),
        "pipeline_parallel": lambda: Pipeline.check(SimpleNamespace(run=run, processes=run.processes)),
    }[name]
    run.data = SimpleNamespace(meta={"stage": "pretrain"})
    with pytest.raises(UserError, match=f"{name} needs NCCL between GPUs"):
        divide()
    check_nccl(name, torch.device("cpu"))


@pytest.mark.parametrize("flag", ["--batch_size=many", "--n_head=5", "--data_dir=nowhere"])
@pytest.mark.parametrize("rank", ["0", "1"])
def test_other_processes_leave_the_first_time_to_say_what_is_wrong(flag, rank, monkeypatch):
    """torchrun ends them as soon as the first has ended."""
    waits = []
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr("sys.argv", ["train.py", flag])
    monkeypatch.setattr("time.sleep", waits.append)
    with pytest.raises(UserError, match=r"batch_size|n_head|nowhere"):
        train.set_up_run()
    # A thread of an earlier test may poll meanwhile.
    assert waits.count(train.OTHERS_WAIT_SECONDS) == int(rank)
