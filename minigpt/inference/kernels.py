"""Passes of generation on a CPU, compiled by numba: one more token for each of a few sequences, or short prompts.

Such a step reads every weight and does little with it. A call of it is one call of compiled code, which holds no lock
of Python's meanwhile. What makes it fast:
- Weights are asked for before they are needed (prefetched): with one row, the step takes the time that memory takes.
- A product is computed in tiles of OUTPUTS outputs and ROWS rows, whose sums stay in registers.
- int8 weights are multiplied with rows rounded to 8 bits (processors with VNNI) or 12 bits, in integers.
- Only the products, attention and the MLP's activation of several rows are split over threads.

numba needs no C++ compiler, takes seconds for each type of weights, and keeps its code on disk. Tests hold `KernelStep`
against model.py.
"""

import threading
from typing import NamedTuple

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic, overload
from torch import nn

from minigpt.kernels import COMPILED, ONE, as_array, exp, from_float, to_float
from model import rotary_angles

IN_PARALLEL = {**COMPILED, "parallel": True}

OUTPUTS, ROWS = 2, 4  # of a tile: 8 sums of 8 lanes fit the 16 registers of AVX2
WIDTH_MULTIPLE = 64  # the width of matrices is padded to a multiple of this
PREFETCH_BYTES, CACHE_LINE_BYTES = 4096, 64  # between the weights that are used and those that are asked for
MIN_PARALLEL_ROWS = 4  # from which work on rows is split over threads, which takes 4 µs
MAX_PASS_TOKENS = {
    "float": 16,
    "int8": 32,
}  # of a pass, by the type of weights: torch's products of more rows are faster
GELU, TANH_GELU, SWIGLU = range(3)
ONE_STEP_AT_A_TIME = threading.Lock()  # threads of several engines take turns: a step uses all cores anyway


class Matrices(NamedTuple):
    """Weight matrices of L layers; of each, outputs are (sum of products - shift) * scale + bias.

    values (L, out, in), padded by zeros to multiples of OUTPUTS and WIDTH_MULTIPLE: float32, the bits of bfloat16 in
    uint16, or int8; shifts, scales, biases (L, out).
    """

    values: np.ndarray
    shifts: np.ndarray
    scales: np.ndarray
    biases: np.ndarray


class Norms(NamedTuple):
    """Norms of L layers: weights (L, width), biases (L, width)."""

    weights: np.ndarray
    biases: np.ndarray


class Weights(NamedTuple):
    """All weights of a GPT. cos, sin (block_size, head_dim): the rotary angles. Where an architecture lacks a part, its
    array has no effect."""

    wte: np.ndarray
    wpe: np.ndarray
    cos: np.ndarray
    sin: np.ndarray
    ln_1: Norms
    c_attn: Matrices
    q_norm: Norms
    k_norm: Norms
    attn_proj: Matrices
    ln_2: Norms
    c_fc: Matrices
    mlp_proj: Matrices
    ln_f: Norms
    lm_head: Matrices


class Shape(NamedTuple):
    """What a step must know of a `GPTConfig`. activation: GELU, TANH_GELU or SWIGLU."""

    n_head: int
    n_kv_head: int
    head_dim: int
    is_gpt2: bool
    normalizes_qk: bool
    activation: int
    eps: float


class Buffers(NamedTuple):
    """Memory of a pass of n tokens; all float32, but for levels of a model in int8."""

    x: np.ndarray  # (n, C)
    normed: np.ndarray  # (n, C)
    qkv: np.ndarray  # (n, outputs of c_attn)
    heads: np.ndarray  # (n, n_head * D)
    fc: np.ndarray  # (n, outputs of c_fc)
    inner: np.ndarray  # (n, n_inner), behind the activation
    levels: tuple  # normed, heads and inner as products take them: each (n, its width, padded)
    row_scales: np.ndarray  # (n,), by which the levels of a row are multiplied
    scores: np.ndarray  # (n, n_head, positions of the cache)
    logits: np.ndarray  # (n, V, padded)


# Tiles of products, in LLVM's instructions: numba has no vectors of its own, and its compiler finds no good ones for
# integers.

I8, I16, I32, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
LANES = 8


def vector(number, count=LANES):
    """LLVM's type of a vector of numbers."""
    return ir.VectorType(number, count)


def call_intrinsic(builder, name, result, *values):
    """Call LLVM's function of a name, whose result has a type."""
    kind = ir.FunctionType(result, [value.type for value in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)


def prefetch(builder, place, n_bytes):
    """Ask memory for the n_bytes that lie PREFETCH_BYTES behind a place."""
    for offset in range(PREFETCH_BYTES, PREFETCH_BYTES + n_bytes, CACHE_LINE_BYTES):
        ahead = builder.gep(place, [ir.Constant(I32, offset)], source_etype=I8)
        flags = [ir.Constant(I32, flag) for flag in (0, 3, 1)]  # to be read, kept in all caches, data
        call_intrinsic(builder, "llvm.prefetch.p0", ir.VoidType(), ahead, *flags)


class FloatProducts:
    """Products of float32 rows with weights in float32, or in bfloat16 (uint16), which are widened."""

    chunk, row_type, sum_type, numba_sum = LANES, F32, F32, types.float32

    def __init__(self, values):
        self.is_wide = values == types.float32
        self.weight_type = F32 if self.is_wide else I16

    def widen(self, builder, weights):
        """Weights of the chunk as the product takes them."""
        if self.is_wide:
            return weights
        bits = builder.shl(builder.zext(weights, vector(I32)), ir.Constant(vector(I32), [16] * LANES))
        return builder.bitcast(bits, vector(F32))

    def add(self, builder, total, weights, row):
        """total (LANES,) plus the products of a chunk."""
        return call_intrinsic(builder, "llvm.fma.v8f32", vector(F32), weights, row, total)

    def reduce(self, builder, total):
        """The sum of all lanes."""
        return call_intrinsic(builder, "llvm.vector.reduce.fadd.v8f32", F32, ir.Constant(F32, -0.0), total)


class IntegerProducts:
    """Products of rows in int16 with weights in int8; sums are int32."""

    chunk, row_type, weight_type, sum_type, numba_sum = 2 * LANES, I16, I8, I32, types.int32

    def widen(self, builder, weights):
        return builder.sext(weights, vector(I16, self.chunk))

    def add(self, builder, total, weights, row):
        if HAS_AVX2:
            pairs = call_intrinsic(builder, "llvm.x86.avx2.pmadd.wd", vector(I32), weights, row)
            return builder.add(total, pairs)
        products = builder.mul(*(builder.sext(each, vector(I32, self.chunk)) for each in (weights, row)))
        nothing = ir.Constant(products.type, ir.Undefined)
        halves = [ir.Constant(vector(I32), list(range(first, first + LANES))) for first in (0, LANES)]
        return builder.add(total, builder.add(*(builder.shuffle_vector(products, nothing, half) for half in halves)))

    def reduce(self, builder, total):
        return call_intrinsic(builder, "llvm.vector.reduce.add.v8i32", I32, total)


class ByteProducts(IntegerProducts):
    """Products of rows in uint8 with weights in int8, by VNNI's instruction."""

    chunk, row_type = 4 * LANES, I8

    def widen(self, builder, weights):
        return weights

    def add(self, builder, total, weights, row):
        return call_intrinsic(builder, "llvm.x86.avx512.vpdpbusd.256", vector(I32), total, row, weights)


HOST_FEATURES = set((numba.config.CPU_FEATURES or get_host_cpu_features()).split(","))
HAS_AVX2 = "+avx2" in HOST_FEATURES
HAS_VNNI = "+avxvnni" in HOST_FEATURES or {"+avx512vnni", "+avx512vl"} <= HOST_FEATURES
# Rows for int8 weights: their largest level, and what is added to a level. 12 bits, so that int32 holds the sums.
LEVEL_TYPE, MAX_ROW_LEVEL, ROW_ZERO = (np.uint8, 127, np.int32(128)) if HAS_VNNI else (np.int16, 2047, np.int32(0))


def choose_products(values):
    """The products for weights of a numba type."""
    if values != types.int8:
        return FloatProducts(values)
    return ByteProducts() if HAS_VNNI else IntegerProducts()


def make_tile(rows):
    """tile(x, row, values, output): sums of products of rows `row` … of x (n, in) with the OUTPUTS rows `output` … of
    values (out, in), as a tuple of OUTPUTS * rows."""
    # A tile of one row has too few sums to keep the processor busy: it has several for each, of different chunks.
    sums_of_each = 4 if rows == 1 else 1

    @intrinsic
    def tile(typing_context, x, row, values, output):
        products = choose_products(values.dtype)
        size = values.dtype.bitwidth // 8
        # A step takes a cache line of weights or more, so that each line is asked for once.
        step = min(WIDTH_MULTIPLE, max(products.chunk * sums_of_each, CACHE_LINE_BYTES // size))

        def generate(context, builder, signature, arguments):
            arrays = [context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2)]
            width = builder.extract_value(arrays[1].shape, 1)

            def start(array, first, offset, number):
                place = builder.add(first, ir.Constant(first.type, offset))
                return builder.gep(array.data, [builder.mul(place, width)], source_etype=number)

            starts = [start(arrays[0], arguments[1], i, products.row_type) for i in range(rows)]
            weight_starts = [start(arrays[1], arguments[3], i, products.weight_type) for i in range(OUTPUTS)]
            chunks = range(0, step, products.chunk)
            zero = ir.Constant(vector(products.sum_type), [0] * LANES)
            sums_of = range(OUTPUTS * rows)
            sums = [[cgutils.alloca_once_value(builder, zero) for _ in chunks[:sums_of_each]] for _ in sums_of]

            def load(first, at, number):
                place = builder.gep(first, [at], source_etype=number)
                return builder.load(place, align=1, typ=vector(number, products.chunk))

            with cgutils.for_range(builder, builder.udiv(width, ir.Constant(width.type, step))) as loop:
                first = builder.mul(loop.index, ir.Constant(width.type, step))
                for weight_start in weight_starts:
                    prefetch(
                        builder, builder.gep(weight_start, [first], source_etype=products.weight_type), step * size
                    )
                for i, offset in enumerate(chunks):
                    at = builder.add(first, ir.Constant(width.type, offset))
                    row_chunks = [load(each, at, products.row_type) for each in starts]
                    for o, weight_start in enumerate(weight_starts):
                        weights = products.widen(builder, load(weight_start, at, products.weight_type))
                        for r, row_chunk in enumerate(row_chunks):
                            total = sums[o * rows + r][i % sums_of_each]
                            builder.store(products.add(builder, builder.load(total), weights, row_chunk), total)
            add = builder.fadd if products.sum_type is F32 else builder.add
            totals = []
            for parts in sums:
                total = builder.load(parts[0])
                for part in parts[1:]:
                    total = add(total, builder.load(part))
                totals.append(products.reduce(builder, total))
            return context.make_tuple(builder, signature.return_type, totals)

        return types.UniTuple(products.numba_sum, OUTPUTS * rows)(x, row, values, output), generate

    return tile


tile_of_rows, tile_of_one = make_tile(ROWS), make_tile(1)


# Functions of numbers


@njit(**COMPILED)
def gelu(x):
    """x Φ(x). erf to 1.5e-7 by Abramowitz and Stegun (1964), 7.1.26."""
    z = abs(x) * np.float32(0.70710678)
    t = ONE / (ONE + np.float32(0.3275911) * z)
    p = np.float32(1.061405429) * t - np.float32(1.453152027)
    p = p * t + np.float32(1.421413741)
    p = p * t - np.float32(0.284496736)
    p = p * t + np.float32(0.254829592)
    tail = np.float32(0.5) * p * t * exp(-z * z)  # 1 - Φ(|x|)
    return np.float32(0.5) * (x + abs(x)) - abs(x) * tail  # without a branch, which would hinder vectors


@njit(**COMPILED)
def silu(x):
    """x σ(x)."""
    return x / (ONE + exp(-x))


@njit(**COMPILED)
def tanh_gelu(x):
    """GELU by tanh: x σ(2u), u = √(2/π) (x + 0.044715 x³)."""
    return x / (ONE + exp(np.float32(-1.5957691) * (x + np.float32(0.044715) * x * x * x)))


# Products


@njit(**COMPILED)
def quantize_row(x, levels):
    """Write x (width,) rounded to levels (width,); returns the scale, by which levels are multiplied."""
    # The bits of numbers above 0 are in the numbers' order; maxima of integers are computed in vectors.
    bits, largest = x.view(np.int32), np.int32(0)
    for i in range(len(x)):
        largest = max(largest, np.int32(bits[i] & np.int32(0x7FFFFFFF)))
    scale = max(np.int32(largest).view(np.float32) / np.float32(MAX_ROW_LEVEL), np.float32(1e-30))
    factor = ONE / scale
    for i in range(len(x)):
        levels[i] = np.int32(np.int32(np.floor(x[i] * factor + np.float32(0.5))) + ROW_ZERO)
    return scale


def store_row(x, levels):
    """Write x (width,) to levels (width,) as products take it; returns its scale."""
    raise TypeError("called by compiled code only")


@overload(store_row)
def compile_store_row(x, levels):
    if levels.dtype != types.float32:
        return lambda x, levels: quantize_row(x, levels)

    def copy_row(x, levels):
        levels[:] = x
        return ONE

    return copy_row


@njit(**COMPILED)
def store_output(total, shift, scale, bias, out, row, output, add):
    """Write (total - shift) * scale + bias to out[row, output], or add it."""
    y = np.float32(total - shift) * scale + bias
    out[row, output] = out[row, output] + y if add else y


@njit(**IN_PARALLEL)
def multiply(x, row_scales, values, shifts, scales, biases, out, add):
    """Products of rows x (n, in), whose values are multiplied by row_scales (n,), with `Matrices` of one layer, into
    out (n, out), or added to it."""
    n = len(x)
    for i in prange(len(values) // OUTPUTS):
        first = i * OUTPUTS
        for row in range(0, n - n % ROWS, ROWS):
            sums = tile_of_rows(x, row, values, first)
            for j in range(OUTPUTS):
                o = first + j
                for r in range(ROWS):
                    scale = scales[o] * row_scales[row + r]
                    store_output(sums[j * ROWS + r], shifts[o], scale, biases[o], out, row + r, o, add)
        for row in range(n - n % ROWS, n):
            sums_of_one = tile_of_one(x, row, values, first)
            for j in range(OUTPUTS):
                o = first + j
                scale = scales[o] * row_scales[row]
                store_output(sums_of_one[j], shifts[o], scale, biases[o], out, row, o, add)


@njit(**COMPILED)
def product(levels, row_scales, matrices, layer, out, add):
    """`multiply` by the matrix of a layer."""
    values, shifts = matrices.values[layer], matrices.shifts[layer]
    multiply(levels, row_scales, values, shifts, matrices.scales[layer], matrices.biases[layer], out, add)


# Parts of a block


@njit(**COMPILED)
def dot(x, numbers):
    total = np.float32(0)
    for i in range(len(x)):
        total += x[i] * to_float(numbers[i])
    return total


@njit(**COMPILED)
def normalize(x, weight, bias, centered, eps, out):
    """LayerNorm (centered) or RMSNorm of x (width,) into out."""
    mean = np.float32(0)
    if centered:
        for i in range(len(x)):
            mean += x[i]
        mean /= np.float32(len(x))
    squares = np.float32(0)
    for i in range(len(x)):
        squares += (x[i] - mean) * (x[i] - mean)
    factor = ONE / np.sqrt(squares / np.float32(len(x)) + eps)
    for i in range(len(x)):
        out[i] = (x[i] - mean) * factor * weight[i] + bias[i]


@njit(**COMPILED)
def normalize_rows(x, norms, layer, shape, normed, levels, row_scales):
    """Write the norm of each row of x (n, C) to levels (n, C), with its scale."""
    weight, bias, eps = norms.weights[layer], norms.biases[layer], np.float32(shape.eps)
    for row in range(len(x)):
        normalize(x[row], weight, bias, shape.is_gpt2, eps, normed[row])
        row_scales[row] = store_row(normed[row], levels[row, : x.shape[1]])


@njit(**COMPILED)
def rotate_head(x, cos, sin):
    """Rotate x (D,) in place, as `model.rotate` does."""
    half = len(x) // 2
    for i in range(half):
        low, high = x[i], x[i + half]
        x[i] = low * cos[i] + high * sin[i]
        x[i + half] = high * cos[i + half] + low * sin[i + half]


@njit(**COMPILED)
def attend_head(query, keys, values, scores, out):
    """Attention of query (D,) over keys and values (T, D) into out (D,); scores (T,) are overwritten."""
    factor = ONE / np.sqrt(np.float32(len(query)))
    largest = np.float32(-np.inf)
    for t in range(len(scores)):
        scores[t] = dot(query, keys[t]) * factor
        largest = max(largest, scores[t])
    total = np.float32(0)
    for t in range(len(scores)):
        scores[t] = exp(scores[t] - largest)
        total += scores[t]
    out[:] = 0
    for t in range(len(scores)):
        p = scores[t] / total
        for j in range(len(out)):
            out[j] += p * to_float(values[t, j])


@njit(**COMPILED)
def place_token(qkv, weights, layer, shape, row, place, keys, values):
    """Normalize and rotate the queries and keys of a token's qkv (out of c_attn,), in place; write its keys and values
    to a row and a place of the cache: keys, values (batch, n_kv_head, positions, D)."""
    D, n_heads = shape.head_dim, shape.n_head + shape.n_kv_head
    for head in range(n_heads):
        part = qkv[head * D : (head + 1) * D]
        if shape.normalizes_qk:
            norms = weights.q_norm if head < shape.n_head else weights.k_norm
            normalize(part, norms.weights[layer], norms.biases[layer], False, np.float32(shape.eps), part)
        if not shape.is_gpt2:
            rotate_head(part, weights.cos[place], weights.sin[place])
    for head in range(shape.n_kv_head):
        key, value = keys[row, head, place], values[row, head, place]
        first = (shape.n_head + head) * D
        for i in range(D):
            key[i] = from_float(qkv[first + i], key[i])
            value[i] = from_float(qkv[first + shape.n_kv_head * D + i], value[i])


@njit(**IN_PARALLEL)
def attend(qkv, n_head, rows, at, keys, values, scores, out):
    """Attention of tokens' queries qkv (n, …) over the positions up to at (n,) of rows (n,) of the cache, into out
    (n, n_head * D)."""
    n_kv_head, D = keys.shape[1], keys.shape[3]
    for work in prange(len(qkv) * n_head):
        i, head = work // n_head, work % n_head
        row, kv_head, end = rows[i], head * n_kv_head // n_head, at[i] + 1
        query, result = qkv[i, head * D : (head + 1) * D], out[i, head * D : (head + 1) * D]
        attend_head(query, keys[row, kv_head, :end], values[row, kv_head, :end], scores[i, head, :end], result)


@njit(**COMPILED)
def store_heads(heads, levels, row_scales):
    """Write rows heads (n, width) to levels, with their scales."""
    for row in range(len(heads)):
        row_scales[row] = store_row(heads[row], levels[row, : heads.shape[1]])


@njit(**COMPILED)
def activate_row(fc, kind, inner, levels):
    """The activation of fc (width of c_fc,) to inner (n_inner,) and to levels; returns their scale."""
    width = len(inner)
    if kind == SWIGLU:
        for i in range(width):
            inner[i] = silu(fc[i]) * fc[width + i]
    elif kind == GELU:
        for i in range(width):
            inner[i] = gelu(fc[i])
    else:
        for i in range(width):
            inner[i] = tanh_gelu(fc[i])
    return store_row(inner, levels[:width])


@njit(**IN_PARALLEL)
def activate_in_parallel(fc, kind, inner, levels, row_scales):
    for row in prange(len(fc)):
        row_scales[row] = activate_row(fc[row], kind, inner[row], levels[row])


@njit(**COMPILED)
def activate_rows(fc, kind, inner, levels, row_scales):
    """`activate_row` of each row."""
    if len(fc) >= MIN_PARALLEL_ROWS:
        return activate_in_parallel(fc, kind, inner, levels, row_scales)
    for row in range(len(fc)):
        row_scales[row] = activate_row(fc[row], kind, inner[row], levels[row])


@njit(**COMPILED)
def run_tokens(ids, rows, at, last, keys, values, weights, shape, buffers):
    """Pass tokens ids (n,), at positions at (n,) of rows (n,) of a cache, through the model.

    Logits of the tokens last (m,) go to the buffers' logits (m, V). keys, values (L, batch, n_kv_head, positions, D):
    the cache, float32 or bfloat16's bits; the tokens are written to it, and attend to what is before them in their row.
    """
    n = len(ids)
    x, normed, qkv, heads = buffers.x[:n], buffers.normed[:n], buffers.qkv[:n], buffers.heads[:n]
    fc, inner, row_scales = buffers.fc[:n], buffers.inner[:n], buffers.row_scales
    of_normed, of_heads, of_inner = buffers.levels[0][:n], buffers.levels[1][:n], buffers.levels[2][:n]
    for i in range(n):
        for j in range(x.shape[1]):
            x[i, j] = to_float(weights.wte[ids[i], j])
            if shape.is_gpt2:
                x[i, j] += to_float(weights.wpe[at[i], j])
    for layer in range(len(keys)):
        normalize_rows(x, weights.ln_1, layer, shape, normed, of_normed, row_scales)
        product(of_normed, row_scales, weights.c_attn, layer, qkv, False)
        for i in range(n):
            place_token(qkv[i], weights, layer, shape, rows[i], at[i], keys[layer], values[layer])
        attend(qkv, shape.n_head, rows, at, keys[layer], values[layer], buffers.scores, heads)
        store_heads(heads, of_heads, row_scales)
        product(of_heads, row_scales, weights.attn_proj, layer, x, True)
        normalize_rows(x, weights.ln_2, layer, shape, normed, of_normed, row_scales)
        product(of_normed, row_scales, weights.c_fc, layer, fc, False)
        activate_rows(fc, shape.activation, inner, of_inner, row_scales)
        product(of_inner, row_scales, weights.mlp_proj, layer, x, True)
    for i in range(len(last)):
        x[i] = x[last[i]]
    normalize_rows(x[: len(last)], weights.ln_f, 0, shape, normed, of_normed, row_scales)
    product(of_normed[: len(last)], row_scales, weights.lm_head, 0, buffers.logits, False)


# The model's weights as arrays


def round_up(number, multiple):
    return -(-number // multiple) * multiple


def stack_matrices(layers):
    """The `Matrices` of linear layers, with whom they share the weights' memory afterwards."""
    quantized = hasattr(layers[0], "levels")
    weights = [layer.levels if quantized else layer.weight.detach() for layer in layers]
    outputs, inputs = weights[0].shape
    # One tensor, since large ones are kept in huge pages, which are read faster.
    shape = len(layers), round_up(outputs, OUTPUTS), round_up(inputs, WIDTH_MULTIPLE)
    values = torch.zeros(shape, dtype=weights[0].dtype)
    shifts = np.zeros(shape[:2], dtype=np.int32 if quantized else np.float32)
    scales, biases = np.ones(shape[:2], dtype=np.float32), np.zeros(shape[:2], dtype=np.float32)
    for i, (layer, weight) in enumerate(zip(layers, weights, strict=True)):
        values[i, :outputs, :inputs] = weight
        if quantized:
            layer.levels = values[i, :outputs, :inputs]
            scales[i, :outputs] = layer.scale
            shifts[i, :outputs] = int(ROW_ZERO) * weight.sum(dim=1)
        else:
            layer.weight.data = values[i, :outputs, :inputs]
        if getattr(layer, "bias", None) is not None:
            biases[i, :outputs] = layer.bias.float()
    return Matrices(as_array(values), shifts, scales, biases)


def stack_norms(norms, width):
    """The `Norms` of norm layers; those that are None have no effect."""
    weights, biases = torch.ones(len(norms), width), torch.zeros(len(norms), width)
    for norm, weight, bias in zip(norms, weights, biases, strict=True):
        if norm is not None:
            weight.copy_(norm.weight)
            if getattr(norm, "bias", None) is not None:
                bias.copy_(norm.bias)
    return Norms(weights.numpy(), biases.numpy())


def stack_weights(model):
    """The `Weights` of a GPT."""
    config, blocks = model.config, model.h
    cos, sin = torch.zeros(2, 1, config.head_dim)
    if not config.is_gpt2:
        cos, sin = (each[:, 0] for each in rotary_angles(torch.arange(config.block_size), config))
    is_tied = getattr(model.lm_head, "weight", None) is model.wte.weight
    head = stack_matrices([model.lm_head])
    return Weights(
        wte=head.values[0] if is_tied else as_array(model.wte.weight),
        wpe=as_array(model.wpe.weight if config.is_gpt2 else model.wte.weight[:1]),
        cos=cos.contiguous().numpy(),
        sin=sin.contiguous().numpy(),
        ln_1=stack_norms([block.ln_1 for block in blocks], config.n_embd),
        c_attn=stack_matrices([block.attn.c_attn for block in blocks]),
        q_norm=stack_norms([block.attn.q_norm for block in blocks], config.head_dim),
        k_norm=stack_norms([block.attn.k_norm for block in blocks], config.head_dim),
        attn_proj=stack_matrices([block.attn.c_proj for block in blocks]),
        ln_2=stack_norms([block.ln_2 for block in blocks], config.n_embd),
        c_fc=stack_matrices([block.mlp.c_fc for block in blocks]),
        mlp_proj=stack_matrices([block.mlp.c_proj for block in blocks]),
        ln_f=stack_norms([model.ln_f], config.n_embd),
        lm_head=head,
    )


def can_run(model):
    """Whether `KernelStep` runs a GPT: on a CPU, with weights of a type that it has, and without adapters in layers."""
    layers = [
        layer for block in model.h for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
    ]
    is_plain = all(type(layer) is nn.Linear or hasattr(layer, "levels") for layer in layers)
    weight = model.wte.weight
    has_type = weight.dtype in (torch.float32, torch.bfloat16)
    return is_plain and has_type and weight.device.type == "cpu" and model.config.n_embd % OUTPUTS == 0


class KernelStep:
    """The passes of a GPT on a CPU by `run_tokens`. is_quantized: whether its weights are int8; max_prompt_tokens,
    max_rows: the largest passes that it is for.

    model: one that `can_run`, in eval mode. Its matrices move to other memory, which it shares.
    """

    @torch.no_grad()
    def __init__(self, model):
        config = self.config = model.config
        self.weights = stack_weights(model)
        self.is_quantized = self.weights.c_fc.values.dtype == np.int8
        self.max_prompt_tokens = self.max_rows = MAX_PASS_TOKENS["int8" if self.is_quantized else "float"]
        activation = SWIGLU if not config.is_gpt2 else TANH_GELU if config.tanh_gelu else GELU
        self.shape = Shape(
            config.n_head, config.n_kv_head, config.head_dim, config.is_gpt2, config.architecture == "qwen3",
            activation, config.norm_eps,
        )  # fmt: skip
        self.buffers = self.new_buffers(1, 1)

    def new_buffers(self, n, positions):
        """`Buffers` for n rows and so many positions of the cache."""
        weights, config = self.weights, self.config
        level_type = LEVEL_TYPE if self.is_quantized else np.float32

        def zeros(*shape, dtype=np.float32):
            return np.zeros((n, *shape), dtype=dtype)

        matrices = (weights.c_attn, weights.attn_proj, weights.mlp_proj)
        return Buffers(
            x=zeros(config.n_embd),
            normed=zeros(config.n_embd),
            qkv=zeros(weights.c_attn.values.shape[1]),
            heads=zeros(config.n_head * config.head_dim),
            fc=zeros(weights.c_fc.values.shape[1]),
            inner=zeros(config.n_inner),
            levels=tuple(zeros(matrix.values.shape[2], dtype=level_type) for matrix in matrices),
            row_scales=zeros(),
            scores=zeros(config.n_head, positions),
            logits=zeros(weights.lm_head.values.shape[1]),
        )

    def compile(self):
        """Compile the passes, or load them from the disk, by a step over a cache of its own."""
        config = self.config
        type_of_cache = torch.float32 if self.weights.c_fc.values.dtype == np.float32 else torch.bfloat16
        cache = torch.zeros(2, config.n_layer, 1, config.n_kv_head, 1, config.head_dim, dtype=type_of_cache)
        self.step([0], [0], *cache)

    def step(self, ids, positions, keys, values):
        """Logits (n, V), which the next pass overwrites, after tokens ids (n,) at positions (n,), both lists, of the
        first n rows of a cache: keys, values (L, batch, n_kv_head, positions, D), tensors, which are written."""
        every = range(len(ids))
        return self.run(ids, every, positions, every, keys, values)

    def prefill(self, prompts, first_row, start, keys, values):
        """Logits (n, V), which the next pass overwrites, after n prompts (lists of ids), which begin at position
        `start` of the rows from `first_row` on of a cache, as in `step`."""
        ids = [token_id for prompt in prompts for token_id in prompt]
        rows = [first_row + i for i, prompt in enumerate(prompts) for _ in prompt]
        at = [start + i for prompt in prompts for i in range(len(prompt))]
        last = np.cumsum([len(prompt) for prompt in prompts]) - 1
        return self.run(ids, rows, at, last, keys, values)

    def run(self, ids, rows, positions, last, keys, values):
        """Logits (m, V) after the tokens last (m,); the arguments are those of `run_tokens`, lists and tensors."""
        n, cached = len(ids), keys.shape[3]
        if len(self.buffers.x) < n or self.buffers.scores.shape[2] < cached:
            self.buffers = self.new_buffers(max(n, len(self.buffers.x)), cached)
        arguments = [np.array(each, dtype=np.int64) for each in (ids, rows, positions, last)]
        with ONE_STEP_AT_A_TIME:
            numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
            run_tokens(*arguments, as_array(keys), as_array(values), self.weights, self.shape, self.buffers)
        return torch.from_numpy(self.buffers.logits[: len(last), : self.config.vocab_size])
