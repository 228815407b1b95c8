"""Optimizers, their parameter groups, and the learning-rate schedule."""

import math

import torch

MUON_MOMENTUM = 0.95


def make_optimizers(model, settings, fused=False):
    """List of optimizers for a GPT's parameters: [AdamW], or [AdamW, Muon].

    Weight decay is on matrices only, as in nanoGPT. Muon (Jordan et al. 2024, torch.optim.Muon) takes
    the matrices of the blocks; embeddings, which are looked up and not multiplied, stay with AdamW.
    Each group bears "peak_lr", which `set_learning_rate` scales.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    by_muon = [p for n, p in named if p.dim() == 2 and n.startswith("h.")] if settings.optimizer == "muon" else []
    taken = {id(p) for p in by_muon}
    rest = [p for _, p in named if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    lr = settings.learning_rate
    optimizers = [torch.optim.AdamW(groups, lr=lr, betas=(settings.beta1, settings.beta2), fused=fused)]
    if by_muon:
        optimizers.append(
            torch.optim.Muon(
                by_muon, lr=settings.muon_learning_rate, momentum=MUON_MOMENTUM, weight_decay=settings.weight_decay
            )
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def lr_scale(step, max_iters, settings):
    """Share of the peak learning rate at a step: linear warm-up, then cosine decay to min_lr_ratio."""
    warmup = min(settings.warmup_iters, max_iters // 2)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if not settings.decay_lr:
        return 1.0
    done = (step - warmup) / max(1, max_iters - warmup)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return settings.min_lr_ratio + (1.0 - settings.min_lr_ratio) * cosine


def set_learning_rate(optimizers, scale):
    """Give every group `scale` of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * scale
