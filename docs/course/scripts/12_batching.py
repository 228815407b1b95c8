"""Eight requests, four places: which request takes part in which step of the model, and what sharing saves.

python docs/course/scripts/12_batching.py
"""

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from minigpt.inference.engine import open_generator
from minigpt.inference.params import SamplingParams
from minigpt.settings.stages import SampleSettings

PLACES = 4  # requests that run at the same time; server.py has 32 (--max_batch)
TOKENS = [6, 20, 9, 14, 24, 5, 12, 8]  # that the eight clients ask for
FIGURE = "docs/course/figures/12-batching.svg"


def run_engine():
    """For each request the steps (counted from 0) in which it got a token."""
    generator = open_generator("out/demo/last.pt", SampleSettings(max_batch=PLACES))[2]
    engine = generator.engine
    streams = [generator.new_stream("中国", SamplingParams(max_new_tokens=n, seed=0)) for n in TOKENS]
    engine.waiting.extend(streams)
    steps = [[] for _ in streams]
    number = 0
    while engine.busy:
        before = [len(stream.ids) for stream in streams]
        engine.step()
        for stream, taken, count in zip(streams, steps, before, strict=True):
            taken += [number] * (len(stream.ids) - count)
        number += 1
    return steps


def draw_steps(steps):
    """A bar for each request, from its first step to its last."""
    warnings.filterwarnings("ignore", "Glyph")  # the browser that shows the figure has a Chinese font
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "12", "font.size": 11})
    figure, axes = plt.subplots(figsize=(5, 3.6))
    for row, taken in enumerate(steps):
        axes.barh(row, taken[-1] - taken[0] + 1, left=taken[0], color="#0072B2", height=0.7)
        axes.text(taken[0] + 0.4, row, f"{len(taken)}", color="white", va="center")
    axes.set(xlabel="step of the model 步", ylabel="request 请求")
    axes.set_yticks(range(len(steps)), range(1, 1 + len(steps)))
    axes.invert_yaxis()
    figure.tight_layout()
    Path(FIGURE).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})


steps = run_engine()
print("request  tokens  in steps")
for number, taken in enumerate(steps, 1):
    print(f"{number:7d} {len(taken):7d}  {taken[0]} to {taken[-1]}")
spans = [taken[-1] - taken[0] + 1 for taken in steps]
groups = [spans[start : start + PLACES] for start in range(0, len(spans), PLACES)]
print(f"one after the other:             {sum(spans)} steps")
print(f"in fixed groups of {PLACES}:            {sum(max(group) for group in groups)} steps")
print(f"a place is refilled when free:   {max(taken[-1] for taken in steps) + 1} steps")
draw_steps(steps)
