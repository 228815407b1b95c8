"""Exact duplicates, by a hash of the text. Near ones: near_duplicates.py."""

import os
from pathlib import Path

import numpy as np

MERGE_KEYS = 1 << 17  # new keys that are kept apart until they are merged into all others
READ_KEYS = 1 << 20  # of the log at once


class EntryLog:
    """A file of entries of `entry_bytes` each, in their order, so that a run that resumes has them again."""

    def __init__(self, path, entry_bytes):
        self._entry_bytes = entry_bytes
        self._log = open(path, "a+b")  # noqa: SIM115 - `close` closes it

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
        """Whether the log has so many entries."""
        return os.fstat(self._log.fileno()).st_size >= count * self._entry_bytes


class KeySet(EntryLog):
    """A set of 64-bit hashes, in memory at 8 bytes each (and as many again while keys are merged).

    `keys.log` in the folder has them. Two different texts have the same hash with a probability of n² / 2⁶⁵ among n: 1
    in 3,000 for a hundred million articles.
    """

    def __init__(self, folder):
        self.count = 0
        self._sorted = np.zeros(0, dtype=np.uint64)
        self._recent = np.zeros(0, dtype=np.uint64)  # sorted, too
        super().__init__(Path(folder) / "keys.log", 8)

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
