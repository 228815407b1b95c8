"""Full tuning in little memory: LOMO keeps no gradients, MeZO computes none. Neither has moments.

AdamW needs, besides a model of n weights, n gradients and 2 n moments. LOMO needs the largest gradient of one
parameter; MeZO only what a forward pass without gradients needs. Both update the weights while a step's loss is
computed: the functions in LOW_MEMORY_LOSSES take the place of adding up gradients, and `step` has nothing left to do.
"""

import math

import torch

from data_utils import move_batch
from minigpt.common.errors import UserError

DRAWN_NUMBERS = 2**22  # random numbers of MeZO in memory at the same time


class UpdatingOptimizer(torch.optim.Optimizer):
    """Parameter groups with learning rate and decoupled weight decay; the weights change before `step`."""

    def __init__(self, groups, lr):
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})

    def step(self, closure=None):
        """Nothing: the step has been taken."""


class Lomo(UpdatingOptimizer):
    """LOMO (Lv et al. 2023, "Full Parameter Fine-tuning for Large Language Models with Limited Resources").

    SGD, theta <- theta - lr grad (their equation 1; with decoupled weight decay), within the backward pass: as soon as
    the gradient of a parameter is complete, the parameter is updated and the gradient is freed. So a tied embedding,
    whose gradient has two parts, is updated once, and the result is SGD's: later gradients of the same backward pass
    do not depend on weights that have been updated. There is no norm over all gradients, which are never there
    together, so there is no clipping by it. A parameter whose gradient is not finite is left as it is, and the step
    counts as skipped. The authors' rate for LLaMA 7B is 0.03.
    """

    def __init__(self, groups, lr):
        super().__init__(groups, lr)
        self.wrong_gradients = 0  # gradients that were not finite since the last look
        for number, group in enumerate(self.param_groups):
            for p in group["params"]:
                p.register_post_accumulate_grad_hook(lambda p, number=number: self.update(p, number))

    @torch.no_grad()
    def update(self, p, number):
        """Update a parameter of the group of that number by its gradient, which is then freed."""
        group = self.param_groups[number]  # not kept in the hook, since loading a state replaces the groups
        if p.grad.isfinite().all():
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(p.grad, alpha=-group["lr"])
        else:
            self.wrong_gradients += 1
        p.grad = None


class Mezo(UpdatingOptimizer):
    """MeZO (Malladi et al. 2023, "Fine-Tuning Language Models with Just Forward Passes"), algorithm 1.

    The gradient is estimated from two losses along a random direction z ~ N(0, I) (their definition 1, SPSA):

        g = (L(theta + eps z) - L(theta - eps z)) / (2 eps),    theta <- theta - lr g z

    z is never stored: it is drawn from the same seed each time that it is needed, in pieces, in place. The weights come
    back to theta up to the rounding of eps z. The seed is made of the run's seed and the step, so that a resumed run
    draws the same, and so do all processes of a run, which therefore exchange the losses only.

    z has as many random parts as there are weights, so the rate is far below SGD's. The authors' for OPT 13B: 1e-7 with
    eps 1e-3 for all weights, 5e-5 with 1e-2 for LoRA, 1e-3 with 0.1 for prefixes.
    """

    def __init__(self, groups, lr, epsilon):
        super().__init__(groups, lr)
        self.epsilon = epsilon

    @torch.no_grad()
    def move(self, seed, scale):
        """Add scale z to the weights."""
        for piece, z, _ in self._directions(seed):
            piece.add_(z, alpha=scale)

    @torch.no_grad()
    def move_back_and_update(self, seed, projected_gradient):
        """Move the weights from theta - eps z back to theta, and update them; None: only move them back."""
        for piece, z, group in self._directions(seed):
            piece.add_(z, alpha=self.epsilon)
            if projected_gradient is not None:
                piece.mul_(1 - group["lr"] * group["weight_decay"])
                piece.add_(z, alpha=-group["lr"] * projected_gradient)

    def _directions(self, seed):
        """Yields (piece of a parameter, its part of z, parameter group), always in the same order."""
        generator = torch.Generator(self.param_groups[0]["params"][0].device).manual_seed(seed)
        for group in self.param_groups:
            for p in group["params"]:
                for piece in p.view(-1).split(DRAWN_NUMBERS):
                    z = torch.randn(piece.shape, generator=generator, device=piece.device, dtype=piece.dtype)
                    yield piece, z, group


def make_low_memory_optimizer(groups, settings):
    """The `Lomo` or `Mezo` of the settings. groups: as torch.optim takes them."""
    if settings.optimizer == "lomo":
        return Lomo(groups, settings.learning_rate)
    return Mezo(groups, settings.learning_rate, settings.mezo_epsilon)


def update_in_backward(run, batches, kept):
    """Take a step of LOMO with the single micro-batch of a step; returns the sum of its losses, a scalar.

    batches: list of one (x, y, loss_mask, …), each (B, T); kept: its targets with a loss. A loss that is not finite is
    returned before any weight changes. nan is returned where a gradient was not finite.
    """
    (batch,), (lomo,) = batches, run.optimizers
    with run.precision.context(run.device):
        loss = run.loss(*move_batch(batch, run.device))
    if loss.isfinite():
        lomo.wrong_gradients = 0
        (loss / max(1, kept)).backward()
        run.on_batch(1, 1)
    return loss.detach() if not lomo.wrong_gradients else math.nan


def update_by_two_losses(run, batches, kept):
    """Take a step of MeZO; returns the sum of this process's losses, the mean of those at both points.

    batches: list of (x, y, loss_mask, …), each (B, T); kept: targets with a loss in the whole step, of all processes.
    nan is returned where the losses of all processes are not finite: the weights then stay, up to rounding. A signal
    between two micro-batches waits for the step's end, since weights that were moved back are not the same bits.
    """
    (mezo,) = run.optimizers
    # A generator on a CPU uses 32 bits of its seed.
    seed = (run.settings.seed * 1_000_003 + run.progress.step) % 2**32
    sums = []
    run.model.eval()  # both losses without dropout, which would differ between them
    for scale in (mezo.epsilon, -2 * mezo.epsilon):
        mezo.move(seed, scale)
        sums.append(sum_of_losses(run, batches, done=len(sums) * len(batches)))
    run.model.train()

    plus, minus = run.processes.total(*sums)
    gradient = (plus - minus) / (max(1, kept) * 2 * mezo.epsilon)
    finite = math.isfinite(gradient)
    mezo.move_back_and_update(seed, gradient if finite else None)
    return sum(sums) / 2 if finite else math.nan


@torch.no_grad()
def sum_of_losses(run, batches, done):
    """Sum of the losses of a step's micro-batches, a float. done: micro-batches that the step has had before.

    The losses are those of evaluation: those of training compute gradients along with them.
    """
    total = 0.0
    for i, batch in enumerate(batches, start=1):
        x, y, loss_mask = move_batch(batch[:3], run.device)
        with run.precision.context(run.device):
            losses = run.model.token_losses(x, y, loss_mask)
        total += float(losses.cpu().sum(dtype=torch.float64))  # MPS has no float64
        run.on_batch(done + i, 2 * len(batches))
    return total


# By the setting optimizer: what computes the loss of a step, and updates the weights.
LOW_MEMORY_LOSSES = {"lomo": update_in_backward, "mezo": update_by_two_losses}


def check_low_memory(settings, processes):
    """Raise UserError for settings that LOMO or MeZO cannot have; set grad_clip to 0 where it was not given.

    processes: their number.
    """
    name = settings.optimizer
    if name not in LOW_MEMORY_LOSSES:
        return
    if settings.fsdp:
        raise UserError(f"optimizer {name} does not go with fsdp; leave that out, or take --optimizer=adamw")
    if settings.grad_clip and "grad_clip" in settings.given:
        why = "never has all gradients together" if name == "lomo" else "computes no gradients"
        raise UserError(f"optimizer {name} {why}, so it cannot clip their norm: give --grad_clip=0")
    settings.grad_clip = 0.0
    if name == "mezo":
        return
    if settings.gradient_accumulation_steps > 1:
        raise UserError(
            f"optimizer lomo updates at each backward pass, and gradient_accumulation_steps is "
            f"{settings.gradient_accumulation_steps}: give 1, or take --optimizer=adamw"
        )
    if processes > 1:
        raise UserError(
            f"optimizer lomo trains in one process, here are {processes}: start it without torchrun, or take "
            "--optimizer=mezo or adamw"
        )
    if settings.dtype == "float16":
        raise UserError("optimizer lomo does not go with float16 and its loss scaler; take --dtype=bfloat16 or float32")
    if settings.compile == "on":
        raise UserError("optimizer lomo does not go with compile=on: compiled code computes all gradients at once")
