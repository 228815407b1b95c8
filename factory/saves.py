"""The two files that a run leaves: pairs, and articles that were given up. What is in them is not asked for again.

An article's rows are appended in one write and flushed to the disk. What a killed run left half-written at the end is
cut off at the next start, and asked for again.
"""

import json
import os
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from errors import UserError
from factory.articles import key_of, short_hash

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
    except (OSError, NotImplementedError) as error:
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
        self._file = None

    def add(self, rows):
        """Append rows (dicts) in one write. Raises UserError where the disk is full; then nothing of them stays."""
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", errors="replace")
        with self._lock:
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
        with self._lock:
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
    """Hashes of the keys of all articles in a file, after its end was mended: what is torn there is cut off.

    whole: each row is an article of its own (of the rejects). Else an article's rows count themselves, `pair` of
    `pairs`, and the last article is cut off if rows of it are missing. Rows without these keys are left as they are.
    """
    done, path = set(), Path(path)
    if not path.exists():
        return done
    with as_user_error(path), open(path, "r+b") as file:
        start, begun, key, row = 0, 0, None, None  # the line's place, and that of its article's first row
        line = b""
        for line in iter(file.readline, b""):
            row = parsed(line)
            ours = row is not None and (row.keys() >= ({"id", "source"} if whole else KEYS))
            this = key_of(row["source"], row["id"]) if ours else None
            if this != key:
                begun, key = start, this
            if this is not None:
                done.add(short_hash(this))
            start += len(line)
        torn = bool(line) and not line.endswith(b"\n")
        missing = key is not None and not whole and row["pair"] != row["pairs"]
        if missing or (torn and row is None):
            file.truncate(begun if missing else start - len(line))
            os.fsync(file.fileno())
            return recover(path, whole)  # the article before may be cut short, and one cut off is not done
        if torn:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
    return done


@contextmanager
def as_user_error(path):
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be read and written ({reason_of(error)}); see to it, or name another file"
        ) from None
