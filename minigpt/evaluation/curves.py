"""Curves of evaluations over the checkpoints of runs: how a figure goes up or down by training step.

What is drawn is the content of the JSON that an evaluation writes: {"models": [{"name", "run", "step", …}]} with any of
the figures of `LABELS` in each entry, and their intervals as {"intervals": {figure: [low, high]}}.

    figure = draw_curves(read_curves("correction.json"))      # a Figure of its own
    draw_block(block, read_curves("correction.json"))         # the same in a matplotlib subfigure
"""

import json
import math
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from minigpt.common.errors import UserError
from minigpt.evaluation.plots import COLOURS, drawable, nested

# Of 0 to 1, as they are named in a legend, in the order that they are drawn in.
SHARES = {
    "to_change": "to change", "to_keep": "to keep", "accuracy": "all", "rouge_l_f": "Rouge-L F",
    "exact_match": "exact match", "char_f1": "character F1", "numbers": "numbers",
}  # fmt: skip
OTHERS = {"perplexity": "perplexity", "bits_per_char": "bits a character"}
LABELS = {**SHARES, **OTHERS}
CORRECTION = {"to_change", "to_keep", "accuracy"}
FEW = 40  # checkpoints that get a mark each
PANEL = (5.2, 4.4)  # inches
MOST_COLUMNS = 3


def read_curves(path):
    """The content of an evaluation's JSON. Raises UserError where it is none, or has no figure by training step."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); name an evaluation's JSON with --figures=…"
        ) from None
    except ValueError:
        raise UserError(f"{path} is no JSON; name a file that an evaluation wrote with --json=…") from None
    if not runs_of(content):
        raise UserError(f"{path} has no figures by training step; measure a run's folder: --ckpt=out/… --json=…")
    return content


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def run_of(entry):
    """The run that a checkpoint is of: as its entry says, or its folder's name."""
    if isinstance(entry.get("run"), str) and entry["run"]:
        return entry["run"]
    return Path(str(entry.get("checkpoint") or entry.get("name") or "")).absolute().parent.name


def runs_of(content):
    """{run: [entry, …]} of the entries that have a step and a figure to draw, by step."""
    models = content.get("models") if isinstance(content, dict) else None
    found = {}
    for entry in models if isinstance(models, list) else []:
        if isinstance(entry, dict) and is_number(entry.get("step")) and any(is_number(entry.get(k)) for k in LABELS):
            found.setdefault(run_of(entry), []).append(entry)
    return {run: sorted(entries, key=lambda entry: entry["step"]) for run, entries in found.items()}


def band_of(entries, key):
    """([step], [low], [high]) of the entries that have an interval of a figure."""
    found = []
    for entry in entries:
        intervals = entry.get("intervals")
        interval = intervals.get(key) if isinstance(intervals, dict) else None
        if isinstance(interval, (list, tuple)) and len(interval) == 2 and all(map(is_number, interval)):
            found.append((entry["step"], *interval))
    return list(zip(*found, strict=True)) if found else ([], [], [])


def draw_panel(panel, entries, keys):
    """One run's curves of some figures, with their intervals as bands."""
    curves = {key: {e["step"]: e[key] for e in entries if is_number(e.get(key))} for key in LABELS if key in keys}
    curves = {key: points for key, points in curves.items() if points}
    for (key, points), thickness in zip(curves.items(), nested(list(curves.values())), strict=True):
        colour = COLOURS[list(LABELS).index(key) % len(COLOURS)] if key != "accuracy" else "0.25"
        look = {"color": colour, "ls": "--" if key == "accuracy" else "-", "solid_capstyle": "butt"}
        look |= {"marker": "o" if len(points) <= FEW else "", **thickness}
        panel.plot(list(points), list(points.values()), label=LABELS[key], **look)
        steps, low, high = band_of(entries, key)
        if len(steps) > 1:
            panel.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
        elif steps:
            panel.vlines(steps, low, high, color=colour, alpha=0.5)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    panel.set_xlabel("step")


def rows_of(runs):
    """[(keys, label of the y axis)]: the panels that each run gets, one for what is a share, one for each other."""
    there = {key for entries in runs.values() for entry in entries for key in LABELS if is_number(entry.get(key))}
    shares = there & set(SHARES)
    rows = [(shares, "exact match" if shares <= CORRECTION else "share, 0 to 1")] if shares else []
    return rows + [({key}, label) for key, label in OTHERS.items() if key in there]


def draw_block(block, content, title="", say=print):
    """Draw into a matplotlib (sub)figure: the runs side by side, each with panels of its own on the same scale.

    content: as `read_curves` gives it. say(line) is told of names that no font draws. Raises UserError where nothing
    in it can be drawn.
    """
    runs = runs_of(content)
    if not runs:
        raise UserError("no figures by training step to draw; measure a run's folder: --ckpt=out/…")
    rows, columns = rows_of(runs), min(MOST_COLUMNS, len(runs))
    deep = -(-len(runs) // columns)
    panels = block.subplots(len(rows) * deep, columns, squeeze=False)
    for panel in panels.flat:
        panel.set_visible(False)
    highest = {}
    for number, (entries, name) in enumerate(zip(runs.values(), drawable(list(runs), say), strict=True)):
        for row, (keys, label) in enumerate(rows):
            panel = panels[number // columns * len(rows) + row, number % columns]
            panel.set_visible(True)
            draw_panel(panel, entries, keys)
            if not row:
                panel.set_title(name, fontsize="medium")
            if not number % columns:
                panel.set_ylabel(label)
            if keys <= set(SHARES):
                panel.set_ylim(-0.02, 1.02)
            else:
                highest.setdefault(row, []).append(panel)
            if not number and panel.get_legend_handles_labels()[0]:
                panel.legend(fontsize="small", framealpha=0.7)
    for same in highest.values():
        low, high = (pick(panel.get_ylim()[end] for panel in same) for end, pick in ((0, min), (1, max)))
        for panel in same:
            panel.set_ylim(low, high)
    if title:
        block.suptitle(drawable([title], say)[0], fontsize="large")


def draw_curves(content, title="", say=print):
    """A Figure of the curves, as `draw_block` draws them; `minigpt.evaluation.plots.save_plot` writes it."""
    runs = runs_of(content)
    columns = min(MOST_COLUMNS, max(1, len(runs)))
    deep = -(-len(runs) // columns) * max(1, len(rows_of(runs)))
    size = (PANEL[0] * max(1.3, columns), PANEL[1] * max(1, deep))
    figure = Figure(figsize=size, layout="constrained")
    draw_block(figure, content, title, say)
    return figure
