"""Near duplicates: MinHash signatures (Broder 1997) whose bands (LSH) name the articles that are compared.

Two articles are compared by their shingles: the runs of three characters in each. The share of common ones among all of
both (Jaccard) is estimated by the share of equal values in their signatures.
"""

import math
import os
from pathlib import Path

import numpy as np
from numba import njit

from minigpt.corpus.dedup import EntryLog

VALUES = 128  # of a signature
SHINGLE_CHARS = 3  # characters that are compared together
BAND_RECALL = 0.98  # share of the pairs at the threshold that have a band in common
MAX_CANDIDATES = 50  # articles with the same band that are compared
MIN_TABLE_ROWS = 1 << 16
# A value is the lowest of FACTORS * hash + SUMMANDS over all shingles, of which 16 bits are kept: two that differ have
# the same ones with a probability of 1 in 65,536.
FACTORS, SUMMANDS = np.random.default_rng(0).integers(0, 1 << 32, size=(2, VALUES), dtype=np.uint32)
FACTORS |= 1


def values_per_band(threshold):
    """Values of a signature in a band: as many as still give BAND_RECALL for pairs at the threshold."""

    def recall(n_values):
        return 1 - (1 - threshold**n_values) ** (VALUES // n_values)

    return max(n for n in range(1, 17) if n == 1 or recall(n) >= BAND_RECALL)


def minhash_signatures(texts):
    """(n, VALUES) of uint16: the signatures of n texts."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.int32)
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    return sign_texts(codes, ends, FACTORS, SUMMANDS)


@njit(cache=True)
def mix_bits(number):
    """64 bits of which each depends on all of a number's (the end of SplitMix64, Steele et al. 2014)."""
    number = (number ^ number >> 30) * -0x40A7B892E31B1A47
    number = (number ^ number >> 27) * -0x6B2FB644ECCEEE15
    return number ^ number >> 31


@njit(cache=True)
def sign_texts(codes, ends, factors, summands):
    """As `minhash_signatures`, of texts that are given as the characters of all and where each ends."""
    signatures = np.empty((len(ends), VALUES), dtype=np.uint16)
    lowest = np.empty(VALUES, dtype=np.uint32)
    start = 0
    for text, end in enumerate(ends):
        lowest[:] = 0xFFFFFFFF
        for first in range(start, max(start + 1, end - SHINGLE_CHARS + 1)):  # a shorter text is one shingle
            shingle = 0
            for i in range(first, min(first + SHINGLE_CHARS, end)):
                shingle = shingle << 21 | codes[i]
            mixed = np.uint32(mix_bits(shingle))
            for i in range(VALUES):
                lowest[i] = min(lowest[i], np.uint32(factors[i] * mixed + summands[i]))
        for i in range(VALUES):
            signatures[text, i] = lowest[i] & 0xFFFF
        start = end
    return signatures


class NearDuplicates(EntryLog):
    """The signatures of the articles so far, in a file, and a table of their bands.

    threshold: the estimated share of common shingles from which two articles are near duplicates. `signatures.log` in
    the folder has 256 bytes for each article, in their order, so that a run that resumes has them again. The table
    takes 300 to 600 bytes for each (at the threshold 0.8). Both files are mapped: what does not fit into memory stays
    on the disk.
    """

    def __init__(self, folder, threshold):
        self.count = 0
        self._n_values = values_per_band(threshold)
        self._n_bands = VALUES // self._n_values
        self._min_equal = math.ceil(threshold * VALUES)
        super().__init__(Path(folder) / "signatures.log", VALUES * 2)
        self._table_path = Path(folder) / "bands.table"
        self._table = None

    def close(self):
        """Closes the files, and removes the table."""
        self._table = None
        self._table_path.unlink(missing_ok=True)
        super().close()

    def resume(self, count):
        """Takes the first `count` articles of the log, and removes the others from it."""
        self._log.truncate(count * VALUES * 2)
        self._log.seek(0, os.SEEK_END)
        self.count = count
        self._make_table(count)

    def add(self, signatures):
        """(n,) of bool: which articles, given by signatures (n, VALUES), are no near duplicates of earlier ones.

        These are added.
        """
        n = len(signatures)
        if (self.count + n) * self._n_bands * 2 > len(self._table):
            self._make_table(self.count + n)
        is_new = add_signatures(signatures, self._read_log(), self._table, self._n_values, self._min_equal)
        self._log.write(signatures[is_new].tobytes())
        self.count += int(is_new.sum())
        return is_new

    def _read_log(self):
        """(count, VALUES): the signatures so far."""
        self._log.flush()
        if not self.count:
            return np.empty((0, VALUES), dtype=np.uint16)
        # Not for reading only: compiled code takes such arrays for another type.
        return np.asarray(np.memmap(self._log.name, np.uint16, "r+", shape=(self.count, VALUES)))

    def _make_table(self, count):
        """Makes the table of the articles so far, with room for `count`: it stays at least half empty."""
        rows = MIN_TABLE_ROWS
        while rows < count * self._n_bands * 2:
            rows *= 2
        self._table = None  # Windows replaces no file that is mapped
        np.zeros(rows, dtype=np.int64).tofile(self._table_path)  # raises OSError where the disk has no room
        self._table = np.asarray(np.memmap(self._table_path, np.int64, "r+"))
        insert_articles(self._read_log(), self._table, self._n_values)


# The compiled part. A row of the table is 0, or the hash of a band (31 bits) and the number of an article plus 1 (32
# bits). It is in the first free place from the one that the hash gives.


@njit(cache=True)
def hash_band(signature, band, n_values):
    """63 bits that depend on the number of a band and the values in it."""
    mixed = band
    for value in signature[band * n_values : (band + 1) * n_values]:
        mixed = mix_bits(mixed << 16 ^ value)
    return mixed & 0x7FFFFFFFFFFFFFFF


@njit(cache=True)
def insert_bands(signature, number, table, n_values):
    """Adds an article's bands to the table; not those that MAX_CANDIDATES articles have: no more would be compared."""
    for band in range(VALUES // n_values):
        mixed = hash_band(signature, band, n_values)
        place, n_same = mixed & (len(table) - 1), 0
        while table[place] and n_same < MAX_CANDIDATES:
            n_same += table[place] >> 32 == mixed >> 32
            place = (place + 1) & (len(table) - 1)
        if n_same < MAX_CANDIDATES:
            table[place] = mixed >> 32 << 32 | (number + 1)


@njit(cache=True)
def insert_articles(signatures, table, n_values):
    """Adds the bands of all articles to an empty table."""
    for number, signature in enumerate(signatures):
        insert_bands(signature, number, table, n_values)


@njit(cache=True)
def find_near(signature, stored, signatures, new_rows, table, n_values, min_equal):
    """Whether an article of the table has at least `min_equal` values of the signature.

    The signatures of the table's articles are those in `stored`, and then `signatures[new_rows]`.
    """
    for band in range(VALUES // n_values):
        mixed = hash_band(signature, band, n_values)
        place = mixed & (len(table) - 1)
        while table[place]:
            if table[place] >> 32 == mixed >> 32:
                number = (table[place] & 0xFFFFFFFF) - 1
                n_stored = len(stored)
                other = stored[number] if number < n_stored else signatures[new_rows[number - n_stored]]
                n_equal = 0
                for i in range(VALUES):
                    n_equal += signature[i] == other[i]
                if n_equal >= min_equal:
                    return True
            place = (place + 1) & (len(table) - 1)
    return False


@njit(cache=True)
def add_signatures(signatures, stored, table, n_values, min_equal):
    """As `NearDuplicates.add`. stored: the signatures so far; the table takes up the new articles."""
    is_new, new_rows, n_new = np.zeros(len(signatures), dtype=np.bool_), np.empty(len(signatures), dtype=np.int64), 0
    for row, signature in enumerate(signatures):
        if not find_near(signature, stored, signatures, new_rows, table, n_values, min_equal):
            insert_bands(signature, len(stored) + n_new, table, n_values)
            new_rows[n_new] = row
            n_new += 1
            is_new[row] = True
    return is_new
