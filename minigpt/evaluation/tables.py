"""Figures as CSV files for spreadsheets, and as tables for the console and for Markdown."""

import csv
import io
import unicodedata

from minigpt.common.errors import UserError
from minigpt.common.files import write_atomic


def write_csv(path, names, rows):
    """Write rows (lists of values in the order of `names`) as UTF-8 CSV, atomically. Raises UserError.

    The file starts with a byte order mark, so that Excel recognizes the encoding.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(names)
    writer.writerows(rows)
    write_text(path, text.getvalue(), "utf-8-sig")


def write_text(path, text, encoding="utf-8"):
    """Write a text file, atomically. Raises UserError."""
    try:
        write_atomic(path, lambda file: file.write(text.encode(encoding, errors="backslashreplace")))
    except OSError as error:
        raise UserError(f"{path} could not be written ({error.strerror}); name another place") from None


def display_width(text):
    """Columns that a text takes in a console: two for a Chinese character."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def format_cell(value):
    return "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def interval_text(edges, digits=3):
    """A 95% interval as text; "" if there is none."""
    return "{:.{d}f}–{:.{d}f}".format(*edges, d=digits) if edges else ""


def rows_with_intervals(entries, about, figures, digits):
    """Rows of a table: for each entry the values of the keys `about` and `figures`, and the intervals below."""
    rows = []
    for entry in entries:
        edges = [interval_text(entry["intervals"][name], digits) for name in figures]
        known = ["" if entry[name] is None else entry[name] for name in about]
        rows += [[*known, *(entry[name] for name in figures)], [*("" for _ in about), *edges]]
    return [row for row in rows if any(cell != "" for cell in row)]


def text_table(names, rows):
    """A table for a console; the first column is left-aligned."""
    cells = [[str(name) for name in names], *[[format_cell(value) for value in row] for row in rows]]
    widths = [max(display_width(row[i]) for row in cells) for i in range(len(names))]

    def line(row):
        padded = [" " * (w - display_width(cell)) for cell, w in zip(row, widths, strict=True)]
        return "  ".join([row[0] + padded[0], *(p + cell for p, cell in zip(padded[1:], row[1:], strict=True))])

    return "\n".join(line(row).rstrip() for row in cells)


def markdown_table(names, rows, left=1):
    """A table in Markdown. left: number of left-aligned columns; the others are right-aligned, for numbers."""
    lines = [[str(name) for name in names], ["---" if i < left else "---:" for i in range(len(names))]]
    lines += [[format_cell(value).replace("|", "\\|").replace("\n", " ") for value in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
