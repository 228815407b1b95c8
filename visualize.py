"""Draw training runs as PNG and SVG: losses, learning rate, tokens a second, the best step and over-fitting.

    python visualize.py                                         # the newest run under out/
    python visualize.py --live                                  # and again while it trains, until Ctrl-C
    python visualize.py --runs=out/demo,out/demo_sft --plot=loss.png --x=epoch
    python visualize.py --runs=out/adamw,out/muon --together    # which is sooner at a loss
    python visualize.py --figures=correction.json               # and what evaluations found, checkpoint by checkpoint

A run over-fits after its last best validation if the last one lies more than 2% above, while training loss fell on.
"""

import time
from pathlib import Path

import numpy as np

from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.evaluation.curves import read_curves
from minigpt.evaluation.plots import save_plot
from minigpt.evaluation.run_plots import draw_runs
from minigpt.run_log import RunLog, find_runs, run_names, summary
from minigpt.settings.parse import load_settings

LIVE_SECONDS = 5.0  # between looks at the log; more where drawing takes long:
REST = 4  # times what the last drawing took, so that it takes little from the training beside it
EMPTY = "has no line of a training run yet"


class Watcher:
    """The runs of the settings, read and drawn as often as they grow."""

    def __init__(self, settings):
        self.settings, self.logs = settings, {}
        self.said, self.validations = set(), {}

    def say(self, text):
        """Print a line, once."""
        if text not in self.said:
            self.said.add(text)
            print(text)

    def read(self):
        """(the runs that have lines, whether any of them changed)."""
        settings = self.settings
        paths = find_runs(
            settings.runs, settings.out_root, settings.live or bool(settings.figures and not settings.runs)
        )
        changed = paths != list(self.logs)
        names = run_names(paths)
        self.logs = {path: self.logs.get(path) or RunLog(path) for path in paths}
        for log, name in zip(self.logs.values(), names, strict=True):
            log.name = name
            changed = log.read() or changed
        return [log for log in self.logs.values() if len(log)], changed

    def say_what_is_waited_for(self):
        empty = [str(log.path) for log in self.logs.values() if not len(log)]
        if empty or not self.logs:
            what = ", ".join(empty) or f"a run under {self.settings.out_root}"
            self.say(f"waiting for the first line of {what} (Ctrl-C ends this)")

    def drawn(self, runs):
        """The figure of runs, and of evaluations. Raises UserError."""
        settings = self.settings
        evaluations = [read_curves(path) for path in settings.figures]
        return draw_runs(runs, settings.x, settings.smooth, settings.together, evaluations, self.say)

    def save(self, figure):
        """Write the figure; returns its files. Raises UserError."""
        beside = next(iter(self.logs), None) or Path(self.settings.figures[0])
        return save_plot(figure, self.settings.plot or beside.with_name("loss.png"))


def draw_once(watcher):
    """Draw the runs as they are now, and say what they tell."""
    runs, _ = watcher.read()
    empty = [log for log in watcher.logs.values() if not len(log)]
    for note in (note for log in watcher.logs.values() for note in log.notes):
        print(f"note: {note}")
    if empty and not runs:
        raise UserError(f"{empty[0].path} {EMPTY}")
    for log in empty:
        print(f"note: {log.path} {EMPTY}; it is left out")
    for run in runs:
        print("\n".join(summary(run, watcher.settings.smooth)))
    print(f"drawn: {' and '.join(map(str, watcher.save(watcher.drawn(runs))))}")


def watch(watcher, wait=time.sleep):
    """Draw the runs whenever they have grown, until Ctrl-C; say what they tell after each validation."""
    files, due = None, False
    try:
        while True:
            started = time.perf_counter()
            try:
                runs, changed = watcher.read()
                due = bool(runs) and (changed or due)
            except UserError as error:
                due = False
                watcher.say(f"note: {error}; tried again in a moment")
            if due:
                figure = watcher.drawn(runs)
                try:
                    files, due = watcher.save(figure), False
                    watcher.say(f"drawn, and again whenever there is more: {' and '.join(map(str, files))}")
                except UserError as error:  # on Windows a file that a viewer has open cannot be replaced
                    watcher.say(f"note: {error}; tried again in a moment")
                tell_validations(watcher, runs)
            watcher.say_what_is_waited_for()
            wait(max(LIVE_SECONDS, REST * (time.perf_counter() - started)))
    finally:
        print(f"the last plot is {files[0]}" if files else "nothing was drawn")


def tell_validations(watcher, runs):
    """Say what each run tells that has been validated since."""
    for run in runs:
        checks = int(np.isfinite(run.columns["val_loss"]).sum())
        if watcher.validations.get(run.path) != checks:
            watcher.validations[run.path] = checks
            print("\n".join(summary(run, watcher.settings.smooth)))


def main():
    settings = load_settings("visualize")
    watcher = Watcher(settings)
    (watch if settings.live else draw_once)(watcher)


if __name__ == "__main__":
    run_script(main)
