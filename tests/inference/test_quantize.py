"""Weight types of generation compared with float32; int8 products compared with plain ones."""

import copy
import importlib.util

import pytest
import torch
from tiny import padded_rows, random_ids, tiny_meta, tiny_model, tiny_tokenizer

from minigpt.adapters.mixing import share_layers
from minigpt.common.errors import UserError
from minigpt.inference import quantize
from minigpt.inference.engine import TextGenerator
from minigpt.inference.likelihood import likelihood
from minigpt.inference.model_runner import ModelRunner
from minigpt.inference.params import SamplingParams
from minigpt.inference.quantize import (
    MAX_LEVEL,
    MAX_LEVEL_7_BIT,
    WEIGHT_TYPES,
    Float32Product,
    Int8Dynamic,
    Int8WeightOnly,
    Int8Weights,
    choose_int8_layer,
    choose_weight_type,
    convert_weights,
    has_torchao_layers,
    is_torchao,
    quantize_by_torchao,
)

pytestmark = pytest.mark.numeric

GREEDY = SamplingParams(temperature=0, max_new_tokens=10)


def linear(n_in=96, n_out=64, bias=False):
    torch.manual_seed(0)
    layer = torch.nn.Linear(n_in, n_out, bias=bias)
    layer.weight.data[3] *= 30  # a row of another scale
    layer.weight.data[5] = 0
    return layer


def seven_bit(layer):
    """The int8 layer that computes correctly on any x86 processor."""
    return Int8Dynamic(layer, MAX_LEVEL_7_BIT)


def picked(layer):
    """The int8 layer that is chosen on this processor."""
    return choose_int8_layer(layer)(layer)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1,), (8,), (40,), (2, 3)])
@pytest.mark.parametrize("product", [Int8Weights, Int8WeightOnly, seven_bit, picked])
@torch.no_grad()
def test_int8_products_are_close_to_the_float_product(product, shape, bias):
    layer, x = linear(bias=bias), torch.randn(*shape, 96, generator=torch.Generator().manual_seed(1))
    x[0] *= 1000
    rounded = product(layer)
    expected, y = layer(x), rounded(x)
    # Rounding changes weights and inputs by at most half a level of their row; bfloat16 by 1/256.
    w, inputs = layer.weight.abs(), x.abs()
    bound = inputs.amax(dim=-1, keepdim=True) / (2 * MAX_LEVEL) * w.sum(dim=1)
    bound = bound + inputs.sum(dim=-1, keepdim=True) * (w.amax(dim=1) / (2 * rounded.max_level))
    bound = 1.05 * bound + (inputs @ w.T) / 128 + 1e-5
    assert y.shape == expected.shape
    assert ((y - expected).abs() <= bound).all()
    torch.testing.assert_close(rounded(torch.zeros(1, 96)), layer(torch.zeros(1, 96)), atol=1e-30, rtol=0)
    assert (rounded(x.bfloat16()).dtype, y.dtype) == (torch.bfloat16, torch.float32)


def saturating_product(levels, x_scale, x_zero, weights, scale, zeros, bias, *rest):
    """oneDNN's int8 product without VNNI: sums of two neighbouring products saturate at 16 bits."""
    pairs = (levels.int()[:, None] * weights.int()).unflatten(2, (-1, 2)).sum(dim=3)
    return pairs.clamp(-(2**15), 2**15 - 1).sum(dim=2) * scale + bias


@pytest.fixture
def without_vnni(monkeypatch):
    """A processor without VNNI, whose int8 sums saturate."""
    monkeypatch.setattr(torch.ops.onednn, "qlinear_prepack", lambda weights, shape: weights)
    monkeypatch.setattr(torch.ops.onednn, "qlinear_pointwise", saturating_product)


@torch.no_grad()
def test_if_sums_saturate_weights_get_seven_bits(without_vnni):
    layer = linear()
    assert choose_int8_layer(layer).keywords == {"max_level": MAX_LEVEL_7_BIT}
    for sign in (1.0, -1.0):  # the largest possible sums
        layer, x = torch.nn.Linear(96, 4, bias=False), torch.full((1, 96), 1.0)
        torch.nn.init.constant_(layer.weight, sign)
        torch.testing.assert_close(seven_bit(layer)(x), layer(x), rtol=1e-5, atol=0)
        assert not torch.allclose(Int8Dynamic(layer)(x), layer(x), rtol=0.1)


@torch.no_grad()
def test_if_onednns_product_is_wrong_or_missing_torchs_is_used(monkeypatch):
    product = Int8Dynamic.forward
    monkeypatch.setattr(Int8Dynamic, "forward", lambda self, x: product(self, x).clamp(max=60 * x.shape[-1]))
    assert choose_int8_layer(linear()) is Int8WeightOnly
    monkeypatch.setattr(Int8Dynamic, "forward", lambda self, x: torch._no_such_operator)
    assert choose_int8_layer(linear()) is Int8WeightOnly


@pytest.mark.parametrize("name", ["bfloat16", "int8"])
@pytest.mark.parametrize("shape", [{}, {"bias": True}, {"architecture": "qwen3"}], ids=str)
def test_perplexity_is_within_1_percent_of_float32s(name, shape):
    rows = padded_rows([random_ids(32, seed=i).tolist() for i in range(64)], 32)
    model = tiny_model(**shape)
    expected = likelihood(model, rows, tiny_meta("pretrain"), 16).perplexity
    rounded = convert_weights(copy.deepcopy(model), name)
    assert likelihood(rounded, rows, tiny_meta("pretrain"), 16).perplexity == pytest.approx(expected, rel=0.01)
    assert rounded.wte.weight.dtype == WEIGHT_TYPES[name]
    assert any(tensor.dtype == torch.int8 for tensor in rounded.buffers()) or name == "bfloat16"


@pytest.mark.parametrize("name", ["auto", *WEIGHT_TYPES])
def test_a_model_of_any_weight_type_generates_text(name, architecture):
    model, picked, _ = choose_weight_type(tiny_model(architecture=architecture), name)
    assert picked == name if name != "auto" else picked in WEIGHT_TYPES
    questions = ["河的桥", "a", "东河有几座桥？"]
    texts = TextGenerator(model, tiny_tokenizer(), "sft", max_batch=2).generate(questions, GREEDY)
    if picked == "float32":
        same = TextGenerator(tiny_model(architecture=architecture), tiny_tokenizer(), "sft")
        assert texts == same.generate(questions, GREEDY)
    assert any(texts)


@pytest.mark.parametrize("name", WEIGHT_TYPES)
@torch.no_grad()
def test_logits_of_generation_are_float32(name, architecture):
    runner = ModelRunner(convert_weights(tiny_model(architecture=architecture), name), 4)
    assert runner.prefill(random_ids(4, 9).tolist()).dtype == torch.float32
    assert runner.step([1, 2, 3, 4], [9] * 4).dtype == torch.float32


@torch.no_grad()
def test_bfloat16_logits_are_float32_products_of_the_states(architecture):
    """At temperature 0.1, an error of 0.03 in a logit is one of 0.3 nats."""
    model, prompts = tiny_model(architecture=architecture), random_ids(4, 9)
    model.lm_head.weight *= 10
    weight = model.lm_head.weight.clone()
    logits = ModelRunner(convert_weights(model, "bfloat16"), 4).prefill(prompts.tolist())
    states = model.hidden(prompts)[:, -1]
    expected = states.float() @ weight.T
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    coarse = states @ weight.bfloat16().T  # as an output layer in bfloat16 computes them
    assert expected.abs().max() > 10 and (coarse - expected).abs().max() > 0.03


@torch.no_grad()
def test_on_a_cpu_large_models_are_int8_and_small_ones_float32(monkeypatch):
    assert choose_weight_type(tiny_model(), "auto")[1] == "float32"
    monkeypatch.setattr("minigpt.inference.quantize.MIN_INT8_PARAMS", 1000)
    assert choose_weight_type(tiny_model(), "auto")[1:] == ("int8", "the default on a CPU for a model of this size")
    assert choose_weight_type(tiny_model(), "float32")[1:] == ("float32", "as set")


def test_int8_is_refused_where_it_cannot_be_and_the_error_names_an_alternative(monkeypatch):
    with pytest.raises(UserError, match="float32"):
        convert_weights(tiny_model().to("meta"), "int8")
    for missing in ("torchao", "triton"):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, missing=missing: None if name == missing else 1)
        with pytest.raises(UserError, match=f"needs {missing}: pip install .*--dtype"):
            quantize_by_torchao([tiny_model()])


def test_torchaos_int8_weights_are_close_to_float32_and_leave_out_the_output_layer(architecture, monkeypatch):
    pytest.importorskip("torchao")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: 1 if name == "triton" else find_spec(name))
    exact, model = tiny_model(architecture=architecture), tiny_model(architecture=architecture).bfloat16()
    shared = share_layers(model)
    quantize_by_torchao([model, shared])
    quantized = {name for name, p in model.named_parameters() if is_torchao(p)}
    assert quantized == {name for name, p in exact.h.named_parameters(prefix="h") if p.dim() == 2}
    assert has_torchao_layers(shared) and not has_torchao_layers(exact)
    ids = random_ids(20, seed=1)[None]
    with torch.no_grad():
        expected, found = exact(ids), model(ids).float()
    assert (found - expected).abs().mean() < 0.01 * expected.abs().max()


class OnPlayedGPU(torch.nn.Parameter):
    """A parameter on the CPU that says it is on a GPU."""

    device = torch.device("cuda")


@pytest.mark.parametrize(("supported", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
@torch.no_grad()
def test_beside_int8_a_gpu_without_bfloat16_computes_in_float32(supported, expected, monkeypatch):
    """torchao sums a product of levels up to 127 before it scales it: in float16 it is infinite above 65,504."""
    pytest.importorskip("torchao")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: 1 if name == "triton" else find_spec(name))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    monkeypatch.setattr(quantize, "adds_in_float32", lambda device, dtype: False)
    model = tiny_model()
    model.wte.weight = OnPlayedGPU(model.wte.weight)
    convert_weights(model, "int8")
    assert has_torchao_layers(model)
    layer = model.h[0].attn.c_attn
    assert layer(torch.full((1, layer.in_features), 3e4, dtype=model.ln_f.weight.dtype)).isfinite().all()
    assert model.ln_f.weight.dtype == expected


def test_the_output_layer_of_a_gpu_takes_16_bits_and_gives_32(monkeypatch):
    monkeypatch.setattr(quantize, "adds_in_float32", lambda device, dtype: True)
    model = convert_weights(tiny_model(), "bfloat16")
    assert isinstance(model.lm_head, Float32Product) and model.lm_head.weight is model.wte.weight
    # torch has such a product on a GPU alone.
    monkeypatch.setattr(torch, "mm", lambda a, b, out_dtype: a.to(out_dtype) @ b.to(out_dtype))
    exact, ids = tiny_model(), random_ids(2, 7)
    with torch.no_grad():
        logits, expected = model(ids), exact(ids)
    assert logits.dtype == torch.float32 and logits.shape == expected.shape
    assert (logits - expected).abs().mean() < 0.01 * expected.abs().max()


@torch.no_grad()
def forced_perplexity(model, rows):
    """Perplexity of rows (n, T), computed by the steps of generation with its cache."""
    runner, nats = ModelRunner(model, len(rows)), []
    logits = runner.prefill(rows[:, :1].tolist())
    for t in range(1, rows.shape[1]):
        nats.append(torch.nn.functional.cross_entropy(logits.float(), rows[:, t]))
        logits = runner.step(rows[:, t].tolist(), [t] * len(rows))
    return torch.stack(nats).mean().exp().item()


@pytest.mark.parametrize("product", [None, seven_bit, Int8WeightOnly])
def test_perplexity_by_steps_of_generation_is_within_1_percent_too(product, monkeypatch, architecture):
    if product:
        monkeypatch.setattr("minigpt.inference.quantize.choose_int8_layer", lambda linear: product)
    rows = random_ids(8, 32)
    expected = forced_perplexity(tiny_model(architecture=architecture), rows)
    rounded = convert_weights(tiny_model(architecture=architecture), "int8")
    assert forced_perplexity(rounded, rows) == pytest.approx(expected, rel=0.01)
