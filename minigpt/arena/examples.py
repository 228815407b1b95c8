"""Prompts to try, from a CSV with the columns prompt, kind (pretrain or sft) and note."""

import csv

from minigpt.arena.problems import Problem

COLUMNS = ("prompt", "kind", "note")
KINDS = ("pretrain", "sft")


def read_examples(path):
    """([[prompt, kind, note]], [Problem]) of the file; a row that cannot be used is a Problem and costs no other."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames is None or not set(COLUMNS) <= set(reader.fieldnames):
                return [], [Problem("examples_columns", path=str(path), columns=", ".join(COLUMNS))]
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        detail = getattr(error, "strerror", None) or str(error)
        return [], [Problem("examples_file", path=str(path), detail=detail)]
    examples, problems = [], []
    for line, row in rows:
        if not (row["prompt"] or "").strip() or row["kind"] not in KINDS:
            problems.append(Problem("examples_row", path=str(path), line=line, kinds=", ".join(KINDS)))
        else:
            examples.append([row["prompt"], row["kind"], row["note"] or ""])
    return examples, problems
