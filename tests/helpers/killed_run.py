"""train.py under torchrun, with checkpoints in the background, of which a process kills itself: `killed_run.py WHEN …`.

WHEN is "step N RANK", at which the process of that rank ends, or "write N": the main one while it writes last.pt of
step N. Processes that torchrun has started again live on.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

import train
from minigpt.common.cli import run_script

what, step, *rank = sys.argv.pop(1).split()
dies = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
save, take_step, begin_saving = torch.save, train.train_step, train.begin_saving


def save_or_die(content, file, **more):
    if dies and what == "write" and "optimizers" in content and content["progress"]["step"] == int(step):
        file.write(b"the first part")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(content, file, **more)


def take_step_or_die(run):
    if dies and what == "step" and [str(run.processes.rank)] == rank and run.progress.step == int(step):
        os.kill(os.getpid(), signal.SIGKILL)
    return take_step(run)


def begin_saving_in_background(run, *arguments):
    run.saves_in_background = True
    begin_saving(run, *arguments)


torch.save, train.train_step, train.begin_saving = save_or_die, take_step_or_die, begin_saving_in_background
if __name__ == "__main__":
    run_script(train.main)
