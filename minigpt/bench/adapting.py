"""What it takes to adapt the 124M model in each way: trained parameters, memory, speed. Base and rows are random.

Each way is a `TrainingRun` in a process of its own, so the peak of that process's memory is its own. The process of
full tuning with AdamW stays alive, the others come one after the other. The two that are alive take turns, step by
step, each while the other waits: so whatever else the machine does slows both alike. Their ratio, the median over the
rounds, is therefore what compares two ways; tokens a second also depend on what else ran in a way's own minutes.
"""

import contextlib
import gc
import os
import statistics
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from minigpt.bench.common import call_in_process, fresh_process, machine_name, publish_results
from minigpt.bench.training import device_time
from minigpt.checkpoint import save_checkpoint
from minigpt.common.errors import UserError
from minigpt.common.files import PROJECT
from minigpt.corpus.row_files import RowWriter
from minigpt.device import Precision, choose_precision, peak_memory, pick_device
from minigpt.evaluation.tables import markdown_table
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import TrainSettings
from minigpt.tokenizer import load_tokenizer
from minigpt.training.setup import TrainingRun
from minigpt.training.state import Progress
from model import GPT, GPTConfig
from train import train_step

ADAPTED_SHAPE = PROJECT / "config" / "train_config.py"
STEP_ROWS = 4
RANDOM_ROWS = 64
VIRTUAL_TOKENS = 20
UNTIMED_TURNS, ROUNDS, QUICK_ROUNDS = 1, 3, 1
RATE = 1e-6  # of every optimizer: what is learned does not matter, and nothing diverges
FULL = "full, AdamW"
# Settings of each way.
ADAPTED_WAYS = {
    FULL: {"optimizer": "adamw"},
    "full, Muon": {"optimizer": "muon"},
    "full, LOMO": {"optimizer": "lomo"},
    "full, MeZO": {"optimizer": "mezo"},
    "LoRA, rank 8": {"method": "lora", "rank": 8},
    "QLoRA, rank 8, NF4": {"method": "lora", "rank": 8, "quantize": "nf4"},
    f"prefix, {VIRTUAL_TOKENS} tokens": {"method": "prefix", "virtual_tokens": VIRTUAL_TOKENS},
    f"prompt, {VIRTUAL_TOKENS} tokens": {"method": "prompt", "virtual_tokens": VIRTUAL_TOKENS},
    "adapter, width 64": {"method": "adapter", "bottleneck": 64},
}
RUNS = {}  # {way: the `TrainingRun`} of this process

PROCESS_STATUS, PROCESS_PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux


def write_random_rows(folder, block_size):
    """Rows of random ids of GPT-2's tokenizer, without padding."""
    tokenizer, random = load_tokenizer("gpt2"), np.random.default_rng(0)
    with RowWriter(folder, ["train", "val"], block_size, tokenizer) as writer:
        for part, rows in (("train", RANDOM_ROWS), ("val", 1)):
            for ids in random.integers(tokenizer.eot_id, size=(rows, block_size - 1)):
                writer.add(part, ids.tolist(), len(ids))
        writer.finish({"stage": "pretrain"})


def make_random_base(folder, settings):
    """Write rows and a random base, a checkpoint; returns the `Precision` of all ways, as a dict.

    settings: `TrainSettings` with the model's shape and the rows' block_size. The base's block has places for virtual
    tokens before a row.
    """
    folder, tokenizer = Path(folder), load_tokenizer("gpt2")
    write_random_rows(folder / "rows", settings.block_size)
    names = ("architecture", "n_layer", "n_head", "n_kv_head", "n_embd", "n_inner", "vocab_size", "bias")
    shape = {name: getattr(settings, name) for name in names}
    torch.manual_seed(settings.seed)
    model = GPT(GPTConfig(**shape, block_size=settings.block_size + VIRTUAL_TOKENS))
    about = model.config, settings, "pretrain", tokenizer, asdict(Progress())
    save_checkpoint(folder / "base.pt", model.state_dict(), *about)
    device = pick_device(settings.device)
    precision = choose_precision(settings.dtype, device, model.to(device), settings.block_size)
    return precision.to_dict(device)


def open_way(name, folder, settings, precision):
    """Set up the run of a way in this process; returns {"trained": parameters, "before_mb": memory, None if unknown}.

    precision: as `make_random_base` returns it. Raises UserError where this machine cannot have the way.
    """
    run = RUNS[name] = TrainingRun(
        replace(
            settings, data_dir=f"{folder}/rows", out_dir=f"{folder}/{len(os.listdir(folder))}",
            init_from=f"{folder}/base.pt", dtype=precision["dtype"], batch_size=STEP_ROWS, batch_tokens=0,
            gradient_accumulation_steps=1, max_epochs=0.0, max_iters=10**6, learning_rate=RATE,
            muon_learning_rate=RATE, **{"optimizer": "adamw", **ADAPTED_WAYS[name]},
        ),
        say=lambda text: None,
    )  # fmt: skip
    run.model.use_plain_attention(Precision.from_dict(precision, run.device).plain_attention)
    gc.collect()
    before = start_peak(run.device)
    return {"trained": sum(p.numel() for p in run.model.parameters() if p.requires_grad), "before_mb": before}


def time_step(name):
    """(seconds, tokens) of a step of a way."""
    run = RUNS[name]
    started = device_time(run.device)
    rows, _ = train_step(run)
    return device_time(run.device) - started, rows.tokens


def start_peak(device):
    """Begin to measure the peak of memory anew, where that can be; returns the memory in use now, in MB, or None."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return round(torch.cuda.memory_reserved(device) / 2**20)
    with contextlib.suppress(OSError):
        PROCESS_PEAK_RESET.write_text("5")
    return process_memory("VmRSS")


def peak_since_start(name):
    """Peak of memory in MB since the `start_peak` of a way's run; where that cannot be known, of its whole process."""
    device = RUNS[name].device
    if device.type == "cpu" and (peak := process_memory("VmHWM")):
        return peak
    peak, _ = peak_memory(device)
    return peak and round(peak / 2**20)


def process_memory(field):
    """A field of this process's status on Linux, in MB; None on other systems."""
    if not PROCESS_STATUS.exists():
        return None
    lines = PROCESS_STATUS.read_text(encoding="utf-8").splitlines()
    return next((round(int(line.split()[1]) / 1024) for line in lines if line.startswith(field + ":")), None)


def measure_ways(folder, settings, rounds):
    """{way: figures, a dict, or the line that says why this machine cannot have it}."""
    precision = call_in_process(make_random_base, folder, settings)
    figures = {}
    with started_way(FULL, folder, settings, precision) as (time_full, figures_of_full):
        for name in list(ADAPTED_WAYS)[1:]:
            print(f"  {name} …", flush=True)
            try:
                with started_way(name, folder, settings, precision) as (time_own, figures_of_own):
                    pairs = [(time_full(), time_own()) for _ in range(rounds)]
                    figures[name] = figures_of_own()
                    figures[name]["of_full"] = statistics.median(full / own for full, own in pairs)
            except UserError as error:
                figures[name] = str(error)
        return {FULL: {**figures_of_full(), "of_full": 1.0, "dtype": precision["dtype"]}, **figures}


@contextlib.contextmanager
def started_way(name, folder, settings, precision):
    """Context manager: (function that returns the seconds of a step, function that returns the figures so far)."""
    with fresh_process() as call:
        about = call(open_way, name, folder, settings, precision)
        for _ in range(UNTIMED_TURNS):
            call(time_step, name)
        steps = []

        def time_one():
            steps.append(call(time_step, name))
            return steps[-1][0]

        def figures():
            speed = statistics.median(tokens / seconds for seconds, tokens in steps)
            return {**about, "peak_mb": call(peak_since_start, name), "tokens_per_second": speed}

        yield time_one, figures


def adapting_table(figures):
    """Markdown of the figures of `measure_ways`."""
    names = ["way", "trained parameters", "share", "memory before, MB", "peak memory, MB", "tokens/s", "× AdamW's"]
    measured = {name: f for name, f in figures.items() if isinstance(f, dict)}
    every = measured[FULL]["trained"]
    rows = [
        [
            name, f"{f['trained']:,}", f"{f['trained'] / every:.2%}", in_thousands(f["before_mb"]),
            in_thousands(f["peak_mb"]), f"{f['tokens_per_second']:,.0f}", f"{f['of_full']:.2f}",
        ]
        for name, f in measured.items()
    ]  # fmt: skip
    missing = [f"Not measured: {name} ({why})." for name, why in figures.items() if isinstance(why, str)]
    return "\n\n".join([markdown_table(names, rows, left=1), *missing])


def in_thousands(number):
    """A number with commas; None stays None, which a table shows as a dash."""
    return None if number is None else f"{number:,}"


def bench_adapting(settings):
    """Measure each way to adapt the 124M model; print the table, and write JSON and docs by bench.py's settings."""
    shape = replace(load_settings(TrainSettings, [str(ADAPTED_SHAPE)]), device=settings.device)
    name = machine_name(pick_device(settings.device))
    print(name, flush=True)
    with tempfile.TemporaryDirectory(prefix="minigpt-bench-") as folder:
        figures = measure_ways(folder, shape, QUICK_ROUNDS if settings.quick else ROUNDS)
    about = f"Batches of {STEP_ROWS} x {shape.block_size} tokens, {figures[FULL]['dtype']}."
    table = f"{about}\n\n{adapting_table(figures)}"
    publish_results(settings, f"Adapting the 124M model: {name}", table, {"machine": name, "ways": figures})
