"""A set of 64-bit keys, for exact duplicates: quick in memory, and on the disk beyond what memory should hold.

Two different texts have the same key with a probability of n² / 2⁶⁵: one in 3,000 for a hundred million articles.
"""

import os
from pathlib import Path

import numpy as np

FIRST_SLOTS = 1 << 16
MOST_KEYS = 1 << 24  # in memory, in a table of 256 MiB; as many again become a sorted file


class KeySet:
    """Keys, uint64, in a folder: `keys.log` holds all in their order, so that a run that goes on has them again."""

    def __init__(self, folder, most_keys=MOST_KEYS):
        self.folder, self.most_keys, self.count = Path(folder), most_keys, 0
        self._slots, self._in_memory, self._runs = np.zeros(FIRST_SLOTS, dtype=np.uint64), 0, []
        self._log = open(self.folder / "keys.log", "a+b")  # noqa: SIM115 - `close` closes it

    def close(self):
        """Close the log."""
        self._log.close()

    def flush(self):
        """Hand the log to the system; `sync` puts it on the disk."""
        self._log.flush()

    def sync(self):
        """Wait until what was flushed is on the disk; may be called from another thread."""
        os.fsync(self._log.fileno())

    def has(self, count):
        """Whether the log has so many keys."""
        return os.fstat(self._log.fileno()).st_size >= count * 8

    def go_on(self, count):
        """Take up the first `count` keys of the log; what was written behind them goes."""
        self._log.truncate(count * 8)
        self._log.seek(0)
        while chunk := self._log.read(self.most_keys * 8):
            keys = np.frombuffer(chunk, dtype=np.uint64)
            for first in range(0, len(keys), 1 << 16):
                self._insert(keys[first : first + (1 << 16)])
        self.count = count

    def add(self, keys):
        """(n,) of bool: which of the keys (n,) are new, of equal ones the first."""
        keys = np.where(keys == 0, np.uint64(1), keys)  # 0 is an empty slot
        unique, first = np.unique(keys, return_index=True)
        fresh = np.ones(len(unique), dtype=bool)
        for run in self._runs:
            # Mapped anew each time, so that pages that were looked at do not count as this process's memory.
            on_disk = np.memmap(run, dtype=np.uint64, mode="r")
            at = np.searchsorted(on_disk, unique)
            fresh &= on_disk[np.minimum(at, len(on_disk) - 1)] != unique
        candidates = np.flatnonzero(fresh)
        fresh[candidates] = self._insert(unique[candidates])
        new = np.zeros(len(keys), dtype=bool)
        new[first[fresh]] = True
        self._log.write(keys[new].tobytes())
        self.count += int(new.sum())
        return new

    def _insert(self, keys):
        """Put distinct keys into the table; (n,) of bool: which were not in it."""
        while (self._in_memory + len(keys)) * 2 > len(self._slots):
            old, self._slots = self._slots, np.zeros(2 * len(self._slots), dtype=np.uint64)
            place(self._slots, old[old != 0])
        fresh = place(self._slots, keys)
        self._in_memory += int(fresh.sum())
        if self._in_memory >= self.most_keys:
            self._spill()
        return fresh

    def _spill(self):
        run = self.folder / f"keys-{len(self._runs):04d}.bin"
        np.sort(self._slots[self._slots != 0]).tofile(run)
        self._runs.append(run)
        self._slots, self._in_memory = np.zeros(FIRST_SLOTS, dtype=np.uint64), 0


def place(slots, keys):
    """Put distinct keys (n,) into an open-addressing table, all at once; (n,) of bool: which were not in it.

    slots: a power of two of uint64, 0 where empty. A key stands in the first free slot from its own on.
    """
    mask = np.uint64(len(slots) - 1)
    at, fresh, waiting = keys & mask, np.zeros(len(keys), dtype=bool), np.arange(len(keys))
    while len(waiting):
        there = slots[at[waiting]]
        free = waiting[there == 0]
        slots[at[free]] = keys[free]  # of several that want one slot the last has it
        won = free[slots[at[free]] == keys[free]]
        fresh[won] = True
        waiting = waiting[(there != keys[waiting]) & ~fresh[waiting]]
        at[waiting] = (at[waiting] + np.uint64(1)) & mask
    return fresh
