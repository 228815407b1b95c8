"""The files of the training job that was started from the page, in its folder, and what a fine-tuning takes.

job.json    its commands, and how far it is       job.lock    held while its process runs
job.log     what it prints                        job.stop    a byte for each time that it was asked to stop
"""

import json
import re

from minigpt.common.files import write_json

JOB, JOB_LOCK, LOG_FILE, STOP = "job.json", "job.lock", "job.log", "job.stop"
QUESTION_FORMATS = (".jsonl", ".json", ".csv")
MAX_EPOCHS = 20
TAIL_BYTES = 16384  # of the log, that are read to show its end
TAIL_LINES = 14
MAX_LINE_CHARS = 160
CONTROL_SEQUENCES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def read_job(folder):
    """The content of job.json, or None where no job was started.

    {"kind", "name", "status", "commands": [{"arguments", "resume", "needs"}], "next"}: resume: flags with which a
    command goes on where it was stopped, if the file `needs` exists ("": always); next: number of the first command
    that is not done, from 0.
    """
    try:
        return json.loads((folder / JOB).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def write_job(folder, job):
    """Write job.json."""
    write_json(folder / JOB, job)


def log_tail(path):
    """The last lines of a log. Of a progress bar, which overwrites its line, the newest state."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    lines = []
    for line in CONTROL_SEQUENCES.sub("", text).split("\n"):
        states = [part for part in line.split("\r") if part.strip()]
        if states:
            kept = "".join(c for c in states[-1] if c.isprintable())
            lines.append(kept if len(kept) <= MAX_LINE_CHARS else kept[:MAX_LINE_CHARS] + "…")
    return "\n".join(lines[-TAIL_LINES:])
