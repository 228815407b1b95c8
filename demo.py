"""The whole way on the embedded corpus, from articles to answers, in minutes on a CPU.

    python demo.py          (or: make demo)

Runs the project's own scripts one after the other, as you would, shows what came of it, and writes
out/demo_sft/metrics.json. Fine-tuning stops once the share stop_at_answered (config/demo_sft.py) of 200 training
questions is answered; where it ends below FLOOR, the last words say so. max_seconds in the two settings files bounds
a slow machine's training. Ctrl-C keeps what is there.
"""

import time

STARTED = time.perf_counter()

import json
import math
import subprocess
import sys
from pathlib import Path

from data_utils import open_rows, split_row
from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.common.files import write_json
from minigpt.inference.engine import open_generator
from minigpt.inference.params import SamplingParams
from minigpt.run_log import LOG, log_lines
from minigpt.settings.parse import load_settings
from minigpt.settings.record import Settings
from minigpt.training.answered import ASKED

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None

SETTINGS = "config/demo.py", "config/demo_sft.py"
BASE, TUNED, TUNED_LAST = "out/demo/last.pt", "out/demo_sft/ckpt.pt", "out/demo_sft/last.pt"
PLOT, METRICS = "out/demo_sft/loss.png", Path("out/demo_sft/metrics.json")
TRAINED_SAMPLE = 400  # trained questions that are asked
FLOOR = 0.90  # share of the trained questions asked at fine-tuning's last check; below it the demo has failed
SHOWN = 5
GREEDY = ["--temperature=0", "--max_new_tokens=60", "--show=0"]
STEPS = [
    ("preparing", "data/train_tokenizer.py", SETTINGS[0]),
    ("preparing", "data/prepare.py", SETTINGS[0]),
    ("preparing", "data/prepare_sft.py", SETTINGS[1]),
    ("pretraining", "train.py", SETTINGS[0]),
    ("fine-tuning", "train.py", SETTINGS[1]),
]
FORECAST_SECONDS = 60  # of the demo, after which it says how long all will take
FORECAST_LINES = 3  # of the log, at least, that tell the pace
# What fine-tuning and the measuring after it take, as shares of the time of pretraining's planned passes.
TUNING_SHARE, MEASURING_SHARE = 0.1, 0.08
COMPLETE = 0.98  # share of the passes that counts as all of them
MARGIN = 1.1  # over the seconds that the passes take by their pace


def run(*arguments, watch=None):
    """Run one of the project's scripts and print how long it took. Raises UserError when it fails.

    watch() is called about once a second meanwhile.
    """
    print(f"\n$ python {' '.join(arguments)}", flush=True)
    started, status = time.perf_counter(), None
    process = subprocess.Popen([sys.executable, *arguments])
    try:
        while status is None:
            try:
                status = process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                if watch:
                    watch()
    except KeyboardInterrupt:  # Ctrl-C reaches the script too; let it save
        process.wait()
        raise
    if status:
        raise UserError(f"`python {' '.join(arguments)}` ended with status {status}; its own message stands above")
    print(f"  ({time.perf_counter() - started:.0f} s)", flush=True)


def share_done(line, training):
    """Share of its planned passes (or steps) that a training had made at a line of its log."""
    return line["epoch"] / training.max_epochs if training.max_epochs else line["step"] / training.max_iters


def seconds_for_all(lines, training):
    """Seconds that all planned passes of a training take, by the pace its log tells; None where that is too short."""
    if len(lines) < FORECAST_LINES:
        return None
    share = share_done(lines[-1], training) - share_done(lines[0], training)
    return (lines[-1]["seconds"] - lines[0]["seconds"]) / share if share > 0 else None


def seconds_to_come(lines, pretraining, tuning):
    """Seconds that the demo goes on from the last line of pretraining's log, by its pace; None if that is not known.

    pretraining, tuning: the `Settings` of the two trainings, whose max_seconds bound them.
    """
    whole = seconds_for_all(lines, pretraining)
    if whole is None:
        return None
    read = min(whole, pretraining.max_seconds or math.inf)
    tuned = min(TUNING_SHARE * whole, tuning.max_seconds or math.inf)
    return max(0.0, read - lines[-1]["seconds"]) + tuned + MEASURING_SHARE * whole


class Forecast:
    """Says once, after the demo's first minute, how long this machine will take; called while pretraining runs."""

    def __init__(self, pretraining, tuning):
        self.settings, self.said = (pretraining, tuning), False
        self.log, self.began = Path(pretraining.out_dir) / LOG, time.time()

    def __call__(self):
        elapsed = time.perf_counter() - STARTED
        if self.said or elapsed < FORECAST_SECONDS or not self.log.exists() or self.log.stat().st_mtime < self.began:
            return
        if (left := seconds_to_come(log_lines(self.log), *self.settings)) is not None:
            self.said = True
            print(f"\n{forecast_words(elapsed, left)}", flush=True)


def forecast_words(elapsed, left):
    """The line about how long the demo takes, given seconds gone and to come."""
    return (
        f"This machine will take about {(elapsed + left) / 60:.0f} min in all, {left / 60:.0f} min from now on "
        "(by its pace so far). Ctrl-C keeps what is there."
    )


def stopped_words(stage):
    """What is kept, and how to go on, after Ctrl-C in a stage of STEPS or while measuring."""
    ask = "python sample.py"
    tune = f"python train.py {SETTINGS[1]}"
    if stage == "measuring":
        return f"Stopped while measuring. The model is trained and kept: {TUNED}.\nAsk it: {ask}"
    if stage == "fine-tuning" and Path(TUNED_LAST).exists():
        return (
            f"Stopped in fine-tuning. Kept: {TUNED_LAST}, which answers as well as it has learnt so far.\n"
            f"Ask it: {ask} --ckpt={TUNED_LAST}\nGo on: {tune} --init_from=resume, then {ask}"
        )
    if stage != "preparing" and Path(BASE).exists():
        resume = f"python train.py {SETTINGS[0]} --init_from=resume, then " if stage == "pretraining" else ""
        return (
            f"Stopped in {stage}. Kept: {BASE}, which continues texts but does not answer questions yet.\n"
            f"Try it: {ask} --ckpt={BASE}\nGo on: {resume}{tune}, then {ask}"
        )
    return "Stopped before any training. Nothing is lost: run python demo.py again."


def seconds_needed(lines, training):
    """The max_seconds, in whole minutes, that a training needs for all its passes; None where it made them."""
    whole = seconds_for_all(lines, training)
    if whole is None or not training.max_seconds or share_done(lines[-1], training) > COMPLETE:
        return None
    return 60 * math.ceil(MARGIN * whole / 60)


def floor_words(logs, trainings):
    """Whether the floor was reached, and if not why, and what to do: a text of one or three lines.

    logs: the lines of the two trainings' logs; trainings: their `Settings`.
    """
    if not trainings[1].stop_at_answered:
        return f"Whether the floor is reached is not known: stop_at_answered is 0 in {SETTINGS[1]}."
    share = next((line["answered"] for line in reversed(logs[1]) if "answered" in line), 0.0)
    said = f"{share:.3f} of {ASKED} trained questions were answered at the last check; the floor is {FLOOR:.2f}"
    if share >= FLOOR:
        return f"The floor is reached: {said}."
    made = [f"{share_done(lines[-1], training):.0%}" for lines, training in zip(logs, trainings, strict=True)]
    needed = [
        f"max_seconds = {seconds} in {path}"
        for lines, training, path in zip(logs, trainings, SETTINGS, strict=True)
        if (seconds := seconds_needed(lines, training))
    ]
    advice = f"Give it the time: set {' and '.join(needed)}"
    if not needed:
        advice = f"Time was not what it lacked: raise max_epochs in {' and '.join(SETTINGS)}"
    made = f"Of the planned passes, pretraining made {made[0]} and fine-tuning {made[1]}"
    return f"THE FLOOR IS MISSED: {said}.\n{made}.\n{advice}; then run this again."


def measured(name, *arguments):
    """The figures that an evaluation script writes."""
    path = METRICS.with_name(f"{name}.json")
    run(*arguments, f"--json={path}")
    return json.loads(path.read_text(encoding="utf-8"))


def peak_memory_mb():
    """Largest resident memory of any process of the demo, in MB; None on Windows, which does not tell it afterwards."""
    if resource is None:
        return None
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(peak / (1024**2 if sys.platform == "darwin" else 1024))


def show_answers():
    """Print five held-out questions with the model's answers."""
    _, _, generator = open_generator(TUNED, Settings())
    rows, meta = open_rows("data/processed_demo_sft", "test")
    print(f"\n{SHOWN} questions about subjects that no training question was about:")
    for row in rows[:: max(1, len(rows) // SHOWN)][:SHOWN]:
        question, reference = map(generator.tokenizer.decode, split_row(row, meta["special_ids"]))
        answer = "".join(generator.submit(question, SamplingParams(temperature=0.0)))
        print(f"  问 {question}\n  答 {answer}\n  应 {reference}\n")


def measure():
    """Figures of the two models, by the evaluation scripts: what metrics.json gets, and the counts of questions."""
    data, tuned = "--data_dir=data/processed_demo_sft", f"--ckpt={TUNED}"
    base = measured(
        "base_perplexity",
        "evaluations-perplexity.py",
        f"--ckpt={BASE}",
        "--data_dir=data/processed_demo",
        "--batch_size=64",
    )
    perplexity = measured("perplexity", "evaluations-perplexity.py", tuned, data, "--split=test", "--batch_size=64")
    trained = measured(
        "trained", "evaluations-RougeL.py", tuned, data, "--split=train", f"--max_samples={TRAINED_SAMPLE}", *GREEDY
    )
    heldout = measured("heldout", "evaluations-RougeL.py", tuned, data, *GREEDY)
    run("visualize.py", "--runs=out/demo,out/demo_sft", f"--plot={PLOT}")
    metrics = {
        "trained_exact_match": trained["exact_match"],
        "heldout_exact_match": heldout["exact_match"],
        "heldout_rouge_l": heldout["rouge_l_f"],
        "perplexity": perplexity["perplexity"],
        "bits_per_char": base["bits_per_char"],
    }
    return metrics, trained["pairs"], heldout["pairs"]


def print_figures(metrics, pairs, asked):
    """The lines that the demo ends with; pairs, asked: how many trained and held-out questions were asked."""
    metric = metrics.get
    print(f"trained questions:  exact match {metric('trained_exact_match'):.3f} (a sample of {pairs})")
    print(f"held-out questions: exact match {metric('heldout_exact_match'):.3f} (all {asked}), ", end="")
    print(f"Rouge-L {metric('heldout_rouge_l'):.3f}, perplexity {metric('perplexity'):.2f}")
    print(f"base model: {metric('bits_per_char'):.2f} bits a character on articles about subjects it never saw")
    memory = f"at most {metrics['peak_memory_mb']} MB" if metrics["peak_memory_mb"] else "memory not measured"
    print(f"{metric('seconds'):.0f} s, {memory}; figures: {METRICS}; loss curves: {PLOT}")


def main():
    trainings = [load_settings("train", [path]) for path in SETTINGS]
    stage = STEPS[0][0]
    try:
        for stage, *arguments in STEPS:
            run(*arguments, watch=Forecast(*trainings) if stage == "pretraining" else None)
        stage = "measuring"
        figures, pairs, asked = measure()
        show_answers()
    except KeyboardInterrupt:
        print(f"\n{stopped_words(stage)}")
        raise SystemExit(130) from None
    seconds = round(time.perf_counter() - STARTED, 1)
    metrics = {"seconds": seconds, "peak_memory_mb": peak_memory_mb(), **figures}
    write_json(METRICS, metrics)
    print_figures(metrics, pairs, asked)
    print("\nNext: ask it yourself (make sample, or python sample.py), have its report card written (python")
    print("evaluations-report.py). Then with your own articles and questions:")
    print("give config/demo.py your input_dir, config/demo_sft.py your qa_files and articles, and run this again;")
    print('with a graphics card, go on with config/train_config.py, the 124M model (README.md, "Your own model").')
    logs = [log_lines(Path(training.out_dir) / LOG) for training in trainings]
    print(f"\n{floor_words(logs, trainings)}")


if __name__ == "__main__":
    run_script(main)
