"""The compute type of a model that generates: float32, bfloat16, float16, or int8 weights on a CPU.

bfloat16, float16: all but the output layer, whose logits would be too coarse (`Float32Output`).
int8: weights rounded to eight bits with a scale for each output, and the inputs of each product rounded row by row
(dynamic quantization: LLM.int8(), Dettmers et al. 2022, without its outliers). The products are oneDNN's, through
the operator that torch's own quantization is lowered to. x86 processors without VNNI add two products in 16 bits,
where full levels saturate; there the weights have seven bits. It could be the inputs instead, but these have the
outliers. Measured on the demo's model, validation part: the predictions diverge from float32's by 0.0006 nats with
weights of seven bits, 0.0008 with inputs of seven (0.0003 with eight and eight); perplexity is 1.003 and 1.000 times
float32's over whole rows, 0.998 and 1.003 token by token. Where torch has no such product, as on Arm Macs, its
product of float rows and int8 weights takes its place.
"""

import copy
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from minigpt.common.errors import UserError
from minigpt.device import bfloat16_is_fast, dtype_by_device, fastest_of
from minigpt.inference.model_runner import ModelRunner

WEIGHT_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.float32}
LEVELS = 127  # -128 is left out, so that both signs have one scale
FEW_LEVELS = 64  # of weights: two products with unsigned inputs, 2 * 255 * 64, are below 2**15
ZERO = 128  # what is added to a row's levels, which makes them unsigned
RIGHT_WITHIN = 0.03  # of the largest output: rounding rows makes 0.01, saturated sums far more
FEW_ROWS = 8  # for which torch's product with int8 weights is faster than one with float weights made of them

WORTH_ROUNDING = 1.2  # times as fast as float32
TIMED_LAYERS, TIMED_ROWS = 2, 16
MOMENT = 10e6  # parameters of what is timed: fewer take less than a second


class Float32Output(nn.Module):
    """An output layer in float32 for states of any float type: (..., C) -> (..., V).

    Logits of 10 to 20 are 0.06 to 0.125 apart in bfloat16, so they are off by up to 0.6 nats at temperature 0.1.
    """

    def __init__(self, linear):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().float(), requires_grad=False)

    def forward(self, x):
        return F.linear(x.float(), self.weight)


class Int8Weights(nn.Module):
    """A linear layer's weights in int8, and the simple product with them: weights made float again for each call.

    x (..., in_features) of any float type -> (..., out_features) of that type. most: the largest level.
    """

    def __init__(self, linear, most=LEVELS):
        super().__init__()
        self.most, weight = most, linear.weight.detach().float()
        scale = (weight.abs().amax(dim=1) / most).clamp_min(torch.finfo(torch.float32).tiny)
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
    """oneDNN's product of int8 rows and int8 weights, packed for it.

    The rows are unsigned, -LEVELS ... LEVELS shifted by ZERO: oneDNN's kernels before VNNI know no others, and
    shift signed ones themselves in every call, which takes five times as long as the product of one row.
    """

    def __init__(self, linear, most=LEVELS):
        super().__init__(linear, most)
        with torch.no_grad():
            self.register_buffer("packed", torch.ops.onednn.qlinear_prepack(self.levels, None))
        # What the shift adds to each sum is known beforehand, and taken off as a bias.
        self.register_buffer("shift", -ZERO * self.levels.sum(dim=1) * self.scale)
        self.register_buffer("zero_points", torch.zeros(len(self.levels), dtype=torch.int32))
        del self.levels

    def forward(self, x):
        rows = x.flatten(0, -2).float()
        # A row's scale is in its sums alone, so it can be left out of the product (x_scale 1) and put in behind.
        # The least scale is a normal number: compiled code may take smaller ones for zero, and a row of zeros with it.
        scale = (rows.abs().amax(dim=1, keepdim=True) / LEVELS).clamp_min(torch.finfo(torch.float32).tiny)
        levels = ((rows / scale).round() + ZERO).to(torch.uint8)
        y = torch.ops.onednn.qlinear_pointwise(
            levels, 1.0, 0, self.packed, self.scale, self.zero_points, self.shift, 1.0, 0, torch.float32, "none", [], ""
        )
        return self.biased((y * scale).to(x.dtype).unflatten(0, x.shape[:-1]))


def pick_product(linear):
    """The most exact int8 product that is right on this processor, as a function of a layer; `linear` is tried."""
    for most in (LEVELS, FEW_LEVELS):
        product = partial(Int8Dynamic, most=most)
        try:
            if is_right(product, linear):
                return product
        except (RuntimeError, AttributeError):  # torch without oneDNN, a processor without the kernel
            break
    return Int8WeightOnly


def is_right(product, linear):
    """Whether an int8 product is near the float one for a layer, and for the sums that saturate first."""
    x = torch.randn(4, linear.in_features, generator=torch.Generator().manual_seed(0)) * 3
    expected = linear(x)
    error = (product(linear)(x) - expected).abs().max() / expected.abs().max()
    largest = torch.full_like(x, LEVELS)
    most = nn.Linear(linear.in_features, 64, bias=False)
    nn.init.constant_(most.weight, 1.0)
    return bool(error <= RIGHT_WITHIN) and torch.allclose(product(most)(largest), most(largest), rtol=RIGHT_WITHIN)


@torch.no_grad()
def convert_weights(model, name):
    """Convert a GPT's weights to a compute type (a key of WEIGHT_TYPES), in place; returns the model.

    Logits are float32 in each. The embedding stays float under int8: only one of its rows is read a token.
    """
    if name == "float32":
        return model.float()
    if name in ("bfloat16", "float16"):
        output = Float32Output(model.lm_head)
        model.to(WEIGHT_TYPES[name]).lm_head = output  # no longer tied to the embedding
        return model
    if model.wte.weight.device.type != "cpu":
        raise UserError("int8 is for generation on a CPU; on a GPU take --dtype=bfloat16")
    model.float()
    product = pick_product(model.h[0].mlp.c_fc)
    for parent in list(model.modules()):
        for child, layer in parent.named_children():
            if isinstance(layer, nn.Linear):
                setattr(parent, child, product(layer))
    return model


def choose_weight_type(model, name, say=print):
    """(model converted to the compute type of the setting dtype, its name, why); its own weights may be changed.

    "auto": what the device decides (`dtype_by_device`), on a CPU what a step runs fastest in.
    say(line): prints what is timed, where that takes more than a moment.
    """
    device, why = model.wte.weight.device, "as set"
    if name == "auto":
        if device.type == "cpu":
            name, why = fastest_weight_type(model, say)
        else:
            name, why = dtype_by_device(device) or ("float32", f"the default on {device.type}")
    return convert_weights(model, name), name, why


@torch.no_grad()
def fastest_weight_type(model, say):
    """(name, why) of the compute type in which a CPU's steps are fastest; the model stays as it is.

    Timed are a few layers and the output layer, which may share its weights; bfloat16 where the processor has it.
    """
    names = ["float32", *(["bfloat16"] if bfloat16_is_fast() else []), "int8"]
    parts = {name: first_layers(model) for name in names}
    if sum(p.numel() for p in parts["float32"].parameters()) > MOMENT:
        say(f"timing a few layers in {', '.join(names[:-1])} and {names[-1]} …")
    runners = {name: ModelRunner(convert_weights(part, name), TIMED_ROWS) for name, part in parts.items()}
    for runner in runners.values():
        runner.prefill([[0]] * TIMED_ROWS)
    picked, times = fastest_of(names, lambda name: time_decode_steps(runners[name]))
    if picked == "float32":
        return picked, "timed: the fastest"
    if times < WORTH_ROUNDING:
        return "float32", f"timed: {picked} is no more than {times:.2f} times as fast"
    return picked, f"timed: {times:.2f} times as fast as float32"


def first_layers(model):
    """A GPT of at most TIMED_LAYERS of a model's layers. It shares the weights until it is put into a precision."""
    part = copy.copy(model)
    part._modules = dict(model._modules)
    part.h, part.trunk = model.h[:TIMED_LAYERS], part.hidden
    part.config = replace(model.config, n_layer=len(part.h))
    return copy.deepcopy(part, {id(p): nn.Parameter(p.detach()) for p in model.parameters()})


def time_decode_steps(runner):
    """A step of one row and one of TIMED_ROWS, for timing: some products are fast for few rows only."""
    for runner.n in (1, TIMED_ROWS):
        runner.step([0] * runner.n, [1] * runner.n)
