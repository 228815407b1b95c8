"""Fetches files over HTTP, each of which appears under its name whole or not at all.

An unfinished file is NAME.partial, with what is known of it in NAME.partial.json. A new connection, or a new run, goes
on where the last one ended, where the server can do that. .downloads.json remembers what was found right.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path

import urllib3
from filelock import FileLock, Timeout

from minigpt.common.errors import UserError
from minigpt.common.files import replace_file, write_json

CHUNK = 1 << 20  # bytes that are read at once, at most
RECORD, LOCK = ".downloads.json", ".downloads.lock"  # hidden, so that nobody takes them for rows
PARTIAL, NOTES = ".partial", ".partial.json"
PERMISSION = "not permitted; set HF_TOKEN in the environment to a token that may read it"
REFUSALS = {401: PERMISSION, 403: PERMISSION, 404: "not there; see to the address", 410: "not there any more"}
# How packed files and tables begin.
MAGIC = {
    ".parquet": b"PAR1", ".gz": b"\x1f\x8b", ".tgz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd",
    ".xz": b"\xfd7zXZ\x00", ".bz2": b"BZh",
}  # fmt: skip
CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


@dataclass(frozen=True)
class Source:
    """A file to fetch. sha256: hex digits; size: bytes (None: not known); name: what it is written as."""

    url: str
    sha256: str | None = None
    size: int | None = None
    name: str = ""


@dataclass(frozen=True)
class Patience:
    """retries: tries again in a row that bring no byte forward. Seconds to wait before the first of these, before any
    (each waits twice as long as the last), and at most where a server asks for a wait."""

    retries: int = 8
    first_wait: float = 1.0
    longest_wait: float = 60.0
    longest_asked: float = 900.0


class Failure(UserError):
    """A file that cannot be had; trying again would not help. status: of the server's answer, where that is why."""

    status = None


class Broken(Exception):
    """A try that failed where another may not. wait: seconds that the server asks for, or None."""

    wait = None


class Stale(Exception):
    """The unfinished file is not the beginning of what the server has now."""


def check_status(response):
    """Raises Failure or Broken where a response's status is neither 200 nor 206."""
    status, asked = response.status_code, response.headers.get("Retry-After", "").strip()
    if status in (200, 206):
        return
    if status not in (408, 425, 429) and status < 500:
        failure = Failure(f"{REFUSALS.get(status, 'refused')} (status {status})")
        failure.status = status
        raise failure
    broken = Broken(f"the server has status {status}")
    if status in (429, 503):
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            date = None if re.fullmatch(r"[0-9.]+", asked) else parsedate_to_datetime(asked)
            broken.wait = (date - datetime.now(UTC)).total_seconds() if date else float(asked)
    raise broken


def insist(attempt, patience, tell, reached=lambda: 0):
    """The result of `attempt()`, tried again while it raises Broken. reached: gives the bytes that are there."""
    misses = 0
    while True:
        before = reached()
        try:
            return attempt()
        except Broken as broken:
            misses = 0 if reached() > before else misses + 1
            if misses > patience.retries:
                raise Failure(f"{broken} (tried {misses} times)") from None
            if (broken.wait or 0) > patience.longest_asked:
                raise Failure(f"{broken} and asks to wait {broken.wait:.0f} s; try again then") from None
            backoff = min(patience.first_wait * 2 ** min(max(misses - 1, 0), 30), patience.longest_wait)
            wait = backoff if broken.wait is None else max(0.0, broken.wait)
            tell(f"{broken}; again in {wait:g} s")
        time.sleep(wait)


class Partial:
    """An unfinished file and what it is the beginning of. have: bytes that are there; digest: their sha256; fetched:
    bytes that came in this run; restarts: how often it was begun again."""

    def __init__(self, folder, source, show):
        self.source, self.show = source, show
        self.path, self.notes = (folder / (source.name + ending) for ending in (PARTIAL, NOTES))
        self.have, self.digest, self.about = 0, hashlib.sha256(), {}
        self.fetched = self.strange = self.restarts = 0
        about = read_dict(self.notes)
        if self.path.is_file() and is_of(about, source) and isinstance(about.get("size"), int | None):
            if about.get("url") != source.url:  # another mirror's: its marks say nothing here, the sha256 does
                about |= {"etag": None, "last_modified": None}
            self.about, size = about, self.path.stat().st_size
            if self.size is None or size <= self.size:
                self.have, self.digest = size, digest_of(self.path)

    @property
    def size(self):
        """Bytes of the whole file, or None."""
        return self.source.size if self.source.size is not None else self.about.get("size")

    def headers(self):
        """What asks for the rest alone, and only of the same file."""
        mark = self.about.get("etag") or self.about.get("last_modified")
        return {"Range": f"bytes={self.have}-", **({"If-Range": mark} if mark else {})} if self.have else {}

    def drop(self):
        """Throw away what is there."""
        self.path.unlink(missing_ok=True)
        self.have, self.digest, self.about, self.strange = 0, hashlib.sha256(), {}, 0

    def take(self, response):
        """Add what a response of status 200, 206 or 416 brings, to the file's end. Raises Broken, Failure, Stale."""
        total, wanted = total_of(response), self.source.size
        if response.status_code == 416:
            if total != self.have or wanted not in (None, total):
                raise Stale("what is there is not the beginning of the server's file")
            self.about["size"] = total
            return
        encoding = response.headers.get("Content-Encoding", "").lower()
        if encoding not in ("", "identity") and not self.source.name.lower().endswith((".gz", ".tgz")):
            raise Failure(f"the server sends it compressed ({encoding[:20]}), although asked not to")
        if total is not None and wanted not in (None, total):
            raise Broken(f"the server has {total:,} bytes of it, not {wanted:,}")
        page = response.headers.get("Content-Type", "").lower().startswith("text/html")
        if page and self.source.sha256 is None and not self.source.name.lower().endswith((".htm", ".html")):
            raise Failure("the server sends a web page in its place; see to the address")
        if response.status_code == 206:
            self.check_range(response, total)
            self.about["size"] = total if self.size is None else self.size
        if response.status_code == 200 or not self.have:
            self.begin(response, total)
        self.add(response)

    def check_range(self, response, total):
        """Raises Broken or Stale where a 206 does not go on where this ends."""
        said = response.headers.get("Content-Range", "none")
        found = CONTENT_RANGE.fullmatch(said)
        if not found or int(found[1]) != self.have or (total is not None and int(found[2]) >= total):
            self.strange += 1
            wrong = f"the server sent another part ({said[:60]}) than was asked for, from byte {self.have:,} on"
            raise Stale(wrong) if self.have and self.strange > 1 else Broken(wrong)
        marks, key = marks_of(response), "etag" if self.about.get("etag") else "last_modified"
        changed = self.about.get(key) and marks[key] not in (None, self.about[key])
        if self.have and (changed or (total is not None and self.size not in (None, total))):
            raise Stale("the file has changed at the server")

    def begin(self, response, size):
        """Begin again with a response that brings the file from its start."""
        self.restarts += self.have > 0
        self.drop()
        self.path.touch()
        self.about = {"url": self.source.url, **marks_of(response), "size": size, "sha256": self.source.sha256}
        write_json(self.notes, self.about)

    def add(self, response):
        """Append a response's body. Raises Broken where it does not end at the file's end."""
        size = self.size
        need_room(self.path.parent, (size or self.have) - self.have)
        self.show(self.source.name, self.have, size)
        with open(self.path, "r+b") as file:
            file.seek(self.have)
            while (size is None or self.have <= size) and (chunk := next_chunk(response)):
                file.write(chunk)
                file.flush()
                self.digest.update(chunk)
                self.have, self.fetched = self.have + len(chunk), self.fetched + len(chunk)
                self.show(self.source.name, self.have, size)
        if size is not None and self.have != size:
            wrong = f"the connection ended at {self.have:,} of {size:,} bytes"
            if self.have > size:
                self.drop()
            raise Broken(wrong)


def next_chunk(response):
    """The next bytes of a body as they come, b"" at its end. Raises Broken."""
    try:
        return response.raw.read1(CHUNK, decode_content=False)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        stalled = isinstance(error, urllib3.exceptions.ReadTimeoutError)
        raise Broken("no byte came within stall_seconds" if stalled else "the connection broke off") from None


def check_start(part):
    """Raises Failure where nothing is known of a whole file and it does not begin as its name says."""
    begins = MAGIC.get(os.path.splitext(part.source.name.lower())[1], b"")
    if part.source.sha256 is None and part.source.size is None:
        with open(part.path, "rb") as file:
            right = file.read(len(begins)) == begins
        if not right:
            part.drop()
            raise Failure("it does not begin as a file of its ending does; see to the address")


def total_of(response):
    """Bytes of the whole file by a response's headers, or None."""
    header = "Content-Range" if response.status_code in (206, 416) else "Content-Length"
    text = response.headers.get(header, "").rpartition("/")[2]
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def marks_of(response):
    """What tells one version of a file from another: {"etag": a strong one or None, "last_modified": date or None}."""
    etag = response.headers.get("ETag", "")
    return {"etag": etag if etag.startswith('"') else None, "last_modified": response.headers.get("Last-Modified")}


def is_of(about, source):
    """Whether what is noted of a file, finished or not, is of that source: by sha256, else by address."""
    known = {about.get("sha256"), source.sha256} - {None}
    return len(known) < 2 and (about.get("url") == source.url or about.get("sha256") == source.sha256 is not None)


def read_dict(path):
    """The JSON object in a file; {} where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def digest_of(path):
    """The sha256 object of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256")


def need_room(folder, size):
    """Raises Failure where a disk has not room for so many bytes more."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise Failure(f"no room in {folder}: {size:,} bytes are needed, {free:,} are free; name another --download_dir")


class Fetcher:
    """Fetches named `Source`s into a folder one by one. tell(name, line), show(name, have, size or None): for the user;
    done, there: names fetched, or whole before; failed: {name: why}; size: bytes of both; fetched: bytes that came."""

    def __init__(self, folder, web, patience, tell=lambda *_: None, show=lambda *_: None):
        self.folder, self.web, self.patience, self.tell, self.show = Path(folder), web, patience, tell, show
        self.record, self.done, self.there, self.failed, self.size, self.fetched = {}, [], [], {}, 0, 0

    def fetch_all(self, sources):
        """Fetch all that can be had; the others are in `failed`. Raises UserError where another download is at work in
        the folder, or it cannot be written to, or has no room for all."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / LOCK, timeout=0):
                found = read_dict(self.folder / RECORD)
                self.record = {name: about for name, about in found.items() if isinstance(about, dict)}
                need_room(self.folder, sum(map(self.missing, sources)))
                for source in sources:
                    self.fetch(source)
        except Timeout:
            raise UserError(f"another download is at work in {self.folder}; wait until it has ended") from None
        except (OSError, NotImplementedError) as error:  # the second: a file system without locks
            raise UserError(f"{self.folder} cannot be written to ({error}); name another --download_dir") from None

    def missing(self, source):
        """Bytes of a file that are not on the disk yet, as far as is known."""
        paths = [self.folder / source.name, self.folder / (source.name + PARTIAL)]
        return max(0, (source.size or 0) - sum(path.stat().st_size for path in paths if path.is_file()))

    def fetch(self, source):
        """Fetch one file and report what came of it."""
        target, part = self.folder / source.name, None
        try:
            if self.is_there(source, target):
                self.there.append(source.name)
            else:
                part = Partial(self.folder, source, self.show)
                self.complete(part)
                with open(part.path, "ab") as file:
                    os.fsync(file.fileno())
                replace_file(part.path, target)
                self.remember(source, target, part.digest.hexdigest())
                part.notes.unlink(missing_ok=True)
                self.done.append(source.name)
            self.size += target.stat().st_size
        except UserError as failure:
            self.failed[source.name] = str(failure)
        except OSError as error:  # the disk: what a network does is Broken or a Failure by now
            needed = f"; {part.size - part.have:,} bytes more are needed" if part and part.size else ""
            self.failed[source.name] = f"cannot be written ({error.strerror or error}){needed}"
        self.fetched += part.fetched if part else 0

    def complete(self, part):
        """Fetch until the partial file is whole and has its sha256. Raises Failure."""
        tell = partial(self.tell, part.source.name)
        for again in (True, False):
            insist(lambda: self.attempt(part), self.patience, tell, lambda: part.have)
            found = part.digest.hexdigest()
            check_start(part)
            if part.source.sha256 in (None, found):
                return
            part.drop()
            wrong = f"its sha256 is {found}, not {part.source.sha256}"
            tell(f"{wrong}; fetching it anew" if again else wrong)
        raise Failure(wrong)

    def attempt(self, part):
        """One connection; returns when the partial file is whole. Raises Broken, Failure."""
        if part.have and part.have == part.size:
            return
        if part.restarts > self.patience.retries + 1:
            raise Failure(f"it was begun {part.restarts} times; the server cannot go on, or its file keeps changing")
        try:
            with self.web.ask(part.source.url, part.headers()) as response:
                if response.status_code != 416 or not part.have:
                    check_status(response)
                part.take(response)
        except Stale as stale:
            self.tell(part.source.name, f"{stale}; beginning again")
            part.restarts += 1
            part.drop()
            self.attempt(part)

    def is_there(self, source, target):
        """Whether a file is there, whole and right. Raises Failure where another one is in its place."""
        known, stat = self.record.get(source.name, {}), target.exists() and target.stat()
        if not stat:
            return False
        if known.get("mtime_ns") == stat.st_mtime_ns and known.get("size") == stat.st_size:
            return source.sha256 in (None, known.get("sha256")) and source.size in (None, stat.st_size)
        sha256, size = source.sha256 or known.get("sha256"), source.size
        if sha256 is None and size is None:
            size = insist(lambda: self.size_at(source.url), self.patience, partial(self.tell, source.name))
        likely = target.is_file() and size in (None, stat.st_size) and (sha256 or size is not None)
        found = digest_of(target).hexdigest() if likely else ""
        if right := likely and sha256 in (None, found):
            self.remember(source, target, found)
        elif not known:
            raise Failure(f"{target} is there and is not that file; move it away")
        return right

    def size_at(self, url):
        with self.web.ask(url) as response:
            check_status(response)
            return total_of(response)

    def remember(self, source, target, sha256):
        """Note in the record that a file is right, so that it need not be read again."""
        size, mtime_ns = target.stat().st_size, target.stat().st_mtime_ns
        self.record[source.name] = {"url": source.url, "sha256": sha256, "size": size, "mtime_ns": mtime_ns}
        write_json(self.folder / RECORD, self.record)
