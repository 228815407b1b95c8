"""What rounding does to weights, and to answers: the demo's fine-tuned model in the types that GGUF files have.

python docs/course/scripts/13_rounding.py
"""

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import gguf
import matplotlib
import numpy as np
import torch

matplotlib.use("svg")
import matplotlib.pyplot as plt

from data_utils import open_rows
from minigpt.evaluation.prompts import pairs_of_rows
from minigpt.inference.engine import open_generator
from minigpt.inference.params import SamplingParams
from minigpt.metrics import score_pairs
from minigpt.settings.stages import SampleSettings

CHECKPOINT = "out/demo_sft/ckpt.pt"
COUNT = 100  # questions asked
BLOCK = 32  # weights that share a scale
TYPES = {"q8_0": gguf.GGMLQuantizationType.Q8_0, "q4_0": gguf.GGMLQuantizationType.Q4_0}
FIGURE = "docs/course/figures/13-rounding.svg"


def round_weights(weights, name):
    """(n, m) float32 weights, rounded to a type and back. m is a multiple of BLOCK."""
    return gguf.dequantize(gguf.quantize(weights, TYPES[name]), TYPES[name])


def round_by_hand(block):
    """A block of weights as q8_0 rounds it: whole numbers from -127 to 127, times a scale of 16 bits."""
    scale = np.float32(np.abs(block).max() / 127)
    return np.round(block / scale) * np.float32(np.float16(scale))


def measure_answers(name=None):
    """Share of held-out questions that the model answers word for word, with its matrices rounded to a type."""
    generator = open_generator(CHECKPOINT, SampleSettings())[2]
    with torch.no_grad():
        for weights in generator.model.parameters():
            if name and weights.ndim == 2:
                weights.copy_(torch.from_numpy(round_weights(weights.numpy(), name)))
    rows, meta = open_rows("data/processed_demo_sft", "test")
    pairs = pairs_of_rows(rows[:: max(1, len(rows) // COUNT)][:COUNT], meta, generator.tokenizer)
    answers = generator.generate([question for question, _ in pairs], SamplingParams(temperature=0, max_new_tokens=48))
    return score_pairs(answers, [reference for _, reference in pairs])["exact_match"]


def draw_rounding(block):
    """A block's weights, and what each type keeps of them."""
    warnings.filterwarnings("ignore", "Glyph")  # the browser that shows the figure has a Chinese font
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "13", "font.size": 11})
    figure, axes = plt.subplots(figsize=(5, 3.8))
    for level in np.unique(round_weights(block[None], "q4_0")):
        axes.axhline(level, color="#D55E00", alpha=0.25, linewidth=0.8)
    axes.plot(block, "o", color="#7A7A7A", markersize=7, label="float32")
    axes.plot(round_weights(block[None], "q8_0")[0], ".", color="#0072B2", label="q8_0")
    axes.plot(round_weights(block[None], "q4_0")[0], "x", color="#D55E00", label="q4_0")
    axes.set(xlabel="weight of the block 块中的权重", ylabel="value 值")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.15), ncols=3, frameon=False)
    figure.tight_layout()
    Path(FIGURE).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})


model = open_generator(CHECKPOINT, SampleSettings())[2].model
matrix = next(weights for weights in model.parameters() if weights.ndim == 2).detach().numpy()
block = matrix[100, :BLOCK]
print(f"a block of {BLOCK} weights, the first four:")
print("   float32         ", *(f"{w:+.5f}" for w in block[:4]))
for name in TYPES:
    print(f"   {name}            ", *(f"{w:+.5f}" for w in round_weights(block[None], name)[0, :4]))
print("   q8_0, by hand   ", *(f"{w:+.5f}" for w in round_by_hand(block)[:4]))
print("the matrix, and the answers:")
print(f"   float32  4.00 bytes a weight, exact match {measure_answers():.2f}")
for name, kind in TYPES.items():
    count, size = gguf.GGML_QUANT_SIZES[kind]
    error = np.linalg.norm(round_weights(matrix, name) - matrix) / np.linalg.norm(matrix)
    print(f"   {name}     {size / count:.2f} bytes a weight, exact match {measure_answers(name):.2f}, ", end="")
    print(f"weights wrong by {error:.1%}")
draw_rounding(block)
