"""The compute type of a model that generates: float32, bfloat16, or int8 weights on a CPU.

int8: weights rounded to eight bits with a scale for each output, and the inputs of each product rounded row by row
(dynamic quantization: LLM.int8(), Dettmers et al. 2022, without its outliers). The products are oneDNN's, through
the operator that torch's own quantization is lowered to; where a processor computes them wrongly (sums that
saturate, before VNNI) or not at all, torch's product of float rows and int8 weights takes their place.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from decoding import Decoder
from device import fastest_of
from errors import UserError

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}
LEVELS = 127  # -128 is left out, so that both signs have one scale
RIGHT_WITHIN = 0.03  # of the largest output: rounding rows makes 0.01, saturated sums far more
WORTH_ROUNDING = 1.2  # times as fast as float32
TIMED_ROWS = 16
FEW_ROWS = 8  # for which torch's product with int8 weights is faster than one with float weights made of them


class Int8Weights(nn.Module):
    """A linear layer's weights in int8, and the simple product with them: weights made float again for each call.

    x (..., in_features) of any float type -> (..., out_features) of that type.
    """

    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(dim=1) / LEVELS).clamp_min(torch.finfo(torch.float32).tiny)
        self.register_buffer("scale", scale)
        self.register_buffer("levels", (weight / scale[:, None]).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x):
        return self.biased(F.linear(x, (self.levels * self.scale[:, None]).to(x.dtype)))

    def biased(self, y):
        """y (..., out_features) with the bias, in y's type."""
        return y if self.bias is None else y + self.bias.to(y.dtype)


class Int8WeightOnly(Int8Weights):
    """Torch's product of bfloat16 rows and int8 weights; any processor, fast for a few rows."""

    def __init__(self, linear):
        super().__init__(linear)
        self.register_buffer("bf16_scale", self.scale.bfloat16())

    def forward(self, x):
        rows = x.flatten(0, -2)
        if len(rows) > FEW_ROWS:
            return super().forward(x)
        y = torch._weight_int8pack_mm(rows.bfloat16(), self.levels, self.bf16_scale).to(x.dtype)
        return self.biased(y.unflatten(0, x.shape[:-1]))


class Int8Dynamic(Int8Weights):
    """oneDNN's product of int8 rows and int8 weights, packed for it."""

    def __init__(self, linear):
        super().__init__(linear)
        with torch.no_grad():
            self.register_buffer("packed", torch.ops.onednn.qlinear_prepack(self.levels, None))
        self.register_buffer("zero_points", torch.zeros(len(self.levels), dtype=torch.int32))
        del self.levels

    def forward(self, x):
        rows = x.flatten(0, -2).float()
        # A row's scale is in its sums alone, so it can be left out of the product (x_scale 1) and put in behind.
        # The least scale is a normal number: compiled code may take smaller ones for zero, and a row of zeros with it.
        scale = (rows.abs().amax(dim=1, keepdim=True) / LEVELS).clamp_min(torch.finfo(torch.float32).tiny)
        levels = (rows / scale).round().to(torch.int8)
        y = torch.ops.onednn.qlinear_pointwise(
            levels, 1.0, 0, self.packed, self.scale, self.zero_points, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return self.biased((y * scale).to(x.dtype).unflatten(0, x.shape[:-1]))


def pick_product(linear):
    """The class of int8 products that is right on this processor, on one of its layers."""
    x = torch.randn(4, linear.in_features, generator=torch.Generator().manual_seed(0)) * 3
    expected = F.linear(x, linear.weight.detach().float())
    largest = torch.full_like(x, LEVELS)  # the sums that saturate first
    most = nn.Linear(linear.in_features, 64, bias=False)
    nn.init.constant_(most.weight, 1.0)
    try:
        error = (Int8Dynamic(linear)(x) - expected).abs().max() / expected.abs().max()
        saturates = not torch.allclose(Int8Dynamic(most)(largest), most(largest), rtol=RIGHT_WITHIN)
    except (RuntimeError, AttributeError):  # torch without oneDNN, a processor without the kernel
        return Int8WeightOnly
    return Int8WeightOnly if error > RIGHT_WITHIN or saturates else Int8Dynamic


@torch.no_grad()
def set_precision(model, name):
    """Put a GPT's weights into a precision (a key of PRECISIONS), in place; returns the model.

    The table of embeddings stays float under int8: only a row of it is read a token.
    """
    if name != "int8":
        return model.to(PRECISIONS[name])
    if model.wte.weight.device.type != "cpu":
        raise UserError("int8 is for generation on a CPU; on a card take --precision=bf16")
    model.float()
    product = pick_product(model.h[0].mlp.c_fc)
    for parent in list(model.modules()):
        for child, layer in parent.named_children():
            if isinstance(layer, nn.Linear):
                setattr(parent, child, product(layer))
    return model


def prepare(model, name):
    """(model in the precision of the setting, its name, why); the model's own weights may be changed.

    "auto": on cards that compute in bfloat16 that, on other cards float32, on a CPU what a step runs fastest in.
    """
    device = model.wte.weight.device
    if name != "auto":
        return set_precision(model, name), name, "as set"
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return set_precision(model, "bf16"), "bf16", "this card computes in it"
    if device.type != "cpu":
        return set_precision(model, "float32"), "float32", f"the default on {device.type}"
    tried = {name: set_precision(copy.deepcopy(model), name) for name in PRECISIONS if name != "float32"}
    tried = {"float32": set_precision(model, "float32"), **tried}
    decoders = {name: Decoder(each, TIMED_ROWS) for name, each in tried.items()}
    with torch.no_grad():
        for decoder in decoders.values():
            decoder.prefill([[0]] * TIMED_ROWS)
        picked, times = fastest_of(list(tried), lambda name: steps(decoders[name]))
    if picked == "float32":
        return tried[picked], picked, "timed: the fastest"
    if times < WORTH_ROUNDING:
        return tried["float32"], "float32", f"timed: {picked} is no more than {times:.2f} times as fast"
    return tried[picked], picked, f"timed: {times:.2f} times as fast as float32"


def steps(decoder):
    """A step of one row and one of TIMED_ROWS, for timing: some products are fast for few rows only."""
    for decoder.n in (1, TIMED_ROWS):
        decoder.step([0] * decoder.n, [1] * decoder.n)
