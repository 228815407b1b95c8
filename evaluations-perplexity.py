"""Perplexity and bits per character of checkpoints over a whole part of prepared rows.

    python evaluations-perplexity.py                                         # the newest checkpoint, data/processed
    python evaluations-perplexity.py --ckpt=out/sft/ckpt.pt --data_dir=data/processed_sft --split=test
    python evaluations-perplexity.py --ckpt=out/a,out/b/ckpt.pt --csv=rows.csv     # a folder: every checkpoint in it

Perplexity is over all tokens that the stage's mask keeps. Bits per character leave EOT out, and compare models with
different tokenizers where the rows were cut with overflow=split from the same articles: measure each on its own folder.
Several checkpoints on the same rows are compared by the paired bootstrap: rows are drawn, and the loss is the drawn
rows' nats over their tokens, so that a long row weighs as much as it does in the figure itself.
"""

import math

import torch
from tqdm import tqdm

from data_utils import check_rows, load_row_tokenizer, open_rows, read_meta
from minigpt.checkpoint import load_checkpoint, load_model
from minigpt.common.errors import UserError, run_script
from minigpt.common.files import write_json
from minigpt.device import pick_device
from minigpt.evaluation.contamination import leak_of_part
from minigpt.evaluation.models import find_models, is_address, without_weights
from minigpt.evaluation.tables import text_table, write_csv
from minigpt.inference.likelihood import likelihood_of_rows
from minigpt.metrics import compare, interval, too_few, too_few_notes
from minigpt.settings.parse import load_settings

START = 20  # characters of a row's text that tell which it is
COLUMNS = ["perplexity", "loss", "bits_per_token", "bits_per_char"]
HEADS = ["perplexity", "nats a token", "bits a token", "bits a character"]


class Measured:
    """A checkpoint and its figures. content: its dict without weights; rows: its `RowFigures`, once measured."""

    leak = rows = None

    def __init__(self, name, path):
        if is_address(str(path)):
            raise UserError(f"{path} is an address: perplexity needs a checkpoint, since an API tells no likelihoods")
        self.name, self.path, self.content = name, path, without_weights(load_checkpoint(path))

    def check(self, folder, meta):
        """Raise UserError, naming the checkpoint, unless a folder's rows fit it."""
        try:
            check_rows(folder, meta, self.content)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None
        longest = self.content["model_args"]["block_size"]
        if meta["block_size"] > longest:
            raise UserError(f"{self.path}: rows of {meta['block_size']} do not fit its block_size {longest}")

    def measure(self, rows, meta, tokenizer, settings):
        model, _ = load_model(load_checkpoint(self.path), pick_device(settings.device))
        with tqdm(total=len(rows), unit="row", desc=self.name) as bar:
            self.rows = likelihood_of_rows(
                model, rows, meta, settings.batch_size, tokenizer, train_on_eot=settings.train_on_eot,
                progress=bar.update,
            )  # fmt: skip
        del model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def figures(self, settings, part):
        """Plain values for the JSON: what was measured, the figures, their 95% "intervals" {name: [low, high]}."""
        total, rows = self.rows.total(), self.rows
        loss = interval(rows.nats, rows.tokens, settings.resamples, settings.seed)
        chars = interval(rows.text_nats, rows.characters, settings.resamples, settings.seed)
        bits = [edges and [value / math.log(2) for value in edges] for edges in (loss, chars)]
        perplexity = loss and [math.exp(min(700.0, value)) for value in loss]
        edges = [perplexity, loss and list(loss), *bits]
        return {
            "checkpoint": str(self.path), "name": self.name, "stage": self.content["stage"],
            "step": self.content["progress"]["step"], "data_dir": settings.data_dir, "part": part,
            "rows": len(rows.nats), "tokens": total.tokens, "characters": total.characters,
            **{column: getattr(total, column) for column in COLUMNS},
            "intervals": dict(zip(COLUMNS, edges, strict=True)),
            "leak": self.leak and self.leak.to_dict(),
        }  # fmt: skip


def look_for_leaks(models, folder, part):
    """Look for the rows in what each was trained on, once for all checkpoints of a run, and say what was found."""
    done = {}
    for model in models:
        run = repr(model.content.get("settings"))
        if run not in done:
            done[run] = leak_of_part(model.content, folder, part)
            print(f"{model.name}: {done[run].line()}" if len(models) > 1 else done[run].line())
        model.leak = done[run]


def measure_all(models, rows, meta, tokenizer, settings):
    """(the checkpoints that were measured, whether Ctrl-C ended it)."""
    for i, model in enumerate(models):
        try:
            model.measure(rows, meta, tokenizer, settings)
        except KeyboardInterrupt:
            if not i:
                raise
            print(f"stopped; the figures are of the {i} of {len(models)} checkpoints that were measured")
            return models[:i], True
    return models, False


def comparisons(models, settings):
    """[{"a": the best by loss, "b": another, "figure": "loss", …}]: nats a token that B is above A, and how surely."""
    best = min(models, key=lambda model: model.rows.total().loss)
    found = []
    for other in models:
        # Less is better, so each stands with a minus.
        result = other is not best and compare(
            -best.rows.nats, -other.rows.nats, settings.resamples, settings.seed, best.rows.tokens
        )
        if result:
            found.append({"a": best.name, "b": other.name, "figure": "loss", **result})
    return found


def between(edges, digits=4):
    return " ({:.{d}f}–{:.{d}f})".format(*edges, d=digits) if edges else ""


def print_figures(entries, settings):
    """A line for each checkpoint, and of several a table with the intervals below the figures."""
    for entry in entries:
        edges = entry["intervals"]
        print(
            f"{entry['checkpoint']} on {entry['data_dir']} ({entry['part']}, {entry['rows']} rows, {entry['tokens']} "
            f"tokens, {entry['characters']} characters): perplexity {entry['perplexity']:.3f}"
            f"{between(edges['perplexity'], 3)}, {entry['loss']:.4f} nats a token{between(edges['loss'])}, "
            f"{entry['bits_per_token']:.4f} bits a token{between(edges['bits_per_token'])}, "
            f"{entry['bits_per_char']:.4f} bits a character{between(edges['bits_per_char'])}"
        )
    if entries[0]["intervals"]["loss"]:
        print("in brackets: 95% intervals by the bootstrap over rows")
    elif settings.resamples:
        print("\n".join(too_few_notes({"intervals and comparisons": entries[0]["rows"]})))
    if len(entries) > 1:
        rows = []
        for entry in entries:
            rows.append([entry["name"], entry["step"], *(entry[column] for column in COLUMNS)])
            if entry["intervals"]["loss"]:
                rows.append(["", "", *("{:.4f}–{:.4f}".format(*entry["intervals"][column]) for column in COLUMNS)])
        print("\n" + text_table(["checkpoint", "step", *HEADS], rows))


def print_comparisons(found):
    """How surely the best is better than each other one."""
    if found and not too_few(found[0]["rows"]):
        rows = [
            [f"{c['a']} < {c['b']}", c["difference"], f"{c['low']:+.4f}…{c['high']:+.4f}", f"{c['a_better']:.1%}"]
            for c in found
        ]
        print("\n" + text_table(["A < B", "nats a token less", "95% interval", "A better in"], rows))
        print("A better in: share of resamples (paired bootstrap); from 5% to 95%, neither is surely better")


def lines_of_rows(models, rows, meta, tokenizer):
    """Lines of the CSV: each row under each checkpoint."""
    starts = [tokenizer.decode(row[row != meta["special_ids"]["pad"]][: 4 * START])[:START] for row in rows]
    for model in models:
        found = model.rows
        columns = (found.tokens, found.characters, found.nats, found.text_nats)
        for i, (tokens, characters, nats, text_nats) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            perplexity = math.exp(min(700.0, nats / tokens)) if tokens else None
            bits = text_nats / math.log(2) / characters if characters else None
            yield [model.name, i + 1, starts[i], tokens, characters, nats, perplexity, bits]


def main():
    settings = load_settings("perplexity")
    models = [Measured(*found) for found in find_models(settings.ckpt, settings.out_root)]
    part, meta = settings.split or "val", read_meta(settings.data_dir)
    for model in models:
        model.check(settings.data_dir, meta)
    rows, meta = open_rows(settings.data_dir, part)
    tokenizer = load_row_tokenizer(settings.data_dir, meta)
    if settings.check_leak:
        look_for_leaks(models, settings.data_dir, part)
    measured, stopped = measure_all(models, rows, meta, tokenizer, settings)
    entries = [model.figures(settings, part) for model in measured]
    found = comparisons(measured, settings)
    print_figures(entries, settings)
    print_comparisons(found)
    if meta.get("overflow") == "truncate" and meta.get("characters_cut"):
        print("note: these rows were truncated; to compare tokenizers, prepare both with --overflow=split")
    if settings.csv:
        names = ["checkpoint", "row", "text", "tokens", "characters", "nats", "perplexity", "bits_per_char"]
        write_csv(settings.csv, names, lines_of_rows(measured, rows, meta, tokenizer))
    if settings.json:
        alone = entries[0] if len(entries) == 1 else {}
        write_json(settings.json, {**alone, "models": entries, "comparisons": found})
    if stopped:
        raise KeyboardInterrupt


if __name__ == "__main__":
    run_script(main)
