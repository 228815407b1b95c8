"""The type of a model's weights in generation: float32, bfloat16, float16, or int8.

bfloat16, float16: all layers. Logits are float32, because in 16 bits they are too coarse: the weights of the output
layer stay float32 (`Float32Output`) or, on a GPU, only its products are summed up in float32 (`Float32Product`).

int8 on a GPU: torchao's, weights alone, of the blocks' matrices; compiled code converts them within the products. The
rest is bfloat16, or float32 on a GPU without that.

int8 on a CPU: weights are rounded to 8 bits with one scale per output; the inputs of each product are rounded with one
scale per row (dynamic quantization, as in LLM.int8(), Dettmers et al. 2022, without its treatment of outliers). Steps
of one token are computed by minigpt/inference/kernels.py. In other passes, the products are oneDNN's, called through
the operator that torch's own quantization is lowered to. Where torch has no such product, as on Arm Macs, torch's
product of float rows and int8 weights is used.

On x86 processors without VNNI, oneDNN adds two products in 16 bits, which saturates for 8-bit operands; there it gets
weights of 7 bits. (Not the inputs, since these have the outliers.) Measured with the demo's model on its validation
part: the KL divergence from float32 is 0.0006 nats with 7-bit weights, 0.0008 with 7-bit inputs, and 0.0003 with 8 bits
for both. Perplexity relative to float32 is 1.003 (7-bit weights) and 1.000 (7-bit inputs) over whole rows, and 0.998
and 1.003 token by token.
"""

import importlib.util
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from minigpt.common.errors import UserError
from minigpt.device import adds_in_float32, dtype_by_device

WEIGHT_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.float32}
MAX_LEVEL = 127  # largest int8 value in use; -128 is not used, so that the range is symmetric
MAX_LEVEL_7_BIT = 64  # for weights without VNNI: two products with uint8 inputs, 2 * 255 * 64, are below 2**15
ZERO_POINT = 128  # added to the levels of a row to make them unsigned
MAX_RELATIVE_ERROR = 0.03  # of the largest output; rounding causes about 0.01, saturated sums far more
MAX_WEIGHT_ONLY_ROWS = 8  # up to which torch's int8-weight product is faster than converting the weights to float

# Names of the linear layers of a base; an adapter that wraps one has it as its `base`.
BASE_LAYERS = ("c_attn", "c_proj", "c_fc", "lm_head", "base")

MIN_INT8_PARAMS = 10e6  # a step of a smaller model takes less than a millisecond in float32 too


class Float32Output(nn.Module):
    """A float32 output layer for states of any float type: (..., C) -> (..., V).

    bfloat16 numbers between 8 and 32 are 0.06 to 0.125 apart. At temperature 0.1, that changes a logit by up to
    0.6 nats.
    """

    def __init__(self, linear):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().float(), requires_grad=False)

    def forward(self, x):
        return F.linear(x.float(), self.weight)


class Float32Product(nn.Module):
    """An output layer on a GPU, of 16-bit states and weights, whose products are float32: (..., C) -> (..., V)."""

    def __init__(self, linear):
        super().__init__()
        self.weight = linear.weight

    def forward(self, x):
        rows = torch.mm(x.flatten(0, -2), self.weight.T, out_dtype=torch.float32)
        return rows.unflatten(0, x.shape[:-1])


class Int8Weights(nn.Module):
    """A linear layer with int8 weights, which it converts to float in each call: the plain implementation.

    x (..., in_features) of any float type -> (..., out_features) of that type. max_level: largest value of a weight.
    """

    def __init__(self, linear, max_level=MAX_LEVEL):
        super().__init__()
        self.max_level = max_level
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(dim=1) / max_level).clamp_min(torch.finfo(torch.float32).tiny)
        self.register_buffer("scale", scale)
        self.register_buffer("levels", (weight / scale[:, None]).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x):
        return self.add_bias(F.linear(x, (self.levels * self.scale[:, None]).to(x.dtype)))

    def add_bias(self, y):
        """y (..., out_features) plus the bias, in y's type."""
        return y if self.bias is None else y + self.bias.to(y.dtype)


class Int8WeightOnly(Int8Weights):
    """Torch's product of bfloat16 rows and int8 weights. Runs on any processor; fast for a few rows."""

    def __init__(self, linear):
        super().__init__(linear)
        self.register_buffer("bf16_scale", self.scale.bfloat16())

    def forward(self, x):
        rows = x.flatten(0, -2)
        if len(rows) > MAX_WEIGHT_ONLY_ROWS:
            return super().forward(x)
        y = torch._weight_int8pack_mm(rows.bfloat16(), self.levels, self.bf16_scale).to(x.dtype)
        return self.add_bias(y.unflatten(0, x.shape[:-1]))


class Int8Dynamic(Int8Weights):
    """oneDNN's product of 8-bit rows and int8 weights, which are packed in oneDNN's layout. max_level: largest value of
    a packed weight; `levels` always have 8 bits.

    The rows are uint8: levels from -MAX_LEVEL to MAX_LEVEL plus ZERO_POINT. oneDNN's kernels for processors without
    VNNI support no int8 rows; it would shift them in every call, which takes five times as long as the product of
    one row.
    """

    def __init__(self, linear, max_level=MAX_LEVEL):
        super().__init__(linear)
        packed = Int8Weights(linear, max_level)
        self.max_level = max_level
        with torch.no_grad():
            self.register_buffer("packed", torch.ops.onednn.qlinear_prepack(packed.levels, None))
        self.register_buffer("packed_scale", packed.scale)
        # What ZERO_POINT adds to each output is a constant, which a bias subtracts.
        self.register_buffer("shift", -ZERO_POINT * packed.levels.sum(dim=1) * packed.scale)
        self.register_buffer("zero_points", torch.zeros(len(packed.levels), dtype=torch.int32))

    def forward(self, x):
        rows = x.flatten(0, -2).float()

        # Round each row. The scale of a row of zeros is the smallest normal number; compiled code may flush smaller
        # ones to zero, and then divide by zero.
        scale = (rows.abs().amax(dim=1, keepdim=True) / MAX_LEVEL).clamp_min(torch.finfo(torch.float32).tiny)
        levels = ((rows / scale).round() + ZERO_POINT).to(torch.uint8)

        # The operator takes one scale for all rows, so it gets 1, and its output is multiplied by each row's scale.
        y = torch.ops.onednn.qlinear_pointwise(
            levels, 1.0, 0, self.packed, self.packed_scale, self.zero_points, self.shift, 1.0, 0, torch.float32, "none",
            [], "",
        )  # fmt: skip
        return self.add_bias((y * scale).to(x.dtype).unflatten(0, x.shape[:-1]))


def choose_int8_layer(linear):
    """The most exact int8 layer that computes correctly on this processor, as a function of an nn.Linear.

    linear: the layer that the candidates are tried with.
    """
    for max_level in (MAX_LEVEL, MAX_LEVEL_7_BIT):
        make_layer = partial(Int8Dynamic, max_level=max_level)
        try:
            if computes_correctly(make_layer, linear):
                return make_layer
        except (RuntimeError, AttributeError):  # torch without oneDNN, or a processor without the kernel
            break
    return Int8WeightOnly


def computes_correctly(make_layer, linear):
    """Whether make_layer(linear), an int8 layer, is close to `linear`, and whether its largest sums do not saturate."""
    x = torch.randn(4, linear.in_features, generator=torch.Generator().manual_seed(0)) * 3
    expected = linear(x)
    error = (make_layer(linear)(x) - expected).abs().max() / expected.abs().max()

    # The largest sums: all inputs and all weights have the largest level.
    largest_x = torch.full_like(x, MAX_LEVEL)
    largest = nn.Linear(linear.in_features, 64, bias=False)
    nn.init.constant_(largest.weight, 1.0)
    y = make_layer(largest)(largest_x)
    return bool(error <= MAX_RELATIVE_ERROR) and torch.allclose(y, largest(largest_x), rtol=MAX_RELATIVE_ERROR)


@torch.no_grad()
def convert_weights(model, name, sharing=()):
    """Convert a GPT's weights to a type (a key of WEIGHT_TYPES), in place; returns the model.

    Logits are float32 with every type. With int8 the embedding stays float32, since a token reads only one row of it,
    and so do adapters, which are small.
    sharing: GPTs that share the layers of this one (`share_layers`), and then those of the new type.
    Raises UserError for int8 where it needs what is not installed, and on MPS.
    """
    models, device = [model, *sharing], model.wte.weight.device
    if name == "int8" and device.type == "cuda":
        # Not float16 on an older GPU: a product is summed up before its scale is applied, and may be above 65,504.
        other, _ = dtype_by_device(device) or ("float32", "")
        convert_weights(model, other, sharing)
        quantize_by_torchao(models)
        return model
    if name in ("bfloat16", "float16"):
        dtype = WEIGHT_TYPES[name]
        output = None if adds_in_float32(device, dtype) else Float32Output(model.lm_head)
        for each in models:
            each.to(dtype)
            each.lm_head = output = output or Float32Product(each.lm_head)
        return model
    for each in models:
        each.float()
    if name == "float32":
        return model
    if device.type != "cpu":
        raise UserError(f"int8 is for generation on a CPU or an NVIDIA GPU; on {device.type} take --dtype=float32")
    make_layer = choose_int8_layer(next(m for m in model.modules() if isinstance(m, nn.Linear)))
    made = {}  # {layer: its int8 layer}
    for parent in [module for each in models for module in each.modules()]:
        for child, layer in parent.named_children():
            if isinstance(layer, nn.Linear) and child in BASE_LAYERS:
                made[layer] = made.get(layer) or make_layer(layer)
                setattr(parent, child, made[layer])
    return model


def quantize_by_torchao(models):
    """Round the matrices of GPTs' blocks to int8 with one scale an output, in place. Raises UserError without torchao
    or Triton."""
    for module, command in (("torchao", "torchao"), ("triton", 'triton (on Windows "triton-windows<3.8")')):
        if importlib.util.find_spec(module) is None:
            raise UserError(f"int8 on a GPU needs {module}: pip install {command}; or give another --dtype")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    def is_matrix(module, name):
        is_base = name.rpartition(".")[2] in BASE_LAYERS and not name.startswith("lm_head")
        return is_base and isinstance(module, nn.Linear) and not is_torchao(module.weight)

    for model in models:  # of a layer that several share, the first one's is all
        # Its settings for the compiler search long, and would be those of all other compiled code too.
        quantize_(model, Int8WeightOnlyConfig(set_inductor_config=False), is_matrix)


def is_torchao(tensor):
    """Whether a tensor holds torchao's integers."""
    return type(tensor).__module__.startswith("torchao.")


def has_torchao_layers(model):
    """Whether a GPT's matrices hold torchao's integers."""
    return any(is_torchao(p) for p in model.parameters())


def choose_weight_type(model, name, sharing=()):
    """Convert a GPT to the type that the setting dtype names; returns (model, name of the type, why).

    The model may be changed in place. name "auto": by the kind of device (`dtype_by_device`); on a CPU int8, whose
    steps read a quarter of float32's bytes, or float32 for a small model. sharing: as in `convert_weights`.
    """
    device = model.wte.weight.device
    why = "as set"
    if name == "auto":
        if device.type == "cpu":
            name = "int8" if model.num_params() >= MIN_INT8_PARAMS else "float32"
            why = "the default on a CPU for a model of this size"
        else:
            name, why = dtype_by_device(device) or ("float32", f"the default on {device.type}")
    return convert_weights(model, name, sharing), name, why
