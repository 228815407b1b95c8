"""torch.compile for training, with a way back: compiled code that fails is given up with a line that says why."""

import torch

from minigpt.common.errors import UserError, first_line
from minigpt.device import is_out_of_memory


class CompiledTrunk:
    """A GPT's `hidden`, compiled once for batches of every shape: (B, T) ids -> (B, T, C) states.

    The plain method takes its place from the first failure on. A failure in the forward pass is met here. One in the
    backward pass reaches the caller of `backward`, who asks `gives_up` and computes the step's gradients again.
    failure: why the compiled code was given up, or None. say(line): is told so.
    """

    def __init__(self, model, say=print):
        self.plain, self.say, self.failure = model.hidden, say, None
        self.compiled = torch.compile(model.hidden, dynamic=True)

    def __call__(self, idx):
        if self.failure is None:
            try:
                return self.compiled(idx)
            except Exception as error:  # compilers fail in many ways, and training goes on without
                if not self.gives_up(error):
                    raise
        return self.plain(idx)

    def gives_up(self, error):
        """Whether an exception may come from the compiled code, which is then given up. Out of memory does not."""
        if self.failure or is_out_of_memory(error) or isinstance(error, UserError):
            return False
        self.failure, self.compiled = first_line(error), None
        self.say(f"note: compiled code failed ({self.failure}); going on without compiling")
        return True
