"""Steps of the shape of the whole cache, as a GPU's CUDA graphs have them, and what a token costs a GPU in waiting."""

import contextlib

import pytest
import torch
from plain_generation import TOKENIZER, assert_steps_are_those_of_whole_passes
from tiny import tiny_model

from minigpt.adapters.attach import attach_adapter
from minigpt.inference import engine, model_runner, sampling, static_step
from minigpt.inference import logprobs as logprobs_module
from minigpt.inference.engine import TextGenerator
from minigpt.inference.model_runner import ModelRunner
from minigpt.inference.params import SamplingParams
from minigpt.inference.static_step import StaticStep
from minigpt.settings.stages import Adapting


class RecordedStep(StaticStep):
    """A `StaticStep` whose graphs are played on a CPU: a replay computes from the graph's input into its output."""

    def __init__(self, model):
        super().__init__(model)
        self.captured, self.replays = [], 0

    def capture(self, inputs, keys, values, end):
        static_inputs, logits = inputs.clone(), self.logits(inputs, keys, values, end)
        self.captured.append((inputs.shape[1], end, keys.shape))
        step, graph = self, type("Graph", (), {})()

        def replay():
            step.replays += 1
            logits.copy_(step.logits(static_inputs, keys, values, end))

        graph.replay = replay
        return graph, static_inputs, logits


@pytest.fixture(autouse=True)
def no_device(monkeypatch):
    """torch.cuda.device does nothing: there may be no GPU. Steps have few positions, so that their number grows."""
    monkeypatch.setattr(static_step, "MIN_POSITIONS", 2)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())


@pytest.mark.numeric
@torch.no_grad()
def test_logits_of_steps_over_the_whole_cache_are_those_of_whole_passes(architecture, monkeypatch):
    monkeypatch.setattr(model_runner, "FIRST_POSITIONS", 4)
    model = tiny_model(architecture=architecture)
    for step in (StaticStep(model, captures=False), RecordedStep(model)):
        runner = ModelRunner(model, 5)
        runner.kernels = step
        assert_steps_are_those_of_whole_passes(runner, model)
    assert len(step.captured) == len(set(step.captured)), "one graph for each shape, anew when the cache grows"
    assert {rows for rows, _, _ in step.captured} == {1, 2, 4} and step.replays == 27 > len(step.captured)


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_virtual_tokens_stay_while_other_rows_come_and_go(method):
    model = tiny_model(block_size=48)
    attach_adapter(model, Adapting(method=method, virtual_tokens=3), TOKENIZER)
    model.eval()
    texts = []
    for step in (None, StaticStep(model, captures=False)):
        generator = TextGenerator(model, TOKENIZER, "pretrain", max_batch=4)
        generator.engine.runner.kernels = step
        params = [SamplingParams(temperature=0, max_new_tokens=n) for n in (3, 12, 5, 9, 12, 7)]
        texts.append(generator.generate(["河", "东河的", "桥", "第三镇", "有河的镇", "它"], params))
    assert texts[0] == texts[1]


@torch.no_grad()
def test_where_a_graph_cannot_be_captured_the_same_step_is_launched_and_it_is_said(monkeypatch, capsys):
    model = tiny_model()
    runner = ModelRunner(model, 5)
    runner.kernels = StaticStep(model)  # which asks for CUDA here, where there is none
    monkeypatch.setattr(StaticStep, "capture", lambda *arguments: 1 / 0)
    assert_steps_are_those_of_whole_passes(runner, model)
    assert capsys.readouterr().out.count("not captured as CUDA graphs (ZeroDivisionError") == 1


@torch.no_grad()
def test_after_a_long_row_short_ones_read_few_positions():
    model = tiny_model()
    runner, expected = ModelRunner(model, 2), ModelRunner(model, 2)
    runner.kernels = RecordedStep(model)
    for each in (runner, expected):
        each.prefill([[1] * 30, [2, 3, 4]])
        each.drop(0, 3)
    found = runner.step([7], [3])
    torch.testing.assert_close(found, expected.step([7], [3]), atol=1e-5, rtol=0)
    assert runner.kernels.captured == [(1, 4, runner.cache.keys.shape)] and runner.cache.keys.shape[3] == 32


@pytest.mark.numeric
@torch.no_grad()
def test_steps_are_compiled_once_for_each_number_of_rows_however_the_cache_grows(architecture, monkeypatch):
    """More often than that, compilers stop at a limit, and torch runs the rest."""
    monkeypatch.setattr(model_runner, "FIRST_POSITIONS", 4)
    model, compiled = tiny_model(architecture=architecture), []

    def count(graph, inputs):
        compiled.append(graph)
        return graph.forward

    runner = ModelRunner(model, 5)
    runner.kernels = compiled_step(model, count, monkeypatch, max_batch=5)
    assert_steps_are_those_of_whole_passes(runner, model)
    assert runner.cache.keys.shape[1:4:2] == (4, 32) and len(compiled) == 3


def compiled_step(model, backend, monkeypatch, **options):
    """A `StaticStep` without captures that a backend of torch.compile compiles."""
    compile_by = torch.compile
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **more: compile_by(function, backend=backend, **more))
        return StaticStep(model, captures=False, compiles=True, **options)


@pytest.mark.parametrize(("max_batch", "numbers"), [(1, [1]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8])])
def test_all_numbers_of_rows_are_compiled_before_the_first_step(max_batch, numbers, monkeypatch):
    """Within a step, all requests would wait for the compiler."""
    compiled = []

    def count(graph, inputs):
        compiled.extend(i.shape[1] for i in inputs if i.dtype == torch.int64)
        return graph.forward

    generator = TextGenerator(tiny_model(), TOKENIZER, "sft", max_batch=max_batch)
    generator.kernels = compiled_step(generator.model, count, monkeypatch, max_batch=max_batch)
    monkeypatch.setattr(generator, "make_kernels", lambda say: True)
    generator.compile()
    assert compiled == numbers
    generator.generate(["河的桥"] * max_batch + ["a"], SamplingParams(temperature=0, max_new_tokens=4))
    assert compiled == numbers and generator.engine.runner.kernels is generator.kernels


@torch.no_grad()
def test_where_steps_cannot_be_compiled_they_are_captured_all_the_same(monkeypatch, capsys):
    def fail(*inputs):
        raise RuntimeError("no kernel for this\nmore of it")

    model = tiny_model()
    step = RecordedStep(model)
    step.compiled = compiled_step(model, lambda graph, inputs: fail, monkeypatch).compiled
    step.compile()
    runner = ModelRunner(model, 5)
    runner.kernels = step
    assert_steps_are_those_of_whole_passes(runner, model)
    assert step.replays == 27 and step.captures
    assert capsys.readouterr().out.count("steps are not compiled (RuntimeError: no kernel for this)") == 1


@torch.no_grad()
def test_where_memory_is_too_small_for_graphs_compiled_steps_go_on_without(monkeypatch, capsys):
    model = tiny_model()
    runner = ModelRunner(model, 5)
    runner.kernels = compiled_step(model, lambda graph, inputs: graph.forward, monkeypatch)
    runner.kernels.captures = True

    def run_out(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(StaticStep, "capture", run_out)
    assert_steps_are_those_of_whole_passes(runner, model)
    assert capsys.readouterr().out.count("the GPU's memory is too small for them") == 1
    assert runner.kernels.compiled and not runner.kernels.captures


@pytest.mark.parametrize("logprobs", [None, 3])
def test_a_token_of_mixed_requests_is_read_from_the_device_once_and_its_logprobs_once_more(logprobs, monkeypatch):
    mixed = [
        SamplingParams(temperature=0.0, max_new_tokens=9),
        SamplingParams(temperature=0.7, top_k=5, max_new_tokens=9, logprobs=logprobs),
        SamplingParams(temperature=1.0, top_k=0, top_p=0.8, max_new_tokens=9),
        SamplingParams(temperature=1.0, top_k=0, min_p=0.05, repetition_penalty=1.2, max_new_tokens=9),
    ]
    generator = TextGenerator(tiny_model(), TOKENIZER, "sft")
    streams = [generator.new_stream("河的桥", params) for params in mixed]
    generator.engine.waiting.extend(streams)
    generator.engine.step()

    # From here on a tensor is made in to_device alone, which does not wait for the device, and read in tolist alone.
    reads, make, read = [], torch.tensor, torch.Tensor.tolist

    def to_device(values, device, dtype=None):
        return values if isinstance(values, torch.Tensor) else make(values, dtype=dtype)

    def refuse(*arguments, **options):
        raise AssertionError("the device is waited for")

    for module in (engine, logprobs_module, model_runner, sampling):
        monkeypatch.setattr(module, "to_device", to_device)
    for name in ("item", "__bool__", "__int__", "__float__", "cpu", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    monkeypatch.setattr(torch, "tensor", refuse)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: reads.append(1) or read(tensor))
    for n in range(1, 4):
        generator.engine.step()
        assert len(reads) == (n if logprobs is None else 2 * n)
    assert all(stream.completion_tokens >= 4 or stream.finish_reason for stream in streams)
