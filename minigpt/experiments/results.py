"""Kept results: JSON files with figures, and the spec of all that the figures were computed from.

A spec has settings, hashes of the data and of the code, and the specs of the results that it builds on. A result counts
only while its spec is what it would be now.
"""

import ast
import hashlib
import json
import math
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from minigpt.common.errors import UserError
from minigpt.common.files import PROJECT

RESULT = "result.json"
TRAINED = "trained.json"  # beside it: what a run was trained from, and what that cost
SHOWN_LOG_LINES = 5  # of a script that failed
COST_POLL_SECONDS = 0.1


def to_flags(given):
    """Settings, a dict, as flags of a command line."""

    def text(value):
        return ",".join(map(str, value)) if isinstance(value, list) else str(value)

    return [f"--{name}={text(value)}" for name, value in given.items()]


def make_spec(*parts):
    """Values as JSON would give them back. Equal specs mean equal results."""
    return json.loads(json.dumps(parts, ensure_ascii=False, default=str))


def read_figures(path, spec):
    """The kept figures of a result with that spec, or None."""
    with suppress(OSError, ValueError, KeyError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["spec"] == spec:
            return content["figures"]
    return None


def read_spec(path):
    """The spec of a kept result. What builds on that result has it in its own spec."""
    return json.loads(path.read_text(encoding="utf-8"))["spec"]


def hash_files(paths):
    """One sha256, in hex digits, of the paths and the bytes of files."""
    digest = hashlib.sha256()
    for path in sorted(set(map(str, paths))):
        with open(path, "rb") as file:
            digest.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()} {path}\n".encode())
    return digest.hexdigest()


def hash_code(*scripts):
    """One sha256 of scripts, given relative to the project, and of all its modules that they import."""
    digest = hashlib.sha256()
    for path in sorted(find_code(*scripts)):
        digest.update(path.relative_to(PROJECT).as_posix().encode() + b"\n" + path.read_bytes())
    return digest.hexdigest()


def find_code(*scripts):
    """Paths of scripts and of the project's modules that they import, directly or through others, anywhere in them."""
    found, waiting = set(), [PROJECT / script for script in scripts]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            for name in imported_names(path.read_bytes()):
                waiting += files_of_module(name.split("."))
    return found


@cache
def imported_names(source):
    """Dotted names of all that source code (bytes) may import. `from a import b` gives a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def files_of_module(parts):
    """The project's files that importing a module executes: its own, and those of the packages that it is in."""
    paths = (PROJECT.joinpath(*parts[:length]) for length in range(1, len(parts) + 1))
    return [file for path in paths for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]


@dataclass(frozen=True)
class Cost:
    """What a script took: seconds of all cores together, and its largest memory in bytes. NaN where the system does not
    say it (Windows)."""

    cpu_seconds: float = math.nan
    peak_bytes: float = math.nan


def run_logged(*parts, log, threads=0):
    """Run one of the project's scripts; its output goes to a file. Returns its `Cost`.

    Raises UserError with the last lines of the output where the script fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    with open(log, "w", encoding="utf-8") as file:
        file.write(f"$ python {' '.join(parts)}\n")
        file.flush()
        script = [sys.executable, str(PROJECT / parts[0]), *parts[1:]]
        with subprocess.Popen(script, stdout=file, stderr=subprocess.STDOUT, env=environment) as process:
            cost = wait_for_cost(process)
    if process.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-SHOWN_LOG_LINES:]
        raise UserError(
            f"{parts[0]} ended with status {process.returncode}: {' / '.join(lines)} (the whole output: {log})"
        )
    return cost


def wait_for_cost(process):
    """Wait for a Popen to end, and set its returncode; returns its `Cost`."""
    if not hasattr(os, "wait4"):  # Windows
        process.wait()
        return Cost()
    ended, peak = 0, 0
    while not ended:
        # Linux counts into a process's ru_maxrss what its parent had when it was started, so the kernel's own count is
        # read while it runs.
        peak = max(peak, read_peak_bytes(process.pid))
        ended, status, used = os.wait4(process.pid, os.WNOHANG)
        time.sleep(0 if ended else COST_POLL_SECONDS)
    process.returncode = os.waitstatus_to_exitcode(status)
    if not peak:  # macOS, where ru_maxrss is in bytes
        peak = used.ru_maxrss if sys.platform == "darwin" else math.nan
    return Cost(used.ru_utime + used.ru_stime, peak)


def read_peak_bytes(pid):
    """Largest memory of a running process so far, in bytes; 0 where the system does not say it in /proc."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
