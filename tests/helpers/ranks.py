"""Runs of train.py in several processes that are forked from one which has loaded torch: that takes most of the time
of a short run. They meet as torchrun lets them meet."""

import functools
import multiprocessing
import os
import socket
import sys
from pathlib import Path

import torch
from corpora import ROOT

WAIT_SECONDS = 240


@functools.cache
def forking_context():
    """The multiprocessing context whose processes have train.py loaded; on Windows each loads it itself."""
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    context.set_forkserver_preload(["train"])
    return context


def free_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run_rank(rank, count, port, out, flags):
    """Run train.py as process `rank` of `count`, with one thread; what it writes goes into the file `out`."""
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}
    sys.argv = ["train.py", *flags]
    torch.set_num_threads(1)
    import train
    from minigpt.common.cli import run_script

    run_script(train.main)


def run_ranks(folder, count, flags):
    """Run train.py with flags in `count` processes to the end; returns what they wrote, by way of files in a folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    outs, port, context = [folder / f"rank{rank}.txt" for rank in range(count)], free_port(), forking_context()
    processes = [
        context.Process(target=run_rank, args=(rank, count, port, str(out), flags)) for rank, out in enumerate(outs)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(WAIT_SECONDS)
        process.kill()  # one that waits for a process that has ended
        for other in processes if process.exitcode else ():  # as torchrun does
            other.kill()
    text = "\n".join(out.read_text(encoding="utf-8") for out in outs)
    assert [process.exitcode for process in processes] == [0] * count, text
    return text
