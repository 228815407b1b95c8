"""Passes over rows of numbers in a training step on a CPU, compiled by numba.

Each does in one pass over the memory what torch's operators do in several. Numbers are float32, or the bits of bfloat16
in uint16, and are computed in float32. Kernels hold no lock of Python's, and `run_on_rows` splits them over threads.
numba keeps its code on disk. model.py calls them; tests hold them against torch's operators.
"""

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload

# Sums may be reordered, so that they are computed in vectors; infinities and NaN keep their meaning.
FAST_SUMS = {"reassoc", "contract", "nsz"}
# error_model: a check for division by zero would keep loops from being computed in vectors.
COMPILED = {"fastmath": FAST_SUMS, "error_model": "numpy", "cache": True, "nogil": True}
MIN_NUMBERS_A_THREAD = 2**15  # starting a thread's work takes about 50 µs
VECTORS = 32  # numbers in the vectors that a loop computes at a time
ONE, HALF = np.float32(1), np.float32(0.5)


def as_array(tensor):
    """A CPU tensor as an array that shares its memory; bfloat16 as its bits in uint16."""
    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


@functools.cache
def thread_pool(threads):
    """The threads that kernels are split over."""
    return ThreadPoolExecutor(threads, "kernels")


def run_on_rows(kernel, tensors, *others):
    """Call kernel(*arrays, *others) with arrays of contiguous CPU tensors, whose first dimensions are equal.

    Each of torch's threads takes a part of the rows. Returns the list of what the calls return.
    """
    rows, arrays = len(tensors[0]), [as_array(tensor) for tensor in tensors]
    parts = min(torch.get_num_threads(), rows, arrays[0].size // MIN_NUMBERS_A_THREAD)
    if parts <= 1:
        return [kernel(*arrays, *others)]
    ends = [rows * part // parts for part in range(parts + 1)]
    work = [
        thread_pool(parts).submit(kernel, *(array[first:end] for array in arrays), *others)
        for first, end in itertools.pairwise(ends)
    ]
    return [part.result() for part in work]


# Numbers


def to_float(value):
    """A number of an array as float32. uint16: the bits of a bfloat16."""
    raise TypeError("called by compiled code only")


@overload(to_float, inline="always")
def compile_to_float(value):
    if value == types.uint16:
        return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
    return lambda value: np.float32(value)


def from_float(value, like):
    """A float32 as a number of the type of `like`: itself, or rounded to the bits of a bfloat16."""
    raise TypeError("called by compiled code only")


@overload(from_float, inline="always")
def compile_from_float(value, like):
    if like == types.uint16:

        def round_to_bfloat16(value, like):
            bits = np.float32(value).view(np.uint32)
            return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))

        return round_to_bfloat16
    return lambda value, like: np.float32(value)


@njit(**COMPILED)
def exp(x):
    """e^x of a float32 to 1.2e-7, as Cephes computes it; vectors of it need no library."""
    x = np.float32(-87) if x < np.float32(-87) else x  # NaN stays NaN
    x = np.float32(88) if x > np.float32(88) else x
    n = np.floor(x * np.float32(1.44269504) + HALF)
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    power_of_two = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return (p * r * r + r + ONE) * power_of_two


@njit(**COMPILED)
def flip(bits):
    """The bits of a float32 as an int32 of the same order, and back."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@njit(**COMPILED)
def largest(x):
    """The largest number of x (n,), computed in integers, whose maximum needs no order of comparing."""
    found = np.int32(-(2**31))
    for i in range(len(x)):
        found = max(found, flip(np.float32(to_float(x[i])).view(np.int32)))
    return np.int32(flip(found)).view(np.float32)


# Passes over rows


@njit(**COMPILED)
def loss_gradients(logits, targets, losses):
    """Replace logits (n, V) by the gradients of their cross-entropies, which are written into losses (n,) in nats.
    Both are 0 where a target of targets (n,) is -1."""
    e = np.empty(logits.shape[1], np.float32)
    for row in range(len(logits)):
        x, target = logits[row], targets[row]
        if target < 0:
            x[:], losses[row] = 0, 0
            continue
        top, total = largest(x), np.float32(0)
        losses[row] = top - to_float(x[target])
        for i in range(len(x)):
            e[i] = exp(to_float(x[i]) - top)
            total += e[i]
        losses[row] += np.log(total)
        # Subtract 1 before rounding to bfloat16, which has no number between 0.996 and 1: a probability close to 1
        # would round to 1, and its gradient to 0.
        e[target] -= total
        scale = ONE / total
        for i in range(len(x)):
            x[i] = from_float(e[i] * scale, x[i])


@njit(**COMPILED)
def causal_softmax(scores, scale, first):
    """Replace scores (n, queries, T) by attention probabilities: the softmax of scale times the scores up to
    first + query, and 0 behind."""
    e = np.empty(scores.shape[2] + VECTORS, np.float32)
    for matrix in range(len(scores)):
        for query in range(scores.shape[1]):
            x, end = scores[matrix, query], first + query + 1
            for i in range(end):
                e[i] = to_float(x[i]) * scale
            # Whole vectors only: what is left over would be computed one by one.
            padded = e[: (end + VECTORS - 1) // VECTORS * VECTORS]
            padded[end:] = np.float32(-1e30)
            top, total = largest(padded), np.float32(0)
            for i in range(len(padded)):
                padded[i] = exp(padded[i] - top)
                total += padded[i]
            factor = ONE / total
            for i in range(end):
                x[i] = from_float(e[i] * factor, x[i])
            x[end:] = 0


@njit(**COMPILED)
def swiglu_rows(x, y):
    """Write SwiGLU silu(gate) u of rows x (n, 2 width), which are gate and u, into y (n, width)."""
    width = y.shape[1]
    for row in range(len(x)):
        for i in range(width):
            gate = to_float(x[row, i])
            y[row, i] = from_float(gate / (ONE + exp(-gate)) * to_float(x[row, width + i]), y[row, i])


@njit(**COMPILED)
def swiglu_gradients(x, grads, x_grads):
    """Write the gradients of `swiglu_rows`: of x (n, 2 width) into x_grads, from those of y, grads (n, width)."""
    width = grads.shape[1]
    for row in range(len(x)):
        gates, us, grad = x[row, :width], x[row, width:], grads[row]
        gate_grads, u_grads = x_grads[row, :width], x_grads[row, width:]
        for i in range(width):
            gate, g = to_float(gates[i]), to_float(grad[i])
            sigmoid = ONE / (ONE + exp(-gate))
            silu = gate * sigmoid
            slope = sigmoid + silu * (ONE - sigmoid)
            gate_grads[i] = from_float(g * to_float(us[i]) * slope, grad[i])
            u_grads[i] = from_float(g * silu, grad[i])


@njit(**COMPILED)
def norm_rows(x, y, stats, weight, bias, centered, eps):
    """Write LayerNorm (centered) or RMSNorm of rows x (n, C) into y (n, C), and into stats (n, 2) what each row was
    shifted by, which is its mean or 0, and multiplied by."""
    width = x.shape[1]
    e = np.empty(width, np.float32)
    for row in range(len(x)):
        a, b, total, squares = x[row], y[row], np.float32(0), np.float32(0)
        for i in range(width):
            e[i] = to_float(a[i])
            total += e[i]
        mean = total / np.float32(width) if centered else np.float32(0)
        for i in range(width):
            e[i] -= mean
            squares += e[i] * e[i]
        r = ONE / np.sqrt(squares / np.float32(width) + np.float32(eps))
        stats[row, 0], stats[row, 1] = mean, r
        for i in range(width):
            b[i] = from_float(e[i] * r * weight[i] + bias[i], b[i])


@njit(**COMPILED)
def norm_row_gradients(x, grads, stats, x_grads, weight, centered, has_bias):
    """Write the gradients of `norm_rows`'s x into x_grads (n, C), from those of y, grads (n, C).

    Returns those of weight and bias, (2, C).
    """
    width = x.shape[1]
    weight_grads, bias_grads = np.zeros(width, np.float32), np.zeros(width, np.float32)
    normed, g = np.empty(width, np.float32), np.empty(width, np.float32)
    for row in range(len(x)):
        a, b, c = x[row], grads[row], x_grads[row]
        mean, r, total, product = stats[row, 0], stats[row, 1], np.float32(0), np.float32(0)
        for i in range(width):
            normed[i] = (to_float(a[i]) - mean) * r
            g[i] = to_float(b[i])
        for i in range(width):
            weight_grads[i] += g[i] * normed[i]
        if has_bias:
            for i in range(width):
                bias_grads[i] += g[i]
        for i in range(width):
            g[i] *= weight[i]
            total += g[i]
            product += g[i] * normed[i]
        shift = total / np.float32(width) if centered else np.float32(0)
        product /= np.float32(width)
        for i in range(width):
            c[i] = from_float((g[i] - shift - normed[i] * product) * r, c[i])
    return np.stack((weight_grads, bias_grads))


@njit(**COMPILED)
def norm_and_rotate(x, y, r, places, weight, cos, sin, eps):
    """Write RMSNorm of the first heads of x (n, heads, D), rotated, into y, and the other heads as they are.

    weight (normed heads, D); cos, sin: angles by place, in which row i has places[i]; r (n, normed heads): 1 / RMS.
    """
    D = x.shape[2]
    half = D // 2
    e = np.empty(D, np.float32)
    for row in range(len(x)):
        c, s = cos[places[row]], sin[places[row]]
        for head in range(len(weight)):
            a, b, w, squares = x[row, head], y[row, head], weight[head], np.float32(0)
            for i in range(D):
                e[i] = to_float(a[i])
                squares += e[i] * e[i]
            factor = ONE / np.sqrt(squares / np.float32(D) + np.float32(eps))
            r[row, head] = factor
            for i in range(D):
                e[i] *= factor * w[i]
            for i in range(half):
                b[i] = from_float(e[i] * c[i] + e[half + i] * s[i], b[i])
                b[half + i] = from_float(e[half + i] * c[half + i] + e[i] * s[half + i], b[i])
        y[row, len(weight) :] = x[row, len(weight) :]


@njit(**COMPILED)
def norm_and_rotate_gradients(x, grads, r, places, x_grads, weight, cos, sin):
    """Write the gradients of `norm_and_rotate`'s x into x_grads, from those of y, grads. Returns those of weight."""
    D = x.shape[2]
    half = D // 2
    sums, normed, g = np.zeros(weight.shape, np.float32), np.empty(D, np.float32), np.empty(D, np.float32)
    for row in range(len(x)):
        c, s = cos[places[row]], sin[places[row]]
        for head in range(len(weight)):
            a, b, out, w, total = x[row, head], grads[row, head], x_grads[row, head], weight[head], sums[head]
            factor, product = r[row, head], np.float32(0)
            for i in range(half):
                g[i] = to_float(b[i]) * c[i] + to_float(b[half + i]) * s[half + i]
                g[half + i] = to_float(b[half + i]) * c[half + i] + to_float(b[i]) * s[i]
            for i in range(D):
                normed[i] = to_float(a[i]) * factor
                total[i] += g[i] * normed[i]
                g[i] *= w[i]
                product += g[i] * normed[i]
            product /= np.float32(D)
            for i in range(D):
                out[i] = from_float((g[i] - normed[i] * product) * factor, out[i])
        x_grads[row, len(weight) :] = grads[row, len(weight) :]
    return sums
