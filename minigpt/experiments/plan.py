"""What is compared: rows, pretraining runs and fine-tuning runs, each by the settings in which it differs."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from minigpt.corpus.row_files import META
from minigpt.experiments.data import UNSEEN_SUBJECTS
from minigpt.experiments.results import RESULT, TRAINED, read_spec

UNCLEANED_STEP = "litter"  # which removes empty brackets
OVERFITTING_EPOCHS = 10  # of pretraining and of fine-tuning
CHECKS_AN_EPOCH = 20  # validations, where the curve of the losses is looked at
CHECKS_OF_OVERFITTED = 2  # the same of a pretraining on few articles, whose checkpoints are kept at each
ADAMW_RATES = ("6e-4", "1e-4", "3e-5")  # nanoGPT's: its default, between the two, that of its fine-tuning
WATCHED_STEPS = 200  # of a fine-tuning after more or less pretraining
PRETRAINED_SHARE = 0.1  # of the steps of pretraining, beside all of them
TUNED_EPOCHS = (1, 4, 8)  # config/train_config_sft.py has 4
SFT_CONFIG_RATES = {"learning_rate": 2e-4, "muon_learning_rate": 2e-3, "warmup_iters": 15, "min_lr_ratio": 0.1}
CORRECTION_STEPS = {"short": 300, "long": 900}
CORRECTION_BATCH = 32
GPT2_BLOCK_FACTOR = 3  # GPT-2's tokenizer takes more tokens for an article, so its blocks are longer


@dataclass(frozen=True)
class Rows:
    """A folder of rows. questions: the share of the questions in it, or None for articles; given: settings of
    prepare.py or prepare_sft.py; concatenated: training rows are joined and cut anew; corrections: of wrong and right
    sentences, in place of questions."""

    name: str
    given: dict
    questions: float | None = None
    concatenated: bool = False
    corrections: bool = False


@dataclass(frozen=True)
class PlannedRun:
    """A training run, made once for each seed. rows: name of its `Rows`; base: the run that it starts from ("": none);
    given: settings of train.py; as_long_as: the run that sets its training time ("": none); each_epoch: there is a
    validation each epoch, and of a fine-tuning the checkpoint is kept and measured; checks: validations in each epoch
    (0: four in all, or as each_epoch says); asked: more is measured than the losses of training; probes: what is
    measured beside the usual, names of measure.py's PROBES."""

    name: str
    rows: str
    base: str = ""
    given: dict = field(default_factory=dict)
    as_long_as: str = ""
    each_epoch: bool = False
    checks: int = 0
    asked: bool = True
    probes: tuple = ()

    @property
    def tunes(self):
        """Whether it is a fine-tuning."""
        return self.name.startswith("tuned")

    @property
    def keeps_checkpoints(self):
        """Whether the checkpoint of each validation is kept."""
        return "characters" in self.probes or (self.each_epoch and self.tunes)

    @property
    def corrects(self):
        """Whether it is a fine-tuning on wrong and right sentences."""
        return self.name.startswith("corrected")


class Plan:
    """All rows and runs of the experiments under some settings. folder: everything is written to it."""

    MEASURING = "minigpt/experiments/measure.py"  # the code that measures a run

    def __init__(self, settings):
        self.settings = settings
        self.folder = Path(settings.out_dir)
        self.tokenizer = str(self.folder / "tokenizer.tiktoken")
        self.rows = {rows.name: rows for rows in self._rows()}
        self.runs = {run.name: run for run in self._runs()}

    def _rows(self):
        short = max(8, self.settings.block_size // 3)
        gpt2 = {"tokenizer": "gpt2", "block_size": self.settings.block_size * GPT2_BLOCK_FACTOR}
        uncleaned = [step for step in self.settings.clean if step != UNCLEANED_STEP]
        yield Rows("plain", {"overflow": "split"})
        yield Rows("concatenated", {"overflow": "split"}, concatenated=True)
        yield Rows("uncleaned", {"overflow": "split", "clean": uncleaned})
        yield Rows("truncated", {"overflow": "truncate", "block_size": short})
        yield Rows("split", {"overflow": "split", "block_size": short})
        yield Rows("gpt2", {"overflow": "split", **gpt2})
        for share in (0.25, 0.5):
            weights = [str(share)] * len(self.settings.input_dir)
            yield Rows(f"articles_{share}", {"overflow": "split", "weights": weights})
        for share in (0.25, 0.5, 1.0):
            yield Rows(f"questions_{share}", {}, share)
        yield Rows("questions_short", {"block_size": short}, 1.0)
        yield Rows("questions_gpt2", gpt2, 1.0)
        unseen = str(self.folder / "questions" / UNSEEN_SUBJECTS)
        yield Rows("corrections", {"heldout": unseen, "test_share": 0.0}, corrections=True)

    def _runs(self):
        yield PlannedRun("base", "plain", probes=("repetition", "texts"))
        yield PlannedRun("in_order", "plain", given={"sampling": "traverse"})
        # build.py replaces the 1 by the tokens of a batch of one article a row, once it can count them.
        yield PlannedRun("concatenated", "concatenated", given={"batch_tokens": 1})
        yield PlannedRun("uncleaned", "uncleaned")
        short = max(8, self.settings.block_size // 3)
        yield PlannedRun("truncated", "truncated", given={"block_size": short})
        yield PlannedRun("split", "split", given={"block_size": short})
        gpt2 = {"block_size": self.settings.block_size * GPT2_BLOCK_FACTOR}
        long = {"max_epochs": OVERFITTING_EPOCHS}
        yield PlannedRun("gpt2", "gpt2", given=gpt2, as_long_as="base")
        yield PlannedRun("articles_0.25", "articles_0.25")
        yield PlannedRun("articles_0.5", "articles_0.5")
        yield PlannedRun("pretrained_long", "plain", given=long, each_epoch=True)
        all_questions = "questions_1.0"
        yield PlannedRun("tuned", all_questions, "base", probes=("heat", "texts"))
        for base in ("in_order", "concatenated", "uncleaned", "articles_0.25", "articles_0.5", "pretrained_long"):
            yield PlannedRun(f"tuned_{base}", all_questions, base)
        for base in ("truncated", "split"):
            yield PlannedRun(f"tuned_{base}", "questions_short", base, {"block_size": short})
        yield PlannedRun("tuned_gpt2", "questions_gpt2", "gpt2", gpt2, as_long_as="tuned")
        yield PlannedRun("tuned_nothing", all_questions, "", {"learning_rate": 4e-3, "muon_learning_rate": 0.04})
        for share in (0.25, 0.5):
            yield PlannedRun(f"tuned_questions_{share}", f"questions_{share}", "base")
        yield PlannedRun("tuned_long", all_questions, "base", long, each_epoch=True)
        yield PlannedRun("overfitted", "articles_0.25", given=long, checks=CHECKS_OF_OVERFITTED,
                         probes=("repetition", "characters", "early"))  # fmt: skip
        yield from self._watched_runs(all_questions)
        yield from self._correction_runs()

    def _watched_runs(self, questions):
        """Fine-tunings whose losses are looked at CHECKS_AN_EPOCH times an epoch, and their bases."""
        watched = {"checks": CHECKS_AN_EPOCH}
        constant = {"optimizer": "adamw", "warmup_iters": 0, "min_lr_ratio": 1.0, "max_epochs": 1}
        for rate in ADAMW_RATES:
            given = constant | {"learning_rate": float(rate)}
            yield PlannedRun(f"tuned_adamw_{rate}", questions, "base", given, asked=False, **watched)
        for epochs in TUNED_EPOCHS:
            given = SFT_CONFIG_RATES | {"max_epochs": epochs}
            yield PlannedRun(f"tuned_config_{epochs}", questions, "base", given, probes=("heat", "texts"), **watched)
        watched |= {"given": {"max_iters": WATCHED_STEPS}, "asked": False}
        steps = {"max_iters": max(1, round(PRETRAINED_SHARE * self.settings.max_iters))}
        little = f"pretrained_{PRETRAINED_SHARE}"
        yield PlannedRun(little, "plain", given=steps, asked=False)
        yield PlannedRun(f"tuned_after_{PRETRAINED_SHARE}", questions, little, **watched)
        yield PlannedRun("tuned_after_1", questions, "base", **watched)

    def _correction_runs(self):
        """Corrections of sentences from the base, short and long."""
        rates = {"learning_rate": 3e-4, "muon_learning_rate": 5e-3}
        for name, steps in CORRECTION_STEPS.items():
            given = {"batch_size": CORRECTION_BATCH, "max_iters": steps, "eval_interval": max(1, steps // 10)}
            yield PlannedRun(f"corrected_{name}", "corrections", "base", rates | given, probes=("prompts",))

    def needed(self, names):
        """The runs of those names and the runs that they depend on, each after its own."""
        found = {}
        for name in names:
            run = self.runs[name]
            needed_first = self.needed([other for other in (run.base, run.as_long_as) if other])
            found |= {each.name: each for each in (*needed_first, run)}
        return list(found.values())

    def tasks(self, names, seeds):
        """[(run, seed)] of the runs of those names and of those that they need, seed by seed."""
        runs = self.needed(names)
        return [(run, seed) for seed in seeds for run in runs]  # all runs have been tried after the first seed

    def requirements(self, run, seed):
        """[(name, seed)] of the runs that must be done before a run."""
        return [(name, seed) for name in (run.base, run.as_long_as) if name]

    def sources(self, run, seed):
        """Specs of what a run is made from: its rows, and the run that it starts from."""
        base = read_spec(self.place(run.base, seed) / TRAINED) if run.base else None
        return [read_spec(self.folder / "rows" / run.rows / RESULT), base]

    def measure(self, run, seed, cost, threads):
        """The figures of a finished run, and cpu_seconds: those of its training and of measuring it.

        cost: the `Cost` of its training.
        """
        from minigpt.experiments import measure  # loads torch, which the process that starts all runs does not need

        started = time.process_time()
        figures = measure.measure_run(self, run, self.place(run.name, seed), threads)
        return figures | {"cpu_seconds": cost.cpu_seconds + time.process_time() - started}

    def place(self, run, seed):
        """The folder of a run with a seed."""
        return self.folder / run / f"seed{seed}"

    def training_settings(self, run, seed):
        """train.py's settings of a run with a seed."""
        settings = self.settings
        steps = settings.tune_iters if run.tunes else settings.max_iters
        if run.tunes or run.corrects:
            rates = {"learning_rate": 3e-4, "muon_learning_rate": 3e-3, "warmup_iters": 20}
        else:
            rates = {name: getattr(settings, name) for name in ("learning_rate", "muon_learning_rate")}
            rates["warmup_iters"] = 50
        given = {
            "data_dir": str(self.folder / "rows" / run.rows), "out_dir": str(self.place(run.name, seed)), "seed": seed,
            "max_iters": steps, "block_size": settings.block_size, "batch_size": settings.batch_size, **rates,
            "min_lr_ratio": 0.0, "compile": "off", "eval_interval": max(1, steps // 4), "n_layer": settings.n_layer,
            "n_head": settings.n_head, "n_embd": settings.n_embd, "dtype": settings.dtype,
        }  # fmt: skip
        if run.base:
            given["init_from"] = str(self.place(run.base, seed) / "last.pt")
        given |= run.given
        if given.get("batch_tokens") == 1:
            given["batch_tokens"] = self._count_batch_tokens()
        if run.each_epoch or run.checks:
            steps = -(-self._read_meta(run.rows)["parts"]["train"]["rows"] // given["batch_size"])
            steps = max(1, steps // (run.checks or 1))
            given |= {"eval_interval": steps, "keep_every": steps if run.keeps_checkpoints else 0}
        if run.as_long_as:
            other = self.place(run.as_long_as, seed) / RESULT
            given["max_seconds"] = json.loads(other.read_text(encoding="utf-8"))["figures"]["seconds"]
            if not run.tunes:  # the time that the other's tokenizer took to train counts
                tokenizer = json.loads((self.folder / "tokenizer.json").read_text(encoding="utf-8"))
                given["max_seconds"] += tokenizer["figures"]["seconds"]
            given["max_iters"] = steps * 10
        return given

    def _read_meta(self, rows):
        """The meta.json of a folder of rows."""
        return json.loads((self.folder / "rows" / rows / META).read_text(encoding="utf-8"))

    def _count_batch_tokens(self):
        """Tokens, without PAD, of a batch of rows with one article each."""
        meta = self._read_meta("plain")
        part = meta["parts"]["train"]
        return max(meta["block_size"], round(part["tokens"] / part["rows"] * self.settings.batch_size))
