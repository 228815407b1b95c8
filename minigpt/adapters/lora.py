"""LoRA (Hu et al. 2021): trained low-rank updates of frozen matrices; DoRA (Liu et al. 2024) and AdaLoRA's form.

    LoRA     y = W x + s B A x                 A (r, in), B (out, r), r small; W is frozen            (Hu, eq. 3)
    DoRA     y = m / ||W + s B A|| (W + s B A) x       m (out,), the norms are those of rows          (Liu, eq. 5)
    AdaLoRA  y = W x + s P diag(e) Q x         Q in A's place, P in B's, e (r,)                       (Zhang, eq. 3)

B is zero at the start (in AdaLoRA e), so that the model begins as its base.

The scale s is alpha / r in the paper, in peft and here: a larger rank then needs no other learning rate. Two other
forms exist: alpha alone (which is ours with alpha · r), and alpha / sqrt(r), with which the update does not shrink as
r grows (rsLoRA, Kalajdzievski 2023; ours with alpha · sqrt(r)).

A is Gaussian with standard deviation 1 / sqrt(r), so that A x has about the norm of x; or uniform between
-1 / sqrt(in) and 1 / sqrt(in), as in peft (Kaiming with a = sqrt(5)), which is smaller.
"""

import math
from itertools import compress

import torch
from torch import nn
from torch.nn import functional as F

from minigpt.common.errors import UserError
from minigpt.formats.weights import weight_table

# What the setting `matrices` calls the matrices of a block, by the ends of their names in Hugging Face's models.
MATRIX_NAMES = {
    "attn.c_attn": ("q", "k", "v"), "attn.c_proj": ("o",), "mlp.c_fc": ("up",), "mlp.c_proj": ("down",),
    "self_attn.q_proj": ("q",), "self_attn.k_proj": ("k",), "self_attn.v_proj": ("v",), "self_attn.o_proj": ("o",),
    "mlp.gate_proj": ("gate",), "mlp.up_proj": ("up",), "mlp.down_proj": ("down",),
}  # fmt: skip


class LoRALinear(nn.Module):
    """A frozen linear layer `base` with a low-rank update: x (..., in) -> (..., out).

    rows: output rows of each part of the base's matrix (c_attn of qwen3 has three: q, k and v); chosen: which of them
    are updated, a bool each. Each chosen part has its own A and B.

    lora_a (parts · r, in), lora_b (rows of the chosen parts, r), for DoRA magnitude (rows of the chosen parts,), for
    AdaLoRA lora_e (parts · r,).
    """

    def __init__(self, base, rows, chosen, config):
        super().__init__()
        self.base, self.rows, self.chosen = base, rows, chosen
        self.rank, self.scale, self.dropout = config.rank, config.alpha / config.rank, config.lora_dropout
        weight = base.weight
        self.chosen_rows = list(compress(rows, chosen))
        self.lora_a = nn.Parameter(weight.new_empty(len(self.chosen_rows) * self.rank, weight.shape[1]))
        self.lora_b = nn.Parameter(weight.new_zeros(sum(self.chosen_rows), self.rank))
        self.lora_e = self.magnitude = None
        self.register_buffer("row_factors", None, persistent=False)
        if config.adalora_rank:
            self.lora_e = nn.Parameter(weight.new_zeros(len(self.lora_a)))
            # Rows of Q and columns of P have norms of about 1, as the orthogonality that AdaLoRA asks for has.
            nn.init.normal_(self.lora_a, std=weight.shape[1] ** -0.5)
            for part in self.lora_b.data.split(self.chosen_rows):
                nn.init.normal_(part, std=len(part) ** -0.5)
        elif config.lora_init == "kaiming":
            nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        else:
            nn.init.normal_(self.lora_a, std=self.rank**-0.5)
        if config.dora:
            norms = torch.linalg.vector_norm(weight.detach(), dim=1).split(rows)
            self.magnitude = nn.Parameter(torch.cat(list(compress(norms, chosen))))
        self.train(base.training)

    def train(self, mode=True):
        """As in nn.Module. In eval mode DoRA's norms are those of the moment of this call."""
        super().train(mode)
        if self.magnitude is not None and hasattr(self.base, "weight"):  # an int8 base has none, and keeps the norms
            self.row_factors = None if mode else self.compute_row_factors().detach()
        return self

    def factors(self):
        """(A (parts · r, in), B (out, parts · r)), so that the update of W is scale · B A.

        B has a block for each part, and zeros elsewhere: one product is faster than one for each part.
        """
        a = self.lora_a if self.lora_e is None else self.lora_a * self.lora_e[:, None]
        if len(self.rows) == 1:
            return a, self.lora_b
        return a, torch.block_diag(*self.fill_parts(self.lora_b, [self.lora_b.new_empty(n, 0) for n in self.rows]))

    def fill_parts(self, tensor, others):
        """`others`, a list of a tensor for each part, in which those of the chosen parts are replaced by `tensor`'s."""
        parts = iter(tensor.split(self.chosen_rows))
        return [next(parts) if is_chosen else other for other, is_chosen in zip(others, self.chosen, strict=True)]

    def updated_weight(self):
        """W + scale · B A (out, in), without DoRA's magnitudes."""
        a, b = self.factors()
        return torch.addmm(self.base.weight, b, a, alpha=self.scale)

    def compute_row_factors(self):
        """DoRA's m / ||W + s B A|| (out,); 1 for rows that are not updated.

        No gradient flows through the norms (Liu et al. 2024, section 4.3).
        """
        with torch.no_grad():
            norms = torch.linalg.vector_norm(self.updated_weight(), dim=1)
        return torch.cat(self.fill_parts(self.magnitude, norms.split(self.rows))) / norms

    def forward(self, x):
        y = self.base(x)
        a, b = self.factors()
        low = F.linear(F.dropout(x, self.dropout, self.training), a)
        if self.magnitude is None:
            return self.add_update(y, low, b)
        factors = self.compute_row_factors() if self.row_factors is None else self.row_factors
        bias = self.base.bias
        if bias is None:
            return self.add_update(y, low, b) * factors.to(y.dtype)
        return self.add_update(y - bias, low, b) * factors.to(y.dtype) + bias

    def add_update(self, y, low, b):
        """y (..., out) + scale · low (..., parts · r) b^T, in y's type."""
        return torch.addmm(y.flatten(0, -2), low.flatten(0, -2), b.T, alpha=self.scale).view_as(y)

    @torch.no_grad()
    def merged(self):
        """A plain nn.Linear with the updated weight."""
        weight = self.updated_weight()
        if self.magnitude is not None:
            weight *= self.compute_row_factors()[:, None]
        return linear_of(weight, self.base.bias)


def linear_of(weight, bias):
    """An nn.Linear with the tensors weight (out, in) and bias (out,) or None, which are not copied."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight)
    linear.bias = bias
    return linear


def block_matrices(config):
    """The `Weight` of each matrix of a GPT's blocks, in the order of its layers."""
    return [w for w in weight_table(config) if w.name.startswith("h.") and matrix_names(w.theirs[0])]


def matrix_names(their_name):
    """What the setting `matrices` calls a matrix of Hugging Face's models: ("q", "k", "v") of GPT-2's c_attn; () for
    what is no matrix."""
    module = their_name.removesuffix(".weight")
    return MATRIX_NAMES.get(".".join(module.split(".")[-2:]), ()) if module != their_name else ()


def chosen_parts(weight, matrices):
    """A bool for each part of a `Weight`: whether the setting `matrices` names it. Raises UserError where it names only
    some of those that are one matrix."""
    chosen = []
    for their_name in weight.theirs:
        names = matrix_names(their_name)
        named = [name in matrices for name in names]
        if any(named) and not all(named):
            raise UserError(
                f"matrices is {','.join(matrices)}, but in gpt2 {', '.join(names)} are one matrix; name all or none"
            )
        chosen.append(all(named))
    return chosen


def check_lora_settings(config):
    """Raise UserError for settings of LoRA that contradict each other."""
    if config.adalora_rank and config.dora:
        raise UserError("dora and adalora_rank do not go together; leave one out")
    if config.adalora_rank > config.rank:
        raise UserError(
            f"adalora_rank ({config.adalora_rank}) is above rank ({config.rank}), which AdaLoRA begins with; "
            "take about two thirds of rank"
        )


def add_lora(model, config):
    """Put a `LoRALinear` in the place of each linear layer of a GPT's blocks that the setting `matrices` names.

    config: an `Adapting`. Matrices that the architecture has not (gpt2: gate) are passed over. Raises UserError.
    """
    check_lora_settings(config)
    pairs = [(w, chosen_parts(w, config.matrices)) for w in block_matrices(model.config)]
    if not any(any(chosen) for _, chosen in pairs):
        raise UserError(f"{model.config.architecture} has no matrix {', '.join(config.matrices)}; see --help: matrices")
    for weight, chosen in pairs:
        if any(chosen):
            name = weight.name.removesuffix(".weight")
            model.set_submodule(name, LoRALinear(model.get_submodule(name), weight.rows, chosen, config))


def merge_lora(model):
    """Replace each `LoRALinear` of a GPT by a plain linear layer with the updated weight, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            model.set_submodule(name, module.merged())
