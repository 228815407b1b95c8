"""Several adapters on one base, mixed in one batch: each row of a pass has the adapter of its own model.

A layer with LoRA adapters computes

    y = W x + B (m * A x),

where A (R, in) has the rows of all adapters' A, B (out, R) the columns of all adapters' scale · B, and m (R,) is 1 at
those of the row's own adapter and 0 elsewhere. So any number of adapters takes two products and one multiplication, and
no matrix is copied for a row. It is exact, since the other adapters add zeros. DoRA multiplies each row of y by its own
factors. (Punica, Chen et al. 2023, and S-LoRA, Sheng et al. 2023, gather each row's A and B by kernels of their own.)
"""

import copy
from itertools import accumulate

import torch
from torch import nn
from torch.nn import functional as F

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

    def __init__(self, models):
        self.model = share_layers(models[0])
        self.model.virtual = None
        self.numbers = None  # of the model of each row, the last time that they differed
        self.layers = []
        for weight in block_matrices(models[0].config):
            name = weight.name.removesuffix(".weight")
            layers = [model.get_submodule(name) for model in models]
            if any(isinstance(layer, LoRALinear) for layer in layers):
                self.layers.append(MixedLinear(layers, weight.rows))
                self.model.set_submodule(name, self.layers[-1])

    def choose(self, numbers):
        """Set the models of the rows of the next pass, by their numbers in `models`."""
        number = numbers[0] if len(set(numbers)) == 1 else None
        for layer in self.layers:
            layer.number = number
        if number is None and numbers != self.numbers:
            self.numbers = list(numbers)
            for layer in self.layers:
                layer.choose(torch.tensor(numbers, device=layer.a.device))


class MixedLinear(nn.Module):
    """A linear layer `base` with the adapters of several models: x (B, T, in) -> (B, T, out).

    layers: for each model its adapter's layer, or the base where it has none; rows: the output rows of each part of the
    matrix, as in `LoRALinear`. number: of the model of all rows of x; None: `choose` has set that of each row.

    a (R, in): the adapters' A, part by part; b: for each part the adapters' scale · B, transposed (R and out of the
    part); own (models, R): 1 at each model's ranks; scales (models, out): DoRA's factors, or None.
    """

    def __init__(self, layers, rows):
        super().__init__()
        self.base = next(getattr(layer, "base", layer) for layer in layers)
        self.rows, self.number, self.mask = rows, 0, None
        like = next(layer.lora_a for layer in layers if isinstance(layer, LoRALinear))
        pairs = list(zip(*(low_rank_parts(layer, rows, like) for layer in layers), strict=True))  # part by part
        self.ranks = [sum(len(a) for a, _ in part) for part in pairs]
        self.spans = [spans_of([len(a) for a, _ in part]) for part in pairs]
        self.a = torch.cat([a for part in pairs for a, _ in part])
        self.b = [torch.cat([b.T for _, b in part]) for part in pairs]
        numbers = [number for part in pairs for number, (a, _) in enumerate(part) for _ in a]
        self.own = F.one_hot(torch.tensor(numbers), len(layers)).T.to(self.a)
        factors = [getattr(layer, "row_factors", None) for layer in layers]
        self.scales = self.row_scales = None
        if any(each is not None for each in factors):
            ones = self.a.new_ones(sum(rows))
            self.scales = torch.stack([ones if each is None else each for each in factors])

    def choose(self, numbers):
        """Set the model of each row of the next passes: numbers (B,)."""
        self.mask = self.own[numbers][:, None]
        if self.scales is not None:
            self.row_scales = self.scales[numbers][:, None]

    @torch.no_grad()
    def forward(self, x):
        y = self.base(x)
        bias = self.base.bias
        if self.scales is not None and bias is not None:
            y -= bias
        outputs = y.flatten(0, -2).split(self.rows, dim=1)
        if self.number is None:
            scales = self.row_scales
            low = (F.linear(x, self.a) * self.mask).flatten(0, -2).split(self.ranks, dim=1)
            for output, part, b in zip(outputs, low, self.b, strict=True):
                output.addmm_(part, b)
        else:
            scales = None if self.scales is None else self.scales[self.number]
            x = x.flatten(0, -2)
            for output, a, b, spans in zip(outputs, self.a.split(self.ranks), self.b, self.spans, strict=True):
                span = spans[self.number]
                if span.stop > span.start:
                    output.addmm_(F.linear(x, a[span]), b[span])
        if scales is not None:
            y *= scales
            if bias is not None:
                y += bias
        return y


def spans_of(sizes):
    """Slices of these sizes, one after the other."""
    return [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]


def low_rank_parts(layer, rows, like):
    """[(A (r, in), scale · B (rows of the part, r))] for each part of a layer's matrix; r is 0 where it has no update.

    like (…, in): a tensor of the same width, type and device.
    """
    parts = [(like.new_empty(0, like.shape[1]), like.new_empty(n, 0)) for n in rows]
    if not isinstance(layer, LoRALinear):
        return parts
    a, _ = layer.factors()
    own = zip(a.split(layer.rank), (layer.scale * layer.lora_b).split(layer.chosen_rows), strict=True)
    return [next(own) if is_chosen else none for none, is_chosen in zip(parts, layer.chosen, strict=True)]
