"""What the causal mask is for: one token of a text is replaced, and the model's predictions are compared.

python docs/course/scripts/03_mask.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch

from minigpt.checkpoint import open_model

_, _, model, tokenizer = open_model("out/demo_sft/ckpt.pt", "out", "cpu")
texts = "铁的元素符号是什么？##铁的元素符号是", "铁的元素符号是什么？##铜的元素符号是"
before, after = (torch.tensor([tokenizer.encode_marked(text)]) for text in texts)
with torch.no_grad():
    difference = (model(before) - model(after)).abs().amax(dim=2)[0]  # of 4096 numbers at each position, the largest
for a, b, largest in zip(before[0].tolist(), after[0].tolist(), difference.tolist(), strict=True):
    print(f"{largest:7.3f}  {tokenizer.decode([a])}" + (f" -> {tokenizer.decode([b])}" if a != b else ""))
