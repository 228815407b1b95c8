"""Counts a model's parameters by hand, from its shape, and compares with the model.

python docs/course/scripts/04_parameters.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch

from minigpt.checkpoint import open_model
from model import GPT, GPTConfig

_, _, model, _ = open_model("out/demo_sft/ckpt.pt", "out", "cpu")
V, C, D = model.config.vocab_size, model.config.n_embd, model.config.head_dim
heads, layers, inner = model.config.n_head, model.config.n_layer, model.config.n_inner
layer = [
    ("norm before attention", f"{C}", C),
    ("queries, keys, values", f"3 x {heads} x {D} x {C}", 3 * heads * D * C),
    ("norms of queries, keys", f"2 x {D}", 2 * D),
    ("back to the stream", f"{C} x {heads * D}", C * heads * D),
    ("norm before the MLP", f"{C}", C),
    ("MLP: gate and content", f"2 x {inner} x {C}", 2 * inner * C),
    ("MLP: back to the stream", f"{C} x {inner}", C * inner),
]
for name, shape, count in layer:
    print(f"  {name:24} {shape:16} {count:9,}")
in_layer = sum(count for _, _, count in layer)
print(f"a layer                                     {in_layer:9,}")
print(f"{layers} layers                                    {layers * in_layer:9,}")
print(f"embedding, also output     {V} x {C:<11} {V * C:9,}")
print(f"last norm                                   {C:9,}")
total = layers * in_layer + V * C + C
print(f"in all                                      {total:9,}   the model itself says {model.num_params():,}")

# GPT-2's shape, made without memory for its numbers ("meta"). Its vectors for positions are not counted.
with torch.device("meta"):
    gpt2 = GPT(GPTConfig(n_layer=12, n_head=12, n_embd=768, vocab_size=50304))
by_hand = 12 * (12 * 768 * 768 + 2 * 768) + 50304 * 768 + 768
print(f"GPT-2's shape: {by_hand:,} by hand, {gpt2.num_params():,} in the model")
