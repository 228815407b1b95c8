"""Optimizers, their parameter groups, and the learning-rate schedule."""

import math

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

MUON_MOMENTUM = 0.95
# The quintic that drives singular values towards 1, and its number of steps (Jordan et al. 2024).
QUINTIC, QUINTIC_STEPS = (3.4445, -4.7750, 2.0315), 5
GRAM_RATIO = 2  # columns a row from which on steps on the Gram matrix alone take fewer operations


def orthogonalize(matrices, dtype):
    """Nearest semi-orthogonal matrices, roughly, of matrices (n, rows, columns), computed in `dtype`.

    Newton-Schulz iteration of Jordan et al. 2024, "Muon"; singular values come out between 0.7 and 1.2.
    """
    upright = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if upright else matrices).to(dtype).contiguous()  # a transposed view would be copied each time
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = QUINTIC
    if dtype == torch.float32 and x.shape[2] >= GRAM_RATIO * x.shape[1]:
        x = quintics_of_gram(x @ x.mT) @ x
        return x.mT if upright else x
    for _ in range(QUINTIC_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if upright else x


def quintics_of_gram(gram):
    """The product P (n, rows, rows) of all steps' polynomials, where `orthogonalize` gives P x and gram is x x^T.

    A step multiplies x by q = a + b gram + c gram^2, and the Gram matrix by q^2: so nothing as wide as x is
    touched until the end, which for an x four times as wide as high takes half the operations. Squaring loses small
    singular values in bfloat16, so this is for float32.
    """
    a, b, c = QUINTIC
    product = None
    for step in range(QUINTIC_STEPS):
        q = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        q.diagonal(dim1=1, dim2=2).add_(a)
        product = q if product is None else q @ product
        if step < QUINTIC_STEPS - 1:
            gram = q @ (q @ gram)
    return product


class Muon(torch.optim.Muon):
    """torch's Muon with two differences: the orthogonalization runs in a type of choice, since torch's
    bfloat16 takes seconds a step on a CPU that has none, and matrices of one shape go through it together.
    """

    def __init__(self, params, dtype, lr, momentum, weight_decay):
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            together = {}  # a tall matrix stands with the wide ones that have its sides
            for p in group["params"]:
                if p.grad is not None:
                    # Only a whole matrix can be made orthogonal: those that are sharded are gathered one by one.
                    key = id(p) if isinstance(p, DTensor) else tuple(sorted(p.shape))
                    together.setdefault(key, []).append(p)
            for params in together.values():
                updates = [self._nesterov(p, group["momentum"]) for p in params]
                updates = [u.full_tensor() if isinstance(u, DTensor) else u for u in updates]
                wide = torch.stack([u.mT if u.shape[0] > u.shape[1] else u for u in updates])
                for p, update in zip(params, orthogonalize(wide, self.dtype), strict=True):
                    self._apply(p, update.mT if p.shape[0] > p.shape[1] else update, group)

    def _apply(self, p, update, group):
        """Decay a matrix and add its orthogonal update, scaled as in Jordan et al."""
        if isinstance(p, DTensor):
            update = distribute_tensor(update.to(p.dtype).contiguous(), p.device_mesh, p.placements, src_data_rank=None)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(update, alpha=-group["lr"] * math.sqrt(max(1.0, p.shape[0] / p.shape[1])))

    def _nesterov(self, p, momentum):
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p.grad)
        buffer = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(buffer, momentum)


def make_optimizers(model, settings, fused=False, muon_dtype=torch.bfloat16):
    """List of optimizers for a GPT's parameters: [AdamW], or [AdamW, Muon].

    Weight decay is on matrices only, as in nanoGPT. Muon takes the matrices of the blocks; embeddings, which
    are looked up and not multiplied, stay with AdamW.
    Each group bears "peak_lr", which `set_learning_rate` scales.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    by_muon = [p for n, p in named if p.dim() == 2 and n.startswith("h.")] if settings.optimizer == "muon" else []
    taken = {id(p) for p in by_muon}
    rest = [p for _, p in named if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    lr = settings.learning_rate
    optimizers = [torch.optim.AdamW(groups, lr=lr, betas=(settings.beta1, settings.beta2), fused=fused)]
    if by_muon:
        rate, decay = settings.muon_learning_rate, settings.weight_decay
        optimizers.append(Muon(by_muon, muon_dtype, lr=rate, momentum=MUON_MOMENTUM, weight_decay=decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def lr_scale(step, max_iters, settings):
    """Share of the peak learning rate at a step: linear warm-up, then cosine decay to min_lr_ratio."""
    warmup = min(settings.warmup_iters, max_iters // 2)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if not settings.decay_lr:
        return 1.0
    done = (step - warmup) / max(1, max_iters - warmup)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return settings.min_lr_ratio + (1.0 - settings.min_lr_ratio) * cosine


def set_learning_rate(optimizers, scale):
    """Give every group `scale` of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * scale
