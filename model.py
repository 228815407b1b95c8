"""The GPT, organized as in nanoGPT, and its KV cache. `GPTConfig.architecture` chooses its parts:

                gpt2 (Radford et al. 2019)      qwen3 (Yang et al. 2025), qwen2, llama
  norm          LayerNorm                       RMSNorm (Zhang and Sennrich 2019)
  positions     learned, added to embeddings    rotary: queries and keys are rotated (Su et al. 2021)
  attention     a key and value for each head   several heads may share them (Ainslie et al. 2023);
                                                qwen3: queries and keys are normalized (Henry et al. 2020)
  MLP           GELU                            SwiGLU (Shazeer 2020)
  biases        all or none                     none; qwen2: of queries, keys and values

qwen3 computes what Hugging Face's Qwen3ForCausalLM computes, gpt2 what its GPT2LMHeadModel does; qwen2 and llama are
for models of others.

Shapes: B rows, T positions, C = n_embd, D = head_dim, V = vocab_size.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from minigpt import kernels
from minigpt.device import adds_in_float32, usable_memory

TARGETS_MULTIPLE = 128  # the number of targets of a loss is padded to a multiple of this
MAX_LOGIT_ROWS = 512  # positions whose logits are in memory at the same time; on a GPU `max_logit_rows`
MAX_GPU_LOGIT_ROWS = 8192
MAX_LOGITS_SHARE = 1 / 50  # of a GPU's memory, for those logits
PLAIN_ATTENTION_QUERIES = 256  # queries that plain_attention computes at a time
INNER_MULTIPLE = 64  # the default width of SwiGLU is a multiple of this


ARCHITECTURES = ("gpt2", "qwen3", "qwen2", "llama")


@dataclass
class GPTConfig:
    """The shape of a GPT. A 0 is replaced by the value that its comment names."""

    block_size: int = 512
    vocab_size: int = 50304  # GPT-2's 50257 ids, padded up to a multiple of 64
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = False  # gpt2: biases in linear layers and norms
    architecture: str = "gpt2"
    n_kv_head: int = 0  # heads of keys and values; 0: n_head
    head_dim: int = 0  # 0: n_embd / n_head
    n_inner: int = 0  # width of the MLP; 0: 4 n_embd in gpt2; in SwiGLU, which has three matrices, 8/3 n_embd
    tied: bool = True  # whether the output layer is the embedding's matrix
    tanh_gelu: bool = False  # gpt2: GELU's approximation by tanh, as in OpenAI's GPT-2; False: GELU itself
    norm_eps: float = 0.0  # 0: 1e-5 in gpt2, 1e-6 in the others
    rope_theta: float = 10_000.0  # base of the rotary frequencies
    rope_scaling: dict | None = None  # of Llama 3.1: factor, low_freq_factor, high_freq_factor, original_positions
    causal: bool = True  # False: each token attends to those after it too, as in BERT (Devlin et al. 2019)
    n_labels: int = 0  # labels that the output layer tells apart, as a task's head; 0: it gives the next token

    def __post_init__(self):
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture {self.architecture!r} is none of {', '.join(ARCHITECTURES)}")
        self.tied = self.tied and not self.n_labels
        if not self.head_dim and self.n_embd % self.n_head:
            raise ValueError(f"n_embd ({self.n_embd}) is not a multiple of n_head ({self.n_head})")
        self.n_kv_head = self.n_kv_head or self.n_head
        self.head_dim = self.head_dim or self.n_embd // self.n_head
        swiglu = -(-self.n_embd * 8 // (3 * INNER_MULTIPLE)) * INNER_MULTIPLE
        self.n_inner = self.n_inner or (4 * self.n_embd if self.is_gpt2 else swiglu)
        self.norm_eps = self.norm_eps or (1e-5 if self.is_gpt2 else 1e-6)
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head ({self.n_head}) is not a multiple of n_kv_head ({self.n_kv_head})")
        if not self.is_gpt2 and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even width of a head, and head_dim is {self.head_dim}")

    @property
    def is_gpt2(self):
        """Whether the model has GPT-2's parts; the other architectures share most of theirs."""
        return self.architecture == "gpt2"


class KVCache:
    """Keys and values of the positions computed so far, in preallocated tensors that are written in place.

    keys, values: (n_layer, batch_size, n_kv_head, max_len, D), of type `dtype`.
    """

    def __init__(self, config, batch_size, max_len, device, dtype=torch.float32):
        shape = (config.n_layer, batch_size, config.n_kv_head, max_len, config.head_dim)
        self.keys, self.values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))

    def move(self, source, target, length):
        """Copy the first `length` positions of row `source` to row `target`."""
        for tensor in (self.keys, self.values):
            tensor[:, target, :, :length] = tensor[:, source, :, :length]


class VirtualTokens(NamedTuple):
    """Keys and values of n virtual tokens, to which all rows attend: those of prompt and prefix tuning.

    keys, values: one tensor per layer, (n_kv_head, n, D). They have the positions 0 to n - 1; real tokens follow.
    """

    keys: list
    values: list

    @property
    def n(self):
        """Number of virtual tokens."""
        return self.keys[0].shape[1]

    def before(self, layer, k, v):
        """(keys, values), each (B, n_kv_head, n + T, D): a layer's virtual ones before k, v (B, n_kv_head, T, D)."""
        own = (t[layer].to(k.dtype).expand(len(k), -1, -1, -1) for t in self)
        return tuple(torch.cat(pair, dim=2) for pair in zip(own, (k, v), strict=True))


class RowsPass:
    """Attention over rows that begin behind virtual tokens, or in which tokens attend in both directions.

    idx (B, T): ids; with causal=False, those below 0 are padding, to which no token attends. virtual: `VirtualTokens`
    or None. dropout: share of attention probabilities dropped.
    """

    def __init__(self, idx, virtual=None, causal=True, dropout=0.0):
        self.virtual, self.dropout = virtual, dropout
        self.n = virtual.n if virtual else 0
        queries = idx.shape[1]
        if causal:
            ones = torch.ones(queries, self.n + queries, dtype=torch.bool, device=idx.device)
            self.mask = ones.tril(self.n)
        else:
            self.mask = F.pad(idx >= 0, (self.n, 0), value=True)[:, None, None]

    def positions(self, idx):
        """Positions of idx (B, T), as (T,)."""
        return torch.arange(self.n, self.n + idx.shape[1], device=idx.device)

    def attend(self, layer, q, k, v):
        """Attention of q (B, n_head, T, D) over the virtual tokens and k, v (B, n_kv_head, T, D)."""
        if self.virtual:
            k, v = self.virtual.before(layer, k, v)
        return attention(q, k, v, attn_mask=self.mask, dropout_p=self.dropout)


class PromptPass:
    """Attention over whole prompts (prefill): causal, and it collects the keys and values for a cache.

    lengths (B,): length of each prompt. Rows are padded on the right, so causality hides the padding.
    virtual: `VirtualTokens` before the prompts, or None.
    keys, values: after the pass, one tensor per layer, (B, n_kv_head, T, D), of the prompts alone.
    """

    def __init__(self, lengths, virtual=None):
        self.keys, self.values, self.lengths = [], [], lengths
        self.virtual, self.rows_pass = virtual, None

    def positions(self, idx):
        """Positions of idx (B, T), as (T,)."""
        if self.virtual is None:
            return torch.arange(idx.shape[1], device=idx.device)
        self.rows_pass = RowsPass(idx, self.virtual)
        return self.rows_pass.positions(idx)

    def attend(self, layer, q, k, v):
        """Causal attention of q (B, n_head, T, D) over k, v (B, n_kv_head, T, D); returns the shape of q."""
        self.keys.append(k)
        self.values.append(v)
        if self.rows_pass is not None:
            return self.rows_pass.attend(layer, q, k, v)
        return attention(q, k, v, is_causal=True)

    def last_states(self, x):
        """States (B, C) of each prompt's last token, from states x (B, T, C)."""
        return x[torch.arange(len(x), device=x.device), self.lengths - 1]


class StepPass:
    """Attention of one new token for each of the first n rows of a cache (a decode step).

    keys, values: one slice of the cache per layer, (n, n_kv_head, end, D).
    at (n,): positions of the new tokens, all below end.
    """

    def __init__(self, keys, values, at):
        self.keys, self.values, self.at = keys, values, at
        self.rows = torch.arange(len(at), device=at.device)
        self.mask = None
        if len(at) > 1:  # hides the positions after each row's own; a single row ends at its position
            later = torch.arange(keys[0].shape[2], device=at.device) > at[:, None]
            self.mask = torch.zeros(later.shape, dtype=keys[0].dtype, device=at.device)
            self.mask = self.mask.masked_fill(later, -math.inf)[:, None, None]

    def positions(self, idx):
        """Positions of idx (n, 1), as (n, 1)."""
        return self.at[:, None]

    def attend(self, layer, q, k, v):
        """Write k, v (n, n_kv_head, 1, D) into the cache and attend to each row's positions up to `at`."""
        keys, values = self.keys[layer], self.values[layer]
        keys[self.rows, :, self.at] = k[:, :, 0].to(keys.dtype)
        values[self.rows, :, self.at] = v[:, :, 0].to(values.dtype)
        y = attention(q.to(keys.dtype), keys, values, attn_mask=self.mask)
        return y.to(q.dtype)

    def last_states(self, x):
        """States (n, C) of the new tokens, from states x (n, 1, C)."""
        return x[:, 0]


def attention(q, k, v, **options):
    """torch's attention of q (B, n_head, T, D) over k, v (B, n_kv_head, T, D); returns the shape of q."""
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1], **options)


def plain_attention(q, k, v, dropout=0.0):
    """Causal attention of q (B, n_head, T, D) over k, v (B, n_kv_head, T, D) by plain matrix products, in blocks of
    queries.

    In bfloat16 on a CPU, forward and backward take 1/1.6 to 1/4 of the time of torch's kernels. It keeps all
    attention probabilities for the backward pass, so long rows take too much memory on a GPU.
    """
    out, q = [], q * q.shape[-1] ** -0.5
    if q.shape[1] != k.shape[1]:  # consecutive heads share keys and values
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    for first in range(0, q.shape[2], PLAIN_ATTENTION_QUERIES):
        block = q[:, :, first : first + PLAIN_ATTENTION_QUERIES]
        end = first + block.shape[2]
        later = torch.full((block.shape[2], end), -math.inf, dtype=q.dtype, device=q.device).triu_(first + 1)
        p = torch.softmax(block @ k[:, :, :end].mT + later, dim=-1)
        out.append(F.dropout(p, dropout) @ v[:, :, :end])
    return torch.cat(out, dim=2) if len(out) > 1 else out[0]


class PlainAttentionOnCPU(torch.autograd.Function):
    """`plain_attention` without dropout, with fewer passes over the memory.

    Queries, keys and values are copied once, into the order of the products, and their gradients once back. The softmax
    computes nothing behind a query.
    """

    @staticmethod
    def forward(ctx, n_head, *parts):
        """Attention (B, T, n_head * D) of queries, keys and values, which are the heads of parts (B, T, heads, D)."""
        B, T, _, D = parts[0].shape
        ctx.n_head, ctx.sizes, ctx.scale = n_head, [part.shape[2] for part in parts], D**-0.5
        heads = torch.cat([part.permute(2, 0, 1, 3) for part in parts])
        q, k, v = PlainAttentionOnCPU.split_heads(ctx, heads)
        out, probabilities = torch.empty_like(q), []
        for first, end in PlainAttentionOnCPU.blocks(q):
            p = torch.bmm(q[:, first:end], k[:, :end].mT)
            kernels.run_on_rows(kernels.causal_softmax, (p,), ctx.scale, first)
            torch.bmm(p, v[:, :end], out=out[:, first:end])
            probabilities.append(p)
        ctx.save_for_backward(heads, *probabilities)
        return out.view(n_head, B, T, D).permute(1, 2, 0, 3).reshape(B, T, -1)

    @staticmethod
    def blocks(q):
        """[(first, end)] of the queries that are computed at a time. In float32, where products take most of the time,
        smaller blocks have fewer keys behind their queries."""
        step = max(1, PLAIN_ATTENTION_QUERIES // (4 if q.dtype == torch.float32 else 1))
        return [(first, min(first + step, q.shape[1])) for first in range(0, q.shape[1], step)]

    @staticmethod
    def split_heads(ctx, heads):
        """Queries, keys and values, each (n_head * B, T, D), of heads (all, B, T, D)."""
        shared = (len(heads) - ctx.n_head) // 2
        q, k, v = heads.split([ctx.n_head, shared, shared])
        if shared < ctx.n_head:  # consecutive heads share keys and values
            k, v = (t.repeat_interleave(ctx.n_head // shared, dim=0) for t in (k, v))
        return [t.flatten(0, 1) for t in (q, k, v)]

    @staticmethod
    def backward(ctx, grad):
        heads, *probabilities = ctx.saved_tensors
        (n_all, B, T, D), n_head = heads.shape, ctx.n_head
        q, k, v = PlainAttentionOnCPU.split_heads(ctx, heads)
        grad = grad.view(B, T, n_head, D).permute(2, 0, 1, 3).reshape(q.shape)
        grads = heads.new_empty(3 * n_head, B, T, D)
        grad_q, grad_k, grad_v = (t.flatten(0, 1) for t in grads.split(n_head))
        # The last block has all keys, so it writes the gradients that the others add to.
        for (first, end), p in reversed(list(zip(PlainAttentionOnCPU.blocks(q), probabilities, strict=True))):
            added = 0 if end == T else 1
            torch.baddbmm(grad_v[:, :end], p.mT, grad[:, first:end], beta=added, out=grad_v[:, :end])
            s = torch.bmm(grad[:, first:end], v[:, :end].mT)
            torch.ops.aten._softmax_backward_data.out(s, p, -1, p.dtype, grad_input=s)
            torch.baddbmm(grad_q[:, first:end], s, k[:, :end], beta=0, alpha=ctx.scale, out=grad_q[:, first:end])
            torch.baddbmm(grad_k[:, :end], s.mT, q[:, first:end], beta=added, alpha=ctx.scale, out=grad_k[:, :end])
        if n_all < 3 * n_head:
            of_keys_and_values = grads[n_head:].unflatten(0, (n_all - n_head, -1)).sum(1)
            grads = torch.cat([grads[:n_head], of_keys_and_values])
        return None, *grads.permute(1, 2, 0, 3).contiguous().split(ctx.sizes, dim=2)


def rotary_angles(at, config):
    """(cos, sin) of the rotary angles at positions `at` (...,), each (..., 1, D), float32, as `rotate` takes them."""
    pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=at.device)
    frequencies = 1.0 / config.rope_theta ** (pairs / config.head_dim)
    if scaling := config.rope_scaling:
        # Llama 3.1: frequencies that turn less than low_freq_factor times in the positions of its first training are
        # divided by `factor`, those over high_freq_factor stay, and between the two it goes over smoothly.
        turns = scaling["original_positions"] * frequencies / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        frequencies = frequencies * (kept + (1 - kept) / scaling["factor"])
    angles = at[..., None, None].float() * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x, cos, sin):
    """Rotate x (B, T, heads, D): pair i, which is the elements i and i + D / 2, by angle i of `rotary_angles`."""
    return x * cos.to(x.dtype) + x.roll(x.shape[-1] // 2, dims=-1) * sin.to(x.dtype)


def normalize_and_rotate(x, weight, cos, sin, eps):
    """RMSNorm of x (B, T, heads, D) over D with weight (heads, D), and then `rotate`: the plain implementation."""
    return rotate(F.rms_norm(x, x.shape[-1:], None, eps) * weight.to(x.dtype), cos, sin)


def copy_to_array(weight):
    """A float32 array of a small tensor's numbers. A parameter whose memory an array shared could not be sharded."""
    return kernels.as_array(weight.float().clone())


class NormOnCPU(torch.autograd.Function):
    """LayerNorm (centered) or RMSNorm over the last dimension of x (..., C) with weight (C,) and bias (C,) or None, in
    one pass forward and one backward. Under autocast to bfloat16 the result is bfloat16, as products take it."""

    @staticmethod
    def forward(ctx, x, weight, bias, centered, eps):
        x, stats = x.contiguous(), x.new_empty(x.shape[:-1].numel(), 2, dtype=torch.float32)
        y = torch.empty_like(x, dtype=torch.bfloat16 if compute_dtype(x) == torch.bfloat16 else x.dtype)
        weights = [copy_to_array(t) for t in (weight, torch.zeros_like(weight) if bias is None else bias)]
        kernels.run_on_rows(kernels.norm_rows, (x.flatten(0, -2), y.flatten(0, -2), stats), *weights, centered, eps)
        ctx.save_for_backward(x, weight, stats)
        ctx.centered, ctx.has_bias = centered, bias is not None
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight, stats = ctx.saved_tensors
        x_grad = torch.empty_like(x)
        rows = [t.flatten(0, -2) for t in (x, grad.contiguous())]
        sums = kernels.run_on_rows(
            kernels.norm_row_gradients,
            (*rows, stats, x_grad.flatten(0, -2)),
            copy_to_array(weight),
            ctx.centered,
            ctx.has_bias,
        )
        weight_grad, bias_grad = torch.from_numpy(sum(sums)).to(weight.dtype)
        return x_grad, weight_grad, bias_grad if ctx.has_bias else None, None, None


class NormalizeAndRotateOnCPU(torch.autograd.Function):
    """`normalize_and_rotate` of the first heads of x (B, T, heads, D), of weight (first heads, D); the others
    stay as they are. One pass forward and one backward."""

    @staticmethod
    def forward(ctx, x, weight, cos, sin, eps):
        x, angles = x.contiguous(), [t.reshape(-1, t.shape[-1]).contiguous() for t in (cos, sin)]
        y, r = torch.empty_like(x), x.new_empty(x.shape[:2].numel(), len(weight), dtype=torch.float32)
        ctx.places = torch.arange(len(r)) % len(angles[0])
        others = [kernels.as_array(t.float()) for t in (weight, *angles)]
        kernels.run_on_rows(kernels.norm_and_rotate, (x.flatten(0, 1), y.flatten(0, 1), r, ctx.places), *others, eps)
        ctx.save_for_backward(x, weight, r, *angles)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight, r, *angles = ctx.saved_tensors
        x_grad, others = torch.empty_like(x), [kernels.as_array(t.float()) for t in (weight, *angles)]
        rows = x.flatten(0, 1), grad.contiguous().flatten(0, 1), r, ctx.places, x_grad.flatten(0, 1)
        sums = kernels.run_on_rows(kernels.norm_and_rotate_gradients, rows, *others)
        return x_grad, torch.from_numpy(sum(sums)).to(weight.dtype), None, None, None


def is_eager_on_cpu(x):
    """Whether x is on a CPU and no compiler traces the code, so that hand-written passes are the faster ones."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def has_kernels(x):
    """Whether minigpt/kernels.py computes with x."""
    return is_eager_on_cpu(x) and x.dtype in (torch.float32, torch.bfloat16)


class RMSNorm(nn.RMSNorm):
    def forward(self, x):
        return NormOnCPU.apply(x, self.weight, None, False, self.eps) if has_kernels(x) else super().forward(x)


class LayerNorm(nn.LayerNorm):
    def forward(self, x):
        return NormOnCPU.apply(x, self.weight, self.bias, True, self.eps) if has_kernels(x) else super().forward(x)


def make_norm(config, width):
    """The norm of an architecture, over the last dimension, which is `width` wide."""
    if config.is_gpt2:
        return LayerNorm(width, config.norm_eps, bias=config.bias)
    return RMSNorm(width, config.norm_eps)


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.plain = False  # whether to use plain_attention instead of torch's kernels
        self.dropout, self.head_dim = config.dropout, config.head_dim
        self.heads = [config.n_head, config.n_kv_head]  # of queries; of keys, and as many of values
        has_biases = config.bias if config.is_gpt2 else config.architecture == "qwen2"
        self.c_attn = nn.Linear(
            config.n_embd, (config.n_head + 2 * config.n_kv_head) * config.head_dim, bias=has_biases
        )
        self.c_proj = nn.Linear(config.n_head * config.head_dim, config.n_embd, bias=config.bias)
        self.q_norm = self.k_norm = None
        if config.architecture == "qwen3":
            self.q_norm, self.k_norm = make_norm(config, config.head_dim), make_norm(config, config.head_dim)

    def forward(self, x, angles=None, kv_pass=None, layer=0):
        B, T, _ = x.shape
        n_head, n_kv_head = self.heads
        qkv = self.c_attn(x).view(B, T, -1, self.head_dim)
        parts, sizes = [qkv], [n_head + n_kv_head, n_kv_head]
        if self.q_norm is not None:
            norms = (self.q_norm, n_head), (self.k_norm, n_kv_head)
            weight = torch.cat([norm.weight.expand(heads, -1) for norm, heads in norms])
        if self.q_norm is not None and has_kernels(qkv):
            parts = [NormalizeAndRotateOnCPU.apply(qkv, weight, *angles, self.q_norm.eps)]
        elif angles is not None:
            qk, v = qkv.split(sizes, dim=2)
            normed = self.q_norm is not None
            parts = [normalize_and_rotate(qk, weight, *angles, self.q_norm.eps) if normed else rotate(qk, *angles), v]
        dropout = self.dropout if self.training else 0.0
        if self.plain and kv_pass is None and not dropout and has_kernels(qkv):
            return self.c_proj(PlainAttentionOnCPU.apply(n_head, *parts))
        qk, v = parts if len(parts) == 2 else parts[0].split(sizes, dim=2)
        q, k, v = (t.transpose(1, 2) for t in (*qk.split(self.heads, dim=2), v))
        if kv_pass is not None:
            y = kv_pass.attend(layer, q, k, v)
        elif self.plain:
            y = plain_attention(q, k, v, dropout)
        else:
            # is_causal must be a plain bool: with dynamic shapes `T > 1` is symbolic and causes a graph break.
            y = attention(q, k, v, is_causal=True, dropout_p=dropout)
        return F.dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, -1)), self.dropout, self.training)


def swiglu(x):
    """silu(gate) * u of x (..., 2 n), which is gate and, behind it, u: the plain implementation."""
    gate, u = x.chunk(2, dim=-1)
    return F.silu(gate) * u


class SwiGLUOnCPU(torch.autograd.Function):
    """`swiglu` in half the time on a CPU, with one pass forward and one backward."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        y = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
        kernels.run_on_rows(kernels.swiglu_rows, (x.flatten(0, -2), y.flatten(0, -2)))
        return y

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        x_grad = torch.empty_like(x)
        kernels.run_on_rows(kernels.swiglu_gradients, [t.flatten(0, -2) for t in (x, grad.contiguous(), x_grad)])
        return x_grad


class MLP(nn.Module):
    """GPT-2's, or SwiGLU: c_fc then computes the gate and, behind it, what the gate lets through."""

    def __init__(self, config):
        super().__init__()
        self.dropout, self.gated = config.dropout, not config.is_gpt2
        self.approximate = "tanh" if config.tanh_gelu else "none"
        self.c_fc = nn.Linear(config.n_embd, (1 + self.gated) * config.n_inner, bias=config.bias)
        self.c_proj = nn.Linear(config.n_inner, config.n_embd, bias=config.bias)

    def forward(self, x):
        x = self.c_fc(x)
        if self.gated:
            x = SwiGLUOnCPU.apply(x) if has_kernels(x) else swiglu(x)
        else:
            x = F.gelu(x, approximate=self.approximate)
        return F.dropout(self.c_proj(x), self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = make_norm(config, config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = make_norm(config, config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, angles=None, kv_pass=None, layer=0):
        x = x + self.attn(self.ln_1(x), angles, kv_pass, layer)
        return x + self.mlp(self.ln_2(x))


def compute_dtype(x):
    """The dtype of matrix products with x: that of autocast where it is enabled, else x's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def max_logit_rows(memory, row_bytes):
    """Positions whose logits of row_bytes bytes each are in memory at the same time on a GPU of `memory` bytes: a power
    of two. Small products do not fill a large GPU."""
    rows = MAX_LOGIT_ROWS
    while rows < MAX_GPU_LOGIT_ROWS and 2 * rows * row_bytes <= MAX_LOGITS_SHARE * memory:
        rows *= 2
    return rows


class OutputLoss(torch.autograd.Function):
    """Output layer and cross-entropy fused, so that the (N, V) logits are never in memory as a whole.

    The forward pass also computes the gradients, in chunks of rows while their logits exist; the backward pass only
    scales them (as in Cut Cross-Entropy, Wijmans et al. 2024, and Liger Kernel). Backward may run once. A test compares
    it with `GPT.token_losses`.
    """

    compiled = None  # a `CompiledGradients` of this process's training on a GPU, which `to_gradient` then calls

    @staticmethod
    def forward(ctx, states, weight, targets, n):
        """Sum of the losses of targets (N,), a scalar; states (N, C), weight (V, C).

        A target of -1 has no loss. n: how many of the first targets are taken, the others are padding; None: all.
        """
        dtype = compute_dtype(states)
        if n is not None:
            targets = F.pad(targets[:n], (0, len(targets) - n), value=-1)
        with torch.autocast(states.device.type, enabled=False):
            x, w = states.to(dtype), weight.to(dtype)
            grad_x = torch.empty_like(x)
            grad_w = torch.empty_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
            # In float32 on a CPU no kernel is prepared for a shape, so the padding is left out.
            end = n if n is not None and dtype == torch.float32 and is_eager_on_cpu(x) else len(x)
            grad_x[end:] = 0
            chunk = MAX_LOGIT_ROWS
            if x.device.type == "cuda":
                chunk = max_logit_rows(usable_memory(x.device), len(w) * x.element_size())
            logits = x.new_empty(min(chunk, end), len(w))
            losses = x.new_zeros(len(x), dtype=torch.float32)
            for first in range(0, end, chunk):
                part = slice(first, min(first + chunk, end))
                rows = torch.mm(x[part], w.T, out=logits[: part.stop - first])
                OutputLoss.to_gradient(rows, targets[part], losses[part])
                torch.mm(rows, w, out=grad_x[part])
                if grad_w is not None:  # the output layer is not frozen
                    OutputLoss.add_product(grad_w, rows, x[part], first > 0)
        if grad_w is not None and not end:
            grad_w.zero_()
        ctx.save_for_backward(grad_x, grad_w)
        ctx.types = states.dtype, weight.dtype
        return losses.sum() if n is None else losses[:n].sum()

    @staticmethod
    def to_gradient(logits, targets, losses):
        """Replace logits (n, V) by their gradients, in place, and write the cross-entropies into losses (n,). Both are
        0 where a target of targets (n,) is -1."""
        if has_kernels(logits):
            kernels.run_on_rows(kernels.loss_gradients, (logits, targets, losses))
            return
        if OutputLoss.compiled is not None and OutputLoss.compiled(logits, targets, losses):
            return
        log_p = F.log_softmax(logits, dim=1, dtype=torch.float32)
        no_loss, targets = targets[:, None] < 0, targets.clamp(min=0)[:, None]
        losses.copy_(-log_p.gather(1, targets).masked_fill_(no_loss, 0).squeeze(1))
        # Subtract 1 before rounding to bfloat16, which has no number between 0.996 and 1: a probability close to 1
        # would round to 1, and its gradient to 0.
        p = log_p.exp_()
        p.scatter_(1, targets, p.gather(1, targets) - 1)
        logits.copy_(p.masked_fill_(no_loss, 0))

    @staticmethod
    def add_product(total, a, b, added):
        """Add a^T b, of a (n, V) and b (n, C), to total (V, C), which is float32; where not `added`, write it there."""
        if a.dtype == torch.float32:
            total.addmm_(a.T, b, beta=int(added))
        elif not adds_in_float32(total.device, a.dtype):
            total.add_(a.T @ b) if added else total.copy_(a.T @ b)
        elif added:
            torch.addmm(total, a.T, b, out_dtype=torch.float32, out=total)
        else:
            torch.mm(a.T, b, out_dtype=torch.float32, out=total)

    @staticmethod
    def backward(ctx, grad):
        grad_x, grad_w = ctx.saved_tensors
        grad_w = None if grad_w is None else grad_w.to(ctx.types[1]).mul_(grad)
        return grad_x.to(ctx.types[0]).mul_(grad), grad_w, None, None


def kept_indices(loss_mask):
    """(kept (N,), n): the n indices, int64, at which loss_mask (B, T) is True, in row-major order, padded with -1.

    N is a multiple of TARGETS_MULTIPLE, and at least that: libraries prepare kernels for each new shape, which takes
    longer than a small product. On a GPU this waits for all work before it, so training calls it on a CPU.
    """
    kept = loss_mask.flatten().nonzero().squeeze(1)
    size = -(-max(1, len(kept)) // TARGETS_MULTIPLE) * TARGETS_MULTIPLE
    return F.pad(kept, (0, size - len(kept)), value=-1), len(kept)


def matrix_flops(weight):
    """FLOPs a token of a matrix in training: 2 a weight for the output, 2 for the gradient of the input and, if the
    matrix is not frozen, 2 for its own gradient."""
    return (6 if weight.requires_grad else 4) * weight.numel()


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.is_gpt2 else None
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = make_norm(config, config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.n_labels or config.vocab_size, bias=False)
        if config.tied:
            self.wte.weight = self.lm_head.weight
        # Training calls trunk, which may be compiled. Generation calls hidden, since its shapes change at each token.
        self.trunk = self.hidden
        self.virtual = None  # a module of minigpt/adapters/prompts.py, which gives the `VirtualTokens` before each row
        self.adapter = None  # settings of the adapter that is attached (minigpt/adapters/attach.py)
        self.apply(self._init_weights)
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight") and config.is_gpt2:  # the deeper, the smaller the residual updates
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer))
            elif name.endswith("c_proj.weight"):  # each block begins as the identity (Jordan et al. 2024)
                nn.init.zeros_(p)

    @staticmethod
    def _init_weights(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)

    def use_plain_attention(self, plain):
        """Select `plain_attention` (True) or torch's kernels (False) for passes without a cache."""
        for block in self.h:
            block.attn.plain = plain

    @property
    def n_virtual(self):
        """Number of virtual tokens before each row, which take positions of the block."""
        return 0 if self.virtual is None else len(self.virtual.embeddings)

    @property
    def row_positions(self):
        """Positions of the block that virtual tokens leave for a row."""
        return self.config.block_size - self.n_virtual

    def num_params(self):
        """Number of parameters without the position embedding, as nanoGPT counts."""
        return sum(p.numel() for name, p in self.named_parameters() if name != "wpe.weight")

    def training_flops(self, tokens, kept, squares):
        """FLOPs of a forward and backward pass (Chowdhery et al. 2022, appendix B).

        tokens: without PAD, each takes the `matrix_flops` of all blocks; kept: targets with a loss, the only ones that
        the output layer is computed for; squares: sum of the rows' squared token counts, for the causal attention
        scores.
        """
        config = self.config
        matrices = config.n_layer * self.block_training_flops(tokens) + matrix_flops(self.lm_head.weight) * kept
        return matrices + 6 * config.n_layer * config.n_head * config.head_dim * squares

    def block_training_flops(self, tokens):
        """FLOPs of a forward and backward pass through one block's matrices. Those in 4 bits are not counted."""
        return sum(matrix_flops(p) for p in self.h[0].parameters() if p.dim() == 2) * tokens

    def angles(self, at):
        """`rotary_angles` at positions `at`; None in gpt2."""
        return None if self.config.is_gpt2 else rotary_angles(at, self.config)

    def hidden(self, idx, kv_pass=None):
        """States (B, T, C) before the output layer, from ids idx (B, T), of which those below 0 are padding.

        kv_pass: a `PromptPass` or `StepPass` in generation with a KV cache; None in training, where each row of idx
        starts at position 0, or behind the virtual tokens.
        """
        config = self.config
        if kv_pass is None and (self.virtual is not None or not config.causal):
            virtual = None if self.virtual is None else self.virtual(self)
            kv_pass = RowsPass(idx, virtual, config.causal, config.dropout if self.training else 0.0)
        at = torch.arange(idx.shape[1], device=idx.device) if kv_pass is None else kv_pass.positions(idx)
        return self.states(self.wte(idx.clamp(min=0)), at, kv_pass)

    def states(self, x, at, kv_pass=None):
        """States (B, T, C) before the output layer, from embeddings x (B, T, C) of tokens at positions `at`: (T,), or
        (B, T). kv_pass: as in `hidden`; None: causal attention."""
        if x.shape[1] > self.config.block_size:
            raise ValueError(f"{x.shape[1]} positions do not fit block_size {self.config.block_size}")
        x, angles = x if self.wpe is None else x + self.wpe(at), self.angles(at)
        x = F.dropout(x, self.config.dropout, self.training)
        for layer, block in enumerate(self.h):
            x = block(x, angles, kv_pass, layer)
        return self.ln_f(x)

    def forward(self, idx, kv_pass=None):
        """Logits (B, T, V) from ids idx (B, T). With a kv_pass (see `hidden`): (B, V), after each row's last id."""
        x = self.hidden(idx, kv_pass)
        return self.lm_head(x if kv_pass is None else kv_pass.last_states(x))

    def token_losses(self, x, y, loss_mask):
        """Cross-entropies (n_kept,) in nats of targets y (B, T), in row-major order, where loss_mask (B, T) is True.

        x (B, T): input ids. This is the plain implementation, used for evaluation. Other positions get no logits.
        """
        states, targets, n = self._kept_states(x, y, loss_mask)
        parts = zip(states.split(MAX_LOGIT_ROWS), targets.split(MAX_LOGIT_ROWS), strict=True)
        return torch.cat([self._losses(*part) for part in parts])[:n]

    def loss_sum(self, x, y, loss_mask, kept=None):
        """Sum of `token_losses`, a scalar, for training. Neither pass holds all logits in memory.

        kept: the `kept_indices` of loss_mask. With them, no shape depends on numbers that a GPU has to give first.
        """
        states, targets, n = self._kept_states(x, y, loss_mask, kept)
        if compute_dtype(states) != torch.float16:
            return OutputLoss.apply(states, self.lm_head.weight, targets, n)
        # In float16, gradients underflow unless the loss is scaled first; OutputLoss computes them before the scaling.
        pairs = zip(states[:n].split(MAX_LOGIT_ROWS), targets[:n].split(MAX_LOGIT_ROWS), strict=True)
        return sum((checkpoint(self._losses, *pair, use_reentrant=False).sum() for pair in pairs), states.sum() * 0)

    def _losses(self, states, targets):
        return F.cross_entropy(self.lm_head(states).float(), targets, reduction="none", ignore_index=-1)

    def _kept_states(self, x, y, loss_mask, kept=None):
        """(states (N, C), targets (N,), n) at the `kept_indices` of loss_mask; targets of the padding are -1.

        n: how many are no padding; None where kept are given.
        """
        n = None
        if kept is None:
            kept, n = kept_indices(loss_mask)
        indices = kept.clamp(min=0)
        targets = y.flatten()[indices].masked_fill(kept < 0, -1)
        return self.trunk(x).flatten(0, 1)[indices], targets, n
