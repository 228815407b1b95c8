"""Where a training run stands: its counters, and how it is saved and restored so that it goes on exactly."""

import concurrent.futures
import dataclasses
import functools
import math

import torch

from minigpt.adapters.attach import adapting_of, trained_parameters
from minigpt.checkpoint import BEST, LAST, PREVIOUS, save_checkpoint
from minigpt.common.errors import UserError
from minigpt.run_log import cut_log
from minigpt.training.distributed import gather_tensors, local_part, shard_state

RUN_LENGTHS = ("max_seconds", "max_iters", "max_epochs")  # settings that say how long a run is
DIVIDING_SETTINGS = ("tensor_parallel", "pipeline_parallel")  # settings that say how many processes have the same rows


@dataclasses.dataclass
class Progress:
    """The counters of a run. Checkpoints contain them."""

    step: int = 0  # optimizer steps taken
    epoch: int = 0  # the current epoch
    batch: int = 0  # index of its next batch
    epoch_batches: int = 0  # number of its batches
    tokens: int = 0  # tokens trained on, without PAD
    seconds: float = 0.0
    best_val_loss: float = math.inf
    best_step: int = 0
    checks_without_best: int = 0  # validations since the best one
    max_iters: int = 0  # steps of the whole run; 0 until they are known
    loss_sum: float = 0.0  # since the last line of the log
    loss_tokens: int = 0
    last_losses: tuple = (math.inf, math.inf)  # training and validation loss of the last validation
    checks_overfitting: int = 0  # validations since the best one that showed over-fitting
    skipped: int = 0  # steps whose loss or gradient was not finite
    skipped_in_a_row: int = 0


def check_resumable(content, path, settings, stage):
    """Raise UserError unless a run can be resumed from a checkpoint's dict."""
    if content["stage"] != stage:
        raise UserError(f"{path} is a {content['stage']} run, {settings.data_dir} holds {stage} data")
    known = {f.name for f in dataclasses.fields(Progress)}
    if "optimizers" not in content or not set(content["progress"]) <= known:
        raise UserError(f"{path} is not a last.pt of this version: start from it with --init_from={path}")
    before = content["settings"]["optimizer"]
    if before != settings.optimizer:
        raise UserError(f"{path} was trained with optimizer={before}, whose state {settings.optimizer} cannot use")
    if (before := content["settings"].get("objective", "causal")) != settings.objective:
        raise UserError(f"{path} was trained with objective={before}, not {settings.objective}; give that again")
    now, before = dataclasses.asdict(adapting_of(settings)), content["settings"]
    if settings.method == before.get("method", "full") == "full":
        return  # the settings of adapters have no effect
    differs = [f"{name}={before[name]}" for name, value in now.items() if before.get(name, value) != value]
    if differs:
        raise UserError(f"{path} was trained with {', '.join(differs)}; give that again to go on with it")


@dataclasses.dataclass
class Saving:
    """Checkpoints of one step that are being written, one after the other, in a thread.

    best_before: validation loss and step of the ckpt.pt that was there; outcome: of `write_files`; None in a process
    that does not write; failure: why nothing is written, or None.
    """

    step: int
    names: list
    best_before: tuple
    outcome: concurrent.futures.Future | None = None
    failure: str | None = None


def begin_saving(run, names, best_loss=None):
    """Begin to write checkpoints of a `TrainingRun` into its folder, in the order of their names; sets run.saving.

    last.pt also has what resuming needs: optimizers, random states, precision. Its older file becomes last.prev.pt.
    best_loss: validation loss of the model that becomes ckpt.pt, or None. Every process must call this, and
    `finish_saving` before it calls this again. Until then the weights may change only if run.saves_in_background:
    what is written is then a copy in the CPU's memory.
    """
    p = run.progress
    run.saving = saving = Saving(p.step, names, (p.best_val_loss, p.best_step))
    if best_loss is not None:
        p.best_val_loss, p.best_step = best_loss, p.step
    finite = torch.stack([local_part(w).isfinite().all() for w in run.model.parameters()]).all()
    (wrong,) = run.processes.total(not finite)
    if wrong:
        saving.failure = f"weights are not finite at step {p.step}, so {run.out / names[0]} was not written"
        return

    # The loss is summed over all processes, the tensors are gathered in the main one.
    p.epoch_batches = len(run.data.order.batches(p.epoch))
    (loss_sum,) = run.processes.total(float(p.loss_sum))
    progress = dataclasses.asdict(dataclasses.replace(p, loss_sum=loss_sum))
    weights, more = run_weights(run)
    state = resuming_state(run) if LAST in names else {}
    if not run.processes.is_main:
        return
    if run.saves_in_background:
        weights, more, state = map(copy_to_cpu, (weights, more, state))
    if not run.base and run.model.config.tied:
        weights["wte.weight"] = weights["lm_head.weight"]  # gathering and copying copied the shared matrix

    # Another thread writes, so that training may go on.
    about = run.model.config, run.settings, run.data.meta["stage"], run.data.tokenizer, progress
    files = []
    for name in names:
        rest = {**more, **state, "previous": PREVIOUS} if name == LAST else more
        files.append(functools.partial(save_checkpoint, run.out / name, weights, *about, **rest))
    writer = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
    saving.outcome = writer.submit(write_files, names, files)
    writer.shutdown(wait=False)


def finish_saving(run):
    """Wait until what `begin_saving` began is written; every process must call this.

    Returns None or, in every process, why a file could not be written. Those after it were not tried then, and the
    best loss and step are again those of the ckpt.pt on disk.
    """
    if run.saving is None:
        return None
    saving = run.saving
    outcome = saving.outcome.result() if saving.outcome else ([], saving.failure)
    written, failure = run.processes.from_main(outcome)
    run.saving = None
    if LAST in written:
        run.saved_step = saving.step
    if BEST in saving.names and BEST not in written:
        run.progress.best_val_loss, run.progress.best_step = saving.best_before
    return failure


def save_run(run, name):
    """Write a checkpoint of a `TrainingRun` into its folder, as `begin_saving` does, and wait for it.

    Every process must call this. Raises UserError, in every process, where the main process cannot write or a weight
    is not finite.
    """
    begin_saving(run, [name])
    if failure := finish_saving(run):
        raise UserError(failure)


def write_files(names, files):
    """Call the functions `files`, each of which writes the file of its name; returns (names of those written, the
    UserError's text of the first that could not be, or None)."""
    written = []
    for name, write in zip(names, files, strict=True):
        try:
            write()
        except UserError as error:
            return written, str(error)
        written.append(name)
    return written, None


def run_weights(run):
    """(state dict of what a `TrainingRun` trains, further entries of its checkpoints), gathered in the main process."""
    more = {"task": run.data.meta["task"]} if "task" in run.data.meta else {}
    if run.base:
        trained = {n: p.detach() for n, p in trained_parameters(run.model).items()}
        more |= {"adapter": dataclasses.asdict(run.model.adapter), "base": run.base}
        return gather_tensors(trained, run.processes), more
    if run.divided:
        return run.divided.full_weights(), more
    return gather_tensors(run.model.state_dict(), run.processes), more


def resuming_state(run):
    """The entries of a checkpoint that resuming a `TrainingRun` needs, gathered in the main process."""
    return {
        "optimizers": run.divided.full_optimizer_states()
        if run.divided
        else [gather_tensors(o.state_dict(), run.processes) for o in run.optimizers],
        "scaler": run.scaler.state_dict(),
        "random": run.processes.gather(random_states(run.device)),
        "precision": run.precision.to_dict(run.device),
        "objective": run.objective.state_dict(),
        **({"budget": run.budget.state_dict()} if run.budget else {}),
        **({"launch": run.launch} if run.launch else {}),
    }


def copy_to_cpu(value):
    """A copy of a value (tensor, or nested dicts, lists and tuples) with all its tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copy_to_cpu(item) for key, item in value.items()}
    return type(value)(map(copy_to_cpu, value)) if isinstance(value, (list, tuple)) else value


def restore_run(run, content):
    """Put a `TrainingRun` where a resumable checkpoint's dict was: optimizers, random states, counters, log.

    Raises UserError where the settings end the run before the step that it has reached.
    """
    settings, before = run.settings, content["settings"]
    for name in ("seed", "batch_size", "batch_tokens", "gradient_accumulation_steps", "sampling"):
        then, now = before.get(name), getattr(settings, name)
        if then != now:
            run.say(f"note: {name} was {then!r} and is {now!r}, so the rows come in another order from here on")
    planned_steps = run.progress.max_iters
    run.progress = p = Progress(**content["progress"])

    # With other batch sizes the epoch has another number of batches; the run goes on at the same share of it.
    batches = len(run.data.order.batches(p.epoch))
    if p.epoch_batches and batches != p.epoch_batches:
        p.batch = min(batches - 1, round(p.batch / p.epoch_batches * batches))
    if run.processes.rank:  # the saved sum is that of all rows, so only the first group takes it over
        p.loss_sum = 0.0

    # A run that max_seconds shortened keeps its length, unless one of the settings of length has changed.
    if any(before[name] != getattr(settings, name) for name in RUN_LENGTHS):
        p.max_iters = planned_steps
    if p.step > p.max_iters:
        now = ", ".join(f"{name}={getattr(settings, name):g}" for name in RUN_LENGTHS)
        then = ", ".join(f"{name}={before[name]:g}" for name in RUN_LENGTHS)
        raise UserError(
            f"the run in {run.out} is at step {p.step}, and would end at step {p.max_iters} by {now}; it was "
            f"begun with {then}: give that again, or more"
        )

    states = content["optimizers"]
    if run.divided:
        states = run.divided.own_optimizer_states(states)
    restore_optimizers(run.optimizers, states)
    run.objective.load_state_dict(content.get("objective", {}))
    if run.budget:
        run.budget.load_state_dict(content["budget"])
    if content["scaler"] and run.scaler.is_enabled():
        run.scaler.load_state_dict(content["scaler"])
    same_parts = all(before.get(name, 1) == getattr(settings, name) for name in DIVIDING_SETTINGS)
    if same_parts and len(content["random"]) == run.processes.world_count:
        set_random_states(run.device, content["random"][run.processes.world_rank])
    else:  # with other numbers of processes the generators start anew, in a way that the step determines
        torch.manual_seed(run.dropout_seed + 1000 * p.step)
    if run.processes.is_main:
        cut_log(run.out, p.step)
    run.saved_step = p.step
    if p.step == p.max_iters:
        run.say(f"the run is at its end, step {p.step}; more max_iters or max_epochs would go on with it")
    elif p.step:
        run.say(f"going on at step {p.step} of {p.max_iters}")
    else:
        run.say(f"its {LAST} is from before the first step: the run begins at step 0 of {p.max_iters}")


def restore_optimizers(optimizers, states):
    """Load the optimizers' state dicts. Rates, decay and betas stay as the settings of now give them."""
    for optimizer, state in zip(optimizers, states, strict=True):
        kept = ("peak_lr", "weight_decay", "betas")
        given = [{key: group[key] for key in kept if key in group} for group in optimizer.param_groups]
        optimizer.load_state_dict(shard_state(state, optimizer))
        for group, values in zip(optimizer.param_groups, given, strict=True):
            group.update(values)


def random_states(device):
    """The states of the random generators that a step uses: {"cpu": …}, and the device's if it has its own."""
    states = {"cpu": torch.get_rng_state()}
    if device.type in ("cuda", "mps"):
        states[device.type] = getattr(torch, device.type).get_rng_state()
    return states


def set_random_states(device, states):
    """Give the random generators the states that `random_states` returned."""
    torch.set_rng_state(states["cpu"])
    if device.type in states and device.type != "cpu":
        getattr(torch, device.type).set_rng_state(states[device.type])
