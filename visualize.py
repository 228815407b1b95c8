"""Draws training runs as PNG and SVG: losses, learning rate, tokens per second, the best step and over-fitting.

    python visualize.py                                         # the newest run under out/
    python visualize.py --live                                  # again and again while it trains, until Ctrl-C
    python visualize.py --runs=out/demo,out/demo_sft --plot=loss.png --x=epoch
    python visualize.py --runs=out/adamw,out/muon --together    # in the same panels: which reaches a loss sooner
    python visualize.py --figures=correction.json               # also the figures of an evaluation over checkpoints

A run over-fits after its best validation if its last validation loss is more than 2% higher while training loss fell.
"""

import time
from pathlib import Path

import numpy as np

from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.evaluation.checkpoint_plots import read_curves
from minigpt.evaluation.plots import save_plot
from minigpt.evaluation.training_plots import draw_runs
from minigpt.run_log import RunLog, find_runs, run_names, summarize_run
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import VisualizeSettings

REDRAW_SECONDS = 5.0  # between reads of the logs; with slow drawing it is longer:
MIN_PAUSE_FACTOR = 4  # times the duration of the last drawing, so that training is not slowed down
NO_DATA = "has no line of a training run yet"


class Watcher:
    """Reads and draws the runs that the settings name."""

    def __init__(self, settings):
        self.settings = settings
        self.logs = {}  # path: RunLog
        self.printed = set()
        self.validations = {}  # path: number of validations that were printed

    def print_once(self, text):
        if text not in self.printed:
            self.printed.add(text)
            print(text)

    def read(self):
        """(the `RunLog`s that have lines, whether any run changed). Raises UserError."""
        settings = self.settings
        may_be_missing = settings.live or bool(settings.figures and not settings.runs)
        paths = find_runs(settings.runs, settings.out_root, may_be_missing)
        changed = paths != list(self.logs)
        names = run_names(paths)
        self.logs = {path: self.logs.get(path) or RunLog(path) for path in paths}
        for log, name in zip(self.logs.values(), names, strict=True):
            log.name = name
            changed = log.read() or changed
        return [log for log in self.logs.values() if len(log)], changed

    def print_waiting(self):
        empty = [str(log.path) for log in self.logs.values() if not len(log)]
        if empty or not self.logs:
            what = ", ".join(empty) or f"a run under {self.settings.out_root}"
            self.print_once(f"waiting for the first line of {what} (Ctrl-C ends this)")

    def draw(self, runs):
        """Draw the runs and the evaluations, and write the plot; returns its (PNG, SVG) paths. Raises UserError."""
        settings = self.settings
        evaluations = [read_curves(path) for path in settings.figures]
        figure = draw_runs(runs, settings.x, settings.smooth, settings.together, evaluations, self.print_once)
        beside = next(iter(self.logs), None) or Path(settings.figures[0])
        return save_plot(figure, settings.plot or beside.with_name("loss.png"))


def draw_once(watcher):
    """Draw the runs as they are now, and print their summaries."""
    runs, _ = watcher.read()
    empty = [log for log in watcher.logs.values() if not len(log)]
    for note in (note for log in watcher.logs.values() for note in log.notes):
        print(f"note: {note}")
    if empty and not runs:
        raise UserError(f"{empty[0].path} {NO_DATA}")
    for log in empty:
        print(f"note: {log.path} {NO_DATA}; it is left out")
    for run in runs:
        print("\n".join(summarize_run(run, watcher.settings.smooth)))
    print(f"drawn: {' and '.join(map(str, watcher.draw(runs)))}")


def watch(watcher, wait=time.sleep):
    """Draw the runs whenever they have grown, until Ctrl-C. Print their summaries after each validation."""
    files, due = None, False
    try:
        while True:
            started = time.perf_counter()
            try:
                runs, changed = watcher.read()
                due = bool(runs) and (changed or due)
                if due:
                    files, due = watcher.draw(runs), False
                    watcher.print_once(f"drawn, and again whenever there is more: {' and '.join(map(str, files))}")
                    print_validated(watcher, runs)
            except UserError as error:  # such as: on Windows a plot that a viewer has open cannot be replaced
                watcher.print_once(f"note: {error}; tried again in a moment")
            watcher.print_waiting()
            wait(max(REDRAW_SECONDS, MIN_PAUSE_FACTOR * (time.perf_counter() - started)))
    finally:
        print(f"the last plot is {files[0]}" if files else "nothing was drawn")


def print_validated(watcher, runs):
    """Print the summaries of the runs with new validations."""
    for run in runs:
        checks = int(np.isfinite(run.columns["val_loss"]).sum())
        if watcher.validations.get(run.path) != checks:
            watcher.validations[run.path] = checks
            print("\n".join(summarize_run(run, watcher.settings.smooth)))


def main():
    settings = load_settings(VisualizeSettings)
    watcher = Watcher(settings)
    (watch if settings.live else draw_once)(watcher)


if __name__ == "__main__":
    run_script(main)
