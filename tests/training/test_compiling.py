"""Compiled training: one graph without a break for each bucket, what buckets add, and the way back where it fails."""

import pytest
import torch
from runs import TINY
from tiny import ARCHITECTURE_FIELDS, random_ids, write_rows
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

import model
from data_utils import StepRows, TrainingData, fit_batch, make_batch
from minigpt.checkpoint import load_checkpoint
from minigpt.common.errors import UserError
from minigpt.settings.stages import TrainSettings
from minigpt.training import compiling, setup
from minigpt.training.compiling import choose_buckets, compute_or_undo
from minigpt.training.distributed import Processes
from minigpt.training.monitor import Monitor
from minigpt.training.setup import TrainingRun
from minigpt.training.validation import validate
from model import GPT, GPTConfig, kept_indices
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
        shapes.update(tuple(batch[0].shape) for batch in rows.batches)
    return shapes


@pytest.fixture
def no_buckets(monkeypatch):
    monkeypatch.setattr(setup, "choose_buckets", lambda settings, compiling: None)


@pytest.fixture
def narrow_buckets(monkeypatch):
    """Ten buckets, more than the compiler's usual limit of graphs, which is 8."""
    monkeypatch.setattr(compiling, "BUCKETS", 10)


def test_each_bucket_of_an_epoch_is_one_graph_without_a_break(settings, backend, architecture, narrow_buckets, capsys):
    trainer = TrainingRun(settings(n_layer=2, batch_tokens=0, **ARCHITECTURE_FIELDS[architecture]))
    assert len(backend.graphs) == 1, "the bucket of the first batch is tried"
    shapes = shapes_of_an_epoch(trainer)
    assert len(shapes) > 8 and shapes <= trainer.data.shapes and not counters["graph_break"]
    assert len(backend.graphs) == len(shapes) and trainer.model.trunk.known == shapes
    assert capsys.readouterr().out.count("compiling for batches of") == len(shapes)
    validate(trainer)
    trainer.progress.epoch = 0
    shapes_of_an_epoch(trainer)
    assert len(backend.graphs) == len(shapes) and not counters["graph_break"] and not trainer.model.trunk.failure
    x, y, mask, _ = trainer.data.step((0, 0)).batches[0]
    add_gradients(trainer, [(x[:1], y[:1], mask[:1])], 1)  # of another shape: plain
    assert len(backend.graphs) == len(shapes)


@pytest.mark.parametrize(("compiling", "timed"), [("on", 1), ("off", 0)])
def test_attention_is_timed_only_where_batches_have_few_shapes(settings, backend, monkeypatch, compiling, timed):
    calls = []
    monkeypatch.setattr(setup, "choose_attention", lambda *arguments: calls.append(arguments))
    TrainingRun(settings(compile=compiling))
    assert len(calls) == timed


def test_where_another_process_cannot_compile_no_process_has_buckets(settings, backend, monkeypatch):
    monkeypatch.setattr(Processes, "gather", lambda self, value: [value, (False, "Triton is not installed")])
    monkeypatch.setattr(setup, "merge_passes", lambda run: 1)
    run = TrainingRun(settings())
    assert run.data.shapes is None and not backend.graphs


@pytest.mark.parametrize("changes", [{"optimizer": "mezo", "grad_clip": 0.0}, {"method": "lora"}])
def test_other_ways_to_train_have_one_graph_a_bucket_too(settings, backend, tmp_path, changes):
    if "method" in changes:
        train(TrainingRun(settings(compile="off", max_iters=1, eval_interval=1)))
        changes = {**changes, "init_from": str(tmp_path / "out" / "ckpt.pt"), "out_dir": str(tmp_path / "lora")}
    trainer = TrainingRun(settings(**changes))
    shapes = shapes_of_an_epoch(trainer)
    validate(trainer)
    assert len(backend.graphs) == len(shapes) == 6 and not counters["graph_break"] and not trainer.model.trunk.failure


@pytest.mark.parametrize("optimizer", ["lomo", "mezo", "adamw"])
def test_a_step_with_kept_indices_is_the_plain_step(settings, optimizer, tmp_path):
    """Uncompiled, as on a GPU without Triton: the weights are within 1e-6."""
    made = settings(compile="off", dropout=0.0, optimizer=optimizer, grad_clip=0.0, learning_rate=1e-3)
    weights = []
    for has_kept in (False, True):
        trainer = TrainingRun(made)
        batches = trainer.data.step((0, 0)).batches
        if has_kept:
            batches = [[x, y, mask, kept_indices(mask)[0]] for x, y, mask in batches]
        trainer.data.step = lambda position, batches=batches: StepRows(batches, (0, 1), 1, 1, 1)
        train_step(trainer)
        train_step(trainer)
        weights.append([p.detach() for p in trainer.parameters()])
    for one, two in zip(*weights, strict=True):
        torch.testing.assert_close(two, one, rtol=0, atol=1e-6)


def losses_of_an_epoch(trainer):
    """The mean loss of each step of an epoch."""
    losses = []
    while trainer.progress.epoch == 0:
        train_step(trainer)
        losses.append(trainer.progress.loss_sum / trainer.progress.loss_tokens)
        trainer.progress.loss_sum, trainer.progress.loss_tokens = 0.0, 0
    return losses


@pytest.mark.parametrize("objective", ["causal", "mlm"])
def test_buckets_train_as_plain_batches_of_the_same_rows_do(settings, backend, narrow_buckets, objective, tmp_path):
    """The losses of all steps within 1e-4, the weights after them within 1e-3 (AdamW's steps are of 3e-3)."""
    same = {
        "max_iters": 67,
        "learning_rate": 3e-3,
        "batch_tokens": 0,
        "batch_size": 3,
        "dropout": 0.0,
        "objective": objective,
        "sampling": "random",
    }
    runs = [TrainingRun(settings(compile=c, out_dir=str(tmp_path / c), **same)) for c in ("on", "off")]
    assert runs[0].data.shapes and not runs[1].data.shapes
    ours, plain = map(losses_of_an_epoch, runs)
    assert len(ours) == 67 and ours[-1] < ours[0] - 0.05  # 200 rows: the last batch has two
    assert ours == pytest.approx(plain, abs=1e-4)
    for a, b in zip(*(run.model.parameters() for run in runs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)


def test_a_run_in_buckets_goes_on_in_the_middle_of_an_epoch_with_the_very_numbers(settings, backend, tmp_path):
    def run(folder, stop_at=None, **changes):
        changes = {"max_iters": 9, "eval_interval": 100, "gradient_accumulation_steps": 2, **changes}
        trainer = TrainingRun(settings(out_dir=str(tmp_path / folder), **changes))
        trainer.stop_requested = lambda: trainer.progress.step == stop_at
        train(trainer)
        return trainer

    whole = run("whole")
    assert run("parts", stop_at=5).progress.step == 5
    again = run("parts", init_from="resume")
    assert again.progress.epoch == 0 and again.progress.tokens == whole.progress.tokens
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("n_rows", [1, 3])
def test_what_fills_a_batch_has_no_effect_on_the_gradients(settings, n_rows, architecture):
    """Within 1e-5 of those of the plain batch; whatever ids the filling rows have."""
    trainer = TrainingRun(settings(compile="off", dropout=0.0, **ARCHITECTURE_FIELDS[architecture]))
    data, gpt = trainer.data, trainer.model
    plain = make_batch(data.train[:n_rows], data.meta)
    x, y, mask = fit_batch(plain, 6, 128)
    other = torch.where(torch.arange(6)[:, None] < n_rows, x, 7)

    def gradients(*batch):
        gpt.zero_grad()
        loss = gpt.loss_sum(*batch)
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in gpt.parameters())]

    expected = gradients(*plain)
    for filled in ((x, y, mask, kept_indices(mask)[0]), (other, y, mask, kept_indices(mask)[0]), (x, y, mask)):
        for ours, theirs in zip(gradients(*filled), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_shares_of_a_step_have_the_gradients_of_the_whole(settings, accumulation):
    """Within 1e-5, where they share each batch, and where each has batches of its own."""
    made = settings(compile="off", dropout=0.0, gradient_accumulation_steps=accumulation)
    trainer = TrainingRun(made)
    whole, *shares = (TrainingData(made, *place, buckets=[64, 128]) for place in ((0, 1), (0, 2), (1, 2)))
    for position in ((0, 0), (0, len(whole.order.batches(0)) - accumulation)):  # the last batch is not full
        found = []
        for datas in ([whole], shares):
            trainer.zero_grad()
            for data in datas:
                add_gradients(trainer, data.step(position).batches, 100)
            found.append([p.grad for p in trainer.parameters()])
        for one, two in zip(*found, strict=True):
            torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5)


def test_no_shape_of_a_step_on_a_gpu_depends_on_numbers_that_it_computes(architecture, monkeypatch):
    """On fake tensors, which have shapes and no numbers, so that whatever asks for one is an error. They are of the
    kind cpu, since torch without CUDA can index no others, but take the way of a GPU."""
    monkeypatch.setattr(model, "is_eager_on_cpu", lambda x: False)
    with FakeTensorMode():
        gpt = GPT(GPTConfig(64, 320, n_layer=2, n_embd=32, **{"n_head": 4, **ARCHITECTURE_FIELDS[architecture]}))
        x, mask = torch.empty(4, 64, dtype=torch.int64), torch.empty(4, 64, dtype=torch.bool)
        loss = gpt.loss_sum(x, x, mask, torch.empty(256, dtype=torch.int64))
        torch.autograd.grad(loss, list(gpt.parameters()))
        with pytest.raises(DynamicOutputShapeException):
            gpt.loss_sum(x, x, mask)


def test_without_buckets_all_shapes_of_an_epoch_share_one_graph(settings, backend, architecture, no_buckets):
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


def test_long_rows_are_tried_two_at_a_time(settings, backend, monkeypatch, no_buckets):
    monkeypatch.setattr(compiling, "TRIAL_TOKENS", 100)
    trainer = TrainingRun(settings(batch_tokens=0, batch_size=2))
    shapes_of_an_epoch(trainer)
    assert len(backend.graphs) == 1


def test_what_has_no_buckets(settings):
    assert choose_buckets(settings(), compiling=True) == compiling.BUCKETS
    assert choose_buckets(settings(), compiling=False) is None
    assert choose_buckets(settings(method="prefix"), compiling=True) is None
    assert choose_buckets(settings(replay_share=0.1), compiling=True) is None


@pytest.mark.parametrize("fails_in", ["forward", "backward"])
@pytest.mark.parametrize("at_start", [True, False])
def test_compiled_code_that_fails_is_given_up_with_the_reason_and_costs_nothing(
    settings, backend, capsys, tmp_path, monkeypatch, fails_in, at_start
):
    monkeypatch.setattr(setup, "choose_buckets", lambda settings, compiling: [64, 128])  # with either the same dropout
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
