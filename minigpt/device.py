"""The device and what it can do: choice of device, dtype and attention kernel; memory use; peak FLOP/s."""

import contextlib
import functools
import importlib.util
import os
import re
import sys
import time
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from minigpt.common.errors import UserError, first_line

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None

# Peak TFLOP/s of dense matrix products in bfloat16 (float16 where a GPU has no bfloat16) with float32 accumulation,
# from NVIDIA's data sheets and white papers (GeForce from RTX 30 on: twice the float32 value; RTX 20: four times). The
# first name that is part of the GPU's name is used, so longer names come first.
PEAK_TFLOPS = {
    "B200": 2250, "GH200": 989, "H200 NVL": 836, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989,
    "H800": 989, "H20": 148, "A100": 312, "A800": 312,
    "L40S": 362, "L40": 181, "L20": 119.5, "L4": 121, "A10G": 70, "A10": 125, "RTX 6000 Ada": 364.2, "A6000": 155,
    "A40": 150, "V100": 125, "T4": 65,
    "RTX 5090": 209.5, "RTX 5080": 112.6, "RTX 5070 Ti": 87.9, "RTX 5070": 61.7,
    "RTX 4090 D": 147, "RTX 4090": 165.2, "RTX 4080 SUPER": 104.4, "RTX 4080": 97.5, "RTX 4070 Ti SUPER": 88.2,
    "RTX 4070 Ti": 80.2, "RTX 4070 SUPER": 71, "RTX 4070": 58.3, "RTX 4060 Ti": 44.1, "RTX 4060": 30.2,
    "RTX 3090 Ti": 80, "RTX 3090": 71, "RTX 3080 Ti": 68.2, "RTX 3080": 59.5, "RTX 3070 Ti": 43.5, "RTX 3070": 40.6,
    "RTX 3060 Ti": 32.4, "RTX 3060": 25.5,
    "RTX 2080 Ti": 53.8, "RTX 2080 SUPER": 44.6, "RTX 2080": 40.3, "RTX 2070 SUPER": 36.2, "RTX 2070": 29.9,
    "RTX 2060 SUPER": 28.7, "RTX 2060": 25.8,
}  # fmt: skip
# Parts of the messages of torch's RuntimeErrors on MPS, Linux and Windows.
OUT_OF_MEMORY_MESSAGES = ("out of memory", "allocate memory", "not enough memory")
TIMED_TOKENS = 512  # input of the block that is timed
TIMED_ATTENTION_TOKENS, TIMED_ATTENTION_PASSES = 8192, 10  # a pass takes less than a millisecond
TIMING_SECONDS = 4.0  # after which a timing begins no further round
SHORT_STEP_SECONDS = 0.05  # a stall by another program, or building a kernel, can take as long
TRITON_CAPABILITY = 7, 0  # of a GPU, at least
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name="auto", local_rank=None):
    """The torch.device that the setting `device` names; "auto": the first available of cuda, mps and cpu.

    local_rank: rank among the processes of this machine, each of which uses its own GPU.
    Raises UserError for a device that cannot be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and torch.cuda.is_available() and (local_rank is not None or device.index is not None):
            device = torch.device("cuda", device.index if local_rank is None else local_rank)
            torch.cuda.set_device(device)  # checkpoints contain the random state of the current device
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try --device=auto"
        ) from None
    return device


@dataclass
class Precision:
    """How a training step is computed.

    dtype: of matrix products; plain_attention: whether to use `model.plain_attention`, which on a CPU can be faster
    than torch's kernels (`GPT.use_plain_attention` applies it); why: the reason of the choice; flops: measured speed
    of a block in FLOP/s, or None.
    """

    dtype: torch.dtype = torch.float32
    plain_attention: bool = False
    why: str = "the default"
    flops: float | None = None

    def to_dict(self, device):
        """A dict of plain values, for checkpoints."""
        return {"device": device.type, "dtype": dtype_name(self.dtype), "plain_attention": self.plain_attention}

    @classmethod
    def from_dict(cls, values, device):
        """The `Precision` of a dict from `to_dict`; None if that was for another kind of device."""
        if values["device"] != device.type:
            return None
        return cls(DTYPES[values["dtype"]], values["plain_attention"], "as before")

    def context(self, device):
        """A context manager for forward passes: autocast, or nothing for float32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(device.type, self.dtype)


def dtype_name(dtype):
    """The name of a torch.dtype in the settings."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def fastest_of(tried, step, rounds=4, seconds=TIMING_SECONDS):
    """(the fastest of the candidates `tried`, its speed relative to the first); step(candidate) is timed.

    Each round times every candidate once, so that a machine that is busy for a while slows all of them, and the best
    time of each counts. The first round is a warm-up, which also builds kernels. Slow candidates are dropped, unless
    they take less than SHORT_STEP_SECONDS: six times slower than the best in the first two rounds, later twice. No
    round begins after `seconds`.
    """
    best = {}  # {index of a candidate: seconds}
    left = list(range(len(tried)))
    began = time.perf_counter()
    for turn in range(rounds + 1):
        if turn and time.perf_counter() - began > seconds:
            break
        for i in list(left):
            started = time.perf_counter()
            step(tried[i])
            taken = time.perf_counter() - started
            best[i] = taken if turn <= 1 else min(best[i], taken)  # round 1 replaces the warm-up's time
            if best[i] > max(SHORT_STEP_SECONDS, (6 if turn <= 1 else 2) * min(best.values())):
                left.remove(i)
    fastest = min(best, key=best.get)
    return tried[fastest], best[0] / best[fastest]


def bfloat16_is_fast():
    """Whether this CPU multiplies matrices in bfloat16 faster than in float32.

    A processor without bfloat16 instructions is not timed, because it may take a hundred times as long. Otherwise a
    product of 75 MFLOP is timed, because a library or an environment variable may disable the instructions.
    """
    capabilities = torch.cpu.get_capabilities()
    if not any(supported for name, supported in capabilities.items() if "bf16" in name):
        return False
    a, b = torch.randn(64, 768), torch.randn(768, 768)
    operands = {dtype: (a.to(dtype), b.to(dtype)) for dtype in (torch.float32, torch.bfloat16)}
    fastest, _ = fastest_of(list(operands), lambda dtype: torch.mm(*operands[dtype]), rounds=12, seconds=1.0)
    return fastest == torch.bfloat16


def dtype_by_device(device):
    """(name, why) of the dtype for a kind of device; None where it has to be timed.

    bfloat16 on GPUs that support it, float32 on MPS. CPUs and older GPUs differ too much for a rule.
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", "supported by this GPU"
        return None
    return None if device.type == "cpu" else ("float32", f"the default on {device.type}")


def choose_precision(name, device, model, positions, say=print):
    """The `Precision` of training, by the setting dtype.

    name "auto": bfloat16 on GPUs that support it, float32 on MPS. On other devices, the forward and backward pass of
    one block of `model`, a GPT, is timed on rows of `positions` positions. say(line): prints what is timed.
    """
    if name != "auto":
        return Precision(DTYPES[name], why="as set")

    # Which candidates the device has.
    if device.type == "cpu":
        dtypes = (torch.float32, torch.bfloat16) if bfloat16_is_fast() else (torch.float32,)
        tried = [Precision(dtype, plain_attention) for dtype in dtypes for plain_attention in (False, True)]
    elif known := dtype_by_device(device):
        return Precision(DTYPES[known[0]], why=known[1])
    else:  # GPUs older than Volta are several times slower in float16
        tried = [Precision(torch.float32), Precision(torch.float16)]

    # Time them.
    say(f"timing a block in {', '.join(map(precision_text, tried))} …")
    x = torch.randn(max(1, TIMED_TOKENS // positions), positions, model.config.n_embd, device=device)
    x.requires_grad_()  # as within the model: the gradients go on to the block before
    with explain_out_of_memory(device):
        for precision in tried:  # at its first call, which takes seconds, a kernel of minigpt/kernels.py is compiled
            time_block(model, x[:1, :1], precision)
        picked, times = fastest_of(tried, lambda precision: time_block(model, x, precision))
        seconds = time_block(model, x, picked)
    picked.why = f"timed: {times:.2f} times as fast as {precision_text(tried[0])}"
    picked.flops = model.block_training_flops(x[..., 0].numel()) / seconds
    return picked


def time_block(model, x, precision):
    """Seconds of a forward and backward pass of a GPT's first block over states x (B, T, C)."""
    started = time.perf_counter()
    model.use_plain_attention(precision.plain_attention)
    with precision.context(x.device):
        y = model.h[0](x, model.angles(torch.arange(x.shape[1], device=x.device)))
    y.float().sum().backward()
    model.zero_grad(set_to_none=True)
    wait_for(x.device)
    return time.perf_counter() - started


def precision_text(precision):
    """A `Precision` as text, such as "bfloat16 with plain attention"."""
    return dtype_name(precision.dtype) + (" with plain attention" if precision.plain_attention else "")


def choose_attention(device, config, dtype, positions, say=print):
    """On a GPU of Hopper or later, prefer the faster of torch's flash and cuDNN attention from now on.

    Both are timed forward and backward on rows of `positions` positions of a `GPTConfig`, in `dtype`. Other GPUs keep
    torch's choice, and so does one on which anything fails. say(line): prints what was chosen.
    """
    if device.type != "cuda" or dtype == torch.float32 or torch.are_deterministic_algorithms_enabled():
        return  # neither computes in float32
    try:
        if torch.cuda.get_device_capability(device) < (9, 0) or not torch.backends.cuda.cudnn_sdp_enabled():
            return
        tried = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]
        rows = max(1, TIMED_ATTENTION_TOKENS // positions)
        heads = config.n_head, config.n_kv_head, config.n_kv_head
        inputs = [
            torch.randn(rows, positions, n, config.head_dim, device=device, dtype=dtype).transpose(1, 2) for n in heads
        ]
        picked, times = fastest_of(tried, lambda backend: time_attention(backend, inputs, config.dropout))
        set_attention_priority(picked)
    except Exception as error:  # a kernel may refuse a shape in many ways
        if is_out_of_memory(error) and device.type == "cuda":
            torch.cuda.empty_cache()
        say(f"note: attention kernels could not be timed ({first_line(error)}); torch chooses")
        return
    say(f"attention by {picked.name} (timed: {times:.2f} times as fast as {tried[0].name})")


def time_attention(backend, inputs, dropout):
    """Compute causal attention and its gradients with a torch `SDPBackend`; inputs: q, k, v, each (B, heads, T, D)."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    with sdpa_kernel(backend):
        for _ in range(TIMED_ATTENTION_PASSES):
            y = torch.nn.functional.scaled_dot_product_attention(
                *inputs, is_causal=True, dropout_p=dropout, enable_gqa=inputs[0].shape[1] != inputs[1].shape[1]
            )
            torch.autograd.grad(y, inputs, torch.ones_like(y))
    wait_for(inputs[0].device)


def set_attention_priority(backend):
    """Have torch try an `SDPBackend` before the others, in this process."""
    order = torch._C._get_sdp_priority_order()
    torch._C._set_sdp_priority_order([int(backend), *(other for other in order if other != int(backend))])


def should_compile(setting, device):
    """(bool, why): whether to use torch.compile for training. setting: "on", "off" or "auto"."""
    if setting == "off":
        return False, "as set"
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return False, "Triton is not installed"
        if torch.cuda.get_device_capability(device) < TRITON_CAPABILITY:
            return False, "Triton needs a GPU of Volta or later"
        if failure := compile_failure(device):
            return False, f"Triton does not work here: {failure}"
    if setting == "on":
        return True, "as set"
    return device.type == "cuda", "the default on " + device.type


@functools.cache
def compile_failure(device):
    """Why torch.compile fails on a device, by a kernel of one line; None where it works. Triton needs a C compiler and
    a driver that knows it, and so may be installed and of no use."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(64, device=device))
    except Exception as error:  # compilers fail in many ways
        return first_line(getattr(error, "inner_exception", error))  # what torch says around it takes the first line


def use_deterministic_algorithms():
    """Use torch's deterministic kernels from now on; torch warns of an operation that has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # not needed: it is never read here


def to_device(values, device, dtype=None):
    """A tensor of values (a tensor on the CPU, or nested lists of numbers) on a device. Of a GPU, the CPU does not wait
    for it: the copy is from page-locked memory, in the order of the GPU's other work."""
    tensor = values if isinstance(values, torch.Tensor) else torch.tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def wait_for(device):
    """Wait until the device has finished all queued work."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def peak_flops(device):
    """Peak FLOP/s of a device's matrix products in 16 bits; None where it is not known."""
    if device.type != "cuda":
        return None
    return peak_flops_of_gpu(torch.cuda.get_device_name(device))


def peak_flops_of_gpu(name):
    """Peak FLOP/s of a GPU by its name; None where it is not known. (Laptop GPUs of one name differ in speed.)"""
    if "Laptop" in name:
        return None
    return next((tflops * 1e12 for known, tflops in PEAK_TFLOPS.items() if re.search(rf"\b{known}\b", name)), None)


def usable_memory(device):
    """Bytes of a GPU's memory that this process may use (`torch.cuda.set_per_process_memory_fraction` limits them)."""
    index = torch.cuda.current_device() if device.index is None else device.index
    total = torch.cuda.get_device_properties(index).total_memory
    try:
        return int(total * min(1.0, torch.cuda.get_per_process_memory_fraction(index)))
    except RuntimeError:  # other allocators than torch's own have no limit
        return total


def free_memory(device):
    """Bytes of a GPU's memory that no other program has, and that CUDA does not need; what torch has itself counts."""
    index = torch.cuda.current_device() if device.index is None else device.index
    free, _ = torch.cuda.mem_get_info(index)
    return free + torch.cuda.memory_reserved(index)


@functools.cache
def adds_in_float32(device, dtype):
    """Whether torch can add a product of matrices in 16 bits to a matrix in float32, in place: on CUDA, by cuBLAS."""
    if device.type != "cuda":
        return False
    total, a = torch.zeros(64, 64, device=device), torch.zeros(64, 64, device=device, dtype=dtype)
    try:
        torch.mm(a.T, a, out_dtype=torch.float32, out=total)
        torch.addmm(total, a.T, a, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        return False
    return True


def peak_memory(device):
    """(peak, total) memory in bytes: of the GPU, or of this process and machine on a CPU. (None, None) if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device), usable_memory(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory(), torch.mps.recommended_max_memory()
    if resource is None:
        return None, None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return used, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_text(device):
    """Peak and total memory as text."""
    used, total = peak_memory(device)
    return f"{used / 2**30:.2f} of {total / 2**30:.1f} GB of memory used" if used else "memory use unknown"


def is_out_of_memory(error):
    """Whether an exception means that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in OUT_OF_MEMORY_MESSAGES)


@contextlib.contextmanager
def explain_out_of_memory(device, merged=False):
    """Context manager that turns an out-of-memory error into a UserError that names the settings to lower.

    merged: whether training made larger passes than the settings say (minigpt/training/memory.py).
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        advice = (
            "lower batch_tokens (or batch_size) and raise gradient_accumulation_steps by the same factor, which trains "
            "the same; or lower block_size"
        )
        if merged:
            advice = f"give --merge_batches=False, for smaller passes; if that is not enough, also {advice}"
        raise UserError(f"out of memory on {device} ({memory_text(device)}); {advice}") from None
