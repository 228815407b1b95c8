"""Plots as PNG and SVG, drawn right on a machine without a screen and, where it must be, without Chinese fonts."""

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws files, needs no screen
import matplotlib.pyplot as plt
from matplotlib import font_manager

from minigpt.common.errors import UserError
from minigpt.common.files import write_atomic

# Families that draw Chinese, as the systems name them.
CHINESE = (
    "Noto Sans CJK SC", "Source Han Sans SC", "Microsoft YaHei", "PingFang SC", "Hiragino Sans GB", "SimHei",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Noto Sans CJK JP", "Noto Serif CJK SC", "Arial Unicode MS", "SimSun",
)  # fmt: skip
PLAIN = "DejaVu Sans"  # comes with matplotlib
# Told apart by the colour-blind as well (Okabe and Ito 2008, without yellow and black).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A7A7A")
LINES = ("-", "--", "-.", ":")
LONGEST_NAME = 40
SAME = 0.005  # shares that differ by less lie on one another in a plot


def use_chinese_font():
    """Have plots drawn with a font that has Chinese characters; returns its name, or None where there is none."""
    there = {font.name for font in font_manager.fontManager.ttflist}
    found = next((name for name in CHINESE if name in there), None)
    plt.rcParams["font.family"] = [found, PLAIN] if found else [PLAIN]
    plt.rcParams["axes.unicode_minus"] = False
    return found


def fonts_in_use():
    """The fonts that a plot's text is drawn with, after `use_chinese_font`."""
    fonts = []
    for family in plt.rcParams["font.family"]:
        wanted = font_manager.FontProperties(family=[family])
        try:
            fonts.append(font_manager.get_font(font_manager.findfont(wanted, fallback_to_default=False)))
        except (ValueError, OSError, RuntimeError):  # its file is gone, or damaged
            continue
    return fonts


def drawable(names, say=print):
    """The names as a plot can bear them: as they are, or, where no font draws them, numbered, which is said.

    Spaces of any kind become one; long ones lose their middle; what matplotlib takes for a sign of its own is escaped.
    """
    use_chinese_font()
    fonts, shown = fonts_in_use(), []
    for number, name in enumerate(names, start=1):
        text = " ".join(name.split())
        if not all(any(font.get_char_index(ord(char)) for font in fonts) for char in text):
            say(f"note: no font here draws {text}; it is [{number}] in the plot")
            text = f"[{number}]"
        if len(text) > LONGEST_NAME:
            half = LONGEST_NAME // 2
            text = f"{text[: half - 1]}…{text[-half:]}"
        # A dollar begins a formula, and a legend leaves out what begins with an underscore.
        shown.append(text.replace("$", r"\$").replace("_", " _", text.startswith("_")))
    return shown


def style(number):
    """{"color", "linestyle"} of the curve of that number, from 0; 28 of them differ."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number // len(COLOURS) % len(LINES)]}


def nested(curves):
    """[{"lw", "markersize"}] of curves {x: y, a share of 0 to 1}, drawn in that order.

    A curve that lies on others at some x, as several at 0 do, is thicker than those drawn after it, and so seen as
    their rim.
    """
    above = [0] * len(curves)
    for i in reversed(range(len(curves))):
        for j in range(i + 1, len(curves)):
            if any(abs(y - curves[j].get(x, math.inf)) <= SAME for x, y in curves[i].items()):
                above[i] = max(above[i], above[j] + 1)
    return [{"lw": 1.6 + 1.9 * n, "markersize": 3.5 + 2.6 * n} for n in above]


def plot_files(path):
    """(PNG, SVG): the two files of a plot that is named `path`, with an ending or without."""
    path = Path(path)
    path = path.with_suffix("") if path.suffix.lower() in (".png", ".svg") else path
    return path.with_name(path.name + ".png"), path.with_name(path.name + ".svg")


def save_plot(figure, path):
    """Write a figure as a PNG and, beside it, as SVG, each whole or not at all; returns the paths. Raises UserError."""
    png, svg = plot_files(path)
    try:
        if figure.get_layout_engine() is None:
            figure.tight_layout()
        about = {"dpi": 120, "metadata": {"Software": None}}
        write_atomic(png, lambda file: figure.savefig(file, format="png", **about))
        # Letters are outlines in the SVG, so that it looks the same where the fonts are others.
        with plt.rc_context({"svg.hashsalt": png.name, "svg.fonttype": "path"}):
            about = {"metadata": {"Date": None, "Creator": None}}
            write_atomic(svg, lambda file: figure.savefig(file, format="svg", **about))
    except OSError as error:
        raise UserError(f"{png} could not be written ({error.strerror}); name another place with --plot=…") from None
    finally:
        plt.close(figure)
    return png, svg
