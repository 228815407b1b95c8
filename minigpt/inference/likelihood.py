"""What a model thinks of given text: perplexity, bits per character. (Of what it writes: minigpt/metrics.py.)"""

import math
from collections import deque
from dataclasses import dataclass, fields

import numpy as np
import torch

from data_utils import LENGTH_MULTIPLE, fill_batches, make_batch, row_lengths
from minigpt.common.errors import UserError
from minigpt.device import Precision, explain_out_of_memory

FLOAT32 = Precision()
TOKENS_A_PASS = 8192  # more are no faster on a CPU
MOST_TOKENS_A_PASS = 1 << 17
WIDTHS_A_TOKEN = 24  # floats of the model's width that a pass holds for each token, about


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
    def bits_per_token(self):
        return self.loss / math.log(2)

    @property
    def bits_per_char(self):
        """Bits a character, comparable between tokenizers where both cut the same articles with `split`."""
        return self.text_nats / math.log(2) / max(1, self.characters)


@dataclass
class RowFigures:
    """What `Likelihood` sums up, row by row: nats, text_nats (n,) of float64, tokens, characters (n,) of int64."""

    nats: np.ndarray
    tokens: np.ndarray
    text_nats: np.ndarray
    characters: np.ndarray

    @classmethod
    def of(cls, n):
        """Zeros for n rows."""
        return cls(np.zeros(n), np.zeros(n, dtype=np.int64), np.zeros(n), np.zeros(n, dtype=np.int64))

    def total(self):
        """`Likelihood` of all rows."""
        return Likelihood(**{f.name: getattr(self, f.name).sum().item() for f in fields(self)})


def likelihood(*measured, **more):
    """`Likelihood` of rows under a model: the sums of what `likelihood_of_rows` gives, with the same arguments."""
    return likelihood_of_rows(*measured, **more).total()


@torch.no_grad()  # not inference_mode: what a sharded model gathers here, it uses in training too
def likelihood_of_rows(
    model, rows, meta, batch_size, tokenizer=None, precision=FLOAT32, train_on_eot=True, progress=None,
    batch_tokens=0, rank=0, count=1,
):  # fmt: skip
    """`RowFigures` of rows (n, block_size) under a model and the mask of the rows' stage, in the order of the rows.

    A row's first token follows nothing and has no loss; its characters are not counted either. With
    `tokenizer`, characters are counted; without, they stay 0. progress(n): called when n rows are done.
    batch_tokens: as in `fill_batches`; batch_size 0 without it: as much as the device holds, and half as much
    wherever that was too much. rank, count: of a measurement that several processes share; each gets its part of
    every batch, and zeros for the other rows. Raises UserError where memory runs out all the same.
    """
    device, found = model.wte.weight.device, RowFigures.of(len(rows))
    by_itself = not (batch_size or batch_tokens)
    was_training = model.training
    model.eval()
    lengths = row_lengths(rows, meta["special_ids"]["pad"])

    def cut(order, batch_tokens):
        return deque(order[part] for part in fill_batches(lengths[order], batch_size, batch_tokens))

    # Rows of like length share a batch, so that less of it is PAD.
    left = cut(np.argsort(-lengths, kind="stable"), tokens_a_pass(model) if by_itself else batch_tokens)
    while left:
        batch = left.popleft()
        mine = batch[rank::count]
        try:
            with explain_out_of_memory(device):
                note_rows(found, mine, model, rows, meta, tokenizer, precision, train_on_eot)
        except UserError:
            if not by_itself or len(batch) == 1:
                raise
            width = -(-int(lengths[batch].max()) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
            left = cut(np.concatenate([batch, *left]), len(batch) // 2 * width)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        if progress:
            progress(len(mine))
    model.train(was_training)
    return found


def note_rows(found, batch, model, rows, meta, tokenizer, precision, train_on_eot):
    """Write the figures of a batch (indices of rows) into `found`, by one forward pass."""
    device, eot = model.wte.weight.device, meta["special_ids"]["eot"]
    batch = np.sort(batch)
    x, y, mask = make_batch(rows[batch if len(batch) else [0]], meta, train_on_eot)
    if not len(batch):  # a process without a row takes part where the model's shards are gathered
        mask = torch.zeros_like(mask)
    with precision.context(device):
        losses = model.token_losses(x.to(device), y.to(device), mask.to(device)).cpu().double().numpy()
    if not len(batch):
        return
    of, is_text = mask.nonzero()[:, 0].numpy(), (y[mask] != eot).numpy()
    for name, weights in (("nats", losses), ("tokens", None), ("text_nats", losses * is_text)):
        getattr(found, name)[batch] = np.bincount(of, weights, minlength=len(batch))
    if tokenizer is not None:
        found.characters[batch] = [target_characters(*row, eot, tokenizer) for row in zip(x, y, mask, strict=True)]


def tokens_a_pass(model):
    """How many tokens (PAD included) to begin with: what a card has room for, elsewhere TOKENS_A_PASS."""
    device = model.wte.weight.device
    if device.type != "cuda":
        return TOKENS_A_PASS
    free, _ = torch.cuda.mem_get_info(device)
    fit = free // (WIDTHS_A_TOKEN * 4 * model.config.n_embd)
    return max(1, min(MOST_TOKENS_A_PASS, fit))


def target_characters(x, y, mask, eot_id, tokenizer):
    """Number of characters that a row's kept targets spell. A character whose first bytes are the token
    before them counts as theirs."""
    kept = mask.nonzero().squeeze(1)
    if not len(kept):
        return 0
    before, targets = x[kept[0]].item(), y[kept]
    ids = targets[targets != eot_id].tolist()
    return len(tokenizer.decode([before, *ids])) - len(tokenizer.decode([before]))
