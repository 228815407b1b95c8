"""Models with an adapter, small enough to check against plain formulas."""

import torch
from tiny import random_ids, tiny_model

from minigpt.adapters.attach import attach_adapter
from minigpt.settings.stages import Adapting


def adapting(**changed):
    """The settings of an adapter: LoRA's defaults, rank 4, with some of them changed."""
    return Adapting(**{"method": "lora", "rank": 4, "alpha": 8.0, **changed})


def freeze(model):
    """Let no parameter of a model train; returns the model."""
    return model.requires_grad_(False)


def with_lora(architecture, trained=True, bias=False, **changed):
    """A tiny GPT in eval mode with LoRA. trained: its parameters are random, not those at the start."""
    model = tiny_model(architecture=architecture, bias=bias)
    attach_adapter(model, adapting(**changed), tokenizer=None)
    if trained:
        randomize(model)
    return model


@torch.no_grad()
def randomize(model, seed=3):
    """Change the trained parameters of a model at random, so much that all of them affect its logits."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.requires_grad:
            p += 0.2 * torch.randn(p.shape, generator=generator)
    model.eval()


def losses_of_training(model, steps=8, autocast=False):
    """Train a tiny model on one batch by AdamW; returns the loss of each step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2, weight_decay=0.0)
    ids, losses = random_ids(4, 17), []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model.loss_sum(ids[:, :-1], ids[:, 1:], torch.ones(4, 16, dtype=torch.bool)) / 64
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def assert_equal_logits(ours, theirs):
    """Logits are equal within 1e-5 of the largest: processors round differently."""
    assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, theirs.abs().max().item())
