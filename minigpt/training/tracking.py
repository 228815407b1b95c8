"""The record of a run: log.jsonl always, TensorBoard and Weights & Biases by settings.

A line of log.jsonl is {"step", "epoch", "train_loss", "val_loss" (or null), "lr", "tokens", "seconds"}.
Trackers are never needed: one that is not installed, or that fails, is said once and left out.
"""

import json
import uuid
from pathlib import Path

from minigpt.run_log import LOG


class TensorBoard:
    """Writes event files for `tensorboard --logdir=out`."""

    def __init__(self, folder, settings, step):
        from torch.utils.tensorboard import SummaryWriter

        # Purged is what an earlier run, or this one before a crash, wrote of the steps to come.
        self.writer = SummaryWriter(Path(folder) / "tensorboard", purge_step=step + 1)

    def add(self, step, figures):
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self):
        self.writer.close()


class WandB:
    """Sends the figures to Weights & Biases (WANDB_MODE=offline keeps them here)."""

    def __init__(self, folder, settings, step):
        import wandb

        # A run that goes on is the same run there too.
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
    """Where a run's figures go. say(text): prints a line; step: where the run begins or goes on."""

    def __init__(self, folder, settings, step=0, say=print):
        self.folder, self.say, self.sinks = Path(folder), say, []
        self.torn = False  # whether the log may end within a line
        for wanted, sink in ((settings.tensorboard, TensorBoard), (settings.wandb, WandB)):
            if wanted:
                self._try(sink, "start", lambda sink=sink: self.sinks.append(sink(folder, settings, step)))

    def add(self, line, more):
        """A line of the log, and figures for the trackers alone (numbers by name)."""
        try:
            with open(self.folder / LOG, "a", encoding="utf-8") as file:
                file.write("\n" * self.torn + json.dumps(line) + "\n")
            self.torn = False
        except OSError as error:  # a disk that is full now may not be at the next line
            self.torn = True
            self.say(f"warning: {LOG} could not be written ({error.strerror}); training goes on")
        figures = {k: v for k, v in {**line, **more}.items() if v is not None and k != "step"}
        for sink in list(self.sinks):
            self._try(sink, "take figures", lambda sink=sink: sink.add(line["step"], figures))

    def close(self):
        """Let the trackers write out what they have."""
        for sink in list(self.sinks):
            self._try(sink, "close", sink.close)

    def _try(self, sink, what, action):
        kind = sink if isinstance(sink, type) else type(sink)
        try:
            action()
        except (Exception, SystemExit) as error:  # a tracker may fail in any way, and training goes on
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            hint = f"; pip install {kind.__name__.lower()}" if isinstance(error, ImportError) else ""
            self.say(f"note: {kind.__name__} could not {what} ({reason}{hint}); training goes on without it")
            if sink in self.sinks:
                self.sinks.remove(sink)
