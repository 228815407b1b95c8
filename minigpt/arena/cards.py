"""What the page shows of each model: where it comes from, its losses, and the figures that evaluations have written."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minigpt.arena.models import CheckpointInfo
from minigpt.arena.problems import clean_name
from minigpt.arena.runs import RunLogs
from minigpt.common.errors import UserError
from minigpt.common.files import file_stamp
from minigpt.run_log import LOG, thinned

CARD_FIGURES = ("exact_match", "rouge_l_f", "perplexity", "bits_per_char")  # as the evaluations' JSON names them
MAX_JSON_BYTES = 1 << 20  # a longer file is no evaluation's
MAX_SPARK_POINTS = 60  # of a curve
MAX_ANCESTORS = 8  # models


@dataclass(frozen=True)
class Figure:
    """One measured value. low, high: its 95% interval, or None; pairs: questions that it is over, or None; clean: the
    evaluation found that the model was not trained on them."""

    value: float
    low: float | None = None
    high: float | None = None
    pairs: int | None = None
    clean: bool = False


@dataclass(frozen=True)
class ModelCard:
    """A model of a run. info: its CheckpointInfo; chain: names of the models that it comes from, the first one first;
    curve: [(step, validation loss in nats per token)]; figures: {key of CARD_FIGURES: Figure}; active: the run is
    going on.
    """

    info: CheckpointInfo
    chain: tuple[str, ...] = ()
    curve: tuple[tuple[int, float], ...] = ()
    figures: dict | None = None
    active: bool = False


class ModelCards:
    """Reads the cards of the checkpoints of a ModelCache. Files that have not changed are not read again."""

    def __init__(self, models):
        self.models, self.logs, self._evaluations = models, RunLogs(models.root), {}

    def read(self):
        """[ModelCard]: one for each run, of its best checkpoint (where it has none yet, the newest), in the order
        of ModelCache.checkpoints."""
        infos, runs = self.models.checkpoints()[0], {}
        for info in infos:
            runs.setdefault(info.path.parent, info)
        evaluations, by_path = self.read_evaluations(), {info.path.resolve(): info for info in infos}
        cards = []
        for info in runs.values():
            curve, active = self.read_curve(info.path.parent)
            figures = best_figures(evaluations.get((info.path.resolve(), info.step), ()))
            cards.append(ModelCard(info, find_chain(info, by_path), curve, figures, active))
        return cards

    def read_curve(self, folder):
        """(the validation losses of a run as in ModelCard.curve, whether it is going on)."""
        path = folder / LOG
        if not path.is_file():
            return (), False
        try:
            columns = self.logs.read_columns(path)
        except UserError:  # the tab of training says why the log cannot be read; the other cards are shown
            return (), False
        finite = np.isfinite(columns["val_loss"])
        steps, losses = thinned(columns["step"][finite], columns["val_loss"][finite], MAX_SPARK_POINTS)
        curve = tuple((int(step), loss) for step, loss in zip(steps.tolist(), losses.tolist(), strict=True))
        return curve, self.logs.is_active(path)

    def read_evaluations(self):
        """{(path of the checkpoint, step): [dict]} of all evaluations under the root, the newest first."""
        known, found = self._evaluations, {}
        for path in self.models.root.rglob("*.json"):
            stamp = file_stamp(path)
            if stamp:
                found[path, stamp] = known[path, stamp] if (path, stamp) in known else read_evaluation(path)
        self._evaluations, grouped = found, {}
        for (_, _), content in sorted(found.items(), key=lambda item: item[0][1], reverse=True):
            if content:
                key = Path(content["checkpoint"]).resolve(), content["step"]
                grouped.setdefault(key, []).append(content)
        return grouped


def read_evaluation(path):
    """The dict that an evaluations-*.py script wrote about one checkpoint; None if the file is anything else."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        is_one = isinstance(content["checkpoint"], str) and isinstance(content["step"], int)
        return content if is_one and any(key in content for key in CARD_FIGURES) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def best_figures(evaluations):
    """{key of CARD_FIGURES: Figure} of the evaluations of one checkpoint. For each key the first one counts that was on
    questions which the model was not trained on; without one, the first."""
    figures = {}
    for content in evaluations:
        leak, intervals = content.get("leak"), content.get("intervals")
        clean = isinstance(leak, dict) and leak.get("verdict") == "clean"
        for key in CARD_FIGURES:
            value, old = content.get(key), figures.get(key)
            if not is_finite_number(value) or (old and (old.clean or not clean)):
                continue
            low, high = interval_of(intervals, key)
            pairs = content.get("pairs")
            figures[key] = Figure(float(value), low, high, pairs if is_finite_number(pairs) else None, clean)
    return figures


def interval_of(intervals, key):
    """(low, high) of a key in an evaluation's intervals; (None, None) without them."""
    pair = intervals.get(key) if isinstance(intervals, dict) else None
    if isinstance(pair, list) and len(pair) == 2 and all(map(is_finite_number, pair)):
        return float(pair[0]), float(pair[1])
    return None, None


def is_finite_number(value):
    """Whether a value of a JSON file is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def find_chain(info, by_path):
    """Names of the models that a checkpoint comes from, the first one first, itself last. by_path: {path of a
    checkpoint: CheckpointInfo}. A checkpoint that is gone is named by its path's last two parts."""
    chain = [info.name]
    while info and info.started_from and len(chain) < MAX_ANCESTORS:
        path = Path(info.started_from)
        info = by_path.get(path.resolve())
        name = info.name if info else clean_name("/".join(path.with_suffix("").parts[-2:]))
        if name in chain:
            break
        chain.append(name)
    return tuple(reversed(chain))
