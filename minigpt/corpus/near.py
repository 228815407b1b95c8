"""Near duplicates: MinHash signatures (Broder 1997) in bands, as in locality-sensitive hashing.

An article is compared with the earlier ones that share a band with it. Signatures are kept on the disk.
"""

import hashlib
import sqlite3
from contextlib import contextmanager

import numpy as np

PERMUTATIONS = 128  # of a signature
SHINGLE = 3  # characters that are compared together
SHINGLES_AT_ONCE = 4096  # each takes a kilobyte while it is hashed
RECALL = 0.98  # share of the pairs at the threshold that have a band in common
MAX_CANDIDATES = 50  # articles of one band that are compared
CACHE_KIB = 128 << 10
TABLES = """
CREATE TABLE IF NOT EXISTS bands(key INTEGER, number INTEGER, PRIMARY KEY(key, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS signatures(number INTEGER PRIMARY KEY, signature BLOB);
"""


def band_rows(threshold):
    """Values of a signature that make a band: as many as still bring RECALL of the pairs at `threshold` together."""

    def recall(rows):
        return 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows)

    return max(rows for rows in range(1, 17) if rows == 1 or recall(rows) >= RECALL)


def shingles(text, start, end):
    """Runs of SHINGLE characters that begin at start to end, as bytes; a shorter text is one."""
    return [text[i : i + SHINGLE].encode() for i in range(start, min(end, max(1, len(text) - SHINGLE + 1)))]


def signatures(texts, threshold):
    """(signatures (n, PERMUTATIONS) of uint32, hashes of their bands (n, b) of int64) of texts."""
    from datasketch import MinHash  # only who asks for the step needs it loaded

    # A long text's signature is the least of its parts'.
    parts = [
        (i, start)
        for i, text in enumerate(texts)
        for start in range(0, max(1, len(text) - SHINGLE + 1), SHINGLES_AT_ONCE)
    ]
    sets = (shingles(texts[i], start, start + SHINGLES_AT_ONCE) for i, start in parts)
    values = np.full((len(texts), PERMUTATIONS), np.iinfo(np.uint32).max, dtype=np.uint32)
    for (i, _), minimum in zip(parts, MinHash.generator(sets, num_perm=PERMUTATIONS), strict=True):
        np.minimum(values[i], minimum.hashvalues.astype(np.uint32), out=values[i])
    rows = band_rows(threshold)
    n_bands = PERMUTATIONS // rows
    bands = b"".join(
        hashlib.blake2b(bytes([band]) + line[band * rows : (band + 1) * rows].tobytes(), digest_size=8).digest()
        for line in values
        for band in range(n_bands)
    )
    return values, np.frombuffer(bands, dtype="<i8").reshape(-1, n_bands)


@contextmanager
def as_disk_error():
    """Turns SQLite's errors, such as a full disk, into OSError."""
    try:
        yield
    except sqlite3.Error as error:
        raise OSError(str(error)) from None


class NearDuplicates:
    """The articles so far, by their number, in a file. threshold: the share of common shingles, estimated."""

    def __init__(self, path, threshold):
        self.threshold = threshold
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.executescript(TABLES)
        self.db.execute("BEGIN")

    def close(self):
        """Close the file; what was not flushed is forgotten."""
        with as_disk_error():
            self.db.rollback()
            self.db.close()

    def flush(self):
        """Put everything on the disk."""
        with as_disk_error():
            self.db.execute("COMMIT")
            self.db.execute("BEGIN")

    def go_on(self, number):
        """Take up the articles before `number`; the others go."""
        self.db.execute("DELETE FROM bands WHERE number >= ?", (number,))
        self.db.execute("DELETE FROM signatures WHERE number >= ?", (number,))

    def add(self, number, signature, bands):
        """Whether an article is like none so far; it is kept then. signature, bands: its rows of `signatures`."""
        keys = bands.tolist()
        with as_disk_error():
            if any(self._is_like(signature, other) for other in self._candidates(keys)):
                return False
            self.db.executemany("INSERT OR IGNORE INTO bands VALUES (?, ?)", [(key, number) for key in keys])
            self.db.execute("INSERT INTO signatures VALUES (?, ?)", (number, signature.tobytes()))
        return True

    def _candidates(self, keys):
        found = set()
        for key in keys:
            query = "SELECT number FROM bands WHERE key = ? LIMIT ?"
            found.update(number for (number,) in self.db.execute(query, (key, MAX_CANDIDATES)))
        return sorted(found)

    def _is_like(self, signature, number):
        blob = self.db.execute("SELECT signature FROM signatures WHERE number = ?", (number,)).fetchone()[0]
        return (np.frombuffer(blob, dtype=np.uint32) == signature).mean() >= self.threshold
