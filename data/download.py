"""Downloads text: a Chinese Wikipedia from Hugging Face (six parquet files, 1.7 GB), or any files.

    python data/download.py                                       # wikimedia/wikipedia, 20231101.zh
    python data/download.py --mirror=https://hf-mirror.com        # where huggingface.co cannot be reached
    python data/download.py --urls=files.txt                      # a line each: address [sha256] [bytes]
    python data/download.py --urls=https://example.org/a.jsonl

After a stop the same command continues. `--help` lists the settings.
"""

import os
import re
import sys
from collections import Counter
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# Else huggingface_hub first asks huggingface.co for a list, even where a mirror is set.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
import requests
from huggingface_hub import HfApi, constants, get_token, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from minigpt.common.cli import run_script
from minigpt.common.errors import UserError, first_line
from minigpt.corpus.fetch import RemoteFile, download_files, safe_name
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import DownloadSettings

MIRROR = "https://hf-mirror.com"
URL_LINE = re.compile(r"(\S+)(?:\s+([0-9a-fA-F]{64}))?(?:\s+([0-9]{1,18}))?")
DATASET = re.compile(r"([\w.-]+/[\w.-]+)((?:/[^/]+)*)/?")  # owner/name, and a folder in it


def check_url(url, where):
    """Raise UserError, naming where it stands, unless `url` is an http(s) address without a password."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not url.isprintable() or " " in url:
        raise UserError(f"{where}: {url!r} is no address; write it like https://example.org/file.parquet")
    if "@" in parts.netloc:
        raise UserError(f"{where}: an address with a password in it is not accepted, since it is written to disk")
    return url


def read_urls(items):
    """`RemoteFile`s of addresses, and of text files with a line `address [sha256] [bytes]` each.

    Raises UserError that names file and line.
    """
    files = []
    for item in items:
        if "://" in item:
            files.append(RemoteFile(check_url(item, "urls"), safe_name(item)))
            continue
        try:
            text = Path(item).read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise UserError(f"urls: {item} is no address, and no text file that can be read ({error})") from None
        for number, line in enumerate(text.splitlines(), start=1):
            line, where = re.sub(r"(^|\s)#.*", "", line).strip(), f"{item}, line {number}"
            if not line:
                continue
            if not (match := URL_LINE.fullmatch(line)):
                raise UserError(f"{where}: write address, sha256 (64 hex digits) and bytes, not {line[:100]!r}")
            url, sha256, size = match.groups()
            check_url(url, where)
            files.append(RemoteFile(url, safe_name(url), sha256 and sha256.lower(), size and int(size)))
    if not files:
        raise UserError(f"urls: no address in {', '.join(items)}")
    files = list(dict.fromkeys(files))
    # Without regard to case, as Windows and macOS compare names.
    (name, count), *_ = Counter(file.name.casefold() for file in files).most_common(1)
    if count > 1:
        raise UserError(f"urls: {count} addresses give a file {name}; download them into one --download_dir each")
    return files


def list_dataset(endpoint, dataset, timeout):
    """`RemoteFile`s of a folder of a Hugging Face dataset, "owner/name/folder"; large files have a sha256.

    endpoint: the address of the hub or of its mirror; timeout: in seconds. Raises UserError.
    """
    if not (match := DATASET.fullmatch(dataset)):
        raise UserError(f"dataset: {dataset!r} is not like wikimedia/wikipedia/20231101.zh")
    repository, folder = match[1], PurePosixPath(match[2].strip("/"))
    try:
        info = HfApi(endpoint).dataset_info(repository, files_metadata=True, timeout=timeout)
    except (HTTPError, OSError, ValueError, TypeError, KeyError) as error:  # the last three: it is not the hub's JSON
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status in (401, 403, 404):
            raise UserError(
                f"dataset {dataset} is not at {endpoint}, or not permitted: check --dataset, or set HF_TOKEN"
            ) from None
        reason = f"status {status}" if status else first_line(error)
        raise UserError(
            f"{endpoint} does not list dataset {dataset} ({reason}). If that site cannot be reached from here, try "
            f"--mirror={MIRROR}, or download files from elsewhere with --urls="
        ) from None
    files = []
    for sibling in info.siblings or []:
        path = PurePosixPath(sibling.rfilename)
        if path.parent == folder and not path.name.startswith((".", "README")):
            url = hf_hub_url(repository, sibling.rfilename, repo_type="dataset", endpoint=endpoint)
            files.append(RemoteFile(url, path.name, sibling.lfs and sibling.lfs.sha256, sibling.size))
    if not files:
        raise UserError(f"dataset {repository} has no file in {folder}; check --dataset")
    return files


def main():
    settings = load_settings(DownloadSettings)
    folder, session = settings.download_dir, requests.Session()
    if settings.urls:
        files = read_urls(settings.urls)
    else:
        endpoint = check_url(settings.mirror.rstrip("/") or constants.ENDPOINT, "mirror")
        files = list_dataset(endpoint, settings.dataset, settings.stall_seconds)
        if token := get_token():  # requests removes it where it is redirected to another host
            session.headers["Authorization"] = f"Bearer {token}"
            session.auth = lambda request: request  # else an entry of .netrc replaces it
    try:
        downloaded, kept, failed = download_files(session, files, folder, settings.retries, settings.stall_seconds)
    except KeyboardInterrupt:
        print(f"\nwhat was downloaded is kept in {folder}; the same command continues", file=sys.stderr)
        raise
    size = sum((Path(folder) / name).stat().st_size for name in downloaded + kept)
    print(f"{len(downloaded)} files downloaded, {len(kept)} were there already")
    print(f"in {folder}: {len(downloaded) + len(kept)} files, {size:,} bytes")
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise UserError(f"{len(failed)} of {len(files)} files failed: {reasons}. The same command continues")
    print("next: python data/prepare.py --input_dir=" + (f'"{folder}"' if " " in folder else folder))


if __name__ == "__main__":
    run_script(main)
