"""Steps by numba's kernels compared with those by torch, and the products in them with exact ones."""

import copy
import math
import os
import subprocess
import sys

import numba
import numpy as np
import pytest
import torch
from tiny import random_ids, tiny_model, tiny_tokenizer

from minigpt.adapters.mixing import share_layers
from minigpt.common.files import PROJECT
from minigpt.inference import kernels, model_runner
from minigpt.inference.engine import (
    Engine,
    EngineWorker,
    TextGenerator,
    compile_in_background,
)
from minigpt.inference.kernels import KernelStep, can_run
from minigpt.inference.model_runner import ModelRunner
from minigpt.inference.params import SamplingParams
from minigpt.inference.quantize import Int8Weights, convert_weights

pytestmark = pytest.mark.numeric

GREEDY = SamplingParams(temperature=0, max_new_tokens=10)
SHAPES = {
    "gpt2": {},
    "gpt2 with biases": {"bias": True, "tanh_gelu": True},
    "qwen3": {"architecture": "qwen3"},
    "qwen2": {"architecture": "qwen2", "n_kv_head": 2},
    "llama of odd sizes": {"architecture": "llama", "n_embd": 36, "head_dim": 10, "n_inner": 70, "vocab_size": 319},
}


def exact_int8(model):
    """The model with int8 weights and products of floats, which do not round the rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minigpt.inference.quantize.choose_int8_layer", lambda linear: Int8Weights)
        return convert_weights(model, "int8")


def converted(model, name):
    """The model in a type, as the kernels should compute it."""
    return exact_int8(model) if name == "int8" else convert_weights(model, name)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_steps_equal_torchs_as_sequences_come_and_go(name, shape, monkeypatch):
    monkeypatch.setattr(model_runner, "FIRST_POSITIONS", 4)  # so that the cache grows
    model = converted(tiny_model(**shape), name)
    # In float32, so that torch rounds no states.
    plain, fast = ModelRunner(copy.deepcopy(model).float(), 6), ModelRunner(model, 6)
    fast.kernels = KernelStep(model)
    lengths = []
    for t in range(26):
        if t % 4 == 0 and t < 24:
            prompt = random_ids(1, 1 + t // 5, seed=t).tolist()
            lengths.append(len(prompt[0]))
            for runner in (plain, fast):
                runner.prefill(prompt)
        if t in (9, 15):
            for runner in (plain, fast):
                runner.drop(0, lengths[-1])
            lengths[0] = lengths.pop()
        ids = random_ids(len(lengths), seed=100 + t).tolist()
        expected, logits = plain.step(ids, lengths), fast.step(ids, lengths)
        # Keys and values are rounded to bfloat16, or rows to 8 or 12 bits.
        tolerance = {"float32": 1e-5, "bfloat16": 0.03, "int8": 0.06}[name]
        assert (logits - expected).norm() <= tolerance * expected.norm()
        lengths = [length + 1 for length in lengths]


@torch.no_grad()
def test_long_rows_with_sure_attention_and_logits_are_exact():
    model = tiny_model(block_size=600)
    model.h[0].attn.c_attn.weight *= 6  # sharp attention
    model.lm_head.weight *= 20
    prompts = random_ids(5, 590, seed=3).tolist()
    runner = ModelRunner(model, 5)
    runner.kernels = KernelStep(model)
    runner.prefill([prompt[:-1] for prompt in prompts])
    logits = runner.step([prompt[-1] for prompt in prompts], [589] * 5)
    expected = model(torch.tensor(prompts))[:, -1]
    assert float(expected.softmax(dim=1).amax()) > 0.999
    torch.testing.assert_close(logits, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def layer_outputs(layer, rows):
    """The product of rows with a layer by the kernels, before it is added to anything."""
    matrices = kernels.stack_matrices([layer])
    levels_type = kernels.LEVEL_TYPE if matrices.values.dtype == np.int8 else np.float32
    levels = np.zeros((len(rows), matrices.values.shape[2]), dtype=levels_type)
    scales, out = np.zeros(len(rows), dtype=np.float32), np.zeros((len(rows), matrices.values.shape[1]), np.float32)
    kernels.store_heads(rows.numpy(), levels, scales)
    kernels.product(levels, scales, matrices, 0, out, False)
    return torch.from_numpy(out[:, : len(layer.scale if hasattr(layer, "scale") else layer.weight)])


@pytest.mark.parametrize("n", [1, 3, 4, 9])
@pytest.mark.parametrize("width", [63, 64, 3072])
@torch.no_grad()
def test_int8_products_are_exact_but_for_the_rounding_of_rows(width, n):
    layer = torch.nn.Linear(width, 7)
    layer.weight[1], layer.weight[2] = 1.0, -1.0  # of the largest level: the largest sums
    rows = torch.randn(n, width, generator=torch.Generator().manual_seed(0))
    rows[0], rows[-1] = 5.0, -5.0
    layer = Int8Weights(layer)
    expected = layer(rows.double().float())
    bound = (
        rows.abs().amax(dim=1, keepdim=True) / (2 * kernels.MAX_ROW_LEVEL) * (layer.levels.abs().sum(1) * layer.scale)
    )
    assert ((layer_outputs(layer, rows) - expected).abs() <= 1.01 * bound + 1e-4 * expected.abs() + 1e-5).all()
    torch.testing.assert_close(layer_outputs(layer, torch.zeros(1, width)), layer(torch.zeros(1, width)))


@pytest.mark.parametrize(
    ("fast", "exact"),
    [
        (kernels.exp, math.exp),
        (kernels.gelu, lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2))),
        (kernels.tanh_gelu, lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    ],
)
def test_functions_of_one_number_are_right_to_a_millionth(fast, exact):
    for x in np.linspace(-20, 20, 401, dtype=np.float32):
        assert fast(x) == pytest.approx(exact(float(x)), rel=2e-6, abs=1e-6)


def test_numbers_are_rounded_to_bfloat16_as_torch_rounds_them():
    @numba.njit
    def round_all(numbers, out):
        for i in range(len(numbers)):
            out[i] = kernels.from_float(numbers[i], out[i])

    numbers = torch.randn(1000) * 10.0 ** torch.randint(-9, 9, (1000,))
    numbers[:3] = torch.tensor([0.0, 1 + 2**-8, 1 + 3 * 2**-8])  # two that lie in the middle between two bfloat16
    out = np.zeros(1000, dtype=np.uint16)
    round_all(numbers.numpy(), out)
    assert torch.equal(torch.from_numpy(out).view(torch.bfloat16), numbers.bfloat16())


@torch.no_grad()
def test_the_models_weights_are_moved_and_not_copied(architecture):
    model = tiny_model(architecture=architecture)
    expected = model(random_ids(2, 9))
    weights = KernelStep(model).weights
    assert torch.equal(model(random_ids(2, 9)), expected)
    assert weights.c_fc.values.ctypes.data == model.h[0].mlp.c_fc.weight.data_ptr()
    assert weights.wte.ctypes.data == model.wte.weight.data_ptr()


def test_generation_is_the_same_before_and_after_the_steps_are_compiled():
    expected = TextGenerator(tiny_model(), tiny_tokenizer(), "sft").generate(["河", "a"], GREEDY)
    generator, said = TextGenerator(tiny_model(), tiny_tokenizer(), "sft"), []
    thread = compile_in_background([generator], said.append)
    assert generator.generate(["河", "a"], GREEDY) == expected
    thread.join()
    assert generator.compiled and said[0].startswith("steps are compiled, after ")
    assert generator.generate(["河", "a"], GREEDY) == expected


def test_large_models_are_compiled_unasked(monkeypatch):
    generator = TextGenerator(tiny_model(), tiny_tokenizer(), "sft")
    assert [generator.should_compile(setting) for setting in ("on", "off", "auto")] == [True, False, False]
    monkeypatch.setattr("minigpt.inference.engine.MIN_COMPILED_PARAMS", 1000)
    assert [generator.should_compile(setting) for setting in ("on", "off", "auto")] == [True, False, True]


def test_where_compiling_fails_torch_runs_the_steps(monkeypatch, capsys):
    generator = TextGenerator(tiny_model(), tiny_tokenizer(), "sft")
    expected = generator.generate(["河"], GREEDY)
    monkeypatch.setattr(KernelStep, "compile", lambda self: (_ for _ in ()).throw(RuntimeError("no room\nat all")))
    compile_in_background([generator]).join()
    assert capsys.readouterr().out == "note: steps are not compiled (RuntimeError: no room)\n"
    assert not generator.compiled and generator.generate(["河"], GREEDY) == expected


def test_it_is_said_which_models_are_not_compiled(monkeypatch, capsys):
    said = []
    models = [share_layers(tiny_model()) for _ in range(2)]
    worker = EngineWorker(Engine(models, tiny_tokenizer(), 4))
    TextGenerator(models[0], tiny_tokenizer(), "sft", worker=worker).compile(said.append)
    wrapped = tiny_model()
    wrapped.h[0].mlp.c_fc = torch.nn.Sequential(wrapped.h[0].mlp.c_fc)
    TextGenerator(wrapped, tiny_tokenizer(), "sft").compile(said.append)
    monkeypatch.setattr(kernels, "KernelStep", lambda model: 1 / 0)
    TextGenerator(tiny_model(), tiny_tokenizer(), "sft").compile(said.append)
    reasons = ["they mix adapters", "the model is not on a CPU, or has adapters in its layers"]
    assert [line.partition(" compiled: ")[2] for line in said] == reasons
    assert "not compiled (ZeroDivisionError: " in capsys.readouterr().out
    assert not can_run(tiny_model().half()) and not can_run(tiny_model().to("meta"))


@pytest.mark.soak_only
@pytest.mark.parametrize(
    "host", [{"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"}, {"NUMBA_CPU_NAME": "generic"}], ids=str
)
def test_the_kernels_of_other_processors_are_right_too(host, tmp_path):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = {"NUMBA_CPU_FEATURES": "", **os.environ, **host, "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([*command, "-k", "int8 or exact or right_to"], cwd=PROJECT, env=environment, check=True)
