"""Figures that tell models apart: perplexity, bits per character, Rouge-L, exact match."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from rouge_chinese import Rouge

from data_utils import fill_batches, make_batch, row_lengths
from device import Precision

# rouge-chinese adds 1e-8 to the divisor of F; a figure is rounded to what is beyond that.
DIGITS = 6
FLOAT32 = Precision()


@dataclass
class Likelihood:
    """Sums over the kept targets of some rows: nats and tokens with EOT, text_nats without it, and the
    characters that the targets without EOT spell."""

    nats: float = 0.0
    tokens: int = 0
    text_nats: float = 0.0
    characters: int = 0

    @property
    def loss(self):
        """Nats a token; nan where no token was kept."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self):
        """exp of the mean loss over all kept tokens."""
        return math.exp(min(700.0, self.loss))

    @property
    def bits_per_char(self):
        """Bits a character, comparable between tokenizers where both cut the same articles with `split`."""
        return self.text_nats / math.log(2) / max(1, self.characters)


@torch.no_grad()  # not inference_mode: what a sharded model gathers here, it uses in training too
def likelihood(
    model, rows, meta, batch_size, tokenizer=None, precision=FLOAT32, train_on_eot=True, progress=None,
    batch_tokens=0, rank=0, count=1,
):  # fmt: skip
    """`Likelihood` of rows (n, block_size) under a model and the mask of the rows' stage.

    A row's first token follows nothing and has no loss; its characters are not counted either. With
    `tokenizer`, characters are counted; without, they stay 0. progress(n): called when n rows are done.
    batch_tokens: as in `fill_batches`. rank, count: of a measurement that several processes share; each
    gets the sums of its part of every batch.
    """
    device, total, special = model.wte.weight.device, Likelihood(), meta["special_ids"]
    was_training = model.training
    model.eval()
    lengths = row_lengths(rows, special["pad"])
    order = np.argsort(-lengths, kind="stable")  # rows of like length share a batch, so that less of it is PAD
    for part in fill_batches(lengths[order], batch_size, batch_tokens):
        batch = order[part][rank::count]
        x, y, mask = make_batch(rows[np.sort(batch) if len(batch) else [0]], meta, train_on_eot)
        if not len(batch):  # a process without a row takes part where the model's shards are gathered
            mask = torch.zeros_like(mask)
        with precision.context(device):
            losses = model.token_losses(x.to(device), y.to(device), mask.to(device)).cpu().double()
        is_text = y[mask] != special["eot"]
        total.nats += losses.sum().item()
        total.text_nats += losses[is_text].sum().item()
        total.tokens += len(losses)
        if tokenizer is not None:
            total.characters += sum(
                target_characters(*row, special["eot"], tokenizer) for row in zip(x, y, mask, strict=True)
            )
        if progress:
            progress(len(batch))
    model.train(was_training)
    return total


def target_characters(x, y, mask, eot_id, tokenizer):
    """Number of characters that a row's kept targets spell. A character whose first bytes are the token
    before them counts as theirs."""
    kept = mask.nonzero().squeeze(1)
    if not len(kept):
        return 0
    before, targets = x[kept[0]].item(), y[kept]
    ids = targets[targets != eot_id].tolist()
    return len(tokenizer.decode([before, *ids])) - len(tokenizer.decode([before]))


def rouge_l(prediction, reference):
    """(recall, precision, F) of the longest common subsequence of characters, spaces left out, 0 to 1.

    Lin 2004, computed by rouge-chinese.
    """
    prediction, reference = "".join(prediction.split()), "".join(reference.split())
    if not prediction or not reference:
        return 0.0, 0.0, 0.0
    score = Rouge(metrics=["rouge-l"]).get_scores(" ".join(prediction), " ".join(reference))[0]["rouge-l"]
    return tuple(round(score[k], DIGITS) for k in "rpf")


def exact_match(prediction, reference):
    """Whether both are the same text but for space around them."""
    return prediction.strip() == reference.strip()


def score_pairs(predictions, references):
    """Means over pairs: {"rouge_l_recall", "rouge_l_precision", "rouge_l_f", "exact_match", "pairs"}."""
    scores = [rouge_l(p, r) for p, r in zip(predictions, references, strict=True)]
    matches = [exact_match(p, r) for p, r in zip(predictions, references, strict=True)]
    recall, precision, f = (float(np.mean(column)) for column in zip(*scores, strict=True))
    return {
        "rouge_l_recall": recall,
        "rouge_l_precision": precision,
        "rouge_l_f": f,
        "exact_match": float(np.mean(matches)),
        "pairs": len(scores),
    }
