"""Trackers: the figures that they get, and that a failing tracker does not stop a run."""

import json
import sys
from types import SimpleNamespace

import pytest

from minigpt.run_log import cut_log, log_lines
from minigpt.settings.stages import TrainSettings
from minigpt.training.tracking import Tracker

LINE = {"step": 3, "epoch": 0.5, "train_loss": 2.0, "val_loss": None, "lr": 1e-3, "tokens": 90, "seconds": 1.5}


def tracker(folder, said=None, step=0, **settings):
    return Tracker(folder, TrainSettings(**settings), step, (said if said is not None else []).append)


def test_the_log_is_cut_back_to_a_step_and_loses_what_a_crash_cut_short(tmp_path):
    plain = tracker(tmp_path)
    for step in range(1, 6):
        plain.add({**LINE, "step": step}, {"tokens_per_second": 9.0})
    with open(tmp_path / "log.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 6, "epo')
    cut_log(tmp_path, 3)
    assert [line["step"] for line in log_lines(tmp_path / "log.jsonl")] == [1, 2, 3]
    assert json.loads((tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1]) == LINE


def test_tensorboard_gets_every_number(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    said = []
    board = tracker(tmp_path, said, tensorboard=True)
    board.add(LINE, {"tokens_per_second": 9.0})
    board.add({**LINE, "step": 4, "val_loss": 1.5}, {"tokens_per_second": 10.0})
    board.close()
    accumulator = events.EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    assert said == []
    assert [(e.step, e.value) for e in accumulator.Scalars("tokens_per_second")] == [(3, 9.0), (4, 10.0)]
    assert [(e.step, e.value) for e in accumulator.Scalars("val_loss")] == [(4, 1.5)]
    assert "step" not in accumulator.Tags()["scalars"]


def test_a_log_that_cannot_be_written_for_a_while_continues_afterwards(tmp_path, monkeypatch):
    said, path = [], tmp_path / "log.jsonl"
    run = tracker(tmp_path, said)
    run.add(LINE, {})
    path.write_text(path.read_text(encoding="utf-8") + '{"step": 4, "ep', encoding="utf-8")  # what a full disk leaves
    real, full = open, [True]

    def opened(name, *arguments, **options):
        if full and str(name).endswith("log.jsonl"):
            raise OSError(28, "No space left on device")
        return real(name, *arguments, **options)

    monkeypatch.setattr("builtins.open", opened)
    run.add({**LINE, "step": 4}, {})
    full.clear()
    run.add({**LINE, "step": 5}, {})
    monkeypatch.undo()
    assert [line["step"] for line in log_lines(path)] == [3, 5]
    assert len(said) == 1 and "No space left" in said[0]


class FakeWandb:
    """Has the interface of wandb; the methods named in `failing` raise errors."""

    def __init__(self, failing=()):
        self.failing, self.begun, self.logged, self.finished = failing, [], [], 0

    def init(self, **arguments):
        if "init" in self.failing:
            raise SystemExit("no key")  # as wandb does without a terminal to ask for the key
        self.begun.append(arguments)
        return SimpleNamespace(log=self.log, finish=self.finish)

    def log(self, figures, step):
        if "log" in self.failing:
            raise RuntimeError("network is down\nmore")
        self.logged.append((step, figures))

    def finish(self):
        self.finished += 1


def test_wandb_gets_the_figures_and_a_resumed_run_is_the_same_run(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for step in (0, 3, 0):
        run = tracker(tmp_path, step=step, wandb="minigpt")
        run.add({**LINE, "step": step + 1}, {})
        run.close()
    first, again, new = (begun["id"] for begun in fake.begun)
    assert first == again != new
    assert fake.begun[0]["project"] == "minigpt" and fake.begun[0]["config"]["n_layer"] == 12
    assert [step for step, _ in fake.logged] == [1, 4, 1] and fake.logged[0][1]["train_loss"] == 2.0
    assert fake.finished == 3


@pytest.mark.parametrize("failing", ["init", "log"])
def test_a_tracker_that_fails_is_reported_once_and_the_log_continues(tmp_path, monkeypatch, failing):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb([failing]))
    said = []
    run = tracker(tmp_path, said, wandb="minigpt")
    for step in (1, 2, 3):
        run.add({**LINE, "step": step}, {})
    run.close()
    assert len(said) == 1 and "WandB" in said[0] and "goes on without" in said[0]
    assert len(log_lines(tmp_path / "log.jsonl")) == 3


def test_a_tracker_that_is_not_installed_is_reported_with_the_command_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    said = []
    tracker(tmp_path, said, wandb="minigpt").close()
    assert "pip install wandb" in said[0]
