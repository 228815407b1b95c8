"""Weight types of generation compared with float32; int8 products and compiled steps compared with plain ones."""

import copy
import shutil

import pytest
import torch
from tiny import padded_rows, random_ids, tiny_meta, tiny_model, tiny_tokenizer
from torch._inductor.exc import InvalidCxxCompiler

from minigpt.common.errors import UserError
from minigpt.inference.engine import TextGenerator
from minigpt.inference.likelihood import likelihood
from minigpt.inference.model_runner import PASS_KINDS, ModelRunner, should_compile_steps
from minigpt.inference.params import SamplingParams
from minigpt.inference.quantize import (
    MAX_LEVEL,
    MAX_LEVEL_7_BIT,
    WEIGHT_TYPES,
    Int8Dynamic,
    Int8WeightOnly,
    Int8Weights,
    choose_int8_layer,
    choose_weight_type,
    convert_weights,
    first_layers,
)
from model import GPT, GPTConfig

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
    model, picked, why = choose_weight_type(tiny_model(architecture=architecture), name)
    assert picked == name if name != "auto" else picked in WEIGHT_TYPES
    assert why == "as set" if name != "auto" else why.startswith("timed")
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


@pytest.mark.parametrize("fast", [False, True])
def test_a_type_that_the_processor_does_not_support_is_not_timed(fast, monkeypatch):
    timed, best = [], {"float32": 3.0, "bfloat16": 1.0, "int8": 2.0}
    monkeypatch.setattr("minigpt.inference.quantize.bfloat16_is_fast", lambda: fast)

    def fastest_of(names, step):
        timed.extend(names)
        for name in names:
            step(name)
        fastest = min(names, key=best.get)
        return fastest, best["float32"] / best[fastest]

    monkeypatch.setattr("minigpt.inference.quantize.fastest_of", fastest_of)
    _, name, why = choose_weight_type(tiny_model(), "auto", say=lambda line: 1 / 0)  # a tiny model is timed silently
    assert timed == (["float32", "bfloat16", "int8"] if fast else ["float32", "int8"])
    assert (name, why[:17]) == (("bfloat16", "timed: 3.00 times") if fast else ("int8", "timed: 1.50 times"))
    best.update(int8=2.9, bfloat16=4.0)
    assert choose_weight_type(tiny_model(), "auto")[1:] == ("float32", "timed: int8 is no more than 1.03 times as fast")


@torch.no_grad()
def test_only_a_few_layers_are_timed_and_the_model_is_not_changed(monkeypatch, architecture):
    monkeypatch.setattr("minigpt.inference.quantize.TIMED_LAYERS", 1)
    model = tiny_model(architecture=architecture)
    before = {name: (tensor.clone(), tensor.data_ptr()) for name, tensor in model.state_dict().items()}
    part = first_layers(model)
    assert (len(part.h), part.config.n_layer, len(model.h), model.config.n_layer) == (1, 1, 2, 2)
    assert {p.data_ptr() for p in part.parameters()} <= {p.data_ptr() for p in model.parameters()}  # shared
    for name in WEIGHT_TYPES:
        convert_weights(first_layers(model), name)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name][0]) and tensor.data_ptr() == before[name][1]


def test_timing_that_takes_long_is_announced(monkeypatch):
    said = []
    monkeypatch.setattr("minigpt.inference.quantize.bfloat16_is_fast", lambda: True)
    monkeypatch.setattr("minigpt.inference.quantize.SILENT_TIMING_PARAMS", 1000)
    choose_weight_type(tiny_model(), "auto", say=said.append)
    assert said == ["timing a few layers in float32, bfloat16 and int8 …"]
    choose_weight_type(tiny_model(), "int8", say=said.append)
    assert len(said) == 1


def test_int8_on_a_gpu_is_refused_and_the_error_names_an_alternative():
    with pytest.raises(UserError, match="bfloat16"):
        convert_weights(tiny_model().to("meta"), "int8")


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


def test_a_step_whose_compiled_code_fails_runs_uncompiled(capsys):
    expected = TextGenerator(tiny_model(), tiny_tokenizer(), "sft").generate(["河", "a"], GREEDY)
    generator = TextGenerator(tiny_model(), tiny_tokenizer(), "sft")
    generator.engine.runner.compiled = {kind: lambda *values: 1 / 0 for kind in ("one", "several")}
    assert generator.generate(["河", "a"], GREEDY) == expected
    assert capsys.readouterr().out.count("ZeroDivisionError") == 1
    assert not generator.compiled


def test_a_missing_or_failing_compiler_is_reported_and_generation_continues(monkeypatch):
    generator, said = TextGenerator(tiny_model(), tiny_tokenizer(), "sft"), []
    expected = generator.generate(["河"], GREEDY)
    for error in (AssertionError(), RuntimeError("no room\nat all")):
        monkeypatch.setattr(ModelRunner, "compile", lambda self, kind, error=error: (_ for _ in ()).throw(error))
        generator.compile(said.append)
    reasons = ["AssertionError: no reason given", "RuntimeError: no room"]
    assert said == [f"note: not compiled ({reason})" for reason in reasons]
    assert generator.generate(["河"], GREEDY) == expected

    large = GPT(GPTConfig(block_size=8, vocab_size=2**18, n_layer=1, n_head=1, n_embd=48))
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: 1 / 0)
    assert should_compile_steps("auto", tiny_model()) == (False, "the model is small")
    assert (should_compile_steps("on", large)[0], should_compile_steps("off", large)[0]) == (True, False)

    def none():
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    assert should_compile_steps("auto", large) == (False, "no C++ compiler is there")
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")
    assert should_compile_steps("auto", large)[0]


@pytest.mark.skipif(not shutil.which("g++"), reason="no compiler for torch.compile")
@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        pytest.param("gpt2", "float32", marks=pytest.mark.soak_only),
        pytest.param("gpt2", "bfloat16", marks=pytest.mark.soak_only),
        pytest.param("gpt2", "int8", marks=pytest.mark.soak_only),
        pytest.param("qwen3", "float32", marks=pytest.mark.soak_only),
        ("qwen3", "int8"),
    ],
)
@torch.no_grad()
def test_compiled_steps_equal_uncompiled_ones_as_the_cache_grows(architecture, name, monkeypatch):
    # Each batch begins with a small cache.
    monkeypatch.setattr("minigpt.inference.model_runner.FIRST_POSITIONS", 8)
    monkeypatch.setattr("minigpt.inference.model_runner.MAX_IDLE_CACHE_BYTES", 0)
    model = convert_weights(tiny_model(architecture=architecture), name)
    plain, compiled = ModelRunner(model, max_batch=4), ModelRunner(model, max_batch=4)
    for kind in PASS_KINDS:
        compiled.compile(kind)

    def check(logits, expected):
        # A float sum that differs in its last bit may round to another int8 or bfloat16 number.
        tolerance = 1e-4 if name == "float32" else 0.05 * expected.abs().max().item()
        torch.testing.assert_close(logits, expected, atol=tolerance, rtol=0)

    with torch.compiler.set_stance("fail_on_recompile"):
        for length in (1, 2, 9, 30):
            prompt = random_ids(1, length, seed=length).tolist()
            check(compiled.prefill(prompt), plain.prefill(prompt))
            for runner in (plain, compiled):
                runner.clear()
        for n in (1, 3, 4):
            for runner in (plain, compiled):
                runner.clear()
                runner.prefill(random_ids(n, 5, seed=n).tolist())
            for t in range(5, 32):
                ids, positions = random_ids(n, seed=t).tolist(), [t - i % 2 for i in range(n)]
                check(compiled.step(ids, positions), plain.step(ids, positions))
    assert set(compiled.compiled) == set(PASS_KINDS)  # compiled code did run
