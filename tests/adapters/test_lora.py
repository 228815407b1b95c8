"""LoRA and DoRA: against the papers' equations, on every kind of base layer, merged, and the mistakes of a user."""

import copy

import pytest
import torch
from adapting import adapting, freeze, losses_of_training, randomize, with_lora
from tiny import random_ids, tiny_model
from torch.nn import functional as F

from minigpt.adapters.lora import LoRALinear, add_lora, merge_lora
from minigpt.common.errors import UserError
from minigpt.inference.quantize import convert_weights

QV = ["q", "v"]
KINDS = {
    "gpt2": {}, "gpt2 with biases, DoRA": {"bias": True, "dora": True},
    "qwen3": {}, "qwen3, q and v": {"matrices": QV}, "qwen3, q and v, DoRA": {"matrices": QV, "dora": True},
    "qwen3, AdaLoRA": {"adalora_rank": 2},
}  # fmt: skip


def model_of(kind, **changed):
    """A tiny GPT with LoRA of one of KINDS."""
    return with_lora(kind.replace(",", "").split()[0], **{**KINDS[kind], **changed})


def by_equation(layer, x):
    """The output of a `LoRALinear` by the papers' equations, a part of the matrix at a time."""
    outputs, done = [], 0
    bias = 0 if layer.base.bias is None else layer.base.bias
    weights = layer.base.weight.split(layer.rows)
    a = layer.lora_a if layer.lora_e is None else torch.diag(layer.lora_e) @ layer.lora_a
    a_parts, b_parts = iter(a.split(layer.rank)), iter(layer.lora_b.split(layer.chosen_rows))
    for weight, is_chosen in zip(weights, layer.chosen, strict=True):
        if is_chosen:
            weight = weight + layer.scale * next(b_parts) @ next(a_parts)
            if layer.magnitude is not None:
                magnitude = layer.magnitude[done : done + len(weight)]
                weight = magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True)
            done += len(weight)
        outputs.append(x @ weight.T)
    return torch.cat(outputs, dim=-1) + bias


@pytest.mark.numeric
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_computes_the_equation(kind, training):
    for layer in model_of(kind).train(training).modules():
        if isinstance(layer, LoRALinear):
            x = torch.randn(2, 5, layer.base.in_features)
            torch.testing.assert_close(layer(x), by_equation(layer, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_begins_as_its_base(kind):
    model, ids = model_of(kind, trained=False), random_ids(2, 20)
    base = tiny_model(architecture=model.config.architecture, bias=KINDS[kind].get("bias", False))
    torch.testing.assert_close(model(ids), base(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_is_a_plain_one_with_the_same_logits(kind):
    model, ids = model_of(kind), random_ids(2, 20)
    names = tiny_model(architecture=model.config.architecture, bias=KINDS[kind].get("bias", False)).state_dict().keys()
    expected = model(ids)
    merge_lora(model)
    assert model.state_dict().keys() == names
    assert not torch.allclose(expected, tiny_model(architecture=model.config.architecture)(ids), atol=0.1)
    torch.testing.assert_close(model(ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "matrices", "shapes"),
    [
        # 4 heads of queries and 2 of keys and values, each 8 wide, and an MLP 128 wide.
        ("qwen3", ["q", "v"], {"attn.c_attn": (8, 48)}),
        ("qwen3", ["k", "gate", "down"], {"attn.c_attn": (4, 16), "mlp.c_fc": (4, 128), "mlp.c_proj": (4, 32)}),
        ("gpt2", ["q", "k", "v", "gate"], {"attn.c_attn": (4, 96)}),
    ],
)
def test_only_the_matrices_that_are_named_get_an_update(architecture, matrices, shapes):
    model = with_lora(architecture, matrices=matrices)
    layers = {n.removeprefix("h.0."): m for n, m in model.h[0].named_modules() if isinstance(m, LoRALinear)}
    assert {name: (len(m.lora_a), len(m.lora_b)) for name, m in layers.items()} == shapes


@pytest.mark.parametrize("init", ["gaussian", "kaiming"])
def test_a_is_as_large_as_the_setting_says(init):
    layer = with_lora("gpt2", trained=False, rank=16, lora_init=init).h[0].mlp.c_proj
    expected = 16**-0.5 if init == "gaussian" else (3 * 128) ** -0.5  # of a uniform distribution within 1 / sqrt(128)
    assert layer.lora_a.std().item() == pytest.approx(expected, rel=0.1) and not layer.lora_b.any()


def test_dropout_is_of_the_updates_input_and_of_training_alone():
    layer = with_lora("gpt2", lora_dropout=0.5).h[0].mlp.c_proj
    x = torch.randn(3, layer.base.in_features)
    assert torch.equal(layer(x), layer(x))
    torch.manual_seed(5)
    found = layer.train()(x)
    torch.manual_seed(5)
    expected = layer.base(x) + layer.scale * F.dropout(x, 0.5) @ layer.lora_a.T @ layer.lora_b.T
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autocast", [False, True])
def test_training_changes_the_update_and_not_the_base(kind, autocast):
    model = model_of(kind, trained=False).train()
    before = copy.deepcopy(model.state_dict())
    losses = losses_of_training(model, autocast=autocast)
    assert losses[-1] < losses[0] - 0.3
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", KINDS)
def test_a_compiler_traces_a_layer_as_a_whole(kind):
    layer = model_of(kind).train().h[0].attn.c_attn
    x = torch.randn(2, 5, 32)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_base_may_be_in_fewer_bits_in_generation(kind, dtype):
    model, ids = model_of(kind), random_ids(2, 20)
    with torch.no_grad():
        expected = F.log_softmax(model(ids), dim=-1)
        found = F.log_softmax(convert_weights(model, dtype).eval()(ids), dim=-1)
    assert isinstance(model.h[0].attn.c_attn, LoRALinear)
    kl = (expected.exp() * (expected - found)).sum(-1).mean()
    assert 0 < kl < 0.02


MISTAKES = {
    "a part of gpt2's one matrix": ({"matrices": QV}, ["q,v", "q, k, v", "all or none"]),
    "no matrix of it": ({"matrices": ["gate"]}, ["gate", "gpt2"]),
    "a budget above the rank": ({"adalora_rank": 5}, ["adalora_rank (5)", "rank (4)"]),
    "two forms at once": ({"adalora_rank": 2, "dora": True}, ["dora", "adalora_rank"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_in_one_line(mistake):
    changed, said = MISTAKES[mistake]
    with pytest.raises(UserError) as error:
        add_lora(freeze(tiny_model()), adapting(**changed))
    assert len(str(error.value).splitlines()) == 1 and all(words in str(error.value) for words in said)


def test_dora_in_eval_mode_has_the_norms_of_loaded_parameters():
    model, other, ids = (
        model_of("qwen3, q and v, DoRA"),
        model_of("qwen3, q and v, DoRA", trained=False),
        random_ids(2, 9),
    )
    randomize(other, seed=4)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model.eval()(ids), other(ids))
