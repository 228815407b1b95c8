"""Parameter groups, weight decay, the learning-rate schedule, and Muon compared with torch's."""

import pytest
import torch
from runs import TINY, write_stages
from tiny import tiny_model

from minigpt.settings.stages import TrainSettings
from minigpt.training import optim
from minigpt.training.distributed import Processes
from minigpt.training.optim import Muon, lr_scale, make_optimizers, orthogonalize, set_learning_rate
from minigpt.training.setup import TrainingRun
from train import train_step

pytestmark = pytest.mark.numeric

SETTINGS = {"learning_rate": 0.01, "muon_learning_rate": 0.05, "weight_decay": 0.1, "beta1": 0.8, "beta2": 0.97}

SHAPES = [{}, {"bias": True}, {"architecture": "qwen3"}]


def groups_of(model, optimizer):
    """[({parameter names}, optimizer's class, group)]"""
    names = {id(p): name for name, p in model.named_parameters()}
    return [
        ({names[id(p)] for p in group["params"]}, type(o).__name__, group)
        for o in make_optimizers(model, TrainSettings(optimizer=optimizer, **SETTINGS))
        for group in o.param_groups
    ]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_is_in_exactly_one_group(optimizer, shape):
    model = tiny_model(**shape)
    placed = [name for names, _, _ in groups_of(model, optimizer) for name in names]
    assert sorted(placed) == sorted(name for name, _ in model.named_parameters())
    held = [
        p
        for o in make_optimizers(model, TrainSettings(optimizer=optimizer))
        for g in o.param_groups
        for p in g["params"]
    ]
    assert len(held) == len({id(p) for p in held})  # the tied weight once


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_muon_takes_the_matrices_of_the_blocks_and_nothing_else(shape):
    model = tiny_model(**shape)
    by_muon = set.union(*(names for names, kind, _ in groups_of(model, "muon") if kind == "Muon"))
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert by_muon == {f"h.{i}.{layer}.weight" for i in range(2) for layer in layers}
    assert {kind for _, kind, _ in groups_of(model, "adamw")} == {"LocalAdamW"}


def test_optimizers_have_the_rates_and_moments_of_the_settings():
    for _, kind, group in groups_of(tiny_model(), "muon"):
        assert group["lr"] == (0.05 if kind == "Muon" else 0.01)
        if kind == "AdamW":
            assert group["betas"] == (0.8, 0.97)


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weight_decay_shrinks_matrices_only(optimizer, shape):
    model = tiny_model(**shape)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for o in make_optimizers(model, TrainSettings(optimizer=optimizer, **SETTINGS)):
        o.step()
    for name, p in model.named_parameters():
        rate = 0.05 if optimizer == "muon" and name.startswith("h.") else 0.01
        kept = 1 - rate * 0.1 if p.dim() == 2 else 1.0
        torch.testing.assert_close(p.detach(), before[name] * kept, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_few_steps_lower_the_loss(optimizer, architecture):
    model = tiny_model(architecture=architecture)
    ids = torch.arange(32).repeat(4, 1)
    optimizers, losses = make_optimizers(model, TrainSettings(optimizer=optimizer, learning_rate=0.01)), []
    for _ in range(10):
        loss = model.token_losses(ids[:, :-1], ids[:, 1:], torch.ones(4, 31, dtype=torch.bool)).mean()
        model.zero_grad()
        loss.backward()
        for o in optimizers:
            o.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1 / 11),  # warm-up of 10 steps, none of them at 0
        (4, 5 / 11),
        (9, 10 / 11),
        (10, 1.0),
        (30, 0.7),  # a third of the decay
        (40, 0.55),  # half of it
        (70, 0.1),
        (500, 0.1),
    ],
)
def test_the_schedule_warms_up_and_falls_in_a_line(step, expected):
    settings = TrainSettings(warmup_iters=10, min_lr_ratio=0.1)
    assert lr_scale(step, 70, settings) == pytest.approx(expected)


def test_without_decay_the_rate_stays_at_its_peak():
    settings = TrainSettings(warmup_iters=10, decay_lr=False)
    assert lr_scale(4, 70, settings) == pytest.approx(5 / 11)
    assert [lr_scale(step, 70, settings) for step in (10, 40, 69, 500)] == [1.0] * 4


@pytest.mark.parametrize("max_iters", [1, 2, 5, 20])
def test_warm_up_leaves_room_for_the_peak_in_a_short_run(max_iters):
    scales = [lr_scale(step, max_iters, TrainSettings(warmup_iters=200)) for step in range(max_iters)]
    assert max(scales) == 1.0
    assert min(scales) > 0


def test_set_learning_rate_scales_each_groups_own_peak_and_never_compounds():
    optimizers = make_optimizers(tiny_model(), TrainSettings(optimizer="muon", **SETTINGS))
    for scale in (0.5, 0.5, 0.1):
        set_learning_rate(optimizers, scale)
    for o in optimizers:
        for group in o.param_groups:
            assert group["lr"] == pytest.approx(0.005 if isinstance(o, torch.optim.Muon) else 0.001)


def test_muon_makes_the_same_steps_as_torchs_muon():
    generator = torch.Generator().manual_seed(0)
    shapes = [(24, 8), (8, 24), (24, 8), (16, 16)]
    ours, theirs = ([torch.nn.Parameter(torch.zeros(s)) for s in shapes] for _ in range(2))
    options = {"lr": 0.1, "momentum": 0.95, "weight_decay": 0.1}
    optimizers = [Muon(ours, torch.bfloat16, **options), torch.optim.Muon(theirs, **options)]
    for _ in range(3):
        for pair in zip(ours, theirs, strict=True):
            gradient = torch.randn(pair[0].shape, generator=generator)
            for p in pair:
                p.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0.03)  # three steps of 0.1, in bfloat16


@pytest.mark.parametrize("shape", [(3, 24, 8), (2, 8, 24)])
def test_orthogonalizing_keeps_singular_vectors_and_sets_singular_values_near_1(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 100
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonalize(matrices, torch.float32)
    singular = u.mT @ result @ v.mT
    diagonal = singular.diagonal(dim1=1, dim2=2)
    assert (diagonal > 0.6).all() and (diagonal < 1.3).all()
    torch.testing.assert_close(singular, torch.diag_embed(diagonal), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 12, 48), (3, 48, 12), (2, 12, 24), (2, 12, 23), (1, 16, 16)])
@pytest.mark.parametrize("rank", [1, 4, 12])
def test_iterating_on_the_gram_matrix_equals_iterating_on_the_matrix(shape, rank):
    torch.manual_seed(0)
    noise = 1e-3 * torch.randn(shape)
    matrices = torch.randn(shape[0], shape[1], rank) @ torch.randn(shape[0], rank, shape[2]) + noise
    # In float64 every matrix is iterated on directly.
    expected = orthogonalize(matrices, torch.float64).float()
    torch.testing.assert_close(orthogonalize(matrices, torch.float32), expected, rtol=1e-3, atol=2e-4)


MATRICES = [(24, 8), (8, 24), (16, 16), (24, 8), (8, 24), (12, 16)]


def new_muon(seed=0):
    """A `Muon` of random matrices with gradients, and the matrices."""
    generator = torch.Generator().manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in MATRICES]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    return Muon(params, torch.float32, lr=0.1, momentum=0.9, weight_decay=0.1), params


@pytest.mark.parametrize("stacked", [2**26, 400], ids=["whole stacks", "stacks in parts"])
def test_muons_steps_on_lists_equal_those_of_one_matrix_after_the_other(monkeypatch, stacked):
    monkeypatch.setattr(optim, "MAX_STACKED_NUMBERS", stacked)
    muon, params = new_muon()
    left_out = params[3]  # it has no gradient
    left_out.grad = None
    expected = [p.detach().clone() for p in params]
    for _ in range(3):
        muon.step()
    for p, q in zip(params, expected, strict=True):
        buffer = torch.zeros_like(q)
        for _ in range(3 if p is not left_out else 0):
            buffer = 0.9 * buffer + 0.1 * p.grad
            update = orthogonalize((0.1 * p.grad + 0.9 * buffer)[None], torch.float32)[0]
            q = q * (1 - 0.1 * 0.1) - 0.1 * max(1, q.shape[0] / q.shape[1]) ** 0.5 * update
        torch.testing.assert_close(p.detach(), q, rtol=0, atol=1e-5)


def test_muons_updates_in_bfloat16_are_added_as_lists_of_the_parameters_type(monkeypatch):
    """Of two types torch adds one matrix after the other. The weights are the same bits."""
    muon, params = new_muon()
    muon.dtype = torch.bfloat16
    expected, added, add = [p.detach().clone() for p in params], [], torch._foreach_add_

    def note(tensors, others, alpha):
        added.extend((p, u.clone(), alpha) for p, u in zip(tensors, others, strict=True))
        add(tensors, others, alpha=alpha)

    monkeypatch.setattr(torch, "_foreach_add_", note)
    muon.step()
    assert {id(p) for p, *_ in added} == set(map(id, params))
    for p, update, alpha in added:
        (place,) = (i for i, other in enumerate(params) if other is p)
        assert update.dtype == torch.float32 and torch.equal(update, update.bfloat16().float())
        assert torch.equal(p, (expected[place] * (1 - 0.1 * 0.1)).add(update.bfloat16(), alpha=alpha))


class Compiler:
    """A backend of torch.compile that notes its graphs, which run as they are or fail."""

    def __init__(self, monkeypatch):
        self.graphs, self.fails, compile_it = 0, False, torch.compile
        torch._dynamo.reset()
        monkeypatch.setattr(torch, "compile", lambda function, **more: compile_it(function, backend=self, **more))

    def __call__(self, graph, inputs):
        self.graphs += 1
        return self.fail if self.fails else graph.forward

    def fail(self, *inputs):
        raise RuntimeError("no kernel for this\nmore of it")


def test_muon_compiles_one_graph_a_shape_before_the_first_step(monkeypatch):
    compiler, said = Compiler(monkeypatch), []
    (plain, expected), (compiled, params) = new_muon(), new_muon()
    compiled.compile(Processes(), said.append)
    for _ in range(2):
        plain.step()
        compiled.step()
    assert compiler.graphs == len({tuple(sorted(shape)) for shape in MATRICES}) and not said
    assert not torch._dynamo.utils.counters["graph_break"]
    for p, q in zip(params, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)
    torch._dynamo.reset()


def test_where_muon_cannot_be_compiled_it_says_why_and_steps_all_the_same(monkeypatch):
    compiler, said = Compiler(monkeypatch), []
    compiler.fails = True
    (plain, expected), (failed, params) = new_muon(), new_muon()
    failed.compile(Processes(), said.append)
    plain.step()
    failed.step()
    assert all(map(torch.equal, params, expected))
    (line,) = said
    assert "no kernel for this" in line and "going on without" in line and "more of it" not in line
    torch._dynamo.reset()


def test_where_another_process_cannot_compile_muon_none_does(monkeypatch):
    Compiler(monkeypatch)
    muon, _ = new_muon()
    monkeypatch.setattr(Processes, "gather", lambda self, failure: [failure, "RuntimeError: no compiler there"])
    muon.compile(Processes(), lambda line: None)
    assert muon.orthogonalize is orthogonalize
    torch._dynamo.reset()


@pytest.mark.parametrize("compiling", ["on", "off"])
def test_a_run_that_is_compiled_compiles_muon_too(monkeypatch, tmp_path, compiling):
    compiler = Compiler(monkeypatch)
    given = {**TINY, "optimizer": "muon", "compile": compiling, "n_layer": 1}
    data = write_stages(tmp_path)["pretrain"]
    run = TrainingRun(TrainSettings(data_dir=data, out_dir=str(tmp_path / "out"), **given), say=lambda line: None)
    graphs, (_, muon) = compiler.graphs, run.optimizers
    assert (muon.orthogonalize is orthogonalize) == (compiling == "off") == (graphs == 0)
    monkeypatch.setattr(run, "loss", lambda *batch: sum(p.square().sum() for p in run.model.parameters()))
    train_step(run)
    assert compiler.graphs == graphs
    torch._dynamo.reset()
