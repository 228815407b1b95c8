"""The two files that a run leaves: pairs, and articles that were given up. What is in them is not asked for again.

An article's rows are appended in one write and flushed to the disk. What a killed run left half-written at the end is
cut off at the next start, kept in PATH.torn, and asked for again.
"""

import json
import os
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from minigpt.common.errors import UserError
from minigpt.synth.articles import key_of, short_hash

KEYS = {"question", "answer", "id", "source", "pair", "pairs"}


def rejects_path(settings):
    """Where articles that failed go: settings.rejects, or beside sft_saves.jsonl sft_rejects.jsonl."""
    stem, path = Path(settings.saves).stem, Path(settings.saves)
    name = stem.replace("saves", "rejects") if "saves" in stem else f"{stem}_rejects"
    return Path(settings.rejects) if settings.rejects else path.with_name(f"{name}.jsonl")


@contextmanager
def locked(path):
    """Holds the file for this process. Raises UserError where another one has it."""
    path = Path(path)
    lock = FileLock(f"{path}.lock", timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(f"another run writes to {path}; wait for it, or name another file with --saves=…") from None
    except (OSError, NotImplementedError) as error:  # the second: a file system without locks
        raise UserError(f"{path} cannot be written ({reason_of(error)}); name another file with --saves=…") from None
    try:
        yield
    finally:
        lock.release()


def reason_of(error):
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class Appender:
    """A file that whole groups of rows are appended to, from many threads; each is on the disk when `add` returns."""

    def __init__(self, path):
        self.path, self._lock = Path(path), threading.Lock()
        self._file, self._closed = None, False

    def add(self, rows):
        """Append rows (dicts) in one write. Raises UserError where the disk is full; then nothing of them stays."""
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", errors="replace")
        with self._lock:
            if self._closed:  # by the end of the run, for which a worker was too late
                raise UserError(f"{self.path} is closed already; start again")
            try:
                if self._file is None:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
                self._write(data)
            except OSError as error:
                raise UserError(
                    f"{self.path} cannot be written ({reason_of(error)}); what is in it stays; start again"
                ) from None

    def _write(self, data):
        size = self._file.seek(0, os.SEEK_END)
        try:
            while data:  # a disk that is nearly full takes a part
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError:
            with suppress(OSError):
                self._file.truncate(size)
            raise

    def close(self):
        """Add nothing more."""
        with self._lock:
            self._closed = True
            if self._file:
                self._file.close()
                self._file = None


def parsed(line):
    """The row of a line, or None where it is no JSON object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def recover(path, whole=False):
    """Hashes of the keys of all articles in a file, after its end was mended: what a killed run tore there is cut off,
    and added to PATH.torn.

    An article is one write, so only a file whose last line has no line end is torn; then an article's rows 1 to k, of
    more, go with it. Any other row stays, also where somebody has taken rows of its article out. whole: each row is an
    article of its own (of the rejects).
    """
    path, last = Path(path), Last(set())
    if not path.exists():
        return last.done
    with as_user_error(path), open(path, "r+b") as file:
        start, line, row = 0, b"", None  # start: the line's place
        for line in iter(file.readline, b""):
            row = parsed(line)
            if row is not None or line.endswith(b"\n"):
                last.take(row, start, whole)
            start += len(line)
        if line and not line.endswith(b"\n"):
            begun = last.drop() if last.is_begun() else start - len(line) if row is None else None
            if begun is None:
                file.write(b"\n")
            else:
                file.seek(begun)
                with open(f"{path}.torn", "ab") as torn:
                    torn.write(file.read() + b"\n")
                file.truncate(begun)
            os.fsync(file.fileno())
    return last.done


@dataclass
class Last:
    """The last article of a file that is read row by row. done: hashes of the keys of all so far."""

    done: set
    key: str | None = None
    begun: int = 0  # where its first row is
    known: bool = False  # whether it was in the file before that
    pairs: list = field(default_factory=list)  # `pair` of its rows
    of: object = None  # `pairs` of its last row

    def take(self, row, start, whole):
        """Take the next line's row, or None of what is none."""
        ours = row is not None and row.keys() >= ({"id", "source"} if whole else KEYS)
        key = key_of(row["source"], row["id"]) if ours else None
        if key != self.key or whole or (ours and row["pair"] == 1):
            self.key, self.begun, self.pairs = key, start, []
            self.known = key is not None and short_hash(key) in self.done
        if ours:
            self.done.add(short_hash(key))
            if not whole:
                self.pairs.append(row["pair"])
                self.of = row["pairs"]

    def is_begun(self):
        """Whether its rows are the first ones of more."""
        return bool(self.pairs) and self.pairs == [*range(1, len(self.pairs) + 1)] and self.pairs[-1] != self.of

    def drop(self):
        """Forget it; returns where it begins."""
        if not self.known:
            self.done.discard(short_hash(self.key))
        return self.begun


@contextmanager
def as_user_error(path):
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be read and written ({reason_of(error)}); see to it, or name another file"
        ) from None
