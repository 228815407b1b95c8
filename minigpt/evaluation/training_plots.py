"""Plots of training runs: losses, learning rate, tokens per second; optionally with plots of evaluations."""

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from minigpt.common.errors import UserError
from minigpt.evaluation.checkpoint_plots import draw_block
from minigpt.evaluation.plots import COLOURS, MAX_MARKED_POINTS, curve_style, drawable_names
from minigpt.run_log import (
    best_line,
    find_gaps,
    limit_smoothing,
    measure_throughput,
    overfitting,
    smooth_values,
    thinned,
)

TRAIN_COLOUR, VAL_COLOUR, BEST_COLOUR, RATE_COLOUR, RAW_COLOUR = COLOURS[:5]
MAX_CURVE_POINTS = 2000
MAX_MARKED_RUNS = 7  # with more, markers would hide the line styles
SPIKE_FACTOR = 1.5  # losses above so many times the first training loss are cut off
TIME_UNITS = ((2 * 3600, 3600, "hours"), (180, 60, "minutes"), (0, 1, "seconds"))  # (from seconds, divisor, name)
X_LABELS = {"step": "step", "tokens": "tokens trained on", "epoch": "epochs"}
SINGLE_INCHES = (10, 8)
BLOCK_INCHES = (6.4, 6.6)  # of one block among others
STAR = {"marker": "*", "markeredgecolor": "white", "linestyle": "none", "zorder": 5, "clip_on": False}
LOSS_LABEL = "loss (nats per token)"


class Axis:
    """The x axis of some runs: "step", "tokens", "epoch" or "seconds" (in a fitting unit). Raises UserError."""

    def __init__(self, x, runs):
        self.x, self.unit, self.label = x, 1, X_LABELS.get(x)
        for run in runs:
            if not np.isfinite(run.columns[x]).any():
                raise UserError(f"{run.path} does not record {x}; choose another x axis with --x=step")
        if x == "seconds" and runs:
            longest = max(run.columns[x][np.isfinite(run.columns[x])].max() for run in runs)
            _, self.unit, name = next(unit for unit in TIME_UNITS if longest >= unit[0])
            self.label = f"{name} of training"

    def places(self, run):
        """x of each line of a run, nan if it is missing."""
        return run.columns[self.x] / self.unit

    def format_panel(self, panel):
        panel.set_xlabel(self.label)
        panel.xaxis.set_major_locator(MaxNLocator(7, integer=self.x == "step"))
        plain = FuncFormatter(lambda value, _: f"{value:,.6g}")
        panel.xaxis.set_major_formatter(EngFormatter(sep="") if self.x == "tokens" else plain)


def break_at(x, y, missing):
    """x and y with a nan before each of the indices `missing`, so that no line crosses a gap."""
    return np.insert(x, missing, np.nan), np.insert(y, missing, np.nan)


def draw_curve(panel, run, axis, places, values, extremes=False, **options):
    """Draw the values at some lines of a run (indices), thinned, with a break where lines are missing."""
    x = axis.places(run)[places]
    right = np.isfinite(x) & np.isfinite(values)
    x, values, places = x[right], values[right], places[right]
    if not len(x):
        return []
    missing = np.searchsorted(places, find_gaps(run.columns["step"]))
    stretches = [part for part in np.split(np.arange(len(x)), np.unique(missing)) if len(part)]
    most = max(2, MAX_CURVE_POINTS // len(stretches))
    parts = [thinned(x[part], values[part], most, extremes) for part in stretches]
    ends = np.cumsum([len(part[0]) for part in parts])[:-1]
    if any(len(part[0]) == 1 for part in parts):
        options = {"marker": ".", **options}  # a single point has no line
    return panel.plot(*break_at(*map(np.concatenate, zip(*parts, strict=True)), ends), **options)


def draw_losses(panel, run, axis, smooth):
    """Draw one run's training loss (raw and smoothed), validation loss, best step and over-fitting."""
    columns = run.columns
    trained, checked = (np.flatnonzero(np.isfinite(columns[name])) for name in ("train_loss", "val_loss"))
    losses = columns["train_loss"][trained]
    smooth = limit_smoothing(smooth, len(losses))
    if smooth:
        draw_curve(panel, run, axis, trained, losses, True, color=RAW_COLOUR, lw=0.8, alpha=0.6, label="training, raw")
    label = f"training, smoothed ({smooth:.2g})" if smooth else "training"
    draw_curve(panel, run, axis, trained, smooth_values(losses, smooth), color=TRAIN_COLOUR, lw=1.8, label=label)
    marks = {"marker": "o", "markersize": 3.5} if len(checked) <= MAX_MARKED_POINTS else {}
    draw_curve(
        panel, run, axis, checked, columns["val_loss"][checked], color=VAL_COLOUR, lw=1.8, label="validation", **marks
    )
    mark_best(panel, run, axis)
    limit_losses(panel, [run])


def mark_best(panel, run, axis):
    columns, best, found = run.columns, best_line(run.columns), overfitting(run.columns)
    if best is not None:
        place, loss, step = axis.places(run)[best], columns["val_loss"][best], columns["step"][best]
        panel.plot(
            [place], [loss], color=BEST_COLOUR, markersize=14, label=f"best: {loss:.3f} at step {step:,.0f}", **STAR
        )
    if found:
        end = axis.places(run)[np.isfinite(axis.places(run))].max()
        label = f"over-fits: validation {found.last / found.best - 1:+.0%}"
        panel.axvspan(axis.places(run)[found.line], end, color="0.5", alpha=0.13, lw=0, label=label)


def limit_losses(panel, runs):
    """Set the y axis of a panel of losses: from 0, and so that a spike does not flatten the rest of the curves."""
    highest, usual = 0.0, 0.0
    for run in runs:
        for name in ("train_loss", "val_loss"):
            values = run.columns[name][np.isfinite(run.columns[name])]
            if len(values):
                highest = max(highest, float(values.max()))
                usual = max(usual, SPIKE_FACTOR * float(values[0]), 4 * float(np.median(values)))
    if highest > 0:
        panel.set_ylim(0, 1.05 * min(highest, usual) or None)
    if highest > usual > 0:
        panel.text(
            0.99, 0.97, f"▲ up to {highest:.3g}", transform=panel.transAxes, ha="right", va="top", fontsize="small"
        )


def draw_losses_together(panel, runs, names, axis, smooth):
    """Draw the losses of several runs, validation strong and training faint; returns the legend's handles."""
    handles = []
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        columns, style = run.columns, curve_style(number)
        trained, checked = (np.flatnonzero(np.isfinite(columns[key])) for key in ("train_loss", "val_loss"))
        strength = {"lw": 1.0, "alpha": 0.5} if len(checked) else {"lw": 1.6}
        drawn = draw_curve(
            panel, run, axis, trained, smooth_values(columns["train_loss"][trained], smooth), **style | strength
        )
        best, found = best_line(columns), overfitting(columns)
        if best is not None:
            marks = (
                {"marker": "o", "markersize": 3.5}
                if len(checked) <= MAX_MARKED_POINTS and len(runs) <= MAX_MARKED_RUNS
                else {}
            )
            drawn = draw_curve(panel, run, axis, checked, columns["val_loss"][checked], lw=1.8, **style, **marks)
            place, loss = axis.places(run)[best], columns["val_loss"][best]
            panel.plot([place], [loss], color=style["color"], markersize=13, **STAR)
            name += f": {loss:.3f} at step {columns['step'][best]:,.0f}"
            if found:
                panel.plot([place], [loss], "o", markersize=15, markerfacecolor="none", markeredgecolor=style["color"])
                name += ", then over-fits"
        for line in drawn:
            line.set_label(name)
            handles.append(line)
    limit_losses(panel, runs)
    return handles


def draw_learning_rate(panel, run, axis, **options):
    places = np.flatnonzero(np.isfinite(run.columns["lr"]))
    draw_curve(panel, run, axis, places, run.columns["lr"][places], lw=1.6, **options)


def draw_throughput(panel, run, axis, **options):
    found = measure_throughput(run.columns)
    draw_curve(panel, run, axis, found.places, found.rates, lw=1.4, **options)
    return found


def format_learning_rate(panel):
    panel.set_ylim(bottom=0)
    panel.yaxis.set_major_locator(MaxNLocator(4))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    panel.set_ylabel("learning rate")


def format_throughput(panel):
    panel.set_ylim(bottom=0)
    panel.yaxis.set_major_locator(MaxNLocator(4))
    panel.yaxis.set_major_formatter(EngFormatter(sep=""))
    panel.set_ylabel("tokens / s")


def panels_of(block, runs):
    """(losses, learning rate, tokens per second): the panels of a block; None for one without data."""
    wanted = [
        any(np.isfinite(run.columns["lr"]).any() for run in runs),
        any(math.isfinite(measure_throughput(run.columns).overall) for run in runs),
    ]
    heights = [3.2, *[1.0 for there in wanted if there]]
    panels = list(block.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0])
    for panel in panels:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.01)
    panels[0].set_ylabel(LOSS_LABEL)
    rest = iter(panels[1:])
    return panels[0], *(next(rest) if there else None for there in wanted)


def draw_one(block, run, name, axis, smooth):
    """Draw one run into a block of a figure."""
    losses, rate, speed = panels_of(block, [run])
    draw_losses(losses, run, axis, smooth)
    if rate:
        draw_learning_rate(rate, run, axis, color=RATE_COLOUR)
        format_learning_rate(rate)
    if speed:
        found = draw_throughput(speed, run, axis, color=BEST_COLOUR)
        label = f"{found.overall:,.0f} over all{', validations included' if found.with_checks else ''}"
        speed.axhline(found.overall, color="0.5", lw=0.8, ls="--")
        speed.text(0.99, 0.08, label, transform=speed.transAxes, ha="right", fontsize="small", color="0.35")
        format_throughput(speed)
    axis.format_panel(next(panel for panel in (speed, rate, losses) if panel))
    block.suptitle(name, fontsize="large")
    if losses.get_legend_handles_labels()[0]:
        losses.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, fontsize="small")


def draw_all(block, runs, names, axis, smooth):
    """Draw several runs into the same panels of a block."""
    losses, rate, speed = panels_of(block, runs)
    handles = draw_losses_together(losses, runs, names, axis, smooth)
    for number, run in enumerate(runs):
        if rate:
            draw_learning_rate(rate, run, axis, **curve_style(number))
        if speed:
            draw_throughput(speed, run, axis, **curve_style(number))
    if rate:
        format_learning_rate(rate)
    if speed:
        format_throughput(speed)
    axis.format_panel(next(panel for panel in (speed, rate, losses) if panel))
    title = f"validation loss, strong; training loss{', smoothed' if smooth else ''}, faint; ★ best, ○ over-fits"
    losses.set_title(title, fontsize="medium")
    block.legend(handles=handles, loc="outside right upper", frameon=False, fontsize="small", handlelength=3)


def draw_runs(runs, x="", smooth=0.9, together=False, evaluations=(), say=print):
    """A Figure of runs (`RunLog`s with lines), each in its own panels or, with `together`, in the same.

    x: the x axis; "" is "step", or "seconds" with `together`. smooth: weight of `smooth_values`. evaluations: contents
    of evaluations' JSON files (`read_curves`), each drawn in another block. say(line): called for names that no font
    can draw. Raises UserError if a run does not record x.
    """
    axis = Axis(x or ("seconds" if together else "step"), runs)
    names = drawable_names([run.name for run in runs], say)
    blocks = [lambda block: draw_all(block, runs, names, axis, smooth)] if together and runs else []
    if not together:
        for run, name in zip(runs, names, strict=True):
            blocks.append(lambda block, run=run, name=name: draw_one(block, run, name, axis, smooth))
    blocks += [lambda block, content=content: draw_block(block, content, say=say) for content in evaluations]
    columns = math.ceil(math.sqrt(len(blocks))) if len(blocks) > 3 else len(blocks)
    rows = math.ceil(len(blocks) / columns)
    width, height = SINGLE_INCHES if len(blocks) == 1 else BLOCK_INCHES
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    places = figure.subfigures(rows, columns, squeeze=False, wspace=0.04, hspace=0.04)
    for draw, place in zip(blocks, places.flat, strict=False):
        draw(place)
    return figure
