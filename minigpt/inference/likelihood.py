"""Likelihood of given text under a model: perplexity, bits per character. (Metrics of generated text: metrics.py.)"""

import math
from collections import deque
from dataclasses import dataclass, fields

import numpy as np
import torch

from data_utils import LENGTH_MULTIPLE, fill_batches, make_batch, row_lengths
from minigpt.common.errors import UserError
from minigpt.device import Precision, explain_out_of_memory

FLOAT32 = Precision()
CPU_BATCH_TOKENS = 8192  # larger batches are no faster on a CPU
MAX_GPU_BATCH_TOKENS = 1 << 17
FLOATS_PER_TOKEN_AND_WIDTH = 24  # memory of a forward pass, about: this * n_embd floats for each token


@dataclass
class Likelihood:
    """Sums over the targets with a loss of some rows.

    nats, tokens: loss and number of all targets; text_nats: loss without EOT; characters: number of characters that
    the targets without EOT decode to.
    """

    nats: float = 0.0
    tokens: int = 0
    text_nats: float = 0.0
    characters: int = 0

    @property
    def loss(self):
        """Mean loss in nats per token; nan if no target has a loss."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self):
        """exp of the mean loss per token, EOT included."""
        return math.exp(min(700.0, self.loss))

    @property
    def bits_per_token(self):
        return self.loss / math.log(2)

    @property
    def bits_per_char(self):
        """Bits per character, EOT left out. Comparable between tokenizers if both encode the same articles."""
        return self.text_nats / math.log(2) / max(1, self.characters)


@dataclass
class RowFigures:
    """The figures of `Likelihood` for each row: nats, text_nats (n,) float64; tokens, characters (n,) int64."""

    nats: np.ndarray
    tokens: np.ndarray
    text_nats: np.ndarray
    characters: np.ndarray

    @classmethod
    def zeros(cls, n):
        """Zeros for n rows."""
        return cls(np.zeros(n), np.zeros(n, dtype=np.int64), np.zeros(n), np.zeros(n, dtype=np.int64))

    def total(self):
        """The `Likelihood` of all rows."""
        return Likelihood(**{f.name: getattr(self, f.name).sum().item() for f in fields(self)})


def likelihood(*measured, **more):
    """The total `Likelihood` of rows under a model. Takes the arguments of `likelihood_of_rows`."""
    return likelihood_of_rows(*measured, **more).total()


@torch.no_grad()  # not inference_mode: training reuses tensors that a sharded model gathers here
def likelihood_of_rows(
    model, rows, meta, batch_size, tokenizer=None, precision=FLOAT32, train_on_eot=True, progress=None,
    batch_tokens=0, rank=0, count=1,
):  # fmt: skip
    """`RowFigures` of rows (n, block_size) under a model, in the order of the rows.

    The stage in `meta` decides which targets have a loss. The first token of a row has none, and its characters are
    not counted. tokenizer: needed to count characters, which are 0 without it.
    batch_size, batch_tokens: as in `fill_batches`; if both are 0, batches are as large as the device's memory allows.
    progress(n): called when n more rows are done. rank, count: for a measurement that `count` processes share; each
    computes its part of every batch, and returns zeros for the other rows.
    Raises UserError where memory runs out (with automatic batches, only if it does for a single row).
    """
    device = next(model.parameters()).device
    figures = RowFigures.zeros(len(rows))
    automatic = not (batch_size or batch_tokens)
    was_training = model.training
    model.eval()
    lengths = row_lengths(rows, meta["special_ids"]["pad"])

    def make_batches(order, batch_tokens):
        return deque(order[part] for part in fill_batches(lengths[order], batch_size, batch_tokens))

    # Rows are sorted by length, longest first, so that batches contain little PAD.
    tokens = starting_batch_tokens(model) if automatic else batch_tokens
    left = make_batches(np.argsort(-lengths, kind="stable"), tokens)
    while left:
        batch = left.popleft()
        mine = batch[rank::count]
        try:
            with explain_out_of_memory(device):
                measure_batch(figures, mine, model, rows, meta, tokenizer, precision, train_on_eot)
        except UserError:
            if not automatic or len(batch) == 1:
                raise
            # Out of memory: divide the rows that are left into batches of half the size.
            width = -(-int(lengths[batch].max()) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
            left = make_batches(np.concatenate([batch, *left]), len(batch) // 2 * width)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        if progress:
            progress(len(mine))
    model.train(was_training)
    return figures


def measure_batch(figures, batch, model, rows, meta, tokenizer, precision, train_on_eot):
    """Compute a batch (indices of rows) in one forward pass, and write the rows' figures into `figures`."""
    device = next(model.parameters()).device
    eot = meta["special_ids"]["eot"]
    batch = np.sort(batch)
    # A process without a row must still take part in gathering a sharded model: it computes one and drops the result.
    x, y, mask = make_batch(rows[batch if len(batch) else [0]], meta, train_on_eot)
    with precision.context(device):
        losses = model.token_losses(x.to(device), y.to(device), mask.to(device)).cpu().double().numpy()
    if not len(batch):
        return

    # Add up the losses of each row.
    row_of_loss = mask.nonzero()[:, 0].numpy()
    is_text = (y[mask] != eot).numpy()
    for name, weights in (("nats", losses), ("tokens", None), ("text_nats", losses * is_text)):
        getattr(figures, name)[batch] = np.bincount(row_of_loss, weights, minlength=len(batch))
    if tokenizer is not None:
        figures.characters[batch] = [target_characters(*row, eot, tokenizer) for row in zip(x, y, mask, strict=True)]


def starting_batch_tokens(model):
    """Tokens per batch (with PAD) to begin with: by the free memory of a GPU, else CPU_BATCH_TOKENS."""
    device = model.wte.weight.device
    if device.type != "cuda":
        return CPU_BATCH_TOKENS
    free, _ = torch.cuda.mem_get_info(device)
    tokens = free // (FLOATS_PER_TOKEN_AND_WIDTH * 4 * model.config.n_embd)
    return max(1, min(MAX_GPU_BATCH_TOKENS, tokens))


def target_characters(x, y, mask, eot_id, tokenizer):
    """Number of characters that a row's targets with a loss decode to. x, y, mask: (T,).

    A character whose first bytes are in the token before these targets is counted too.
    """
    kept = mask.nonzero().squeeze(1)
    if not len(kept):
        return 0
    before, targets = x[kept[0]].item(), y[kept]
    ids = targets[targets != eot_id].tolist()
    return len(tokenizer.decode([before, *ids])) - len(tokenizer.decode([before]))
