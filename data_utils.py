"""Row files: reading them, the loss mask, batches, and the order that rows are drawn in.

A `.bin` is uint16, shape (rows, block_size); a row is `tokens EOT PAD PAD …`. `meta.json` beside it
says what the rows are; a reader checks it and refuses a mismatch, naming both values.
"""

import itertools
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from minigpt.common.errors import UserError
from minigpt.corpus.row_files import LAYOUT, META, TOKENIZER_FILE
from minigpt.tokenizer import GPT2_SHA256, load_tokenizer

LENGTH_MULTIPLE = 8
DEFAULT_FOLDERS = {"pretrain": "data/processed", "sft": "data/processed_sft"}
PREPARE = {"pretrain": "python data/prepare.py", "sft": "python data/prepare_sft.py"}


def read_meta(folder):
    """meta.json of a data folder. Raises UserError, with the command to run, when it was not prepared."""
    try:
        meta = json.loads((Path(folder) / META).read_text(encoding="utf-8"))
    except OSError:
        stage = "sft" if "sft" in Path(folder).name else "pretrain"
        name = "sft_data_dir" if stage == "sft" else "data_dir"
        flag = "" if str(folder) == DEFAULT_FOLDERS[stage] else f" --{name}={folder}"
        raise UserError(f"no prepared data in {folder}; run: {PREPARE[stage]}{flag}") from None
    except ValueError:
        raise UserError(f"{Path(folder) / META} is damaged; prepare the data again") from None
    if not isinstance(meta, dict) or not {"layout", "block_size", "parts", "tokenizer", "special_ids"} <= set(meta):
        raise UserError(f"{Path(folder) / META} is damaged; prepare the data again")
    if meta["layout"] != LAYOUT:
        raise UserError(f"{folder} has layout {meta.get('layout')!r}, this program reads {LAYOUT!r}")
    return meta


def open_rows(folder, part, block_size=None):
    """(rows, meta): a read-only memory map of uint16, shape (rows, block_size), and the folder's meta.

    Raises UserError where the part is missing or empty, the file's size is not what meta.json says, or
    `block_size` is not the rows'.
    """
    meta = read_meta(folder)
    path, width = Path(folder) / f"{part}.bin", meta["block_size"]
    if block_size is not None and width != block_size:
        raise UserError(
            f"block_size is {block_size}, but the rows in {folder} are of {width}; "
            f"give --block_size={width}, or prepare again"
        )
    if part not in meta["parts"]:
        raise UserError(f"{folder} has no {part} part (it has {', '.join(meta['parts'])})")
    if not path.exists():
        raise UserError(f"{path} is not there; prepare the data again")
    n_rows = meta["parts"][part]["rows"]
    if path.stat().st_size != n_rows * width * 2:
        raise UserError(
            f"{path} has {path.stat().st_size} bytes, {META} says {n_rows * width * 2}; prepare the data again"
        )
    if not n_rows:
        share = "a smaller --val_share" if part == "train" else f"a larger --{part}_share"
        raise UserError(f"the {part} part of {folder} has no rows; prepare more data, or with {share}")
    return np.memmap(path, dtype=np.uint16, mode="r", shape=(n_rows, width)), meta


def check_tokenizer(folder, meta, about, owner):
    """Raise UserError unless a data folder was made with the tokenizer of `owner`; about: its name and sha256."""
    ours = meta["tokenizer"]
    if ours["sha256"] != about["sha256"]:
        raise UserError(
            f"the data in {folder} was made with tokenizer {ours['name']} ({ours['sha256'][:8]}…), but {owner} is "
            f"{about['name']} ({about['sha256'][:8]}…); prepare the data again with --tokenizer= that one"
        )


def load_row_tokenizer(folder, meta):
    """The `Tokenizer` that a data folder's rows were made with. Raises UserError where it is another."""
    name, is_gpt2 = meta["tokenizer"]["name"], meta["tokenizer"]["sha256"] == GPT2_SHA256
    tokenizer = load_tokenizer() if is_gpt2 else load_tokenizer(Path(folder) / TOKENIZER_FILE, name)
    check_tokenizer(folder, meta, {"name": name, "sha256": tokenizer.sha256}, "the tokenizer beside it")
    return tokenizer


def check_rows(folder, meta, content):
    """Raise UserError unless a data folder's rows are of the stage and tokenizer of a checkpoint's dict."""
    if meta["stage"] != content["stage"]:
        raise UserError(
            f"{folder} holds {meta['stage']} rows, the checkpoint is of {content['stage']}; "
            f"name the folder of its rows, such as --data_dir={content['settings']['data_dir']}"
        )
    check_tokenizer(folder, meta, content["tokenizer"], "the checkpoint's")


def split_row(row, special_ids):
    """(question ids, answer ids) of a fine-tuning row, without the mark and EOT."""
    ids = row.tolist()
    mark = ids.index(special_ids["answer"])
    return ids[:mark], ids[mark + 1 : ids.index(special_ids["eot"], mark)]


def loss_mask(rows, special_ids, stage, train_on_eot=True):
    """Which targets count: bool (B, T-1) for rows (B, T), over `rows[:, 1:]`.

    pretrain: all but PAD, and EOT by `train_on_eot`. sft: the answer and its EOT; nothing up to and
    including the first answer mark, nothing after the EOT.
    """
    y = rows[:, 1:]
    if stage == "pretrain":
        mask = y != special_ids["pad"]
        return mask if train_on_eot else mask & (y != special_ids["eot"])
    # Marks and EOTs up to a position, the position itself left out.
    marks_before = np.cumsum(rows == special_ids["answer"], axis=1)[:, :-1]
    in_answer = marks_before > 0
    ends = (y == special_ids["eot"]) & in_answer
    ended_before = np.cumsum(ends, axis=1) - ends
    return in_answer & (ended_before == 0) & (y != special_ids["pad"])


def make_batch(rows, meta, train_on_eot=True):
    """x, y (int64) and loss_mask (bool), each (B, T): rows (B, block_size) without the columns that are all PAD.

    T is a multiple of LENGTH_MULTIPLE, or block_size - 1: few shapes, for each of which kernels are made anew.
    """
    rows = np.asarray(rows)
    used = np.flatnonzero((rows != meta["special_ids"]["pad"]).any(axis=0))
    targets = max(1, used[-1] if used.size else 1)
    rows = rows[:, : 1 + -(-targets // LENGTH_MULTIPLE) * LENGTH_MULTIPLE]
    mask = loss_mask(rows, meta["special_ids"], meta["stage"], train_on_eot)
    ids = torch.from_numpy(rows.astype(np.int64))
    return ids[:, :-1], ids[:, 1:], torch.from_numpy(mask)


def row_lengths(rows, pad_id):
    """(n,) real tokens of each row, read in stretches so that the file need not fit in memory."""
    return np.concatenate([(rows[i : i + 4096] != pad_id).sum(axis=1) for i in range(0, len(rows), 4096)])


def fill_batches(lengths, batch_size, batch_tokens=0):
    """Cut rows, in the order given, into full batches and a rest: list of slices over lengths (n,).

    A batch holds batch_size rows or, with batch_tokens, as many as fit so many tokens, PAD included (and one row
    at least). Full ones of like length are of one shape, for which kernels are made once.
    """
    n = len(lengths)
    if not batch_tokens:
        return [slice(first, min(first + batch_size, n)) for first in range(0, n, batch_size)]
    widths = np.maximum(1, -(-np.asarray(lengths) // LENGTH_MULTIPLE)) * LENGTH_MULTIPLE
    edges, longest_first = [0], bool((np.diff(widths) <= 0).all())
    widths = widths.tolist()
    if longest_first:  # a batch's first row is its widest, so that the others need not be looked at
        while edges[-1] < n:
            edges.append(min(n, edges[-1] + max(1, batch_tokens // widths[edges[-1]])))
        return [slice(a, b) for a, b in itertools.pairwise(edges)]
    widest = 0
    for row, width in enumerate(widths):
        widest = max(widest, width)
        if (row + 1 - edges[-1]) * widest > batch_tokens and row > edges[-1]:
            edges.append(row)
            widest = width
    return [slice(a, b) for a, b in itertools.pairwise([*edges, n])]


class BatchOrder:
    """Which rows make each batch: a fresh permutation each epoch (random), or the file's order (traverse).

    The position (epoch, batch) alone gives the rows, so a run that is resumed goes on with those that come next.

    In random order, rows of like length are drawn together, so that a batch has little padding: the epoch's
    permutation is cut into windows of WINDOW batches, a window is sorted by length and cut into batches, and
    these come in random order. Which rows share a window is as random as before; which rows share a batch is
    random among those of like length.
    """

    WINDOW = 32

    def __init__(self, lengths, sampling="random", seed=0, batch_size=1, batch_tokens=0):
        self.lengths, self.sampling, self.seed = np.asarray(lengths), sampling, seed
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self._drawn = (-1, None)  # the epoch in hand, and its batches

    def batches(self, epoch):
        """List of the epoch's batches, each the indices of its rows."""
        if self.sampling == "traverse":
            epoch = 0
        drawn = self._drawn  # two threads ask
        if drawn[0] != epoch:
            self._drawn = drawn = (epoch, self._draw(epoch))
        return drawn[1]

    def _draw(self, epoch):
        n, rng = len(self.lengths), np.random.default_rng([self.seed, epoch])
        if self.sampling == "traverse":
            return self._fill(np.arange(n))
        order, batches = rng.permutation(n), []
        rows_a_batch = self.batch_tokens // max(1.0, self.lengths.mean()) if self.batch_tokens else self.batch_size
        size, rest = max(1, int(self.WINDOW * rows_a_batch)), order[:0]
        shorter = self.lengths.max() - self.lengths
        shorter = shorter.astype(np.uint16) if shorter.max() < 1 << 16 else shorter  # numpy sorts 16 bits by radix
        for first in range(0, n, size):
            window = np.concatenate([rest, order[first : first + size]])
            full = self._fill(window[np.argsort(shorter[window], kind="stable")])
            # The rest of a window, its shortest rows, goes into the next one; only the epoch's last batch is not full.
            rest = full.pop() if first + size < n else order[:0]
            batches += [full[i] for i in rng.permutation(len(full))]
        return batches

    def _fill(self, rows):
        return [rows[part] for part in fill_batches(self.lengths[rows], self.batch_size, self.batch_tokens)]

    def count(self, epochs):
        """Number of batches in so many epochs, a part of one counted by its share."""
        whole = sum(len(self.batches(epoch)) for epoch in range(int(epochs)))
        part = epochs - int(epochs)
        return whole + (math.ceil(part * len(self.batches(int(epochs)))) if part else 0)

    def take(self, epoch, batch, count):
        """(list of the next `count` batches from a position on, the position after them)."""
        taken = []
        while len(taken) < count:
            of_epoch = self.batches(epoch)
            more = of_epoch[batch : batch + count - len(taken)]
            taken, batch = taken + more, batch + len(more)
            if batch >= len(of_epoch):
                epoch, batch = epoch + 1, 0
        return taken, (epoch, batch)


@dataclass
class StepRows:
    """What one optimizer step trains on: this process's batches, and figures of the whole step."""

    batches: list  # of (x, y, loss_mask), as `make_batch` gives them
    position: tuple  # (epoch, batch) after it
    rows: int
    tokens: int  # real ones, PAD left out
    squares: int  # sum over the rows of their tokens squared, which is what attention costs


class TrainingData:
    """The train and val parts of a data folder, and the batches of each step, the next one made in the background.

    rank, count: this process and how many share a step; what a step trains on does not depend on them.
    pinned: whether batches are put where a CUDA card can fetch them.
    """

    def __init__(self, settings, rank=0, count=1, pinned=False):
        self.train, self.meta = open_rows(settings.data_dir, "train", settings.block_size)
        self.val, _ = open_rows(settings.data_dir, "val", settings.block_size)
        if settings.eval_iters:
            rows = settings.batch_tokens // settings.block_size or settings.batch_size
            few = min(len(self.val), settings.eval_iters * rows)
            self.val = self.val[np.linspace(0, len(self.val) - 1, few).astype(int)]  # spread over all sources
        self.tokenizer = load_row_tokenizer(settings.data_dir, self.meta)
        self.lengths = row_lengths(self.train, self.meta["special_ids"]["pad"])
        size, tokens = settings.batch_size, settings.batch_tokens
        self.order = BatchOrder(self.lengths, settings.sampling, settings.seed, size, tokens)
        self.batches_a_step = settings.gradient_accumulation_steps
        self.train_on_eot = settings.train_on_eot
        self.rank, self.count, self.pinned = rank, count, pinned
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next = None  # (position, future)

    def step(self, position):
        """`StepRows` of the step that begins at a position (epoch, batch)."""
        ahead = self._next and self._next[0] == position
        rows = self._next[1].result() if ahead else self._make(position)
        self._next = (rows.position, self._worker.submit(self._make, rows.position))
        return rows

    def _make(self, position):
        taken, after = self.order.take(*position, self.batches_a_step)
        lengths = self.lengths[np.concatenate(taken)].astype(np.int64)
        batches = [self._batch(rows) for rows in self._share(taken)]
        return StepRows(batches, after, len(lengths), int(lengths.sum()), int((lengths**2).sum()))

    def _share(self, taken):
        """This process's part of a step: whole batches where they can be dealt out evenly, else rows of each."""
        if len(taken) % self.count == 0:
            return taken[self.rank :: self.count]
        return [rows[self.rank :: self.count] for rows in taken]

    def _batch(self, rows):
        # A process that gets no row still takes part in the exchange of gradients, with one that has no loss.
        x, y, mask = make_batch(self.train[np.sort(rows) if len(rows) else [0]], self.meta, self.train_on_eot)
        batch = x, y, mask if len(rows) else torch.zeros_like(mask)
        return [t.contiguous().pin_memory() for t in batch] if self.pinned else batch
