"""What the machine has, and what is fastest on it: device, compute type, compiling."""

import contextlib
import importlib.util
import time
from dataclasses import dataclass

import torch

from errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name="auto"):
    """torch.device of a setting; "auto" takes cuda, mps or cpu. Raises UserError for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try --device=auto"
        ) from None
    return device


@dataclass
class Precision:
    """How a step is computed. dtype: of matrix products; plain_attention: attention by plain products, which
    on a CPU can beat torch's kernels (the model is told by its `use_plain_attention`); why: how it was chosen."""

    dtype: torch.dtype = torch.float32
    plain_attention: bool = False
    why: str = "the default"

    def to_dict(self, device):
        """Plain values, as a checkpoint keeps them."""
        return {"device": device.type, "dtype": dtype_name(self.dtype), "plain_attention": self.plain_attention}

    @classmethod
    def from_dict(cls, values, device):
        """The precision that `to_dict` gave, or None where that was on another kind of device."""
        if values["device"] != device.type:
            return None
        return cls(DTYPES[values["dtype"]], values["plain_attention"], "as before")

    def context(self, device):
        """Context manager for forward passes (and the backward passes of what ran in it)."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(device.type, self.dtype)


def dtype_name(dtype):
    """The setting's name of a torch.dtype."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def seconds_of(step, precision, best_so_far, repeats=3):
    """Seconds of the fastest of some runs of `step(precision)` after the first, which also builds kernels.

    Stops early at a precision that is hopeless: a type that the processor lacks can be 20 times slower.
    """
    seconds = []
    for run in range(1 + repeats):
        started = time.perf_counter()
        step(precision)
        seconds.append(time.perf_counter() - started)
        if seconds[-1] > (6 if run == 0 else 2) * best_so_far:
            return seconds[-1]
    return min(seconds[1:])


def pick_precision(name, device, step):
    """`Precision` by the dtype setting. `step(precision)` runs a forward and backward pass, for timing on the CPU."""
    if name != "auto":
        return Precision(DTYPES[name], why="as set")
    if device.type == "cpu":
        # Without avx512_bf16 or amx_bf16, bfloat16 on a CPU can be several times slower: so it is timed.
        dtypes = (torch.float32, torch.bfloat16)
        tried = [Precision(dtype, plain_attention) for dtype in dtypes for plain_attention in (False, True)]
        seconds = []
        for precision in tried:
            seconds.append(seconds_of(step, precision, min(seconds, default=float("inf"))))
        fastest = min(range(len(tried)), key=seconds.__getitem__)
        picked = tried[fastest]
        picked.why = f"timed: {seconds[0] / seconds[fastest]:.2f} times as fast as {show(tried[0])}"
        return picked
    if device.type != "cuda":
        return Precision(why=f"the default on {device.type}")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision(torch.bfloat16, why="this card computes in it")
    return Precision(torch.float16, why="this card has no fast bfloat16")


def show(precision):
    """Short name of a precision."""
    return dtype_name(precision.dtype) + (" with plain attention" if precision.plain_attention else "")


def should_compile(setting, device):
    """(bool, why): whether to use torch.compile."""
    if setting == "off":
        return False, "as set"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return False, "Triton is not installed"
    if setting == "on":
        return True, "as set"
    return device.type == "cuda", "the default on " + device.type
