"""Bottleneck adapters (Houlsby et al. 2019): small trained layers between the frozen ones.

    y + up(gelu(down(y)))        down: C -> m, up: m -> C, with biases; m is the setting `bottleneck`

They stand behind the last matrix of the attention and of the MLP in each block, before the residual is added (the
paper's figure 2). `up` is zero at the start, so that the model begins as its base.
"""

from torch import nn
from torch.nn import functional as F

DOWN_STD = 0.02


class Bottleneck(nn.Module):
    """A frozen linear layer `base` with a bottleneck of `width` behind it: x (..., in) -> (..., out)."""

    def __init__(self, base, width):
        super().__init__()
        self.base = base
        weight = base.weight
        kind = {"device": weight.device, "dtype": weight.dtype}
        self.down = nn.Linear(len(weight), width, **kind)
        self.up = nn.Linear(width, len(weight), **kind)
        nn.init.normal_(self.down.weight, std=DOWN_STD)
        for p in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(p)
        self.train(base.training)

    def forward(self, x):
        y = self.base(x)
        return y + self.up(F.gelu(self.down(y)))


def add_bottlenecks(model, config):
    """Put a `Bottleneck` behind attn.c_proj and mlp.c_proj of each block of a GPT. config: an `Adapting`."""
    for block in model.h:
        for part in (block.attn, block.mlp):
            part.c_proj = Bottleneck(part.c_proj, config.bottleneck)
