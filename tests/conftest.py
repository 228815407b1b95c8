"""What several tests need: the scripts run as a user runs them, and how often to repeat."""

import os
import subprocess
import sys

import pytest
import torch
from corpora import ROOT
from processes import run_in_process
from tiny import ARCHITECTURE_FIELDS

from minigpt import kernels

os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"  # a proxy does not lead to this machine


def pytest_addoption(parser):
    parser.addoption("--soak", action="store_true", help="run the long tests, and the others at their full counts")


# Files of few tests that take long. They come first, so that no worker has one of them left at the end.
LONG_FILES = ("test_distributed.py", "test_resume.py", "test_quantize.py", "test_compiling.py", "test_browser.py")


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.path.name not in LONG_FILES)
    if not config.getoption("--soak"):
        for item in items:
            if item.get_closest_marker("soak_only"):
                item.add_marker(pytest.mark.skip(reason="a long run: make soak"))


@pytest.fixture
def rounds(request):
    """rounds(few, full): how often to repeat what `make soak` repeats in full."""
    return lambda few, full: full if request.config.getoption("--soak") else few


@pytest.fixture
def script(tmp_path):
    """Run one of the project's scripts in a fresh folder; returns the finished process with its text output.

    It runs in this process where that will do: to load the libraries takes longer than what most tests ask for.
    """

    def run(name, *arguments, stdin="", cwd=tmp_path, own_process=False):
        if not own_process:
            return run_in_process(cwd, name, *arguments, stdin=stdin)
        return subprocess.run(
            [sys.executable, str(ROOT / name), *map(str, arguments)],
            cwd=cwd,
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        )

    return run


@pytest.fixture(params=ARCHITECTURE_FIELDS)
def architecture(request):
    """Each architecture of `tiny_model`."""
    return request.param


@pytest.fixture(params=[1, 3], ids=["one thread", "three"])
def threads(request, monkeypatch):
    """Whether the rows of training's kernels are split over threads."""
    monkeypatch.setattr(kernels, "MIN_NUMBERS_A_THREAD", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)
