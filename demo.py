"""Trains a small model on the embedded corpus, from articles to answers, in minutes on a CPU.

    python demo.py          (or: make demo)
    python demo.py --resume # after Ctrl-C or a crash: goes on with the script that was stopped
    python demo.py --quick  # the whole way in half a minute, to see that everything runs: the model can do nothing

Runs the project's scripts one after the other, as a user would, and writes figures to out/demo_sft/metrics.json.
Fine-tuning stops once the share stop_at_answered (config/demo_sft.py) of 200 training questions is answered. If it ends
below FLOOR, the last lines say so. max_seconds in the two settings files limits the time of training. After Ctrl-C all
files stay.
"""

import time

STARTED = time.perf_counter()

import argparse
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

from data_utils import open_rows
from minigpt.checkpoint import LAST
from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.common.files import write_json
from minigpt.evaluation.prompts import pairs_of_rows
from minigpt.inference.engine import open_generator
from minigpt.inference.params import SamplingParams
from minigpt.run_log import LOG, log_lines
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import SampleSettings, TrainSettings
from minigpt.training.validation import QUESTIONS_ASKED

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None

SETTINGS_FILES = "config/demo.py", "config/demo_sft.py"
BASE, TUNED, TUNED_LAST = "out/demo/last.pt", "out/demo_sft/ckpt.pt", "out/demo_sft/last.pt"
PLOT, METRICS = "out/demo_sft/loss.png", Path("out/demo_sft/metrics.json")
PROGRESS = Path("out/demo_progress.json")  # for --resume: which of STEPS are done, and whether it is --quick
COURSE = "docs/course/README.md"
TRAINED_QUESTIONS = 400  # training questions that the evaluation asks
# SIGBREAK is Windows' Ctrl-Break, by which the arena's page stops the demo.
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]
FLOOR = 0.90  # least share of training questions answered at the last validation; below it the demo has failed
SHOWN_QUESTIONS = 5
GREEDY_FLAGS = ["--temperature=0", "--max_new_tokens=60", "--show=0"]
STEPS = [
    ("preparing", "data/train_tokenizer.py", SETTINGS_FILES[0]),
    ("preparing", "data/prepare.py", SETTINGS_FILES[0]),
    ("preparing", "data/prepare_sft.py", SETTINGS_FILES[1]),
    ("pretraining", "train.py", SETTINGS_FILES[0]),
    ("fine-tuning", "train.py", SETTINGS_FILES[1]),
]
# Of --quick: flags of the two trainings, and what is measured. Most of its time is Python's start of each script.
QUICK_TRAINING = ["--warmup_iters=5", "--eval_interval=10", "--stop_at_answered=0", "--watch_prompts="]
QUICK_FLAGS = {
    "pretraining": ["--max_epochs=0.03", *QUICK_TRAINING],
    "fine-tuning": ["--max_epochs=0.1", *QUICK_TRAINING],
}
QUICK_ASKED = 20  # held-out questions that are asked
QUICK_TEXT = "This was --quick: all scripts run, but the model has learned nothing. One that answers: python demo.py"
FORECAST_SECONDS = 60  # after the start of the demo, how long it will take is printed
MIN_FORECAST_LINES = 3  # of the log, for an estimate of the speed
# Time of fine-tuning and of the evaluations, over the time of all planned epochs of pretraining.
TUNING_SHARE, MEASURING_SHARE = 0.1, 0.08
COMPLETE_SHARE = 0.98  # share of the planned epochs that counts as all of them
TIME_MARGIN = 1.1  # factor on the estimated time, when max_seconds is suggested


def run(*arguments, watch=None):
    """Run one of the project's scripts and print how long it took. Raises UserError where it fails.

    watch: called about once a second while the script runs.
    """
    print(f"\n$ python {' '.join(arguments)}", flush=True)
    started, status = time.perf_counter(), None

    # Ctrl-C reaches the script, too; wait until it has saved. A KeyboardInterrupt within `wait` could leave the lock of
    # the Popen held, and the next `wait` would never return. SIGTERM reaches this process only and is passed on:
    # otherwise the script would train on alone, and a second demo beside it into the same folders.
    process, interrupts = None, []

    def note(number, _):
        interrupts.append(number)
        if process and number == signal.SIGTERM:
            process.terminate()

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        process = subprocess.Popen([sys.executable, *arguments])
        while status is None:
            try:
                status = process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                if watch:
                    watch()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if interrupts:
        raise KeyboardInterrupt
    if status:
        raise UserError(f"`python {' '.join(arguments)}` ended with status {status}; its own message is above")
    print(f"  ({time.perf_counter() - started:.0f} s)", flush=True)


def share_done(line, training):
    """Share of the planned epochs (or steps) that a training had done at a line of its log."""
    return line["epoch"] / training.max_epochs if training.max_epochs else line["step"] / training.max_iters


def seconds_for_all(lines, training):
    """Estimated seconds of all planned epochs of a training, by its log; None where the log is too short."""
    if len(lines) < MIN_FORECAST_LINES:
        return None
    share = share_done(lines[-1], training) - share_done(lines[0], training)
    return (lines[-1]["seconds"] - lines[0]["seconds"]) / share if share > 0 else None


def seconds_to_come(lines, pretraining, tuning):
    """Estimated seconds of the demo after the last line of pretraining's log; None where they cannot be estimated.

    pretraining, tuning: the `Settings` of the two trainings, which are limited by their max_seconds.
    """
    total = seconds_for_all(lines, pretraining)
    if total is None:
        return None
    pretraining_seconds = min(total, pretraining.max_seconds or math.inf)
    tuning_seconds = min(TUNING_SHARE * total, tuning.max_seconds or math.inf)
    return max(0.0, pretraining_seconds - lines[-1]["seconds"]) + tuning_seconds + MEASURING_SHARE * total


class Forecast:
    """Prints once, after the first minute of the demo, how long it will take. It is called while pretraining runs."""

    def __init__(self, pretraining, tuning):
        self.settings = pretraining, tuning
        self.log = Path(pretraining.out_dir) / LOG
        self.started = time.time()
        self.is_printed = False

    def __call__(self):
        elapsed = time.perf_counter() - STARTED
        if self.is_printed or elapsed < FORECAST_SECONDS:
            return
        if not self.log.exists() or self.log.stat().st_mtime < self.started:  # the log of an earlier run
            return
        if (left := seconds_to_come(log_lines(self.log), *self.settings)) is not None:
            self.is_printed = True
            print(f"\n{forecast_text(elapsed, left)}", flush=True)


def forecast_text(elapsed, left):
    """How long the demo takes, in a line. elapsed, left: in seconds."""
    return (
        f"This machine will take about {(elapsed + left) / 60:.0f} min in all, {left / 60:.0f} min from now on "
        "(by its speed so far). After Ctrl-C all files stay."
    )


def interrupted_text(stage):
    """Text after Ctrl-C in a stage of STEPS, or in "measuring": which checkpoint there is, and how to continue."""
    ask, resume = "python sample.py", "Continue: python demo.py --resume"
    if stage == "measuring":
        return f"Stopped during the evaluation. The model is trained: {TUNED}.\nAsk it: {ask}\n{resume}"
    if stage == "fine-tuning" and Path(TUNED_LAST).exists():
        return (
            f"Stopped in fine-tuning. {TUNED_LAST} is the model so far, which answers some questions.\n"
            f"Ask it: {ask} --ckpt={TUNED_LAST}\n{resume}"
        )
    if stage != "preparing" and Path(BASE).exists():
        return (
            f"Stopped in {stage}. {BASE} is the model so far, which continues texts but answers no questions yet.\n"
            f"Try it: {ask} --ckpt={BASE}\n{resume}"
        )
    return f"Stopped before any training. Nothing is lost.\n{resume}"


def seconds_needed(lines, training):
    """max_seconds, in whole minutes, that a training needs for all planned epochs; None where it has done them."""
    total = seconds_for_all(lines, training)
    if total is None or not training.max_seconds or share_done(lines[-1], training) > COMPLETE_SHARE:
        return None
    return 60 * math.ceil(TIME_MARGIN * total / 60)


def floor_text(logs, trainings):
    """Text of one line where the floor was reached, else of three, which say why it was not and what to do.

    logs: lines of the logs of the two trainings; trainings: their `Settings`.
    """
    if not trainings[1].stop_at_answered:
        return f"Whether the floor is reached is not known: stop_at_answered is 0 in {SETTINGS_FILES[1]}."
    share = next((line["answered"] for line in reversed(logs[1]) if "answered" in line), 0.0)
    asked = f"{QUESTIONS_ASKED} training questions"
    result = f"{share:.3f} of {asked} were answered at the last validation; the floor is {FLOOR:.2f}"
    if share >= FLOOR:
        return f"The floor is reached: {result}."
    done = [f"{share_done(lines[-1], training):.0%}" for lines, training in zip(logs, trainings, strict=True)]
    needed = [
        f"max_seconds = {seconds} in {path}"
        for lines, training, path in zip(logs, trainings, SETTINGS_FILES, strict=True)
        if (seconds := seconds_needed(lines, training))
    ]
    advice = f"Training needs more time: set {' and '.join(needed)}"
    if not needed:
        advice = f"The time was sufficient: raise max_epochs in {' and '.join(SETTINGS_FILES)}"
    progress = f"Pretraining did {done[0]} and fine-tuning {done[1]} of the planned epochs"
    return f"THE FLOOR IS MISSED: {result}.\n{progress}.\n{advice}; then run this again."


def run_evaluation(name, *arguments):
    """Run an evaluation script; returns the figures that it writes to NAME.json."""
    path = METRICS.with_name(f"{name}.json")
    run(*arguments, f"--json={path}")
    return json.loads(path.read_text(encoding="utf-8"))


def peak_memory_mb():
    """Largest resident memory of any process of the demo, in MB; None on Windows, which has no `resource`."""
    if resource is None:
        return None
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(peak / (1024**2 if sys.platform == "darwin" else 1024))


def show_answers():
    """Print held-out questions with the model's answers and the references."""
    _, _, generator = open_generator(TUNED, SampleSettings())
    rows, meta = open_rows("data/processed_demo_sft", "test")
    print(f"\n{SHOWN_QUESTIONS} questions about subjects that no training question was about:")
    for row in rows[:: max(1, len(rows) // SHOWN_QUESTIONS)][:SHOWN_QUESTIONS]:
        ((question, reference),) = pairs_of_rows([row], meta, generator.tokenizer)
        answer = "".join(generator.submit(question, SamplingParams(temperature=0.0)))
        print(f"  问 {question}\n  答 {answer}\n  应 {reference}\n")


def measure_models():
    """Evaluate both models; returns (figures for metrics.json, number of training questions, of held-out questions)."""
    perplexity_script = "evaluations-perplexity.py", "--batch_size=64"
    answers_script = "evaluations-RougeL.py", *GREEDY_FLAGS
    tuned = f"--ckpt={TUNED}", "--data_dir=data/processed_demo_sft"
    sample = "--split=train", f"--max_samples={TRAINED_QUESTIONS}"
    base = run_evaluation("base_perplexity", *perplexity_script, f"--ckpt={BASE}", "--data_dir=data/processed_demo")
    perplexity = run_evaluation("perplexity", *perplexity_script, *tuned, "--split=test")
    trained = run_evaluation("trained", *answers_script, *tuned, *sample)
    heldout = run_evaluation("heldout", *answers_script, *tuned)
    run("visualize.py", "--runs=out/demo,out/demo_sft", f"--plot={PLOT}")
    metrics = {
        "trained_exact_match": trained["exact_match"],
        "heldout_exact_match": heldout["exact_match"],
        "heldout_rouge_l": heldout["rouge_l_f"],
        "perplexity": perplexity["perplexity"],
        "bits_per_char": base["bits_per_char"],
    }
    return metrics, trained["pairs"], heldout["pairs"]


def measure_quickly():
    """What --quick measures of the fine-tuned model, as figures for metrics.json."""
    tuned = f"--ckpt={TUNED}", "--data_dir=data/processed_demo_sft", f"--max_samples={QUICK_ASKED}"
    flags = [*GREEDY_FLAGS, "--check_leak=False", "--resamples=0"]
    heldout = run_evaluation("heldout", "evaluations-RougeL.py", *flags, *tuned)
    run("visualize.py", "--runs=out/demo,out/demo_sft", f"--plot={PLOT}")
    return {"quick": True, "heldout_exact_match": heldout["exact_match"], "heldout_rouge_l": heldout["rouge_l_f"]}


def print_demo_figures(metrics, pairs, asked):
    """Print the figures. pairs, asked: numbers of training and of held-out questions that were asked."""
    print(f"trained questions:  exact match {metrics['trained_exact_match']:.3f} (a sample of {pairs})")
    print(f"held-out questions: exact match {metrics['heldout_exact_match']:.3f} (all {asked}), ", end="")
    print(f"Rouge-L {metrics['heldout_rouge_l']:.3f}, perplexity {metrics['perplexity']:.2f}")
    print(f"base model: {metrics['bits_per_char']:.2f} bits per character on articles about subjects it never saw")
    memory = f"at most {metrics['peak_memory_mb']} MB" if metrics["peak_memory_mb"] else "memory not measured"
    print(f"{metrics['seconds']:.0f} s, {memory}; figures: {METRICS}; loss curves: {PLOT}")


def read_progress():
    """The content of PROGRESS: {"quick", "done": number of STEPS, "began": when the next one began, in Unix seconds}.
    Raises UserError where no demo was started."""
    try:
        return json.loads(PROGRESS.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("no demo was stopped here; start one: python demo.py") from None


def resume_flags(arguments, began):
    """The flags with which the script of --resume's first step goes on: those of a training that had saved since it
    began."""
    if arguments[0] != "train.py":
        return []
    last = Path(load_settings(TrainSettings, arguments[1:2]).out_dir) / LAST
    return ["--init_from=resume"] if last.exists() and last.stat().st_mtime >= began else []


def main(quick=False, resume=False):
    trainings = [load_settings(TrainSettings, [path]) for path in SETTINGS_FILES]
    progress = read_progress() if resume else {"quick": quick, "done": 0}
    stage, done, quick = STEPS[0][0], progress["done"], progress["quick"]  # a demo goes on as it was begun
    try:
        for number, (stage, *arguments) in list(enumerate(STEPS))[done:]:
            arguments += QUICK_FLAGS.get(stage, []) if quick else []
            if resume and number == done:
                arguments += resume_flags(arguments, progress["began"])
            else:
                write_json(PROGRESS, {"quick": quick, "done": number, "began": time.time()})
            run(*arguments, watch=Forecast(*trainings) if stage == "pretraining" else None)
        write_json(PROGRESS, {"quick": quick, "done": len(STEPS)})
        stage = "measuring"
        figures, *counts = [measure_quickly()] if quick else measure_models()
        show_answers()
    except KeyboardInterrupt:
        print(f"\n{interrupted_text(stage)}")
        raise SystemExit(130) from None
    seconds = round(time.perf_counter() - STARTED, 1)
    metrics = {"seconds": seconds, "peak_memory_mb": peak_memory_mb(), **figures}
    write_json(METRICS, metrics)
    if quick:
        print(f"{seconds:.0f} s; figures: {METRICS}; loss curves: {PLOT}\n\n{QUICK_TEXT}")
        return
    print_demo_figures(metrics, *counts)
    print("\nNext: ask the model (make sample, or python sample.py), or write a report on it (python")
    print("evaluations-report.py). Then train on your own articles and questions with config/laptop.py and")
    print("config/laptop_sft.py, or with a GPU the 124M model of config/train_config.py: README.md has the commands.")
    print(f"How it works, step by step, with exercises: {COURSE}")
    logs = [log_lines(Path(training.out_dir) / LOG) for training in trainings]
    print(f"\n{floor_text(logs, trainings)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="run everything for a moment only, as a test")
    parser.add_argument("--resume", action="store_true", help="go on where the demo was stopped")
    parsed = parser.parse_args()
    run_script(lambda: main(parsed.quick, parsed.resume))
