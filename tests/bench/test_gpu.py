"""bench.py gpu in miniature on a CPU: every figure is there or says why not, and faults are told."""

import contextlib
import json
import time
from types import SimpleNamespace

import pytest
import torch
from processes import done, run_in_process

from minigpt.bench import common, gpu, gpu_checks, gpu_work
from minigpt.bench.gpu_page import NO_FIGURES, gpu_page, gpu_training_table
from minigpt.bench.gpu_work import LeftOut
from minigpt.common.errors import UserError
from minigpt.device import Precision
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import BenchSettings
from minigpt.training import compiling
from model import GPTConfig, OutputLoss


@pytest.fixture
def in_this_process(monkeypatch, tmp_path):
    """bench.py gpu calls its work, and the scripts, here: to start processes takes longer than what they do."""

    @contextlib.contextmanager
    def here(seconds=None):
        with monkeypatch.context() as patch:  # the work sets these for its whole process
            patch.setattr(torch, "compile", torch.compile)
            patch.setattr(compiling, "BUCKETS", compiling.BUCKETS)
            patch.setattr(gpu_work, "OPENED", {})
            yield lambda function, *arguments: function(*arguments)

    monkeypatch.setattr(gpu, "fresh_process", here)
    monkeypatch.setattr(gpu, "run_quietly", lambda script, *flags: done(run_in_process(tmp_path, script, *flags)))


def run_quick(tmp_path, *parts, monkeypatch):
    """(JSON's values, page, exit status) of the command with --quick and some parts only."""
    monkeypatch.setattr(gpu, "GPU_PARTS", {name: gpu.GPU_PARTS[name] for name in parts})
    page = tmp_path / "gpu.md"
    page.write_text(f"# On a GPU\n\n{NO_FIGURES}\n\nMore.\n", encoding="utf-8")
    flags = ["--quick", "--device=cpu", f"--json={tmp_path}/gpu.json", f"--docs={page}"]
    status = 0
    try:
        gpu.bench_gpu(load_settings(BenchSettings, flags))
    except SystemExit as ended:
        status = ended.code
    return json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8")), page.read_text(encoding="utf-8"), status


def empty_figures(value, path=""):
    """Paths of values that are None, empty, or missing without a reason."""
    if isinstance(value, dict):
        if value.keys() == {"missing"}:
            return [] if value["missing"].strip() else [path]
        return [each for key, item in value.items() for each in empty_figures(item, f"{path}/{key}")]
    return [path] if value is None or value == "" else []


def test_all_that_is_measured_is_in_json_and_page(tmp_path, in_this_process, monkeypatch):
    parts = ("checks", "pretraining", "generation", "checkpoints", "memory")
    values, page, status = run_quick(tmp_path, *parts, monkeypatch=monkeypatch)
    assert status == 0 and not values["errors"]
    assert [part["state"] for part in values["parts"].values()] == ["done"] * len(parts)
    assert empty_figures(values) == []
    assert len(values["checks"]) >= 9 and all(check["passed"] for check in values["checks"])
    assert {f"pretraining: compiled {what} against eager" for what in ("loss", "gradients")} <= {
        check["check"] for check in values["checks"]
    }
    training = values["parts"]["pretraining"]["figures"]
    assert training["compiled"]["graphs"] >= 1  # (here all ways are in one process, so that eager shows them, too)
    assert training["compiled"]["graph_breaks"] == 0 and training["compiled over eager"] > 0
    assert 0 < training["compiled"]["padding_share"] < 0.5
    generation = values["parts"]["generation"]["figures"]
    assert {"1", "2", "over_hugging_face"} <= generation["ours, bfloat16"].keys()
    assert "CUDA" in values["parts"]["memory"]["figures"]["8 GB"]["missing"]

    assert NO_FIGURES not in page and "More." in page and f"## {values['machine']['gpu']}" in page
    for part in parts:
        assert f"### {part.capitalize()}" in page
    assert gpu_page(values) in page and "no figure means anything" in page


def test_a_wrong_gradient_does_not_pass_and_a_part_that_fails_leaves_the_others(tmp_path, in_this_process, monkeypatch):
    backward = OutputLoss.backward
    monkeypatch.setattr(OutputLoss, "backward", lambda ctx, grad: backward(ctx, 1.2 * grad))

    def broken(*arguments):
        raise ZeroDivisionError("nothing to divide by")

    monkeypatch.setattr(gpu_checks, "check_resume", broken)
    values, page, status = run_quick(tmp_path, "checks", "memory", monkeypatch=monkeypatch)
    assert status == 1
    assert "gradients in bfloat16 against float64" in {c["check"] for c in values["checks"] if not c["passed"]}
    assert "ZeroDivisionError: nothing to divide by" in page and "**no**" in page
    assert values["parts"]["checks"]["state"] == "failed" and values["parts"]["memory"]["state"] == "done"


def test_confident_targets_show_a_gradient_that_is_rounded_too_early(monkeypatch):
    config = GPTConfig(block_size=48, n_layer=1, n_embd=256, n_head=4, vocab_size=50304, tied=False)
    bfloat16 = Precision(torch.bfloat16)
    assert gpu_checks.check_confident(config, 2, bfloat16, torch.device("cpu"))["passed"]

    def rounded_early(logits, targets, losses):
        p = logits.float().log_softmax(dim=1)
        losses.copy_(-p.gather(1, targets.clamp(min=0)[:, None]).squeeze(1))
        logits.copy_(p.exp())  # in bfloat16 a probability near 1 is 1
        logits[torch.arange(len(p)), targets] -= 1

    monkeypatch.setattr(OutputLoss, "to_gradient", staticmethod(rounded_early))
    assert not gpu_checks.check_confident(config, 2, bfloat16, torch.device("cpu"))["passed"]


def test_a_line_that_several_ways_of_training_say_stands_once():
    said = {"eager": ["passes of 8 tokens", "compile False"], "compiled": ["passes of 8 tokens", "step 1"]}
    text = gpu_training_table({way: {"steps": 1, "said": lines} for way, lines in said.items()})
    assert text.endswith("\n\neager, compiled: passes of 8 tokens") and text.count("passes of 8") == 1


def test_without_a_gpu_the_command_says_how_to_try_it(monkeypatch, in_this_process):
    with pytest.raises(UserError, match=r"measures an NVIDIA GPU.*cpu; --quick"):
        gpu.bench_gpu(load_settings(BenchSettings, ["--device=cpu"]))


def test_a_part_without_time_is_left_out_and_what_takes_too_long_is_ended(tmp_path):
    values = {"machine": {"gpu": "none", "device": "cpu"}, "parts": {}, "checks": [], "errors": [], "quick": True}
    settings = SimpleNamespace(json=str(tmp_path / "gpu.json"), docs="", given=("docs",), quick=True)
    measurement = gpu.Measurement(settings, gpu.QUICK, str(tmp_path), values, time.monotonic() + 5)
    gpu.measure_gpu_part(measurement, "memory")
    assert "no time was left" in values["parts"]["memory"]["figures"]["missing"]
    figures = {}
    for why in (LeftOut("not here"), TimeoutError("its time was over")):
        with measurement.attempt(figures, "one"):
            raise why
        assert figures["one"] == {"missing": str(why)} and not measurement.errors


def test_a_process_whose_time_is_over_is_killed():
    with common.fresh_process(0.5) as call:
        for _ in range(2):
            with pytest.raises(TimeoutError, match="its time was over"):
                call(time.sleep, 600)


def test_the_memory_of_a_smaller_gpu_is_a_share_of_this_one():
    shares = []
    cuda = SimpleNamespace(
        current_device=lambda: 0,
        get_device_properties=lambda index: SimpleNamespace(total_memory=16 * 2**30),
        set_per_process_memory_fraction=shares.append,
    )
    for gb in (8, 24):
        gpu_work.limit_memory(gb, cuda)
    assert shares == [0.5, 1.0]


def test_calls_of_each_token_are_those_of_more_tokens_less_those_of_one(monkeypatch):
    seen = []
    monkeypatch.setattr(gpu_work, "count_calls", lambda work, device: (work(), {"launches": 3 + 5 * seen[-1]})[1])
    assert gpu_work.calls_of_each(seen.append, 8, "cuda") == {"launches": 5.0} and seen == [1, 9]


def test_figures_of_earlier_turns_stay(tmp_path):
    values = {"machine": {"gpu": "none", "device": "cpu"}, "parts": {}, "checks": [], "errors": []}
    settings = SimpleNamespace(json="", docs="", given=("docs",), quick=True)
    measurement, figures = gpu.Measurement(settings, gpu.QUICK, str(tmp_path), values, 0.0), {"one": {"1": 5.0}}
    for name in ("one", "two"):
        with measurement.attempt_more(figures, name):
            raise TimeoutError("its time was over")
    assert figures == {"one": {"1": 5.0}, "two": {"missing": "its time was over"}}


def test_calls_of_cuda_are_counted_by_what_they_do():
    counts = {"cudaLaunchKernel": 7, "cudaGraphLaunch": 1, "cudaStreamSynchronize": 2, "aten::mm": 9}
    assert gpu_work.calls_of(counts) == {"launches": 8, "waits": 2}
    assert "no call" in gpu_work.calls_of({"aten::mm": 9})["launches"]["missing"]
