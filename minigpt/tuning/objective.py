"""What a run is trained for. The base class is language modelling; tuning by preferences and rewards derives from it.

A micro-batch is a tuple of tensors `(x, y, loss_mask, *more)`, each with the rows first; what `more` is, each objective
says.
"""

from minigpt.inference.likelihood import FLOAT32, likelihood


class Objective:
    """Language modelling, and the heads of tasks: the cross-entropy of the kept targets.

    module: None, or an nn.Module whose parameters train beside the model's (PPO's value head), by AdamW.
    precision: the run's `Precision`, for passes that are made beside the loss.
    """

    module = None
    precision = FLOAT32

    def count(self, batch):
        """What the sum of a micro-batch's losses is divided by, over the whole step: its kept targets."""
        return int(batch[2].sum())

    def loss(self, model, x, y, loss_mask, kept=None):
        """The summed loss of a micro-batch on the model's device, a scalar with gradients."""
        return model.loss_sum(x, y, loss_mask, kept)

    def validate(self, run):
        """The validation loss of a `TrainingRun`'s model, in nats a token, over all processes."""
        settings, processes = run.settings, run.processes
        part = likelihood(
            run.model, run.data.val, run.data.meta, settings.batch_size, precision=run.precision,
            train_on_eot=settings.train_on_eot, batch_tokens=settings.batch_tokens,
            rank=processes.rank, count=processes.count,
        )  # fmt: skip
        nats, tokens = processes.total(part.nats, part.tokens)
        return nats / max(1.0, tokens)

    def sample_line(self, run):
        """A line of text that is shown at each validation; None: by the stage of the rows."""
        return None

    def take_figures(self):
        """{name: number} for log.jsonl since the last call; those of a validation have names that begin with val_."""
        return {}

    def state_dict(self):
        """What an exact resume needs besides the model, as plain values and tensors; it is saved in last.pt."""
        return {"module": self.module.state_dict()} if self.module else {}

    def load_state_dict(self, state):
        """Restore what `state_dict` returned."""
        if self.module:
            self.module.load_state_dict(state["module"])
