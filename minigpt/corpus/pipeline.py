"""Blocks of articles to token ids, in this process or in several, and the blocks in their order from a pool.

A worker sees only its block. What depends on other blocks (duplicates, the order of rows) is done by the caller.
"""

import gc
import hashlib
import os
import signal
import threading
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import compress
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np

from minigpt.common.errors import UserError
from minigpt.corpus.cleaning import Cleaner
from minigpt.corpus.cutting import TextCuts, cut_all, last_sentence_end
from minigpt.corpus.dedup import minhash_signatures
from minigpt.corpus.readers.rows import parse_block, record_unit
from minigpt.corpus.records import article_of
from minigpt.corpus.report import CorpusStatistics
from minigpt.corpus.splits import pretrain_part, read_heldout
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
    in_train: np.ndarray  # (n,) bool
    repeats: np.ndarray  # (n,) how often each is used in training
    cuts: TextCuts  # their rows
    signatures: np.ndarray  # (n, …), by `minhash_signatures`; None without the cleaning step `near`
    bands: np.ndarray
    heldout: set  # held-out subjects of the articles
    steps: dict  # {"changed": Counter, "dropped": Counter} of the cleaning steps
    statistics: CorpusStatistics  # for the report; None without it


class BlockPreparer:
    """Cleans, cuts and encodes blocks. weights: {path: how often its articles are used}."""

    def __init__(self, settings, weights):
        self.settings = settings
        self.weights = weights
        self.tokenizer = load_tokenizer(settings.tokenizer)
        self.cleaner = Cleaner(settings)
        self.heldout = {self.cleaner.text(subject) for subject in read_heldout(settings.heldout)}
        self.last_subject, self.last_part = None, None  # consecutive articles often have the same subject

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
        cuts = cut_all([text for _, _, text in kept], self.tokenizer, settings.block_size - 1, settings.overflow)
        fits = cuts.rows > 0
        for number, article, text in compress(kept, ~fits):
            drop(number, article, SENTENCE_TOO_LONG if last_sentence_end(text) else NO_SENTENCE_END)
        kept = list(compress(kept, fits))
        if statistics:
            for _, article, text in kept:
                statistics.keep(article, text)
        texts, heldout = [text for _, _, text in kept], set()
        in_train = np.array([self._is_in_train(article.subject, heldout) for _, article, _ in kept], dtype=bool)
        digests = b"".join([hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts])
        keys = np.frombuffer(digests, dtype="<u8")
        has_near = "near" in self.cleaner.steps
        signatures, bands = minhash_signatures(texts, settings.near_share) if has_near else (None, None)
        return PreparedBlock(
            path=block.path,
            n_bytes=block.n_bytes,
            articles=n_articles,
            dropped=dropped,
            numbers=[number for number, _, _ in kept],
            texts=texts if statistics else [],
            keys=keys,
            in_train=in_train,
            repeats=count_repeats(keys, self.weights.get(block.path, 1.0)),
            cuts=replace(cuts, rows=cuts.rows[fits], lost=cuts.lost[fits]),
            signatures=signatures,
            bands=bands,
            heldout=heldout,
            steps={"changed": self.cleaner.changed, "dropped": self.cleaner.dropped},
            statistics=statistics,
        )

    def _is_in_train(self, subject, heldout):
        """Whether a subject's articles are trained on; a held-out one is added to `heldout`."""
        if subject != self.last_subject:
            cleaned = self.cleaner.text(subject)
            heldout.update({cleaned} & self.heldout)
            self.last_subject = subject
            self.last_part = pretrain_part(cleaned, self.settings.val_share, self.heldout)
        return self.last_part == "train"


def count_repeats(keys, weight):
    """(n,) how often articles of a weight are used; a fraction of the weight is decided by their keys (n,)."""
    return int(weight) + (keys / 2**64 < weight - int(weight))


# Several processes

WORKER = None  # the BlockPreparer of a worker process


def start_worker(settings, weights):
    """Initializes a worker process."""
    global WORKER
    for name in (signal.SIGINT, signal.SIGTERM):  # the first process answers them
        signal.signal(name, signal.SIG_IGN)
    threading.Thread(target=exit_with_parent, daemon=True).start()
    gc.disable()  # rows make no reference cycles, and looking for some takes a tenth of the time
    WORKER = BlockPreparer(settings, weights)


def exit_with_parent():
    """Ends this process as soon as its parent has ended."""
    parent_process().join()
    os._exit(1)


def prepare_in_worker(block):
    """The `PreparedBlock` of a `FileBlock`, made by this worker process."""
    return WORKER.prepare(block)


def prepare_blocks(blocks, settings, weights, workers):
    """Yields the `PreparedBlock` of each block, in order, made by so many processes (1: by this one)."""
    gc.disable()  # as in the workers
    try:
        if workers <= 1:
            yield from map(BlockPreparer(settings, weights).prepare, blocks)
        else:
            yield from prepare_in_pool(blocks, settings, weights, workers)
    finally:
        gc.enable()


def prepare_in_pool(blocks, settings, weights, workers):
    """As `prepare_blocks`, by a pool of processes."""
    workers = min(workers, MAX_WORKERS)
    pool = ProcessPoolExecutor(workers, get_context("spawn"), start_worker, (settings, weights))
    try:
        queued = deque()
        for block in blocks:
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
