"""Plots of an evaluation over the checkpoints of runs: its figures by training step.

They are drawn from the JSON that an evaluation writes: {"models": [{"name", "run", "step", …}]}. Each entry has any of
the figures of `FIGURE_LABELS`, and may have their intervals as {"intervals": {figure: [low, high]}}.

    figure = draw_curves(read_curves("correction.json"))      # a Figure of its own
    draw_block(block, read_curves("correction.json"))         # the same in a matplotlib subfigure
"""

import json
import math
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from minigpt.common.errors import UserError
from minigpt.evaluation.plots import COLOURS, MAX_MARKED_POINTS, curve_widths, drawable_names

# Figures from 0 to 1 share a panel; each other one has its own. They are drawn in this order.
SHARE_LABELS = {
    "to_change": "to change", "to_keep": "to keep", "accuracy": "all", "rouge_l_f": "Rouge-L F",
    "exact_match": "exact match", "char_f1": "character F1", "numbers": "number accuracy",
    "grammar": "minimal pairs",
}  # fmt: skip
OTHER_LABELS = {"perplexity": "perplexity", "bits_per_char": "bits per character"}
FIGURE_LABELS = {**SHARE_LABELS, **OTHER_LABELS}
CORRECTION_KEYS = {"to_change", "to_keep", "accuracy"}
PANEL_INCHES = (5.2, 4.4)
MAX_COLUMNS = 3


def read_curves(path):
    """The content of an evaluation's JSON. Raises UserError if it is not JSON, or has no figure by training step."""
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
    """The run of an entry's checkpoint: as the entry says, or the name of the checkpoint's folder."""
    return entry.get("run") or Path(str(entry.get("checkpoint") or entry.get("name"))).absolute().parent.name


def runs_of(content):
    """{run: [entry, …]} of the entries with a step and a figure to draw, sorted by step."""
    models = content.get("models") if isinstance(content, dict) else None
    found = {}
    for entry in models if isinstance(models, list) else []:
        if not isinstance(entry, dict) or not is_number(entry.get("step")):
            continue
        if any(is_number(entry.get(key)) for key in FIGURE_LABELS):
            found.setdefault(run_of(entry), []).append(entry)
    return {run: sorted(entries, key=lambda entry: entry["step"]) for run, entries in found.items()}


def band_of(entries, key):
    """([step], [low], [high]) of the entries that have an interval for the figure `key`."""
    edges = [(entry["step"], (entry.get("intervals") or {}).get(key)) for entry in entries]
    bands = [(step, *interval) for step, interval in edges if interval]
    return list(zip(*bands, strict=True)) or ([], [], [])


def draw_panel(panel, entries, keys):
    """Draw the figures `keys` of one run, with their intervals as bands."""
    curves = {
        key: {e["step"]: e[key] for e in entries if is_number(e.get(key))} for key in FIGURE_LABELS if key in keys
    }
    curves = {key: points for key, points in curves.items() if points}
    for (key, points), width in zip(curves.items(), curve_widths(list(curves.values())), strict=True):
        colour = COLOURS[list(FIGURE_LABELS).index(key) % len(COLOURS)] if key != "accuracy" else "0.25"
        options = {"color": colour, "ls": "--" if key == "accuracy" else "-", "solid_capstyle": "butt"}
        options |= {"marker": "o" if len(points) <= MAX_MARKED_POINTS else "", **width}
        panel.plot(list(points), list(points.values()), label=FIGURE_LABELS[key], **options)
        steps, low, high = band_of(entries, key)
        if len(steps) > 1:
            panel.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
        elif steps:
            panel.vlines(steps, low, high, color=colour, alpha=0.5)
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    panel.set_xlabel("step")


def panel_rows(runs):
    """[(figures' keys, label of the y axis)]: the panels of each run, one for all shares, one for each other figure."""
    entries = [entry for own in runs.values() for entry in own]
    keys = {key for key in FIGURE_LABELS if any(is_number(entry.get(key)) for entry in entries)}
    shares = keys & set(SHARE_LABELS)
    rows = [(shares, "exact match" if shares <= CORRECTION_KEYS else "share, 0 to 1")] if shares else []
    return rows + [({key}, label) for key, label in OTHER_LABELS.items() if key in keys]


def draw_block(block, content, say=print):
    """Draw into a matplotlib (sub)figure: the runs side by side, each with its own panels on a common scale.

    content: as `read_curves` returns it. say(line): called for names that no font can draw. Raises UserError if there
    is nothing to draw.
    """
    runs = runs_of(content)
    if not runs:
        raise UserError("no figures by training step to draw; measure a run's folder: --ckpt=out/…")
    rows, columns = panel_rows(runs), min(MAX_COLUMNS, len(runs))
    deep = -(-len(runs) // columns)
    panels = block.subplots(len(rows) * deep, columns, squeeze=False)
    for panel in panels.flat:
        panel.set_visible(False)
    first = {}  # row: its panel of the first run, whose scale the other runs share
    for number, (entries, name) in enumerate(zip(runs.values(), drawable_names(list(runs), say), strict=True)):
        for row, (keys, label) in enumerate(rows):
            panel = panels[number // columns * len(rows) + row, number % columns]
            panel.set_visible(True)
            draw_panel(panel, entries, keys)
            if not row:
                panel.set_title(name, fontsize="medium")
            if not number % columns:
                panel.set_ylabel(label)
            if keys <= set(SHARE_LABELS):
                panel.set_ylim(-0.02, 1.02)
            elif first.setdefault(row, panel) is not panel:
                panel.sharey(first[row])
            if not number and panel.get_legend_handles_labels()[0]:
                panel.legend(fontsize="small", framealpha=0.7)


def draw_curves(content, say=print):
    """A Figure of its own with what `draw_block` draws. `plots.save_plot` writes it."""
    runs = runs_of(content)
    columns = min(MAX_COLUMNS, max(1, len(runs)))
    deep = -(-len(runs) // columns) * max(1, len(panel_rows(runs)))
    size = (PANEL_INCHES[0] * max(1.3, columns), PANEL_INCHES[1] * max(1, deep))
    figure = Figure(figsize=size, layout="constrained")
    draw_block(figure, content, say)
    return figure
