"""Bottleneck adapters: the paper's formula, where they stand, and that they alone train."""

import pytest
import torch
from adapting import adapting, freeze, losses_of_training, randomize
from tiny import random_ids, tiny_model
from torch.nn import functional as F

from minigpt.adapters.bottleneck import Bottleneck, add_bottlenecks


def with_bottlenecks(architecture):
    """A tiny GPT in eval mode with bottlenecks 8 wide, at the start."""
    model = freeze(tiny_model(architecture=architecture))
    add_bottlenecks(model, adapting(bottleneck=8))
    return model


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_a_model_begins_as_its_base(architecture):
    ids = random_ids(2, 20)
    assert torch.equal(with_bottlenecks(architecture)(ids), tiny_model(architecture=architecture)(ids))


@pytest.mark.numeric
def test_it_adds_the_papers_formula_behind_the_last_matrices():
    model = with_bottlenecks("gpt2")
    randomize(model)
    assert [name for name, m in model.named_modules() if isinstance(m, Bottleneck)] == [
        f"h.{layer}.{part}.c_proj" for layer in (0, 1) for part in ("attn", "mlp")
    ]
    layer, x = model.h[1].mlp.c_proj, torch.randn(3, 128)
    y = x @ layer.base.weight.T
    expected = y + F.gelu(y @ layer.down.weight.T + layer.down.bias) @ layer.up.weight.T + layer.up.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_the_bottlenecks_alone_train():
    model = with_bottlenecks("qwen3").train()
    trained = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == 4 * (2 * 8 * 32 + 8 + 32)
    losses = losses_of_training(model)
    assert losses[-1] < losses[0] - 0.3
    base = tiny_model(architecture="qwen3").state_dict()
    now = {name.replace(".base", ""): t for name, t in model.state_dict().items() if name not in trained}
    assert now.keys() == base.keys() and all(torch.equal(now[name], tensor) for name, tensor in base.items())
