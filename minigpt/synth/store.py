"""The two files that a run writes: accepted pairs and rejected articles, one JSON line an article.

An article in either file is not asked about again. A killed run leaves at most one incomplete line, which counts as no
article: the article is asked about again, and readers of the file report the line as bad JSON.
"""

import json
import re
import threading
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from minigpt.common.errors import UserError
from minigpt.common.files import append_durably
from minigpt.synth.articles import article_key, short_hash

# The reason of an article that a server refused, as former versions wrote it; status 500 is a crash.
REFUSED = re.compile(r"\S+ refused the request with status 4\d\d: ")


def rejects_path(settings):
    """Path of the rejected articles: settings.rejects, by default sft_rejects.jsonl beside sft_saves.jsonl."""
    if settings.rejects:
        return Path(settings.rejects)
    path = Path(settings.saves)
    name = path.stem.replace("saves", "rejects") if "saves" in path.stem else f"{path.stem}_rejects"
    return path.with_name(f"{name}.jsonl")


def lock_saves(path):
    """Lock the file of pairs for this process, until the context manager that is returned ends.

    Raises UserError if another process holds the lock.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{path}.lock", timeout=0).acquire()
    except Timeout:
        raise UserError(f"another run writes to {path}; wait for it, or name another file with --saves=…") from None
    except (OSError, NotImplementedError) as error:  # filelock raises the second where a file system has no locks
        raise UserError(f"{path} cannot be written ({os_reason(error)}); name another file with --saves=…") from None


def os_reason(error):
    """The reason of an OSError in words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class Appender:
    """A file that many threads append rows to; a row is on the disk when `add` returns."""

    def __init__(self, path):
        self.path = Path(path)
        self._lock = threading.Lock()
        self._closed = False

    def add(self, row):
        """Append a row (dict). Raises UserError if it cannot be written; then nothing of it stays in the file."""
        with self._lock:
            if self._closed:  # a worker finished after the end of the run
                raise UserError(f"{self.path} is closed already; start again")
            try:
                append_durably(self.path, json.dumps(row, ensure_ascii=False) + "\n")
            except OSError as error:
                raise UserError(
                    f"{self.path} cannot be written ({os_reason(error)}); its content is unchanged; start again"
                ) from None

    def close(self):
        """Refuse further rows."""
        with self._lock:
            self._closed = True


def finished_articles(path):
    """Set of `short_hash`es of the keys of all articles in a file; empty if there is no file.

    Every row with a source and an id counts, also one of a single pair, as former versions wrote them, but for articles
    that were only refused. Raises UserError if the file cannot be read and written.
    """
    finished = set()
    try:
        with open(path, "r+b") as file:  # writable, so that a read-only file is reported before any request
            for line in file:
                with suppress(ValueError, TypeError, KeyError, RecursionError):  # an incomplete line, or not our row
                    row = json.loads(line)
                    key = short_hash(article_key(row["source"], row["id"]))
                    if not was_refused(row):
                        finished.add(key)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(
            f"{path} cannot be read and written ({os_reason(error)}); correct that, or name another file"
        ) from None
    return finished


def was_refused(row):
    """Whether a row is of an article without replies that a server refused, so that it is asked about again."""
    reasons = [reason for reasons in row.get("reasons", ()) for reason in reasons]
    return bool(reasons) and not row.get("replies") and all(map(REFUSED.match, reasons))
