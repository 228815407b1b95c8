"""Blocks of articles to token ids, in this process or several: what a worker does, and blocks in order from a pool.

A worker knows its block alone. What depends on the other blocks (duplicates, the order of rows) is the caller's.
"""

import gc
import hashlib
import os
import signal
import threading
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import compress
from multiprocessing import get_context, parent_process

import numpy as np

from minigpt.common.errors import UserError
from minigpt.corpus.cleaning import Cleaner
from minigpt.corpus.cutting import cut_all, last_sentence_end
from minigpt.corpus.near import signatures
from minigpt.corpus.parsing import rows_of
from minigpt.corpus.readers import unit_of
from minigpt.corpus.records import article_of, pretrain_part, read_heldout
from minigpt.corpus.statistics import Statistics
from minigpt.tokenizer import load_tokenizer

NO_END, TOO_LONG = "no sentence end", "first sentence longer than the block"
MOST_WORKERS = 61  # that Windows can wait for
WAITING = 4  # blocks under way for each worker


def none(dtype=np.int64):
    """A field that is an empty array."""
    return field(default_factory=lambda: np.zeros(0, dtype=dtype))


@dataclass
class Prepared:
    """What a block became. Of n articles kept, in all of R rows:"""

    path: str
    read: int  # bytes of the file
    articles: int = 0  # all that were read
    dropped: list = field(default_factory=list)  # [(number, reason)]
    numbers: list = field(default_factory=list)  # (n,) their places in the file
    keys: np.ndarray = none(dtype=np.uint64)  # (n,) hashes of their texts
    in_train: np.ndarray = none(dtype=bool)  # (n,)
    takes: np.ndarray = none()  # (n,) how often each is taken in training
    rows: np.ndarray = none()  # (n,) rows of each
    lost: np.ndarray = none()  # (n,) characters that were cut off
    ids: np.ndarray = none(dtype=np.uint16)  # of all rows, one behind the other
    lengths: np.ndarray = none()  # (R,) ids of each row
    characters: np.ndarray = none()  # (R,)
    signatures: np.ndarray = None  # (n, …) as `near.signatures` gives them
    bands: np.ndarray = None
    heldout: set = field(default_factory=set)  # subjects of them that are held out
    steps: dict = field(default_factory=dict)  # {"changed": Counter, "dropped": Counter} of the cleaning steps
    statistics: Statistics = None  # for the report
    texts: list = field(default_factory=list)  # (n,) the cleaned texts, for the report


class Preparer:
    """Cleans, cuts and encodes blocks. weights: {path: how often its articles are taken}."""

    def __init__(self, settings, weights):
        self.settings, self.weights = settings, weights
        self.tokenizer = load_tokenizer(settings.tokenizer)
        self.cleaner = Cleaner(settings)
        self.heldout = {self.cleaner.text(subject) for subject in read_heldout(settings.heldout)}
        self.near = "near" in self.cleaner.steps
        self._part = (None, None)  # the subject that came last, which often comes again, and whether it is trained on

    def prepare(self, block):
        """The `Prepared` of a `readers.FileBlock`."""
        done = Prepared(block.path, block.read)
        self.cleaner.changed, self.cleaner.dropped = Counter(), Counter()
        if self.settings.report:
            done.statistics = Statistics()
        good, texts = [], []
        for number, row, reason in rows_of(block):
            article, reason = (None, reason) if reason else article_of(row, block.path, self.settings.text_field)
            text = ""
            if not reason:
                done.articles += 1
                text, reason = self.cleaner.clean(article)
            if reason:
                self._drop(done, number, article, reason)
            else:
                good.append((number, article))
                texts.append(text)
        cuts = cut_all(texts, self.tokenizer, self.settings.block_size - 1, self.settings.overflow)
        for i in np.flatnonzero(cuts.rows == 0).tolist():
            self._drop(done, *good[i], TOO_LONG if last_sentence_end(texts[i]) else NO_END)
        kept = cuts.rows > 0
        if not kept.all():
            good, texts = (list(compress(items, kept)) for items in (good, texts))
        self._gather(done, good, texts, cuts, kept)
        done.steps = {"changed": self.cleaner.changed, "dropped": self.cleaner.dropped}
        return done

    def _drop(self, done, number, article, reason):
        done.dropped.append((number, reason))
        if done.statistics:
            done.statistics.drop(article, reason, f"{done.path}, {unit_of(done.path)} {number}")

    def _gather(self, done, good, texts, cuts, kept):
        """Put what is kept into `done`: good [(number, article)] and texts are of the kept alone, cuts of all."""
        if not good:
            return
        numbers, articles = zip(*good, strict=True)
        digests = b"".join([hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts])
        done.numbers = list(numbers)
        done.keys = np.frombuffer(digests, dtype="<u8")
        done.in_train = np.array([self._in_train(article, done) for article in articles], dtype=bool)
        done.takes = self._takes(done)
        done.rows, done.lost = cuts.rows[kept], cuts.lost[kept]
        done.ids, done.lengths, done.characters = cuts.ids, cuts.lengths, cuts.characters
        if self.near:
            done.signatures, done.bands = signatures(texts, self.settings.near_share)
        if done.statistics:
            done.texts = texts
            for article, text in zip(articles, texts, strict=True):
                done.statistics.keep(article, text)

    def _in_train(self, article, done):
        subject = article.subject
        if subject != self._part[0]:
            plain = self.cleaner.text(subject)
            if plain in self.heldout:
                done.heldout.add(plain)
            self._part = subject, pretrain_part(plain, self.settings.val_share, self.heldout) == "train"
        return self._part[1]

    def _takes(self, done):
        """(n,) how often each article is taken: its weight, a fraction of it by the text's hash."""
        weight = self.weights.get(done.path, 1.0)
        whole = int(weight)
        if weight == whole:
            return np.full(len(done.keys), whole)
        shares = done.keys / 2**64
        return whole + (shares < weight - whole)


# Several processes

WORKER = None  # the Preparer of a worker process


def start_worker(settings, weights):
    global WORKER
    for name in (signal.SIGINT, signal.SIGTERM):  # these are the first process's to answer
        signal.signal(name, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    gc.disable()  # rows make no cycles, and looking for some takes a tenth of the time
    WORKER = Preparer(settings, weights)


def end_with_parent():
    parent_process().join()
    os._exit(1)


def prepare_in_worker(block):
    return WORKER.prepare(block)


def prepared_blocks(blocks, settings, weights, workers):
    """Yields the `Prepared` of each block, in order, made by so many processes (1: by this one)."""
    gc.disable()  # as in the workers
    try:
        if workers <= 1:
            yield from map(Preparer(settings, weights).prepare, blocks)
        else:
            yield from pooled_blocks(blocks, settings, weights, workers)
    finally:
        gc.enable()


def pooled_blocks(blocks, settings, weights, workers):
    """`prepared_blocks` by several processes."""
    workers = min(workers, MOST_WORKERS)
    pool = ProcessPoolExecutor(workers, get_context("spawn"), start_worker, (settings, weights))
    try:
        waiting = deque()
        for block in blocks:
            waiting.append(pool.submit(prepare_in_worker, block))
            if len(waiting) > WAITING * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process ended at once: most likely memory ran out; give fewer --workers, the same command goes on"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
