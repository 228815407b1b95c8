"""The curves of training runs: losses, learning rate, tokens a second; beside them, curves of evaluations."""

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from minigpt.common.errors import UserError
from minigpt.evaluation.curves import draw_block
from minigpt.evaluation.plots import COLOURS, drawable, style
from minigpt.run_log import best_line, fitting_weight, gaps, overfitting, pace, smoothed, thinned

RAW, TRAIN, VAL, MARK = COLOURS[4], COLOURS[0], COLOURS[1], COLOURS[2]
POINTS = 2000  # drawn of a curve
FEW = 40  # validations that get a mark each
MANY = 7  # runs; of more, the curves have no marks by which one would not see their strokes
SPIKE = 1.5  # times the first training loss: what lies higher is cut off, and said
UNITS = ((2 * 3600, 3600, "hours"), (180, 60, "minutes"), (0, 1, "seconds"))
LABELS = {"step": "step", "tokens": "tokens trained on", "epoch": "epochs"}
SIZE, BLOCK = (10, 8), (6.4, 6.6)  # inches: of a block alone, of one among others
STAR = {"marker": "*", "markeredgecolor": "white", "linestyle": "none", "zorder": 5, "clip_on": False}
LOSS = "loss (nats a token)"


class Axis:
    """What the curves of some runs go by: one of "step", "tokens", "epoch", "seconds"."""

    def __init__(self, x, runs):
        self.x, self.unit, self.label = x, 1, LABELS.get(x)
        for run in runs:
            if not np.isfinite(run.columns[x]).any():
                raise UserError(f"{run.path} does not tell {x}; draw it by another with --x=step")
        if x == "seconds" and runs:
            longest = max(run.columns[x][np.isfinite(run.columns[x])].max() for run in runs)
            _, self.unit, name = next(unit for unit in UNITS if longest >= unit[0])
            self.label = f"{name} of training"

    def of(self, run):
        """Places of a run's lines, nan where the log does not tell."""
        return run.columns[self.x] / self.unit

    def finish(self, panel):
        panel.set_xlabel(self.label)
        panel.xaxis.set_major_locator(MaxNLocator(7, integer=self.x == "step"))
        plain = FuncFormatter(lambda value, _: f"{value:,.6g}")
        panel.xaxis.set_major_formatter(EngFormatter(sep="") if self.x == "tokens" else plain)


def broken(x, y, missing):
    """x and y with a nan before each of the indices `missing`, so that no line crosses a gap."""
    return np.insert(x, missing, np.nan), np.insert(y, missing, np.nan)


def curve(panel, run, axis, places, values, extremes=False, **look):
    """Draw values of a run at some of its lines (indices), thinned, with a break where lines are missing."""
    x = axis.of(run)[places]
    right = np.isfinite(x) & np.isfinite(values)
    x, values, places = x[right], values[right], places[right]
    if not len(x):
        return []
    missing = np.searchsorted(places, gaps(run.columns["step"]))
    stretches = [part for part in np.split(np.arange(len(x)), np.unique(missing)) if len(part)]
    most = max(2, POINTS // len(stretches))
    parts = [thinned(x[part], values[part], most, extremes) for part in stretches]
    ends = np.cumsum([len(part[0]) for part in parts])[:-1]
    if any(len(part[0]) == 1 for part in parts):
        look = {"marker": ".", **look}  # a line needs two
    return panel.plot(*broken(*map(np.concatenate, zip(*parts, strict=True)), ends), **look)


def draw_losses(panel, run, axis, smooth):
    """Training loss raw and smoothed, validation loss, the best step and over-fitting of one run."""
    columns = run.columns
    trained, checked = (np.flatnonzero(np.isfinite(columns[name])) for name in ("train_loss", "val_loss"))
    losses = columns["train_loss"][trained]
    smooth = fitting_weight(smooth, len(losses))
    if smooth:
        curve(panel, run, axis, trained, losses, True, color=RAW, lw=0.8, alpha=0.6, label="training, raw")
    told = f"training, smoothed ({smooth:.2g})" if smooth else "training"
    curve(panel, run, axis, trained, smoothed(losses, smooth), color=TRAIN, lw=1.8, label=told)
    marks = {"marker": "o", "markersize": 3.5} if len(checked) <= FEW else {}
    curve(panel, run, axis, checked, columns["val_loss"][checked], color=VAL, lw=1.8, label="validation", **marks)
    mark_best(panel, run, axis)
    limit(panel, [run])


def mark_best(panel, run, axis):
    columns, best, found = run.columns, best_line(run.columns), overfitting(run.columns)
    if best is not None:
        place, loss, step = axis.of(run)[best], columns["val_loss"][best], columns["step"][best]
        panel.plot([place], [loss], color=MARK, markersize=14, label=f"best: {loss:.3f} at step {step:,.0f}", **STAR)
    if found:
        end = axis.of(run)[np.isfinite(axis.of(run))].max()
        told = f"over-fits: validation {found.last / found.best - 1:+.0%}"
        panel.axvspan(axis.of(run)[found.line], end, color="0.5", alpha=0.13, lw=0, label=told)


def limit(panel, runs):
    """Let the losses' panel begin at 0, and end where no single spike makes the rest of it flat."""
    highest, usual = 0.0, 0.0
    for run in runs:
        for name in ("train_loss", "val_loss"):
            values = run.columns[name][np.isfinite(run.columns[name])]
            if len(values):
                highest = max(highest, float(values.max()))
                usual = max(usual, SPIKE * float(values[0]), 4 * float(np.median(values)))
    if highest > 0:
        panel.set_ylim(0, 1.05 * min(highest, usual) or None)
    if highest > usual > 0:
        panel.text(
            0.99, 0.97, f"▲ up to {highest:.3g}", transform=panel.transAxes, ha="right", va="top", fontsize="small"
        )


def draw_losses_together(panel, runs, names, axis, smooth):
    """The losses of several runs: validation strong, training faint; returns the legend's handles."""
    handles = []
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        columns, look = run.columns, style(number)
        trained, checked = (np.flatnonzero(np.isfinite(columns[key])) for key in ("train_loss", "val_loss"))
        strength = {"lw": 1.0, "alpha": 0.5} if len(checked) else {"lw": 1.6}
        drawn = curve(panel, run, axis, trained, smoothed(columns["train_loss"][trained], smooth), **look | strength)
        best, found = best_line(columns), overfitting(columns)
        if best is not None:
            marks = {"marker": "o", "markersize": 3.5} if len(checked) <= FEW and len(runs) <= MANY else {}
            drawn = curve(panel, run, axis, checked, columns["val_loss"][checked], lw=1.8, **look, **marks)
            place, loss = axis.of(run)[best], columns["val_loss"][best]
            panel.plot([place], [loss], color=look["color"], markersize=13, **STAR)
            name += f": {loss:.3f} at step {columns['step'][best]:,.0f}"
            if found:
                panel.plot([place], [loss], "o", markersize=15, markerfacecolor="none", markeredgecolor=look["color"])
                name += ", then over-fits"
        for line in drawn:
            line.set_label(name)
            handles.append(line)
    limit(panel, runs)
    return handles


def draw_rate(panel, run, axis, **look):
    places = np.flatnonzero(np.isfinite(run.columns["lr"]))
    curve(panel, run, axis, places, run.columns["lr"][places], lw=1.6, **look)


def draw_pace(panel, run, axis, **look):
    found = pace(run.columns)
    curve(panel, run, axis, found.places, found.rates, lw=1.4, **look)
    return found


def finish_rate(panel):
    panel.set_ylim(bottom=0)
    panel.yaxis.set_major_locator(MaxNLocator(4))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    panel.set_ylabel("learning rate")


def finish_pace(panel):
    panel.set_ylim(bottom=0)
    panel.yaxis.set_major_locator(MaxNLocator(4))
    panel.yaxis.set_major_formatter(EngFormatter(sep=""))
    panel.set_ylabel("tokens / s")


def panels_of(block, runs):
    """(losses, learning rate or None, tokens a second or None): the panels that the runs have figures for."""
    wanted = [
        any(np.isfinite(run.columns["lr"]).any() for run in runs),
        any(math.isfinite(pace(run.columns).overall) for run in runs),
    ]
    heights = [3.2, *[1.0 for there in wanted if there]]
    panels = list(block.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0])
    for panel in panels:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.01)
    panels[0].set_ylabel(LOSS)
    rest = iter(panels[1:])
    return panels[0], *(next(rest) if there else None for there in wanted)


def draw_one(block, run, name, axis, smooth):
    """A run's panels in a block of a figure."""
    losses, rate, speed = panels_of(block, [run])
    draw_losses(losses, run, axis, smooth)
    if rate:
        draw_rate(rate, run, axis, color=COLOURS[3])
        finish_rate(rate)
    if speed:
        found = draw_pace(speed, run, axis, color=COLOURS[2])
        told = f"{found.overall:,.0f} over all{', validations included' if found.with_checks else ''}"
        speed.axhline(found.overall, color="0.5", lw=0.8, ls="--")
        speed.text(0.99, 0.08, told, transform=speed.transAxes, ha="right", fontsize="small", color="0.35")
        finish_pace(speed)
    axis.finish(next(panel for panel in (speed, rate, losses) if panel))
    block.suptitle(name, fontsize="large")
    if losses.get_legend_handles_labels()[0]:
        losses.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, fontsize="small")


def draw_all(block, runs, names, axis, smooth):
    """Several runs in the same panels."""
    losses, rate, speed = panels_of(block, runs)
    handles = draw_losses_together(losses, runs, names, axis, smooth)
    for number, run in enumerate(runs):
        if rate:
            draw_rate(rate, run, axis, **style(number))
        if speed:
            draw_pace(speed, run, axis, **style(number))
    if rate:
        finish_rate(rate)
    if speed:
        finish_pace(speed)
    axis.finish(next(panel for panel in (speed, rate, losses) if panel))
    told = f"validation loss, strong; training loss{', smoothed' if smooth else ''}, faint; ★ best, ○ over-fits"
    losses.set_title(told, fontsize="medium")
    block.legend(handles=handles, loc="outside right upper", frameon=False, fontsize="small", handlelength=3)


def draw_runs(runs, x="", smooth=0.9, together=False, evaluations=(), say=print):
    """A Figure of runs (`RunLog`s with lines), each in panels of its own or all together.

    x: what the curves go by, "" for step, and together seconds. evaluations: contents of evaluations' JSON files
    (`curves.read_curves`), each drawn in a block more. Raises UserError where a run does not tell x.
    """
    axis = Axis(x or ("seconds" if together else "step"), runs)
    names = drawable([run.name for run in runs], say)
    blocks = [lambda block: draw_all(block, runs, names, axis, smooth)] if together and runs else []
    if not together:
        for run, name in zip(runs, names, strict=True):
            blocks.append(lambda block, run=run, name=name: draw_one(block, run, name, axis, smooth))
    blocks += [lambda block, content=content: draw_block(block, content, say=say) for content in evaluations]
    columns = math.ceil(math.sqrt(len(blocks))) if len(blocks) > 3 else len(blocks)
    rows = math.ceil(len(blocks) / columns)
    width, height = SIZE if len(blocks) == 1 else BLOCK
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    places = figure.subfigures(rows, columns, squeeze=False, wspace=0.04, hspace=0.04)
    for draw, place in zip(blocks, places.flat, strict=False):
        draw(place)
    return figure
