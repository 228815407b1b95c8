"""Log-probabilities of given tokens, with gradients."""

import torch
from torch.nn import functional as F


def target_logprobs(model, x, y, loss_mask, temperature=1.0):
    """Log-probabilities (N,) float32 of the N kept targets, in the order of `loss_mask.nonzero()`.

    x, y: ids (B, T); loss_mask: bool (B, T). temperature: divides the logits, as in sampling. The logits (N, V) of the
    kept targets are in memory together.
    """
    return state_logprobs(model, model.trunk(x)[loss_mask], y[loss_mask], temperature)


def state_logprobs(model, states, targets, temperature=1.0):
    """Log-probabilities (N,) float32 of targets (N,) after the states (N, C) of a model."""
    logits = model.lm_head(states).float() / temperature
    return -F.cross_entropy(logits, targets, reduction="none")


def sum_rows(values, loss_mask):
    """Sums (B,) over each row of values (N,), which belong to the kept targets of loss_mask (B, T)."""
    rows = loss_mask.nonzero()[:, 0]
    return torch.zeros(len(loss_mask), dtype=values.dtype, device=values.device).index_add(0, rows, values)
