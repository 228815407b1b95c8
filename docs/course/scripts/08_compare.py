"""The fine-tunings of chapter 8 compared: what each trains, what it answers, and what it has forgotten.

python docs/course/scripts/08_compare.py
"""

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from data_utils import open_rows
from minigpt.adapters.attach import trained_parameters
from minigpt.checkpoint import open_model
from minigpt.evaluation.prompts import pairs_of_rows
from minigpt.inference.engine import TextGenerator
from minigpt.inference.likelihood import likelihood
from minigpt.inference.params import SamplingParams
from minigpt.metrics import score_pairs

RUNS = {
    "base": "out/demo/last.pt",
    "full": "out/course/08_full/ckpt.pt",
    "lora": "out/course/08_lora/ckpt.pt",
    "prefix": "out/course/08_prefix/ckpt.pt",
    "prompt": "out/course/08_prompt/ckpt.pt",
}
COUNT = 200  # held-out questions asked
ARTICLES = 100  # whose bits a character are measured
FIGURE = "docs/course/figures/08-fine-tuning.svg"


def measure(path):
    """(trained parameters, megabytes of the file, exact match, bits a character of articles) of a checkpoint."""
    _, content, model, tokenizer = open_model(path, "out", "cpu")
    trained = sum(p.numel() for p in trained_parameters(model).values())
    rows, meta = open_rows("data/processed_demo_sft", "test")
    pairs = pairs_of_rows(rows[:: max(1, len(rows) // COUNT)][:COUNT], meta, tokenizer)
    # The base was never taught the answer mark; with it or without it, it only continues.
    generator = TextGenerator(model, tokenizer, content["stage"])
    answers = generator.generate([question for question, _ in pairs], SamplingParams(temperature=0, max_new_tokens=48))
    exact = score_pairs(answers, [reference for _, reference in pairs])["exact_match"]
    articles, about = open_rows("data/processed_demo", "val")
    bits = likelihood(model, articles[:ARTICLES], about, 16, tokenizer).bits_per_char
    return trained, Path(path).stat().st_size / 1e6, exact, bits


def draw_tunings(figures):
    """Exact match over trained parameters, a point for each method."""
    warnings.filterwarnings("ignore", "Glyph")  # the browser that shows the figure has a Chinese font
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "8", "font.size": 11})
    figure, axes = plt.subplots(figsize=(5, 3.6))
    for name, (trained, _, exact, _) in figures.items():
        if name != "base":
            axes.plot(trained, exact, "o", color="#0072B2")
            axes.annotate(name, (trained, exact), xytext=(6, -4), textcoords="offset points")
    axes.set(xscale="log", xlabel="trained parameters 训练的参数", ylabel="exact match 逐字答对", ylim=(0, 1))
    axes.set_xlim(1e3, 1e7)
    figure.tight_layout()
    Path(FIGURE).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})


figures = {name: measure(path) for name, path in RUNS.items()}
print("          trained     file  exact match  bits a character of articles")
for name, (trained, size, exact, bits) in figures.items():
    beside = " " * 18 if name == "base" else f"{trained:9,d} {size:5.2f} MB"
    print(f"{name:7} {beside}  {exact:11.3f}  {bits:.2f}")
draw_tunings(figures)
