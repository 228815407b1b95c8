"""Training runs by their log.jsonl: read as it grows, and what it tells (smoothed loss, best step, over-fitting, pace).

Nothing here draws; plots are in run_plots.py.
"""

import json
import math
import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minigpt.common.errors import UserError
from minigpt.common.files import write_atomic

LOG = "log.jsonl"
FIELDS = ("step", "epoch", "train_loss", "val_loss", "lr", "tokens", "seconds")
RISE = 0.02  # share of the best validation loss by which it must have risen for over-fitting
COMPARED_LINES = 10  # of the log, whose mean training loss is compared
PACE_POINTS, PACE_SECONDS = 400, 0.5  # at most so many points of tokens a second, each over at least so long
MOST_LAG = 0.1  # of a run, by which its smoothed loss may lag behind
GAP = 5.0  # times the distance of the lines before and after: then lines are missing, and no curve crosses it


def find_runs(runs, out_root, wait=False):
    """Paths of the log.jsonl files of some runs: folders, folders of runs, or files; []: the newest under out_root.

    wait: whether a run that is not there yet may come; else UserError is raised for it.
    """
    if not runs:
        logs = sorted(Path(out_root).rglob(LOG), key=_changed)
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


def _changed(path):
    """When a file was last written to; 0 where it has just gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def run_names(logs):
    """A name for each log: its folder's, with as many of the folders above as tell it from the others."""
    parts = [(log.parent if log.name == LOG else log.with_suffix("")).absolute().parts[1:] or ("run",) for log in logs]
    names = []
    for own in parts:
        depth = next((n for n in range(1, len(own)) if sum(other[-n:] == own[-n:] for other in parts) < 2), len(own))
        names.append("/".join(own[-depth:]))
    return names


class RunLog:
    """A run's log, read from where the last `read` ended, so that one of a million lines is not read again.

    After `read`, `columns` is {field: (n,) float64}, a line of the log each, with nan where a value is missing or is no
    number; lines that a resumed run wrote again stand in it once. `notes`: a line about each kind of thing left out.
    """

    def __init__(self, path, name=""):
        self.path, self.name = Path(path), name or run_names([Path(path)])[0]
        self._begin(None)

    def _begin(self, file):
        self._file, self._position = file, 0
        self._values = {name: array("d") for name in FIELDS}
        self._broken, self._half = [], False  # numbers of the lines that are no lines of a log
        self._lines = 0
        self.columns = {name: np.zeros(0) for name in FIELDS}

    def read(self):
        """Take in what the log has more than before; returns whether anything changed. Raises UserError."""
        try:
            with open(self.path, "rb") as file:
                return self._read(file)
        except FileNotFoundError:
            changed = self._file is not None
            self._begin(None)
            return changed
        except OSError as error:
            raise UserError(f"{self.path} could not be read ({error.strerror})") from None

    def _read(self, file):
        about = _stat(file)
        changed = self._file not in (None, about[0])
        if changed or about[1] < self._position:  # another file: a run that was resumed, or begun again
            self._begin(None)
            changed = True
        self._file, before = about[0], self._position
        file.seek(before)
        for line in file:
            whole = line.endswith(b"\n")
            row = _parsed(line)
            if row is None and not whole:  # it may still be under way
                break
            self._position += len(line)
            self._lines += 1
            self._half = False
            if row:
                for name, values in self._values.items():
                    values.append(_number(row.get(name)))
            elif line.strip():
                self._broken.append(self._lines)
        self._half = about[1] > self._position
        if self._position != before or changed:
            self.columns = _once({name: np.array(values) for name, values in self._values.items()})
            return True
        return False

    def __len__(self):
        return len(self.columns["step"])

    @property
    def notes(self):
        notes, columns, values = [], self.columns, self._values
        if self._broken:
            first = self._broken[0]
            notes.append(f"{_count(len(self._broken), 'line')} could not be read (the first is line {first})")
        if self._half:
            notes.append("its last line is not whole (a run that is writing, or was cut off)")
        unplaced = int(np.isnan(np.array(values["step"])).sum())
        if unplaced:
            notes.append(f"{_count(unplaced, 'line')} without a step left out")
        again = len(values["step"]) - unplaced - len(self)
        if again:
            notes.append(f"{_count(again, 'line')} that a resumed run wrote again left out")
        for name, what in (("train_loss", "training"), ("val_loss", "validation")):
            lost = np.flatnonzero(np.isinf(columns[name]))
            if len(lost):
                step = columns["step"][lost[0]]
                notes.append(f"{_count(len(lost), what + ' loss')} not finite, first at step {step:.0f}")
        missing = [name for name in FIELDS if name != "val_loss" and len(self) and not np.isfinite(columns[name]).any()]
        if missing:
            notes.append(f"no line has {' or '.join(missing)}")
        if missing_lines := len(gaps(columns["step"])):
            notes.append(f"{_count(missing_lines, 'gap')} between its lines")
        return [f"{self.path}: {note}" for note in notes]


def log_lines(path):
    """The whole lines of a log, as dicts; one that a crash or a full disk cut short is left out."""
    lines = Path(path).read_bytes().splitlines() if Path(path).exists() else []
    return [row for row in map(_parsed, lines) if row]


def cut_log(folder, step):
    """Take the lines after a step off a run's log: they are about to be written again."""
    path = Path(folder) / LOG
    text = "".join(json.dumps(line) + "\n" for line in log_lines(path) if line["step"] <= step)
    write_atomic(path, lambda file: file.write(text.encode()))


def _stat(file):
    """(what tells a file from another under its name, bytes)."""
    about = os.fstat(file.fileno())
    return (about.st_dev, about.st_ino), about.st_size


def _parsed(line):
    """A log's line as a dict; None where it is none; {} where it is empty."""
    if not line.strip():
        return {}
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _number(value):
    """A value as float; nan where it is missing. What is there and not finite is inf, so that it can be told."""
    if type(value) not in (int, float):
        return math.nan
    try:
        value = float(value)
    except OverflowError:
        return math.inf
    return value if math.isfinite(value) else math.inf


def _once(columns):
    """The columns without lines that have no step, or one that a later line has gone back to or before."""
    steps = columns["step"]
    placed = np.isfinite(steps)
    columns = {name: values[placed] for name, values in columns.items()}
    steps = columns["step"]
    least_after = np.append(np.minimum.accumulate(steps[::-1])[::-1][1:], math.inf)
    return {name: values[steps < least_after] for name, values in columns.items()}


def _count(n, what):
    return f"{n:,} {what}{'' if n == 1 else 'es' if what.endswith('s') else 's'}"


def known(x, y):
    """Indices at which both have a finite value."""
    return np.flatnonzero(np.isfinite(x) & np.isfinite(y))


def gaps(steps):
    """Indices before which lines are missing: where the distance of two is over GAP times that of both neighbours."""
    distances = np.diff(steps)
    if len(distances) < 3:
        return np.zeros(0, int)
    beside = np.maximum(distances[:-2], distances[2:])  # a log_interval that was changed is no gap
    return np.flatnonzero(distances[1:-1] > GAP * beside) + 2


def fitting_weight(weight, n):
    """The weight of what came before by which n values are smoothed: less than the one given where they are few.

    An average of weight w lags w / (1 - w) values behind. In a short run, whose loss falls from line to line, that is
    far above the loss: so it may be a tenth of the run at most.
    """
    return min(weight, 1 - 1 / max(1.0, n * MOST_LAG))


def smoothed(values, weight):
    """Exponential average of finite values (n,), without the pull of its start (Adam's debiasing).

    weight: of what came before, 0 to 1; of few values `fitting_weight`.
    """
    weight = fitting_weight(weight, len(values))
    mean, rest, out = 0.0, 1.0, array("d")
    for value in values.tolist():
        mean = weight * mean + (1 - weight) * value
        rest *= weight
        out.append(mean / (1 - rest))
    return np.array(out)


def best_line(columns):
    """Index of the lowest validation loss, the first of equal ones; None without one."""
    found = np.flatnonzero(np.isfinite(columns["val_loss"]))
    return int(found[columns["val_loss"][found].argmin()]) if len(found) else None


@dataclass
class Overfitting:
    """From where on a run only learned by heart. line: index in its columns; losses in nats a token."""

    line: int
    step: int
    best: float
    last: float  # validation loss of the last validation
    train_best: float  # mean training loss before each of the two
    train_last: float

    @property
    def text(self):
        return (
            f"over-fits after step {self.step:,}: validation loss {self.best:.4f} → {self.last:.4f} "
            f"({self.last / self.best - 1:+.1%}), while training loss fell {self.train_best:.4f} → "
            f"{self.train_last:.4f}"
        )


def overfitting(columns):
    """`Overfitting`, or None: what training notes, and what plots and the report card tell of a run's log.

    The point is the last best validation, if the last one lies more than RISE of it above, and the training loss (mean
    of up to COMPARED_LINES lines before each of the two) is lower than it was there. (Some rises in a row would not do:
    a run whose loss wavers while it climbs has none, and one may rise three times by next to nothing.)
    """
    best, val = best_line(columns), columns["val_loss"]
    if best is None:
        return None
    best = int(np.flatnonzero(val == val[best])[-1])
    last = int(np.flatnonzero(np.isfinite(val))[-1])
    trained = np.flatnonzero(np.isfinite(columns["train_loss"]))
    before, after = trained[trained <= best], trained[(trained > best) & (trained <= last)]
    lines = min(COMPARED_LINES, len(before), len(after))
    if not lines or val[last] <= val[best] * (1 + RISE):
        return None
    means = [float(columns["train_loss"][part[-lines:]].mean()) for part in (before, after)]
    if means[1] >= means[0]:
        return None
    return Overfitting(best, int(columns["step"][best]), float(val[best]), float(val[last]), *means)


@dataclass
class Pace:
    """Tokens a second: places (indices in the columns) and rates, and the rate over all."""

    places: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    rates: np.ndarray = field(default_factory=lambda: np.zeros(0))
    overall: float = math.nan
    with_checks: bool = False  # whether the seconds are also those of validating


def pace(columns):
    """`Pace` of a run: from line to line, a few together where they are close.

    The clock of a log runs on while a run validates and saves, so lines that come after a validation are left out,
    unless there are no others. So are lines without time or tokens between them, or with either running backwards.
    """
    seconds, tokens = columns["seconds"], columns["tokens"]
    there = known(seconds, tokens)
    took, made = np.diff(seconds[there]), np.diff(tokens[there])
    right = (took >= 0) & (made > 0)
    after_check = np.isfinite(columns["val_loss"][there][:-1])
    with_checks = not (right & ~after_check).any()
    chosen = np.flatnonzero(right if with_checks else right & ~after_check)
    total = took[chosen].sum()
    if total <= 0:
        return Pace()
    width = max(PACE_SECONDS, total / PACE_POINTS)
    ends = np.cumsum(took[chosen])
    bins = np.minimum((ends - took[chosen] / 2) // width, max(0, total // width - 1)).astype(int)
    took, made = np.bincount(bins, took[chosen]), np.bincount(bins, made[chosen])
    last = np.zeros(len(took), int)
    np.maximum.at(last, bins, there[chosen + 1])
    full = took > 0
    return Pace(last[full], made[full] / took[full], float(made.sum() / took.sum()), with_checks)


def thinned(x, y, most, extremes=False):
    """At most about `most` of the points (x, y), in order, with the first and the last; with `extremes`, the lowest and
    the highest of every stretch, so that a spike stays."""
    n = len(x)
    if n <= most:
        return x, y
    if not extremes:
        kept = np.unique(np.linspace(0, n - 1, most).astype(int))
        return x[kept], y[kept]
    size = -(-n // max(1, most // 2))
    whole = n // size * size
    shaped = y[:whole].reshape(-1, size)
    starts = np.arange(len(shaped)) * size
    tail = [whole + y[whole:].argmin(), whole + y[whole:].argmax()] if whole < n else []
    kept = np.unique([*(starts + shaped.argmin(axis=1)), *(starts + shaped.argmax(axis=1)), *tail, 0, n - 1])
    return x[kept], y[kept]


def summary(run, smooth):
    """Lines that say what a `RunLog` holds: how far it came, the best step, over-fitting."""
    c, lines = run.columns, []
    losses = c["train_loss"][np.isfinite(c["train_loss"])]
    came = [f"step {c['step'][-1]:,.0f}"]
    for name, form in (("epoch", "epoch {:.2f}"), ("tokens", "{:,.0f} tokens"), ("seconds", "{:,.0f} s")):
        if np.isfinite(c[name]).any():
            came.append(form.format(np.nanmax(np.where(np.isfinite(c[name]), c[name], np.nan))))
    if len(losses):
        told = " (smoothed)" if fitting_weight(smooth, len(losses)) else ""
        came.append(f"training loss {smoothed(losses, smooth)[-1]:.4f}{told}")
    speed = pace(c)
    if math.isfinite(speed.overall):
        came.append(f"{speed.overall:,.0f} tokens/s{' (with its validations)' if speed.with_checks else ''}")
    lines.append(f"{run.name}: {', '.join(came)}")
    best = best_line(c)
    if best is None:
        return [*lines, "  no validation loss yet"]
    checks, place = int(np.isfinite(c["val_loss"]).sum()), f"{c['val_loss'][best]:.4f} at step {c['step'][best]:,.0f}"
    lines.append(f"  best validation loss {place} of {_count(checks, 'validation')}")
    found = overfitting(c)
    none = f"no over-fitting (a rise of {RISE:.0%} after the best step) is seen"
    return [*lines, f"  {found.text if found else none}"]
