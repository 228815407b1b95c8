"""Intervals by the bootstrap, by hand, of the answers that evaluations-RougeL.py wrote to out/course/answers.csv.

    python docs/course/scripts/10_bootstrap.py interval
    python docs/course/scripts/10_bootstrap.py compare

`interval`: exact match of the first model, on more and more questions. `compare`: every two models, and the figure.
"""

import csv
import itertools
import sys
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).resolve().parents[3]
ANSWERS, FIGURE = ROOT / "out/course/answers.csv", ROOT / "docs/course/figures/10-measuring.svg"
SIZES = 20, 50, 100, 200, 400, 800
RESAMPLES = 2000


def read_scores():
    """{model: its rows of the CSV, dicts}, in the order of the questions, which is the same for all models."""
    models = {}
    with open(ANSWERS, encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            models.setdefault(row["model"].split("/")[0], []).append(row)
    return models


def resampled_means(scores):
    """Means of RESAMPLES samples of a model's scores: each draws as many questions as there are, with replacement."""
    rng = np.random.default_rng(0)
    return np.array([scores[rng.integers(len(scores), size=len(scores))].mean() for _ in range(RESAMPLES)])


def interval(scores):
    """(low, high): nineteen of twenty resampled means lie between them."""
    return np.quantile(resampled_means(scores), [0.025, 0.975])


def figures_of(rows, name):
    """A score of all rows, as an array."""
    return np.array([float(row[name]) for row in rows])


def some_of(scores, size):
    """`size` of the scores, drawn by chance (always the same ones)."""
    return scores[np.random.default_rng(size).permutation(len(scores))[:size]]


def show_intervals(name, rows):
    """Print exact match with its interval for samples of growing size, and how good wrong answers look."""
    right = figures_of(rows, "exact_match")
    print(f"{name}\nquestions  exact match  95% interval   width")
    for size in (size for size in SIZES if size <= len(right)):
        sample = some_of(right, size)
        low, high = interval(sample)
        print(f"{size:9}  {sample.mean():11.3f}  {low:.3f}–{high:.3f}  {high - low:6.3f}")
    wrong = figures_of(rows, "rouge_l_f")[right == 0]
    if len(wrong):
        print(f"\nRouge-L F of the {len(wrong)} wrong answers: mean {wrong.mean():.3f}")


def compare_pairs(models):
    """Print the difference of every two models, question by question, and draw the resampled differences."""
    warnings.filterwarnings("ignore", "Glyph")  # the browser that shows the figure has a Chinese font
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "course", "font.size": 11})
    figure, (above, below) = plt.subplots(2, 1, figsize=(5, 6), layout="constrained")

    # Above: the interval of one model shrinks with the number of questions.
    first = next(iter(models))
    right = {name: figures_of(rows, "exact_match") for name, rows in models.items()}
    sizes = [size for size in SIZES if size <= len(right[first])]
    for size in sizes:
        sample = some_of(right[first], size)
        low, high = interval(sample)
        above.plot([size, size], [low, high], color="tab:blue", linewidth=3)
        above.plot(size, sample.mean(), "o", color="black")
    above.set(xscale="log", xlabel="questions 问题数", ylabel="exact match")
    above.set_xticks(sizes, map(str, sizes))
    above.minorticks_off()
    above.grid(alpha=0.3)

    # Below: the difference of every two models. That of two models on the same questions is one number a question.
    print("A - B                        difference  95% interval     not paired")
    for one, other in itertools.combinations(right, 2):
        difference, name = right[one] - right[other], f"{one} - {other}"
        low, high = interval(difference)
        apart = np.sqrt(sum(np.diff(interval(right[model]))[0] ** 2 for model in (one, other)))
        wider = f"{apart / (high - low):.1f} times as wide" if high > low else ""
        print(f"{name:28} {difference.mean():+10.3f}  {low:+.3f}…{high:+.3f}  {wider}")
        below.hist(resampled_means(difference), 20, alpha=0.7, label=name)
    below.axvline(0, color="black")
    below.set(xlabel="difference of exact match 差", ylabel="resamples 次数")
    below.legend(fontsize=8)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})


def main():
    models = read_scores()
    if sys.argv[1:] == ["compare"]:
        compare_pairs(models)
    else:
        show_intervals(*next(iter(models.items())))


if __name__ == "__main__":
    main()
