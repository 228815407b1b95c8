"""The hand-written passes of norms and rotation against the plain ones."""

import pytest
import torch
from torch.nn import functional as F

import model as model_file
from model import (
    GPT,
    GPTConfig,
    NormalizeAndRotateOnCPU,
    NormOnCPU,
    normalize_and_rotate,
    rotary_angles,
)

EPS = 1e-6
# Ordinary rows, a row of zeros, one of large numbers, and a single row.
ROWS = [torch.randn(3, 7, 64), torch.zeros(1, 2, 64), 1e4 * torch.randn(2, 2, 64), torch.randn(1, 1, 64)]


def gradients(output, *inputs):
    """[output, gradients of the inputs] of a loss in which each output element has its own weight."""
    grad = torch.linspace(-1, 1, output.numel()).view_as(output).to(output.dtype)
    return [output, *torch.autograd.grad(output, inputs, grad)]


def close(ours, plain, tolerance):
    """Whether tensors differ by at most `tolerance` of the largest element of the plain one."""
    return all(
        (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-30) for a, b in zip(ours, plain, strict=True)
    )


def plain_norm(x, weight, bias, centered):
    if centered:
        return F.layer_norm(x, weight.shape, weight, bias, EPS)
    return F.rms_norm(x, weight.shape, weight, EPS)


@pytest.mark.numeric
@pytest.mark.parametrize("x", ROWS)
@pytest.mark.parametrize(("centered", "has_bias"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_norm_equals_that_of_torch(threads, x, centered, has_bias, autocast):
    """In float32; under autocast the result is that one, rounded to bfloat16."""
    x, weight = x.clone().requires_grad_(), torch.rand(64).add(0.5).requires_grad_()
    bias = torch.randn(64).requires_grad_() if has_bias else None
    inputs = [t for t in (x, weight, bias) if t is not None]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = NormOnCPU.apply(x, weight, bias, centered, EPS)
    plain = gradients(plain_norm(x, weight, bias, centered), *inputs)
    assert y.dtype == (torch.bfloat16 if autocast else torch.float32)
    assert close([t.float() for t in gradients(y, *inputs)], plain, 2e-2 if autocast else 1e-5)


@pytest.mark.numeric
@pytest.mark.parametrize(("shape", "others"), [((2, 9, 5, 16), 0), ((1, 1, 2, 16), 3)])
@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("place_of_each_row", [False, True])
def test_norm_and_rotation_in_one_equal_the_plain_ones(threads, shape, others, dtype, tolerance, place_of_each_row):
    config = GPTConfig(n_embd=64, n_head=4, architecture="qwen3")
    at = torch.arange(shape[1]) + 3
    cos, sin = rotary_angles(torch.stack([at + row for row in range(shape[0])]) if place_of_each_row else at, config)
    x = torch.randn(*shape[:2], shape[2] + others, 16).to(dtype).requires_grad_()
    weight = torch.rand(shape[2:]).add(0.5).requires_grad_()
    ours = gradients(NormalizeAndRotateOnCPU.apply(x, weight, cos, sin, EPS), x, weight)
    exact, exact_weight = x.detach().float().requires_grad_(), weight.detach().requires_grad_()
    normed, rest = exact.split([shape[2], others], dim=2)
    plain = torch.cat([normalize_and_rotate(normed, exact_weight, cos, sin, EPS), rest], dim=2)
    assert close([t.float() for t in ours], gradients(plain, exact, exact_weight), tolerance)


@pytest.mark.numeric
def test_a_model_learns_the_same_by_the_plain_passes(monkeypatch):
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 64, "block_size": 32, "vocab_size": 96}
    model = GPT(GPTConfig(architecture="qwen3", **shape))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ids, mask = torch.randint(0, 96, (3, 32)), torch.ones(3, 32, dtype=torch.bool)

    def gradients_of_loss():
        model.zero_grad()
        model.loss_sum(ids, ids.roll(-1, 1), mask).backward()
        return [p.grad.clone() for p in model.parameters()]

    ours = gradients_of_loss()
    monkeypatch.setattr(model_file, "is_eager_on_cpu", lambda x: False)
    assert close(ours, gradients_of_loss(), 1e-4)
