"""Virtual tokens: what is trained stands before every row, and the model itself stays as it is.

    prompt      Lester et al. 2021: the embeddings of n virtual tokens are the parameters.
    p-tuning    Liu et al. 2021 ("GPT understands, too"): an encoder computes these embeddings, h = MLP(e); the
                parameters are e (n, C) and the MLP's. (They use an LSTM too; the MLP alone is peft's default.)
    prefix      Li and Liang 2021; P-tuning v2, Liu et al. 2021: the parameters are keys and values of the n virtual
                tokens in every layer, P (n, 2 n_layer n_kv_head D), or an encoder computes them, P = MLP(P'), which
                they call the reparametrization (their equation 3).

Rows attend to virtual tokens through their keys and values in every layer. Those of prompt and p-tuning come from the
embeddings by a pass through the model: since the model is causal, they are what the embeddings would get if they were
prepended to every row, and they are computed once for all rows. With dropout, all rows share the same ones.

The virtual tokens have the positions 0 to n - 1. A prefix's keys are used as they are, without a rotation or a norm of
keys, as in peft.

Shapes: n virtual tokens, C = n_embd, D = head_dim.
"""

import torch
from torch import nn

from minigpt.common.errors import UserError
from model import PromptPass, VirtualTokens

METHODS = ("prompt", "p-tuning", "prefix")


class PromptTokens(nn.Module):
    """Prompt tuning: n embeddings, which begin as `start` (n, C)."""

    def __init__(self, start):
        super().__init__()
        self.embeddings = nn.Parameter(start.clone())

    def finished(self):
        """The embeddings (n, C) of the virtual tokens."""
        return self.embeddings

    def forward(self, model):
        """The `VirtualTokens` of a GPT."""
        return run_embeddings(model, self.finished())


class EncodedPrompt(PromptTokens):
    """P-tuning: the n embeddings are computed by an MLP of two hidden layers. They begin as `start` (n, C).

    width: of the hidden layers.
    """

    def __init__(self, start, width):
        super().__init__(torch.randn_like(start))
        C = start.shape[1]
        self.mlp = nn.Sequential(
            nn.Linear(C, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, C)
        ).to(start)  # fmt: skip
        fit_last_layer(self.mlp, self.embeddings, start)

    def finished(self):
        """The embeddings (n, C) of the virtual tokens."""
        return self.mlp(self.embeddings)


class Prefix(nn.Module):
    """Prefix tuning: keys and values of n virtual tokens in every layer, as rows that `flatten_virtual` describes.

    They begin as `start` (n, 2 n_layer n_kv_head D). width: of the hidden layer of the MLP that computes them, from
    embeddings that are as wide; 0: none, they are parameters.
    """

    def __init__(self, start, width=0):
        super().__init__()
        self.embeddings = nn.Parameter(torch.randn(len(start), width).to(start) if width else start.clone())
        self.mlp = None
        if width:
            self.mlp = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, start.shape[1])).to(start)
            fit_last_layer(self.mlp, self.embeddings, start)

    def finished(self):
        """Keys and values as rows (n, 2 n_layer n_kv_head D)."""
        return self.embeddings if self.mlp is None else self.mlp(self.embeddings)

    def forward(self, model):
        """The `VirtualTokens` of a GPT."""
        config, rows = model.config, self.finished()
        layers = rows.view(len(rows), config.n_layer, 2, config.n_kv_head, config.head_dim)
        return VirtualTokens(*layers.permute(2, 1, 3, 0, 4).unbind())


def run_embeddings(model, embeddings):
    """The `VirtualTokens` that a GPT makes of embeddings (n, C): the keys and values of every layer."""
    kv_pass = PromptPass(None)
    model.states(embeddings[None], torch.arange(len(embeddings), device=embeddings.device), kv_pass)
    return VirtualTokens(*([t[0] for t in tensors] for tensors in (kv_pass.keys, kv_pass.values)))


def flatten_virtual(virtual):
    """`VirtualTokens` as rows (n, 2 n_layer n_kv_head D): layer by layer its keys and then its values, head by head."""
    layers = torch.stack([torch.stack(pair) for pair in zip(*virtual, strict=True)])
    return layers.permute(3, 0, 1, 2, 4).flatten(1)


@torch.no_grad()
def fit_last_layer(mlp, inputs, targets):
    """Set the last layer of an MLP so that it maps inputs (n, …) to targets (n, …).

    There is an exact solution where the layer before is at least as wide as n; the one of least norm is taken, by the
    pseudo-inverse. Otherwise it is the least-squares solution.
    """
    mlp[-1].weight.copy_((torch.linalg.pinv(mlp[:-1](inputs)) @ targets).T)
    mlp[-1].bias.zero_()


@torch.no_grad()
def make_virtual_tokens(model, config, tokenizer):
    """The module of `Adapting` config's method for a GPT, to be set as its `virtual`.

    It begins as real tokens: those of prompt_text, cut or repeated to the number virtual_tokens (as in peft), or
    random ones. A prefix begins as the keys and values that the model computes for them.
    Raises UserError where they leave no room for a row.
    """
    n = config.virtual_tokens
    if n >= model.config.block_size:
        raise UserError(
            f"virtual_tokens is {n}, but the model has {model.config.block_size} positions; take fewer of them"
        )
    ids = tokenizer.encode(config.prompt_text)
    ids = (ids * n)[:n] if ids else torch.randint(tokenizer.n_vocab, (n,)).tolist()
    start = model.wte.weight[ids].float()
    if config.method == "prompt":
        return PromptTokens(start)
    if config.method == "p-tuning":
        return EncodedPrompt(start, config.prefix_width or model.config.n_embd)
    is_training = model.training
    start = flatten_virtual(run_embeddings(model.eval(), start))
    model.train(is_training)
    return Prefix(start, config.prefix_width)


def check_room(n, block_size, longest, folder):
    """Raise UserError where n virtual tokens and an input of `longest` tokens exceed block_size.

    longest: of the rows in a folder, as `TrainingData.longest_input` gives it.
    """
    if n + longest > block_size:
        raise UserError(
            f"virtual_tokens is {n}, and inputs of {folder} have up to {longest} tokens: together more than the "
            f"model's {block_size} positions; take at most {max(0, block_size - longest)} virtual tokens, or prepare "
            f"the rows with --block_size={block_size - n}"
        )
