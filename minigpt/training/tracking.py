"""Logging of a run: always to log.jsonl, and by settings to TensorBoard and Weights & Biases.

A line of log.jsonl is {"step", "epoch", "train_loss", "val_loss" (or null), "lr", "tokens", "seconds"}.
A tracker that is not installed or that fails is reported once and no longer used; training goes on.
"""

import json
import uuid
from pathlib import Path

from minigpt.common.errors import first_line
from minigpt.run_log import LOG


class TensorBoard:
    """Writes event files for `tensorboard --logdir=out`."""

    def __init__(self, folder, settings, step):
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides what an earlier run, or this one before a crash, wrote for later steps.
        self.writer = SummaryWriter(Path(folder) / "tensorboard", purge_step=step + 1)

    def add(self, step, figures):
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self):
        self.writer.close()


class WandB:
    """Sends figures to Weights & Biases (with WANDB_MODE=offline, to files in the run's folder)."""

    def __init__(self, folder, settings, step):
        import wandb

        # A resumed run keeps its id.
        path = Path(folder) / "wandb_id"
        if not (step and path.exists()):
            path.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
        self.run = wandb.init(
            project=settings.wandb, name=Path(folder).name, id=path.read_text(encoding="utf-8"), resume="allow",
            dir=str(folder), config=settings.to_dict(),
        )  # fmt: skip

    def add(self, step, figures):
        self.run.log(figures, step=step)

    def close(self):
        self.run.finish()


class Tracker:
    """Writes the log of a run in `folder`, and passes its figures to the trackers that the settings enable.

    step: at which the run begins or is resumed; say(text): prints a line.
    """

    def __init__(self, folder, settings, step=0, say=print):
        self.folder = Path(folder)
        self.say = say
        self.sinks = []  # the trackers in use
        self.partial_line = False  # whether the log may end within a line
        for enabled, sink in ((settings.tensorboard, TensorBoard), (settings.wandb, WandB)):
            if enabled:
                self._try(sink, "start", lambda sink=sink: self.sinks.append(sink(folder, settings, step)))

    def add(self, line, more):
        """Add a line (a dict) to the log; the trackers get it together with `more`, a dict of numbers by name."""
        try:
            with open(self.folder / LOG, "a", encoding="utf-8") as file:
                file.write("\n" * self.partial_line + json.dumps(line) + "\n")
            self.partial_line = False
        except OSError as error:  # a full disk may have room again at the next line
            self.partial_line = True
            self.say(f"warning: {LOG} could not be written ({error.strerror}); training goes on")
        figures = {k: v for k, v in {**line, **more}.items() if v is not None and k != "step"}
        for sink in list(self.sinks):
            self._try(sink, "take figures", lambda sink=sink: sink.add(line["step"], figures))

    def close(self):
        """Close the trackers, which then write their remaining figures."""
        for sink in list(self.sinks):
            self._try(sink, "close", sink.close)

    def _try(self, sink, what, action):
        """Call action(); if it fails, report that and remove the tracker. sink: a tracker or its class."""
        kind = sink if isinstance(sink, type) else type(sink)
        try:
            action()
        except (Exception, SystemExit) as error:  # whatever fails in a tracker, training goes on
            hint = f"; pip install {kind.__name__.lower()}" if isinstance(error, ImportError) else ""
            self.say(f"note: {kind.__name__} could not {what} ({first_line(error)}{hint}); training goes on without it")
            if sink in self.sinks:
                self.sinks.remove(sink)
