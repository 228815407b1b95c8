"""torch.compile for training, with a way back: compiled code that fails is given up with a line that says why."""

import torch

from device import is_out_of_memory
from errors import first_line


class CompiledTrunk:
    """A GPT's `hidden`, compiled for every shape of batch; the plain one after `give_up`.

    A failure in the forward pass is met here. One in the backward pass reaches whoever called `backward`, who has to
    compute the step's gradients again. failure: why the compiled code was given up, or None.
    """

    def __init__(self, model, say=print):
        self.plain, self.say, self.failure = model.hidden, say, None
        self.compiled = torch.compile(model.hidden, dynamic=True)

    def __call__(self, idx):
        if self.failure is None:
            try:
                return self.compiled(idx)
            except Exception as error:  # compilers fail in many ways, and training goes on without
                if is_out_of_memory(error):
                    raise
                self.give_up(error)
        return self.plain(idx)

    def give_up(self, error):
        """Run the plain code from now on; say(line) is told the reason."""
        self.failure = first_line(error)
        self.compiled = None
        self.say(f"note: compiled code failed ({self.failure}); going on without compiling")
