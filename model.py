"""The GPT: GPT-2's architecture (Radford et al. 2019) in nanoGPT's shape, and its KV cache. Tensors only.

Shapes: B rows, T positions, C = n_embd, V = vocab_size.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

KEPT_MULTIPLE = 128


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
    """Keys and values of the positions already seen, in tensors made once and written in place.

    keys, values: (n_layer, B, n_head, max_len, head_dim); length: positions filled.
    """

    def __init__(self, config, batch_size, max_len, device, dtype=torch.float32):
        shape = (config.n_layer, batch_size, config.n_head, max_len, config.n_embd // config.n_head)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    def append(self, layer, k, v):
        """Write (B, n_head, T, head_dim) behind what is there; returns all keys and values so far."""
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x, cache=None, layer=0):
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for part in self.c_attn(x).split(C, dim=2)
        )
        first = T
        if cache is not None:
            k, v = cache.append(layer, k, v)
            first = k.shape[2]
        # One query sees everything before it, so only a stretch of several needs the causal mask.
        if T > 1 and first > T:
            raise ValueError("a cache that is not empty takes one position at a time")
        y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1, dropout_p=self.dropout if self.training else 0.0)
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

    def forward(self, x, cache=None, layer=0):
        x = x + self.attn(self.ln_1(x), cache, layer)
        return x + self.mlp(self.ln_2(x))


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

    def num_params(self):
        """Number of parameters without the position table, as nanoGPT counts."""
        return sum(p.numel() for p in self.parameters()) - self.wpe.weight.numel()

    def hidden(self, idx, cache=None):
        """(B, T) ids -> (B, T, C) states before the output layer. With a `KVCache`, ids continue it."""
        T, start = idx.shape[1], 0 if cache is None else cache.length
        if start + T > self.config.block_size:
            raise ValueError(f"{start + T} positions do not fit block_size {self.config.block_size}")
        x = self.wte(idx) + self.wpe(torch.arange(start, start + T, device=idx.device))
        x = F.dropout(x, self.config.dropout, self.training)
        for layer, block in enumerate(self.h):
            x = block(x, cache, layer)
        if cache is not None:
            cache.length += T
        return self.ln_f(x)

    def forward(self, idx, cache=None):
        """(B, T) ids -> (B, T, V) logits; with a cache, of the last position only: (B, 1, V)."""
        x = self.hidden(idx, cache)
        return self.lm_head(x if cache is None else x[:, -1:])

    def token_losses(self, x, y, loss_mask):
        """(n_kept,) cross-entropies in nats of targets y (B, T) after inputs x (B, T) where loss_mask (B, T) is True.

        In row-major order. Logits are made at those positions only. A step's loss is the sum over all
        that it keeps, divided by their number.
        """
        kept = loss_mask.flatten().nonzero().squeeze(1)
        # Filled up to a multiple: kernels are made anew for each new shape, which takes longer than a small product.
        filled = F.pad(kept, (0, -len(kept) % KEPT_MULTIPLE))
        logits = self.lm_head(self.trunk(x).flatten(0, 1)[filled])
        return F.cross_entropy(logits.float(), y.flatten()[filled], reduction="none")[: len(kept)]
