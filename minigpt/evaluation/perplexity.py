"""Perplexity of a checkpoint on prepared rows: whether the rows fit it, and the figures with their intervals."""

import math

from data_utils import check_rows, check_tokenizer
from minigpt.common.errors import UserError
from minigpt.metrics import interval

PERPLEXITY_FIGURES = ("perplexity", "loss", "bits_per_token", "bits_per_char")


def check_rows_fit(content, name, folder, meta, any_stage=False):
    """Raise UserError, naming the checkpoint, unless a data folder's rows can be measured with it.

    content: the checkpoint's dict; any_stage: allow rows of the other stage, such as articles for a fine-tuned
    checkpoint.
    """
    try:
        if any_stage:
            check_tokenizer(folder, meta, content["tokenizer"], "the checkpoint's")
        else:
            check_rows(folder, meta, content)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    longest = content["model_args"]["block_size"]
    if meta["block_size"] > longest:
        raise UserError(f"{name}: rows of {meta['block_size']} do not fit its block_size {longest}")


def perplexity_figures(rows, resamples, seed):
    """Figures over all rows of a `RowFigures`, with 95% bootstrap intervals over the rows.

    Returns {"rows", "tokens", "characters", "perplexity", "loss" (nats per token), "bits_per_token", "bits_per_char",
    "intervals": {figure: [low, high], or None for too few rows}}.
    """
    total = rows.total()
    loss = interval(rows.nats, rows.tokens, resamples, seed)
    text_loss = interval(rows.text_nats, rows.characters, resamples, seed)
    return {
        "rows": len(rows.nats), "tokens": total.tokens, "characters": total.characters,
        **{figure: getattr(total, figure) for figure in PERPLEXITY_FIGURES},
        "intervals": {
            "perplexity": loss and [math.exp(min(700.0, edge)) for edge in loss],
            "loss": loss and list(loss),
            "bits_per_token": loss and [edge / math.log(2) for edge in loss],
            "bits_per_char": text_loss and [edge / math.log(2) for edge in text_loss],
        },
    }  # fmt: skip
