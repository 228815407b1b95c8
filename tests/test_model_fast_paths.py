"""Fast paths of model.py compared with plain implementations: the fused loss, plain attention."""

from types import SimpleNamespace

import pytest
import torch
from tiny import PAD, padded_rows, random_ids, tiny_meta, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

import model as model_module
from data_utils import make_batch
from minigpt.training.compiled_loss import CompiledGradients, compile_loss
from model import TARGETS_MULTIPLE, OutputLoss, PlainAttentionOnCPU, max_logit_rows, plain_attention

pytestmark = pytest.mark.numeric


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def batch():
    x, y = random_ids(6, 31), random_ids(6, 31, seed=2)
    return x, y, random_ids(6, 31, below=3) > 0  # two thirds have a loss: more than one chunk below


@pytest.fixture(params=[(512, True), (50, True), (50, False)], ids=["one chunk", "several", "without kernels"])
def chunk_sizes(request, monkeypatch):
    """All rows in one chunk, or in many small ones with a last one that is not full; by the kernel, or as on a GPU."""
    monkeypatch.setattr(model_module, "MAX_LOGIT_ROWS", request.param[0])
    monkeypatch.setattr(model_module, "is_eager_on_cpu", lambda x: request.param[1])


def test_loss_sum_and_its_gradient_equal_the_plain_implementation(chunk_sizes, architecture):
    fast, simple = tiny_model(architecture=architecture), tiny_model(architecture=architecture)
    total = fast.loss_sum(*batch()) / 7
    expected = simple.token_losses(*batch()).sum() / 7
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
    total.backward()
    expected.backward()
    for name, grad in gradients(simple).items():
        scale = grad.abs().max().item()
        torch.testing.assert_close(gradients(fast)[name], grad, rtol=0, atol=1e-5 * max(1.0, scale))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_sum_in_16_bits_is_as_exact_as_the_plain_implementation(chunk_sizes, dtype, architecture):
    exact = tiny_model(architecture=architecture)
    exact.token_losses(*batch()).sum().backward()
    errors = []
    for way in ("token_losses", "loss_sum"):
        model = tiny_model(architecture=architecture)
        with torch.autocast("cpu", dtype):
            total = getattr(model, way)(*batch()).sum()
        total.backward()
        grads = gradients(model)
        errors.append(max(((grads[n] - g).norm() / g.norm()).item() for n, g in gradients(exact).items()))
    assert errors[1] < 1.5 * errors[0] + 1e-3, errors
    assert errors[1] < 0.05


@pytest.mark.parametrize(("logit", "p"), [(11, 0.953), (13, 0.9895), (15, 0.9978), (17, 0.9995)])
def test_the_gradient_of_tokens_with_high_probability_survives_bfloat16(logit, p):
    """Within 4% of its norm, compared with float64 on the same rounded operands. Plain autograd in bfloat16 reaches the
    same."""
    torch.manual_seed(0)
    N, C, V = 512, 64, 1000
    weight, targets = torch.randn(V, C), torch.randint(V, (N,))
    states = weight[targets] / weight[targets].norm(dim=1, keepdim=True) ** 2 * logit + 0.05 * torch.randn(N, C)
    states, weight = (t.bfloat16().float().requires_grad_() for t in (states, weight))
    exact_states, exact_weight = (t.detach().double().requires_grad_() for t in (states, weight))
    logits = exact_states @ exact_weight.T
    assert logits.softmax(dim=1).gather(1, targets[:, None]).mean().item() == pytest.approx(p, abs=0.003)
    torch.nn.functional.cross_entropy(logits, targets, reduction="sum").backward()
    with torch.autocast("cpu", torch.bfloat16):
        OutputLoss.apply(states, weight, targets, N).backward()
    for ours, exact in ((states, exact_states), (weight, exact_weight)):
        assert (ours.grad.double() - exact.grad).norm() < 0.04 * exact.grad.norm()


def test_without_a_target_the_loss_and_its_gradient_are_zero(architecture):
    model, (x, y, mask) = tiny_model(architecture=architecture), batch()
    total = model.loss_sum(x, y, torch.zeros_like(mask))
    assert total.item() == 0
    total.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_padding_of_the_targets_does_not_change_the_gradient():
    torch.manual_seed(0)
    states = torch.randn(TARGETS_MULTIPLE, 8, requires_grad=True)
    weight = torch.randn(20, 8, requires_grad=True)
    targets = torch.randint(20, (TARGETS_MULTIPLE,))
    OutputLoss.apply(states, weight, targets, 5).backward()
    assert states.grad[:5].abs().sum(dim=1).min() > 0
    assert not states.grad[5:].any()
    alone = weight.detach().clone().requires_grad_()
    torch.nn.functional.cross_entropy(states[:5].detach() @ alone.T, targets[:5], reduction="sum").backward()
    torch.testing.assert_close(weight.grad, alone.grad, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_target_of_minus_one_has_no_loss_and_no_gradient(chunk_sizes, dtype):
    """The sum and the gradients are those of the other rows alone: within 1e-5 of their norm, in bfloat16 1%."""
    torch.manual_seed(0)
    N, C, V = 300, 16, 50
    states, weight, targets = torch.randn(N, C), torch.randn(V, C), torch.randint(V, (N,))
    targets[torch.rand(N) < 0.5] = -1
    targets[100:160] = -1  # a whole chunk
    states[targets < 0] *= 1e30  # logits of which an exponential would overflow
    kept, results = targets >= 0, []
    for x, y, n in ((states, targets, None), (states[kept], targets[kept], int(kept.sum()))):
        x, w = x.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            total = OutputLoss.apply(x, w, y, n)
        total.backward()
        results.append((total.detach(), x.grad[y >= 0], w.grad))
        assert not x.grad[y < 0].any()
    for ours, alone in zip(*results, strict=True):
        assert (ours - alone).norm() <= (1e-5 if dtype == torch.float32 else 0.01) * alone.norm()


def sure_logits(rows, columns=300):
    """(logits (rows, columns), targets (rows,)): probabilities of the targets near 1, or far from it; some are -1."""
    torch.manual_seed(rows)
    logits, targets = torch.randn(rows, columns), torch.randint(columns, (rows,))
    logits[torch.arange(rows), targets] += torch.linspace(0, 14, rows)
    targets[torch.rand(rows) < 0.3] = -1
    return logits.bfloat16(), targets


def check_gradients(compute):
    """Hold compute(logits, targets, losses) for several numbers of rows against float64: within bfloat16's rounding of
    each number, losses 1e-4."""
    for rows in (130, 2, 128):
        logits, targets = sure_logits(rows)
        exact = logits.double().requires_grad_()
        expected = torch.nn.functional.cross_entropy(exact, targets, reduction="none", ignore_index=-1)
        expected.sum().backward()
        losses = torch.full((rows,), torch.nan)
        with torch.no_grad():
            assert compute(logits, targets, losses)
        torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits.double(), exact.grad, rtol=2**-8, atol=1e-6)


def compiled_gradients(monkeypatch, backend, say=print):
    torch._dynamo.reset()
    compile = torch.compile
    if backend != "inductor":  # whose options others do not know
        monkeypatch.setattr(torch, "compile", lambda f, dynamic, options: compile(f, backend=backend, dynamic=dynamic))
    return CompiledGradients(say)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.soak_only)])
def test_compiled_gradients_of_logits_are_those_in_float64_and_one_graph_serves_all_numbers_of_rows(
    backend, monkeypatch
):
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled = compiled_gradients(monkeypatch, backend)
    check_gradients(compiled)
    assert compiled.failure is None
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1
    assert not compiled(*sure_logits(1), torch.zeros(1))  # left to the plain code


def test_the_loss_is_compiled_for_a_gpu_where_the_run_compiles_and_not_for_the_next_run(monkeypatch):
    monkeypatch.setattr(OutputLoss, "compiled", None)
    for device, compiling in (("cuda", True), ("cuda", False), ("cuda", True), ("cpu", True)):
        compile_loss(SimpleNamespace(device=torch.device(device), say=print), compiling)
        assert (OutputLoss.compiled is not None) == (device == "cuda" and compiling)


def test_the_loss_goes_on_with_plain_code_where_compiled_code_fails(monkeypatch):
    def fails(graph, inputs):
        raise RuntimeError("no compiler here")

    said = []
    monkeypatch.setattr(OutputLoss, "compiled", compiled_gradients(monkeypatch, fails, said.append))
    monkeypatch.setattr(model_module, "is_eager_on_cpu", lambda x: False)
    total = tiny_model().loss_sum(*batch())
    torch.testing.assert_close(total, tiny_model().token_losses(*batch()).sum())
    assert len(said) == 1
    assert "BackendCompilerFailed" in said[0]


def test_on_a_gpu_the_output_layers_gradient_is_summed_in_float32(monkeypatch):
    """With torch's products of 16 bits into float32, which only CUDA has, replaced by their definition: 20 times as
    exact as sums of chunks that are rounded."""
    plain = {name: getattr(torch, name) for name in ("mm", "addmm")}

    def mm(a, b, *, out_dtype=None, out):
        return (
            plain["mm"](a, b, out=out) if out_dtype is None else plain["mm"](a.to(out_dtype), b.to(out_dtype), out=out)
        )

    def addmm(total, a, b, *, out_dtype, out):
        return plain["addmm"](total, a.to(out_dtype), b.to(out_dtype), out=out)

    torch.manual_seed(0)
    monkeypatch.setattr(model_module, "MAX_LOGIT_ROWS", 50)
    rows, states = torch.randn(512, 40).bfloat16(), torch.randn(512, 16).bfloat16()
    exact, errors = rows.double().T @ states.double(), []
    for in_float32 in (False, True):
        monkeypatch.setattr(model_module, "adds_in_float32", lambda device, dtype, answer=in_float32: answer)
        if in_float32:
            monkeypatch.setattr(torch, "mm", mm)
            monkeypatch.setattr(torch, "addmm", addmm)
        total = torch.full((40, 16), torch.nan)
        for first in range(0, 512, 50):
            part = slice(first, first + 50)
            OutputLoss.add_product(total, rows[part], states[part], first > 0)
        errors.append((total - exact).norm() / exact.norm())
    assert errors[0] < 0.01
    assert errors[1] < errors[0] / 20


@pytest.mark.parametrize(
    ("gigabytes", "columns", "rows"),
    [(4, 50304, 512), (8, 50304, 1024), (12, 50304, 2048), (24, 50304, 4096), (141, 50304, 8192), (12, 4096, 8192)],
)
def test_chunks_of_logits_follow_the_gpus_memory(gigabytes, columns, rows):
    assert max_logit_rows(gigabytes * 2**30, 2 * columns) == rows


def test_the_loss_of_a_gpu_waits_for_no_number_that_the_gpu_computes(monkeypatch):
    names = []

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            names.append(str(operation))
            if "aten.index" in names[-1]:  # by bool, it looks for the places
                assert all(index is None or index.dtype != torch.bool for index in args[1])
            return operation(*args, **(kwargs or {}))

    monkeypatch.setattr(model_module, "is_eager_on_cpu", lambda x: False)
    monkeypatch.setattr(model_module, "MAX_LOGIT_ROWS", 50)
    states, weight = torch.randn(128, 16, requires_grad=True), torch.randn(64, 16, requires_grad=True)
    with Operations():
        OutputLoss.apply(states, weight, torch.arange(-64, 64).clamp(min=-1), None).backward()
    waiting = "nonzero", "_local_scalar_dense", "masked_select", "is_nonzero", "unique"
    assert len(names) > 20
    assert not [name for name in names if any(part in name for part in waiting)]


def by_kernels(q, k, v):
    """`PlainAttentionOnCPU` with the arguments and the result of `plain_attention`."""
    parts = [t.transpose(1, 2) for t in (q, k, v)]
    return PlainAttentionOnCPU.apply(q.shape[1], *parts).unflatten(2, (q.shape[1], -1)).transpose(1, 2)


@pytest.mark.parametrize("kv_heads", [6, 2, 1])
@pytest.mark.parametrize("block", [256, 10])
@pytest.mark.parametrize("positions", [31, 1])
@pytest.mark.parametrize(
    ("compute", "dtype", "tolerance"),
    [(plain_attention, torch.float32, 1e-5), (by_kernels, torch.float32, 1e-5), (by_kernels, torch.bfloat16, 0.04)],
)
def test_plain_attention_equals_torchs(compute, dtype, tolerance, positions, block, kv_heads, monkeypatch):
    monkeypatch.setattr(model_module, "PLAIN_ATTENTION_QUERIES", block)
    torch.manual_seed(0)
    # Some keys are long, so that some queries attend to one key alone.
    exact = [torch.randn(2, heads, positions, 16) for heads in (6, kv_heads, kv_heads)]
    exact[1][:, :, ::7] *= 8
    inputs = [t.to(dtype).requires_grad_() for t in exact]
    exact = [t.detach().float().requires_grad_() for t in inputs]
    ours = compute(*inputs)
    theirs = torch.nn.functional.scaled_dot_product_attention(*exact, is_causal=True, enable_gqa=True)
    grad = torch.randn_like(theirs).to(dtype)
    results = [ours, *torch.autograd.grad(ours, inputs, grad)]
    expected = [theirs, *torch.autograd.grad(theirs, exact, grad.float())]
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0, atol=tolerance * max(1.0, b.abs().max().item()))


def test_a_model_with_plain_attention_has_the_same_logits_and_applies_dropout_in_training(architecture, monkeypatch):
    model, ids = tiny_model(dropout=0.5, architecture=architecture), random_ids(2, 31)
    before = model(ids)
    model.use_plain_attention(True)
    torch.testing.assert_close(model(ids), before, rtol=0, atol=1e-5)
    monkeypatch.setattr(model_module, "has_kernels", lambda x: False)
    torch.testing.assert_close(model(ids), before, rtol=0, atol=1e-5)
    model.train()
    assert not torch.allclose(model(ids), model(ids))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_on_a_gpu_in_bfloat16_trimmed_batches_give_the_gradients_of_padded_rows(architecture):
    """Within 3% of each gradient's norm, which is the precision of bfloat16."""
    rows = padded_rows([random_ids(n, seed=n).tolist() for n in (5, 9, 14, 12)], 32)
    x, y, mask = (t.cuda() for t in make_batch(rows, tiny_meta("pretrain")))
    ids = torch.from_numpy(rows.astype("int64")).cuda()
    fast, padded = tiny_model(architecture=architecture).cuda(), tiny_model(architecture=architecture).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        fast.loss_sum(x, y, mask).backward()
    losses = torch.nn.functional.cross_entropy(
        padded(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    (losses * (ids[:, 1:].flatten() != PAD)).sum().backward()
    for name, grad in gradients(padded).items():
        assert (gradients(fast)[name] - grad).norm() < 0.03 * grad.norm(), name
