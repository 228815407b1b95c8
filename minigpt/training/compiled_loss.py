"""The gradients of the output layer's logits, compiled for a GPU: one pass over them in the place of five."""

import torch

from minigpt.common.errors import first_line
from minigpt.device import is_out_of_memory
from model import OutputLoss


def logit_gradients(logits, targets, losses):
    """`OutputLoss.to_gradient`, written so that a compiler reads the logits for all sums at once, and once to write.

    Largest and sum have the form that Inductor knows as one reduction ("online softmax").
    """
    x, has_loss = logits.float(), targets >= 0
    is_target = torch.arange(x.shape[1], device=x.device) == targets[:, None]
    top = x.amax(1, keepdim=True)
    total = (x - top).exp().sum(1, keepdim=True)
    of_target = torch.where(is_target, x, 0.0).sum(1)
    losses.copy_(torch.where(has_loss, (top + total.log()).squeeze(1) - of_target, 0.0))
    # Subtract 1 before rounding to bfloat16, as in the plain code.
    gradients = (x - top).exp() / total - is_target.float()
    logits.copy_(torch.where(has_loss[:, None], gradients, 0.0))


class CompiledGradients:
    """`logit_gradients`, compiled once for every number of rows, each of which a GPU computes by itself.

    After the first failure nothing is computed any more. failure: why, or None. say(line): prints it.
    """

    def __init__(self, say=print):
        self.say, self.failure = say, None
        # Inductor would split the sums by the rows of the first call, and then read the logits more often.
        self.compiled = torch.compile(logit_gradients, dynamic=False, options={"split_reductions": False})

    def __call__(self, logits, targets, losses):
        """As `OutputLoss.to_gradient`; returns whether it was computed."""
        if self.failure or len(logits) < 2:  # the compiler makes special code for one row
            return False
        for tensor in (logits, targets, losses):
            torch._dynamo.mark_dynamic(tensor, 0)
        try:
            self.compiled(logits, targets, losses)
        except Exception as error:  # compilers fail in many ways, and before anything is written
            if is_out_of_memory(error):
                raise
            self.failure, self.compiled = first_line(error), None
            self.say(f"note: the compiled loss failed ({self.failure}); going on with the plain one")
        return self.failure is None


def compile_loss(run, compiling):
    """Have the loss of a `TrainingRun` compiled, or no longer, where it is on a GPU; on a CPU it has its own kernel."""
    OutputLoss.compiled = CompiledGradients(run.say) if compiling and run.device.type == "cuda" else None
