"""Whether a model was trained on what it is measured on: looked at before its figures are believed.

What is measured is held against the training rows of the folder that the checkpoint was trained on, and of those that
the checkpoints it started from were trained on. What counts as leaked:
  articles           80% of a row's runs of 16 characters stand in training rows (or, of a shorter one, all of it)
  questions, in fine-tuning rows   the question with its answer is a training row; or its answer, of 16 characters or
                     more, is a training answer, whatever the question. Questions alone do not count: "X的首都是哪里？"
                     is asked of every X. Nor do short answers: 北京 is the answer to many questions
  questions, in articles   the question stands there word for word. Not its answer, which is there to be learnt from
Rows split by subject have none of these. Texts are compared as tokens of the table that the training rows were made
with, by 64-bit hashes.
"""

import itertools
import os
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from data_utils import load_row_tokenizer, open_rows, split_row
from minigpt.checkpoint import load_checkpoint
from minigpt.common.errors import UserError
from minigpt.tokenizer import Tokenizer, load_tokenizer

RUN_CHARS, QUESTION_CHARS, FEWEST_TOKENS = 16, 8, 4  # lengths of the runs that are looked for
LONG_ANSWER = 16  # characters from which a common answer is no coincidence
ROW_SHARE = 0.8  # of its runs, from which a row is leaked
LEAKED_SHARE, RUNS_SHARE = 0.02, 0.2  # leaked rows, or runs of all articles, from which the figures are not believed
STRETCH = 1 << 18  # tokens hashed at once, whose arrays stay in a processor's cache
MOST_RUNS = 1 << 18  # of more measured runs a sample is looked for: a half, a quarter, … of all there are, by hash
BASES = 8  # checkpoints followed from one that started from another
CLEAN, LEAKED, TRAINED_ON, NOT_CHECKED = "clean", "leaked", "trained on", "not checked"


@dataclass
class Leak:
    """What was found. checked: folders that were looked at; share: of the measured runs of characters that stand in
    their training rows, 0 to 1, None where nothing was looked at; leaked_rows: of how many measured rows or pairs the
    model was trained on; notes: what else is to be said. "trained on": a training part, measured on purpose."""

    checked: list = field(default_factory=list)
    share: float | None = None
    leaked_rows: int = 0
    rows: int = 0
    verdict: str = NOT_CHECKED
    notes: list = field(default_factory=list)

    def line(self):
        """One line to print."""
        if self.verdict == TRAINED_ON:
            return f"leak check: these rows were trained on (the train part of {', '.join(self.checked)})"
        said = self.verdict
        if self.checked:
            said += f": {self.leaked_rows} of {self.rows} measured rows were trained on; of their runs of {RUN_CHARS} "
            said += f"characters {self.share:.1%} stand in training rows ({', '.join(self.checked)})"
        if self.verdict == LEAKED:
            said = "WARNING: " + said + "; figures over these rows say little about new text"
        return "leak check: " + "; ".join([said, *self.notes])

    def to_dict(self):
        """Plain values for the JSON."""
        return {
            "checked": self.checked, "share": self.share, "leaked_rows": self.leaked_rows, "rows": self.rows,
            "verdict": self.verdict, "notes": self.notes,
        }  # fmt: skip


def leak_of(content, part_rows=None, meta=None, pairs=None, tokenizer=None, measured=None):
    """`Leak` of measured rows (n, block_size) with their meta, or of pairs [(prompt, reference)].

    content: the checkpoint's dict (its weights are not needed), or None for a model behind an API: "not checked".
    tokenizer: that of the rows; None: the checkpoint's. measured: (folder, part) that the rows or pairs are from, where
    it is known, so that a training part that is measured on purpose is said to be that, and is no alarm.
    """
    leak = Leak(rows=len(part_rows if part_rows is not None else pairs or ()))
    if content is None:
        leak.notes.append("what a model behind an API was trained on is not known")
        return leak
    texts = MeasuredTexts(content, part_rows, meta, pairs, tokenizer)
    hit = np.zeros(leak.rows, dtype=bool)
    folders, leak.notes = folders_of(content)
    for folder in folders:
        if measured and measured[1] == "train" and same_folder(folder, measured[0]):
            return Leak([str(folder)], 1.0, leak.rows, leak.rows, TRAINED_ON)
        try:
            train, train_meta = open_rows(folder, "train")
            found, share = look(texts, folder, train, train_meta)
        except UserError as error:
            leak.notes.append(f"not looked at: {error}")
            continue
        leak.checked.append(str(folder))
        leak.share = max(share, leak.share or 0.0)
        hit |= found
    leak.leaked_rows = int(hit.sum())
    if leak.checked:
        much = leak.leaked_rows >= max(1, LEAKED_SHARE * leak.rows)
        leak.verdict = LEAKED if much or (texts.stage == "pretrain" and leak.share >= RUNS_SHARE) else CLEAN
    return leak


def leak_of_part(content, folder, part):
    """`Leak` of all rows of a part of a data folder, whatever of them is measured. Raises UserError.

    Every evaluation of such rows asks this, so that all say the same of them.
    """
    rows, meta = open_rows(folder, part)
    return leak_of(content, rows, meta, measured=(folder, part))


def gravest(leaks):
    """Of some `Leak`s the one that says most against the figures."""
    order = LEAKED, TRAINED_ON, NOT_CHECKED, CLEAN
    return min(leaks, key=lambda leak: order.index(leak.verdict))


def same_folder(a, b):
    return os.path.realpath(a) == os.path.realpath(b)


def folders_of(content):
    """([folders that a checkpoint, and those it started from, were trained on], notes)."""
    folders, notes = [], []
    for _ in range(BASES):
        settings = content.get("settings") or {}
        folder, base = settings.get("data_dir"), settings.get("init_from", "scratch")
        if not folder:
            notes.append("the checkpoint does not say what it was trained on")
        elif not any(same_folder(folder, known) for known in folders):
            folders.append(folder)
        if base == "resume" and content["stage"] == "sft":
            notes.append("what the model was pretrained on is not known, since its run was resumed")
        if base in ("scratch", "resume"):
            break
        try:
            content = load_checkpoint(base)
        except UserError:
            notes.append(f"what {base}, from which it started, was trained on could not be looked at")
            break
    return folders, notes


class MeasuredTexts:
    """What is measured, as ids of any table. stage: "sft" where it is questions with answers, else "pretrain"."""

    def __init__(self, content, rows, meta, pairs, tokenizer):
        table = content["tokenizer"]
        self.tokenizer = tokenizer or (
            load_tokenizer() if table["table"] is None else Tokenizer(table["name"], table["table"])
        )
        self.pairs, self.rows, self.meta = pairs, rows, meta
        self.stage = content["stage"] if rows is None else meta["stage"]

    def ids(self, folder, meta):
        """[(question ids, answer ids)], or [(ids,)] of articles, in the table of a training folder."""
        table = (
            self.tokenizer if meta["tokenizer"]["sha256"] == self.tokenizer.sha256 else load_row_tokenizer(folder, meta)
        )
        if self.rows is None:
            texts = self.pairs if self.stage == "sft" else [("".join(pair),) for pair in self.pairs]
            return [tuple(table.encode(text.strip()) for text in pair) for pair in texts]
        special = self.meta["special_ids"]
        if self.stage == "sft":
            parts = [split_row(row, special) for row in self.rows]
        else:
            left_out = [special["eot"], special["pad"]]
            parts = [(row[~np.isin(row, left_out)].tolist(),) for row in self.rows]
        if table is not self.tokenizer:
            parts = [tuple(table.encode(self.tokenizer.decode(ids)) for ids in part) for part in parts]
        return parts


def look(texts, folder, train, meta):
    """(bool (rows,): which measured rows were trained on, share of all their runs that was)."""
    parts, special = texts.ids(folder, meta), meta["special_ids"]
    per_char = meta["parts"]["train"].get("tokens_per_character") or 1.0

    def tokens(chars):
        return max(FEWEST_TOKENS, round(chars * per_char))

    joined = [part[0] if len(part) == 1 else [*part[0], special["answer"], *part[1]] for part in parts]
    runs = TextRuns(joined, tokens(RUN_CHARS))
    if texts.stage == "pretrain":
        short = np.array([len(ids) < runs.n for ids in joined])
        wholes = Wholes(joined, special) if short.any() else None
        scan(train, special, [runs, wholes] if wholes else [runs])
        hit = runs.shares() >= ROW_SHARE
        return np.where(short, wholes.found(), hit) if wholes else hit, runs.share()
    if meta["stage"] == "sft":
        wholes = Wholes(joined, special)
        scan(train, special, [runs, wholes])
        long = [len(part[1]) >= tokens(LONG_ANSWER) for part in parts]
        return wholes.found() | (wholes.found(answers=True) & long), runs.share()
    # A sentence that is to be kept as it is may well be one of an article's.
    asked = [[] if question == answer else question for question, answer in parts]
    questions = TextRuns(asked, tokens(QUESTION_CHARS), whole=True)
    scan(train, special, [runs, questions])
    return questions.shares() == 1, runs.share()


def scan(train, special, looked_for):
    """Go through training rows (n, block_size) once, a stretch at a time, with everything that is looked for."""
    step = max(1, STRETCH // train.shape[1])
    with tqdm(total=len(train), unit="row", desc="leak check", leave=False, delay=2) as bar:
        for first in range(0, len(train), step):
            rows = np.asarray(train[first : first + step])
            for each in looked_for:
                each.meet(rows, special)
            bar.update(len(rows))


# Hashes: of ids x_0 … x_n-1 the sum of VALUES[x_j] * BASE**j, modulo 2**64. A run's is the difference of two such sums
# of its row, divided by the power of BASE at which it begins; BASE is odd, so it can be divided by.

VALUES = np.random.default_rng(20260101).integers(0, 2**64 - 1, size=2**16, dtype=np.uint64, endpoint=True)
BASE = 0x9E3779B97F4A7C15
POWERS = {}


def powers(n, inverse=False):
    """(n,) BASE**j, or BASE**-j."""
    kept = POWERS.get(inverse)
    if kept is None or len(kept) < n:
        kept = np.full(max(n, STRETCH) + 1, pow(BASE, -1, 2**64) if inverse else BASE, dtype=np.uint64)
        kept[0] = 1
        POWERS[inverse] = kept = np.cumprod(kept)
    return kept[:n]


def run_hashes(ids, n):
    """(len(ids) - n + 1,) hashes of all runs of n ids of a flat array."""
    if len(ids) < n:
        return np.empty(0, dtype=np.uint64)
    sums = np.zeros(len(ids) + 1, dtype=np.uint64)
    np.cumsum(VALUES.take(ids) * powers(len(ids)), out=sums[1:])
    return (sums[n:] - sums[:-n]) * powers(len(ids) - n + 1, inverse=True)


def row_hashes(rows, special):
    """(hashes of whole rows, hashes of their answers), each (len(rows),): EOT and PAD do not count."""
    width = rows.shape[1]
    sums = np.zeros((len(rows), width + 1), dtype=np.uint64)
    np.cumsum(VALUES[rows] * powers(width), axis=1, out=sums[:, 1:])
    at = np.arange(len(rows))
    marks = (rows == special["answer"]).argmax(axis=1)  # 0 where there is none
    ends = (rows == special["eot"]) & (np.arange(width) >= marks[:, None])
    ends = np.where(ends.any(axis=1), ends.argmax(axis=1), width)
    whole, begin = sums[at, ends], marks + 1
    return whole, (whole - sums[at, begin]) * powers(width + 1, inverse=True)[begin]


class Known:
    """A set of hashes, and which of them have been met."""

    def __init__(self, hashes):
        self.hashes, self.places = np.unique(hashes, return_inverse=True)
        self.seen = np.zeros(len(self.hashes), dtype=bool)
        # A table of the first bits, by which most of what is not among them is known to be so at one look.
        self.shift = np.uint64(64 - min(26, max(12, len(self.hashes).bit_length() + 4)))
        self.table = np.zeros(2 ** (64 - int(self.shift)), dtype=bool)
        self.table[self.hashes >> self.shift] = True

    def meet(self, hashes):
        """Note which of the set are among the hashes (n,)."""
        if not len(self.hashes):
            return
        likely = hashes[self.table.take((hashes >> self.shift).view(np.int64))]
        at = np.searchsorted(self.hashes, likely).clip(max=len(self.hashes) - 1)
        self.seen[at[self.hashes[at] == likely]] = True

    def met(self):
        """bool, in the order in which the hashes were given."""
        return self.seen[self.places.reshape(-1)]


class TextRuns:
    """The runs of n ids of some texts (lists of ids), and which of them training rows have. whole: take no sample."""

    def __init__(self, texts, n, whole=False):
        self.n, self.texts, self.sample = n, len(texts), np.uint64(0)
        lengths = np.array([len(ids) for ids in texts])
        owners = np.repeat(np.arange(len(texts)), lengths)
        hashes = run_hashes(np.array(list(itertools.chain(*texts)), dtype=np.uint16), n)
        owners, ends = owners[: len(hashes)], owners[n - 1 :]
        while not whole and (len(hashes) >> int(self.sample).bit_length()) > MOST_RUNS:
            self.sample = self.sample * 2 + 1
        kept = (owners == ends) & (hashes & self.sample == 0)  # a run that ends in another text is none
        self.owners, self.known = owners[kept], Known(hashes[kept])

    def meet(self, rows, special):
        hashes = run_hashes(rows[rows != special["pad"]], self.n)
        self.known.meet(hashes[hashes & self.sample == 0] if self.sample else hashes)

    def shares(self):
        """(texts,) share of each text's runs that was met; 0 of one that has none."""
        met = np.bincount(self.owners, weights=self.known.met(), minlength=self.texts)
        return met / np.maximum(1, np.bincount(self.owners, minlength=self.texts))

    def share(self):
        """Share of the runs of all texts."""
        return float(self.known.met().mean()) if len(self.owners) else 0.0


class Wholes:
    """Whole texts (lists of ids), and of questions the answers as well."""

    def __init__(self, texts, special):
        rows = np.full((len(texts), max(map(len, texts), default=0) + 1), special["eot"], dtype=np.uint16)
        for row, ids in zip(rows, texts, strict=True):
            row[: len(ids)] = ids
        self.known = [Known(hashes) for hashes in row_hashes(rows, special)]

    def meet(self, rows, special):
        for known, hashes in zip(self.known, row_hashes(rows, special), strict=True):
            known.meet(hashes)

    def found(self, answers=False):
        """(texts,) bool: which of the texts, or of the answers, are a training row's."""
        return self.known[answers].met()
