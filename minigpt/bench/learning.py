"""What learns best in a given time: changes ("arms") of architecture, schedule and optimizer, one at a time.

Equal time is counted, not waited for, so that it does not matter what else the machine does. The CPU time of each arm's
step is measured on one thread, the arms taking turns, and the best time of each batch counts. An arm then trains for as
many steps as fit into its CPU seconds, with a schedule of just these steps.

Every run adds a line to out/bench_learn/results.jsonl when it ends. Started again, the benchmark makes the runs of
`PLAN` that are not there yet.
"""

import json
import math
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch

from minigpt.bench.arms import ARMS, build_arm
from minigpt.bench.common import call_in_process, count_cores, machine_name, publish_results, reading_flags, run_quietly
from minigpt.common.files import PROJECT, append_durably
from minigpt.corpus.row_files import META
from minigpt.device import Precision
from minigpt.evaluation.tables import markdown_table
from minigpt.inference.likelihood import likelihood
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import TrainSettings
from train import train_step

OUT = Path("out/bench_learn")
TIMED_BATCHES, TIMING_ROUNDS = 4, 4
VALIDATIONS = 10  # in a run, evenly spaced
# (settings file, CPU seconds, seeds, arms) in the order of the runs: config/laptop.py trains on the articles of the
# setting input_dir, config/demo.py on the embedded corpus.
PLAN = [
    ("laptop", 450, (1,), ("gpt2", "qwen3")),
    ("demo", 60, (1,), ("gpt2", "qwen3")),
    ("laptop", 100, (1, 2), ("gpt2", "qwen3", "qwen3, linear to zero")),
    ("laptop", 100, (1,), tuple(ARMS)),
]
QUICK_PLAN = [("demo", 60, (1,), ("gpt2", "qwen3"))]


def calibrate(names, settings, rounds, precision=None):
    """Time the steps of arms on equal batches, interleaved, in `rounds` rounds after one to warm up.

    precision: of all arms, as `Precision.to_dict` gives it; None: as training chooses it for the first arm.
    Returns {"precision", "batch_seconds": {arm: its best CPU time of each batch, in seconds of one thread}}.
    """
    precision = precision or build_arm(names[0], settings).precision.to_dict(torch.device("cpu"))
    torch.set_num_threads(1)
    runs = {name: build_arm(name, settings, precision=precision) for name in names}
    best = {name: [float("inf")] * TIMED_BATCHES for name in names}
    for turn in range(rounds + 1):
        for run in runs.values():
            run.progress.epoch = run.progress.batch = 0
        for batch in range(TIMED_BATCHES):
            for name, run in runs.items():
                started = time.process_time()
                train_step(run)
                if turn:
                    best[name][batch] = min(best[name][batch], time.process_time() - started)
    return {"precision": precision, "batch_seconds": best}


def train_arm(name, settings, seed, steps, precision):
    """Train an arm for `steps` steps.

    Returns {"loss" (nats a token), "bits_per_char" (EOT left out), "curve": [[steps, loss]]} on the validation part.
    """
    run = build_arm(name, settings, seed, steps, precision)
    share, warmup = ARMS[name].decay_share, min(run.settings.warmup_iters, steps // 2)
    peaks = [(group, group["peak_lr"]) for optimizer in run.optimizers for group in optimizer.param_groups]
    checks, curve = {round(steps * (i + 1) / VALIDATIONS) for i in range(VALIDATIONS)}, []
    for step in range(steps):
        left = 1 - max(0, step - warmup) / max(1, steps - warmup)
        scale = min(1.0, left / share) if share else 0.5 - 0.5 * math.cos(math.pi * left)
        for group, peak in peaks:
            group["peak_lr"] = peak * scale
        train_step(run)
        if step + 1 in checks:
            data = run.data
            part = likelihood(
                run.model, data.val, data.meta, 0, data.tokenizer, Precision.from_dict(precision, run.device)
            )
            run.model.train()
            curve.append([step + 1, round(part.loss, 4)])
    return {"loss": round(part.loss, 4), "bits_per_char": round(part.bits_per_char, 4), "curve": curve}


def prepare_corpus(file, settings):
    """The `TrainSettings` of config/{file}.py, after preparing its rows where they are not there yet."""
    config = str(PROJECT / "config" / f"{file}.py")
    inputs = [f"--input_dir={','.join(settings.input_dir)}", *reading_flags(settings)] if file == "laptop" else []
    folder = OUT / corpus_name(file, settings)
    tokenizer = f"{folder}/own.tiktoken"
    if not (folder / META).exists():
        run_quietly("data/train_tokenizer.py", config, *inputs, f"--tokenizer_path={tokenizer}")
        run_quietly("data/prepare.py", config, *inputs, f"--tokenizer={tokenizer}", f"--data_dir={folder}")
    flags = [f"--data_dir={folder}", f"--out_dir={folder}/run", "--device=cpu"]
    return load_settings(TrainSettings, [config, *flags, "--max_epochs=0", "--compile=off"])


def corpus_name(file, settings):
    """The name of a settings file's corpus in the results."""
    paths = settings.input_dir if file == "laptop" else ["wiki_sample"]
    return f"{'+'.join(Path(path).name for path in paths)}-{file}"


class Results:
    """The lines of results.jsonl: calibrations {"corpus", "precision", "batch_seconds"}, and runs."""

    def __init__(self, path):
        self.path = Path(path)
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        self.lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]  # one may be torn

    def add(self, **line):
        append_durably(self.path, json.dumps(line, ensure_ascii=False) + "\n")
        self.lines.append(line)

    def calibrations(self, corpus):
        return [line for line in self.lines if line["corpus"] == corpus and "batch_seconds" in line]

    def step_seconds(self, corpus, arm):
        """Mean over the timed batches of the best times of an arm and of all with its work; None if not timed."""
        timed = [
            seconds
            for line in self.calibrations(corpus)
            for name, seconds in line["batch_seconds"].items()
            if ARMS[name].work == ARMS[arm].work
        ]
        return statistics.mean(map(min, zip(*timed, strict=True))) if timed else None

    def runs(self, corpus, seconds, arm):
        """The runs of an arm, by seed."""
        wanted = {"corpus": corpus, "seconds": seconds, "arm": arm}
        runs = [line for line in self.lines if "loss" in line and wanted.items() <= line.items()]
        return {line["seed"]: line for line in runs}


def planned_runs(plan):
    """The runs of a plan, each once, in its order, as (settings file, CPU seconds, seed, arm)."""
    rows = ((file, seconds, seed, name) for file, seconds, seeds, names in plan for seed in seeds for name in names)
    return list(dict.fromkeys(rows))


def measure_plan(plan, settings, results, rounds=TIMING_ROUNDS):
    """Make the runs of a plan that `results` does not have. settings: {settings file: (corpus, `TrainSettings`)}."""
    # Time the steps of all arms of a corpus together.
    for file, (corpus, train_settings) in settings.items():
        names = list(dict.fromkeys(name for of, _, _, name in planned_runs(plan) if of == file))
        names = [name for name in names if not results.step_seconds(corpus, name)]
        if names:
            print(f"timing the steps of {len(names)} arms, {corpus} …", flush=True)
            precision = next((line["precision"] for line in results.calibrations(corpus)), None)
            results.add(corpus=corpus, **call_in_process(calibrate, names, train_settings, rounds, precision))

    # Train.
    with ProcessPoolExecutor(count_cores(), get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        waiting = {}
        for file, seconds, seed, name in planned_runs(plan):
            corpus, train_settings = settings[file]
            if seed in results.runs(corpus, seconds, name):
                continue
            step_seconds = results.step_seconds(corpus, name)
            steps = max(1, round(seconds / step_seconds))
            precision = results.calibrations(corpus)[0]["precision"]  # that of all runs
            run = pool.submit(train_arm, name, train_settings, seed, steps, precision)
            waiting[run] = {
                "corpus": corpus, "arm": name, "seed": seed, "seconds": seconds, "steps": steps,
                "seconds_a_step": round(step_seconds, 5),
            }  # fmt: skip
        for run in as_completed(waiting):
            results.add(**waiting[run], **run.result())
            print(f"  {json.dumps(results.lines[-1], ensure_ascii=False)}", flush=True)


def share_of_time(run, target):
    """Share of a run's steps after which its validation loss is at most `target`, between points in a line; or None."""
    before = None
    for steps, loss in run["curve"]:
        if loss <= target:
            if before:
                steps -= (steps - before[0]) * (target - loss) / (before[1] - loss)
            return steps / run["steps"]
        before = steps, loss
    return None


def spread_text(values, form):
    """Mean of some values, and largest minus smallest where there are several."""
    text = format(statistics.mean(values), form)
    return text if len(values) == 1 else f"{text} ± {format((max(values) - min(values)) / 2, form)}"


def learning_table(plan, settings, results):
    """A Markdown table of each corpus and time. Arms are compared with gpt2's runs of the same seeds."""
    columns = ["arm", "ms a step", "steps", "seeds", "nats a token", "bits a character", "of gpt2's", "time to gpt2's"]
    parts = []
    for file, seconds in dict.fromkeys((file, seconds) for file, seconds, _, _ in plan):
        corpus, rows = settings[file][0], []
        base = results.runs(corpus, seconds, "gpt2")
        for name in ARMS:
            runs = results.runs(corpus, seconds, name)
            if not runs:
                continue
            pairs = [(run, base[seed]) for seed, run in runs.items() if seed in base]
            ratios = [run["bits_per_char"] / of["bits_per_char"] for run, of in pairs]
            times = [share_of_time(run, of["loss"]) for run, of in pairs]
            first = next(iter(runs.values()))
            rows.append([
                name, f"{1000 * first['seconds_a_step']:.1f}", first["steps"], len(runs),
                *(spread_text([run[key] for run in runs.values()], ".3f") for key in ("loss", "bits_per_char")),
                f"{statistics.mean(ratios):.1%}" if ratios else None,
                f"{statistics.mean(times):.2f}" if times and None not in times else None,
            ])  # fmt: skip
        rows.sort(key=lambda row: float(row[5].split()[0]))  # the least bits first
        parts.append(f"{corpus}, {seconds} CPU seconds:\n\n{markdown_table(columns, rows)}")
    return "\n\n".join(parts)


def bench_learning(settings):
    """Measure what learns best; print the tables, and write JSON and docs by the settings of bench.py."""
    plan = QUICK_PLAN if settings.quick else PLAN
    corpora = {file: (corpus_name(file, settings), prepare_corpus(file, settings)) for file, *_ in plan}
    results = Results(OUT / "results.jsonl")
    measure_plan(plan, corpora, results)
    name = machine_name(torch.device("cpu"))
    publish_results(settings, f"What learns best: {name}", learning_table(plan, corpora, results), results.lines)
