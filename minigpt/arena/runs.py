"""The training runs under a folder: their loss curves, and which of them is going on."""

import time
from pathlib import Path

import numpy as np

from minigpt.arena.problems import printable
from minigpt.run_log import LOG, RunLog, thinned

POINTS = 400  # of a curve; a longer one is thinned
GOING_ON = 90.0  # seconds after its last line during which a run is taken to be going on
KINDS = {"train_loss": "train", "val_loss": "val"}


class RunLogs:
    """The logs under a folder; of each, only what is new is read."""

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

    def columns(self, path):
        """The columns of a log, as `RunLog` has them."""
        log = self._read.setdefault(path, RunLog(path))
        log.read()
        return log.columns

    def stamp(self, names):
        """What changes when any of these runs has a new line."""
        logs = self.logs()
        return [(name, logs[name].stat().st_mtime_ns) for name in names if name in logs]

    def curves(self, names):
        """[(step, loss, curve's name)] of runs, thinned to about POINTS each."""
        logs, points = self.logs(), []
        for name in names:
            if name not in logs:
                continue
            columns = self.columns(logs[name])
            for column, kind in KINDS.items():
                there = np.isfinite(columns[column])
                steps, losses = thinned(columns["step"][there], columns[column][there], POINTS)
                points += [
                    (int(step), loss, f"{name} · {kind}")
                    for step, loss in zip(steps.tolist(), losses.tolist(), strict=True)
                ]
        return points

    def state(self, name):
        """{"step", "train_loss", "val_loss", "age", "going_on"}: the last of each, and seconds since; None without a
        line."""
        path = self.logs().get(name)
        columns = self.columns(path) if path else None
        if not columns or not len(columns["step"]):
            return None
        age = max(0.0, time.time() - path.stat().st_mtime)
        losses = {column: columns[column][np.isfinite(columns[column])] for column in KINDS}
        last = {column: float(values[-1]) if len(values) else None for column, values in losses.items()}
        return {"step": int(columns["step"][-1]), **last, "age": age, "going_on": age < GOING_ON}
