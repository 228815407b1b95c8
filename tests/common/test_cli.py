"""Signals are acknowledged while the main thread is inside one long operation."""

import signal
import subprocess
import sys

import pytest
from corpora import ROOT

PROGRAM = """
import hashlib, signal
signal.SIGBREAK = signal.SIGUSR1  # which Windows alone has
from minigpt.common.cli import Signals
signals = Signals("stopping soon")
print("ready", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # half an hour, in which no Python code runs in this thread
"""


@pytest.mark.parametrize("number", [getattr(signal, name, None) for name in ("SIGINT", "SIGUSR1")])
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
def test_ctrl_c_is_acknowledged_at_once_and_a_second_one_ends_the_process(number):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=-1, stderr=subprocess.STDOUT, encoding="utf-8"
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert (process.stdout.readline(), process.stdout.readline()) == ("\n", "stopping soon\n")
    assert process.poll() is None
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert out == "\nstopped at once\n" and process.returncode == 130
