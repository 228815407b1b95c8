"""What the benchmarks share: fresh processes, the name of the machine, sections of the docs."""

import contextlib
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from minigpt.common.errors import UserError
from minigpt.common.files import PROJECT, write_atomic, write_json

WATCH_SECONDS = 0.1


def reading_flags(settings):
    """Flags of a script that reads the articles of the settings, whatever their folders."""
    return [f"--{name}={getattr(settings, name)}" for name in ("text_field", "plain_text", "encoding")]


@contextlib.contextmanager
def fresh_process(seconds=None):
    """Context manager: call(function, *arguments), which calls in one fresh process, and returns the function's value.

    The process shares no memory and no compiled kernels; it stays alive between the calls. `call` raises UserError
    where the process is killed, and TimeoutError where its calls take longer than `seconds` from now; it is killed
    then.
    """
    ends = None if seconds is None else time.monotonic() + seconds
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:

        def call(function, *arguments):
            try:
                return pool.submit(function, *arguments).result(ends and max(0.0, ends - time.monotonic()))
            except TimeoutError:
                for process in list((pool._processes or {}).values()):  # it would go on to the end of the call
                    process.kill()
                raise TimeoutError("its time was over") from None
            except BrokenProcessPool:
                if ends and time.monotonic() > ends:  # it was killed by an earlier call
                    raise TimeoutError("its time was over") from None
                raise UserError(
                    f"the process that measured {arguments[0]} was killed, most likely since memory ran out"
                ) from None

        yield call


def call_in_process(function, *arguments):
    """Call a function in a `fresh_process`; returns its value."""
    with fresh_process() as call:
        return call(function, *arguments)


def medians(figures):
    """{key: median} over dicts with the same keys; None for a key of which a value is None."""
    columns = {key: [each[key] for each in figures] for key in figures[0]}
    return {key: None if None in column else statistics.median(column) for key, column in columns.items()}


def machine_name(device):
    """Processor or GPU, cores and torch's version, in one line; also where torch is held to older instructions."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    name, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text(encoding="utf-8").splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        flags = [flag for flag in ("amx_bf16", "avx512_bf16", "avx2") if flag in fields.get("flags", "").split()]
        name = f"{fields.get('model name', name)} ({', '.join(flags)})"
    if held := os.environ.get("ATEN_CPU_CAPABILITY"):
        name += f" held to {held}"
    return f"{name}, {count_cores()} cores, torch {torch.__version__}"


def count_cores():
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def publish_results(settings, title, table, values):
    """Print a table; write the values (dict) as JSON and the table into the docs by the settings of bench.py."""
    print(f"\n{table}")
    if settings.json:
        write_json(settings.json, values)
    if not settings.quick:
        write_docs(settings.docs, title, table)


def write_docs(path, title, text, instead=""):
    """Append a section to a Markdown file; an older section of the same title is removed, and so is the text `instead`,
    which stands there as long as there is no section."""
    path = Path(path)
    old = path.read_text(encoding="utf-8") if path.exists() else "# Benchmarks\n"
    old = old.replace(f"{instead}\n\n", "") if instead else old
    sections = [s for s in old.split("\n## ") if not s.startswith(title + "\n")]
    new = "\n## ".join([*(s.strip("\n") + "\n" for s in sections), f"{title}\n\n{text}\n"])
    write_atomic(path, lambda file: file.write(new.encode()))


def run_quietly(script, *arguments, watch=None):
    """Run one of the project's scripts; returns the seconds it took. Raises UserError with its message if it fails.

    watch: called with the id of the process every WATCH_SECONDS while it runs.
    """
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(PROJECT / script), *arguments]
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        while watch and process.poll() is None:
            watch(process.pid)
            time.sleep(WATCH_SECONDS)
        status = process.wait()
        seconds = time.perf_counter() - started
        output.seek(0)
        lines = output.read().strip().splitlines() or [f"ended with status {status}"]
    if status:
        raise UserError(f"{Path(script).name}: {lines[-1].removeprefix('error: ')}")
    return seconds
