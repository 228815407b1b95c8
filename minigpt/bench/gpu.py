"""`bench.py gpu`: one command that measures what only a GPU can tell, in at most eight minutes.

Its parts (GPU_PARTS) share the time. What does not fit is left out, and said. JSON and page are written after each
figure, so that a run that is cut off loses nothing. A part that fails is noted, and the others go on. With --quick
everything runs in miniature, on a CPU too: no figure of it means anything, but the command works.

The text is always the embedded corpus, so that the figures of two GPUs compare.
"""

import contextlib
import json
import os
import random
import re
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch

from minigpt.bench import gpu_checks, gpu_work
from minigpt.bench.common import fresh_process, run_quietly, write_docs
from minigpt.bench.corpora import varied_articles
from minigpt.bench.gpu_page import NO_FIGURES, gpu_page
from minigpt.bench.gpu_work import LeftOut, missing
from minigpt.checkpoint import save_checkpoint
from minigpt.common.errors import UserError, first_line
from minigpt.common.files import PROJECT, write_json
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import TrainSettings
from minigpt.tokenizer import load_tokenizer
from model import GPT, GPTConfig

DOCS = "docs/gpu.md"
FORMAT = 1  # of the JSON
PRETRAINING_CONFIG, TUNING_CONFIG = (
    str(PROJECT / "config" / name) for name in ("train_config.py", "train_config_sft.py")
)
QUESTIONS_FILE = PROJECT / "sft" / "sample_qa.jsonl"
JOINED_ARTICLES = 6  # embedded articles, of 185 tokens on average, that one article is made of at most
# Of GPU memory, in which runs fit side by side. The passes of each are merged for nine tenths of it; one that waits has
# 2 GB.
SHARED_GB = 40
# Of training: eagerly, compiled as it is by default, and with one graph for batches of any width, without buckets.
EAGER_WAY, COMPILED_WAY, ANY_WIDTH_WAY = "eager", "compiled", "compiled for any width"
GPU_TRAINING_WAYS = {
    EAGER_WAY: gpu_work.open_eager,
    COMPILED_WAY: gpu_work.open_compiled,
    ANY_WIDTH_WAY: gpu_work.open_any_width,
}
LEAST_SECONDS = 15  # of a part


@dataclass(frozen=True)
class Scale:
    """How large everything is. seconds: of the whole measurement; flags: of train.py; sure_width: of the model with
    sure targets; check_flags: of the runs that are stopped and resumed."""

    seconds: float
    articles: int
    questions: int
    rows_checked: int
    sure_width: int
    turn_seconds: float
    turns: int
    warm_up_seconds: float
    budgets: tuple
    streams: tuple
    new_tokens: int
    rounds: int
    flags: tuple = ()
    check_flags: tuple = ()


WHOLE = Scale(
    seconds=450, articles=16000, questions=10**6, rows_checked=2, sure_width=768, turn_seconds=6, turns=2,
    warm_up_seconds=120, budgets=(8, 12, 16, 24), streams=(1, 8, 32), new_tokens=128, rounds=3,
    check_flags=("--n_layer=2", "--n_embd=128", "--n_head=2", "--batch_tokens=4096"),
)  # fmt: skip
TINY_FLAGS = (
    "--block_size=48", "--n_layer=1", "--n_head=2", "--n_embd=16", "--batch_tokens=192",
    "--gradient_accumulation_steps=2", "--dtype=bfloat16",
)  # fmt: skip
QUICK = Scale(
    seconds=3600, articles=150, questions=150, rows_checked=2, sure_width=256, turn_seconds=0, turns=2,
    warm_up_seconds=600, budgets=(8,), streams=(1, 2), new_tokens=4, rounds=1, flags=TINY_FLAGS,
)  # fmt: skip


@dataclass
class Measurement:
    """A measurement that goes on: settings of bench.py, `Scale`, folder of rows and models, and what has been found.

    values: what the JSON has. ends: the time at which all of it ends; part_ends: the part that goes on.
    """

    settings: object
    scale: Scale
    folder: str
    values: dict
    ends: float
    errors: list = field(default_factory=list)
    part_ends: float = 0.0

    @property
    def on_gpu(self):
        """Whether a CUDA GPU is measured."""
        return self.values["machine"]["device"] == "cuda"

    @property
    def shape(self):
        """Fields of GPTConfig of the model that is measured, as a dict."""
        settings = load_settings(TrainSettings, [PRETRAINING_CONFIG, *self.scale.flags])
        names = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bias", "dropout")
        return {name: getattr(settings, name) for name in names}

    def flags(self, stage, run):
        """Flags of train.py: rows of a stage, and the folder of a run."""
        return [
            f"--data_dir={self.folder}/{stage}", f"--out_dir={self.folder}/runs/{run}", "--max_epochs=0",
            f"--max_iters={10**6}", f"--device={self.settings.device}", *self.scale.flags,
        ]  # fmt: skip

    def process(self):
        """A `fresh_process` that is stopped when the part's time is over."""
        return fresh_process(max(1.0, self.part_ends - time.monotonic()))

    @contextlib.contextmanager
    def attempt(self, figures, name):
        """Context manager: what fails in it is noted in figures[name], is an error of the measurement, and goes on.

        What is left out, or takes too long, is noted and no error.
        """
        try:
            yield
        except (LeftOut, TimeoutError) as why:
            figures[name] = missing(str(why))
            print(f"    {name}: left out ({why})", flush=True)
        except Exception as error:
            figures[name] = missing(f"failed: {first_line(error)}")
            self.errors.append({"at": name, "error": first_line(error), "traceback": traceback.format_exc()})
            print(f"    {name}: FAILED, {first_line(error)}", flush=True)
        self.save()

    @contextlib.contextmanager
    def attempt_more(self, figures, name):
        """As `attempt`, where figures[name] may have figures already: these stay."""
        earlier = dict(figures.get(name, {}))
        with self.attempt(figures, name):
            yield
        if earlier and "missing" in figures[name]:
            figures[name] = earlier
            self.save()

    def add_checks(self, checks):
        """Note checks, and print them."""
        self.values["checks"] += checks
        for each in checks:
            said = "ok" if each["passed"] else "NOT PASSED"
            print(f"    {said}: {each['check']}, error {each['error']:.2g} (at most {each['tolerance']:g})", flush=True)
        self.save()

    def save(self):
        """Write JSON and page as far as they are."""
        json_path, docs = output_paths(self.settings, self.values["machine"]["gpu"])
        self.values["errors"] = self.errors
        if json_path:
            write_json(json_path, self.values)
        if docs:
            write_docs(docs, self.values["machine"]["gpu"], gpu_page(self.values), NO_FIGURES)


def output_paths(settings, gpu):
    """(path of the JSON, path of the page): as set, else beside each other in docs; with --quick "" where not set."""
    docs = settings.docs if "docs" in settings.given else "" if settings.quick else DOCS
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return settings.json or ("" if settings.quick else Path(docs).with_name(f"{name}.json")), docs


# Preparing.


def write_articles(path, count):
    """Write a jsonl file of articles, each of one to JOINED_ARTICLES embedded ones, so that most fill a row."""
    draw, articles = random.Random(0), varied_articles()
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            parts = list(islice(articles, draw.randint(1, JOINED_ARTICLES)))
            text = "\n".join(part["text"].split("\n\n", 1)[1] for part in parts)
            row = {"id": number, "title": f"{parts[0]['title']} {number}", "text": text}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def prepare_rows_and_base(measurement):
    """Rows of both stages, and a checkpoint of random weights that fine-tuning begins with."""
    folder, scale = Path(measurement.folder), measurement.scale
    block_size = f"--block_size={measurement.shape['block_size']}"
    write_articles(folder / "articles.jsonl", scale.articles)
    articles = [f"--input_dir={folder}/articles.jsonl", f"--data_dir={folder}/articles", "--overflow=split"]
    run_quietly("data/prepare.py", *articles, block_size)
    lines = QUESTIONS_FILE.read_text(encoding="utf-8").splitlines(keepends=True)[: scale.questions]
    (folder / "questions.jsonl").write_text("".join(lines), encoding="utf-8")
    questions = [f"--qa_files={folder}/questions.jsonl", f"--sft_data_dir={folder}/questions"]
    run_quietly("data/prepare_sft.py", *questions, block_size)
    torch.manual_seed(0)
    config = GPTConfig(**measurement.shape)
    about = config, load_settings(TrainSettings, [PRETRAINING_CONFIG]), "pretrain", load_tokenizer(), {"step": 0}
    save_checkpoint(folder / "base.pt", GPT(config).state_dict(), *about)


# Parts: function(measurement, figures), which fills the dict of figures.


def measure_checks(measurement, figures):
    """Loss and gradients against float64, and a resumed run."""
    shape, scale = measurement.shape, measurement.scale
    sure = {**shape, "n_layer": 1, "n_embd": scale.sure_width, "n_head": scale.sure_width // 64, "tied": False}
    dtype = "auto" if measurement.on_gpu else "bfloat16"
    numbers = shape, sure, scale.rows_checked, measurement.settings.device, dtype
    flags = [*measurement.flags("articles", "resume"), *scale.check_flags, "--warmup_iters=1", "--compile=off"]
    for name, work in {
        "numbers": (gpu_work.check_numbers, *numbers),
        "resume": (gpu_checks.check_resume, [PRETRAINING_CONFIG, *flags], f"{measurement.folder}/runs"),
    }.items():
        with measurement.attempt(figures, name), measurement.process() as call:
            checks = call(*work)
            measurement.add_checks(checks)
            figures[name] = f"{sum(each['passed'] for each in checks)} of {len(checks)} passed"


def measure_pretraining(measurement, figures):
    """Tokens a second of pretraining."""
    measure_training(measurement, figures, PRETRAINING_CONFIG, "pretraining", GPU_TRAINING_WAYS)


def measure_gpu_tuning(measurement, figures):
    """Tokens a second of fine-tuning."""
    ways = {way: GPU_TRAINING_WAYS[way] for way in (EAGER_WAY, COMPILED_WAY)}  # each other one takes a minute
    base = f"--init_from={measurement.folder}/base.pt"
    measure_training(measurement, figures, TUNING_CONFIG, "fine-tuning", ways, base)


def measure_training(measurement, figures, config, part, ways, *more):
    """Tokens a second of training in each of some GPU_TRAINING_WAYS, in turns, or one after the other in little
    memory. part: "pretraining" or "fine-tuning"."""
    scale, turns, calls = measurement.scale, {}, {}
    stage = "articles" if part == "pretraining" else "questions"
    together = not measurement.on_gpu or measurement.values["machine"]["memory_gb"] >= SHARED_GB
    figures["in_turns"] = together
    with contextlib.ExitStack() as stack:
        for way, open_way in ways.items():
            with measurement.attempt(figures, way):
                print(f"    {way}: setting up, and the first steps …", flush=True)
                call = stack.enter_context(measurement.process())
                flags = [*measurement.flags(stage, f"{stage}-{way}"), *more]
                figures[way] = call(open_way, config, flags, not measurement.on_gpu)
                figures[way] |= call(gpu_work.warm_up, scale.warm_up_seconds)
                turns[way] = call(gpu_work.train_steps, scale.turn_seconds)
                figures[way] |= call(gpu_work.training_figures, turns[way])
                calls[way] = call
            if way == COMPILED_WAY and way in calls:
                with measurement.attempt(figures, "compiled against plain code"):
                    checks = calls[way](gpu_work.check_compiled_run)
                    measurement.add_checks([{**each, "check": f"{part}: {each['check']}"} for each in checks])
            if not together:
                take_turns(measurement, figures, calls, turns)
                stack.close()
                calls.clear()
        take_turns(measurement, figures, calls, turns)
    for way in list(ways)[1:]:
        rates = [figures[each].get("tokens_per_second") for each in (way, EAGER_WAY)]
        figures[f"{way} over eager"] = rates[0] / rates[1] if all(rates) else missing("one of the two was not measured")


def take_turns(measurement, figures, calls, turns):
    """Go on with the ways whose processes are there ({way: call}), each a few seconds in turn, and put the figures of
    all of a way's turns in place of the earlier ones. turns: {way: figures of its steps so far}."""
    for _ in range(measurement.scale.turns - 1):
        for way, call in calls.items():
            with measurement.attempt_more(figures, way):
                turns[way] += call(gpu_work.train_steps, measurement.scale.turn_seconds)
                figures[way] |= call(gpu_work.training_figures, turns[way])
                print(f"    {way}: {figures[way]['tokens_per_second']:,.0f} tokens a second", flush=True)


def measure_memory(measurement, figures):
    """Whether, and how, pretraining fits GPUs of several sizes."""
    for gb in measurement.scale.budgets:
        name = f"{gb} GB"
        with measurement.attempt(figures, name):
            if not measurement.on_gpu:
                raise LeftOut("smaller GPUs are played on a CUDA GPU only")
            if gb > (there := measurement.values["machine"]["memory_gb"]) + 0.5:  # a GPU tells a little less than named
                raise LeftOut(f"this GPU has {there:.1f} GB")
            with measurement.process() as call:
                flags = measurement.flags("articles", f"memory-{gb}")
                figures[name] = call(gpu_work.train_within, gb, PRETRAINING_CONFIG, flags, 3)
            print(f"    {name}: {'trains' if figures[name]['trains'] else 'does not train'}", flush=True)


def measure_gpu_generation(measurement, figures):
    """Tokens a second of generation in each way, in turns, and of the checks against a plain pass."""
    scale = measurement.scale
    with measurement.process() as call:
        opened = call(gpu_work.open_generation, measurement.shape, measurement.settings.device, scale.streams)
        figures |= {way: missing(why) for way, why in opened.items() if why}
        failed = {way: why for way, why in opened.items() if why and why.startswith(gpu_work.FAILED)}
        measurement.errors += [{"at": way, "error": why, "traceback": ""} for way, why in failed.items()]
        ways = [way for way, why in opened.items() if not why]
        for way in ways:
            if way.startswith("ours"):
                with measurement.attempt(figures, way):
                    checks = call(gpu_work.check_generation, way, min(8, max(scale.streams)), scale.new_tokens // 4)
                    measurement.add_checks(checks)
        ways = [way for way in ways if way not in figures and "float32" not in way]
        times = {(way, streams): [] for streams in scale.streams for way in ways}
        for streams in scale.streams:
            for turn in range(scale.rounds + 1):  # the first is not counted
                for way in [way for way in ways if "missing" not in figures.get(way, {})]:
                    with measurement.attempt_more(figures, way):
                        taken = call(gpu_work.time_generation, way, streams, scale.new_tokens)
                        times[way, streams] += [taken] * bool(turn)
                        figures[way] = generation_figures(way, times, scale.new_tokens)
        for way in [way for way in ways if "missing" not in figures[way]]:
            with measurement.attempt_more(figures, way):
                calls = call(gpu_work.calls_per_token, way, max(1, scale.new_tokens // 8))
                figures[way] |= {f"{kind}_per_token": count for kind, count in calls.items()}
    theirs = next((way for way in ways if way.startswith("Hugging")), "")
    for way in ways:
        if way != theirs and "missing" not in figures[way]:
            figures[way]["over_hugging_face"] = {
                streams: figures[way][streams]["tokens_per_second"] / figures[theirs][streams]["tokens_per_second"]
                for streams in map(str, scale.streams)
                if theirs and streams in figures[theirs] and streams in figures[way]
            } or missing("Hugging Face's generate was not measured")


def generation_figures(way, times, n_new):
    """{number of streams: {"tokens_per_second", "first_token_ms"}} of a way, medians of the times so far."""
    found = {}
    for (name, streams), taken in times.items():
        if name == way and taken:
            first, seconds = (sorted(each)[len(taken) // 2] for each in zip(*taken, strict=True))
            found[str(streams)] = {"tokens_per_second": streams * n_new / seconds, "first_token_ms": 1e3 * first}
    return found


def measure_saving(measurement, figures):
    """For how long writing a checkpoint holds training up."""
    with measurement.process() as call:
        flags = measurement.flags("articles", "saving")
        call(gpu_work.open_eager, PRETRAINING_CONFIG, flags)
        call(gpu_work.train_steps, 0)
        figures |= call(gpu_work.time_saves, 2, measurement.scale.turn_seconds / 2)
        print(f"    training stands still for {figures['stall_seconds']:.2f} s", flush=True)


# Name of each part: (its share of the time that is left for it and those behind it, function).
GPU_PARTS = {
    "checks": (2, measure_checks),
    "pretraining": (9, measure_pretraining),
    "generation": (2.5, measure_gpu_generation),
    "fine-tuning": (4.5, measure_gpu_tuning),
    "checkpoints": (1, measure_saving),
    "memory": (1.5, measure_memory),
}


def measure_gpu_part(measurement, name):
    """Measure a part within its share of the time that is left, and note how it ended."""
    names = list(GPU_PARTS)[list(GPU_PARTS).index(name) :]
    now = time.monotonic()
    seconds = (measurement.ends - now) * GPU_PARTS[name][0] / sum(GPU_PARTS[other][0] for other in names)
    part = measurement.values["parts"][name] = {"limit_seconds": seconds, "figures": {}}
    if seconds < LEAST_SECONDS:
        part["figures"] = missing(f"no time was left for it: {max(0.0, seconds):.0f} s")
        return measurement.save()
    limit = "" if measurement.settings.quick else f", for {seconds:.0f} s at most"
    print(f"  {name}{limit}: {GPU_PARTS[name][1].__doc__.splitlines()[0]}", flush=True)
    measurement.part_ends, failures = now + seconds, len(measurement.errors)
    part["state"] = "cut off"
    outcome = {}
    with measurement.attempt(outcome, name):
        GPU_PARTS[name][1](measurement, part["figures"])
    part["state"] = "failed" if len(measurement.errors) > failures else "left out" if outcome else "done"
    if outcome:
        part["why"] = outcome[name]["missing"]
    part["seconds"] = time.monotonic() - now
    measurement.save()


def bench_gpu(settings):
    """Measure a GPU; print the page, and write it and JSON after each figure by the settings of bench.py.

    Raises SystemExit(1) where a part failed or a check was not passed.
    """
    scale, began = QUICK if settings.quick else WHOLE, time.monotonic()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with fresh_process() as call:  # this process stays without CUDA's context, which takes memory
        machine = call(gpu_work.describe_machine, settings.device)
    if machine["device"] != "cuda" and not settings.quick:
        raise UserError(
            f"bench.py gpu measures an NVIDIA GPU, and the device here is {machine['device']}; --quick tries the "
            "command in miniature without one"
        )
    limit = "in miniature" if settings.quick else f"at most {scale.seconds / 60:.1f} minutes"
    print(f"{machine['gpu']}, torch {machine['torch']}; {limit}", flush=True)
    values = {"format": FORMAT, "quick": settings.quick, "machine": machine, "parts": {}, "checks": [], "errors": []}
    with tempfile.TemporaryDirectory(prefix="minigpt-bench-", ignore_cleanup_errors=True) as folder:
        measurement = Measurement(settings, scale, folder, values, began + scale.seconds)
        # An empty folder of compiled code, so that compiling takes as long as at a first start.
        with changed_environment(TORCHINDUCTOR_CACHE_DIR=f"{folder}/compiled"):
            prepare_rows_and_base(measurement)
            values["prepare_seconds"] = time.monotonic() - began
            for name in GPU_PARTS:
                measure_gpu_part(measurement, name)
    values["seconds"] = time.monotonic() - began
    measurement.save()
    print(f"\n{gpu_page(values)}")
    for path in output_paths(settings, machine["gpu"]):
        if path:
            print(f"written to {path}")
    wrong = [f"{each['at']}: {each['error']}" for each in measurement.errors]
    wrong += [f"not passed: {each['check']}" for each in values["checks"] if not each["passed"]]
    if wrong:
        print("\n".join(["", *wrong]))
        raise SystemExit(1)


@contextlib.contextmanager
def changed_environment(**variables):
    """Context manager: environment variables, for the processes that are started in it."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
