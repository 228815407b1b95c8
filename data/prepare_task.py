r"""Labelled texts to rows of a task: classification of texts or of pairs, or tagging of characters.

    python data/prepare_task.py                  # an embedded task: which field a text belongs to
    python data/prepare_task.py --task_files=data/task_sample/names_train.jsonl \
        --dev_files=data/task_sample/names_dev.jsonl --test_files=data/task_sample/names_test.jsonl
    python data/prepare_task.py --task_files=my.csv --tokenizer=data/tokenizer.tiktoken --task_data_dir=data/my_task

A row of the input is {"text", "label"}, {"text_a", "text_b", "label"} or {"text", "tags"}; minigpt/corpus/tasks.py
lists the other forms and names, minigpt/corpus/task_rows.py says what is written. Where no files are given for
validation or test, these parts are a share of the other texts, by their hash: equal texts are in one part. `--help`
lists the settings.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from tqdm import tqdm

from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.corpus.losses import LARGE_SHARE, Losses, check_losses
from minigpt.corpus.records import Problems, dropped_text
from minigpt.corpus.row_files import RowWriter, refuse_to_replace
from minigpt.corpus.splits import hash_share
from minigpt.corpus.task_rows import make_task_row
from minigpt.corpus.tasks import ExampleReader, order_labels
from minigpt.metrics import FEWEST_ROWS
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import PrepareTaskSettings
from minigpt.tokenizer import load_tokenizer

PARTS = ("train", "val", "test")
MAX_PRINTED_LABELS = 12


def read_parts(settings, reader):
    """{part: [`LabelledExample`]} of all files of the settings."""
    given = {"train": settings.task_files, "val": settings.dev_files, "test": settings.test_files}
    files = [file for part in given.values() for file in part]
    for name, part in (("task_files", "train"), ("dev_files", "val"), ("test_files", "test")):
        for file in given[part]:
            if not os.path.isfile(file):
                raise UserError(f"{file} is not there; name your labelled texts with --{name}=…")
    parts = {part: [] for part in PARTS}
    with tqdm(total=sum(map(os.path.getsize, files)), unit="B", unit_scale=True, desc="prepare_task") as bar:
        for part, part_files in given.items():
            for file in part_files:
                for example in reader.read(file, bar.update):
                    parts[part if part != "train" else choose_part(example, settings)].append(example)
    return parts


def choose_part(example, settings):
    """The part of an example of `task_files`. It depends on its texts alone, so that equal texts are in one part."""
    share = hash_share(f"task:{example.key}")
    test_share = 0.0 if settings.test_files else settings.test_share
    val_share = 0.0 if settings.dev_files else settings.val_share
    return "test" if share < test_share else "val" if share < test_share + val_share else "train"


def check_task_parts(parts):
    """Raise UserError where train or val, which training needs, has no rows."""
    for part, remedy in (("train", "a smaller --val_share and --test_share"), ("val", "a larger --val_share")):
        if not parts[part]:
            total = sum(map(len, parts.values()))
            raise UserError(f"{part} has none of the {total:,} rows, and training needs some: give more, or {remedy}")


def part_warnings(parts, labels, settings):
    """Lines that warn of parts that are small, share texts with train, or lack labels."""
    train_keys = {example.key for example in parts["train"]}
    trained = {name for example in parts["train"] for name in example.names}
    lines = []
    if missing := [name for name in labels if name not in trained]:
        lines.append(f"warning: no row of train has the label {', '.join(missing)}: it cannot be learned")
    for part, files in (("val", settings.dev_files), ("test", settings.test_files)):
        share = getattr(settings, f"{part}_share")
        if count := sum(example.key in train_keys for example in parts[part]):
            lines.append(f"warning: {count:,} of {len(parts[part]):,} texts of {part} are in train, too")
        if len(parts[part]) < FEWEST_ROWS and (files or share):
            remedy = "give more" if files else f"give more, or raise --{part}_share (now {share:g})"
            lines.append(
                f"warning: {part} has {len(parts[part])} rows; figures over fewer than {FEWEST_ROWS} have no interval: "
                f"{remedy}"
            )
    return lines


def write_part(writer, part, examples, labels):
    """Writes the rows of a part, and counts their labels; returns how many texts do not fit into a row."""
    indices = {name: i for i, name in enumerate(labels)}
    counts, n_cut = np.zeros(1 + len(labels), dtype=np.int64), 0
    for example in examples:
        row, n_chars = make_task_row(writer.tokenizer, writer.block_size, example, indices)
        writer.add_rows(part, row[None], (row[0] != writer.tokenizer.pad_id).sum(), n_chars)
        counts += np.bincount(row[1], minlength=len(counts))
        n_cut += n_chars < example.n_chars
    writer.counts[part]["labels"] = dict(zip(labels, counts[1:].tolist(), strict=True))
    return n_cut


def prepare_task(settings):
    """Writes the rows of all labelled texts; returns (the meta, lines that warn of what was lost).

    Raises UserError where nearly everything was dropped, the rows are of several kinds, or there is nothing to train
    or to validate on.
    """
    tokenizer, problems = load_tokenizer(settings.tokenizer), Problems()
    reader = ExampleReader(problems, settings.text_field, settings.label_field, settings.labels, settings.encoding)
    with RowWriter(settings.task_data_dir, PARTS, settings.block_size, tokenizer) as writer:
        parts = read_parts(settings, reader)
        examples = [example for part in PARTS for example in parts[part]]
        if not examples and not problems.counts:
            raise UserError(f"no row in {', '.join(settings.task_files)}: nothing is there")
        warnings = check_losses(Losses(problems, len(examples)))
        labels = order_labels(examples, settings.labels)
        check_task_parts(parts)
        n_cut = sum(write_part(writer, part, parts[part], labels) for part in PARTS)
        n_chars = sum(example.n_chars for example in examples)
        chars_cut = n_chars - sum(counts["characters"] for counts in writer.counts.values())
        meta = writer.finish(
            {
                "stage": "task",
                "task": {"kind": reader.first.kind, "labels": labels},
                "texts_cut": n_cut,
                "characters_cut": chars_cut,
                **problems.about(),
                "sources": [*settings.task_files, *settings.dev_files, *settings.test_files],
            }
        )
    warnings += part_warnings(parts, labels, settings)
    if chars_cut > LARGE_SHARE * n_chars:
        warnings.append(f"warning: {chars_cut / n_chars:.1%} of the characters are in no row; raise --block_size")
    return meta, warnings


def task_lines(meta):
    """Lines to print about the rows of a task. meta: of the rows."""
    task, lines = meta["task"], []
    what = {"classify": "a label a text", "pair": "a label a pair of texts", "tag": "a tag a character"}[task["kind"]]
    lines.append(f"task: {task['kind']} ({what}), {len(task['labels'])} labels")
    end = "end" if task["kind"] == "tag" else "middle"
    lines.append(
        f"texts longer than a row, which lost their {end}: {meta['texts_cut']} ({meta['characters_cut']} characters)"
    )
    for part, counts in meta["parts"].items():
        lines.append(f"{part}: {counts['rows']} rows of {meta['block_size']}, {counts['tokens']} tokens")
        most = sorted(counts["labels"].items(), key=lambda item: -item[1])
        shown = [f"{name} {count}" for name, count in most[:MAX_PRINTED_LABELS]]
        lines.append("  " + ", ".join([*shown, *(["…"] if len(most) > MAX_PRINTED_LABELS else [])]))
    return lines


def main():
    settings = load_settings(PrepareTaskSettings)
    files = [*settings.task_files, *settings.dev_files, *settings.test_files]
    refuse_to_replace(settings, "task_data_dir", "task_files", files)
    meta, warnings = prepare_task(settings)
    for line in [dropped_text(meta), *task_lines(meta), *warnings]:
        print(line)
    print(f"written to {settings.task_data_dir}")


if __name__ == "__main__":
    run_script(main)
