"""What is compared: rows, pretraining runs and fine-tuning runs, each by the settings in which it differs."""

from dataclasses import dataclass, field
from pathlib import Path

UNCLEANED_STEP = "litter"  # which removes empty brackets
OVERFITTING_EPOCHS = 10  # of pretraining and of fine-tuning
GPT2_BLOCK_FACTOR = 3  # GPT-2's tokenizer takes more tokens for an article, so its blocks are longer


@dataclass(frozen=True)
class Rows:
    """A folder of rows. questions: the share of the questions in it, or None for articles; given: settings of
    prepare.py or prepare_sft.py; concatenated: training rows are joined and cut anew."""

    name: str
    given: dict
    questions: float | None = None
    concatenated: bool = False


@dataclass(frozen=True)
class PlannedRun:
    """A training run, made once for each seed. rows: name of its `Rows`; base: the run that it starts from ("": none);
    given: settings of train.py; as_long_as: the run that sets its training time ("": none)."""

    name: str
    rows: str
    base: str = ""
    given: dict = field(default_factory=dict)
    as_long_as: str = ""
    each_epoch: bool = False  # the checkpoint of each epoch is kept and measured

    @property
    def tunes(self):
        """Whether it is a fine-tuning."""
        return self.name.startswith("tuned")


class Plan:
    """All rows and runs of the experiments under some settings. folder: everything is written to it."""

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

    def _runs(self):
        yield PlannedRun("base", "plain")
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
        yield PlannedRun("tuned", all_questions, "base")
        for base in ("in_order", "concatenated", "uncleaned", "articles_0.25", "articles_0.5", "pretrained_long"):
            yield PlannedRun(f"tuned_{base}", all_questions, base)
        for base in ("truncated", "split"):
            yield PlannedRun(f"tuned_{base}", "questions_short", base, {"block_size": short})
        yield PlannedRun("tuned_gpt2", "questions_gpt2", "gpt2", gpt2, as_long_as="tuned")
        yield PlannedRun("tuned_nothing", all_questions, "", {"learning_rate": 4e-3, "muon_learning_rate": 0.04})
        for share in (0.25, 0.5):
            yield PlannedRun(f"tuned_questions_{share}", f"questions_{share}", "base")
        yield PlannedRun("tuned_long", all_questions, "base", long, each_epoch=True)

    def needed(self, names):
        """The runs of those names and the runs that they depend on, each after its own."""
        found = {}
        for name in names:
            run = self.runs[name]
            needed_first = self.needed([other for other in (run.base, run.as_long_as) if other])
            found |= {each.name: each for each in (*needed_first, run)}
        return list(found.values())

    def place(self, run, seed):
        """The folder of a run with a seed."""
        return self.folder / run / f"seed{seed}"
