"""QLoRA's frozen base (Dettmers et al. 2023): weights in 4 bits, by bitsandbytes on CUDA and on the CPU.

NF4: a weight is one of 16 levels, the quantiles of a normal distribution, times the largest absolute weight of its
block of 64. Double quantization: these largest weights are themselves 8-bit numbers. So a weight takes 4.13 bits.

A product dequantizes the matrix each time. The backward pass does so again, and needs gradients of the input alone.
"""

import logging

from torch import nn

from minigpt.adapters.lora import linear_of
from minigpt.common.errors import UserError
from model import compute_dtype

# Where it is imported on a CPU, it recommends a package that downloads kernels at run time.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def import_bitsandbytes():
    """The package bitsandbytes. Raises UserError where it is missing."""
    try:
        import bitsandbytes
    except ImportError:
        raise UserError("quantize=nf4 needs bitsandbytes: pip install bitsandbytes; or take --quantize=none") from None
    return bitsandbytes


class NF4Linear(nn.Module):
    """A frozen linear layer with NF4 weights: x (..., in) -> (..., out). `linear` is not changed."""

    def __init__(self, linear):
        super().__init__()
        packed, self.state = import_bitsandbytes().functional.quantize_4bit(
            linear.weight.detach(), quant_type="nf4", compress_statistics=True
        )
        self.register_buffer("packed", packed, persistent=False)  # two weights a byte
        self.bias = linear.bias
        self.train(linear.training)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.state.to(self.packed.device)
        return self

    @property
    def weight(self):
        """The matrix (out, in), dequantized at each access."""
        return import_bitsandbytes().functional.dequantize_4bit(self.packed, self.state)

    def forward(self, x):
        x = x.to(compute_dtype(x))  # autocast does not know this product
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return import_bitsandbytes().matmul_4bit(x, self.packed, self.state, bias=bias)

    def nbytes(self):
        """Bytes of the weights and of what dequantizing needs."""
        tensors = [self.packed, self.state.absmax, self.state.state2.absmax, self.bias]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def quantize_base(model):
    """Replace the frozen linear layers of a GPT's blocks by `NF4Linear` ones, in place. Raises UserError."""
    import_bitsandbytes()
    replace_layers(model, lambda m: isinstance(m, nn.Linear) and not m.weight.requires_grad, NF4Linear)


def dequantize_base(model):
    """Replace the `NF4Linear` layers of a GPT by plain ones with the rounded weights, in place."""
    replace_layers(model, lambda m: isinstance(m, NF4Linear), lambda m: linear_of(m.weight, m.bias))


def replace_layers(model, is_replaced, make):
    """Replace each module of a GPT's blocks of which is_replaced(module) by make(module)."""
    for parent in list(model.h.modules()):
        for name, layer in list(parent.named_children()):
            if is_replaced(layer):
                new = make(layer)
                setattr(parent, name, new.requires_grad_(False))


def quantized_layers(model):
    """The `NF4Linear` layers of a GPT."""
    return [m for m in model.modules() if isinstance(m, NF4Linear)]


def quantized_weights(model):
    """Number of a GPT's weights in 4 bits; they are not among its parameters."""
    return sum(m.state.shape.numel() for m in quantized_layers(model))


def weight_bytes(model):
    """Bytes of a GPT's weights in memory."""
    layers = quantized_layers(model)
    biases = {id(m.bias) for m in layers}
    return sum(m.nbytes() for m in layers) + sum(p.nbytes for p in model.parameters() if id(p) not in biases)
