"""Several adapters on one base, mixed in one batch: each row of a pass has the adapter of its own model.

A layer with LoRA adapters computes

    y = W x + B (m * A x),

where A (R, in) has the rows of all adapters' A, B (out, R) the columns of all adapters' scale · B, and m (R,) is 1 at
those of the row's own adapter and 0 elsewhere. So any number of adapters takes two products and one multiplication, and
no matrix is copied for a row. It is exact, since the other adapters add zeros. DoRA multiplies each row of y by its own
factors. Bottlenecks are joined in the same way: all `down`, the mask behind the activation, all `up`. (Punica, Chen et
al. 2023, and S-LoRA, Sheng et al. 2023, gather each row's A and B by kernels of their own.)
"""

import copy
from itertools import accumulate

import torch
from torch import nn
from torch.nn import functional as F

from minigpt.adapters.bottleneck import Bottleneck
from minigpt.adapters.lora import LoRALinear, block_matrices


def share_layers(model):
    """A GPT with modules of its own that contain the same layers (of linear maps, embeddings, norms) as `model`."""
    layers = (module for module in model.modules() if not any(module.children()))
    return copy.deepcopy(model, {id(each): each for each in (*layers, *model.parameters())})


class AdapterMix:
    """GPTs that share the layers of one base and differ by their adapters, as one GPT.

    models: the GPTs, in eval mode; model: a GPT that computes, for each row of a pass, what the row's own model would.
    `choose` says which model that is. Virtual tokens are not a part of it, since only the cache has them.
    """

    @torch.no_grad()
    def __init__(self, models):
        self.model = share_layers(models[0])
        self.model.virtual = None
        self.numbers = None  # of the model of each row, the last time that they differed
        self.layers = []
        for weight in block_matrices(models[0].config):
            name = weight.name.removesuffix(".weight")
            layers = [model.get_submodule(name) for model in models]
            if any(isinstance(layer, (LoRALinear, Bottleneck)) for layer in layers):
                self.layers.append(MixedLinear(layers))
                self.model.set_submodule(name, self.layers[-1])

    def choose(self, numbers):
        """Set the models of the rows of the next pass, by their numbers in `models`."""
        number = numbers[0] if len(set(numbers)) == 1 else None
        for layer in self.layers:
            layer.number = number
        if number is None and list(numbers) != self.numbers:
            self.numbers = list(numbers)
            rows = torch.tensor(numbers, device=self.model.wte.weight.device)
            for layer in self.layers:
                layer.choose(rows)


class MixedLinear(nn.Module):
    """A linear layer `base` with the adapters of several models: x (B, T, in) -> (B, T, out).

    layers: for each model its adapter's layer, or the base where it has none. number: of the model of all rows of x;
    None: `choose` has set that of each row.
    """

    def __init__(self, layers):
        super().__init__()
        self.base = next(getattr(layer, "base", layer) for layer in layers)
        self.number = 0
        self.kinds = []
        if any(isinstance(layer, LoRALinear) for layer in layers):
            self.kinds.append(MixedUpdates(layers, self.base.bias))
        if any(isinstance(layer, Bottleneck) for layer in layers):
            self.kinds.append(MixedBottlenecks(layers))

    def choose(self, numbers):
        """Set the model of each row of the next passes: numbers (B,)."""
        for kind in self.kinds:
            kind.choose(numbers)

    @torch.no_grad()
    def forward(self, x):
        y = self.base(x)
        for kind in self.kinds:
            y = kind.change(x, y, self.number)
        return y


class MixedUpdates:
    """The updates of LoRA and DoRA of several models to a matrix; layers: as in `MixedLinear`; bias: the matrix's own.

    a (R, in), b (R, out): the adapters' A and transposed scale · B, R ranks in all; own (models, R): 1 at each model's
    ranks; factors (models, out): DoRA's, or None.
    """

    def __init__(self, layers, bias):
        self.bias = bias
        found = [layer for layer in layers if isinstance(layer, LoRALinear)]
        pairs = [(layer.scale, *layer.factors()) for layer in found]
        self.a = torch.cat([a for _, a, _ in pairs])
        self.b = torch.cat([scale * b.T for scale, _, b in pairs])
        ranks = [len(layer.lora_a) if layer in found else 0 for layer in layers]
        self.spans, self.own = spans_of(ranks), ownership(ranks).to(self.a)
        factors = [getattr(layer, "row_factors", None) for layer in layers]
        ones = self.a.new_ones(self.b.shape[1])
        has_factors = any(each is not None for each in factors)
        self.factors = torch.stack([ones if f is None else f for f in factors]) if has_factors else None

    def choose(self, numbers):
        """As in `MixedLinear`."""
        self.row_ranks = self.own[numbers][:, None]
        self.row_factors = None if self.factors is None else self.factors[numbers][:, None]

    def change(self, x, y, number):
        """y (B, T, out), the matrix's output for x (B, T, in), with the updates."""
        factors = self.factors
        if factors is not None:
            factors = self.row_factors if number is None else factors[number]
            y = y if self.bias is None else y - self.bias
        if number is None:
            y = torch.addmm(y.flatten(0, -2), (F.linear(x, self.a) * self.row_ranks).flatten(0, -2), self.b).view_as(y)
        elif (span := self.spans[number]).start < span.stop:
            y = torch.addmm(y.flatten(0, -2), F.linear(x, self.a[span]).flatten(0, -2), self.b[span]).view_as(y)
        if factors is not None:
            y = y * factors if self.bias is None else y * factors + self.bias
        return y


class MixedBottlenecks:
    """The bottlenecks of several models behind a matrix; layers: as in `MixedLinear`.

    down, up (M, out), down_bias (M,): of all bottlenecks, M wide together; up_bias (models, out); own (models, M): 1 at
    each model's own.
    """

    def __init__(self, layers):
        found = [layer if isinstance(layer, Bottleneck) else None for layer in layers]
        widths = [len(layer.down.weight) if layer else 0 for layer in found]
        there = [layer for layer in found if layer]
        self.spans, like = spans_of(widths), there[0].up.bias
        self.down = torch.cat([layer.down.weight for layer in there])
        self.down_bias = torch.cat([layer.down.bias for layer in there])
        self.up = torch.cat([layer.up.weight.T for layer in there])
        self.up_bias = torch.stack([layer.up.bias if layer else torch.zeros_like(like) for layer in found])
        self.own = ownership(widths).to(like)

    def choose(self, numbers):
        """As in `MixedLinear`."""
        self.row_widths, self.row_bias = self.own[numbers][:, None], self.up_bias[numbers][:, None]

    def change(self, x, y, number):
        """y (B, T, out), the output of what is before, with the bottlenecks."""
        if number is None:
            inner = F.gelu(F.linear(y, self.down, self.down_bias)) * self.row_widths
            return y + (inner @ self.up + self.row_bias)
        span = self.spans[number]
        if span.stop == span.start:
            return y
        inner = F.gelu(F.linear(y, self.down[span], self.down_bias[span]))
        return y + (inner @ self.up[span] + self.up_bias[number])


def spans_of(sizes):
    """Slices of these sizes, one after the other."""
    return [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]


def ownership(sizes):
    """(len(sizes), sum(sizes)): 1 in row i at the places of the i-th of spans of these sizes, else 0."""
    return torch.block_diag(*(torch.ones(1, size) for size in sizes))
