"""Precisions of generation, held against float32; products with int8 weights against plain ones."""

import copy
import shutil

import pytest
import torch
from tiny import padded_rows, random_ids, tiny_meta, tiny_model, tiny_tokenizer
from torch._inductor.exc import InvalidCxxCompiler

from decoding import KINDS, Decoder, should_compile
from errors import UserError
from generation import TextGenerator
from metrics import likelihood
from model import GPT, GPTConfig
from quantize import PRECISIONS, Int8Dynamic, Int8WeightOnly, Int8Weights, pick_product, prepare, set_precision
from sampling import SamplingParams

GREEDY = SamplingParams(temperature=0, max_new_tokens=10)


def linear(n_in=96, n_out=64, bias=False):
    torch.manual_seed(0)
    layer = torch.nn.Linear(n_in, n_out, bias=bias)
    layer.weight.data[3] *= 30  # a row of its own scale
    layer.weight.data[5] = 0
    return layer


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1,), (8,), (40,), (2, 3)])
@pytest.mark.parametrize("product", [Int8Weights, Int8WeightOnly, Int8Dynamic])
@torch.no_grad()
def test_int8_products_are_near_the_plain_one(product, shape, bias):
    layer, x = linear(bias=bias), torch.randn(*shape, 96, generator=torch.Generator().manual_seed(1))
    x[0] *= 1000
    expected, y = layer(x), product(layer)(x)
    # A weight is off by at most half a level, 1/254 of its row's largest, and so is an input; bf16 rounds by 1/256.
    w, inputs = layer.weight.abs(), x.abs()
    bound = inputs.amax(dim=-1, keepdim=True) / 254 * w.sum(dim=1) + inputs.sum(dim=-1, keepdim=True) * (
        w.amax(dim=1) / 254
    )
    bound = 1.05 * bound + (inputs @ w.T) / 128 + 1e-5
    assert y.shape == expected.shape
    assert ((y - expected).abs() <= bound).all()
    assert torch.equal(product(layer)(torch.zeros(1, 96)), layer(torch.zeros(1, 96)))
    assert (product(layer)(x.bfloat16()).dtype, y.dtype) == (torch.bfloat16, torch.float32)


@torch.no_grad()
def test_a_processor_that_saturates_gets_the_product_that_does_not(monkeypatch):
    assert pick_product(linear()) in (Int8Dynamic, Int8WeightOnly)
    product = Int8Dynamic.forward
    monkeypatch.setattr(Int8Dynamic, "forward", lambda self, x: product(self, x).clamp(max=60 * x.shape[-1]))
    assert pick_product(linear()) is Int8WeightOnly
    monkeypatch.setattr(Int8Dynamic, "forward", lambda self, x: torch._no_such_operator)
    assert pick_product(linear()) is Int8WeightOnly


@pytest.mark.parametrize("name", ["bf16", "int8"])
@pytest.mark.parametrize("bias", [False, True])
def test_perplexity_is_within_1_percent_of_float32s(name, bias):
    rows = padded_rows([random_ids(32, seed=i).tolist() for i in range(64)], 32)
    model = tiny_model(bias=bias)
    expected = likelihood(model, rows, tiny_meta("pretrain"), 16).perplexity
    rounded = set_precision(copy.deepcopy(model), name)
    assert likelihood(rounded, rows, tiny_meta("pretrain"), 16).perplexity == pytest.approx(expected, rel=0.01)
    assert rounded.wte.weight.dtype == PRECISIONS[name]
    assert any(tensor.dtype == torch.int8 for tensor in rounded.buffers()) or name == "bf16"


@pytest.mark.parametrize("name", ["auto", *PRECISIONS])
def test_a_model_in_any_precision_answers(name):
    model, picked, why = prepare(tiny_model(), name)
    assert picked == name if name != "auto" else picked in PRECISIONS
    assert why == "as set" if name != "auto" else why.startswith("timed")
    generator = TextGenerator(model, tiny_tokenizer(), "sft", max_batch=2)
    params = SamplingParams(temperature=0, max_new_tokens=10)
    texts = generator.generate(["河的桥", "a", "东河有几座桥？"], params)
    if picked == "float32":
        assert texts == TextGenerator(tiny_model(), tiny_tokenizer(), "sft").generate(
            ["河的桥", "a", "东河有几座桥？"], params
        )
    assert any(texts)


def test_int8_on_a_card_is_refused_with_what_to_take():
    with pytest.raises(UserError, match="bf16"):
        set_precision(tiny_model().to("meta"), "int8")


@torch.no_grad()
def forced_perplexity(model, rows):
    """Perplexity of rows (n, T) by the steps that generation takes, with its cache."""
    decoder, nats = Decoder(model, len(rows)), []
    logits = decoder.prefill(rows[:, :1].tolist())
    for t in range(1, rows.shape[1]):
        nats.append(torch.nn.functional.cross_entropy(logits.float(), rows[:, t]))
        logits = decoder.step(rows[:, t].tolist(), [t] * len(rows))
    return torch.stack(nats).mean().exp().item()


@pytest.mark.parametrize("product", [Int8Dynamic, Int8WeightOnly])
def test_the_steps_of_generation_have_that_perplexity_too(product, monkeypatch):
    monkeypatch.setattr("quantize.pick_product", lambda linear: product)
    rows = random_ids(8, 32)
    expected = forced_perplexity(tiny_model(), rows)
    assert forced_perplexity(set_precision(tiny_model(), "int8"), rows) == pytest.approx(expected, rel=0.01)


def test_a_step_whose_compiled_code_fails_goes_on_without(capsys):
    expected = TextGenerator(tiny_model(), tiny_tokenizer(), "sft").generate(["河", "a"], GREEDY)
    generator = TextGenerator(tiny_model(), tiny_tokenizer(), "sft")
    generator.engine.decoder.compiled = {kind: lambda *values: 1 / 0 for kind in ("one", "several")}
    assert generator.generate(["河", "a"], GREEDY) == expected
    assert capsys.readouterr().out.count("ZeroDivisionError") == 1
    assert not generator.compiled


def test_a_compiler_that_fails_or_is_not_there_is_said_and_generation_goes_on(monkeypatch):
    generator, said = TextGenerator(tiny_model(), tiny_tokenizer(), "sft"), []
    expected = generator.generate(["河"], GREEDY)
    for error in (AssertionError(), RuntimeError("no room\nat all")):
        monkeypatch.setattr(Decoder, "compile", lambda self, kind, error=error: (_ for _ in ()).throw(error))
        generator.compile(said.append).join()
    reasons = ["AssertionError: no reason given", "RuntimeError: no room"]
    assert said == [f"note: not compiled ({reason})" for reason in reasons]
    assert generator.generate(["河"], GREEDY) == expected

    large = GPT(GPTConfig(block_size=8, vocab_size=2**18, n_layer=1, n_head=1, n_embd=48))
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: 1 / 0)
    assert should_compile("auto", tiny_model()) == (False, "the model is small")
    assert (should_compile("on", large)[0], should_compile("off", large)[0]) == (True, False)

    def none():
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    assert should_compile("auto", large) == (False, "no C++ compiler is there")
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")
    assert should_compile("auto", large)[0]


@pytest.mark.skipif(not shutil.which("g++"), reason="no compiler for torch.compile")
@pytest.mark.parametrize("name", [pytest.param("float32", marks=pytest.mark.soak_only), "int8"])
@torch.no_grad()
def test_compiled_steps_equal_plain_ones(name):
    model = set_precision(tiny_model(), name)
    plain, compiled = Decoder(model, max_batch=4), Decoder(model, max_batch=4)
    for kind in KINDS:
        compiled.compile(kind)
    for length in (1, 2, 9, 30):
        prompt = random_ids(1, length, seed=length).tolist()
        tolerance = 1e-4 if name == "float32" else 0.05 * plain.prefill(prompt).abs().max().item()
        torch.testing.assert_close(compiled.prefill(prompt), plain.prefill(prompt), atol=tolerance, rtol=0)
        for decoder in (plain, compiled):
            decoder.n = 0
    for n in (1, 3, 4):
        for decoder in (plain, compiled):
            while decoder.n:
                decoder.drop(decoder.n - 1, 0)
            decoder.prefill(random_ids(n, 5, seed=n).tolist())
        for t in range(5, 20):
            ids, positions = random_ids(n, seed=t).tolist(), [t - i % 2 for i in range(n)]
            expected, logits = plain.step(ids, positions), compiled.step(ids, positions)
            # An int8 input may round to the other side where a float sum differs in its last bit.
            tolerance = 1e-4 if name == "float32" else 0.05 * expected.abs().max().item()
            torch.testing.assert_close(logits, expected, atol=tolerance, rtol=0)
    assert set(compiled.compiled) == set(KINDS)  # it was compiled code that ran
