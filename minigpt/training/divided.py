"""A model that is divided over the processes of a group (`Processes.parts`), and what its training needs besides.

Tensor parallelism divides each matrix, pipeline parallelism the layers. Several such groups may share the rows of a
step; their gradients are averaged.
"""

import torch
import torch.distributed as dist

from minigpt.training.distributed import gather_tensors, local_part


class DividedModel:
    """What both ways of dividing a `TrainingRun`'s model have in common. Subclasses divide run.model in place."""

    add_gradients = None  # (run, batches, kept) -> sum of losses, in the place of train.py's; None: that one is called

    def __init__(self, run):
        self.run, self.processes = run, run.processes

    def counts(self, p):
        """Whether this process counts a parameter's gradient for the norm. Of parameters that several processes of the
        group hold whole, one process does."""
        return True

    def exchange_gradients(self):
        """Average the gradients over the groups, once all micro-batches of a step are done."""
        if self.processes.count == 1:
            return
        group = self.processes.mesh.get_group("data")
        gradients = [local_part(p.grad) for p in self.run.parameters() if p.grad is not None]
        for work in [dist.all_reduce(gradient, group=group, async_op=True) for gradient in gradients]:
            work.wait()
        torch._foreach_div_(gradients, self.processes.count)

    def clip_gradients(self, largest):
        """Scale all gradients so that their norm is at most `largest`; returns the norm before, a float."""
        with_gradient = [p for p in self.run.parameters() if p.grad is not None]
        squares = torch.zeros((), device=self.run.device)
        for p in with_gradient:
            if self.counts(p):
                squares += local_part(p.grad).square().sum()
        dist.all_reduce(squares, group=self.processes.mesh.get_group("model"))
        norm = float(squares.sqrt())
        if norm > largest:
            torch._foreach_mul_([local_part(p.grad) for p in with_gradient], largest / (norm + 1e-6))
        return norm

    def validation_loss(self):
        """The validation loss in nats a token, over all processes. All processes must call this."""
        return self.run.objective.validate(self.run)

    @torch.no_grad()
    def last_logits(self, ids):
        """Logits (V,) of what follows ids (a list). All processes must call this."""
        model, device = self.run.model, self.run.device
        with self.run.precision.context(device):
            return model.lm_head(model.hidden(torch.tensor([ids], device=device))[0, -1])

    def full_weights(self):
        """The state dict of the whole model on the CPU of the main process. All processes must call this."""
        return gather_tensors(self.run.model.state_dict(), self.processes)

    def full_optimizer_states(self):
        """The optimizers' state dicts for the whole model, as one process would have them, on the CPU of the main
        process. All processes must call this."""
        return [gather_tensors(optimizer.state_dict(), self.processes) for optimizer in self.run.optimizers]

    def own_optimizer_states(self, states):
        """Of the optimizers' state dicts for the whole model, those of this process's parameters. Their tensors are
        whole: `restore_optimizers` shards them."""
        return states
