"""Shows a row as a model is trained on it: at each position, what it reads (x), what it has to predict (y), and whether
that counts (loss).

python docs/course/scripts/02_rows.py data/processed_course 1726          row 1726 of the training part
python docs/course/scripts/02_rows.py --figure                            draws the chapter's figure
"""

import argparse
import sys
import unicodedata
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from data_utils import load_row_tokenizer, make_batch, open_rows

FIGURE = "docs/course/figures/02-rows.svg"
FIGURE_ROWS = [("data/processed_course", 1726), ("data/processed_course_sft", 1321)]


def read_row(folder, number):
    """[(x, text of x, y, text of y, whether y has a loss)] of each position of a row."""
    rows, meta = open_rows(folder, "train")
    tokenizer = load_row_tokenizer(folder, meta)
    special_texts = {token_id: f"<{name}>" for name, token_id in meta["special_ids"].items()}

    def text_of(token_id):
        return special_texts.get(token_id) or tokenizer.decode([token_id])

    # A batch of one row. x is the row without its last token, y the row without its first.
    x, y, loss_mask = make_batch(rows[number : number + 1], meta)
    positions = zip(x[0].tolist(), y[0].tolist(), loss_mask[0].tolist(), strict=True)
    return [(a, text_of(a), b, text_of(b), has_loss) for a, b, has_loss in positions]


def padded(text, width):
    """The text, filled up to a width in which a Chinese character takes two places."""
    return text + " " * (width - sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text))


def print_row(folder, number):
    print("  t     x                          y                        loss")
    for t, (x, x_text, y, y_text, has_loss) in enumerate(read_row(folder, number)):
        print(f"{t:3}  {x:4} {padded(x_text, 20)}  {y:4} {padded(y_text, 20)}  {'yes' if has_loss else '-'}")


def draw_figure():
    """Two rows from top to bottom: articles on the left, a question on the right. Targets with a loss are orange."""
    warnings.filterwarnings("ignore", "Glyph")  # the browser that shows the figure has a Chinese font
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "course", "font.family": "sans-serif"})
    figure, panels = plt.subplots(1, 2, figsize=(5.2, 7))
    titles = "pretraining 预训练", "fine-tuning 微调"
    for axes, title, (folder, number) in zip(panels, titles, FIGURE_ROWS, strict=True):
        axes.text(1, -1.6, title, fontsize=12, ha="center")
        axes.text(0.5, -0.65, "x", fontsize=11, ha="center")
        axes.text(1.5, -0.65, "y", fontsize=11, ha="center")
        for t, (_, x_text, _, y_text, has_loss) in enumerate(read_row(folder, number)):
            for left, text, colour in ((0, x_text, "#cfe3f3"), (1, y_text, "#f5b880" if has_loss else "#eeeeee")):
                box = plt.Rectangle((left, t - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=2)
                axes.add_patch(box)
                axes.text(left + 0.5, t, text, fontsize=9.5, ha="center", va="center")
        axes.set(xlim=(0, 2), ylim=(24, -2))
        axes.axis("off")
    panels[1].text(0, 11, "orange: has a loss", fontsize=10)
    panels[1].text(0, 12, "橙色：计入损失", fontsize=10)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.99, wspace=0.06)
    figure.savefig(FIGURE, metadata={"Date": None})
    print(f"figure: {FIGURE}")


parser = argparse.ArgumentParser()
parser.add_argument("folder", nargs="?")
parser.add_argument("number", nargs="?", type=int)
parser.add_argument("--figure", action="store_true")
arguments = parser.parse_args()
if arguments.figure:
    draw_figure()
elif arguments.number is None:
    parser.error("name a folder of rows and the number of a row: data/processed_course 1726")
else:
    print_row(arguments.folder, arguments.number)
