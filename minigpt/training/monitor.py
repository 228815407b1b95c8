"""What a user sees of a training run: progress bar, log.jsonl and trackers, and warnings while it goes on."""

import contextlib
import math
import time

from tqdm import tqdm

from minigpt.checkpoint import LAST
from minigpt.common.errors import UserError
from minigpt.device import memory_text, peak_flops
from minigpt.run_log import LOG, RunLog, overfitting
from minigpt.training.state import finish_saving
from minigpt.training.tracking import Tracker

WARMUP_STEPS = 5  # steps that are not timed: kernels are built in them
FIT_STEPS = 20  # steps between two fittings into max_seconds
MAX_SKIPPED_IN_A_ROW = 5  # steps without a finite loss or gradient, after which a run ends
BATCH_DISPLAY_SECONDS = 1.0  # at least, between two displays of how far a step is


class Throughput:
    """Tokens and floating-point operations a second of training; the time between `pause` and `resume` is left out."""

    def __init__(self):
        self.resume()

    def resume(self):
        """Start counting anew."""
        self.tokens = 0
        self.flops = 0.0
        self.seconds = 0.0
        self.since = time.perf_counter()

    def add(self, tokens, flops):
        """Count a step."""
        self.tokens += tokens
        self.flops += flops

    def pause(self):
        """Stop the clock."""
        if self.since is not None:
            self.seconds += time.perf_counter() - self.since
            self.since = None

    def rates(self):
        """(tokens a second, operations a second) up to the last `pause`."""
        return self.tokens / self.seconds, self.flops / self.seconds


class Monitor:
    """Shows and logs a `TrainingRun`, measures its speed, and fits it into max_seconds.

    Create it when the first step is about to begin: its clock starts then.
    """

    def __init__(self, run):
        self.run, self.settings = run, run.settings
        self.is_main = run.processes.is_main
        p = run.progress
        self.bar = tqdm(
            total=p.max_iters, initial=p.step, unit="step", desc="train", smoothing=0.05, disable=not self.is_main
        )
        self.say = self.bar.write if self.is_main else lambda text: None
        self.tracker = Tracker(run.out, self.settings, p.step, self.say) if self.is_main else None
        self.curves = RunLog(run.out / LOG)
        self.peak_flops = peak_flops(run.device)
        self.throughput = Throughput()
        self.figures = ""  # beside the bar
        run.on_batch = self.show_batch

        # The clock. Seconds of earlier parts of a resumed run count for the run, but not for its speed now.
        self.started = self.displayed = time.perf_counter()
        self.seconds_before = p.seconds
        self.first_step = p.step
        self.planned_steps = p.max_iters
        self.warmup_seconds = 0.0

    def count_step(self, rows, kept):
        """Take note of a step. rows: its `StepRows`; kept: its targets with a loss. Raises UserError where too many
        steps in a row were skipped."""
        run, p = self.run, self.run.progress
        self.throughput.add(rows.tokens, run.model.training_flops(rows.tokens, kept, rows.squares))
        elapsed = time.perf_counter() - self.started
        p.seconds = self.seconds_before + elapsed
        if p.skipped_in_a_row:
            self.warn_of_skipped_step()

        # After the warm-up the speed is known.
        timed_steps = p.step - self.first_step - WARMUP_STEPS
        if timed_steps == 0:
            self.warmup_seconds = elapsed
            self.say(f"after {p.step} steps: {memory_text(run.device)}")
        elif timed_steps > 0 and timed_steps % FIT_STEPS == 0 and self.settings.max_seconds and p.step < p.max_iters:
            self.fit_into_max_seconds((elapsed - self.warmup_seconds) / timed_steps)
        self.bar.update(1)

    def fit_into_max_seconds(self, seconds_a_step):
        """Shorten the run, and its learning-rate schedule, to the planned steps that fit into max_seconds."""
        p, max_seconds = self.run.progress, self.settings.max_seconds
        fitting = p.step + max(1, int((max_seconds - p.seconds) / seconds_a_step))
        steps = self.run.processes.from_main(min(self.planned_steps, fitting))
        if steps < self.planned_steps == p.max_iters:
            self.say(
                f"about {steps} of {self.planned_steps} steps fit max_seconds={max_seconds:.0f}: shortened to that"
            )
        p.max_iters = self.bar.total = steps

    def warn_of_skipped_step(self):
        """Say that a step was skipped; raises UserError where too many were in a row."""
        p, run = self.run.progress, self.run
        self.say(f"warning: step {p.step} was skipped, since its loss or gradient was not finite ({p.skipped} so far)")
        if p.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            if failure := finish_saving(run):  # of the last validation's checkpoints
                self.say(f"warning: {failure}")
            raise UserError(
                f"{MAX_SKIPPED_IN_A_ROW} steps in a row ({p.step - MAX_SKIPPED_IN_A_ROW + 1} to {p.step}) had a loss "
                f"or gradient that is not finite; {run.out / LAST} is of step {run.saved_step}: go on from it with "
                "--init_from=resume and a lower learning_rate and muon_learning_rate, or with --dtype=float32"
            )

    def show_batch(self, done, count):
        """Show how many of a step's micro-batches are done, where a step takes long."""
        if count > 1 and time.perf_counter() - self.displayed > BATCH_DISPLAY_SECONDS:
            self.show(f"{self.figures}{', ' if self.figures else ''}batch {done} of {count}")

    def show(self, text):
        """Show a text beside the bar."""
        self.bar.set_postfix_str(text)
        self.displayed = time.perf_counter()

    def log(self, val_loss=None, answered=None):
        """Write a line of the log and show its figures; returns the mean training loss since the last line."""
        p, run = self.run.progress, self.run
        self.throughput.pause()
        train_loss = self.take_train_loss()
        figures = {name: finite_or_none(number) for name, number in run.objective.take_figures().items()}
        tokens_per_second, flops_per_second = self.throughput.rates()
        self.throughput.resume()

        # For the bar and the trackers.
        more = {"tokens_per_second": tokens_per_second}
        self.figures = f"epoch {run.epochs:.2f}, loss {train_loss:.3f}, {tokens_per_second:,.0f} tokens/s"
        if self.peak_flops:
            more["mfu"] = flops_per_second / (self.peak_flops * run.processes.world_count)
            self.figures += f", MFU {more['mfu']:.0%}"
        for name, number in figures.items():
            if number is not None and not name.startswith("val_"):
                self.figures += f", {name} {number:.3f}"
        if p.skipped:
            more["skipped"] = p.skipped
            self.figures += f", {p.skipped} skipped"
        self.show(self.figures)

        if self.is_main:
            line = {
                "step": p.step, "epoch": round(run.epochs, 4), "train_loss": finite_or_none(train_loss),
                "val_loss": finite_or_none(val_loss), "lr": run.lr, "tokens": p.tokens,
                "seconds": round(p.seconds, 2),
            }  # fmt: skip
            if answered is not None:
                line["answered"] = answered
            line |= figures
            self.tracker.add(line, more)
        return train_loss

    def take_train_loss(self):
        """Mean training loss in nats a token since the last call; nan where no step was taken."""
        p = self.run.progress
        (loss_sum,) = self.run.processes.total(float(p.loss_sum))
        mean = loss_sum / p.loss_tokens if p.loss_tokens else math.nan
        p.loss_sum, p.loss_tokens = 0.0, 0
        return mean

    def warn_of_overfitting(self, best):
        """Say it once after each best validation when the log begins to show over-fitting. best: this one is the best.

        Over-fitting is what `minigpt.run_log.overfitting` finds, here as in plots and reports.
        """
        if not self.is_main:
            return
        with contextlib.suppress(UserError):  # where the log cannot be read, a warning was printed when it was written
            self.curves.read()
        p, found = self.run.progress, overfitting(self.curves.columns)
        p.checks_overfitting = 0 if best else p.checks_overfitting + (found is not None)
        if found and p.checks_overfitting == 1:
            self.say(f"note: {found.text}; more data, more dropout or a smaller model helps, --patience stops in time")

    def close(self):
        """Finish the bar and the trackers."""
        self.bar.close()
        if self.tracker:
            self.tracker.close()


def finite_or_none(number):
    """The number where it is finite, else None: JSON has no other numbers."""
    return number if number is not None and math.isfinite(number) else None
