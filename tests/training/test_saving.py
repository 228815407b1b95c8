"""Checkpoints written while training goes on: their content, failures, and ends of a run meanwhile."""

import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from runs import TINY, arguments, finish, log_of, run_here, start, write_stages

import train
from minigpt.checkpoint import LAST, load_checkpoint
from minigpt.common.errors import UserError
from minigpt.settings.stages import TrainSettings
from minigpt.training import state
from minigpt.training.setup import TrainingRun

KILLED_RUN = Path(__file__).parents[1] / "helpers" / "killed_run.py"
SECONDS = 60  # after which a write that nobody releases gives up


@pytest.fixture
def new_run(tmp_path):
    """Function: a tiny `TrainingRun` of four validations, whose checkpoints are written in the background."""
    data = write_stages(tmp_path)["pretrain"]

    def make(background=True, out="out", **changes):
        given = {**TINY, "optimizer": "muon", "max_iters": 16, "keep_every": 4, **changes}
        run = TrainingRun(TrainSettings(data_dir=data, out_dir=str(tmp_path / out), **given), say=lambda line: None)
        assert not run.saves_in_background  # on a CPU
        run.saves_in_background = background
        return run

    return make


def patch_writing(monkeypatch, before):
    """Have before(name, step) called in the writing thread, before each file is written."""
    real = state.save_checkpoint

    def save(path, weights, config, settings, stage, tokenizer, progress, **more):
        before(path.name, progress["step"])
        real(path, weights, config, settings, stage, tokenizer, progress, **more)

    monkeypatch.setattr(state, "save_checkpoint", save)


def assert_same(left, right, where=""):
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert list(left) == list(right), where
        for key in set(left) - {"seconds", "out_dir"}:
            assert_same(left[key], right[key], f"{where} {key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for i, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{where} {i}")
    else:
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right, where


def test_files_written_while_training_goes_on_are_those_of_the_moment_of_saving(new_run, monkeypatch):
    """Each write of a validation begins when two more steps have been taken."""
    plain = new_run(background=False, out="plain")
    train.train(plain)
    run, later, waited = new_run(), {step: threading.Event() for step in (4, 8, 12)}, []

    def wait(name, step):
        if step in later:
            waited.append(later[step].wait(SECONDS))

    def take_step(run, real=train.train_step):
        done = real(run)
        if run.progress.step - 2 in later:
            later[run.progress.step - 2].set()
        return done

    patch_writing(monkeypatch, wait)
    monkeypatch.setattr(train, "train_step", take_step)
    train.train(run)
    assert all(waited) and len(waited) >= 6
    assert run.saved_step == 16 and run.saving is None
    names = {path.name for path in plain.out.iterdir()}
    assert names == {path.name for path in run.out.iterdir()} and len(names) == 8
    for name in names - {"log.jsonl"}:
        assert_same(load_checkpoint(run.out / name), load_checkpoint(plain.out / name), name)
        sizes = [(folder / name).stat().st_size for folder in (run.out, plain.out)]
        assert sizes[0] == pytest.approx(sizes[1], abs=1000)  # the tied table is in it once


@pytest.mark.parametrize("background", [True, False])
def test_a_failing_write_is_told_and_the_best_model_is_that_on_disk(new_run, monkeypatch, capsys, background):
    losses, told = iter([3.0, 2.0, 2.5, 2.6]), {}

    def fail(name, step):
        if (name, step) == ("ckpt.pt", 8):
            raise UserError("ckpt.pt could not be written")

    def validate(run):
        told[run.progress.step] = capsys.readouterr().out
        return next(losses)

    patch_writing(monkeypatch, fail)
    monkeypatch.setattr(train, "validate", validate)
    run = new_run(background)
    train.train(run)
    told["end"] = capsys.readouterr().out
    warned = [step for step, text in told.items() if "could not be written; training goes on" in text]
    assert warned == ([16] if background else [12]), "after the validation of step 12, or before"
    assert (run.progress.best_val_loss, run.progress.best_step) == (2.5, 12)
    assert load_checkpoint(run.out / "ckpt.pt")["progress"]["best_step"] == 12
    assert load_checkpoint(run.out / LAST)["progress"]["best_step"] == 12
    assert not (run.out / "step_000008.pt").exists() and run.saved_step == 16


@pytest.mark.parametrize("background", [True, False])
def test_a_run_whose_last_write_fails_ends_with_an_error_and_waits_for_it(new_run, monkeypatch, background):
    def fail(name, step):
        if step == 16:
            raise UserError(f"{name} could not be written")

    patch_writing(monkeypatch, fail)
    run = new_run(background)
    with pytest.raises(UserError, match="could not be written"):
        train.train(run)
    assert run.saved_step == load_checkpoint(run.out / LAST)["progress"]["step"] == 12


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_exception_while_a_checkpoint_is_written_loses_nothing(new_run, monkeypatch, error):
    raised = threading.Event()

    def wait(name, step):
        if (name, step) == (LAST, 8):
            assert raised.wait(SECONDS)
            time.sleep(0.1)  # a run that did not wait would now be at its end

    def take_step(run, real=train.train_step):
        if run.progress.step == 9:
            raised.set()
            raise error
        return real(run)

    patch_writing(monkeypatch, wait)
    monkeypatch.setattr(train, "train_step", take_step)
    run = new_run()
    with pytest.raises(error):
        train.train(run)
    assert load_checkpoint(run.out / LAST)["progress"]["step"] == 8
    assert not list(run.out.glob("*.partial"))


def test_steps_that_are_not_finite_end_a_run_with_the_step_that_is_on_disk(new_run, monkeypatch):
    """The write of step 8 goes on when the fifth step fails."""
    failing = threading.Event()
    patch_writing(monkeypatch, lambda name, step: step != 8 or failing.wait(SECONDS))
    run = new_run(eval_interval=8)
    right = run.loss

    def broken_later(*batch):
        if run.progress.step == 12:
            failing.set()
        return right(*batch) * (torch.nan if run.progress.step >= 8 else 1)

    run.loss = broken_later
    with pytest.raises(UserError, match=r"5 steps in a row.*last.pt is of step 8"):
        train.train(run)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize(
    ("when", "torchrun"),
    [
        ("write 8", ["--standalone"]),
        pytest.param(
            "step 6 0",
            ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", "--rdzv_id=1"],
            marks=pytest.mark.soak_only,
        ),
        pytest.param("step 2 1", ["--master_port=29517"], marks=pytest.mark.soak_only),
    ],
)
def test_torchrun_starts_killed_processes_again_and_the_run_goes_on(tmp_path, when, torchrun):
    """From step 4, or from the start, whose last.pt was written before the first step."""
    given = {"data_dir": write_stages(tmp_path)["pretrain"], "dropout": 0.0, "max_iters": 12}
    whole, folder = tmp_path / "whole", tmp_path / "run"
    run_here(**given, out_dir=str(whole))
    flags = [when, *arguments(**given, out_dir=folder)]
    out = finish(start(*flags, processes=2, script=KILLED_RUN, torchrun=[*torchrun, "--max_restarts=1"]))
    assert f"the run in {folder} goes on" in out
    assert ("the run begins at step 0 of 12" if when == "step 2 1" else "going on at step 4 of 12") in out
    lines, expected = log_of(folder), log_of(whole)
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    for name in ("train_loss", "tokens"):
        assert [line[name] for line in lines] == pytest.approx([line[name] for line in expected], abs=1e-4)
    names = {path.name for path in whole.iterdir()}
    assert {path.name for path in folder.iterdir()} == {*names, "launch.txt"}


@pytest.fixture
def torchrun(monkeypatch):
    """Function: set what torchrun tells a single process at its start number `restart`."""

    def set_environment(restart, run_id="mine"):
        told = {"RUN_ID": run_id, "RESTART_COUNT": restart, "MAX_RESTARTS": 3}
        for name, value in told.items():
            monkeypatch.setenv(f"TORCHELASTIC_{name}", str(value))
        monkeypatch.setenv("RANK", "0")

    return set_environment


def test_a_restart_goes_on_with_its_own_run_only(new_run, torchrun):
    torchrun(restart=0)
    older = new_run(background=False)
    train.train(older)
    # The same id, as of a user who gives --rdzv_id. The first start ends before it has put the older run aside.
    torchrun(restart=0)
    first = new_run(background=False, seed=3)
    (first.out / "old" / LAST).rename(first.out / LAST)
    torchrun(restart=1)
    second = new_run(background=False, seed=3)
    assert second.settings.init_from == "scratch" and second.progress.step == 0
    train.save_run(second, LAST)
    torchrun(restart=2)
    third = new_run(background=False, seed=3)
    assert third.settings.init_from == "scratch", "what it began from"
    assert third.launch == second.launch == first.launch != older.launch and third.saved_step == 0
    train.train(third)
    torchrun(restart=3)
    assert new_run(background=False, seed=3).progress.step == 16
    torchrun(restart=1, run_id="another")
    assert new_run(background=False, seed=3).progress.step == 0


def test_without_torchruns_restarts_a_run_leaves_no_trace_of_them(new_run):
    run = new_run(background=False, max_iters=4)
    train.train(run)
    assert run.launch is None and not (run.out / "launch.txt").exists()
    assert "launch" not in load_checkpoint(run.out / LAST)
