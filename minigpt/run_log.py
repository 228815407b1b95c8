"""Reads the log.jsonl of training runs while it grows, and computes what it shows: smoothed loss, best step,
over-fitting, throughput. Plots are in minigpt/evaluation/training_plots.py.
"""

import itertools
import json
import math
import os
import sys
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minigpt.common.errors import UserError
from minigpt.common.files import write_atomic

LOG = "log.jsonl"
ANSWERS_LOG = "samples.jsonl"  # answers of a model that is tuned by rewards
LOG_FIELDS = ("step", "epoch", "train_loss", "val_loss", "lr", "tokens", "seconds")
MIN_OVERFITTING_RISE = 0.02  # of the validation loss above the best one, as a share of it
COMPARED_LINES = 10  # the training loss is averaged over so many lines of the log
MAX_THROUGHPUT_POINTS = 400
MIN_THROUGHPUT_SECONDS = 0.5  # that a point covers
MAX_LAG_SHARE = 0.1  # of a run, by which the smoothed loss may lag behind
GAP_FACTOR = 5.0  # lines are missing where two are so many times farther apart than their neighbours


def find_runs(runs, out_root, wait=False):
    """Paths of the log.jsonl files of runs: folders, folders of runs, or files; []: the newest one under out_root.

    Raises UserError for a run that does not exist, unless `wait` is true.
    """
    if not runs:
        logs = sorted(Path(out_root).rglob(LOG), key=os.path.getmtime)
        if not logs and not wait:
            raise UserError(f"no {LOG} under {out_root}; train first: python train.py config/train_config.py")
        return logs[-1:]
    logs = []
    for run in map(Path, runs):
        if run.is_dir() and not (run / LOG).exists():
            logs += sorted(run.glob(f"*/{LOG}")) or [run / LOG]
        else:
            logs.append(run if run.is_file() or run.suffix == ".jsonl" else run / LOG)
    for log in logs:
        if not log.is_file() and not wait:
            raise UserError(f"{log} is not there; name a run's folder with --runs=…")
    return list(dict.fromkeys(logs))


def run_names(logs):
    """A name for each log: its folder's, with as many parent folders as make it different from the others."""
    parts = [(log.parent if log.name == LOG else log.with_suffix("")).absolute().parts[1:] or ("run",) for log in logs]
    names = []
    for own in parts:
        depth = next((n for n in range(1, len(own)) if sum(other[-n:] == own[-n:] for other in parts) < 2), len(own))
        names.append("/".join(own[-depth:]))
    return names


class RunLog:
    """A run's log. Each `read` continues where the last one ended, so that a long log is not read again.

    columns: {field: (n,) float64}, one value for each line of the log, nan if it is missing or not a number. Lines that
    a resumed run wrote again are contained once. notes: a line about each kind of problem.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.name = run_names([self.path])[0]
        self._begin()

    def _begin(self):
        self._file = None  # identity of the file that was read
        self._position = 0  # bytes that were read
        self._values = {name: array("d") for name in LOG_FIELDS}
        self._broken = []  # numbers of the lines that are not JSON objects
        self._half = False  # whether the last line is incomplete
        self._lines = 0
        self.columns = {name: np.zeros(0) for name in LOG_FIELDS}

    def read(self):
        """Read the lines that are new; returns whether anything changed. Raises UserError."""
        try:
            with open(self.path, "rb") as file:
                return self._read(file)
        except FileNotFoundError:
            changed = self._file is not None
            self._begin()
            return changed
        except OSError as error:
            raise UserError(f"{self.path} could not be read ({error.strerror})") from None

    def _read(self, file):
        # A resumed or restarted run replaces the file: read it from the beginning.
        about = os.fstat(file.fileno())
        identity, size = (about.st_dev, about.st_ino), about.st_size
        replaced = self._file not in (None, identity) or size < self._position
        if replaced:
            self._begin()
        self._file, before = identity, self._position
        file.seek(before)
        for line in file:
            row = _parsed(line)
            if row is None and not line.endswith(b"\n"):  # the run is still writing it
                break
            self._position += len(line)
            self._lines += 1
            if row:
                for name, values in self._values.items():
                    values.append(_number(row.get(name)))
            elif line.strip():
                self._broken.append(self._lines)
        self._half = size > self._position
        changed = replaced or self._position != before
        if changed:
            self.columns = _once({name: np.array(values) for name, values in self._values.items()})
        return changed

    def __len__(self):
        return len(self.columns["step"])

    @property
    def notes(self):
        columns, steps = self.columns, np.array(self._values["step"])
        unplaced = int(np.isnan(steps).sum())
        counts = [
            (len(self._broken), "line", f"could not be read (the first is line {min(self._broken, default=0)})"),
            (unplaced, "line", "without a step left out"),
            (len(steps) - unplaced - len(self), "line", "that a resumed run wrote again left out"),
            (len(find_gaps(columns["step"])), "gap", "between its lines"),
        ]
        for name, what in (("train_loss", "training loss"), ("val_loss", "validation loss")):
            infinite = columns["step"][np.isinf(columns[name])]
            counts.append((len(infinite), what, f"not finite, first at step {infinite.min(initial=math.inf):.0f}"))
        notes = [f"{_count(n, what)} {text}" for n, what, text in counts if n]
        if self._half:
            notes.append("its last line is incomplete (the run is writing it, or was interrupted)")
        missing = [name for name in LOG_FIELDS if name != "val_loss" and not np.isfinite(columns[name]).any()]
        if missing and len(self):
            notes.append(f"no line has {' or '.join(missing)}")
        return [f"{self.path}: {note}" for note in notes]


def log_lines(path):
    """The lines of a log as dicts. Incomplete ones, after a crash or on a full disk, are left out."""
    lines = Path(path).read_bytes().splitlines() if Path(path).exists() else []
    return [row for row in map(_parsed, lines) if row]


def cut_log(folder, step):
    """Remove the lines after a step from a run's log, because training will write them again."""
    path = Path(folder) / LOG
    text = "".join(json.dumps(line) + "\n" for line in log_lines(path) if line["step"] <= step)
    write_atomic(path, lambda file: file.write(text.encode()))


def _parsed(line):
    """A line of a log as a dict; None if it is not a JSON object; {} if it is empty."""
    if not line.strip():
        return {}
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _number(value):
    """A value as float: nan if it is missing, inf if it is not finite, so that the two can be distinguished."""
    if type(value) not in (int, float):
        return math.nan
    return float(value) if abs(value) <= sys.float_info.max else math.inf


def _once(columns):
    """The columns without the lines that have no step, and without those that a resumed run wrote again."""
    steps = columns["step"]
    placed = np.isfinite(steps)
    columns = {name: values[placed] for name, values in columns.items()}
    steps = columns["step"]
    least_after = np.append(np.minimum.accumulate(steps[::-1])[::-1][1:], math.inf)
    return {name: values[steps < least_after] for name, values in columns.items()}


def _count(n, what):
    return f"{n:,} {what}{'' if n == 1 else 'es' if what.endswith('s') else 's'}"


def find_gaps(steps):
    """Indices before which lines are missing: the distance of two steps is over GAP_FACTOR times those beside it."""
    distances = np.diff(steps)
    if len(distances) < 3:
        return np.zeros(0, int)
    beside = np.maximum(distances[:-2], distances[2:])  # after a change of log_interval, one of them is large too
    return np.flatnonzero(distances[1:-1] > GAP_FACTOR * beside) + 2


def limit_smoothing(weight, n):
    """The weight of the past for smoothing n values: the one given, or less for few values.

    An average with weight w lags w / (1 - w) values behind. In a short run, whose loss still falls fast, it would be
    far above the loss. So the lag is at most a tenth of the run.
    """
    return min(weight, 1 - 1 / max(1.0, n * MAX_LAG_SHARE))


def smooth_values(values, weight):
    """Exponential moving average of finite values (n,), with Adam's bias correction.

    weight: of the past, 0 to 1; for few values, see `limit_smoothing`.
    """
    weight = limit_smoothing(weight, len(values))
    steps = [0.0, *((1 - weight) * values).tolist()]
    means = np.array(list(itertools.accumulate(steps, lambda mean, step: weight * mean + step)))
    return means[1:] / (1 - weight ** np.arange(1, len(means)))


def best_line(columns):
    """Index of the lowest validation loss (of equal ones the first); None if there is none."""
    found = np.flatnonzero(np.isfinite(columns["val_loss"]))
    return int(found[columns["val_loss"][found].argmin()]) if len(found) else None


@dataclass
class Overfitting:
    """Where over-fitting begins: the last best validation. Losses in nats per token."""

    line: int  # index in the run's columns
    step: int
    best: float  # validation loss there
    last: float  # validation loss at the end
    train_best: float  # mean training loss before the best validation
    train_last: float  # mean training loss before the last validation

    @property
    def text(self):
        return (
            f"over-fits after step {self.step:,}: validation loss {self.best:.4f} → {self.last:.4f} "
            f"({self.last / self.best - 1:+.1%}), while training loss fell {self.train_best:.4f} → "
            f"{self.train_last:.4f}"
        )


def overfitting(columns):
    """`Overfitting` of a run's log, or None. Training, plots and reports all use this definition.

    A run over-fits if its last validation loss is more than MIN_OVERFITTING_RISE above the best one, while the training
    loss (mean of up to COMPARED_LINES lines before each of the two validations) fell. (Several rises in a row would be
    a worse definition: a loss that fluctuates while it climbs has none, and three rises may be tiny.) A log with a
    loss below 0 is of GRPO or PPO, whose losses are no cross-entropies and show nothing of the kind.
    """
    best, val = best_line(columns), columns["val_loss"]
    if best is None or any((columns[name] < 0).any() for name in ("train_loss", "val_loss")):
        return None
    best = int(np.flatnonzero(val == val[best])[-1])
    last = int(np.flatnonzero(np.isfinite(val))[-1])
    trained = np.flatnonzero(np.isfinite(columns["train_loss"]))
    before, after = trained[trained <= best], trained[(trained > best) & (trained <= last)]
    lines = min(COMPARED_LINES, len(before), len(after))
    if not lines or val[last] <= val[best] * (1 + MIN_OVERFITTING_RISE):
        return None
    means = [float(columns["train_loss"][part[-lines:]].mean()) for part in (before, after)]
    if means[1] >= means[0]:
        return None
    return Overfitting(best, int(columns["step"][best]), float(val[best]), float(val[last]), *means)


@dataclass
class RunThroughput:
    """Tokens per second: places (indices in the columns) with their rates, and the overall rate."""

    places: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    rates: np.ndarray = field(default_factory=lambda: np.zeros(0))
    overall: float = math.nan
    with_checks: bool = False  # whether the time includes validation


def measure_throughput(columns):
    """`RunThroughput` of a run, from line to line; lines that are close in time share a point.

    The log's clock includes the time of validating and saving. So the intervals after a validation are left out, unless
    there are no others. Intervals without tokens are left out too, and those in which the clock ran backwards.
    """
    seconds, tokens = columns["seconds"], columns["tokens"]
    there = np.flatnonzero(np.isfinite(seconds) & np.isfinite(tokens))
    # The interval from each line to the next.
    took, made = np.diff(seconds[there]), np.diff(tokens[there])
    right = (took >= 0) & (made > 0)
    without_checks = right & ~np.isfinite(columns["val_loss"][there][:-1])
    with_checks = not without_checks.any()
    chosen = np.flatnonzero(right if with_checks else without_checks)
    total = took[chosen].sum()
    if total <= 0:
        return RunThroughput()
    # Intervals are summed in bins of equal training time.
    width = max(MIN_THROUGHPUT_SECONDS, total / MAX_THROUGHPUT_POINTS)
    ends = np.cumsum(took[chosen])
    bins = np.minimum((ends - took[chosen] / 2) // width, max(0, total // width - 1)).astype(int)
    took, made = np.bincount(bins, took[chosen]), np.bincount(bins, made[chosen])
    last = np.zeros(len(took), int)
    np.maximum.at(last, bins, there[chosen + 1])
    full = took > 0
    return RunThroughput(last[full], made[full] / took[full], float(made.sum() / took.sum()), with_checks)


def thinned(x, y, most):
    """About `most` of the points (x, y), in order: the first, the last, and the lowest and highest of every stretch.

    So no spike is lost.
    """
    if len(x) <= most:
        return x, y
    kept = {0, len(x) - 1}
    for stretch in np.array_split(np.arange(len(x)), max(1, most // 2)):
        kept |= {stretch[y[stretch].argmin()], stretch[y[stretch].argmax()]}
    kept = sorted(kept)
    return x[kept], y[kept]


def summarize_run(run, smooth):
    """Lines about a `RunLog`: its progress, the best step, over-fitting. smooth: weight of `smooth_values`."""
    c, lines = run.columns, []
    losses = c["train_loss"][np.isfinite(c["train_loss"])]
    came = [f"step {c['step'][-1]:,.0f}"]
    for name, form in (("epoch", "epoch {:.2f}"), ("tokens", "{:,.0f} tokens"), ("seconds", "{:,.0f} s")):
        if len(values := c[name][np.isfinite(c[name])]):
            came.append(form.format(values.max()))
    if len(losses):
        suffix = " (smoothed)" if limit_smoothing(smooth, len(losses)) else ""
        came.append(f"training loss {smooth_values(losses, smooth)[-1]:.4f}{suffix}")
    speed = measure_throughput(c)
    if math.isfinite(speed.overall):
        came.append(f"{speed.overall:,.0f} tokens/s{' (with its validations)' if speed.with_checks else ''}")
    lines.append(f"{run.name}: {', '.join(came)}")
    best = best_line(c)
    if best is None:
        return [*lines, "  no validation loss yet"]
    checks, place = int(np.isfinite(c["val_loss"]).sum()), f"{c['val_loss'][best]:.4f} at step {c['step'][best]:,.0f}"
    lines.append(f"  best validation loss {place} of {_count(checks, 'validation')}")
    found = overfitting(c)
    none = f"no over-fitting (validation loss did not end {MIN_OVERFITTING_RISE:.0%} above the best)"
    return [*lines, f"  {found.text if found else none}"]
