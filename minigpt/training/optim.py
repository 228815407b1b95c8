"""Optimizers, their parameter groups, and the learning-rate schedule."""

import math

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from minigpt.common.errors import first_line
from minigpt.device import is_out_of_memory
from minigpt.training.distributed import local_part
from minigpt.training.low_memory import LOW_MEMORY_LOSSES, make_low_memory_optimizer

MUON_MOMENTUM = 0.95
# Coefficients of the quintic iteration that moves singular values towards 1, and its steps (Jordan et al. 2024).
QUINTIC = (3.4445, -4.7750, 2.0315)
QUINTIC_STEPS = 5
MAX_STACKED_NUMBERS = 2**26  # in the matrices that are orthogonalized together, which limits the memory that it takes
MIN_GRAM_ASPECT = 2  # columns / rows from which iterating on the Gram matrix takes fewer FLOPs


def orthogonalize(matrices, dtype):
    """Approximate the nearest semi-orthogonal matrices of matrices (n, rows, columns), computing in `dtype`.

    Newton-Schulz iteration of Muon (Jordan et al. 2024). The resulting singular values are between 0.7 and 1.2.
    Returns (n, rows, columns).
    """
    # Iterate on matrices that are wider than tall, with spectral norms of at most 1.
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(dtype).contiguous()  # products would copy a transposed view each time
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = QUINTIC
    if dtype == torch.float32 and x.shape[2] >= MIN_GRAM_ASPECT * x.shape[1]:
        x = iterate_on_gram(x @ x.mT) @ x
        return x.mT if tall else x
    for _ in range(QUINTIC_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def iterate_on_gram(gram):
    """The product P (n, rows, rows) of the polynomials of all steps, so that `orthogonalize` returns P x.

    gram: x x^T (n, rows, rows). A step multiplies x by q = a + b gram + c gram^2, and gram by q^2. So the steps need x
    only at the end, which halves the FLOPs for matrices four times as wide as tall. Squaring loses small singular
    values in bfloat16, so this is for float32.
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


class LocalAdamW(torch.optim.AdamW):
    """torch's AdamW, which updates the local part of a divided parameter: a plain tensor, as are the undivided ones.
    torch's kernels for many parameters take no mixture, and each number is updated by itself anyway."""

    def _init_group(self, group, *lists):
        result = super()._init_group(group, *lists)
        for tensors in lists[:4]:  # parameters, gradients and both moments
            tensors[:] = map(local_part, tensors)
        return result


class Muon(torch.optim.Muon):
    """torch's Muon with three differences.

    The dtype of the orthogonalization can be chosen, since torch's bfloat16 takes seconds per step on a CPU without
    bfloat16 instructions. Matrices of equal shape are orthogonalized in one batch, which `compile` can compile. The
    rest of a step is done by torch's operations on lists, which a GPU runs as a few kernels for all matrices.
    """

    def __init__(self, params, dtype, lr, momentum, weight_decay):
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.dtype = dtype
        self.orthogonalize = orthogonalize

    def compile(self, processes, say=print):
        """Compile the orthogonalization, with one graph for each shape of a stack, and try it on all of them.

        Where it fails in one of the processes (a `Processes`), all use the plain code, and a line says why: the
        weights of all must stay the same. Raises UserError where memory runs out.
        """
        compiled, failure = torch.compile(orthogonalize, dynamic=False), None
        try:
            for group in self.param_groups:
                for params in stacks_of(group["params"]):
                    zeros = torch.zeros(len(params), *sorted(params[0].shape), device=params[0].device)
                    with torch.no_grad():
                        compiled(zeros, self.dtype)
        except Exception as error:  # compilers fail in many ways
            if is_out_of_memory(error):
                raise
            failure = first_line(error)
        failure = next(filter(None, processes.gather(failure)), None)
        if failure:
            say(f"note: compiling Muon's orthogonalization failed ({failure}); going on without")
        else:
            self.orthogonalize = compiled

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for params in stacks_of([p for p in group["params"] if p.grad is not None]):
                updates = self._nesterov(params, group["momentum"])
                updates = [u.full_tensor() if isinstance(u, DTensor) else u for u in updates]
                wide = self.orthogonalize(torch.stack([u.mT if is_tall(u) else u for u in updates]), self.dtype)
                wide = wide.to(params[0].dtype)  # lists of two types take torch one kernel a matrix
                # An update must lie in memory as its matrix does, or each of them takes kernels of its own.
                first_tall = sum(not is_tall(p) for p in params)
                if first_tall:
                    self._apply(params[:first_tall], wide[:first_tall], group)
                if first_tall < len(params):
                    self._apply(params[first_tall:], wide[first_tall:].mT.contiguous(), group)

    def _apply(self, params, updates, group):
        """Apply weight decay and orthogonalized updates (n, rows, columns) to n matrices, scaled as in Jordan et al."""
        p, updates = params[0], list(updates)
        if isinstance(p, DTensor):
            updates = [distribute_tensor(updates[0].contiguous(), p.device_mesh, p.placements, src_data_rank=None)]
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, updates, alpha=-group["lr"] * math.sqrt(max(1.0, p.shape[0] / p.shape[1])))

    def _nesterov(self, params, momentum):
        """The gradients of matrices with Nesterov momentum, a list; updates the momentum buffers."""
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
        gradients, buffers = [p.grad for p in params], [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        if isinstance(params[0], DTensor):  # which has no such operation on lists that returns new ones
            return [gradients[0].lerp(buffers[0], momentum)]
        return torch._foreach_lerp(gradients, buffers, momentum)


def is_tall(matrix):
    """Whether a matrix has more rows than columns."""
    return matrix.shape[0] > matrix.shape[1]


def stacks_of(params):
    """Lists of the matrices that are orthogonalized together: of one shape, up to transposition, the tall ones last,
    and of at most MAX_STACKED_NUMBERS. A sharded matrix is gathered, so it is a list of its own: only one of them at a
    time is in memory as a whole."""
    by_shape = {}
    for p in params:
        by_shape.setdefault(id(p) if isinstance(p, DTensor) else tuple(sorted(p.shape)), []).append(p)
    for alike in by_shape.values():
        alike.sort(key=is_tall)
        size = max(1, MAX_STACKED_NUMBERS // alike[0].numel())
        yield from (alike[first : first + size] for first in range(0, len(alike), size))


def make_optimizers(model, settings, fused=False, muon_dtype=torch.bfloat16, module=None):
    """The optimizers of a GPT's parameters: [AdamW], [AdamW, Muon], [Lomo] or [Mezo], by the setting optimizer.

    Weight decay applies to matrices only, as in nanoGPT. Muon updates the matrices of the blocks; embeddings, which
    are looked up and not multiplied, stay with AdamW, and so does a task's output layer, at a rate of its own. Where
    nothing is left for AdamW, there is none. fused: AdamW's fused kernels; muon_dtype: dtype of the
    orthogonalization; module: one that trains beside the model, as an output layer does. Each parameter group has the
    entry "peak_lr", which `set_learning_rate` scales.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    by_muon = [p for n, p in named if p.dim() == 2 and n.startswith("h.")] if settings.optimizer == "muon" else []
    heads = [model.lm_head.weight] if model.config.n_labels else []
    heads += module.parameters() if module else []
    apart = {id(p) for p in by_muon + heads}
    rest = [p for _, p in named if id(p) not in apart]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    if heads:
        groups.append({"params": heads, "weight_decay": settings.weight_decay, "lr": settings.head_learning_rate})
    optimizers = []
    if settings.optimizer in LOW_MEMORY_LOSSES:
        optimizers = [make_low_memory_optimizer(groups, settings)]
    elif rest or heads:
        betas = (settings.beta1, settings.beta2)
        optimizers = [LocalAdamW(groups, settings.learning_rate, betas, fused=fused)]
    if by_muon:
        lr = settings.muon_learning_rate
        optimizers.append(Muon(by_muon, muon_dtype, lr, MUON_MOMENTUM, settings.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def compile_muon(optimizers, processes, say=print):
    """Compile what can be compiled of the optimizers that `make_optimizers` returned: see `Muon.compile`."""
    for optimizer in optimizers:
        if isinstance(optimizer, Muon):
            optimizer.compile(processes, say)


def lr_scale(step, max_iters, settings):
    """Learning rate at a step, relative to its peak: linear warm-up, then linear decay to min_lr_ratio.

    A model learns more with it than with a cosine (Bergsma et al. 2025; docs/benchmarks.md).
    """
    warmup = min(settings.warmup_iters, max_iters // 2)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if not settings.decay_lr:
        return 1.0
    done = (step - warmup) / max(1, max_iters - warmup)
    return settings.min_lr_ratio + (1.0 - settings.min_lr_ratio) * max(0.0, 1.0 - done)


def set_learning_rate(optimizers, scale):
    """Set the learning rate of every parameter group to `scale` times its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * scale
