"""What is compared: rows, pretraining runs and fine-tuning runs, each by the settings in which it differs."""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

from minigpt.corpus.records import Problems, read_questions

SETS = ("trained", "never_asked", "never_seen")
ASKED = 200  # questions of each set
TABLE = "table.tiktoken"
UNCLEANED = ["controls", "widths", "title"]  # all usual steps but the one that takes empty brackets out
LONG_EPOCHS = 10  # of pretraining and of fine-tuning that are meant to over-fit
GPT2_TOKENS = 3  # blocks of GPT-2's table are as many times longer, so that the same articles fit


@dataclass(frozen=True)
class Rows:
    """A folder of rows. questions: of what share of the questions; None: of articles. given: prepare's settings."""

    name: str
    given: dict
    questions: float | None = None
    concatenated: bool = False


@dataclass(frozen=True)
class PlannedRun:
    """A training run, done once a seed. base: the pretraining run that it starts from, "": none. given: train.py's
    settings. as_long_as: the run whose seconds it has."""

    name: str
    rows: str
    base: str = ""
    given: dict = field(default_factory=dict)
    as_long_as: str = ""
    each_epoch: bool = False  # every epoch's checkpoint is kept, and measured

    @property
    def tunes(self):
        return self.name.startswith("tuned")


class Plan:
    """All arms by the settings. folder: where everything is written."""

    def __init__(self, settings):
        self.settings, self.folder = settings, Path(settings.out_dir)
        self.table = str(self.folder / TABLE)
        self.rows = {rows.name: rows for rows in self._rows()}
        self.runs = {run.name: run for run in self._runs()}

    def _rows(self):
        short, block = max(8, self.settings.block_size // 3), self.settings.block_size
        gpt2 = {"tokenizer": "gpt2", "block_size": block * GPT2_TOKENS}
        yield Rows("plain", {"overflow": "split"})
        yield Rows("concatenated", {"overflow": "split"}, concatenated=True)
        yield Rows("uncleaned", {"overflow": "split", "clean": UNCLEANED})
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

    def _runs(self):
        batch = self.settings.batch_size
        yield PlannedRun("base", "plain")
        yield PlannedRun("in_order", "plain", given={"sampling": "traverse"})
        # As many tokens a batch as with one article a row, which making.py counts once the rows are there.
        yield PlannedRun("concatenated", "concatenated", given={"batch_tokens": 1})
        yield PlannedRun("uncleaned", "uncleaned")
        short = max(8, self.settings.block_size // 3)
        yield PlannedRun("truncated", "truncated", given={"block_size": short})
        yield PlannedRun("split", "split", given={"block_size": short})
        gpt2 = {"block_size": self.settings.block_size * GPT2_TOKENS}
        yield PlannedRun("gpt2", "gpt2", given=gpt2, as_long_as="base")
        yield PlannedRun("articles_0.25", "articles_0.25")
        yield PlannedRun("articles_0.5", "articles_0.5")
        yield PlannedRun("pretrained_long", "plain", given={"max_epochs": LONG_EPOCHS}, each_epoch=True)
        all_questions = "questions_1.0"
        yield PlannedRun("tuned", all_questions, "base")
        for base in ("in_order", "concatenated", "uncleaned", "articles_0.25", "articles_0.5", "pretrained_long"):
            yield PlannedRun(f"tuned_{base}", all_questions, base)
        for base in ("truncated", "split"):
            yield PlannedRun(f"tuned_{base}", "questions_short", base, {"block_size": short})
        yield PlannedRun("tuned_gpt2", "questions_gpt2", "gpt2", gpt2, as_long_as="tuned")
        yield PlannedRun("tuned_nothing", all_questions, "", {"learning_rate": 4e-3, "muon_learning_rate": 0.04})
        for share in (0.25, 0.5):
            yield PlannedRun(f"tuned_questions_{share}", f"questions_{share}", "base")
        yield PlannedRun(
            "tuned_long", all_questions, "base", {"max_epochs": LONG_EPOCHS, "batch_size": batch}, each_epoch=True
        )

    def needed(self, names):
        """The runs of those names with all that they start from or take their time from, in an order that works."""
        found = []
        for name in names:
            run = self.runs[name]
            for other in self.needed([n for n in (run.base, run.as_long_as) if n]):
                found += [other] if other not in found else []
            found += [run] if run not in found else []
        return found

    def place(self, run, seed):
        """The folder of a run with a seed."""
        return self.folder / run / f"seed{seed}"


def arguments(given):
    """Settings as a command line has them."""

    def text(value):
        return ",".join(value) if isinstance(value, list) else str(value)

    return [f"--{name}={text(value)}" for name, value in given.items()]


def spec_of(*parts):
    """A plain value that is the same exactly when the parts are: what a result is known by."""
    return json.loads(json.dumps(parts, ensure_ascii=False, default=str))


def questions_of(plan, name):
    """[(question, answer)] of a set, at most ASKED, always the same."""
    rows = [qa for _, qa in read_questions([plan.folder / "questions" / f"{name}.jsonl"], Problems())]
    drawn = random.Random(0).sample(rows, min(ASKED, len(rows)))
    return [(qa.question, qa.answer) for qa in drawn]
