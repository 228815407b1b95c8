"""Training data: reads row files, makes batches and loss masks, and decides the order of the rows.

A `.bin` file has the shape (rows, block_size), uint16 or uint32. A row is `tokens EOT PAD PAD …`. The rows of a task
have the shape (rows, 2, block_size): tokens, and labels (`minigpt/corpus/task_rows.py`). The file `meta.json` beside it
describes the rows. Readers compare it with what they expect; on a mismatch the error names both values.
"""

import itertools
import json
import math
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from minigpt.common.errors import UserError
from minigpt.corpus.row_files import ADOPTED_TOKENIZER_FILE, LAYOUT, META, TOKENIZER_FILE
from minigpt.tokenizer import GPT2_SHA256, load_tokenizer
from model import kept_indices

LENGTH_MULTIPLE = 8  # tokens; the width of a batch is a multiple of this
# By stage: the setting that names the folder of the rows, its default, and what makes the rows.
FOLDER_SETTINGS = {"pretrain": "data_dir", "sft": "sft_data_dir", "task": "task_data_dir"}
DEFAULT_FOLDERS = {"pretrain": "data/processed", "sft": "data/processed_sft", "task": "data/processed_task"}
PREPARE_COMMANDS = {
    "pretrain": "python data/prepare.py",
    "sft": "python data/prepare_sft.py",
    "task": "python data/prepare_task.py",
}


def read_meta(folder):
    """The content of a data folder's meta.json, a dict.

    Raises UserError where the folder is not prepared (with the command to run), damaged, or of another layout.
    """
    try:
        meta = json.loads((Path(folder) / META).read_text(encoding="utf-8"))
    except OSError:
        stage = next((stage for stage in ("sft", "task") if stage in Path(folder).name), "pretrain")
        flag = "" if str(folder) == DEFAULT_FOLDERS[stage] else f" --{FOLDER_SETTINGS[stage]}={folder}"
        raise UserError(f"no prepared data in {folder}; run: {PREPARE_COMMANDS[stage]}{flag}") from None
    except ValueError:
        meta = None
    if not isinstance(meta, dict) or not {"layout", "block_size", "parts", "tokenizer", "special_ids"} <= set(meta):
        raise UserError(f"{Path(folder) / META} is damaged; prepare the data again")
    if meta["layout"] != LAYOUT:
        raise UserError(f"{folder} has layout {meta.get('layout')!r}, this program reads {LAYOUT!r}")
    return meta


def open_rows(folder, part, block_size=None):
    """(rows, meta): a read-only memory map, uint16 or uint32 (rows, block_size), and the content of the folder's
    meta.json. The rows of a task have the shape (rows, 2, block_size).

    part: "train", "val" or "test". Raises UserError where the part is missing or empty, the file's size is not what
    meta.json says, or the rows are not of width `block_size` (None: any width).
    """
    meta = read_meta(folder)
    path, width = Path(folder) / f"{part}.bin", meta["block_size"]
    if block_size is not None and width != block_size:
        raise UserError(
            f"block_size is {block_size}, but the rows in {folder} have {width} tokens; "
            f"give --block_size={width}, or prepare again"
        )
    if part not in meta["parts"]:
        raise UserError(f"{folder} has no {part} part (it has {', '.join(meta['parts'])})")
    if not path.exists():
        raise UserError(f"{path} is not there; prepare the data again")
    n_rows, dtype = meta["parts"][part]["rows"], np.dtype(meta.get("dtype", "uint16"))
    shape = (n_rows, 2, width) if meta["stage"] == "task" else (n_rows, width)
    n_bytes = math.prod(shape) * dtype.itemsize
    if path.stat().st_size != n_bytes:
        raise UserError(f"{path} has {path.stat().st_size} bytes, {META} says {n_bytes}; prepare the data again")
    if not n_rows:
        share = "a smaller --val_share" if part == "train" else f"a larger --{part}_share"
        raise UserError(f"the {part} part of {folder} has no rows; prepare more data, or with {share}")
    return np.memmap(path, dtype=dtype, mode="r", shape=shape), meta


def check_tokenizer(folder, meta, about, owner):
    """Raise UserError unless a data folder was made with the tokenizer of `owner`; about: its name and sha256."""
    ours = meta["tokenizer"]
    if ours["sha256"] != about["sha256"]:
        raise UserError(
            f"the data in {folder} was made with tokenizer {ours['name']} ({ours['sha256'][:8]}…), but {owner} is "
            f"{about['name']} ({about['sha256'][:8]}…); prepare the data again with --tokenizer= that one"
        )


def load_row_tokenizer(folder, meta):
    """The tokenizer that a data folder's rows were made with. Raises UserError where it is another."""
    name, is_gpt2 = meta["tokenizer"]["name"], meta["tokenizer"]["sha256"] == GPT2_SHA256
    adopted = Path(folder) / ADOPTED_TOKENIZER_FILE
    path = adopted if adopted.exists() else Path(folder) / TOKENIZER_FILE
    tokenizer = load_tokenizer() if is_gpt2 else load_tokenizer(path, name)
    check_tokenizer(folder, meta, {"name": name, "sha256": tokenizer.sha256}, "the tokenizer beside it")
    return tokenizer


def check_rows(folder, meta, content):
    """Raise UserError unless a data folder has the stage and the tokenizer of a checkpoint (content: its dict)."""
    if meta["stage"] != content["stage"]:
        own = content["settings"]["data_dir"]  # "" of a model of others
        example = f", for example --data_dir={own}" if own else ""
        raise UserError(
            f"{folder} holds {meta['stage']} rows, but the checkpoint is of stage {content['stage']}; "
            f"name a folder with such rows{example}"
        )
    check_tokenizer(folder, meta, content["tokenizer"], "the checkpoint's")


def answer_mark(special_ids):
    """The answer mark as a list of ids: one id, but several in a tokenizer of others."""
    mark = special_ids["answer"]
    return mark if isinstance(mark, list) else [mark]


def find_ids(ids, part, start=0):
    """The first place from `start` on where the list `part` is in the list ids; None where it is not."""
    while part and part[0] in ids[start:]:
        start = ids.index(part[0], start)
        if ids[start : start + len(part)] == part:
            return start
        start += 1
    return None


def turn_places(row, special_ids):
    """[(start, mark, answer, end)] of each turn of a fine-tuning row, as places in it: `question MARK answer EOT`.

    end: of the answer, where its EOT is; the row's length where it has none.
    """
    ids, marks, start, places = row.tolist(), answer_mark(special_ids), 0, []
    while (mark := find_ids(ids, marks, start)) is not None:
        answer = mark + len(marks)
        end = ids.index(special_ids["eot"], answer) if special_ids["eot"] in ids[answer:] else len(ids)
        places.append((start, mark, answer, end))
        start = end + 1
    return places


def split_row(row, special_ids):
    """[(question ids, answer ids)] of each turn of a fine-tuning row, without answer marks and EOT, as lists.

    What the chat template of others puts around a question is left out, and the messages before it.
    """
    ids = row.tolist()
    head, tail = special_ids.get("question", ([], []))
    pairs = []
    for start, mark, answer, end in turn_places(row, special_ids):
        question = ids[start:mark]
        while (place := find_ids(question, head)) is not None:
            question = question[place + len(head) :]
        pairs.append((question[: len(question) - len(tail)], ids[answer:end]))
    return pairs


def row_prompts(row, special_ids):
    """[(prompt ids, answer ids)] of each turn of a fine-tuning row. A prompt is all that stands before the answer."""
    ids = row.tolist()
    return [(ids[:answer], ids[answer:end]) for _, _, answer, end in turn_places(row, special_ids)]


def mark_ends(rows, special_ids):
    """bool (B, T): where the last id of an answer mark is in rows (B, T)."""
    mark = answer_mark(special_ids)
    found = rows == mark[-1]
    for back, token_id in enumerate(reversed(mark[:-1]), start=1):
        found[:, back:] &= rows[:, :-back] == token_id
        found[:, :back] = False
    return found


def loss_mask(rows, special_ids, stage, train_on_eot=True):
    """Which of the targets `rows[:, 1:]` have a loss: bool (B, T-1) for rows (B, T).

    Stage pretrain: all except PAD; EOT only with `train_on_eot`. Stage sft: each answer and its EOT, that is, the
    targets before which an answer mark stands, and no EOT behind that mark; never PAD.
    """
    y = rows[:, 1:]
    if stage == "pretrain":
        mask = y != special_ids["pad"]
        return mask if train_on_eot else mask & (y != special_ids["eot"])
    # At each place: where the last mark, and where the last EOT is, counted from 1; 0 where there is none.
    places = np.arange(1, rows.shape[1] + 1)
    last_mark, last_eot = (
        np.maximum.accumulate(np.where(found, places, 0), axis=1)
        for found in (mark_ends(rows, special_ids), rows == special_ids["eot"])
    )
    return (last_mark > last_eot)[:, :-1] & (y != special_ids["pad"])


def mask_tokens(rows, meta, draw=(0, 0)):
    """(x, y, loss_mask), each (B, T), of masked language modelling (Devlin et al. 2019) from rows (B, T).

    The share meta["mask_share"] of a row's tokens is to be found. In x, 80% of these are the mask, which is the answer
    mark's id (articles have none), 10% another token of the batch, and 10% themselves. y: the tokens. PAD is -1 in x.
    draw: two numbers; with each pair other tokens are chosen and masked, the same ones whatever rows are beside a row.
    """
    special_ids = meta["special_ids"]
    is_pad = rows == special_ids["pad"]
    is_text = ~is_pad & (rows != special_ids["eot"])
    generators = [np.random.default_rng([*draw, zlib.crc32(row[~pad])]) for row, pad in zip(rows, is_pad, strict=True)]
    # Three numbers a token, in the order of the tokens: those of a row do not depend on the width of its batch.
    drawn = np.stack([generator.random((rows.shape[1], 3)) for generator in generators])
    chosen = is_text & (drawn[..., 0] < meta["mask_share"])
    x = np.where(is_pad, -1, rows.astype(np.int64))
    x[chosen & (drawn[..., 1] < 0.8)] = special_ids["answer"]
    others = rows[is_text]
    replaced = chosen & (drawn[..., 1] >= 0.9)
    x[replaced] = others[(drawn[..., 2][replaced] * len(others)).astype(int)]
    return torch.from_numpy(x), torch.from_numpy(rows.astype(np.int64)), torch.from_numpy(chosen)


def input_width(tokens, block_size):
    """T of a batch, by the tokens of its longest row without PAD, and the width block_size of the rows."""
    return min(block_size - 1, -(-max(1, tokens - 1) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE)


def fit_buckets(lengths, n, block_size):
    """Up to n ascending widths, the buckets of rows of these token counts (rows,): those with the least padding in all.

    They are multiples of LENGTH_MULTIPLE, or block_size; the last one holds the longest row. By dynamic programming
    over the widths that occur.
    """
    widths, counts = np.unique(np.minimum(padded_widths(lengths), block_size), return_counts=True)
    widths, rows = widths.tolist(), [0, *np.cumsum(counts).tolist()]
    # best[i]: (padded tokens, buckets) of the rows of the first i widths.
    best = [(0, [])] + [(math.inf, [])] * len(widths)
    for _ in range(n):
        best = [
            min(best[i], *((best[j][0] + width * (rows[i] - rows[j]), [*best[j][1], width]) for j in range(i)))
            for i, width in enumerate(widths, start=1)
        ]
        best.insert(0, (0, []))
    return best[-1][1]


def padded_widths(lengths, buckets=None):
    """int64 (n,): widths that rows of these token counts (n,) are padded to: multiples of LENGTH_MULTIPLE, or the
    smallest bucket that holds a row."""
    lengths = np.maximum(1, np.asarray(lengths))
    if buckets:
        return np.asarray(buckets)[np.searchsorted(buckets, lengths)]
    return -(-lengths // LENGTH_MULTIPLE) * LENGTH_MULTIPLE


def fit_batch(batch, n_rows, width):
    """A batch (x, y, loss_mask), each (B, T), as one of the shape (n_rows, width), which holds all its tokens.

    Nothing that is added has a loss: columns of padding, -1 in x, and rows of the id 0. (A row of padding alone would
    leave a model that attends in both directions nothing to attend to.)
    """
    filled = []
    for tensor, padding in zip(batch, (-1, 0, False), strict=True):
        tensor = F.pad(tensor, (0, width - tensor.shape[1]), value=padding)  # below 0 it cuts off empty columns
        filled.append(F.pad(tensor, (0, 0, 0, n_rows - len(tensor))))
    return filled


def move_batch(batch, device):
    """The tensors of a batch on a device. Only CUDA copies from page-locked memory, in the order of its other work."""
    return [tensor.to(device, non_blocking=device.type == "cuda") for tensor in batch]


def make_batch(rows, meta, train_on_eot=True, draw=(0, 0)):
    """(x, y, loss_mask), each (B, T), from rows (B, block_size); x, y: int64, loss_mask: bool.

    Trailing columns of PAD are cut off. T is a multiple of LENGTH_MULTIPLE, or block_size - 1: this limits the number
    of shapes, since libraries prepare kernels for each new one. Rows of a task: see `make_task_batch`; of stage "mlm",
    and draw: `mask_tokens`.
    """
    rows = np.asarray(rows)
    if meta["stage"] == "task":
        return make_task_batch(rows, meta)
    used = np.flatnonzero((rows != meta["special_ids"]["pad"]).any(axis=0))
    tokens = 1 + used[-1] if used.size else 0
    rows = rows[:, : 1 + input_width(tokens, rows.shape[1])]
    if meta["stage"] == "mlm":
        return mask_tokens(rows, meta, draw)
    mask = loss_mask(rows, meta["special_ids"], meta["stage"], train_on_eot)
    ids = torch.from_numpy(rows.astype(np.int64))
    pad = meta["special_ids"]["pad"]
    if pad >= meta.get("tokenizer", {}).get("n_vocab", pad + 1):
        ids[ids == pad] = 0  # the model may have no such id; whatever stands there has no effect
    return ids[:, :-1], ids[:, 1:], torch.from_numpy(mask)


def make_task_batch(rows, meta):
    """As `make_batch`, from rows of a task (B, 2, block_size): x are the tokens, y the indices of their labels.

    y belongs to the token at the same place, not to the next one, so T may be block_size. loss_mask: where a label is;
    y is 0 elsewhere. PAD is -1 in x, since a model may attend in both directions.
    """
    tokens, pad = rows[:, 0].astype(np.int64), meta["special_ids"]["pad"]
    used = np.flatnonzero((tokens != pad).any(axis=0))
    width = input_width(used[-1] + 2, tokens.shape[1] + 1)
    tokens = torch.from_numpy(np.where(tokens == pad, -1, tokens)[:, :width])
    labels = torch.from_numpy(rows[:, 1, :width].astype(np.int64))
    return tokens, (labels - 1).clamp(min=0), labels > 0


def pad_ids(rows):
    """Lists of ids (none empty) as an int64 tensor (B, T), padded on the right with -1, which `GPT.hidden` takes as
    padding."""
    idx = torch.full((len(rows), max(map(len, rows))), -1)
    for row, ids in zip(idx, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return idx


def row_lengths(rows, pad_id):
    """Number of tokens of each row without PAD, (n,). Reads in chunks, so that the file need not fit in memory."""
    rows = rows[:, 0] if rows.ndim == 3 else rows  # of a task: its tokens
    return np.concatenate([(rows[i : i + 4096] != pad_id).sum(axis=1) for i in range(0, len(rows), 4096)])


def fill_batches(lengths, batch_size, batch_tokens=0, buckets=None):
    """Divide rows, in the given order, into batches: a list of slices over lengths (n,). The last may not be full.

    A batch has batch_size rows or, with batch_tokens > 0, as many rows as fit into batch_tokens with their PAD (at
    least one). Full batches of similar row lengths then have the same shape. buckets: as in `padded_widths`.
    """
    n = len(lengths)
    if not batch_tokens:
        return [slice(first, min(first + batch_size, n)) for first in range(0, n, batch_size)]
    widths = padded_widths(lengths, buckets)
    edges = [0]
    longest_first = bool((np.diff(widths) <= 0).all())
    widths = widths.tolist()

    # Fast case: the first row of a batch is its widest, so the sizes follow without looking at every row.
    if longest_first:
        while edges[-1] < n:
            edges.append(min(n, edges[-1] + max(1, batch_tokens // widths[edges[-1]])))
        return [slice(a, b) for a, b in itertools.pairwise(edges)]

    # General case: add rows until the next one would make the batch too large.
    widest = 0
    for row, width in enumerate(widths):
        widest = max(widest, width)
        if (row + 1 - edges[-1]) * widest > batch_tokens and row > edges[-1]:
            edges.append(row)
            widest = width
    return [slice(a, b) for a, b in itertools.pairwise([*edges, n])]


class BatchOrder:
    """The rows of each batch: a new permutation in each epoch ("random"), or the order of the file ("traverse").

    The position (epoch, batch) alone determines the rows, so a resumed run continues with the next ones.

    In random order, rows of similar length share a batch, which keeps padding low: the epoch's permutation is divided
    into windows of WINDOW_BATCHES batches, each window is sorted by length and divided into batches, and the batches
    of a window are shuffled. Windows are random sets of rows; batches are random among rows of similar length.
    """

    WINDOW_BATCHES = 32

    def __init__(self, lengths, sampling="random", seed=0, batch_size=1, batch_tokens=0, buckets=None):
        self.lengths = np.asarray(lengths)
        self.sampling = sampling
        self.seed = seed
        self.batch_size, self.batch_tokens, self.buckets = batch_size, batch_tokens, buckets
        self._cached = (-1, None)  # (epoch, its batches) of the last call

    def resize(self, batch_tokens):
        """Change the tokens of a batch."""
        self.batch_tokens, self._cached = batch_tokens, (-1, None)

    def batches(self, epoch):
        """The epoch's batches: a list of arrays of row indices."""
        if self.sampling == "traverse":
            epoch = 0
        cached = self._cached  # read once, since two threads call this
        if cached[0] != epoch:
            self._cached = cached = (epoch, self._draw(epoch))
        return cached[1]

    def _draw(self, epoch):
        n, rng = len(self.lengths), np.random.default_rng([self.seed, epoch])
        if self.sampling == "traverse":
            return self._fill(np.arange(n))
        order = rng.permutation(n)
        rows_a_batch = self.batch_tokens // max(1.0, self.lengths.mean()) if self.batch_tokens else self.batch_size
        size = max(1, int(self.WINDOW_BATCHES * rows_a_batch))

        # Sort keys for "longest first". In 16 bits numpy uses radix sort, which is faster.
        shorter = self.lengths.max() - self.lengths
        shorter = shorter.astype(np.uint16) if shorter.max() < 1 << 16 else shorter

        batches, rest = [], order[:0]
        for first in range(0, n, size):
            window = np.concatenate([rest, order[first : first + size]])
            full = self._fill(window[np.argsort(shorter[window], kind="stable")])
            # The rows of a window that fill no batch, its shortest, join the next window. So only the epoch's last
            # batch is not full.
            rest = full.pop() if first + size < n else order[:0]
            batches += [full[i] for i in rng.permutation(len(full))]
        return batches

    def _fill(self, rows):
        parts = fill_batches(self.lengths[rows], self.batch_size, self.batch_tokens, self.buckets)
        return [rows[part] for part in parts]

    def full_batch(self, width):
        """Number of rows of a full batch of a width."""
        return max(1, self.batch_tokens // width) if self.batch_tokens else self.batch_size

    def padding(self, epoch=0):
        """Share of padding, 0 to 1, among the tokens of an epoch's batches; with buckets, the filled rows count."""
        tokens = 0
        for rows in self.batches(epoch):
            width = int(padded_widths(self.lengths[rows], self.buckets).max())
            tokens += width * (self.full_batch(width) if self.buckets else len(rows))
        return 1 - int(self.lengths.sum()) / tokens

    def count(self, epochs):
        """Number of batches in `epochs` epochs, which may be a fraction."""
        complete = sum(len(self.batches(epoch)) for epoch in range(int(epochs)))
        fraction = epochs - int(epochs)
        return complete + (math.ceil(fraction * len(self.batches(int(epochs)))) if fraction else 0)

    def take(self, epoch, batch, count):
        """(the next `count` batches from the position (epoch, batch) on, the position after them)."""
        taken = []
        while len(taken) < count:
            of_epoch = self.batches(epoch)
            more = of_epoch[batch : batch + count - len(taken)]
            taken, batch = taken + more, batch + len(more)
            if batch >= len(of_epoch):
                epoch, batch = epoch + 1, 0
        return taken, (epoch, batch)


def masked_meta(meta, settings):
    """The content of meta.json with stage "mlm", for masked language modelling of a folder's articles.

    Raises UserError where the folder holds no articles, or where the tokenizer has no single id for the mask.
    """
    if meta["stage"] != "pretrain":
        raise UserError(f"objective mlm is for articles, but {settings.data_dir} holds {meta['stage']} rows")
    if isinstance(meta["special_ids"]["answer"], list):
        raise UserError(
            f"objective mlm writes the answer mark for masked tokens, and {meta['tokenizer']['name']} of "
            f"{settings.data_dir} has no single id for it; prepare with --tokenizer=gpt2, or with one of your own"
        )
    return {**meta, "stage": "mlm", "mask_share": settings.mask_share}


class ReplayRows:
    """Pretraining rows that are mixed into the steps of a fine-tuning, so that it forgets less of them (rehearsal:
    Robins 1995, "Catastrophic Forgetting, Rehearsal and Pseudorehearsal").

    They are `share` of all rows of a step, rounded, but at least one. Those of a step are drawn without replacement by
    the seed and the step's position (epoch, batch) alone, so that a resumed run has the same ones.
    """

    def __init__(self, settings, tuning_meta):
        """settings: of train.py; replay_dir is the folder. tuning_meta: content of the fine-tuning rows' meta.json.

        Raises UserError unless the folder's rows have the width and the tokenizer of the fine-tuning rows.
        """
        folder = settings.replay_dir
        if tuning_meta["stage"] != "sft":
            raise UserError(
                f"replay_share is for fine-tuning on questions, but {settings.data_dir} holds {tuning_meta['stage']} "
                "rows; leave it out here"
            )
        self.rows, self.meta = open_rows(folder, "train", settings.block_size)
        if self.meta["stage"] != "pretrain":
            raise UserError(f"replay_dir={folder} holds {self.meta['stage']} rows; name a folder of data/prepare.py")
        check_tokenizer(folder, self.meta, tuning_meta["tokenizer"], f"that of {settings.data_dir}")
        self.lengths = row_lengths(self.rows, self.meta["special_ids"]["pad"])
        self.folder, self.share, self.seed = folder, settings.replay_share, settings.seed

    def count(self, n_rows):
        """Number of pretraining rows of a step that has n_rows others."""
        return min(len(self.rows), max(1, round(n_rows * self.share / (1 - self.share))))

    def draw(self, position, n_rows):
        """Row indices of the step at a position, which has n_rows fine-tuning rows."""
        rng = np.random.default_rng([self.seed, *position])
        return rng.choice(len(self.rows), self.count(n_rows), replace=False)


@dataclass
class StepRows:
    """The data of one optimizer step: this process's batches, and totals over all processes."""

    batches: list  # of (x, y, loss_mask, …), as `TrainingData` makes them
    position: tuple  # (epoch, batch) after the step
    rows: int
    tokens: int  # without PAD
    squares: int  # sum of the rows' squared token counts, which the cost of attention is proportional to


class TrainingData:
    """The train and val parts of a data folder, and the batches of each step. The next step is prepared in a thread.

    rank, count: this process, and the number of processes that share a step. The rows of a step do not depend on them.
    pinned: put batches into page-locked memory, which a CUDA GPU copies from faster.
    buckets: for batches of few shapes, ascending widths, of which the last holds any row, or their number, to be fitted
    to the rows: a batch is padded to the smallest one that holds its rows, and to the rows of a full batch
    (`fit_batch`). Totals count real rows alone.

    A batch is (x, y, loss_mask), as from `make_batch`; pinned, or with buckets, (x, y, loss_mask, kept), where kept are
    the `kept_indices`.
    """

    def __init__(self, settings, rank=0, count=1, pinned=False, buckets=None):
        self.train, self.meta = open_rows(settings.data_dir, "train", settings.block_size)
        self.val, _ = open_rows(settings.data_dir, "val", settings.block_size)
        if settings.eval_iters:
            rows = settings.batch_tokens // settings.block_size or settings.batch_size
            n_rows = min(len(self.val), settings.eval_iters * rows)
            self.val = self.val[np.linspace(0, len(self.val) - 1, n_rows).astype(int)]  # spread over all sources
        if settings.objective == "mlm":
            self.meta = masked_meta(self.meta, settings)
        self.tokenizer = load_row_tokenizer(settings.data_dir, self.meta)
        self.lengths = row_lengths(self.train, self.meta["special_ids"]["pad"])
        self.replay = ReplayRows(settings, self.meta) if settings.replay_share else None
        if isinstance(buckets, int):
            buckets = fit_buckets(self.lengths, buckets, settings.block_size)
        self.order = BatchOrder(
            self.lengths, settings.sampling, settings.seed, settings.batch_size, settings.batch_tokens, buckets
        )
        self.prepare_steps(settings, rank, count, pinned, buckets)

    def prepare_steps(self, settings, rank, count, pinned, buckets=None):
        """Set what `step` needs beside the rows, their lengths and their order."""
        self.batches_a_step = settings.gradient_accumulation_steps
        self.train_on_eot, self.seed = settings.train_on_eot, settings.seed
        self.rank, self.count = rank, count
        self.pinned, self.buckets = pinned, buckets
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next = None  # (position, future) of the step that is being prepared

    @property
    def divides_batches(self):
        """Whether a process has some rows of each batch of a step, not whole batches."""
        return self.batches_a_step % self.count > 0

    @property
    def shapes(self):
        """{(B, T)} of this process's batches of rows in `train`; None without buckets."""
        return {self.shape(width) for width in self.buckets} if self.buckets else None

    def shape(self, width):
        """(B, T) of this process's batches of a bucket."""
        return -(-self.order.full_batch(width) // (self.count if self.divides_batches else 1)), width

    def resize_batches(self, settings):
        """Take batch_tokens and gradient_accumulation_steps from settings that have changed, before the first step."""
        self.order.resize(settings.batch_tokens)
        self.batches_a_step = settings.gradient_accumulation_steps

    def longest_input(self):
        """T of the batch that has the longest row, of training or validation."""
        stage, width = self.meta["stage"], self.meta["block_size"]
        tokens = int(max(self.lengths.max(), row_lengths(self.val, self.meta["special_ids"]["pad"]).max()))
        if self.replay:
            tokens = max(tokens, int(self.replay.lengths.max()))
        if stage == "task":  # its last token is an input, too
            return input_width(tokens + 1, width + 1)
        return input_width(tokens, width) + (stage == "mlm")

    def step(self, position):
        """`StepRows` of the step that begins at a position (epoch, batch)."""
        prepared = self._next and self._next[0] == position
        rows = self._next[1].result() if prepared else self._make(position)
        self._next = (rows.position, self._worker.submit(self._make, rows.position))
        return rows

    def typical_step(self, position):
        """`StepRows` whose sizes are those of a step at a position: for what is tried and timed before training."""
        return self.step(position)

    def _make(self, position):
        taken, after = self.order.take(*position, self.batches_a_step)
        lengths = self.lengths[np.concatenate(taken)].astype(np.int64)
        draw = self.seed, 1 + position[0]  # masks of validation have other numbers
        batches = [self._batch(self.train, self.meta, rows, draw, shape) for rows, shape in self._share(taken)]
        # Pretraining rows are longer, so they are a batch of their own: the loss is the mean over the targets of all.
        if self.replay:
            replayed = self.replay.draw(position, len(lengths))
            batches.append(self._batch(self.replay.rows, self.replay.meta, replayed[self.rank :: self.count], draw))
            lengths = np.concatenate([lengths, self.replay.lengths[replayed].astype(np.int64)])
        return StepRows(batches, after, len(lengths), int(lengths.sum()), int((lengths**2).sum()))

    def _share(self, taken):
        """[(rows, shape)]: this process's part of a step, which is whole batches where their number allows, else some
        rows of each batch. shape: of its bucket, None without buckets."""
        shapes = [None] * len(taken)
        if self.buckets:
            shapes = [self.shape(int(padded_widths(self.lengths[rows], self.buckets).max())) for rows in taken]
        if self.divides_batches:
            return [(rows[self.rank :: self.count], shape) for rows, shape in zip(taken, shapes, strict=True)]
        return list(zip(taken, shapes, strict=True))[self.rank :: self.count]

    def _batch(self, data, meta, rows, draw, shape=None):
        # A process without a row must still take part in the gradient exchange: it gets one row without a loss.
        x, y, mask, *more = self.rows_batch(data, meta, np.sort(rows) if len(rows) else np.array([0]), draw)
        if not len(rows):
            mask = torch.zeros_like(mask)
        if shape:
            x, y, mask = fit_batch((x, y, mask), *shape)
        if not more and (self.pinned or self.buckets):
            more = kept_indices(mask)[:1]
        batch = x, y, mask, *more
        return [t.contiguous().pin_memory() for t in batch] if self.pinned else batch

    def rows_batch(self, data, meta, rows, draw):
        """(x, y, loss_mask, …) of rows, by their indices in `data`; draw: as in `make_batch`."""
        return make_batch(data[rows], meta, self.train_on_eot, draw)
