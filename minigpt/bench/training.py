"""Measures this project's training beside "the recipe": nanoGPT's training on rows padded to 512; and minimind's.

The recipe: GPT-2's tokenizer, AdamW with the learning rate and betas that nanoGPT has for a CPU, logits at every
position, float32; on CUDA autocast and compiling. Each measurement is a fresh process, and the two take turns. The
times are for a corpus of megabytes.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from data_utils import load_row_tokenizer, loss_mask, open_rows, row_lengths
from minigpt.bench.common import call_in_process, machine_name, medians, publish_results, reading_flags, run_quietly
from minigpt.bench.minimind import Minimind, check_clone, prepare_minimind_texts
from minigpt.device import peak_flops, peak_memory, pick_device, should_compile, wait_for
from minigpt.evaluation.tables import markdown_table
from minigpt.inference.likelihood import likelihood
from minigpt.settings.stages import TrainSettings
from minigpt.training.setup import TrainingRun
from model import GPT, GPTConfig
from train import train_step

BLOCK_SIZE = 512
BATCH_ROWS = 12  # nanoGPT's batch for a CPU; ours has as many tokens
VOCAB_SIZE = 8192
SIZES = {"4 x 256": {"n_layer": 4, "n_head": 4, "n_embd": 256}, "124M": {"n_layer": 12, "n_head": 12, "n_embd": 768}}
SMALL, LARGE = SIZES
TOKENIZER_OF_ROWS = {"sft": "GPT-2", "gpt2": "GPT-2", "own": "own", "minimind": "minimind"}  # by folder
RECIPE_RATE, RECIPE_BETAS, RECIPE_DECAY = 1e-3, (0.9, 0.99), 0.1
LR_WARMUP_STEPS = 20  # of the learning rate, for both; nanoGPT's 100 would take most of the ten minutes
UNTIMED_STEPS = 3
RECIPE_SECONDS = 600  # of training by the recipe; the quality it reaches is the target, for which ours has as long
MINIMIND_SECONDS = 300  # of training by minimind and by ours, whose bits per character are compared
SECONDS_BETWEEN_VALIDATIONS = 1.5  # of our training between two validations
TRAINING_ROUNDS, ROUND_SECONDS = 2, 30
QUICK_TRAINING_ROUNDS, QUICK_ROUND_SECONDS = 1, 15


class Recipe:
    """nanoGPT's training loop on this project's rows: drawn with replacement, with logits at every position."""

    def __init__(self, folder, shape, device):
        self.folder = folder
        self.rows, self.meta = open_rows(folder, "train", BLOCK_SIZE)
        self.lengths = row_lengths(self.rows, self.meta["special_ids"]["pad"])
        self.tokenizer = load_row_tokenizer(folder, self.meta)
        self.device = pick_device(device)
        self.steps = 0
        torch.manual_seed(1337)
        self.random = np.random.default_rng(1337)
        ids = -(-self.tokenizer.n_vocab // 64) * 64
        self.model = GPT(GPTConfig(BLOCK_SIZE, ids, **shape)).to(self.device)
        on_gpu = self.device.type == "cuda"
        self.forward = torch.compile(self.model) if should_compile("auto", self.device)[0] else self.model
        half = torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        self.autocast = torch.autocast(self.device.type, half, enabled=on_gpu)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=on_gpu and half == torch.float16)
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        others = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": RECIPE_DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=RECIPE_RATE, betas=RECIPE_BETAS, fused=on_gpu)

    def step(self):
        """One optimizer step; returns (tokens without PAD, floating-point operations on them)."""
        picked = self.random.integers(len(self.rows), size=BATCH_ROWS)
        rows = self.rows[picked]
        ids = torch.from_numpy(rows.astype(np.int64))
        mask = torch.from_numpy(loss_mask(rows, self.meta["special_ids"], self.meta["stage"]))
        x, targets = self.to_device(ids[:, :-1]), self.to_device(ids[:, 1:].masked_fill(~mask, -1))
        with self.autocast:
            logits = self.forward(x)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        self.steps += 1
        for group in self.optimizer.param_groups:
            group["lr"] = RECIPE_RATE * min(1.0, self.steps / LR_WARMUP_STEPS)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        tokens = self.lengths[picked].astype(np.int64)
        return int(tokens.sum()), self.model.training_flops(tokens.sum(), int(mask.sum()), (tokens**2).sum())

    def bits_per_char(self):
        """Bits per character of the validation rows."""
        return bits_of_rows(self)

    def to_device(self, tensor):
        """Copy from pinned memory without waiting, as nanoGPT does."""
        tensor = tensor.contiguous()
        return (tensor.pin_memory() if self.device.type == "cuda" else tensor).to(self.device, non_blocking=True)


class Ours:
    """This project's training: default optimizer and rates, batches of as many tokens as the recipe's."""

    def __init__(self, folder, shape, device):
        self.folder = folder
        settings = TrainSettings(
            data_dir=str(folder), out_dir=f"{folder}/run", block_size=BLOCK_SIZE, batch_tokens=BATCH_ROWS * BLOCK_SIZE,
            max_iters=10**6, warmup_iters=LR_WARMUP_STEPS, decay_lr=False, device=device, **shape,
        )  # fmt: skip
        self.run = TrainingRun(settings)
        self.device, self.model, data = self.run.device, self.run.model, self.run.data
        self.meta, self.tokenizer = data.meta, data.tokenizer

    def step(self):
        """One optimizer step; returns (tokens without PAD, floating-point operations on them)."""
        rows, kept = train_step(self.run)
        return rows.tokens, self.model.training_flops(rows.tokens, kept, rows.squares)

    def bits_per_char(self):
        """Bits per character of the validation rows."""
        return bits_of_rows(self)


def bits_of_rows(side):
    """Bits per character of the validation rows of a `Recipe` or `Ours`, under its model in float32."""
    rows, meta = open_rows(side.folder, "val", BLOCK_SIZE)
    return likelihood(side.model, rows, meta, BATCH_ROWS, side.tokenizer).bits_per_char


WAYS = {"recipe": Recipe, "ours": Ours, "minimind": Minimind}


def device_time(device):
    """The time, in seconds, once the device has finished its work."""
    wait_for(device)
    return time.perf_counter()


def measure_speed(way, folder, size, device, seconds):
    """Figures, a dict, of training one way (a key of WAYS) for `seconds` after its first steps."""
    side = WAYS[way](folder, SIZES[size], device)
    for _ in range(UNTIMED_STEPS):
        side.step()
    started, tokens, flops = device_time(side.device), 0, 0
    while time.perf_counter() - started < seconds:
        more = side.step()
        tokens, flops = tokens + more[0], flops + more[1]
    elapsed = device_time(side.device) - started
    counts = side.meta["parts"]["train"]
    memory, peak = peak_memory(side.device)[0], peak_flops(side.device)
    return {
        "tokens_per_second": tokens / elapsed,
        "characters_per_second": tokens / elapsed * counts["characters"] / counts["tokens"],
        "peak_memory_mb": memory and round(memory / 2**20),
        "mfu": peak and float(flops) / elapsed / peak,
    }


def measure_quality(way, folder, size, device, seconds, target=None):
    """[(seconds of training, bits per character on the validation part)] of training one way.

    Without a target the list has one entry, after `seconds`. With a target, validation takes place every
    SECONDS_BETWEEN_VALIDATIONS and ends once the target is reached. Setting up (choosing a data type, compiling) counts
    as training, validation does not.
    """
    started = time.perf_counter()
    side = WAYS[way](folder, SIZES[size], device)
    trained, curve, next_check = device_time(side.device) - started, [], 0.0 if target else seconds
    while True:
        if trained >= next_check:
            bits = side.bits_per_char()
            curve.append((round(trained, 2), round(bits, 4)))
            if trained >= seconds or (target and bits <= target):
                return curve
            next_check = trained + SECONDS_BETWEEN_VALIDATIONS
        started = time.perf_counter()
        side.step()
        trained += device_time(side.device) - started


def prepare_benchmark_rows(folder, settings):
    """Prepare rows of both tokenizers and both stages; returns the seconds that training the tokenizer took."""
    articles = [f"--input_dir={','.join(settings.input_dir)}", *reading_flags(settings)]
    tokenizer = f"{folder}/own.tiktoken"
    common = [*articles, "--overflow=split", f"--block_size={BLOCK_SIZE}"]
    seconds = run_quietly(
        "data/train_tokenizer.py", *articles, f"--tokenizer_path={tokenizer}", f"--tokenizer_vocab={VOCAB_SIZE}"
    )
    run_quietly("data/prepare.py", *common, f"--data_dir={folder}/gpt2")
    run_quietly("data/prepare.py", *common, f"--data_dir={folder}/own", f"--tokenizer={tokenizer}")
    questions = [
        f"--qa_files={','.join(settings.qa_files)}",
        f"--articles={','.join(settings.articles)}",
        *reading_flags(settings),
    ]
    run_quietly("data/prepare_sft.py", *questions, f"--sft_data_dir={folder}/sft", f"--block_size={BLOCK_SIZE}")
    return seconds


def compare_speed(folder, device, size, rounds, seconds, with_minimind=False):
    """{(stage, way, folder of rows): medians of the figures of `measure_speed`}. The ways take turns."""
    cases = [("sft", "recipe", "sft"), ("sft", "ours", "sft")]
    cases += [("pretrain", "recipe", "gpt2"), ("pretrain", "ours", "gpt2"), ("pretrain", "ours", "own")]
    cases += [("pretrain", "minimind", "minimind")] * with_minimind
    found = {case: [] for case in cases}
    for _ in range(rounds):
        for stage, way, data in cases:
            print(f"  {size}, {stage}, {way}, {data} …", flush=True)
            figures = call_in_process(measure_speed, way, f"{folder}/{data}", size, device, seconds)
            found[stage, way, data].append(figures)
    return {case: medians(figures) for case, figures in found.items()}


def compare_quality(folder, device, tokenizer_seconds):
    """Bits per character that the recipe reaches, and seconds until ours does, training its tokenizer included."""
    print(f"  the recipe for {RECIPE_SECONDS} s …", flush=True)
    ((seconds, target),) = call_in_process(measure_quality, "recipe", f"{folder}/gpt2", SMALL, device, RECIPE_SECONDS)
    print(f"  it reached {target:.2f} bits per character; ours until the same …", flush=True)
    curve = call_in_process(measure_quality, "ours", f"{folder}/own", SMALL, device, RECIPE_SECONDS, target)
    curve = [(round(s + tokenizer_seconds, 2), bits) for s, bits in curve]
    reached = curve[-1][1] <= target
    return {
        "recipe_seconds": seconds,
        "bits_per_char": target,
        "our_seconds": curve[-1][0] if reached else None,
        "table_seconds": round(tokenizer_seconds, 2),
        "our_curve": curve,
    }


def compare_with_minimind(folder, device, tokenizer_seconds):
    """{"seconds", "minimind", "ours"}: bits per character after MINIMIND_SECONDS, of which ours trains its tokenizer,
    too."""
    bits = {}
    for way, data, seconds in (
        ("minimind", "minimind", MINIMIND_SECONDS),
        ("ours", "own", MINIMIND_SECONDS - tokenizer_seconds),
    ):
        print(f"  {way} for {seconds:.0f} s …", flush=True)
        ((_, bits[way]),) = call_in_process(measure_quality, way, f"{folder}/{data}", SMALL, device, seconds)
    return {"seconds": MINIMIND_SECONDS, **bits}


def training_ratios(speed, quality):
    """Figures of ours over those of the recipe, for the small model; None where quality was not measured.

    Where minimind was measured, characters_over_minimind too.
    """

    def ratio(stage, rows, unit, their_rows, way="recipe"):
        return speed[stage, "ours", rows][unit] / speed[stage, way, their_rows][unit]

    time_ratio = quality and quality["our_seconds"] and quality["recipe_seconds"] / quality["our_seconds"]
    ratios = {
        "sft_useful_tokens_ratio": ratio("sft", "sft", "tokens_per_second", "sft"),
        "pretrain_useful_tokens_ratio": ratio("pretrain", "gpt2", "tokens_per_second", "gpt2"),
        "characters_ratio": ratio("pretrain", "own", "characters_per_second", "gpt2"),
        "same_table_ratio": ratio("pretrain", "gpt2", "characters_per_second", "gpt2"),
        "time_to_bpc_ratio": time_ratio,
    }
    if ("pretrain", "minimind", "minimind") in speed:
        their = "minimind", "minimind"
        ratios["characters_over_minimind"] = ratio("pretrain", "own", "characters_per_second", *their)
    return ratios


def training_table(sizes, quality, ratios, beside_minimind=None):
    """Markdown tables. sizes: {size: figures of `compare_speed`}; beside_minimind: of `compare_with_minimind`."""
    names = ["model", "stage", "way", "tokenizer", "useful tokens/s", "characters/s", "peak memory, MB", "MFU"]
    rows = [
        [
            size, stage, way, TOKENIZER_OF_ROWS[data], f"{f['tokens_per_second']:,.0f}",
            f"{f['characters_per_second']:,.0f}", f"{f['peak_memory_mb']:,.0f}" if f["peak_memory_mb"] else None,
            f"{f['mfu']:.1%}" if f["mfu"] else None,
        ]
        for size, speed in sizes.items()
        for (stage, way, data), f in speed.items()
    ]  # fmt: skip
    shown = [[name, f"{value:.1f}" if value else "not measured"] for name, value in ratios.items()]
    parts = [
        markdown_table(names, rows, left=4),
        markdown_table([f"ratio, ours over the recipe, {SMALL}", ""], shown),
    ]
    if quality:
        ours = f"{quality['our_seconds']:.1f} s" if quality["our_seconds"] else f"not within {RECIPE_SECONDS} s"
        parts.append(
            f"The recipe reached {quality['bits_per_char']:.2f} bits per character on the validation part after "
            f"{quality['recipe_seconds']:.0f} s of training; ours after {ours}, including "
            f"{quality['table_seconds']:.1f} s for training its tokenizer. "
            "(Our tokenizer is trained on the validation articles, too.)"
        )
    if beside_minimind:
        parts.append(
            f"After {beside_minimind['seconds']} s of training minimind has {beside_minimind['minimind']:.2f} bits per "
            f"character on the validation part, ours {beside_minimind['ours']:.2f}, training its tokenizer included."
        )
    return "\n\n".join(parts)


def bench_training(settings):
    """Measure training; print the tables, and write JSON and docs by the settings of bench.py."""
    device, quick, minimind = pick_device(settings.device), settings.quick, settings.minimind
    rounds, seconds = (QUICK_TRAINING_ROUNDS, QUICK_ROUND_SECONDS) if quick else (TRAINING_ROUNDS, ROUND_SECONDS)
    name = machine_name(device)
    with tempfile.TemporaryDirectory(prefix="minigpt-bench-") as folder:
        if minimind:
            call_in_process(check_clone, minimind, f"{folder}/cache")
        print(f"{name}\npreparing the rows …", flush=True)
        tokenizer_seconds = prepare_benchmark_rows(folder, settings)
        if minimind:
            texts = f"{folder}/minimind"
            call_in_process(prepare_minimind_texts, f"{folder}/own", texts, minimind, SIZES[SMALL])
        sizes = [SMALL, LARGE] if device.type == "cuda" and not quick else [SMALL]
        speed = {size: compare_speed(folder, settings.device, size, rounds, seconds, bool(minimind)) for size in sizes}
        quality = beside_minimind = None
        if not quick:
            quality = compare_quality(folder, settings.device, tokenizer_seconds)
        if minimind and not quick:
            beside_minimind = compare_with_minimind(folder, settings.device, tokenizer_seconds)
    ratios = training_ratios(speed[SMALL], quality)
    flat = {size: {" ".join(case): f for case, f in cases.items()} for size, cases in speed.items()}
    values = {"machine": name, **ratios, "speed": flat, "quality": quality}
    values |= {"beside_minimind": beside_minimind} if minimind else {}
    data = ", ".join(Path(path).name for path in [*settings.input_dir, *settings.qa_files])
    table = training_table(speed, quality, ratios, beside_minimind)
    publish_results(settings, f"Training: {name}; {data}", table, values)
