"""Plots as PNG and SVG files: colours, line styles, fonts and saving. No screen and no Chinese font is needed."""

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files, without a screen
import matplotlib.pyplot as plt
from matplotlib import font_manager

from minigpt.common.errors import UserError
from minigpt.common.files import write_atomic

plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False})
# Fonts with Chinese characters, by their names on Linux, Windows and macOS.
CHINESE_FONTS = (
    "Noto Sans CJK SC", "Source Han Sans SC", "Microsoft YaHei", "PingFang SC", "Hiragino Sans GB", "SimHei",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Noto Sans CJK JP", "Noto Serif CJK SC", "Arial Unicode MS", "SimSun",
)  # fmt: skip
DEFAULT_FONT = "DejaVu Sans"  # part of matplotlib
# Colours that colour-blind people can distinguish (Okabe and Ito 2008, without yellow and black).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A7A7A")
LINE_STYLES = ("-", "--", "-.", ":")
MAX_LABEL_CHARS = 40
OVERLAP_DISTANCE = 0.005  # shares that differ by less are drawn on top of each other
MAX_MARKED_POINTS = 40  # longer curves have no markers


def use_chinese_font():
    """Make matplotlib use a font with Chinese characters; returns its name, or None if there is none."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    name = next((name for name in CHINESE_FONTS if name in installed), None)
    plt.rcParams["font.family"] = [name, DEFAULT_FONT] if name else [DEFAULT_FONT]
    plt.rcParams["axes.unicode_minus"] = False
    return name


def drawable_names(names, say=print):
    """The names as a plot can show them. One that no font can draw becomes a number, which is printed with `say`.

    Whitespace becomes single spaces, long names lose their middle, and matplotlib's special characters are escaped.
    """
    use_chinese_font()
    families, texts = plt.rcParams["font.family"], []
    fonts = [font_manager.get_font(font_manager.findfont(family)) for family in families]
    for number, name in enumerate(names, start=1):
        text = " ".join(name.split())
        if not all(any(font.get_char_index(ord(char)) for font in fonts) for char in text):
            say(f"note: no font here draws {text}; it is [{number}] in the plot")
            text = f"[{number}]"
        if len(text) > MAX_LABEL_CHARS:
            half = MAX_LABEL_CHARS // 2
            text = f"{text[: half - 1]}…{text[-half:]}"
        # A dollar starts a formula, and a legend leaves out names that start with an underscore.
        texts.append(text.replace("$", r"\$").replace("_", " _", text.startswith("_")))
    return texts


def curve_style(number):
    """{"color", "linestyle"} of curve `number`, from 0; 28 of them are different."""
    line_style = LINE_STYLES[number // len(COLOURS) % len(LINE_STYLES)]
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": line_style}


def curve_widths(curves):
    """[{"lw", "markersize"}] of curves {x: y, a share of 0 to 1} that are drawn in this order.

    A curve that overlaps later ones at some x is wider than they are, so that its rim stays visible.
    """
    above = [0] * len(curves)
    for i in reversed(range(len(curves))):
        for j in range(i + 1, len(curves)):
            if any(abs(y - curves[j].get(x, math.inf)) <= OVERLAP_DISTANCE for x, y in curves[i].items()):
                above[i] = max(above[i], above[j] + 1)
    return [{"lw": 1.6 + 1.9 * n, "markersize": 3.5 + 2.6 * n} for n in above]


def plot_files(path):
    """(PNG, SVG): the two paths of a plot that is named `path`, with or without a suffix."""
    path = Path(path)
    path = path.with_suffix("") if path.suffix.lower() in (".png", ".svg") else path
    return path.with_name(path.name + ".png"), path.with_name(path.name + ".svg")


def save_plot(figure, path):
    """Write a figure as PNG and SVG, each atomically; returns the two paths. Raises UserError."""
    png, svg = plot_files(path)
    try:
        if figure.get_layout_engine() is None:
            figure.tight_layout()
        options = {"dpi": 120, "metadata": {"Software": None}}
        write_atomic(png, lambda file: figure.savefig(file, format="png", **options))
        # Text is stored as outlines, so that the SVG looks the same without the fonts.
        with plt.rc_context({"svg.hashsalt": png.name, "svg.fonttype": "path"}):
            options = {"metadata": {"Date": None, "Creator": None}}
            write_atomic(svg, lambda file: figure.savefig(file, format="svg", **options))
    except OSError as error:
        raise UserError(f"{png} could not be written ({error.strerror}); name another place with --plot=…") from None
    finally:
        plt.close(figure)
    return png, svg
