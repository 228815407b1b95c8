"""Compiled training: one graph without a break over all shapes of an epoch, and the way back where it fails."""

import pytest
import torch
from runs import TINY
from tiny import ARCHITECTURE_FIELDS, random_ids, write_rows
from torch._dynamo.utils import counters

from minigpt.checkpoint import load_checkpoint
from minigpt.common.errors import UserError
from minigpt.settings.stages import TrainSettings
from minigpt.training import compiling
from minigpt.training.compiling import compute_or_undo
from minigpt.training.monitor import Monitor
from minigpt.training.setup import TrainingRun
from minigpt.training.validation import validate
from train import add_gradients, train, train_step

compile_it = torch.compile


class Backend:
    """A compiler that notes the graphs that it gets, and fails when it is told to; the graphs run as they are."""

    def __init__(self):
        self.graphs, self.fails_in = [], None

    def __call__(self, graph, inputs):
        self.graphs.append([tuple(i.shape) for i in inputs if isinstance(i, torch.Tensor)])

        def run(*arguments):
            if self.fails_in == "forward":
                raise RuntimeError("no kernel for this\nmore of it")
            outputs = graph.forward(*arguments)
            if self.fails_in == "backward":
                outputs[0].register_hook(self.fail)
            return outputs

        return run

    def fail(self, grad):
        raise RuntimeError("no kernel for this\nmore of it")


@pytest.fixture
def backend(monkeypatch):
    torch._dynamo.reset()
    counters.clear()
    made = Backend()
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_it(function, backend=made, **options))
    yield made
    torch._dynamo.reset()


@pytest.fixture
def settings(tmp_path):
    """Settings of a run over rows of very different lengths, which a test may change."""
    lengths = [5 + (37 * i) % 120 for i in range(240)]
    rows = [random_ids(n, seed=i).tolist() for i, n in enumerate(lengths)]
    write_rows(tmp_path / "rows", {"train": rows[:200], "val": rows[200:]}, block_size=128)

    def make(**changes):
        run = TrainSettings(data_dir=str(tmp_path / "rows"), out_dir=str(tmp_path / "out"))
        given = {
            **TINY,
            "n_layer": 1,
            "block_size": 128,
            "batch_size": 4,
            "compile": "on",
            "batch_tokens": 512,
            **changes,
        }
        for key, value in given.items():
            setattr(run, key, value)
        return run

    return make


def shapes_of_an_epoch(trainer):
    """The shapes of the batches that a whole epoch trains on, each trained on."""
    shapes = set()
    while trainer.progress.epoch == 0:
        rows, _ = train_step(trainer)
        shapes.update(tuple(x.shape) for x, _, _ in rows.batches)
    return shapes


def test_all_shapes_of_an_epoch_share_one_graph_without_a_break(settings, backend, architecture):
    trainer = TrainingRun(settings(n_layer=2, **ARCHITECTURE_FIELDS[architecture]))
    assert len(backend.graphs) == 1
    shapes = shapes_of_an_epoch(trainer)
    assert len(shapes) > 15 and not counters["graph_break"]
    assert len(backend.graphs) == 1, "the graph that was tried is the one that trains"
    validate(trainer)
    assert len(backend.graphs) == 2  # without gradients, another one
    x, y, mask = trainer.data.step((0, 0)).batches[0]
    add_gradients(trainer, [(x[:1], y[:1], mask[:1])], 1)
    assert len(backend.graphs) == 3  # to the compiler, one row is no size but a constant
    shapes_of_an_epoch(trainer)
    validate(trainer)
    assert len(backend.graphs) == 3 and not counters["graph_break"]


def test_long_rows_are_tried_two_at_a_time(settings, backend, monkeypatch):
    monkeypatch.setattr(compiling, "TRIAL_TOKENS", 100)
    trainer = TrainingRun(settings(batch_tokens=0, batch_size=2))
    shapes_of_an_epoch(trainer)
    assert len(backend.graphs) == 1


@pytest.mark.parametrize("fails_in", ["forward", "backward"])
@pytest.mark.parametrize("at_start", [True, False])
def test_compiled_code_that_fails_is_given_up_with_the_reason_and_costs_nothing(
    settings, backend, capsys, tmp_path, monkeypatch, fails_in, at_start
):
    plain = settings(compile="off", out_dir=str(tmp_path / "plain"), gradient_accumulation_steps=2)
    train(TrainingRun(plain))
    backend.fails_in = fails_in if at_start else None
    trainer = TrainingRun(settings(gradient_accumulation_steps=2))
    assert ("compile True" in capsys.readouterr().out) != at_start
    done = []

    def fail_within_a_step(monitor, i, count):
        done.append(i)
        if len(done) == 5:  # after the first batch of the third step
            backend.fails_in = fails_in

    monkeypatch.setattr(Monitor, "show_batch", fail_within_a_step)
    train(trainer)
    assert "RuntimeError: no kernel for this" in trainer.model.trunk.failure
    out = capsys.readouterr().out
    assert at_start or "note: compiled code failed (RuntimeError: no kernel for this); going on without" in out
    theirs, ours = (load_checkpoint(f"{folder}/last.pt")["model"] for folder in (plain.out_dir, trainer.out))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-6)


def test_a_lack_of_memory_in_compiled_code_is_said_as_such(settings, backend, monkeypatch):
    trainer = TrainingRun(settings())

    def full(idx):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.model.trunk, "compiled", full)
    with pytest.raises(UserError, match="batch_tokens"):
        train_step(trainer)
    assert trainer.model.trunk.failure is None


def test_in_one_of_several_processes_a_failing_backward_pass_ends_the_run(settings, backend):
    trainer = TrainingRun(settings())
    trainer.processes.count = 2

    def broken():
        raise RuntimeError("no kernel for this")

    with pytest.raises(UserError, match=r"no kernel for this.*--compile=off"):
        compute_or_undo(trainer, broken)
