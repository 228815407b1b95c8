"""torch.compile for training. Compiled code that fails is replaced by the plain code, with a line that says why."""

import torch

from minigpt.common.errors import UserError, first_line
from minigpt.device import explain_out_of_memory, is_out_of_memory, should_compile
from minigpt.training.state import random_states, set_random_states

TRIAL_TOKENS = 1024  # tokens in the batch that compiled code is tried on


class CompiledTrunk:
    """A GPT's `hidden`, compiled once for batches of every shape: ids (B, T) -> hidden states (B, T, C).

    After the first failure the plain method is used. A failure in the forward pass is handled here. One in the
    backward pass is raised in `backward`, so its caller calls `give_up` and computes the gradients again.
    failure: why the compiled code was given up, or None. say(line): prints it.
    """

    def __init__(self, model, say=print):
        self.plain, self.say, self.failure = model.hidden, say, None
        self.compiled = torch.compile(model.hidden, dynamic=True)

    def __call__(self, idx):
        if self.failure is None:
            try:
                return self.compiled(idx)
            except Exception as error:  # compilers fail in many ways
                if not self.give_up(error):
                    raise
        return self.plain(idx)

    def give_up(self, error):
        """Use plain code from now on, if an exception may come from the compiled code; returns whether it may."""
        if self.failure or is_out_of_memory(error) or isinstance(error, UserError):
            return False
        self.failure, self.compiled = first_line(error), None
        self.say(f"note: compiled code failed ({self.failure}); going on without compiling")
        return True


def compile_trunk(run, batch):
    """Compile the trunk of a `TrainingRun`'s model as its settings say, and try it on a part of a micro-batch.

    batch: (x, y, loss_mask, …), each (B, T). Returns (whether the trunk is compiled, why).
    """
    compiling, why = should_compile(run.settings.compile, run.device)
    divided = run.sharded or run.processes.parts > 1
    if (divided or run.settings.optimizer == "lomo") and run.settings.compile == "auto":
        compiling, why = False, f"the default with {'a divided model' if divided else 'lomo'}"
    if not compiling:
        return False, why
    # Only the trunk: the number of positions with a loss differs between batches.
    run.model.trunk = CompiledTrunk(run.model, run.say)
    if not divided:
        # Two rows at least: the compiler makes special code for one row, and training has several.
        rows = max(2, TRIAL_TOKENS // batch[0].shape[1])
        x, y, loss_mask = (t[:rows].to(run.device) for t in batch[:3])
        with explain_out_of_memory(run.device):
            try:
                with run.precision.context(run.device), torch.set_grad_enabled(run.settings.optimizer != "mezo"):
                    loss = run.model.loss_sum(x, y, loss_mask)
                if loss.requires_grad:
                    run.scaler.scale(loss).backward()
            except Exception as error:
                if not run.model.trunk.give_up(error):
                    raise
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
