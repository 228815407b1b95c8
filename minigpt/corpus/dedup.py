"""Duplicates: exact ones by a hash of the text, near ones by MinHash signatures (Broder 1997) in bands (LSH)."""

import hashlib
import os
import sqlite3
from contextlib import contextmanager
from pathlib import Path

import numpy as np

# Exact duplicates

MERGE_KEYS = 1 << 17  # new keys that are kept apart until they are merged into all others
READ_KEYS = 1 << 20  # of the log at once


class KeySet:
    """A set of 64-bit hashes, in memory at 8 bytes each (and as many again while keys are merged).

    `keys.log` in the folder has them in their order, so that a run that resumes has them again. Two different texts
    have the same hash with a probability of n² / 2⁶⁵ among n: 1 in 3,000 for a hundred million articles.
    """

    def __init__(self, folder):
        self.count = 0
        self._sorted = np.zeros(0, dtype=np.uint64)
        self._recent = np.zeros(0, dtype=np.uint64)  # sorted, too
        self._log = open(Path(folder) / "keys.log", "a+b")  # noqa: SIM115 - `close` closes it

    def close(self):
        """Closes the log."""
        self._log.close()

    def flush(self):
        """Hands the log to the operating system; `sync` puts it on the disk."""
        self._log.flush()

    def sync(self):
        """Waits until what was flushed is on the disk; may be called from another thread."""
        os.fsync(self._log.fileno())

    def has(self, count):
        """Whether the log has so many keys."""
        return os.fstat(self._log.fileno()).st_size >= count * 8

    def resume(self, count):
        """Takes the first `count` keys of the log, and removes the others from it."""
        self._log.truncate(count * 8)
        self._log.seek(0)
        while chunk := self._log.read(READ_KEYS * 8):
            self._recent = np.unique(np.frombuffer(chunk, dtype=np.uint64))
            self._merge_recent()
        self.count = count

    def add(self, keys):
        """(n,) of bool: which of the keys, uint64 (n,), are new; of equal ones the first."""
        unique, first = np.unique(keys, return_index=True)
        is_new = ~(is_member(self._sorted, unique) | is_member(self._recent, unique))
        self._recent = insert_sorted(self._recent, unique[is_new])
        if len(self._recent) >= MERGE_KEYS:
            self._merge_recent()
        new = np.zeros(len(keys), dtype=bool)
        new[first[is_new]] = True
        self._log.write(keys[new].tobytes())
        self.count += int(new.sum())
        return new

    def _merge_recent(self):
        self._sorted = insert_sorted(self._sorted, self._recent)
        self._recent = self._recent[:0]


def is_member(sorted_keys, keys):
    """(n,) of bool: which of the keys (n,) are in a sorted array."""
    if not len(sorted_keys):
        return np.zeros(len(keys), dtype=bool)
    places = np.searchsorted(sorted_keys, keys)
    return sorted_keys[np.minimum(places, len(sorted_keys) - 1)] == keys


def insert_sorted(sorted_keys, keys):
    """The sorted array with further keys, sorted themselves."""
    return np.insert(sorted_keys, np.searchsorted(sorted_keys, keys), keys)


# Near duplicates

PERMUTATIONS = 128  # values of a signature
SHINGLE_CHARS = 3  # characters that are compared together
SHINGLES_AT_ONCE = 4096  # each takes a kilobyte while it is hashed
BAND_RECALL = 0.98  # share of the pairs at the threshold that have a band in common
MAX_CANDIDATES = 50  # articles with the same band that are compared
CACHE_KIB = 128 << 10
NEAR_TABLES = """
CREATE TABLE IF NOT EXISTS bands(key INTEGER, number INTEGER, PRIMARY KEY(key, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS signatures(number INTEGER PRIMARY KEY, signature BLOB);
"""


def values_per_band(threshold):
    """Values of a signature in a band: as many as still give BAND_RECALL for pairs at the threshold."""

    def recall(n_values):
        return 1 - (1 - threshold**n_values) ** (PERMUTATIONS // n_values)

    return max(n for n in range(1, 17) if n == 1 or recall(n) >= BAND_RECALL)


def shingles_of(text, start, end):
    """The runs of SHINGLE_CHARS characters that begin at start to end, as bytes; a shorter text is one run."""
    return [text[i : i + SHINGLE_CHARS].encode() for i in range(start, min(end, max(1, len(text) - SHINGLE_CHARS + 1)))]


def minhash_signatures(texts, threshold):
    """(signatures (n, PERMUTATIONS) of uint32, hashes of their bands (n, b) of int64) of n texts."""
    from datasketch import MinHash  # imported only where the cleaning step is on

    # The signature of a long text is the minimum of those of its parts.
    parts = [
        (i, start)
        for i, text in enumerate(texts)
        for start in range(0, max(1, len(text) - SHINGLE_CHARS + 1), SHINGLES_AT_ONCE)
    ]
    sets = (shingles_of(texts[i], start, start + SHINGLES_AT_ONCE) for i, start in parts)
    values = np.full((len(texts), PERMUTATIONS), np.iinfo(np.uint32).max, dtype=np.uint32)
    for (i, _), minimum in zip(parts, MinHash.generator(sets, num_perm=PERMUTATIONS), strict=True):
        np.minimum(values[i], minimum.hashvalues.astype(np.uint32), out=values[i])
    n_values = values_per_band(threshold)
    n_bands = PERMUTATIONS // n_values
    hashes = b"".join(
        hashlib.blake2b(bytes([band]) + line[band * n_values : (band + 1) * n_values].tobytes(), digest_size=8).digest()
        for line in values
        for band in range(n_bands)
    )
    return values, np.frombuffer(hashes, dtype="<i8").reshape(-1, n_bands)


@contextmanager
def sqlite_errors_as_oserror():
    """Turns SQLite's errors, such as a full disk, into OSError."""
    try:
        yield
    except sqlite3.Error as error:
        raise OSError(str(error)) from None


class NearDuplicates:
    """Signatures of the articles so far, by number, in an SQLite file; articles that share a band are compared.

    threshold: the estimated share of common shingles from which two articles are near duplicates.
    """

    def __init__(self, path, threshold):
        self.threshold = threshold
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.executescript(NEAR_TABLES)
        self.db.execute("BEGIN")

    def close(self):
        """Closes the file; what was not flushed is lost."""
        with sqlite_errors_as_oserror():
            self.db.rollback()
            self.db.close()

    def flush(self):
        """Puts everything on the disk."""
        with sqlite_errors_as_oserror():
            self.db.execute("COMMIT")
            self.db.execute("BEGIN")

    def resume(self, number):
        """Keeps the articles before `number`, and removes the others."""
        self.db.execute("DELETE FROM bands WHERE number >= ?", (number,))
        self.db.execute("DELETE FROM signatures WHERE number >= ?", (number,))

    def add(self, number, signature, bands):
        """Adds an article unless it is a near duplicate of an earlier one; returns whether it was added.

        signature, bands: its rows of `minhash_signatures`.
        """
        keys = bands.tolist()
        with sqlite_errors_as_oserror():
            if any(self._is_near(signature, other) for other in self._find_candidates(keys)):
                return False
            self.db.executemany("INSERT OR IGNORE INTO bands VALUES (?, ?)", [(key, number) for key in keys])
            self.db.execute("INSERT INTO signatures VALUES (?, ?)", (number, signature.tobytes()))
        return True

    def _find_candidates(self, keys):
        found = set()
        for key in keys:
            query = "SELECT number FROM bands WHERE key = ? LIMIT ?"
            found.update(number for (number,) in self.db.execute(query, (key, MAX_CANDIDATES)))
        return sorted(found)

    def _is_near(self, signature, number):
        blob = self.db.execute("SELECT signature FROM signatures WHERE number = ?", (number,)).fetchone()[0]
        return (np.frombuffer(blob, dtype=np.uint32) == signature).mean() >= self.threshold
