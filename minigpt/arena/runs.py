"""The training runs under a folder: their loss curves, and which of them are still training."""

import threading
import time
from pathlib import Path

import numpy as np

from minigpt.arena.problems import clean_name
from minigpt.common.files import file_stamp
from minigpt.run_log import LOG, RunLog, thinned

MAX_CURVE_POINTS = 400  # a longer curve is thinned to about so many points
ACTIVE_SECONDS = 90.0  # a run whose last line is not older than this counts as still training
LOSS_COLUMNS = {"train_loss": "train", "val_loss": "val"}


class RunLogs:
    """The run logs under a folder. Each read takes only the lines that are new."""

    def __init__(self, root):
        self.root, self._logs, self._lock = Path(root), {}, threading.Lock()

    def list_logs(self):
        """{run's name: path of its log}, the most recently written first."""
        stamped = [(file_stamp(path), path) for path in self.root.rglob(LOG)]
        newest_first = sorted((pair for pair in stamped if pair[0]), reverse=True)  # no stamp: removed since listed
        return {clean_name(path.parent.relative_to(self.root).as_posix()): path for _, path in newest_first}

    def read_columns(self, path):
        """The columns of a log, as in `RunLog.columns`."""
        with self._lock:  # two visitors at once would add the same lines twice
            log = self._logs.setdefault(path, RunLog(path))
            log.read()
            return log.columns

    def is_active(self, path):
        """Whether the run of a log is still training."""
        return age_of(path) < ACTIVE_SECONDS

    def stamp(self, names):
        """A value that changes when any of these runs has a new line."""
        logs = self.list_logs()
        return [(name, file_stamp(logs[name])) for name in names if name in logs]

    def curves(self, names):
        """[(step, loss, curve's name)] of the runs; each curve has about MAX_CURVE_POINTS points at most."""
        logs, points = self.list_logs(), []
        for name in names:
            if name not in logs:
                continue
            columns = self.read_columns(logs[name])
            for column, kind in LOSS_COLUMNS.items():
                finite = np.isfinite(columns[column])
                steps, losses = thinned(columns["step"][finite], columns[column][finite], MAX_CURVE_POINTS)
                points += [
                    (int(step), loss, f"{name} · {kind}")
                    for step, loss in zip(steps.tolist(), losses.tolist(), strict=True)
                ]
        return points

    def state(self, name):
        """{"step", "train_loss", "val_loss", "age", "active"}: the last value of each, seconds since the last line, and
        whether the run is still training. None for a run without lines."""
        path = self.list_logs().get(name)
        columns = self.read_columns(path) if path else None
        if not columns or not len(columns["step"]):
            return None
        age = age_of(path)
        losses = {column: columns[column][np.isfinite(columns[column])] for column in LOSS_COLUMNS}
        last = {column: float(values[-1]) if len(values) else None for column, values in losses.items()}
        return {"step": int(columns["step"][-1]), **last, "age": age, "active": age < ACTIVE_SECONDS}


def age_of(path):
    """Seconds since a file was written; infinity if it is gone."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return float("inf")
