"""The GPT: GPT-2's architecture (Radford et al. 2019) in nanoGPT's shape, and its KV cache. Tensors only.

Shapes: B rows, T positions, C = n_embd, V = vocab_size.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

KEPT_MULTIPLE = 128
LOSS_ROWS = 512  # positions whose logits are in memory at once
PLAIN_BLOCK = 256
SOFTMAX_BYTES = 2**22  # of float32 logits: a stretch that stays in a processor's cache


@dataclass
class GPTConfig:
    block_size: int = 512
    vocab_size: int = 50304  # GPT-2's 50257 ids, padded up to a multiple of 64
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = False


class KVCache:
    """Keys and values of positions already seen, in tensors made once and written in place.

    keys, values: for each layer (batch_size, n_head, max_len, head_dim), in `dtype`.
    """

    def __init__(self, config, batch_size, max_len, device, dtype=torch.float32):
        shape = (batch_size, config.n_head, max_len, config.n_embd // config.n_head)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]

    def move(self, source, target, length):
        """Put the first `length` positions of row `source` into row `target`."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :length] = tensor[source, :, :length]


class PromptPass:
    """How attention treats whole prompts: causally, and with their keys and values noted for a cache.

    lengths (B,): each prompt's; what is behind it in its row is never attended to.
    keys, values: after the pass for each layer (B, n_head, T, head_dim).
    """

    def __init__(self, lengths):
        self.keys, self.values, self.lengths = [], [], lengths

    def positions(self, idx):
        """Positions of idx (B, T), as (T,)."""
        return torch.arange(idx.shape[1], device=idx.device)

    def attend(self, layer, q, k, v):
        """(B, n_head, T, head_dim) of causal attention among the new positions."""
        self.keys.append(k)
        self.values.append(v)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def last(self, x):
        """(B, C): of x (B, T, C) the state of each prompt's last token."""
        return x[torch.arange(len(x), device=x.device), self.lengths - 1]


class StepPass:
    """How attention treats one new token for each of a cache's first n rows.

    keys, values: for each layer (n, n_head, end, head_dim), of a cache; at (n,): the new tokens' positions, all
    below end.
    """

    def __init__(self, keys, values, at):
        self.keys, self.values, self.at = keys, values, at
        self.rows = torch.arange(len(at), device=at.device)
        self.mask = None
        if len(at) > 1:  # one row has nothing behind its last position
            later = torch.arange(keys[0].shape[2], device=at.device) > at[:, None]
            self.mask = torch.zeros(later.shape, dtype=keys[0].dtype, device=at.device)
            self.mask = self.mask.masked_fill(later, -math.inf)[:, None, None]

    def positions(self, idx):
        """Positions of idx (n, 1), as (n, 1)."""
        return self.at[:, None]

    def attend(self, layer, q, k, v):
        """(n, n_head, 1, head_dim) of attention to all that a row holds up to its new token."""
        keys, values = self.keys[layer], self.values[layer]
        keys[self.rows, :, self.at] = k[:, :, 0].to(keys.dtype)
        values[self.rows, :, self.at] = v[:, :, 0].to(values.dtype)
        y = F.scaled_dot_product_attention(q.to(keys.dtype), keys, values, attn_mask=self.mask)
        return y.to(q.dtype)

    def last(self, x):
        """(n, C): of x (n, 1, C) the new tokens' states."""
        return x[:, 0]


def plain_attention(q, k, v, dropout=0.0):
    """Causal attention of q, k, v (B, n_head, T, head_dim) by plain products, PLAIN_BLOCK queries at a time.

    On a CPU in bfloat16 it is 1.6 to 4 times as fast, forward and backward, as torch's kernels; it keeps
    every probability for the backward pass, so it is not for long rows on a card.
    """
    out, q = [], q * q.shape[-1] ** -0.5
    for first in range(0, q.shape[2], PLAIN_BLOCK):
        block = q[:, :, first : first + PLAIN_BLOCK]
        end = first + block.shape[2]
        later = torch.full((block.shape[2], end), -math.inf, dtype=q.dtype, device=q.device).triu_(first + 1)
        p = torch.softmax(block @ k[:, :, :end].mT + later, dim=-1)
        out.append(F.dropout(p, dropout) @ v[:, :, :end])
    return torch.cat(out, dim=2) if len(out) > 1 else out[0]


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.plain = False  # whether plain_attention takes the place of torch's kernels
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x, past=None, layer=0):
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for part in self.c_attn(x).split(C, dim=2)
        )
        dropout = self.dropout if self.training else 0.0
        if past is not None:
            y = past.attend(layer, q, k, v)
        elif self.plain:
            y = plain_attention(q, k, v, dropout)
        else:
            # A bool and not `T > 1`: compiled with any T, that is a symbol, which the operator refuses (a graph break).
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        return F.dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, C)), self.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x):
        return F.dropout(self.c_proj(F.gelu(self.c_fc(x))), self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x, past=None, layer=0):
        x = x + self.attn(self.ln_1(x), past, layer)
        return x + self.mlp(self.ln_2(x))


def compute_dtype(x):
    """The type that matrix products with x run in here: autocast's, or its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class OutputLoss(torch.autograd.Function):
    """Output layer and cross-entropy in one, without the (n, V) matrix of logits in memory.

    The gradient of a sum of cross-entropies needs nothing from above but a factor, so it is made in the forward
    pass, LOSS_ROWS rows at a time, while their logits are at hand (as in Cut Cross-Entropy, Wijmans et al. 2024,
    and Liger Kernel). Held against `GPT.token_losses` by a test. Backward may run once.
    """

    @staticmethod
    def forward(ctx, states, weight, targets, n):
        """Scalar sum over the first n of targets (N,), given states (N, C) and weight (V, C)."""
        dtype = compute_dtype(states)
        with torch.autocast(states.device.type, enabled=False):
            x, w = states.to(dtype), weight.to(dtype)
            grad_x, grad_w = torch.empty_like(x), torch.zeros_like(weight, dtype=torch.float32)
            logits = x.new_empty(min(LOSS_ROWS, len(x)), len(w))
            losses = x.new_zeros(len(x), dtype=torch.float32)
            for first in range(0, len(x), LOSS_ROWS):
                part = slice(first, min(first + LOSS_ROWS, len(x)))
                rows = torch.mm(x[part], w.T, out=logits[: part.stop - first])
                OutputLoss.to_gradient(rows, targets[part], losses[part])
                rows[max(0, n - first) :] = 0
                torch.mm(rows, w, out=grad_x[part])
                if dtype == torch.float32:
                    grad_w.addmm_(rows.T, x[part])
                else:
                    grad_w += rows.T @ x[part]
        ctx.save_for_backward(grad_x, grad_w)
        ctx.types = states.dtype, weight.dtype
        return losses[:n].sum()

    @staticmethod
    def to_gradient(logits, targets, losses):
        """Turn logits (n, V) into their gradients in place, and write the cross-entropies into losses (n,)."""
        step = max(8, SOFTMAX_BYTES // (4 * logits.shape[1])) if logits.device.type == "cpu" else len(logits)
        for first in range(0, len(logits), step):
            part = slice(first, first + step)
            log_p = F.log_softmax(logits[part], dim=1, dtype=torch.float32)
            losses[part] = -log_p.gather(1, targets[part, None]).squeeze(1)
            # 1 is taken off before rounding: bfloat16 has no number between 0.996 and 1, so that p of a token
            # that the model is sure of would round to 1 and its gradient to 0.
            p = log_p.exp_()
            p[torch.arange(len(p), device=p.device), targets[part]] -= 1
            logits[part] = p

    @staticmethod
    def backward(ctx, grad):
        grad_x, grad_w = ctx.saved_tensors
        return grad_x.to(ctx.types[0]).mul_(grad), grad_w.to(ctx.types[1]).mul_(grad), None, None


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        if config.n_embd % config.n_head:
            raise ValueError(f"n_embd ({config.n_embd}) is not a multiple of n_head ({config.n_head})")
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.wte.weight = self.lm_head.weight  # tied
        # What training runs and may compile; generation, whose shapes change by the token, calls hidden itself.
        self.trunk = self.hidden
        self.apply(self._init_weights)
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):  # GPT-2: residual projections start smaller with depth
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer))

    @staticmethod
    def _init_weights(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)

    def use_plain_attention(self, plain):
        """Compute attention by `plain_attention` where there is no cache, or by torch's kernels."""
        for block in self.h:
            block.attn.plain = plain

    def num_params(self):
        """Number of parameters without the position table, as nanoGPT counts."""
        return sum(p.numel() for p in self.parameters()) - self.wpe.weight.numel()

    def training_flops(self, tokens, kept, squares):
        """Operations of a forward and backward pass over rows of real tokens (Chowdhery et al. 2022, appendix B).

        6 for each weight of a matrix and token; the output layer at the kept positions only. squares: the rows'
        token counts squared and summed; of attention's scores only those that causality leaves count.
        """
        config = self.config
        matrices = config.n_layer * self.block_training_flops(tokens) + 6 * config.n_embd * config.vocab_size * kept
        return matrices + 6 * config.n_layer * config.n_embd * squares

    def block_training_flops(self, tokens):
        """Operations of a forward and backward pass of one block's matrices over so many tokens."""
        return 6 * 12 * self.config.n_embd**2 * tokens

    def hidden(self, idx, past=None):
        """(B, T) ids -> (B, T, C) states before the output layer. past: a `PromptPass` or `StepPass`, which says
        where the ids stand and keeps their keys and values; without one the ids are rows of their own."""
        if idx.shape[1] > self.config.block_size:
            raise ValueError(f"{idx.shape[1]} positions do not fit block_size {self.config.block_size}")
        at = torch.arange(idx.shape[1], device=idx.device) if past is None else past.positions(idx)
        x = F.dropout(self.wte(idx) + self.wpe(at), self.config.dropout, self.training)
        for layer, block in enumerate(self.h):
            x = block(x, past, layer)
        return self.ln_f(x)

    def forward(self, idx, past=None):
        """(B, T) ids -> (B, T, V) logits; with a pass (see `hidden`), those after each row's last id: (B, V)."""
        x = self.hidden(idx, past)
        return self.lm_head(x if past is None else past.last(x))

    def token_losses(self, x, y, loss_mask):
        """(n_kept,) cross-entropies in nats of targets y (B, T) after inputs x (B, T) where loss_mask (B, T) is True.

        In row-major order; the simple way, and the one for measuring. Logits are made at those positions only.
        """
        states, targets, n = self._kept(x, y, loss_mask)
        parts = zip(states.split(LOSS_ROWS), targets.split(LOSS_ROWS), strict=True)
        return torch.cat([self._losses(*part) for part in parts])[:n]

    def loss_sum(self, x, y, loss_mask):
        """Scalar: the sum of `token_losses`, for training. Its gradient never has all logits in memory."""
        states, targets, n = self._kept(x, y, loss_mask)
        if compute_dtype(states) != torch.float16:
            return OutputLoss.apply(states, self.lm_head.weight, targets, n)
        # Float16's gradients round to zero unless the loss scale is in them, which OutputLoss does not know.
        pairs = zip(states[:n].split(LOSS_ROWS), targets[:n].split(LOSS_ROWS), strict=True)
        return sum((checkpoint(self._losses, *pair, use_reentrant=False).sum() for pair in pairs), states.sum() * 0)

    def _losses(self, states, targets):
        return F.cross_entropy(self.lm_head(states).float(), targets, reduction="none")

    def _kept(self, x, y, loss_mask):
        """(states (N, C), targets (N,), n): the n kept positions, filled up to a multiple."""
        kept = loss_mask.flatten().nonzero().squeeze(1)
        # Filled up, since kernels are made anew for each new shape, which takes longer than a small product.
        filled = F.pad(kept, (0, -len(kept) % KEPT_MULTIPLE))
        return self.trunk(x).flatten(0, 1)[filled], y.flatten()[filled], len(kept)
