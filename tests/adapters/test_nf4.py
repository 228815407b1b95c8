"""QLoRA's base in 4 bits: its errors, its memory, gradients through it, and what follows it."""

import copy
import sys

import pytest
import torch
from adapting import adapting, freeze, losses_of_training, randomize
from tiny import random_ids, tiny_model
from torch import nn

from minigpt.adapters.bottleneck import add_bottlenecks
from minigpt.adapters.lora import add_lora, merge_lora
from minigpt.adapters.nf4 import NF4Linear, dequantize_base, quantize_base, quantized_weights, weight_bytes
from minigpt.common.errors import UserError
from minigpt.inference.quantize import convert_weights

BLOCK = 64  # weights with one scale
LARGEST_ERROR = 0.16  # of a block's largest weight; half the largest gap between two levels is 0.152


def test_it_asks_for_bitsandbytes_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        quantize_base(freeze(tiny_model()))


pytest.importorskip("bitsandbytes")


def quantized_model(architecture="qwen3", **changed):
    """A tiny GPT in eval mode with LoRA on a base in 4 bits."""
    model = freeze(tiny_model(architecture=architecture, bias=architecture == "gpt2"))
    add_lora(model, adapting(**changed))
    quantize_base(model)
    return model


@pytest.mark.numeric
def test_weights_are_as_near_as_four_bits_allow():
    torch.manual_seed(0)
    linear = nn.Linear(256, 96)
    nn.init.normal_(linear.weight, std=0.02)
    layer = NF4Linear(linear)
    error = (layer.weight - linear.weight).detach()
    largest = linear.weight.detach().view(-1, BLOCK).abs().amax(1, keepdim=True)
    assert (error.view(-1, BLOCK).abs() <= LARGEST_ERROR * largest).all()
    assert 0.05 < error.norm() / linear.weight.norm() < 0.12
    assert len(layer.weight.unique()) <= 16 * len(largest)


@pytest.mark.numeric
@pytest.mark.parametrize("autocast", [False, True])
def test_a_product_and_its_gradient_are_those_of_the_rounded_weights(autocast):
    torch.manual_seed(0)
    layer = NF4Linear(nn.Linear(256, 96))
    x = torch.randn(3, 5, 256, requires_grad=True)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if autocast else {"rtol": 1e-4, "atol": 1e-5}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x)
    assert y.dtype == (torch.bfloat16 if autocast else torch.float32)
    torch.testing.assert_close(y.float(), x @ layer.weight.T + layer.bias, **tolerance)
    grad = torch.randn(3, 5, 96)
    y.backward(grad.to(y.dtype))
    torch.testing.assert_close(x.grad, grad @ layer.weight, **tolerance)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
@pytest.mark.parametrize("changed", [{}, {"dora": True}], ids=["LoRA", "DoRA"])
def test_training_changes_the_update_and_not_the_base(architecture, changed):
    model = quantized_model(architecture, **changed).train()
    bases = [(m, m.packed.clone()) for m in model.modules() if isinstance(m, NF4Linear)]
    assert len(bases) == 8 and not any(type(m) is nn.Linear for m in model.h.modules())
    losses = losses_of_training(model, autocast=True)
    assert losses[-1] < losses[0] - 0.3
    assert all(torch.equal(m.packed, before) for m, before in bases)


@pytest.mark.parametrize("changed", [{}, {"dora": True}], ids=["LoRA", "DoRA"])
def test_a_merged_model_is_a_plain_one_with_the_same_logits(changed):
    model, ids = quantized_model(matrices=["q", "v", "up"], **changed), random_ids(2, 20)
    randomize(model)
    expected = model(ids)
    merge_lora(model)
    dequantize_base(model)
    assert model.state_dict().keys() == tiny_model(architecture="qwen3").state_dict().keys()
    torch.testing.assert_close(model(ids), expected, rtol=1e-4, atol=1e-4)


def test_memory_falls_and_follows_the_model():
    model = freeze(tiny_model(architecture="qwen3"))
    linear = [m for m in model.h.modules() if isinstance(m, nn.Linear)]
    numbers = sum(m.weight.numel() for m in linear)
    before = weight_bytes(model)
    quantize_base(model)
    assert quantized_weights(model) == numbers
    saved = before - weight_bytes(model)
    assert 4 * numbers - 0.6 * numbers < saved < 4 * numbers - 0.5 * numbers

    # A copy, a bottleneck behind it, and the types of generation.
    copied, ids = copy.deepcopy(model), random_ids(2, 9)
    assert torch.equal(copied(ids), model(ids))
    add_bottlenecks(copied, adapting())
    quantize_base(copied)
    assert copied.h[0].mlp.c_proj.up.weight.requires_grad
    for dtype in ("int8", "bfloat16"):
        converted = convert_weights(copy.deepcopy(copied), dtype)
        torch.testing.assert_close(converted(ids).softmax(-1), model(ids).softmax(-1), atol=0.05, rtol=0)


def test_a_compiler_traces_it():
    layer = quantized_model().train().h[0].mlp.c_fc
    x = torch.randn(2, 5, 32, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)
