"""Plots of training runs: losses, learning rate, tokens per second; optionally with plots of evaluations."""

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from minigpt.common.errors import UserError
from minigpt.evaluation.checkpoint_plots import draw_block
from minigpt.evaluation.plots import COLOURS, MAX_MARKED_POINTS, curve_style, drawable_names, plt
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
MAX_DRAWN_POINTS = 2000
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


def draw_curve(panel, run, axis, values, **options):
    """Draw values (one for each line of a run, or nan), thinned, with a break where lines are missing."""
    x = axis.places(run)
    places = np.flatnonzero(np.isfinite(x) & np.isfinite(values))
    if not len(places):
        return []
    missing = np.searchsorted(places, find_gaps(run.columns["step"]))
    stretches = [part for part in np.split(places, np.unique(missing)) if len(part)]
    most = max(2, MAX_DRAWN_POINTS // len(stretches))
    parts = [thinned(x[part], values[part], most) for part in stretches]
    if any(len(part[0]) == 1 for part in parts):
        options = {"marker": ".", **options}  # a single point has no line
    # A nan between two stretches breaks the line.
    points = (np.concatenate([np.append(part[i], np.nan) for part in parts])[:-1] for i in (0, 1))
    return panel.plot(*points, **options)


def smoothed_losses(run, smooth):
    """(lines,) training loss of a run, its finite values smoothed."""
    losses = run.columns["train_loss"].copy()
    finite = np.isfinite(losses)
    losses[finite] = smooth_values(losses[finite], smooth)
    return losses


def validation_marks(run):
    """Options that mark each validation, if there are few."""
    few = np.isfinite(run.columns["val_loss"]).sum() <= MAX_MARKED_POINTS
    return {"marker": "o", "markersize": 3.5} if few else {}


def draw_losses(panel, run, axis, smooth):
    """Draw one run's training loss (raw and smoothed), validation loss, best step and over-fitting."""
    columns = run.columns
    smooth = limit_smoothing(smooth, np.isfinite(columns["train_loss"]).sum())
    if smooth:
        options = {"color": RAW_COLOUR, "lw": 0.8, "alpha": 0.6, "label": "training, raw"}
        draw_curve(panel, run, axis, columns["train_loss"], **options)
    label = f"training, smoothed ({smooth:.2g})" if smooth else "training"
    draw_curve(panel, run, axis, smoothed_losses(run, smooth), color=TRAIN_COLOUR, lw=1.8, label=label)
    options = {"color": VAL_COLOUR, "lw": 1.8, "label": "validation", **validation_marks(run)}
    draw_curve(panel, run, axis, columns["val_loss"], **options)
    x, best, found = axis.places(run), best_line(columns), overfitting(columns)
    if best is not None:
        label = f"best: {columns['val_loss'][best]:.3f} at step {columns['step'][best]:,.0f}"
        panel.plot([x[best]], [columns["val_loss"][best]], color=BEST_COLOUR, markersize=14, label=label, **STAR)
    if found:
        label = f"over-fits: validation {found.last / found.best - 1:+.0%}"
        panel.axvspan(x[found.line], x[np.isfinite(x)].max(), color="0.5", alpha=0.13, lw=0, label=label)
    limit_losses(panel, [run])


def limit_losses(panel, runs):
    """Set the y axis of a panel of losses: from 0, and so that a spike does not flatten the rest of the curves."""
    columns = [run.columns[name] for run in runs for name in ("train_loss", "val_loss")]
    curves = [losses for column in columns if len(losses := column[np.isfinite(column)])]
    if not curves:
        return
    highest = max(losses.max() for losses in curves)
    usual = max(max(SPIKE_FACTOR * losses[0], 4 * np.median(losses)) for losses in curves)
    panel.set_ylim(0, 1.05 * min(highest, usual) or None)
    if highest > usual:
        place = {"transform": panel.transAxes, "ha": "right", "va": "top", "fontsize": "small"}
        panel.text(0.99, 0.97, f"▲ up to {highest:.3g}", **place)


def draw_losses_together(panel, runs, names, axis, smooth):
    """Draw the losses of several runs, validation strong and training faint; returns the legend's handles."""
    handles = []
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        columns, style = run.columns, curve_style(number)
        best, found = best_line(columns), overfitting(columns)
        strength = {"lw": 1.6} if best is None else {"lw": 1.0, "alpha": 0.5}
        drawn = draw_curve(panel, run, axis, smoothed_losses(run, smooth), **style | strength)
        if best is not None:
            marks = validation_marks(run) if len(runs) <= MAX_MARKED_RUNS else {}
            drawn = draw_curve(panel, run, axis, columns["val_loss"], lw=1.8, **style, **marks)
            place, loss, colour = axis.places(run)[best], columns["val_loss"][best], style["color"]
            panel.plot([place], [loss], color=colour, markersize=13, **STAR)
            name += f": {loss:.3f} at step {columns['step'][best]:,.0f}"
            if found:
                panel.plot([place], [loss], "o", markersize=15, markerfacecolor="none", markeredgecolor=colour)
                name += ", then over-fits"
        handles += drawn
        plt.setp(drawn, label=name)
    limit_losses(panel, runs)
    return handles


def draw_rates(panels, runs, axis, rate_styles, speed_styles):
    """Draw learning rate and throughput into the `panels_of` that exist, and the x axis below the last one."""
    losses, rate, speed = panels
    for run, rate_style, speed_style in zip(runs, rate_styles, speed_styles, strict=True):
        if rate:
            draw_curve(rate, run, axis, run.columns["lr"], lw=1.6, **rate_style)
        if speed:
            found, rates = measure_throughput(run.columns), np.full(len(run), np.nan)
            rates[found.places] = found.rates
            draw_curve(speed, run, axis, rates, lw=1.4, **speed_style)
    plain = FuncFormatter(lambda value, _: f"{value:.4g}")
    for panel, label, formatter in (rate, "learning rate", plain), (speed, "tokens / s", EngFormatter(sep="")):
        if panel:
            panel.set_ylim(bottom=0)
            panel.yaxis.set_major_locator(MaxNLocator(4))
            panel.yaxis.set_major_formatter(formatter)
            panel.set_ylabel(label)
    axis.format_panel(speed or rate or losses)


def panels_of(block, runs):
    """(losses, learning rate, tokens per second): the panels of a block; None for one without data."""
    wanted = [
        any(np.isfinite(run.columns["lr"]).any() for run in runs),
        any(math.isfinite(measure_throughput(run.columns).overall) for run in runs),
    ]
    heights = [3.2, *[1.0 for there in wanted if there]]
    panels = list(block.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0])
    for panel in panels:
        panel.margins(x=0.01)
    panels[0].set_ylabel(LOSS_LABEL)
    rest = iter(panels[1:])
    return panels[0], *(next(rest) if there else None for there in wanted)


def draw_one(block, run, name, axis, smooth):
    """Draw one run into a block of a figure."""
    panels = panels_of(block, [run])
    losses, _, speed = panels
    draw_losses(losses, run, axis, smooth)
    draw_rates(panels, [run], axis, [{"color": RATE_COLOUR}], [{"color": BEST_COLOUR}])
    if speed:
        found = measure_throughput(run.columns)
        label = f"{found.overall:,.0f} over all{', validations included' if found.with_checks else ''}"
        speed.axhline(found.overall, color="0.5", lw=0.8, ls="--")
        speed.text(0.99, 0.08, label, transform=speed.transAxes, ha="right", fontsize="small", color="0.35")
    block.suptitle(name, fontsize="large")
    if losses.get_legend_handles_labels()[0]:
        losses.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, fontsize="small")


def draw_all(block, runs, names, axis, smooth):
    """Draw several runs into the same panels of a block."""
    panels = panels_of(block, runs)
    handles = draw_losses_together(panels[0], runs, names, axis, smooth)
    styles = [curve_style(number) for number in range(len(runs))]
    draw_rates(panels, runs, axis, styles, styles)
    title = f"validation loss, strong; training loss{', smoothed' if smooth else ''}, faint; ★ best, ○ over-fits"
    panels[0].set_title(title, fontsize="medium")
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
