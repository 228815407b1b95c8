"""Measures perplexity and bits per character of checkpoints over a whole part of prepared rows.

    python evaluations-perplexity.py                                         # the newest checkpoint, data/processed
    python evaluations-perplexity.py --ckpt=out/sft/ckpt.pt --data_dir=data/processed_sft --split=test
    python evaluations-perplexity.py --ckpt=out/a,out/b/ckpt.pt --csv=rows.csv     # a folder: every checkpoint in it

Perplexity is over all tokens that the stage's mask keeps. Bits per character leave out EOT. They compare models with
different tokenizers if the rows were cut from the same articles with overflow=split: measure each model on its own
folder. Several checkpoints on the same rows are compared by the paired bootstrap: rows are resampled, and the loss is
the sum of their nats over the sum of their tokens, so that a long row weighs as much as in the figure itself.
"""

import math

from tqdm import tqdm

from data_utils import load_row_tokenizer, open_rows, read_meta
from minigpt.checkpoint import load_checkpoint, load_model
from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.common.files import write_json
from minigpt.device import pick_device
from minigpt.evaluation.asking import EvaluatedModel, combine_entries, measure_in_turn, print_comparisons
from minigpt.evaluation.contamination import check_models
from minigpt.evaluation.models import find_models, is_address
from minigpt.evaluation.perplexity import PERPLEXITY_FIGURES, check_rows_fit, perplexity_figures
from minigpt.evaluation.tables import interval_text, rows_with_intervals, text_table, write_csv
from minigpt.inference.likelihood import likelihood_of_rows
from minigpt.metrics import compare, too_few_notes
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import PerplexitySettings

PREVIEW_CHARS = 20  # of a row's text, by which the CSV identifies it
PERPLEXITY_HEADS = ["perplexity", "nats per token", "bits per token", "bits per character"]  # of PERPLEXITY_FIGURES


class MeasuredCheckpoint(EvaluatedModel):
    """A checkpoint and, once it is measured, its `RowFigures` as `rows`."""

    rows = None

    def __init__(self, name, path):
        if is_address(str(path)):
            raise UserError(f"{path} is an address: perplexity needs a checkpoint, because an API gives no likelihoods")
        super().__init__(name, path)

    def measure(self, rows, meta, tokenizer, settings):
        """Measure its rows, with a progress bar; returns itself."""
        model, _ = load_model(load_checkpoint(self.path), pick_device(settings.device))
        with tqdm(total=len(rows), unit="row", desc=self.name) as bar:
            self.rows = likelihood_of_rows(
                model, rows, meta, settings.batch_size, tokenizer, train_on_eot=settings.train_on_eot,
                progress=bar.update,
            )  # fmt: skip
        return self

    def figures(self, settings, part):
        """Plain values for the JSON."""
        return {
            **self.about(), "data_dir": settings.data_dir, "part": part,
            **perplexity_figures(self.rows, settings.resamples, settings.seed), "leak": self.contamination,
        }  # fmt: skip


def compare_with_best(models, settings):
    """[{"a": the checkpoint with the lowest loss, "b": another, "figure": "loss", …}], as `metrics.compare` has it.

    "difference" is how many nats per token B's loss is above A's.
    """
    best = min(models, key=lambda model: model.rows.total().loss)
    comparisons = []
    for other in models:
        # `compare` expects scores that are higher for the better model, hence the minus.
        result = other is not best and compare(
            -best.rows.nats, -other.rows.nats, settings.resamples, settings.seed, best.rows.tokens
        )
        if result:
            comparisons.append({"a": best.name, "b": other.name, "figure": "loss", **result})
    return comparisons


def print_perplexity_figures(entries, settings):
    """Print a line for each checkpoint and, for several, a table with the intervals below the figures."""
    for entry in entries:
        figures = []
        for name, head, digits in zip(PERPLEXITY_FIGURES, PERPLEXITY_HEADS, (3, 4, 4, 4), strict=True):
            edges = entry["intervals"][name]
            figures.append(f"{head} {entry[name]:.{digits}f}" + (f" ({interval_text(edges, digits)})" if edges else ""))
        print(
            f"{entry['checkpoint']} on {entry['data_dir']} ({entry['part']}, {entry['rows']} rows, {entry['tokens']} "
            f"tokens, {entry['characters']} characters): {', '.join(figures)}"
        )
    if entries[0]["intervals"]["loss"]:
        print("in brackets: 95% bootstrap intervals over rows")
    elif settings.resamples:
        print("\n".join(too_few_notes({"intervals and comparisons": entries[0]["rows"]})))
    if len(entries) > 1:
        rows = rows_with_intervals(entries, ["name", "step"], PERPLEXITY_FIGURES, digits=4)
        print("\n" + text_table(["checkpoint", "step", *PERPLEXITY_HEADS], rows))


def csv_rows(models, rows, meta, tokenizer):
    """Yield the rows of the CSV: each row of data under each checkpoint."""
    previews = []
    for row in rows:
        ids = row[row != meta["special_ids"]["pad"]][: 4 * PREVIEW_CHARS]  # a character has at most 4 tokens
        previews.append(tokenizer.decode(ids)[:PREVIEW_CHARS])
    for model in models:
        found = model.rows
        columns = (found.tokens, found.characters, found.nats, found.text_nats)
        for i, (tokens, characters, nats, text_nats) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            perplexity = math.exp(min(700.0, nats / tokens)) if tokens else None
            bits = text_nats / math.log(2) / characters if characters else None
            yield [model.name, i + 1, previews[i], tokens, characters, nats, perplexity, bits]


def main():
    settings = load_settings(PerplexitySettings)
    models = [MeasuredCheckpoint(*found) for found in find_models(settings.ckpt, settings.out_root)]
    part, meta = settings.split or "val", read_meta(settings.data_dir)
    for model in models:
        check_rows_fit(model.content, model.path, settings.data_dir, meta)
    rows, meta = open_rows(settings.data_dir, part)
    tokenizer = load_row_tokenizer(settings.data_dir, meta)
    if settings.check_leak:
        check_models(models, source=(settings.data_dir, part))
    measured, stopped = measure_in_turn(models, lambda model: model.measure(rows, meta, tokenizer, settings))
    entries = [model.figures(settings, part) for model in measured]
    comparisons = compare_with_best(measured, settings)
    print_perplexity_figures(entries, settings)
    print_comparisons(comparisons, "<", "B - A", {"loss": "nats per token"})
    if meta.get("overflow") == "truncate" and meta.get("characters_cut"):
        print("note: these rows were truncated; to compare tokenizers, prepare both with --overflow=split")
    if settings.csv:
        names = ["checkpoint", "row", "text", "tokens", "characters", "nats", "perplexity", "bits_per_char"]
        write_csv(settings.csv, names, csv_rows(measured, rows, meta, tokenizer))
    if settings.json:
        write_json(settings.json, combine_entries(entries, comparisons=comparisons))
    if stopped:
        raise KeyboardInterrupt


if __name__ == "__main__":
    run_script(main)
