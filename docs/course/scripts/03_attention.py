"""Attention by hand: one head of one layer of the demo's fine-tuned model, compared with the model's own module.

python docs/course/scripts/03_attention.py --overview            what the last token takes from which, in every head
python docs/course/scripts/03_attention.py --layer=2 --head=2    one head, step by step
python docs/course/scripts/03_attention.py --layer=2 --head=2 --figure
"""

import argparse
import math
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

from minigpt.checkpoint import open_model

FIGURE = "docs/course/figures/03-attention.svg"
parser = argparse.ArgumentParser()
parser.add_argument("--text", default="铁的元素符号是什么？##铁的元素符号是")
parser.add_argument("--layer", type=int, default=2)
parser.add_argument("--head", type=int, default=2)
parser.add_argument("--overview", action="store_true")
parser.add_argument("--figure", action="store_true")
arguments = parser.parse_args()

_, _, model, tokenizer = open_model("out/demo_sft/ckpt.pt", "out", "cpu")
ids = tokenizer.encode_marked(arguments.text)
tokens = [tokenizer.decode([token_id]) for token_id in ids]
if not (1 <= arguments.layer <= model.config.n_layer and 1 <= arguments.head <= model.config.n_head):
    parser.error(f"the model has layers 1 to {model.config.n_layer} and heads 1 to {model.config.n_head}")
T, C, D, heads = len(ids), model.config.n_embd, model.config.head_dim, model.config.n_head


def read_module(layer):
    """(x, y), each (T, C): what the attention of a layer reads, and what it gives, when the model reads the text."""
    seen = {}

    def remember(module, inputs, output):
        seen["x"], seen["y"] = inputs[0][0], output[0]

    hook = model.h[layer].attn.register_forward_hook(remember)
    model(torch.tensor([ids]))
    hook.remove()
    return seen["x"], seen["y"]


def rotate(vectors):
    """vectors (T, D) turned by an angle that grows with the position, a different one for each pair of numbers."""
    frequencies = 1 / model.config.rope_theta ** (torch.arange(0, D, 2) / D)
    angles = torch.arange(T)[:, None] * frequencies  # (T, D / 2)
    a, b = vectors[:, : D // 2], vectors[:, D // 2 :]
    return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), dim=1)


def attend_by_hand(x, attn, head):
    """One head, step by step: (scores (T, T), weights (T, T), taken (T, D))."""
    # 1. Three matrices make a query, a key and a value of each token. They lie below each other in c_attn.
    w_q, w_k, w_v = attn.c_attn.weight.view(3, heads, D, C)[:, head]
    queries, keys, values = x @ w_q.T, x @ w_k.T, x @ w_v.T  # each (T, D)
    # 2. Queries and keys are brought to the same length, and turned by their positions.
    queries = rotate(F.rms_norm(queries, (D,), attn.q_norm.weight, attn.q_norm.eps))
    keys = rotate(F.rms_norm(keys, (D,), attn.k_norm.weight, attn.k_norm.eps))
    # 3. The score of a query and a key is their product, divided by the root of their width.
    scores = queries @ keys.T / math.sqrt(D)
    # 4. The mask: what comes later gets a score of minus infinity.
    later = torch.ones(T, T, dtype=torch.bool).triu(1)
    masked = scores.masked_fill(later, -math.inf)
    # 5. Softmax makes weights of each row: positive, and 1 in all.
    weights = torch.exp(masked) / torch.exp(masked).sum(dim=1, keepdim=True)
    # 6. Each token takes the values of the others, in these shares.
    return scores, weights, weights @ values


def print_rows(rows):
    for token, row in zip(tokens, rows.tolist(), strict=True):
        print(" ".join(f"{value:6.2f}" for value in row), "", token)


def print_overview():
    for layer in range(model.config.n_layer):
        x, _ = read_module(layer)
        for head in range(heads):
            _, weights, _ = attend_by_hand(x, model.h[layer].attn, head)
            shares = "  ".join(
                f"{token} {share:.2f}" for token, share in zip(tokens, weights[-1].tolist(), strict=True)
            )
            print(f"layer {layer + 1} head {head + 1}:  {shares}")


def print_steps(layer, head):
    x, y = read_module(layer)
    attn = model.h[layer].attn
    scores, weights, taken = attend_by_hand(x, attn, head)
    print(f"x: {tuple(x.shape)}, a query, a key and a value for each token: {tuple(taken.shape)} each")
    print("\nscores: a row for each query, a column for each key")
    print_rows(scores)
    print("\nweights: the future masked, then softmax")
    print_rows(weights)
    # The heads' results side by side, through one more matrix, are what the layer gives.
    all_taken = torch.cat([attend_by_hand(x, attn, h)[2] for h in range(heads)], dim=1)  # (T, heads * D)
    by_hand = all_taken @ attn.c_proj.weight.T
    for name, numbers in (("the module's output", y), ("by hand            ", by_hand)):
        print(f"{name} at the last token: {' '.join(f'{number:.5f}' for number in numbers[-1, :5].tolist())} …")
    print(f"largest difference of all {y.numel()} numbers is below 0.00001: {(by_hand - y).abs().max().item() < 1e-5}")


def draw_figure(layer, head):
    """The weights as a map: a row for each token that asks, a column for each that is asked."""
    warnings.filterwarnings("ignore", "Glyph")  # the browser that shows the figure has a Chinese font
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "course", "font.family": "sans-serif"})
    _, weights, _ = attend_by_hand(read_module(layer)[0], model.h[layer].attn, head)
    figure, axes = plt.subplots(figsize=(5.2, 4.6))
    axes.set_facecolor("#f2f2f2")
    for row in range(T):
        for column in range(row + 1):
            share = weights[row, column].item()
            colour = plt.cm.Blues(share * 0.9)
            axes.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor="white"))
            ink = "white" if share > 0.6 else "black"
            axes.text(column, row, f"{share:.2f}", fontsize=10, ha="center", va="center", color=ink)
    axes.set(xlim=(-0.5, T - 0.5), ylim=(T - 0.5, -0.5), xticks=range(T), yticks=range(T))
    axes.set_xticklabels(tokens, rotation=45, rotation_mode="anchor", ha="right", fontsize=10)
    axes.set_yticklabels(tokens, fontsize=10)
    axes.set_title(f"layer {layer + 1}, head {head + 1}   第 {layer + 1} 层，第 {head + 1} 个头", fontsize=11)
    figure.subplots_adjust(0.22, 0.2, 0.98, 0.92)
    figure.savefig(FIGURE, metadata={"Date": None})
    print(f"figure: {FIGURE}")


with torch.no_grad():
    if arguments.overview:
        print_overview()
    elif arguments.figure:
        draw_figure(arguments.layer - 1, arguments.head - 1)
    else:
        print_steps(arguments.layer - 1, arguments.head - 1)
