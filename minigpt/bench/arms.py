"""Arms of bench.py learn: changes of architecture, schedule and optimizer, each tried by itself.

Where there is a setting, an arm is a setting. The functions here change a new model or its optimizers, for the
comparison only.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torch.nn import functional as F

from minigpt.training.optim import make_optimizers
from minigpt.training.setup import TrainingRun

RESIDUAL = ("attn.c_proj.weight", "mlp.c_proj.weight")


class SquaredReluMLP(nn.Module):
    """An MLP with the activation ReLU², of as many parameters as the SwiGLU that it replaces (So et al. 2021)."""

    def __init__(self, swiglu):
        super().__init__()
        width, inner = swiglu.c_proj.weight.shape
        self.c_fc = nn.Linear(width, inner * 3 // 2, bias=False)
        self.c_proj = nn.Linear(inner * 3 // 2, width, bias=False)
        nn.init.normal_(self.c_fc.weight, std=0.02)
        nn.init.zeros_(self.c_proj.weight)

    def forward(self, x):
        """States (B, T, C) from states (B, T, C)."""
        return self.c_proj(F.relu(self.c_fc(x)).square())


class JoinedLinear(nn.Module):
    """A linear layer without bias whose rows are several matrices, each of which Muon orthogonalizes by itself."""

    def __init__(self, linear, heights):
        super().__init__()
        self.parts = nn.ParameterList(part.detach().clone() for part in linear.weight.split(heights))

    def forward(self, x):
        """F.linear with the matrices (rows, columns) as one."""
        return F.linear(x, torch.cat(list(self.parts)))


def use_squared_relu(model):
    for block in model.h:
        block.mlp = SquaredReluMLP(block.mlp)


def start_at_zero(model):
    for name, p in model.named_parameters():
        if name.endswith(RESIDUAL):
            nn.init.zeros_(p)


def start_at_random(model):
    for name, p in model.named_parameters():
        if name.endswith(RESIDUAL):
            nn.init.normal_(p, std=0.02 / (2 * model.config.n_layer) ** 0.5)


def split_matrices(model):
    c = model.config
    for block in model.h:
        heads = [n * c.head_dim for n in (c.n_head, c.n_kv_head, c.n_kv_head)]
        block.attn.c_attn = JoinedLinear(block.attn.c_attn, heads)
        block.mlp.c_fc = JoinedLinear(block.mlp.c_fc, [c.n_inner, c.n_inner])


def decay_cautiously(optimizers):
    """Decay a weight only where the update moves it towards zero, too (Chen et al. 2025)."""
    for optimizer in optimizers:
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        before = []

        def keep_weights(optimizer, *_, before=before):
            before[:] = [[p.detach().clone() for p in group["params"]] for group in optimizer.param_groups]

        def decay_weights(optimizer, *_, before=before, decays=decays):
            for group, decay, old in zip(optimizer.param_groups, decays, before, strict=True):
                for p, weight in zip(group["params"], old, strict=True) if decay else ():
                    shrinks = (p.detach() - weight) * weight <= 0
                    p.detach().sub_(weight * shrinks, alpha=group["lr"] * decay)

        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
        optimizer.register_step_pre_hook(keep_weights)
        optimizer.register_step_post_hook(decay_weights)


@dataclass(frozen=True)
class Arm:
    """How training differs from the settings file of its corpus.

    settings: names of `TrainSettings` and values; adamw, muon: factors on the peak learning rates; decay_share: share
    of the steps, the last ones, in which the learning rate falls to zero in a line (0: a cosine over all of them, as
    training had when the arms were measured); change(model): changes the new model; cautious: `decay_cautiously`.
    """

    settings: dict = field(default_factory=dict)
    adamw: float = 1.0
    muon: float = 1.0
    decay_share: float = 0.0
    change: object = None
    cautious: bool = False

    @property
    def work(self):
        """What a step's time depends on: arms with equal `work` take equal time."""
        change = None if self.change in (start_at_zero, start_at_random) else self.change
        return self.settings, change, self.cautious


SPLIT = "qwen3, Muon on q, k, v, gate, up"
GPT2 = Arm({"architecture": "gpt2"})
QWEN3 = Arm({"architecture": "qwen3"})


def with_settings(arm, **settings):
    """An `Arm` with more settings."""
    return replace(arm, settings={**arm.settings, **settings})


ARMS = {
    "gpt2": GPT2,
    "gpt2, zero start": replace(GPT2, change=start_at_zero),
    "qwen3": QWEN3,
    "qwen3, random start": replace(QWEN3, change=start_at_random),
    "qwen3 without QK-norm": with_settings(QWEN3, architecture="llama"),
    "qwen3, ReLU²": replace(QWEN3, change=use_squared_relu),
    "qwen3, untied": with_settings(QWEN3, tied=False),
    "qwen3, linear to zero": replace(QWEN3, decay_share=1.0),
    "qwen3, warm-up, stable, decay": replace(QWEN3, decay_share=0.3),
    "qwen3, cautious decay": replace(QWEN3, cautious=True),
    "qwen3, rates x 0.7": replace(QWEN3, adamw=0.7, muon=0.7),
    "qwen3, rates x 1.5": replace(QWEN3, adamw=1.5, muon=1.5),
    "qwen3, half the heads of keys": with_settings(QWEN3, n_kv_head=2),
    "qwen3, 8 x 192": with_settings(QWEN3, n_layer=8, n_head=3, n_embd=192),
    "qwen3, 2 x 384": with_settings(QWEN3, n_layer=2, n_head=6, n_embd=384),
    SPLIT: replace(QWEN3, change=split_matrices),
}


def build_arm(name, settings, seed=1, max_iters=10**6, precision=None):
    """A `TrainingRun` of an arm. settings: the `TrainSettings` of its corpus; precision: of `Precision.to_dict`."""
    arm = ARMS[name]
    rates = {
        "learning_rate": settings.learning_rate * arm.adamw,
        "muon_learning_rate": settings.muon_learning_rate * arm.muon,
    }
    more = {"dtype": precision["dtype"]} if precision else {}
    # The schedule is that of learning.py.
    settings = replace(settings, **rates, **more, **arm.settings, decay_lr=False, seed=seed, max_iters=max_iters)
    run = TrainingRun(settings, say=lambda text: None)
    if precision:
        run.model.use_plain_attention(precision["plain_attention"])
    if arm.change:
        arm.change(run.model)
        muon_dtype = run.precision.dtype if run.precision.dtype == torch.bfloat16 else torch.float32
        on = run.device.type in ("cuda", "cpu")
        run.optimizers = make_optimizers(run.model, settings, fused=on, muon_dtype=muon_dtype)
    if arm.cautious:
        decay_cautiously(run.optimizers)
    return run
