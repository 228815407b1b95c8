"""The training runs under a folder: their loss curves, and which of them is going on."""

import math
import time
from pathlib import Path

from minigpt.arena.problems import printable
from minigpt.training.tracking import LOG, log_lines

POINTS = 400  # of a curve; a longer one is thinned
GOING_ON = 90.0  # seconds after its last line during which a run is taken to be going on
KINDS = {"train_loss": "train", "val_loss": "val"}


class RunLogs:
    """Reads each log again only where it has changed."""

    def __init__(self, root):
        self.root, self._read = Path(root), {}

    def logs(self):
        """{name: path of its log}, the run that was written last first."""
        found = []
        for path in self.root.rglob(LOG):
            try:
                found.append((path.stat().st_mtime, path))
            except OSError:  # moved aside just now
                continue
        found.sort(key=lambda pair: -pair[0])
        return {printable(path.parent.relative_to(self.root).as_posix()): path for _, path in found}

    def lines(self, path):
        """The whole lines of a log, as dicts."""
        try:
            stat = path.stat()
        except OSError:
            return []
        stamp = (stat.st_mtime_ns, stat.st_size)
        if self._read.get(path, (None,))[0] != stamp:
            self._read[path] = stamp, [line for line in log_lines(path) if isinstance(line, dict)]
        return self._read[path][1]

    def stamp(self, names):
        """What changes when any of these runs has a new line."""
        logs = self.logs()
        return [(name, logs[name].stat().st_mtime_ns) for name in names if name in logs]

    def curves(self, names):
        """[(step, loss, curve's name)] of runs, thinned to POINTS each."""
        logs, points = self.logs(), []
        for name in names:
            if name not in logs:
                continue
            for column, kind in KINDS.items():
                curve = [
                    (line["step"], line[column])
                    for line in self.lines(logs[name])
                    if isinstance(line.get("step"), int) and is_loss(line.get(column))
                ]
                points += [(step, loss, f"{name} · {kind}") for step, loss in thinned(curve)]
        return points

    def state(self, name):
        """{"step", "train_loss", "val_loss", "age", "going_on"}: the last of each, and seconds since; None without a
        line."""
        path = self.logs().get(name)
        lines = self.lines(path) if path else []
        if not lines:
            return None
        age = max(0.0, time.time() - path.stat().st_mtime)
        last = {
            column: next((line[column] for line in reversed(lines) if is_loss(line.get(column))), None)
            for column in KINDS
        }
        return {"step": lines[-1].get("step"), **last, "age": age, "going_on": age < GOING_ON}


def is_loss(value):
    """Whether a value of a log is a loss that can be drawn."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def thinned(curve):
    """Every so many points of a curve, its last among them."""
    stride = -(-len(curve) // POINTS) or 1
    return curve[::-1][::stride][::-1]
