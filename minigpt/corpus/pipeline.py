"""Blocks of articles to token ids, in this process or in several, and the blocks in their order from a pool.

A worker sees only its block. What depends on other blocks (duplicates, the order of rows) is done by the caller.
"""

import gc
import hashlib
import math
import os
import signal
import threading
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import compress
from multiprocessing import get_context, parent_process, resource_tracker
from pathlib import Path

import numpy as np

from minigpt.common.errors import UserError
from minigpt.corpus.cleaning import Cleaner
from minigpt.corpus.cutting import TextCuts, cut_all, end_of_text
from minigpt.corpus.readers.rows import parse_block, record_unit
from minigpt.corpus.records import Problems, article_of
from minigpt.corpus.report import CorpusStatistics
from minigpt.corpus.sources import FEWEST_DOCUMENTS, cleaned_articles
from minigpt.corpus.splits import hash_share, pretrain_part, read_heldout
from minigpt.tokenizer import load_tokenizer

NO_SENTENCE_END = "no sentence end"
SENTENCE_TOO_LONG = "first sentence longer than the block"
MAX_WORKERS = 61  # processes that Windows can wait for
QUEUED_BLOCKS_PER_WORKER = 4


# Mixing


def input_of(path, inputs):
    """The entry of `inputs` (folders or files) that a file comes from: the longest that contains it."""
    containing = [i for i in inputs if Path(path).is_relative_to(Path(i).as_posix())]
    return max(containing, key=len)


def weights_by_file(settings, files):
    """{path: how often its articles are used} by settings.weights, one for each of settings.input_dir; {} for none.

    Raises UserError for a wrong number of weights.
    """
    given = settings.weights
    if not given:
        return {}
    if len(given) != len(settings.input_dir):
        raise UserError(
            f"{len(given)} weights for {len(settings.input_dir)} input_dir: give one for each, in their order"
        )
    by_input = dict(zip(settings.input_dir, given, strict=True))
    return {path: by_input[input_of(path, settings.input_dir)] for path in map(os.fspath, files)}


# What the whole corpus decides


@dataclass(frozen=True)
class CorpusPlan:
    """What the whole corpus decides for each of its texts."""

    weights: dict  # {path: how often its articles are used}, by `weights_by_file`
    is_small: bool = False  # fewer than FEWEST_DOCUMENTS: validation rows are taken from each document's end
    short_share: float = 0.0  # in a small corpus: the `val_share` of documents of one row, which have no end to take


def plan_corpus(settings, files):
    """The `CorpusPlan` of a corpus. Reads it only until it has FEWEST_DOCUMENTS documents.

    They are counted after cleaning, equal ones once. What cutting drops, and near duplicates, are counted too.
    """
    weights, texts = weights_by_file(settings, files), set()
    for _, _, text in cleaned_articles(settings, files, Cleaner(settings), Problems()):
        texts.add(hash_share(text))
        if len(texts) == FEWEST_DOCUMENTS:
            return CorpusPlan(weights)
    shares = subject_shares(settings, files)
    # A little above the lowest share, so that at least one of several documents of one row is for validation.
    lowest = math.nextafter(min(shares), 1) if len(shares) > 1 and settings.val_share else 0.0
    return CorpusPlan(weights, True, max(lowest, settings.val_share))


def subject_shares(settings, files):
    """The hash shares of all subjects that may be in either part, by which `pretrain_part` chooses."""
    cleaner = Cleaner(settings)
    heldout = {cleaner.text(subject) for subject in read_heldout(settings.heldout)}
    articles = cleaned_articles(settings, files, cleaner, Problems())
    return {hash_share(subject) for subject in {cleaner.text(a.subject) for _, a, _ in articles} - heldout}


def overflow_of(article, settings, plan):
    """How an `Article` is cut into rows, as `cut_text` takes it."""
    if article.is_plain:
        return "truncate" if settings.overflow == "truncate" else "whole"
    is_split = settings.overflow == "split" or (settings.overflow == "auto" and plan.is_small)
    return "split" if is_split else "truncate"


# A block


@dataclass
class PreparedBlock:
    """What a block became. n articles were kept."""

    path: str
    n_bytes: int  # of the file
    articles: int  # all that were read
    dropped: list  # [(number, reason)]
    numbers: list  # (n,) their lines or rows in the file
    texts: list  # (n,) the cleaned texts; [] without a report
    keys: np.ndarray  # (n,) uint64, hashes of their texts
    lengths: np.ndarray  # (n,) characters of their texts
    repeats: np.ndarray  # (n,) how often each is used in training
    cuts: TextCuts  # their rows, R in all
    in_val: np.ndarray  # (R,) bool
    unused_characters: int  # of the articles of which nothing fits into a row
    signatures: np.ndarray  # (n, …), by `minhash_signatures`; None without the cleaning step `near`
    heldout: set  # held-out subjects of the articles
    steps: dict  # {"changed": Counter, "dropped": Counter} of the cleaning steps
    statistics: CorpusStatistics  # for the report; None without it


class BlockPreparer:
    """Cleans, cuts and encodes blocks, by the `CorpusPlan` of their corpus."""

    def __init__(self, settings, plan):
        self.settings = settings
        self.plan = plan
        self.tokenizer = load_tokenizer(settings.tokenizer)
        self.cleaner = Cleaner(settings)
        self.heldout = {self.cleaner.text(subject) for subject in read_heldout(settings.heldout)}
        # Consecutive articles often have the same subject.
        self.last_subject, self.last_part, self.last_is_heldout = None, None, False

    def prepare(self, block):
        """The `PreparedBlock` of a `FileBlock`."""
        settings = self.settings
        self.cleaner.changed, self.cleaner.dropped = Counter(), Counter()
        statistics = CorpusStatistics() if settings.report else None
        n_articles, dropped, kept = 0, [], []

        def drop(number, article, reason):
            dropped.append((number, reason))
            if statistics:
                statistics.drop(article, reason, f"{block.path}, {record_unit(block.path)} {number}")

        # Parse and clean.
        for number, row, reason in parse_block(block):
            article, reason = (None, reason) if reason else article_of(row, block.path, settings.text_field)
            if not reason:
                n_articles += 1
                text, reason = self.cleaner.clean(article)
            if reason:
                drop(number, article, reason)
            else:
                kept.append((number, article, text))
        # Cut and encode all texts together, which is faster; drop those of which nothing fits into a row.
        overflows = [overflow_of(article, settings, self.plan) for _, article, _ in kept]
        prefix = getattr(self.tokenizer, "prefix_ids", [])  # BOS, where texts of a tokenizer of others begin with it
        limit = settings.block_size - 1 - len(prefix)
        cuts = add_prefix(cut_all([text for _, _, text in kept], self.tokenizer, limit, overflows), prefix)
        fits = cuts.rows > 0
        for number, article, text in compress(kept, ~fits):
            drop(number, article, SENTENCE_TOO_LONG if end_of_text(text, "truncate") else NO_SENTENCE_END)
        unused_characters = sum(len(text) for _, _, text in compress(kept, ~fits))
        kept = list(compress(kept, fits))
        cuts = replace(cuts, rows=cuts.rows[fits], lost=cuts.lost[fits])
        if statistics:
            for _, article, text in kept:
                statistics.keep(article, text)
        texts, heldout = [text for _, _, text in kept], set()
        in_val = [self._rows_in_val(article, n, heldout) for (_, article, _), n in zip(kept, cuts.rows, strict=True)]
        digests = b"".join([hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts])
        keys = np.frombuffer(digests, dtype="<u8")
        return PreparedBlock(
            path=block.path,
            n_bytes=block.n_bytes,
            articles=n_articles,
            dropped=dropped,
            numbers=[number for number, _, _ in kept],
            texts=texts if statistics else [],
            keys=keys,
            lengths=np.array(list(map(len, texts)), dtype=np.int64),
            repeats=count_repeats(keys, self.plan.weights.get(block.path, 1.0)),
            cuts=cuts,
            in_val=mark_last_rows(cuts.rows, in_val),
            unused_characters=unused_characters,
            signatures=self._sign(texts) if "near" in self.cleaner.steps else None,
            heldout=heldout,
            steps={"changed": self.cleaner.changed, "dropped": self.cleaner.dropped},
            statistics=statistics,
        )

    def _sign(self, texts):
        from minigpt.corpus.near_duplicates import minhash_signatures  # numba is loaded only where the step is on

        return minhash_signatures(texts)

    def _rows_in_val(self, article, n_rows, heldout):
        """How many of the last of an article's rows are for validation; a held-out subject is added to `heldout`."""
        plan, val_share = self.plan, self.settings.val_share
        if article.subject != self.last_subject:
            cleaned = self.cleaner.text(article.subject)
            heldout.update({cleaned} & self.heldout)
            self.last_subject = article.subject
            share = plan.short_share if plan.is_small else val_share
            self.last_part = pretrain_part(cleaned, share, self.heldout)
            self.last_is_heldout = cleaned in self.heldout
        if plan.is_small and n_rows > 1:
            return 0 if self.last_is_heldout or not val_share else min(n_rows - 1, max(1, round(n_rows * val_share)))
        return n_rows if self.last_part == "val" else 0


def add_prefix(cuts, prefix):
    """`TextCuts` whose rows begin with the ids of `prefix`, a list."""
    if not prefix:
        return cuts
    starts = np.cumsum(cuts.lengths) - cuts.lengths
    ids = np.insert(cuts.ids, np.repeat(starts, len(prefix)), np.tile(prefix, len(starts)))
    return replace(cuts, ids=ids, lengths=cuts.lengths + len(prefix))


def mark_last_rows(rows, n_last):
    """(sum of rows,) of bool: which are the last n_last (n,) of the rows (n,) of each text."""
    places = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)  # of each row in its text
    return places >= np.repeat(rows - np.array(n_last, dtype=np.int64), rows)


def count_repeats(keys, weight):
    """(n,) how often articles of a weight are used; a fraction of the weight is decided by their keys (n,)."""
    return int(weight) + (keys / 2**64 < weight - int(weight))


# Several processes

WORKER = None  # the BlockPreparer of a worker process


def start_worker(settings, plan):
    """Initializes a worker process.

    It ignores Ctrl-C, which the first process answers, but not SIGTERM: the pool ends its other workers by that when
    one has died, and waits for them.
    """
    global WORKER
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=exit_with_parent, daemon=True).start()
    gc.disable()  # rows make no reference cycles, and looking for some takes a tenth of the time
    WORKER = BlockPreparer(settings, plan)


@contextmanager
def sigint_deferred():
    """Ctrl-C waits meanwhile. Processes that are started meanwhile inherit that: one that Ctrl-C ended while it started
    would break the pool. (On Windows it still may.)"""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # where it starts later, it ends the deferral
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def exit_with_parent():
    """Ends this process as soon as its parent has ended."""
    parent_process().join()
    os._exit(1)


def prepare_in_worker(block):
    """The `PreparedBlock` of a `FileBlock`, made by this worker process."""
    return WORKER.prepare(block)


def prepare_blocks(blocks, settings, plan, workers):
    """Yields the `PreparedBlock` of each block, in order, made by so many processes (1: by this one)."""
    gc.disable()  # as in the workers
    try:
        if workers <= 1:
            yield from map(BlockPreparer(settings, plan).prepare, blocks)
        else:
            yield from prepare_in_pool(blocks, settings, plan, workers)
    finally:
        gc.enable()


def prepare_in_pool(blocks, settings, plan, workers):
    """As `prepare_blocks`, by a pool of processes."""
    workers = min(workers, MAX_WORKERS)
    pool = ProcessPoolExecutor(workers, get_context("spawn"), start_worker, (settings, plan))
    try:
        queued = deque()
        for block in blocks:
            with sigint_deferred():  # the first calls start the processes
                queued.append(pool.submit(prepare_in_worker, block))
            if len(queued) > QUEUED_BLOCKS_PER_WORKER * workers:
                yield queued.popleft().result()
        while queued:
            yield queued.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process ended unexpectedly: most likely memory ran out; give fewer --workers, and the same "
            "command resumes"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
