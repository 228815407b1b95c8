"""Downloads files over HTTP. A file gets its name only once it is whole and has its size and sha256.

Until then its bytes are in NAME.partial, and the next attempt or the next run asks the server for the rest.
huggingface_hub does not do this: it deletes an unfinished file when the process ends.
"""

import hashlib
import json
import os
import re
import sys
import time
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests
import urllib3
from filelock import FileLock, Timeout
from tqdm import tqdm

from minigpt.common.errors import UserError, first_line
from minigpt.common.files import replace_file
from minigpt.common.net import retry_after_seconds
from minigpt.openai_client import reason_of

CHUNK_BYTES = 1 << 16
MAX_WAIT_S = 60.0  # between two attempts
MAX_NAME_BYTES = 180  # of a file's name; with .partial.json it must fit into 255
PARTIAL, LOCK = ".partial", ".downloads.lock"
REFUSALS = {
    401: "not permitted; set HF_TOKEN in the environment to a token that may read it",
    403: "not permitted; set HF_TOKEN in the environment to a token that may read it",
    404: "not there; check the address",
    410: "no longer there",
}
RESERVED_NAME = re.compile(r"(CON|PRN|AUX|NUL|(COM|LPT)\d)\s*(\..*)?", re.IGNORECASE)  # on Windows
UNSAFE_CHARACTERS = re.compile(r'[<>:"/\\|?*]')


@dataclass(frozen=True)
class RemoteFile:
    """A file to download. name: of the file that is written; sha256: hex digits; size: bytes; None: not known."""

    url: str
    name: str
    sha256: str | None = None
    size: int | None = None


class Unavailable(Exception):
    """An attempt failed, and a later one may succeed. wait: seconds that the server asks for, or None."""

    wait = None


def safe_name(url):
    """The last part of an address's path as a file name that Linux, macOS and Windows can write."""
    parts = urlsplit(url)
    name = unquote(parts.path.rstrip("/").rpartition("/")[2]) or parts.hostname
    name = unicodedata.normalize("NFC", UNSAFE_CHARACTERS.sub("_", name))
    name = "".join(c if c.isprintable() else "_" for c in name).strip(" .") or "file"
    if RESERVED_NAME.fullmatch(name) or name.lower().endswith((PARTIAL, PARTIAL + ".json")):
        name = f"_{name}_"
    stem, ending = os.path.splitext(name)
    if len(ending.encode()) > 20:
        stem, ending = name, ""
    return stem.encode()[: MAX_NAME_BYTES - len(ending.encode())].decode(errors="ignore") + ending


def download_files(session, files, folder, retries, timeout):
    """Download `RemoteFile`s, one after the other, into a folder.

    session: a requests.Session; retries: attempts after one that brought no byte; timeout: seconds without a byte.
    Returns (downloaded, kept, failed): names of the files that came, names of those that were there already, and
    {name: reason}. Raises UserError where the folder cannot be written to or another download uses it.
    """
    downloaded, kept, failed = [], [], {}
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, timeout=0):
            for file in files:
                try:
                    if is_there(session, file, folder / file.name, timeout):
                        kept.append(file.name)
                    else:
                        download(session, file, folder / file.name, retries, timeout)
                        downloaded.append(file.name)
                except UserError as error:
                    failed[file.name] = str(error)
    except Timeout:
        raise UserError(f"another download is writing to {folder}; wait until it has ended") from None
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written to ({error.strerror or error}); make room, or name another --download_dir"
        ) from None
    return downloaded, kept, failed


def is_there(session, file, target, timeout):
    """Whether the file has been downloaded before. Raises UserError where another file has its name."""
    if not target.exists():
        return False
    size = file.size
    if size is None and file.sha256 is None:  # only the server knows the size
        try:
            with session.get(file.url, stream=True, timeout=timeout) as response:
                size = total_bytes(response) if response.ok else None
        except requests.RequestException as error:
            raise UserError(f"the server cannot be asked for its size ({first_line(error)})") from None
    if size not in (None, target.stat().st_size) or file.sha256 not in (None, sha256_of(target)):
        raise UserError(f"{target} is there and is not that file; move it away")
    return True


def download(session, file, target, retries, timeout):
    """Download a file, or what is missing of it, to `target`. Raises UserError where it cannot be had."""
    partial, misses = target.with_name(target.name + PARTIAL), 0
    while True:
        before = size_of(partial)
        try:
            receive_rest(session, file, partial, timeout)
            break
        except (requests.TooManyRedirects, ValueError) as error:  # not an address that can be asked
            raise UserError(first_line(error)) from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, Unavailable) as error:
            # Bytes that came show that the server works: only attempts without any are counted.
            misses = 0 if size_of(partial) > before else misses + 1
            cause = error.args[0] if error.args else error
            reason = str(error) if isinstance(error, Unavailable) else reason_of(getattr(cause, "reason", error))
            if misses > retries:
                raise UserError(f"{reason} (tried {misses} times)") from None
            wait = min(MAX_WAIT_S, getattr(error, "wait", None) or 2 ** max(0, misses - 1))
            tqdm.write(f"{file.name}: {reason}; trying again in {wait:g} s", file=sys.stderr)
            time.sleep(wait)
    if file.sha256 not in (None, found := sha256_of(partial)):
        partial.unlink()
        raise UserError(f"its sha256 is {found}, not {file.sha256}; it was deleted, the same command downloads it anew")
    replace_file(partial, target)
    version_path(partial).unlink(missing_ok=True)


def receive_rest(session, file, partial, timeout):
    """One request, which adds to the partial file what is missing. Raises Unavailable, UserError, or requests' errors
    where it does not become whole."""
    version = read_version(file, partial)
    have = size_of(partial) if file.sha256 or version else 0
    if have and have == file.size:
        return
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if not file.sha256:  # which is checked at the end; without it, the server must have the same version still
            headers["If-Range"] = version
    with session.get(file.url, headers=headers, stream=True, timeout=timeout) as response:
        check_status(response, have, partial)
        total = total_bytes(response)
        if file.size is not None and total not in (None, file.size):
            raise UserError(f"the server has {total:,} bytes of it, not {file.size:,}")
        if file.sha256 is None and "text/html" in response.headers.get("Content-Type", ""):
            raise UserError("the server sends a web page in its place; check the address")
        if response.status_code == 200:
            have = 0
            write_version(file, partial, response)
        with (
            open(partial, "ab" if have else "wb") as out,
            tqdm(total=total, initial=have, desc=file.name, unit="B", unit_scale=True) as bar,
        ):
            for chunk in response.raw.stream(CHUNK_BYTES, decode_content=False):
                out.write(chunk)
                bar.update(len(chunk))
    if total not in (None, size_of(partial)):
        raise Unavailable(f"the connection ended at {size_of(partial):,} of {total:,} bytes")


def check_status(response, have, partial):
    """Raise Unavailable or UserError unless a response brings the whole file (200), or what follows `have` bytes."""
    status = response.status_code
    if status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
        return
    if status in (206, 416):
        partial.unlink(missing_ok=True)
        raise Unavailable("the server cannot send the rest; starting again")
    if status in (408, 425, 429) or status >= 500:
        error = Unavailable(f"the server answers with status {status}")
        error.wait = retry_after_seconds(response.headers.get("Retry-After"))
        raise error
    if status != 200:
        raise UserError(f"{REFUSALS.get(status, 'refused')} (status {status})")


def total_bytes(response):
    """Size of the whole file by a response's headers, or None."""
    header = "Content-Range" if response.status_code == 206 else "Content-Length"
    text = response.headers.get(header, "").rpartition("/")[2]
    return int(text) if text.isdecimal() else None


def version_path(partial):
    """The file that says which version a partial file begins."""
    return partial.with_name(partial.name + ".json")


def write_version(file, partial, response):
    """Note which version of the file the partial one begins: its ETag, or when it was modified."""
    etag = response.headers.get("ETag", "")
    version = etag if etag.startswith('"') else response.headers.get("Last-Modified")
    version_path(partial).write_text(json.dumps({"url": file.url, "version": version}), encoding="utf-8")


def read_version(file, partial):
    """The version of the partial file, or None where it is unknown or of another address."""
    try:
        noted = json.loads(version_path(partial).read_text(encoding="utf-8"))
        return noted["version"] if noted["url"] == file.url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def size_of(path):
    """Bytes of a file, 0 where there is none."""
    return path.stat().st_size if path.is_file() else 0


def sha256_of(path):
    """Hex digits of a file's sha256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
