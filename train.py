"""Train a GPT: pretraining and fine-tuning, on one device or several.

    python train.py config/train_config.py                        # pretrain the 124M model
    python train.py config/train_config.py --init_from=resume     # go on after a stop, or a crash
    python train.py config/train_config_sft.py                    # fine-tune its best checkpoint
    torchrun --standalone --nproc_per_node=2 train.py config/train_config.py     # on two cards

Which of the two stages it is, the data says: rows made by data/prepare.py have a loss on every token, rows
made by data/prepare_sft.py on the answers only. Ctrl-C saves and stops. `--help` lists the settings.
"""

import contextlib
import math
import os
import shlex
import signal
import sys
import time

if __name__ == "__main__":  # torch takes seconds to load
    # Threads wait for each other at the end of every operation. They soon sleep, since one that spins may keep another
    # from its core: beside one busy loop a step of the demo on two cores takes 0.13 s, not 1.9; alone 0.09, not 0.08.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # it would swallow a KeyboardInterrupt
    if os.environ.get("RANK", "0") == "0":
        print("train.py: loading torch …", flush=True)

from tqdm import tqdm

from minigpt.checkpoint import BEST, LAST, PREVIOUS
from minigpt.common.cli import Signals, run_script
from minigpt.common.errors import UserError
from minigpt.device import out_of_memory_is_said, peak_flops, show_memory
from minigpt.run_log import LOG, RunLog, overfitting
from minigpt.settings.parse import load_settings
from minigpt.training.answered import answered_share
from minigpt.training.tracking import Tracker
from minigpt.training.trainer import Trainer

WARM_STEPS, PACE_STEPS = 5, 20  # steps that are not timed, and then between fittings into max_seconds
MOST_SKIPPED = 5  # steps in a row whose loss or gradient is not finite, after which a run ends
STOPPING = "stopping: after the batch in hand the run is saved and ends (Ctrl-C again: at once, as last saved)"
SHOWN_SECONDS = 1.0  # between two showings of how far a step is


class Throughput:
    """Tokens and operations a second of training; what is between `pause` and `resume` is left out."""

    def __init__(self):
        self.resume()

    def resume(self):
        """Count anew from now on."""
        self.tokens, self.flops = 0, 0.0
        self.seconds, self.since = 0.0, time.perf_counter()

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
        """(tokens, operations) a second up to the `pause` before."""
        return self.tokens / self.seconds, self.flops / self.seconds


class Run:
    """The loop around a `Trainer`: when to log, validate, save and stop, and what the user sees of it."""

    def __init__(self, trainer):
        self.trainer, self.settings, self.progress = trainer, trainer.settings, trainer.progress
        self.is_main = trainer.processes.is_main
        self.bar = tqdm(
            total=self.progress.max_iters, initial=self.progress.step, unit="step", desc="train", smoothing=0.05,
            disable=not self.is_main,
        )  # fmt: skip
        self.say = self.bar.write if self.is_main else lambda text: None
        self.tracker = Tracker(trainer.out, self.settings, self.progress.step, self.say) if self.is_main else None
        self.curves = RunLog(trainer.out / LOG)
        self.peak = peak_flops(trainer.device)
        self.pace, self.figures, self.shown = Throughput(), "", time.perf_counter()
        trainer.on_batch = self.show_batch

    def loop(self):
        """Train to the end, to patience's end, or to Ctrl-C; returns why it stopped early, or None."""
        p, trainer, settings = self.progress, self.trainer, self.settings
        trainer.model.train()
        if p.step == 0:  # a folder or disk that cannot be written to is found out now; and resuming works from now on
            trainer.save(LAST, resumable=True)
        before, started, first_step, planned = p.seconds, time.perf_counter(), p.step, p.max_iters
        while p.step < p.max_iters and not trainer.stopped_by:
            done = trainer.step()
            elapsed = time.perf_counter() - started
            p.seconds = before + elapsed
            if done is None:
                break
            rows, kept = done
            self.pace.add(rows.tokens, trainer.model.training_flops(rows.tokens, kept, rows.squares))
            if p.skipped_in_a_row:
                self.say_skipped()
            timed = p.step - first_step - WARM_STEPS
            if timed == 0:
                warm = elapsed
                self.say(f"after {p.step} steps: {show_memory(trainer.device)}")
            elif timed > 0 and settings.max_seconds and timed % PACE_STEPS == 0 and p.step < p.max_iters:
                self.fit_into_time((elapsed - warm) / timed, planned)
            self.bar.update(1)
            if p.step % settings.eval_interval == 0 or p.step == p.max_iters:
                self.check()
            elif p.step % settings.log_interval == 0:
                self.log()
        return trainer.stopped_by

    def fit_into_time(self, pace, planned):
        """Give the run, and its schedule, as many of the planned steps as fit max_seconds at `pace` seconds a step."""
        p, seconds = self.progress, self.settings.max_seconds
        fits = min(planned, p.step + max(1, int((seconds - p.seconds) / pace)))
        fits = self.trainer.processes.from_main(fits)
        if fits < planned == p.max_iters:
            self.say(f"about {fits} of {planned} steps fit max_seconds={seconds:.0f}: shortened to that")
        p.max_iters = self.bar.total = fits

    def show_batch(self, done, count):
        """Show how far a step is that takes long."""
        if count > 1 and time.perf_counter() - self.shown > SHOWN_SECONDS:
            self.show(f"{self.figures}{', ' if self.figures else ''}batch {done} of {count}")

    def show(self, text):
        """The bar's figures."""
        self.bar.set_postfix_str(text)
        self.shown = time.perf_counter()

    def say_skipped(self):
        """Say that a step was skipped; raises UserError where too many were in a row."""
        p, trainer = self.progress, self.trainer
        self.say(f"warning: step {p.step} was skipped, since its loss or gradient was not finite ({p.skipped} so far)")
        if p.skipped_in_a_row >= MOST_SKIPPED:
            raise UserError(
                f"{MOST_SKIPPED} steps in a row ({p.step - MOST_SKIPPED + 1} to {p.step}) had a loss or gradient that "
                f"is not finite; {trainer.out / LAST} is of step {trainer.saved_step}: go on from it with "
                "--init_from=resume and a lower learning_rate and muon_learning_rate, or with --dtype=float32"
            )

    def log(self, val_loss=None, answered=None):
        """A line of the log, and the bar's figures; returns the mean training loss since the last one."""
        p, trainer = self.progress, self.trainer
        self.pace.pause()
        mean = trainer.train_loss()
        tokens_per_second, flops_per_second = self.pace.rates()
        self.pace.resume()
        more = {"tokens_per_second": tokens_per_second}
        self.figures = f"epoch {trainer.epochs:.2f}, loss {mean:.3f}, {tokens_per_second:,.0f} tokens/s"
        if self.peak:
            more["mfu"] = flops_per_second / (self.peak * trainer.processes.count)
            self.figures += f", MFU {more['mfu']:.0%}"
        if p.skipped:
            more["skipped"] = p.skipped
            self.figures += f", {p.skipped} skipped"
        self.show(self.figures)
        if self.is_main:
            line = {
                "step": p.step, "epoch": round(trainer.epochs, 4), "train_loss": finite_or_none(mean),
                "val_loss": finite_or_none(val_loss), "lr": trainer.lr, "tokens": p.tokens,
                "seconds": round(p.seconds, 2),
            }  # fmt: skip
            if answered is not None:
                line["answered"] = answered
            self.tracker.add(line, more)
        return mean

    def check(self):
        """Validate, log, show a sample, and save; sets stopped_by when patience is at its end or enough is answered."""
        p, trainer, settings = self.progress, self.trainer, self.settings
        self.pace.pause()  # checking is not training
        val_loss, answered = trainer.validate(), self.answered()
        train_loss = self.log(val_loss, answered)
        best = val_loss < p.best_val_loss
        p.checks_without_best = 0 if best else p.checks_without_best + 1
        losses = f"train {train_loss:.4f}, val {val_loss:.4f}{'  best' if best else ''}"
        losses += "" if answered is None else f", answered {answered:.3f}"
        self.say(f"step {p.step}, epoch {trainer.epochs:.2f}: {losses} | {trainer.sample()}")
        p.last_losses = train_loss, val_loss
        self.look_for_overfitting(best)
        if settings.patience and p.checks_without_best >= settings.patience:
            trainer.stopped_by = f"no better validation loss in {settings.patience} checks"
        reached = answered is not None and answered >= settings.stop_at_answered
        if reached:
            trainer.stopped_by = f"answered {answered:.3f} of the training questions"
        if math.isfinite(val_loss):
            self.save(val_loss if best or reached else None)  # ckpt.pt is then the one that was wanted
        else:
            self.say(f"warning: the validation loss is not finite, so nothing was saved at step {p.step}")
        self.pace.resume()

    def answered(self):
        """Share of training questions answered now, where stop_at_answered wants it known, else None."""
        if not self.settings.stop_at_answered:
            return None
        trainer, data = self.trainer, self.trainer.data
        with out_of_memory_is_said(trainer.device), trainer.generator() as generator:
            share = answered_share(generator, data.train, data.meta)
        return trainer.processes.from_main(share)

    def look_for_overfitting(self, best):
        """Say it once after a best validation when the run's log begins to show over-fitting. best: it is one now."""
        if not self.is_main:
            return
        with contextlib.suppress(UserError):  # a log that cannot be read was warned of when it was written
            self.curves.read()
        p, found = self.progress, overfitting(self.curves.columns)
        p.checks_overfitting = 0 if best else p.checks_overfitting + (found is not None)
        if found and p.checks_overfitting == 1:
            self.say(f"note: {found.text}; more data, more dropout or a smaller model helps, --patience stops in time")

    def save(self, best_loss):
        """Write the checkpoints that are due. A disk that is full now may not be at the next validation."""
        p, trainer, settings = self.progress, self.trainer, self.settings
        before = p.best_val_loss, p.best_step
        try:
            if best_loss is not None:
                p.best_val_loss, p.best_step = best_loss, p.step
                trainer.save(BEST)
                before = best_loss, p.step
            if settings.keep_every and p.step % settings.keep_every == 0:
                trainer.save(f"step_{p.step:06d}.pt")
            trainer.save(LAST, resumable=True, previous=PREVIOUS)
        except UserError as error:
            p.best_val_loss, p.best_step = before  # of the ckpt.pt that is there
            if p.step >= p.max_iters or trainer.stopped_by:
                raise
            self.say(f"warning: {error}; training goes on and saves again at the next validation")

    def close(self):
        """Finish the bar and the trackers."""
        self.bar.close()
        if self.tracker:
            self.tracker.close()


def finite_or_none(number):
    """The number where it is finite, else None: JSON knows no others."""
    return number if number is not None and math.isfinite(number) else None


def main():
    trainer = Trainer(load_settings("train"))
    run, p = Run(trainer), trainer.progress
    # torchrun passes a signal on, and kills after TORCH_ELASTIC_SHUTDOWN_TIMEOUT seconds (30, if it is not set).
    signals = Signals(STOPPING if trainer.processes.is_main else None)
    trainer.asked_to_stop = lambda: signals.asked
    try:
        why = run.loop()
        if why == "interrupted":
            trainer.save(LAST, resumable=True, previous=PREVIOUS)
    finally:
        run.close()
    trainer.close()  # not after an error: the other processes would wait for this one; torchrun ends them
    if why == "interrupted":
        arguments = shlex.join([a for a in sys.argv[1:] if not a.startswith("--init_from")] + ["--init_from=resume"])
        again = "python" if trainer.processes.count == 1 else "the same torchrun …"
        trainer.say(f"stopped at step {p.step} and saved; go on with: {again} train.py {arguments}")
        raise SystemExit(130)
    best = f"{trainer.out / BEST}: step {p.best_step}, validation loss {p.best_val_loss:.4f}"
    if not p.best_step:
        best = f"no validation loss was finite, so there is no {trainer.out / BEST}"
    trainer.say(
        f"{why or 'done'} at step {p.step}, epoch {trainer.epochs:.2f}, {p.seconds:.0f} s, "
        f"{show_memory(trainer.device)}; {best}"
    )


if __name__ == "__main__":
    run_script(main)
