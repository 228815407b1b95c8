"""What `run.py tuning` compares: methods of tuning on three tasks, bases, amounts of data, ranks, and replay.

One base is pretrained by its own settings file, and its checkpoints after 10, 30 and 100% of the steps are kept.
"""

import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path

from minigpt.corpus.row_files import META
from minigpt.experiments.results import RESULT, TRAINED, read_spec
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import TrainSettings

TUNED_TASKS = ("questions", "field", "correction")
BASE_RUN = "base"
FEW_SHOT = "few_shot"
BASE_SHARES = (0.1, 0.3)  # of pretraining, beside all of it
QUESTION_SHARES = (0.01, 0.1)  # of the training questions, beside all of them
LORA_RANKS = (1, 2, 4, 8, 16, 32, 64)
REPLAY_SHARES = (0.05, 0.2)
VALIDATIONS_OF_BASE = 10  # its checkpoints are kept at each of them
LORA = {"method": "lora", "optimizer": "adamw", "learning_rate": 4e-3, "weight_decay": 0.0}
# By method: its settings of train.py. The rates are those of config/demo_*.py and docs/adapting.md.
TUNING_METHODS = {
    "full": {"optimizer": "muon", "learning_rate": 1e-5, "muon_learning_rate": 2e-3},
    "full_adamw": {"optimizer": "adamw", "learning_rate": 2e-4},
    **{f"lora_{rank}": {**LORA, "rank": rank} for rank in LORA_RANKS},
    "qlora": {**LORA, "rank": 8, "quantize": "nf4"},
    "adapter": {"method": "adapter", "optimizer": "adamw", "learning_rate": 3e-3, "weight_decay": 0.0},
    "prefix": {"method": "prefix", "optimizer": "adamw", "learning_rate": 0.3, "weight_decay": 0.0},
    "p-tuning": {"method": "p-tuning", "optimizer": "adamw", "learning_rate": 3e-3, "weight_decay": 0.0},
    "prompt": {"method": "prompt", "optimizer": "adamw", "learning_rate": 0.1, "weight_decay": 0.0},
    "head": {"method": "head", "optimizer": "adamw", "head_learning_rate": 1e-2, "weight_decay": 0.0},
}
# Of a method on a task, what is other than in TUNING_METHODS.
TASK_RATES = {
    ("full", "field"): {"learning_rate": 3e-4, "muon_learning_rate": 5e-3},
    ("full", "correction"): {"learning_rate": 3e-4, "muon_learning_rate": 5e-3},
}
REPEATED_METHODS = ("full", "full_adamw", "lora_8", "prefix", "p-tuning", "prompt", FEW_SHOT)  # made with every seed
# Made from each base and on each amount of questions.
SWEPT_METHODS = ("full", "lora_8", "adapter", "prefix", "p-tuning", "prompt")
REPEATED_BASES = ("full", "lora_8", "prefix", "prompt")  # made with every seed from each base
OVERFITTING = ("full", "lora_8")  # made with every seed on a tenth of the questions
REPLAYED = ("full", "lora_8")
RATE_FACTORS = (0.3, 3.0)  # of a method's rate
LONG_FACTOR = 3  # of the steps of a long tuning
LONG_METHODS = {"full": True, "lora_8": True, "prefix": True, "p-tuning": False, "prompt": False}  # with every seed?


@dataclass(frozen=True)
class TuningRun:
    """A run of the comparison of tuning methods.

    name: also of its folder; task: one of TUNED_TASKS, "" for the base; method: a key of TUNING_METHODS, or FEW_SHOT;
    rows: name of its folder of rows; given: settings of train.py, beside those of all runs; base_share: how much of
    pretraining the checkpoint that it begins as has had; repeated: made with every seed, else with the first.
    """

    name: str
    task: str
    method: str
    rows: str
    given: dict = field(default_factory=dict)
    base_share: float = 1.0
    repeated: bool = False


def share_name(share):
    """A share as names of runs and rows have it: 0.01 -> "1%"."""
    return f"{share:.0%}"


class TuningPlan:
    """The runs of the comparison of tuning methods under some settings.

    folder: everything is written to it; question_rows: {name of a folder of rows: share of the questions in it}.
    """

    MEASURING = "minigpt/experiments/tuning_measure.py"

    def __init__(self, settings):
        self.settings = settings
        self.folder = Path(settings.out_dir)
        self.tokenizer = str(self.folder / "tokenizer.tiktoken")
        self.base_settings = load_settings(TrainSettings, [settings.base_config])
        self.question_rows = {f"questions_{share_name(share)}": share for share in QUESTION_SHARES}
        self.has_bitsandbytes = importlib.util.find_spec("bitsandbytes") is not None
        self.runs = {run.name: run for run in self._runs()}

    def _runs(self):
        yield TuningRun(BASE_RUN, "", BASE_RUN, "articles")
        for task in TUNED_TASKS:
            for method in (*TUNING_METHODS, FEW_SHOT):
                if method != "head" or task == "field":
                    yield self._tuning(task, method, repeated=method in REPEATED_METHODS)
        for share in BASE_SHARES:
            for method in (*SWEPT_METHODS, FEW_SHOT):
                again = method in REPEATED_BASES
                yield self._tuning("questions", method, f"_base{share_name(share)}", base_share=share, repeated=again)
        for rows, share in self.question_rows.items():
            for method in SWEPT_METHODS:
                again = method in OVERFITTING and share == max(QUESTION_SHARES)
                yield self._tuning("questions", method, f"_of{share_name(share)}", rows=rows, repeated=again)
        for share in REPLAY_SHARES:
            for method in REPLAYED:
                replay = {"replay_share": share, "replay_dir": str(self.rows_folder("articles"))}
                yield self._tuning("questions", method, f"_replay{share_name(share)}", given=replay)
        for method in ("full_adamw", *SWEPT_METHODS):
            rate = "muon_learning_rate" if TUNING_METHODS[method]["optimizer"] == "muon" else "learning_rate"
            for factor in RATE_FACTORS:
                given = {rate: factor * TUNING_METHODS[method][rate]}
                yield self._tuning("questions", method, f"_rate{share_name(factor)}", given=given)
        for method, again in LONG_METHODS.items():
            steps = LONG_FACTOR * self.settings.tune_iters
            given = {"max_iters": steps, "eval_interval": steps}
            yield self._tuning("questions", method, "_long", given=given, repeated=again)

    def _tuning(self, task, method, ending="", rows="", given=None, **more):
        given = TUNING_METHODS.get(method, {}) | TASK_RATES.get((method, task), {}) | (given or {})
        return TuningRun(f"{task}_{method}{ending}", task, method, rows or task, given, **more)

    def can_run(self, run):
        """Whether the packages that a run needs are installed."""
        return self.has_bitsandbytes or run.given.get("quantize") != "nf4"

    def rows_folder(self, name):
        """The folder of the rows of that name."""
        return self.folder / "rows" / name

    def place(self, run, seed):
        """The folder of a run with a seed."""
        return self.folder / run / f"seed{seed}"

    def base_path(self, share):
        """The base's checkpoint after a share of its steps."""
        folder = self.place(BASE_RUN, self.settings.seeds[0])
        if share == 1:
            return folder / "last.pt"
        interval = self.base_interval()
        return folder / f"step_{interval * round(share * VALIDATIONS_OF_BASE):06d}.pt"

    def base_interval(self):
        """Steps between two validations of the base's pretraining."""
        base = self.base_settings
        steps = base.max_iters
        if base.max_epochs:
            meta = json.loads((self.rows_folder("articles") / META).read_text(encoding="utf-8"))
            batches = -(-meta["parts"]["train"]["rows"] // base.batch_size)
            steps = batches * base.max_epochs
        return max(1, int(steps) // VALIDATIONS_OF_BASE)

    def tasks(self, names, seeds):
        """[(run, seed)] of the base and the runs of those names (all: []): all with the first seed, then the others."""
        runs = [
            run for run in self.runs.values() if (not names or run.name in (BASE_RUN, *names)) and self.can_run(run)
        ]
        repeated = [run for run in runs if run.repeated]
        return [*((run, seeds[0]) for run in runs), *((run, seed) for seed in seeds[1:] for run in repeated)]

    def requirements(self, run, seed):
        """[(name, seed)] of the runs that must be done before a run: the base."""
        return [(BASE_RUN, self.settings.seeds[0])] if run.name != BASE_RUN else []

    def sources(self, run, seed):
        """What a run is made from: the spec of its rows and of its base, and how it is measured."""
        rows = read_spec(self.folder / "rows" / RESULT)
        if run.name == BASE_RUN:
            return [rows]
        base = read_spec(self.place(BASE_RUN, self.settings.seeds[0]) / TRAINED)
        return [rows, run.rows, base, run.base_share, run.method, self.settings.max_samples]

    def training_settings(self, run, seed):
        """train.py's settings of a run with a seed; None for a run that trains nothing."""
        settings, base = self.settings, self.base_settings
        if run.method == FEW_SHOT:
            return None
        given = {
            "data_dir": str(self.rows_folder(run.rows)), "out_dir": str(self.place(run.name, seed)), "seed": seed,
            "dtype": settings.dtype, "compile": "off",
        }  # fmt: skip
        if run.name == BASE_RUN:
            interval = self.base_interval()
            of_config = {name: getattr(base, name) for name in sorted(base.given)}
            return of_config | given | {"max_seconds": 0.0, "eval_interval": interval, "keep_every": interval}
        return given | {
            "init_from": str(self.base_path(run.base_share)), "block_size": base.block_size,
            "max_iters": settings.tune_iters, "eval_interval": settings.tune_iters, "batch_size": settings.batch_size,
            "warmup_iters": 20, "min_lr_ratio": 0.0, **run.given,
        }  # fmt: skip

    def measure(self, run, seed, cost, threads):
        """The figures of a finished run. cost: what `run_logged` returned; None for a run that trains nothing."""
        from minigpt.experiments import tuning_measure  # loads torch, which the process that starts all does not need

        return tuning_measure.measure_tuning(self, run, seed, cost, threads)
