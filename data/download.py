"""Fetches text from elsewhere: a Chinese Wikipedia from Hugging Face (six parquet files, 1.7 GB), or any files.

    python data/download.py                                       # wikimedia/wikipedia, 20231101.zh
    python data/download.py --mirror=https://hf-mirror.com        # where huggingface.co cannot be reached
    python data/download.py --urls=files.txt                      # a line each: address [sha256] [bytes]
    python data/download.py --urls=https://example.org/a.jsonl

The same command goes on where it was broken off. `--help` lists the settings.
"""

import hashlib
import json
import os
import re
import sys
import unicodedata
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import requests
import urllib3
from tqdm import tqdm

from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.corpus.fetch import (
    NOTES,
    PARTIAL,
    RECORD,
    Broken,
    Failure,
    Fetcher,
    Patience,
    Source,
    check_status,
    insist,
    is_of,
    read_dict,
)
from minigpt.openai_client import is_near, reason_of
from minigpt.settings.parse import load_settings

ENDPOINT, MIRROR = "https://huggingface.co", "https://hf-mirror.com"
MAX_PAGE = 1 << 24  # bytes of a page of a dataset's list
MAX_PAGES = 1000
LIST_RETRIES = 2  # that a site cannot be reached is told soon, so that a mirror can be tried
MAX_NAME = 180  # bytes of a file's name; what is added to it must fit into 255
SHA256 = re.compile("[0-9a-f]{64}")
LIST_LINE = re.compile(r"(\S+)(?:\s+([0-9a-fA-F]{64}))?(?:\s+([0-9]{1,18}))?")
UNSAFE = re.compile(r'[<>:"/\\|?*]')
RESERVED = re.compile(r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9¹²³])\s*(\..*)?", re.IGNORECASE)


class Web(requests.Session):
    """Asks for addresses. token: sent to `endpoint`, and to no other host."""

    def __init__(self, endpoint="", token="", stall_seconds=30.0):
        super().__init__()
        self.endpoint, self.token, self.stall_seconds, self.max_redirects = endpoint, token, stall_seconds, 10

    def merge_environment_settings(self, url, *arguments):
        found = super().merge_environment_settings(url, *arguments)
        return {**found, "proxies": {}} if is_near(url) else found

    def rebuild_proxies(self, prepared_request, proxies):
        return {} if is_near(prepared_request.url) else super().rebuild_proxies(prepared_request, proxies)

    def get_redirect_target(self, resp):
        """Where a response redirects to, or None. Raises Failure where that is not safe."""
        target = super().get_redirect_target(resp)
        if target:
            scheme = urlsplit(urljoin(resp.url, target)).scheme  # ValueError: `ask` makes a Failure of it
            if scheme not in ("http", "https") or (scheme == "http" and resp.url.startswith("https:")):
                raise Failure(f"it redirects to {target[:80]!r}, which is not followed from {resp.url[:80]}")
            resp.close()  # or its body, which may have no end, would be read
        return target

    def ask(self, url, headers=()):
        """The open response to a GET, redirects followed; its status may be any. Raises Broken, Failure."""
        ours = self.token and urlsplit(url)[:2] == urlsplit(self.endpoint)[:2]
        token = {"Authorization": f"Bearer {self.token}"} if ours else {}
        headers = {"Accept-Encoding": "identity", **token, **dict(headers)}
        auth = (lambda request: request) if ours else None  # or a .netrc would take the token's place
        try:
            return self.get(url, headers=headers, auth=auth, stream=True, timeout=self.stall_seconds)
        except requests.TooManyRedirects:
            raise Failure(f"it redirects more than {self.max_redirects} times, in a circle perhaps") from None
        except ValueError as error:  # no address after all, or a proxy that cannot be used
            raise Failure(f"it cannot be asked for ({str(error)[:200]})") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            # The reason alone: the whole message has the address in it, whose words say nothing about the error.
            why = reason_of(getattr(error.args[0] if error.args else error, "reason", error))
            raise Broken(f"{urlsplit(url).netloc} does not answer ({why})") from None


def check_url(url, where):
    """An http(s) address without its fragment. Raises UserError that says `where` a wrong one stands."""
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        right = False
    if not right or not url.isprintable() or " " in url or "\\" in url:
        raise UserError(f"{where}: {url!r} is no address; write it like https://example.org/file.parquet")
    if "@" in parts.netloc:
        raise UserError(f"{where}: an address with a password in it is not taken, since it would be written to disk")
    return parts._replace(fragment="").geturl()


def read_urls(items):
    """`Source`s of addresses, and of text files with a line `address [sha256] [bytes]` each.

    Raises UserError that names file and line.
    """
    sources = []
    for item in items:
        if "://" in item:
            sources.append(Source(check_url(item, "urls")))
            continue
        try:
            text = Path(item).read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise UserError(f"urls: {item} is neither an http(s) address nor a file that is there") from None
        except (OSError, ValueError) as error:
            raise UserError(f"urls: {item} cannot be read as UTF-8 text ({type(error).__name__})") from None
        for number, line in enumerate(text.splitlines(), start=1):
            line = re.sub(r"(^|\s)#.*", "", line).strip()
            if not line:
                continue
            where = f"{item}, line {number}"
            if not (found := LIST_LINE.fullmatch(line)):
                wrong = line if len(line) < 100 else line[:100] + "…"
                raise UserError(f"{where}: write address, sha256 (64 hex digits) and bytes, not {wrong!r}")
            size = None if found[3] is None else int(found[3])
            sources.append(Source(check_url(found[1], where), found[2] and found[2].lower(), size))
    if not sources:
        raise UserError(f"urls: no address in {', '.join(items)}")
    return sources


def safe_name(url, mark=""):
    """The file name of an address as every system can write it: no path, not reserved, not too long.

    mark: what is put before the ending, to tell it from another one.
    """
    parts = urlsplit(url)
    name = unquote(parts.path.rstrip("/").rpartition("/")[2]) or parts.hostname
    name = unicodedata.normalize("NFC", UNSAFE.sub("_", name))
    name = "".join(c if c.isprintable() else "_" for c in name).strip(" .") or "file"
    if RESERVED.fullmatch(name) or name.lower().endswith((PARTIAL, NOTES)):
        name = f"_{name}_"
    stem, ending = os.path.splitext(name)
    if len(ending.encode()) > 20:
        stem, ending = name, ""
    room = MAX_NAME - len((mark + ending).encode())
    return (stem.encode()[:room].decode(errors="ignore") + mark + ending).rstrip(" .")


def named(sources, folder):
    """Sources with the names that their files get in a folder.

    An address given twice is fetched once; raises UserError where it is given two sizes or sums. Of two addresses with
    one name, or where the folder has that name from another address, the second bears eight digits of its sha256.
    """
    # Without regard to case, as Windows and macOS take names.
    found, taken, record = {}, {}, {name.casefold(): about for name, about in read_dict(folder / RECORD).items()}
    for source in sources:
        older = found.get(source.url, source)
        if None not in (older.size, source.size) and older.size != source.size:
            raise UserError(f"urls: {source.url} is given twice, with {older.size} and {source.size} bytes")
        if None not in (older.sha256, source.sha256) and older.sha256 != source.sha256:
            raise UserError(f"urls: {source.url} is given twice, with two sha256")
        sha256, size = older.sha256 or source.sha256, source.size if older.size is None else older.size
        found[source.url] = Source(source.url, sha256, size)
    for source in found.values():
        name = safe_name(source.url)
        held = [about for about in (record.get(name.casefold()), read_dict(folder / (name + NOTES))) if about]
        ours = all(is_of(about, source) or about.get("url") == source.url for about in held if isinstance(about, dict))
        if not ours or name.casefold() in taken:
            name = safe_name(source.url, "-" + hashlib.sha256(source.url.encode()).hexdigest()[:8])
        taken[name.casefold()] = replace(source, name=name)
    return list(taken.values())


def read_dataset(web, dataset, patience):
    """`Source`s of all files in a folder of a Hugging Face dataset, "owner/name/folder". Raises UserError."""
    parts = [quote(part) for part in dataset.strip("/").split("/")]
    if len(parts) < 2 or not all(parts) or {".", ".."} & set(parts):
        raise UserError(f"dataset: {dataset!r} is not like wikimedia/wikipedia/20231101.zh")
    place = f"datasets/{parts[0]}/{parts[1]}"
    url, seen, sources = f"{web.endpoint}/api/" + "/".join([place, "tree/main", *parts[2:]]), set(), []
    patience = replace(patience, retries=min(patience.retries, LIST_RETRIES))
    try:
        while url and url not in seen and len(seen) < MAX_PAGES:
            seen.add(url)
            rows, following = insist(partial(list_page, web, url), patience, partial(tell, "list of files"))
            for path, size, sha256 in rows:
                name = path.rpartition("/")[2]
                if name.startswith(".") or name == "README.md":  # .gitattributes: nobody's rows
                    continue
                sources.append(Source(f"{web.endpoint}/{place}/resolve/main/{quote(path)}", sha256, size))
            # A mirror may name the next page by the original's address: its path is asked for, at the endpoint.
            start = urljoin(url, following or "").find("/api/datasets/")
            url = following and start >= 0 and web.endpoint + urljoin(url, following)[start:]
        if not sources:
            raise Failure("there is no file in it")
    except Failure as failure:
        about = f"the list of dataset {dataset} cannot be had from {web.endpoint}: "
        if failure.status == 401:
            raise UserError(f"{about}not there, or not permitted: see to --dataset, or set HF_TOKEN") from None
        away = failure.status is None or failure.status >= 500
        hint = f". Where that site cannot be reached, try --mirror={MIRROR}" if away else "; see to --dataset"
        raise UserError(f"{about}{failure}{hint}") from None
    return sources


def list_page(web, url):
    """([(path, size or None, sha256 or None)] of a page of a list, the next page's address or None). Raises Broken,
    Failure."""
    with web.ask(url) as response:
        check_status(response)
        try:
            found = []
            for row in json.loads(response.raw.read(MAX_PAGE, decode_content=True)):
                if row["type"] == "file":
                    lfs = row.get("lfs") or {}
                    size, sha256 = lfs.get("size", row.get("size")), SHA256.fullmatch(str(lfs.get("oid")).lower())
                    size = size if type(size) is int and size >= 0 else None
                    found.append((row["path"] + "", size, sha256 and sha256[0]))
        except (urllib3.exceptions.HTTPError, OSError):
            raise Broken("the connection broke off") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            kind = response.headers.get("Content-Type", "no type")[:60]
            raise Failure(f"what it sends is no list of files ({kind})") from None
        return found, response.links.get("next", {}).get("url")


def tell(name, line):
    tqdm.write(f"{name}: {line}", file=sys.stderr)


class Bars:
    """A bar for each file, with its rate and the time that is left."""

    def __init__(self):
        self.name, self.bar = "", None

    def show(self, name, have, size):
        """Show that a file has so many bytes of `size` (None: not known)."""
        if self.bar is None or name != self.name or have < self.bar.n:
            self.close()
            self.name = name
            self.bar = tqdm(desc=name, total=size, initial=have, unit="B", unit_scale=True)
        self.bar.update(have - self.bar.n)

    def close(self):
        if self.bar is not None:
            self.bar.close()


def download(settings):
    """Fetch what the settings name; returns the `Fetcher`, which knows what came of it."""
    endpoint = settings.mirror or os.environ.get("HF_ENDPOINT") or ENDPOINT
    endpoint = check_url(endpoint, "mirror" if settings.mirror else "HF_ENDPOINT").rstrip("/")
    token, folder = os.environ.get("HF_TOKEN", "").strip(), Path(settings.download_dir)
    if not (token.isascii() and token.isprintable()):
        raise UserError("HF_TOKEN has characters that no header can bear; copy it again")
    patience, bars = Patience(settings.retries), Bars()
    with Web(endpoint, token, settings.stall_seconds) as web:
        sources = read_urls(settings.urls) if settings.urls else read_dataset(web, settings.dataset, patience)
        fetcher = Fetcher(folder, web, patience, tell, bars.show)
        try:
            fetcher.fetch_all(named(sources, folder))
        finally:
            bars.close()
    return fetcher


def main():
    settings = load_settings("download")
    folder = settings.download_dir
    try:
        fetcher = download(settings)
    except KeyboardInterrupt:
        print(f"\nwhat came is kept in {folder}; the same command goes on from there", file=sys.stderr)
        raise
    done, there = len(fetcher.done), len(fetcher.there)
    print(f"{done} files fetched ({tqdm.format_sizeof(fetcher.fetched, 'B')} came), {there} were there already")
    print(f"in {folder}: {done + there} files, {fetcher.size:,} bytes")
    if failed := fetcher.failed:
        reasons = "; ".join(f"{name}: {why}" for name, why in failed.items())
        raise UserError(
            f"{len(failed)} of {done + there + len(failed)} files failed: {reasons}. The same command goes on"
        )
    shown = f'"{folder}"' if " " in folder else folder
    print(f"next: python data/prepare.py --input_dir={shown}")


if __name__ == "__main__":
    run_script(main)
