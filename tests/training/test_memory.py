"""The estimate of a training run's memory, and the passes that are merged by it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from runs import log_of, run_here, write_stages
from tiny import random_ids

import model as model_module
from minigpt.checkpoint import load_checkpoint
from minigpt.settings.stages import TrainSettings
from minigpt.training import memory
from minigpt.training.memory import layer_bytes, may_merge, merge_factor, merge_passes, predicted_peak_bytes
from model import GPT, GPTConfig

GB = 2**30


def kept_bytes(config, dtype):
    """Bytes that autograd keeps in a forward pass of 256 tokens, without the weights and their copies in `dtype`."""
    torch.manual_seed(0)
    model, kept = GPT(config), {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes(), tensor  # the tensor is held, so that no other gets its place
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32),
    ):
        model.hidden(random_ids(4, 64, below=64))
    casts = sum(p.numel() for p in model.h.parameters() if p.dim() == 2) * 2 if dtype != torch.float32 else 0
    return sum(size for size, _ in kept.values()) - casts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("width", [128, 256])
@pytest.mark.parametrize(
    ("architecture", "more"),
    [("gpt2", {}), ("qwen3", {}), ("qwen3", {"n_kv_head": 1, "n_inner": 640}), ("llama", {})],
)
def test_a_blocks_bytes_a_token_are_what_autograd_keeps(architecture, more, width, dtype, monkeypatch):
    """At least as many, and at most a tenth more. Without the CPU's own passes, as on a GPU."""
    monkeypatch.setattr(model_module, "is_eager_on_cpu", lambda x: False)
    config = GPTConfig(
        block_size=64, vocab_size=64, n_layer=1, n_head=2, n_embd=width, architecture=architecture, **more
    )
    measured = (kept_bytes(replace(config, n_layer=3), dtype) - kept_bytes(config, dtype)) / 2 / 256
    assert measured * 0.98 <= layer_bytes(config, dtype.itemsize) <= 1.1 * measured


def model_124m(architecture="gpt2"):
    with torch.device("meta"):
        return GPT(GPTConfig(architecture=architecture))


@pytest.mark.parametrize(
    ("gigabytes", "architecture", "factor"),
    [
        (8, "gpt2", 1), (12, "gpt2", 2), (16, "gpt2", 2), (24, "gpt2", 4), (80, "gpt2", 8), (141, "gpt2", 8),
        (8, "qwen3", 1), (12, "qwen3", 1), (16, "qwen3", 2), (24, "qwen3", 2), (80, "qwen3", 8), (141, "qwen3", 8),
    ],
)  # fmt: skip
def test_passes_of_the_124m_model_are_merged_by_the_memory(gigabytes, architecture, factor, monkeypatch):
    """Of config/train_config.py: 8 passes of 8,192 tokens. What the GPU has is never exceeded."""
    run, said = fake_run(monkeypatch, gigabytes, model_124m(architecture))
    run.say = said.append
    assert merge_passes(run) == factor
    assert run.settings.batch_tokens == factor * 8192
    assert run.settings.gradient_accumulation_steps == 8 // factor
    assert len(said) == len(run.data.resized) == (factor > 1)
    if factor > 1:
        assert predicted_peak_bytes(run.model, factor * 8192, memory=gigabytes * GB) < gigabytes * GB


@pytest.mark.parametrize(("others", "factor"), [(0.5, 4), (10, 2), (17, 1)])
def test_memory_that_other_programs_have_is_not_counted(others, factor, monkeypatch):
    """An idle GPU of 24 GB, of which CUDA itself has about 0.5, merges four passes."""
    run, _ = fake_run(monkeypatch, 24, model_124m(), others)
    assert merge_passes(run) == factor


def fake_run(monkeypatch, gigabytes, model, others=0.5, **settings):
    """A `TrainingRun`, as far as merging asks, on a GPU of which other programs have `others` GB."""
    monkeypatch.setattr(memory, "usable_memory", lambda device: gigabytes * GB)
    monkeypatch.setattr(memory, "free_memory", lambda device: (gigabytes - others) * GB)
    monkeypatch.setattr(memory, "dtype_by_device", lambda device: ("bfloat16", "as told"))
    settings = TrainSettings(**{"batch_tokens": 8192, "gradient_accumulation_steps": 8, **settings})
    data = SimpleNamespace(resized=[])
    data.resize_batches = data.resized.append
    processes = SimpleNamespace(count=1, gather=lambda value: [value])
    device = torch.device("cuda")
    return SimpleNamespace(settings=settings, device=device, data=data, model=model, processes=processes, say=print), []


def test_the_processes_go_on_to_divide_the_passes_and_the_smallest_gpu_decides(monkeypatch):
    assert [merge_factor(1, 8, processes, lambda tokens: True) for processes in (1, 2, 4, 8, 3)] == [8, 4, 2, 1, 1]
    assert merge_factor(1000, 12, 2, lambda tokens: tokens <= 3500) == 3
    run, _ = fake_run(monkeypatch, 141, model_124m())
    run.processes = SimpleNamespace(count=2, gather=lambda value: [value, 2])
    assert merge_passes(run) == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"merge_batches": False}, {"batch_tokens": 0}, {"gradient_accumulation_steps": 1}, {"objective": "dpo"},
        {"objective": "grpo"}, {"pipeline_parallel": 2}, {"optimizer": "mezo"}, {"method": "lora"},
        {"replay_share": 0.1},
    ],
)  # fmt: skip
def test_other_runs_keep_their_passes(settings, monkeypatch):
    run, _ = fake_run(monkeypatch, 141, None, **settings)
    assert merge_passes(run) == 1
    assert not run.data.resized


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_other_devices_keep_their_passes(device):
    settings = TrainSettings(batch_tokens=8192, gradient_accumulation_steps=8)
    assert may_merge(settings, torch.device("cuda"))
    assert not may_merge(settings, torch.device(device))


def test_a_run_with_merged_passes_is_resumed_with_them(tmp_path, monkeypatch):
    """It says so where the passes become other ones, whose rows come in another order."""
    monkeypatch.setattr(memory, "may_merge", lambda settings, device: settings.merge_batches)
    for name in ("usable_memory", "free_memory"):
        monkeypatch.setattr(memory, name, lambda device: 2 * GB)
    given = {
        "data_dir": write_stages(tmp_path)["pretrain"], "out_dir": str(tmp_path / "run"),
        "batch_tokens": 96, "gradient_accumulation_steps": 4, "eval_iters": 2,
    }  # fmt: skip
    out = run_here(**given, max_iters=4)
    assert "passes of 384 tokens, 1 a step, in the place of 4 of 96" in out
    saved = load_checkpoint(tmp_path / "run" / "last.pt")["settings"]
    assert (saved["batch_tokens"], saved["gradient_accumulation_steps"]) == (384, 1)
    resumed = run_here(**given, max_iters=8, init_from="resume")
    assert "going on at step 4 of 8" in resumed
    assert "another order" not in resumed
    assert "batch_tokens was 384 and is 96" in run_here(**given, max_iters=12, init_from="resume", merge_batches=False)
    one, *_ = log_of(tmp_path / "run")
    run_here(**{**given, "out_dir": str(tmp_path / "plain")}, max_iters=4, merge_batches=False)
    plain, *_ = log_of(tmp_path / "plain")
    assert abs(one["tokens"] - plain["tokens"]) < 96
