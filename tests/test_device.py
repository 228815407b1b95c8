"""Peak FLOP/s of GPUs, choices made by timing, and the message for running out of memory."""

import time
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_model
from torch.nn.attention import SDPBackend

from minigpt import device
from minigpt.common.errors import UserError
from minigpt.device import OUT_OF_MEMORY_MESSAGES, explain_out_of_memory, fastest_of, peak_flops_of_gpu


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 D", 147),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("Tesla T4", 65),
        ("NVIDIA GeForce RTX 3060", 25.5),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 88.2),
        ("NVIDIA GeForce RTX 4070 SUPER", 71),
        ("NVIDIA GeForce RTX 3070 Ti", 43.5),
        ("NVIDIA GeForce RTX 2080 Ti", 53.8),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200 NVL", 836),
        ("NVIDIA H200", 989),
        ("NVIDIA H20", 148),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
        ("Quadro RTX 6000", None),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA T400", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("a future GPU", None),
    ],
)
def test_the_peak_of_a_gpu_is_looked_up_by_its_complete_name(name, tflops):
    assert peak_flops_of_gpu(name) == (tflops and tflops * 1e12)


@pytest.fixture
def timed_steps(monkeypatch):
    """timed_steps({candidate: seconds}, …) times steps that take so long on a fake clock.

    building: {candidate: seconds} that its first step takes in addition.
    Returns (result of fastest_of, candidates in the order of their steps).
    """

    def run(seconds_of, building=None, **options):
        clock, steps = [0.0], []
        monkeypatch.setattr(device.time, "perf_counter", lambda: clock[0])

        def step(candidate):
            if candidate not in steps:
                clock[0] += (building or {}).get(candidate, 0.0)
            steps.append(candidate)
            clock[0] += seconds_of[candidate]

        return fastest_of(list(seconds_of), step, **options), steps

    return run


def test_the_fastest_candidate_is_chosen_and_a_far_slower_one_is_timed_once(timed_steps):
    (fastest, speedup), steps = timed_steps({"first": 0.02, "second": 0.01, "third": 0.015, "slow": 0.2})
    assert fastest == "second" and speedup == pytest.approx(2.0)
    assert [steps.count(name) for name in ("first", "second", "third", "slow")] == [5, 5, 5, 1]


def test_a_short_step_is_not_dropped_for_the_kernel_that_it_builds_first(timed_steps):
    (fastest, speedup), _ = timed_steps({"ready": 0.001, "built": 0.0005}, building={"built": 0.016})
    assert fastest == "built" and speedup == pytest.approx(2.0)


def test_no_round_of_a_timing_begins_after_its_seconds(timed_steps):
    assert timed_steps({"first": 3.0, "second": 2.0}, seconds=4.0) == (("second", 1.5), ["first", "second"])


def test_a_processor_without_bfloat16_instructions_is_not_timed(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False, "amx_bf16": False})
    monkeypatch.setattr(device, "fastest_of", lambda *arguments, **more: 1 / 0)
    assert not device.bfloat16_is_fast()


def test_bfloat16_instructions_that_are_slow_are_detected(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    for fastest in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(device, "fastest_of", lambda tried, step, fastest=fastest, **more: (fastest, 1.0))
        assert device.bfloat16_is_fast() == (fastest == torch.bfloat16)


@pytest.mark.parametrize("fast", [False, True])
def test_training_times_a_block_in_the_dtypes_that_the_processor_supports(monkeypatch, fast):
    model, tried, said = tiny_model(), [], []
    monkeypatch.setattr(device, "bfloat16_is_fast", lambda: fast)

    def fastest(candidates, step):
        tried.extend(candidates)
        for precision in candidates:
            step(precision)
        return candidates[-1], 2.0

    monkeypatch.setattr(device, "fastest_of", fastest)
    picked = device.choose_precision("auto", torch.device("cpu"), model, 31, said.append)
    assert {precision.dtype for precision in tried} == {torch.float32, *([torch.bfloat16] if fast else [])}
    assert picked is tried[-1] and picked.plain_attention and picked.flops > 0
    assert "timing a block in float32, float32 with plain attention" in said[0]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("fraction", "usable"), [(0.25, 25), (1.0, 100), (7.5, 100), (None, 100)])
def test_usable_memory_is_that_of_the_gpu_or_less(monkeypatch, fraction, usable):
    """Other allocators than torch's own refuse to tell their limit."""

    def limit(index):
        if fraction is None:
            raise RuntimeError("this allocator has none")
        return fraction

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=100))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", limit)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (60, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: 10)
    assert device.usable_memory(torch.device("cuda", 0)) == usable
    assert device.free_memory(torch.device("cuda", 0)) == 70


@pytest.mark.parametrize("words", OUT_OF_MEMORY_MESSAGES)
def test_running_out_of_memory_is_recognized_by_torchs_message(words):
    with pytest.raises(UserError, match="batch_tokens"), explain_out_of_memory(torch.device("cpu")):
        raise RuntimeError(f"[enforce fail] {words}: you tried to allocate 99 bytes")


def test_where_passes_were_merged_the_advice_is_to_leave_that_out():
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match="merge_batches=False"), explain_out_of_memory(cpu, merged=True):
        raise MemoryError


@pytest.fixture
def hopper(monkeypatch):
    """A GPU of Hopper, as far as `choose_attention` asks, whose work a CPU does; yields what it said."""
    before, made = torch._C._get_sdp_priority_order(), torch.randn
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch, "randn", lambda *shape, device, dtype: made(*shape, dtype=dtype))
    yield []
    torch._C._set_sdp_priority_order(before)


def choose(said, **changes):
    model = {"n_head": 4, "n_kv_head": 2, "head_dim": 16, "dropout": 0.0}
    device.choose_attention(
        torch.device("cuda"), SimpleNamespace(**model), changes.get("dtype", torch.bfloat16), 31, said.append
    )
    return torch._C._get_sdp_priority_order()


@pytest.mark.parametrize("fastest", [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION])
def test_the_faster_attention_kernel_comes_first(hopper, monkeypatch, fastest):
    monkeypatch.setattr(
        device, "time_attention", lambda backend, inputs, dropout: time.sleep(0.01 * (backend != fastest))
    )
    order = choose(hopper)
    assert order[0] == int(fastest)
    assert len(set(order)) == 5
    assert fastest.name in hopper[0]


def test_a_gpu_whose_attention_cannot_be_timed_keeps_torchs_choice(hopper):
    """The CPU has no such kernel, so the timing itself fails here."""
    before = torch._C._get_sdp_priority_order()
    assert choose(hopper) == before
    assert "could not be timed" in hopper[0]


@pytest.mark.parametrize("capability", [(8, 9), (7, 5)])
def test_other_gpus_and_float32_keep_torchs_choice(hopper, monkeypatch, capability):
    monkeypatch.setattr(device, "fastest_of", None)
    before = torch._C._get_sdp_priority_order()
    assert choose(hopper, dtype=torch.float32) == before
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose(hopper) == before
    assert not hopper


def test_attention_is_timed_with_gradients_of_the_runs_shapes():
    inputs = [torch.randn(2, heads, 31, 16) for heads in (4, 2, 2)]
    device.time_attention(SDPBackend.MATH, inputs, 0.0)
    assert all(t.grad is None for t in inputs)


@pytest.mark.parametrize(
    ("capability", "failure", "expected"),
    [
        ((6, 1), None, (False, "Triton needs a GPU of Volta or later")),
        ((7, 0), "RuntimeError: no C compiler", (False, "Triton does not work here: RuntimeError: no C compiler")),
        ((9, 0), None, (True, "the default on cuda")),
    ],
)
def test_a_gpu_compiles_where_triton_works(capability, failure, expected, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(device, "compile_failure", lambda device: failure)
    assert device.should_compile("auto", torch.device("cuda")) == expected
    assert device.should_compile("on", torch.device("cuda"))[0] == expected[0]


def test_a_compiler_that_fails_is_tried_once(monkeypatch):
    def broken(graph, inputs):
        tried.append(graph)
        raise RuntimeError("no C compiler\nmore of it")

    tried, compile_it = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_it(function, backend=broken))
    device.compile_failure.cache_clear()
    assert "no C compiler" in device.compile_failure(torch.device("cpu"))
    assert "no C compiler" in device.compile_failure(torch.device("cpu")) and len(tried) == 1
    monkeypatch.setattr(torch, "compile", lambda function: compile_it(function, backend="eager"))
    device.compile_failure.cache_clear()
    assert device.compile_failure(torch.device("cpu")) is None
    device.compile_failure.cache_clear()
