"""Train a GPT: pretraining, fine-tuning and adapters, on one device or several.

    python train.py config/train_config.py                        # pretrain the 124M model
    python train.py config/train_config.py --init_from=resume     # go on after a stop, or a crash
    python train.py config/train_config_sft.py                    # fine-tune its best checkpoint
    python train.py config/train_config_sft.py --method=lora      # the same by LoRA; see docs/adapting.md
    torchrun --standalone --nproc_per_node=2 train.py config/train_config.py     # on two GPUs

The data decides which stage it is: rows made by data/prepare.py have a loss on every token, rows made by
data/prepare_sft.py on the answers only, rows made by data/prepare_task.py on their labels. Ctrl-C saves and stops.
`--help` lists the settings.

This file is the loop: learning rate, micro-batches, forward, loss, backward, clipping, optimizer step, log,
validation, checkpoint. What a run consists of is set up in minigpt/training/setup.py.
"""

import concurrent.futures
import math
import os
import shlex
import signal
import sys
import time

import minigpt  # noqa: F401 - it sets what OpenMP reads when torch is imported

if __name__ == "__main__":  # torch takes seconds to load
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # it would swallow a KeyboardInterrupt
    if os.environ.get("RANK", "0") == "0":
        print("train.py: loading torch …", flush=True)

import torch
from tqdm import tqdm

from data_utils import move_batch
from minigpt.checkpoint import BEST, LAST
from minigpt.common.cli import Signals, run_script
from minigpt.common.errors import UserError
from minigpt.device import explain_out_of_memory, memory_text
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import TrainSettings
from minigpt.training.compiling import compute_or_undo
from minigpt.training.distributed import exchange_gradients, full_values
from minigpt.training.low_memory import LOW_MEMORY_LOSSES
from minigpt.training.monitor import Monitor
from minigpt.training.optim import lr_scale, set_learning_rate
from minigpt.training.setup import TrainingRun
from minigpt.training.state import begin_saving, finish_saving, save_run
from minigpt.training.validation import answered_share_of, sample_line, validate, watched_lines

STOPPING = "stopping: after the {} in hand the run is saved and ends (Ctrl-C again: at once, as last saved)"

OTHERS_WAIT_SECONDS = 10  # torchrun looks ten times a second whether a process has ended


def train(run):
    """Train a `TrainingRun` to its end, to the end of patience, or to Ctrl-C."""
    p, settings = run.progress, run.settings
    run.model.train()
    if p.step == 0:  # finds a folder or disk that cannot be written to, and makes resuming possible from the start
        save_run(run, LAST)
    monitor = Monitor(run)
    try:
        while p.step < p.max_iters and not run.stopped_by:
            step = train_step(run)
            if step is None:
                break
            monitor.count_step(*step)
            if p.step % settings.eval_interval == 0 or p.step == p.max_iters:
                validate_and_save(run, monitor)
            elif p.step % settings.log_interval == 0:
                monitor.log()
            if settings.watch_prompts and 10 * p.step // p.max_iters > 10 * (p.step - 1) // p.max_iters:
                show_watched(run, monitor)
        if run.stopped_by == "interrupted":
            finish_checkpoints(run, monitor.say)
            save_run(run, LAST)
    finally:
        if run.saving and run.saving.outcome:  # after an exception: what is being written is whole
            concurrent.futures.wait([run.saving.outcome])
        monitor.close()


def train_step(run):
    """Take one optimizer step over gradient_accumulation_steps micro-batches, those of all processes together.

    Returns (`StepRows`, targets with a loss in all processes). Returns None where a signal came: everything is then as
    it was before the step. Raises UserError where memory runs out.
    """
    p = run.progress

    # Learning rate: linear warm-up, then linear decay.
    scale = lr_scale(p.step, p.max_iters, run.settings)
    set_learning_rate(run.optimizers, scale)
    run.lr = scale * run.settings.learning_rate

    # The rows of this step. The processes agree on how many targets have a loss (or pairs, or answers: what the
    # objective counts), and on whether to stop.
    rows = run.data.step((p.epoch, p.batch))
    kept, stop = run.processes.total(sum(map(run.objective.count, rows.batches)), run.stop_requested())
    with explain_out_of_memory(run.device, run.merged > 1):
        # Forward, loss and backward of each micro-batch; those of a pipeline overlap. LOMO and MeZO update the weights
        # here, and leave no gradients.
        compute = LOW_MEMORY_LOSSES.get(run.settings.optimizer, add_gradients)
        if run.divided and run.divided.add_gradients:
            compute = run.divided.add_gradients
        loss_sum = None if stop else compute_or_undo(run, lambda: compute(run, rows.batches, kept))
        if loss_sum is None:
            run.stopped_by = "interrupted"
            return None

        # Clip the gradients to the norm grad_clip. In float16 they were scaled, so that small ones are not zero.
        for optimizer in run.optimizers:
            run.scaler.unscale_(optimizer)
        if run.budget:
            run.budget.add_penalty_gradients()
        norm, loss_sum = full_values(clip_gradients(run), loss_sum)

        # Optimizer step. If the loss or a gradient is not finite, the step is skipped and the weights stay.
        (wrong_losses,) = run.processes.total(not math.isfinite(loss_sum))
        finite = math.isfinite(norm) and not wrong_losses
        if finite:
            for optimizer in run.optimizers:
                run.scaler.step(optimizer)
            if run.budget:
                run.budget.allocate(p.step + 1, p.max_iters)
        # In float16 the scale is lowered until gradients fit; only an overflow at the lowest scale counts as skipped.
        overflow = not wrong_losses and run.scaler.is_enabled() and run.scaler.get_scale() > 1
        run.scaler.update()
        run.zero_grad()

    # Count it.
    if finite:
        p.loss_sum += loss_sum
        p.loss_tokens += int(kept)
        p.skipped_in_a_row = 0
    elif not overflow:
        p.skipped += 1
        p.skipped_in_a_row += 1
    p.step += 1
    p.epoch, p.batch = rows.position
    p.tokens += rows.tokens
    return rows, int(kept)


def add_gradients(run, batches, kept):
    """Add up the gradients of a step's micro-batches; returns the sum of their losses, a scalar tensor.

    batches: list of (x, y, loss_mask, …), each (B, T); kept: targets with a loss in the whole step, of all processes.
    Returns None where a signal came between two micro-batches. (Several processes finish the step, since none can
    leave the others within it.)
    """
    loss_sum = 0.0
    for i, batch in enumerate(batches, start=1):
        if run.processes.world_count == 1 and run.stop_requested():
            return None
        batch = move_batch(batch, run.device)

        # Forward: the sum of the losses over the kept targets.
        exchange_gradients(run.model, run.loss, i == len(batches))
        with run.precision.context(run.device):
            loss = run.loss(*batch)

        # Backward. Gradients are averaged over the processes; times their number and divided by the kept targets of
        # all, they are those of the mean loss of the whole step.
        run.scaler.scale(loss * (run.processes.count / max(1, kept))).backward()
        loss_sum = loss_sum + loss.detach()
        run.on_batch(i, len(batches))
    if run.divided:
        run.divided.exchange_gradients()
    return loss_sum


def clip_gradients(run):
    """Clip the gradients to the norm grad_clip; returns the norm before, a scalar tensor or a float."""
    largest = run.settings.grad_clip or math.inf
    if run.divided:
        return run.divided.clip_gradients(largest)
    return torch.nn.utils.clip_grad_norm_(run.parameters(), largest)


def validate_and_save(run, monitor):
    """Validate, log, print a sample, and write the checkpoints that are due; sets run.stopped_by to stop early."""
    p, settings = run.progress, run.settings
    monitor.throughput.pause()  # validation is not training

    # Validate and log.
    val_loss = validate(run)
    answered = answered_share_of(run)
    finish_checkpoints(run, monitor.say)  # of the last validation: the best loss is that of the ckpt.pt on disk
    train_loss = monitor.log(val_loss, answered)
    best = val_loss < p.best_val_loss
    p.checks_without_best = 0 if best else p.checks_without_best + 1
    p.last_losses = train_loss, val_loss
    losses = f"train {train_loss:.4f}, val {val_loss:.4f}{'  best' if best else ''}"
    losses += "" if answered is None else f", answered {answered:.3f}"
    monitor.say(f"step {p.step}, epoch {run.epochs:.2f}: {losses} | {sample_line(run)}")
    monitor.warn_of_overfitting(best)

    # Stop early where no improvement comes any more, or enough questions are answered.
    if settings.patience and p.checks_without_best >= settings.patience:
        run.stopped_by = f"no better validation loss in {settings.patience} checks"
    reached = answered is not None and answered >= settings.stop_at_answered
    if reached:
        run.stopped_by = f"answered {answered:.3f} of the training questions"

    # Save. A model that answers enough becomes ckpt.pt whatever its validation loss is.
    if math.isfinite(val_loss):
        save_checkpoints(run, val_loss if best or reached else None, monitor.say)
    else:
        monitor.say(f"warning: the validation loss is not finite, so nothing was saved at step {p.step}")
    monitor.throughput.resume()


def show_watched(run, monitor):
    """Print what the model says to watch_prompts now, after a tenth of the run."""
    monitor.throughput.pause()  # generating is not training
    for line in watched_lines(run):
        monitor.say(line)
    monitor.throughput.resume()


def save_checkpoints(run, best_loss, say):
    """Write last.pt, and ckpt.pt and step_*.pt where they are due. best_loss: validation loss of a best model, or None.

    Training goes on while they are written if run.saves_in_background. Raises UserError at the run's end where one
    cannot be written.
    """
    p, settings = run.progress, run.settings
    names = [BEST] if best_loss is not None else []
    if settings.keep_every and p.step % settings.keep_every == 0:
        names.append(f"step_{p.step:06d}.pt")
    begin_saving(run, [*names, LAST], best_loss)
    ending = p.step >= p.max_iters or bool(run.stopped_by)
    if ending or not run.saves_in_background:
        finish_checkpoints(run, say, ending)


def finish_checkpoints(run, say, ending=False):
    """Wait for the checkpoints that are being written. ending: raise UserError where one could not be.

    Otherwise training goes on: a disk that is full now may have room at the next validation.
    """
    failure = finish_saving(run)
    if failure and ending:
        raise UserError(failure)
    if failure:
        say(f"warning: {failure}; training goes on and saves again at the next validation")


def set_up_run():
    """The `TrainingRun` of the command line. Raises UserError."""
    try:
        return TrainingRun(load_settings(TrainSettings), say=tqdm.write)  # which puts a line above the progress bar
    except UserError:
        # All processes of torchrun find the same mistake. The first of a machine says it, and torchrun ends the others
        # meanwhile. Where it does not, the mistake is that of one process, which says it later.
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(OTHERS_WAIT_SECONDS)
        raise


def main():
    run = set_up_run()
    # torchrun passes a signal on, and kills after TORCH_ELASTIC_SHUTDOWN_TIMEOUT seconds (default 30). Several
    # processes agree on stopping when the next step begins.
    words = STOPPING.format("batch" if run.processes.world_count == 1 else "step")
    signals = Signals(words if run.processes.is_main else None)
    run.stop_requested = lambda: signals.asked
    train(run)
    run.close()  # not after an error: the other processes would wait for this one; torchrun ends them

    # How it ended.
    p = run.progress
    if run.stopped_by == "interrupted":
        arguments = shlex.join([a for a in sys.argv[1:] if not a.startswith("--init_from")] + ["--init_from=resume"])
        again = "python" if run.processes.world_count == 1 else "the same torchrun …"
        run.say(f"stopped at step {p.step} and saved; go on with: {again} train.py {arguments}")
        raise SystemExit(130)
    best = f"{run.out / BEST}: step {p.best_step}, validation loss {p.best_val_loss:.4f}"
    if not p.best_step:
        best = f"no validation loss was finite, so there is no {run.out / BEST}"
    run.say(
        f"{run.stopped_by or 'done'} at step {p.step}, epoch {run.epochs:.2f}, {p.seconds:.0f} s, "
        f"{memory_text(run.device)}; {best}"
    )


if __name__ == "__main__":
    run_script(main)
