"""torch.compile for training. Compiled code that fails is replaced by the plain code, with a line that says why.

Where the data allows it, batches have few shapes (`data_utils.fit_buckets`), and each gets a graph of its own, with
constant sizes: compilers choose better code for those than for sizes that change. It is made when its first batch
comes, since some shapes never do. Validation, whose batches have other shapes, then runs the plain code: it is a few
percent of the work, and would double the graphs.
"""

import torch
import torch._dynamo

from data_utils import move_batch
from minigpt.adapters.prompts import METHODS
from minigpt.common.errors import UserError, first_line
from minigpt.device import explain_out_of_memory, is_out_of_memory, should_compile
from minigpt.training.state import random_states, set_random_states

BUCKETS = 6  # shapes of batches: with more there is less padding, but each costs a compilation
TRIAL_TOKENS = 1024  # tokens in the batch that compiled code is tried on, where batches have no constant shape


class CompiledTrunk:
    """A GPT's `hidden`, compiled: ids (B, T) -> hidden states (B, T, C).

    shapes: {(B, T)} of the batches that get a graph each, with gradients or without; others take the plain method.
    None: one graph for batches of every shape. After the first failure the plain method is used. A failure in the
    forward pass is handled here. One in the backward pass is raised in `backward`, so its caller calls `give_up` and
    computes the gradients again. failure: why the compiled code was given up, or None. say(line): prints it.
    """

    def __init__(self, model, say=print, shapes=None, gradients=True):
        self.plain, self.say, self.failure = model.hidden, say, None
        self.shapes, self.gradients = shapes, gradients
        self.known = set()  # shapes that came
        self.compiled = torch.compile(model.hidden, dynamic=shapes is None)
        if shapes:
            config = torch._dynamo.config
            config.recompile_limit = max(config.recompile_limit, 2 * len(shapes))

    def __call__(self, idx):
        if self.failure is None and self.covers(idx):
            try:
                return self.compiled(idx.contiguous())  # other strides would be another graph
            except Exception as error:  # compilers fail in many ways
                if not self.give_up(error):
                    raise
        return self.plain(idx)

    def covers(self, idx):
        """Whether there is, or shall be, compiled code for ids (B, T). Says it before a graph is made."""
        if self.shapes is None:
            return True
        shape = tuple(idx.shape)
        if shape not in self.shapes or torch.is_grad_enabled() != self.gradients:
            return False
        if shape not in self.known:
            self.known.add(shape)
            self.say(f"compiling for batches of {shape[0]} x {shape[1]} tokens …")
        return True

    def give_up(self, error):
        """Use plain code from now on, if an exception may come from the compiled code; returns whether it may."""
        if self.failure or is_out_of_memory(error) or isinstance(error, UserError):
            return False
        self.failure, self.compiled = first_line(error), None
        self.say(f"note: compiled code failed ({self.failure}); going on without compiling")
        return True


def choose_compiling(settings, device, divided):
    """(whether to compile the trunk, why) by the settings. divided: whether processes hold parts of the model."""
    if (divided or settings.optimizer == "lomo") and settings.compile == "auto":
        return False, f"the default with {'a divided model' if divided else 'lomo'}"
    return should_compile(settings.compile, device)


def choose_buckets(settings, compiling):
    """The `buckets` of `TrainingData`; None where each batch is as wide as its rows.

    The batches of a pipeline have one shape. Others have no buckets without compiled code, and where rows have no whole
    block (virtual tokens take positions of it), or are added to a step in numbers that change (replay).
    """
    if settings.pipeline_parallel > 1:
        return [settings.block_size]
    if not compiling or settings.method in METHODS or settings.replay_share:
        return None
    return BUCKETS


def compile_trunk(run, batch, why):
    """Compile the trunk of a `TrainingRun`'s model, and try it on a micro-batch, or a part of it.

    batch: (x, y, loss_mask, …), each (B, T); why: the reason for compiling. Returns (whether the trunk is compiled,
    why).
    """
    # Only the trunk: the number of positions with a loss differs between batches.
    gradients, shapes = run.settings.optimizer != "mezo", run.data.shapes
    run.model.trunk = CompiledTrunk(run.model, run.say, shapes, gradients)
    if not (run.sharded or run.processes.parts > 1):
        if shapes is None:
            # Two rows at least: the compiler makes special code for one row, and training has several.
            rows = max(2, TRIAL_TOKENS // batch[0].shape[1])
            batch = [t[:rows] for t in batch[:3]]
        run.model.train(gradients)  # MeZO's passes are those of evaluation
        with explain_out_of_memory(run.device, run.merged > 1):
            try:
                with run.precision.context(run.device), torch.set_grad_enabled(gradients):
                    loss = run.model.loss_sum(*move_batch(batch, run.device))
                if loss.requires_grad:
                    run.scaler.scale(loss).backward()
            except Exception as error:
                if not run.model.trunk.give_up(error):
                    raise
        run.model.train()
        run.model.zero_grad(set_to_none=True)
    failure = run.model.trunk.failure
    return failure is None, f"it failed: {failure}" if failure else why


def compute_or_undo(run, compute):
    """The result of `compute()`, which adds up a step's gradients.

    Where compiled code fails in it, it is called again with plain code. Where it returns None, gradients and random
    states are put back as they were. Raises UserError where compiled code fails in one of several processes: the
    others have gone on, so the step cannot be made again.
    """
    before = random_states(run.device)

    def undo():
        run.zero_grad()
        set_random_states(run.device, before)

    try:
        result = compute()
    except Exception as error:
        trunk = run.model.trunk
        if not isinstance(trunk, CompiledTrunk) or not trunk.give_up(error):
            raise
        if run.processes.world_count > 1:
            raise UserError(
                f"compiled code failed in the middle of a step ({trunk.failure}); give --compile=off"
            ) from None
        undo()
        result = compute()
    if result is None:
        undo()
    return result
