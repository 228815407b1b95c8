"""The logs of runs, which several visitors read at once."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

from minigpt.arena.runs import RunLogs
from minigpt.run_log import LOG, RunLog


def test_visitors_who_come_at_once_read_each_line_once(tmp_path, monkeypatch):
    lines = [json.dumps({"step": step, "val_loss": 1.0}) + "\n" for step in range(5)]
    (tmp_path / LOG).write_text("".join(lines), encoding="utf-8")
    read, inside, most = RunLog.read, [], []

    def slow_read(log):
        inside.append(log)
        most.append(len(inside))
        time.sleep(0.02)  # the others come meanwhile
        found = read(log)
        inside.remove(log)
        return found

    monkeypatch.setattr(RunLog, "read", slow_read)
    logs = RunLogs(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: len(logs.read_columns(tmp_path / LOG)["step"]), range(8)))
    assert found == [5] * 8 and max(most) == 1
