"""The whole model by hand: a text through embedding, layers and output, compared with the model.

python docs/course/scripts/04_forward.py
python docs/course/scripts/04_forward.py --text=铜的元素符号是什么？##铜的元素符号是
python docs/course/scripts/04_forward.py --figure
"""

import argparse
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch

from minigpt.checkpoint import open_model

FIGURE = "docs/course/figures/04-model.svg"
SHOWN = 4  # likeliest tokens

parser = argparse.ArgumentParser()
parser.add_argument("--text", default="铁的元素符号是什么？##铁的元素符号是")
parser.add_argument("--figure", action="store_true")
arguments = parser.parse_args()

_, _, model, tokenizer = open_model("out/demo_sft/ckpt.pt", "out", "cpu")


def norm(x, weight, eps=1e-6):
    """Each vector divided by the root of the mean of its squares, and each of its numbers by a learned factor."""
    return x / torch.sqrt((x**2).mean(dim=1, keepdim=True) + eps) * weight


def mlp(x, layer):
    """512 numbers of each vector, let through by 512 gates, and back to 192."""
    gate, content = (x @ layer.c_fc.weight.T).chunk(2, dim=1)
    return (gate * torch.sigmoid(gate) * content) @ layer.c_proj.weight.T


def logits_of(x):
    """How well each vector fits each token of the vocabulary, (T, 4096)."""
    return norm(x, model.ln_f.weight) @ model.wte.weight.T


def forward(ids):
    """(logits (T, V), [(name, what was added (T, C), stream (T, C))]) of a text."""
    x = model.wte.weight[ids]  # the row of each id
    angles = model.angles(torch.arange(len(ids)))
    steps = [("embedding", x, x)]
    for number, block in enumerate(model.h, start=1):
        # Chapter 3 did by hand what this module does. It takes a batch, here of one text.
        added = block.attn(norm(x, block.ln_1.weight)[None], angles)[0]
        x = x + added
        steps.append((f"attention {number}", added, x))
        added = mlp(norm(x, block.ln_2.weight), block.mlp)
        x = x + added
        steps.append((f"MLP {number}", added, x))
    return logits_of(x), steps


def guesses(x):
    """[(token, probability)] of the likeliest next tokens, if the stream x (T, C) were read out here."""
    shares, ids = torch.softmax(logits_of(x)[-1], dim=0).topk(SHOWN)
    return [(tokenizer.decode([token_id]) or "…", share) for token_id, share in zip(ids, shares.tolist(), strict=True)]


def print_steps(ids):
    logits, steps = forward(ids)
    print("the last token's vector:")
    for name, added, x in steps:
        best = "  ".join(f"{token} {share:.3f}" for token, share in guesses(x))
        print(f"{name:12} adds {added[-1].norm():5.1f}, then {x[-1].norm():5.1f} long; read out here: {best}")
    print("\nits logits and probabilities at the end:")
    probabilities = torch.exp(logits[-1]) / torch.exp(logits[-1]).sum()
    for token_id in probabilities.topk(SHOWN).indices:
        print(f"{logits[-1, token_id]:8.2f} {probabilities[token_id]:8.4f}  {tokenizer.decode([token_id])}")
    print(f"{len(probabilities)} probabilities, {probabilities.sum():.4f} in all")
    difference = (model(ids[None])[0] - logits).abs().max().item()
    print(f"largest difference from the model's logits is below 0.0001: {difference < 1e-4}")


def draw_figure(ids):
    """The stream from bottom to top: what each part adds, and what would be predicted after it."""
    warnings.filterwarnings("ignore", "Glyph")  # the browser that shows the figure has a Chinese font
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "course", "font.family": "sans-serif"})
    _, steps = forward(ids)
    figure, axes = plt.subplots(figsize=(5.2, 5.6))
    axes.annotate("", (4, 4.85), (4, -0.9), arrowprops={"arrowstyle": "-|>", "lw": 5, "color": "#9db8cc"})
    axes.text(0, -1.2, "x: a vector 向量", fontsize=10.5)
    axes.text(5, -1.2, "next token 下一个 token", fontsize=10.5)
    for y, (name, _, x) in enumerate(steps):
        colour = "#f5d7b5" if name.startswith("attention") else "#cfe3f3" if name.startswith("MLP") else "#dddddd"
        axes.add_patch(plt.Rectangle((0, y - 0.3), 2.6, 0.6, facecolor=colour))
        axes.text(1.3, y, name, fontsize=11, ha="center", va="center")
        # A part reads the stream (below, dashed) and adds to it (above).
        axes.annotate("", (3.8, y + 0.12), (2.6, y + 0.12), arrowprops={"arrowstyle": "-|>", "color": "#555555"})
        if y:
            reading = {"arrowstyle": "-|>", "color": "#999999", "linestyle": "--"}
            axes.annotate("", (2.6, y - 0.2), (3.95, y - 0.2), arrowprops=reading)
            axes.text(4, y + 0.12, "+", fontsize=15, ha="center", va="center")
        for place, (token, share) in enumerate(guesses(x)[:3]):
            width = 2.4 * share
            axes.add_patch(plt.Rectangle((4.9, y + 0.2 - 0.27 * place), width, 0.2, facecolor="#6fa8d0"))
            axes.text(4.95 + width, y + 0.3 - 0.27 * place, f"{token} {share:.2f}", fontsize=9, va="center")
    axes.add_patch(plt.Rectangle((0, 4.9), 9.5, 0.6, facecolor="#dddddd"))
    label = "norm, output: 4096 logits, softmax  概率"
    axes.text(4.75, 5.2, label, fontsize=10.5, ha="center", va="center")
    axes.set(xlim=(-0.1, 9.6), ylim=(-1.4, 5.6))
    axes.axis("off")
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.99)
    figure.savefig(FIGURE, metadata={"Date": None})
    print(f"figure: {FIGURE}")


with torch.no_grad():
    all_ids = torch.tensor(tokenizer.encode_marked(arguments.text))
    if arguments.figure:
        draw_figure(all_ids)
    else:
        print_steps(all_ids)
