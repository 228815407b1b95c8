"""Scripts run in this process, and what a script that has ended said."""

import io
import runpy
import signal
import subprocess
import sys

import pytest
from corpora import ROOT


def run_in_process(folder, script, *arguments, stdin=""):
    """Run one of the project's scripts in a folder, in this process, where what it imports is loaded already.

    Returns what `subprocess.run` would; an exception that would end a process with a traceback is raised. train.py
    leaves a thread that waits for signals, so it is not for this.
    """
    arguments = [str(ROOT / script), *map(str, arguments)]
    inp, out, err = (io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8", newline="\n") for text in (stdin, "", ""))
    handlers = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in {"argv": arguments, "path": [*sys.path], "stdin": inp, "stdout": out, "stderr": err}.items():
            patch.setattr(sys, name, value)
        try:
            runpy.run_path(arguments[0], run_name="__main__")
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            for name, handler in handlers.items():
                signal.signal(name, handler)
        out.flush()
        err.flush()
    return subprocess.CompletedProcess(arguments, code, *(each.buffer.getvalue().decode() for each in (out, err)))


def done(process):
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
    return process.stdout


def error_of(process):
    """The one line that a user is told."""
    assert "Traceback" not in process.stderr, process.stderr
    lines = process.stderr.splitlines()
    assert process.returncode == 1 and [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]
