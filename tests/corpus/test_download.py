"""Files from elsewhere: whole and right after every fault, or an error that says what is wrong."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import requests
from corpora import ROOT
from download_fakes import DATA, DATASET, OTHER, files, hub, sha256
from filelock import FileLock
from processes import done, error_of

from data.download import Web, named, read_urls
from minigpt.common.errors import UserError
from minigpt.corpus import fetch as downloads
from minigpt.corpus.fetch import LOCK, RECORD, Failure, Fetcher, Patience, Source

SUM = sha256(DATA)


def fetch(folder, *sources, retries=3, stall_seconds=20.0, **web):
    """The `Fetcher` after it has fetched; nothing half is left of what it says is done."""
    patience = Patience(retries, first_wait=0.01, longest_wait=0.02)
    lines = []
    with Web(stall_seconds=stall_seconds, **web) as session:
        fetcher = Fetcher(folder, session, patience, lambda name, line: lines.append(line))
        fetcher.fetch_all(named(sources, folder))
    fetcher.lines = lines
    for name in fetcher.done:
        assert not list(folder.glob(f"{name}.partial*"))
    return fetcher


def ranges(server):
    """The Range headers that a server was sent, None where there was none."""
    return [headers.get("Range") for _, headers, _ in server.seen]


@pytest.fixture
def server():
    with files(f=DATA) as about:
        yield about


# What goes wrong before all is well; what is known of the file; how often the server is asked.
KNOWN, SIZED, UNKNOWN = {"sha256": SUM, "size": len(DATA)}, {"size": len(DATA)}, {}
MENDED = {
    "drops the connection again and again": (["drop"] * 4, UNKNOWN, 5),
    "closes the connection unasked": (["reset", "reset"], UNKNOWN, 3),
    "promises more than it has, once": (["long_length"], UNKNOWN, 2),
    "promises more than is known": (["long_length"], KNOWN, 2),
    "promises less than is known": (["short_length"], SIZED, 2),
    "ignores the range": (["drop", "no_range"], UNKNOWN, 2),
    "ignores the range and drops": (["drop", "no_range_drop", "no_range"], UNKNOWN, 3),
    "sends another range": (["drop", "wrong_start"], KNOWN, 3),
    "sends another range again": (["drop", "wrong_start", "wrong_start"], UNKNOWN, 4),
    "sends a range without saying which": (["drop", "no_content_range"], UNKNOWN, 3),
    "sends a range of a file of another size": (["drop", "wrong_total"], UNKNOWN, 3),
    "has an error": (["error", "error", "error"], UNKNOWN, 4),
    "has errors between bytes": (["drop", "error", "error", "drop", "error", "error", "error"], UNKNOWN, 8),
    "sends a corrupt file once": (["corrupt"], KNOWN, 2),
    "sends a corrupt half once": (["corrupt_half"], KNOWN, 3),
    "sends pieces of no known length": (["chunked"], UNKNOWN, 1),
    "drops in pieces of no known length": (["chunked_drop"], UNKNOWN, 2),
    "redirects": (["moved"], UNKNOWN, 2),
    "redirects with an endless body": (["endless_moved"], UNKNOWN, 2),
    "sends a page instead": (["html"], KNOWN, 2),
}


@pytest.mark.parametrize("case", MENDED)
def test_a_file_is_whole_and_right_after_a_fault(server, tmp_path, case):
    faults, known, asked = MENDED[case]
    server.faults["/f"], server.files["/real/f"] = list(faults), DATA
    fetcher = fetch(tmp_path, Source(f"{server.address}/f", **known))
    assert fetcher.failed == {} and fetcher.done == ["f"]
    assert (tmp_path / "f").read_bytes() == DATA and len(server.seen) == asked
    assert all(headers["Accept-Encoding"] == "identity" for _, headers, _ in server.seen)
    assert (
        sorted(os.listdir(tmp_path))[:1] == [RECORD]
        and json.loads((tmp_path / RECORD).read_bytes())["f"]["sha256"] == SUM
    )


FAILING = {
    "promises more than is known": (["long_length"], KNOWN, "300,100 bytes of it, not 300,000"),
    "promises less than is known": (["short_length"], KNOWN, "299,900 bytes of it, not 300,000"),
    "promises more than it has": (["no_range_long"], UNKNOWN, "tried 4 times"),
    "is always corrupt": (["corrupt"], KNOWN, SUM),
    "is always broken": (["error"], UNKNOWN, "status 500 (tried 4 times)"),
    "asks to wait for hours": (["busy_for_hours"], UNKNOWN, "asks to wait 7200 s"),
    "changes at each request": (["ever_new"], UNKNOWN, "keeps changing"),
    "is not there": (["missing"], UNKNOWN, "not there"),
    "wants a token": (["unauthorized"], UNKNOWN, "HF_TOKEN"),
    "forbids": (["forbidden"], UNKNOWN, "HF_TOKEN"),
    "refuses": (["teapot"], UNKNOWN, "refused (status 418)"),
    "redirects in a circle": (["loop"], UNKNOWN, "in a circle"),
    "redirects out of the web": (["elsewhere"], UNKNOWN, "not followed"),
    "sends a page instead": (["html"], UNKNOWN, "a web page in its place"),
    "compresses unasked": (["gzip"], UNKNOWN, "compressed (gzip)"),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_fault_that_stays_is_told_and_the_other_files_are_fetched(server, tmp_path, case):
    faults, known, told = FAILING[case]
    server.faults["/f"], server.files["/g"], server.elsewhere = list(faults), OTHER, "file:///etc/hosts"
    server.always.add("/f")
    fetcher = fetch(tmp_path, Source(f"{server.address}/f", **known), Source(f"{server.address}/g"))
    assert told in fetcher.failed["f"] and not (tmp_path / "f").exists()
    assert fetcher.done == ["g"] and (tmp_path / "g").read_bytes() == OTHER
    if case == "is always corrupt":
        wrong = sha256(bytes([DATA[0] ^ 1]) + DATA[1:])
        assert wrong in fetcher.failed["f"] and len(server.seen) == 3 and not (tmp_path / "f.partial").exists()


@pytest.mark.parametrize("target", ["http://example.org/f", "ftp://example.org/f", "data:,x", "//[bad"])
def test_a_redirect_leads_neither_from_https_to_http_nor_out_of_the_web(target):
    response = requests.Response()
    response.url, response.status_code, response.headers["Location"] = "https://example.org/", 302, target
    with pytest.raises((Failure, ValueError)):
        Web().get_redirect_target(response)


def test_a_connection_without_a_byte_is_broken_and_tried_again(server, tmp_path):
    server.faults["/f"] = ["stall", "silent"]
    fetcher = fetch(tmp_path, Source(f"{server.address}/f"), retries=20, stall_seconds=0.5)
    assert fetcher.done == ["f"] and (tmp_path / "f").read_bytes() == DATA
    assert "no byte came within stall_seconds" in fetcher.lines[0] and "timed out" in fetcher.lines[1]


def test_a_busy_server_is_waited_for_as_long_as_it_asks(server, tmp_path):
    server.faults["/f"] = ["busy"]
    assert fetch(tmp_path, Source(f"{server.address}/f")).done == ["f"]
    (*_, first), (*_, second) = server.seen
    assert second - first >= 0.3


@pytest.mark.parametrize("second", ["good", "blind"])
def test_a_file_that_changes_between_two_tries_is_begun_again(server, tmp_path, second):
    server.faults["/f"] = ["drop_and_change", second]
    assert fetch(tmp_path, Source(f"{server.address}/f")).done == ["f"]
    assert (tmp_path / "f").read_bytes() == OTHER[: len(DATA)]


def left(folder, server, content, **about):
    """An unfinished file as an earlier run leaves it."""
    (folder / "f.partial").write_bytes(content)
    about = {"url": f"{server.address}/f", "etag": None, "last_modified": None, "size": None, "sha256": None} | about
    (folder / "f.partial.json").write_text(json.dumps(about), encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "about", "known", "asked"),
    [
        (DATA[:1000], {}, {}, ["bytes=1000-"]),
        (DATA[:1000], {"size": len(DATA)}, KNOWN, ["bytes=1000-"]),
        (DATA[:1000], {"url": "http://mirror.example/f", "etag": '"other"', "sha256": SUM}, KNOWN, ["bytes=1000-"]),
        (DATA, {}, {}, ["bytes=300000-"]),  # 416, and whole
        (DATA + b"x", {}, {}, ["bytes=300001-", None]),  # 416, and too long
        (DATA, {}, KNOWN, []),
        (DATA + b"x", {}, KNOWN, [None]),
        (DATA[:1000], {"size": len(DATA) + 7}, {}, ["bytes=1000-", None]),
        (b"x" * 1000, {}, KNOWN, ["bytes=1000-", None]),
        (DATA[:1000], {"sha256": "0" * 64}, KNOWN, [None]),
        (DATA[:1000], {"size": "many"}, {}, [None]),
        (DATA[:1000], {"etag": f'"{SUM[:16]}"'}, {}, ["bytes=1000-"]),
        (DATA[:1000], {"etag": '"older"'}, {}, ["bytes=1000-"]),  # 200
    ],
)
def test_what_an_earlier_run_left_is_gone_on_with_where_it_is_the_same_file(
    server, tmp_path, content, about, known, asked
):
    left(tmp_path, server, content, **about)
    assert fetch(tmp_path, Source(f"{server.address}/f", **known)).failed == {}
    assert (tmp_path / "f").read_bytes() == DATA and ranges(server) == asked
    marks = [headers.get("If-Range") for _, headers, _ in server.seen]
    assert marks[:1] == ([about.get("etag")] if "etag" in about and "url" not in about else [None])[: len(asked)]


def test_a_file_that_is_there_is_not_fetched_again_but_never_taken_for_another(server, tmp_path, monkeypatch):
    source, whole = Source(f"{server.address}/f"), Source(f"{server.address}/f", **KNOWN)
    assert fetch(tmp_path, source).done == ["f"] and len(server.seen) == 1
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "digest_of", None)  # it is not read, either
        assert fetch(tmp_path, source).there == fetch(tmp_path, whole).there == ["f"]
    os.utime(tmp_path / "f", (1, 1))
    assert fetch(tmp_path, source).there == ["f"] and len(server.seen) == 1
    (tmp_path / "f").write_bytes(DATA[:-1] + b"?")  # spoilt on the disk
    assert fetch(tmp_path, source).done == ["f"] and (tmp_path / "f").read_bytes() == DATA

    (tmp_path / RECORD).unlink()
    assert fetch(tmp_path, whole).there == ["f"] and len(server.seen) == 2
    (tmp_path / RECORD).write_text('{"f": 5}')
    assert fetch(tmp_path, source).there == ["f"] and len(server.seen) == 3  # asked for its size
    for content, known in ((b"mine", {}), (b"mine", KNOWN), (DATA[:-1] + b"?", KNOWN)):
        (tmp_path / RECORD).unlink(missing_ok=True)
        (tmp_path / "f").write_bytes(content)
        assert "move it away" in fetch(tmp_path, Source(source.url, **known)).failed["f"]
        assert (tmp_path / "f").read_bytes() == content


def test_two_addresses_with_one_name_are_two_files_also_in_another_order_and_run(server, tmp_path):
    server.files |= {"/a/x.bin": DATA, "/b/X.bin": OTHER}
    a, b = Source(f"{server.address}/a/x.bin"), Source(f"{server.address}/b/X.bin")
    first, second = fetch(tmp_path, a, b, a).done
    assert first == "x.bin" and second.startswith("X-") and second.endswith(".bin")
    assert (tmp_path / first).read_bytes() == DATA and (tmp_path / second).read_bytes() == OTHER
    assert fetch(tmp_path, b, a).there == [second, first]
    with pytest.raises(UserError, match="given twice"):
        named([Source("http://x/f", size=1), Source("http://x/f", size=2)], tmp_path)


def test_a_list_gives_sums_and_sizes_and_a_bad_line_is_named_before_anything_is_fetched(server, tmp_path, script):
    url = f"{server.address}/f"
    lines = f"{url} {SUM.upper()} 300000  # whole\n{url}2\t300000\n{url}3 {SUM}\r\n{url}4#x"
    (tmp_path / "good.txt").write_text(f"\ufeff# files\n\n{lines}", encoding="utf-8")
    assert read_urls([str(tmp_path / "good.txt"), url]) == [
        Source(url, SUM, 300000), Source(f"{url}2", None, 300000), Source(f"{url}3", SUM), Source(f"{url}4"),
        Source(url),
    ]  # fmt: skip
    for line in (f"{url} {SUM[1:]}", f"{url} 5 {SUM}", f"{url} x", "f.txt", "ftp://x/f", "http://", "http://u:p@x/f"):
        (tmp_path / "bad.txt").write_text(f"{url}\n\n{line}\n", encoding="utf-8")
        with pytest.raises(UserError, match=r"bad\.txt, line 3: "):
            read_urls([str(tmp_path / "bad.txt")])
    assert "bad.txt, line 3" in error_of(script("data/download.py", f"--urls={url},bad.txt"))
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    for item, told in (("nowhere.txt", "neither"), ("ftp://x/f", "no address"), (str(tmp_path / "bytes.txt"), "UTF-8")):
        with pytest.raises(UserError, match=told):
            read_urls([item])
    assert server.seen == [] and not (tmp_path / "data").exists()


@pytest.fixture
def environment(monkeypatch):
    """Set the environment of scripts; what might lead them elsewhere is gone from it."""
    for name in ("HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # near addresses are asked without it
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    return monkeypatch.setenv


FLAGS = ["data/download.py", "--dataset=someone/wiki/zh", "--download_dir=got"]


@pytest.mark.parametrize("given", ["flag", "environment"])
def test_a_dataset_is_listed_page_by_page_and_fetched_and_the_token_stays_with_its_host(
    script, tmp_path, environment, given
):
    with hub() as site:
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login other password other\n", encoding="utf-8")
        environment("NETRC", str(tmp_path / "netrc"))  # does not take the token's place
        environment("HF_TOKEN", "hf_secret")
        environment("HF_ENDPOINT", site.address if given == "environment" else "http://127.0.0.1:9")
        mirror = [f"--mirror={site.address}/"] if given == "flag" else []
        said = done(script(*FLAGS, *mirror))
        assert (tmp_path / "got/a.parquet").read_bytes() == DATA
        assert (tmp_path / "got/b.parquet").read_bytes() == OTHER
        assert "2 files fetched" in said and "610,000 bytes" in said
        assert "next: python data/prepare.py --input_dir=got" in said
        assert len(site.seen) == 4 and all(h["Authorization"] == "Bearer hf_secret" for _, h, _ in site.seen)
        assert len(site.store.seen) == 2 and not any("Authorization" in h for _, h, _ in site.store.seen)
        assert "0 files fetched" in done(script(*FLAGS, *mirror)) and len(site.store.seen) == 2


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("html", "--mirror=https"), ("missing", "not there"), ("loop", "--mirror=https"), ("closed", "--mirror=https"),
        ("error", "--mirror=https"), ("unauthorized", "not there, or not permitted: see to --dataset, or set HF_TOKEN"),
    ],
)  # fmt: skip
def test_a_list_that_cannot_be_had_is_told_with_what_to_try(script, environment, fault, told):
    with hub() as site:
        site.faults[DATASET] = [fault]
        site.always.add(DATASET)
        address = site.address if fault != "closed" else "http://127.0.0.1:9"
        line = error_of(script(*FLAGS, f"--mirror={address}", "--retries=0"))
    assert (
        told in line
        and ("--mirror=https" in line) == ("--mirror=https" in told)
        and "someone/wiki/zh" in line
        and address in line
    )


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--dataset=wiki"], "not like wikimedia/wikipedia/20231101.zh"),
        (["--mirror=hf-mirror.com"], "write it like https://"),
        (["--urls=nowhere.txt"], "nowhere.txt"),
        (["--urls=http://127.0.0.1:9/f", "--download_dir=taken/x"], "cannot be written to"),
    ],
)
def test_a_users_mistake_is_one_line(script, tmp_path, environment, flags, told):
    (tmp_path / "taken").write_bytes(b"")
    assert told in error_of(script("data/download.py", *flags))


def test_a_folder_is_one_downloads_and_must_be_writable_and_large_enough(server, tmp_path, monkeypatch):
    source = Source(f"{server.address}/f", **KNOWN)
    with FileLock(tmp_path / LOCK), pytest.raises(UserError, match="another download is at work"):
        fetch(tmp_path, source)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=299_999))
        with pytest.raises(UserError, match="300,000 bytes are needed, 299,999 are free"):
            fetch(tmp_path, source)
        assert server.seen == []
        failed = fetch(tmp_path, Source(source.url)).failed["f"]  # of a size that the server tells
        assert "300,000 bytes are needed" in failed

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(downloads, "next_chunk", full)
        assert fetch(tmp_path, source).failed["f"] == (
            "cannot be written (No space left on device); 300,000 bytes more are needed"
        )
    assert fetch(tmp_path, source).done == ["f"]
    if hasattr(os, "geteuid") and os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(UserError, match="cannot be written to"):
            fetch(tmp_path, source)
        tmp_path.chmod(0o700)


def half_way(server, tmp_path):
    """The script as a process, with 70,000 bytes of f on the disk and none to come."""
    server.faults["/f"] = ["stall"]
    arguments = [f"--urls={server.address}/f", "--download_dir=got", "--stall_seconds=60"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "data/download.py"), *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    partial, deadline = tmp_path / "got/f.partial", time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size == 70_000):
        assert process.poll() is None and time.monotonic() < deadline, "it never came half way"
        time.sleep(0.01)
    return process, arguments


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither signal for another process")
@pytest.mark.parametrize("sent", ["SIGINT", "SIGKILL"])
def test_a_download_that_is_stopped_or_killed_goes_on_by_the_same_command(server, tmp_path, script, sent):
    process, arguments = half_way(server, tmp_path)
    process.send_signal(getattr(signal, sent))
    _, said = process.communicate(timeout=60)
    assert not (tmp_path / "got/f").exists() and (tmp_path / "got/f.partial").read_bytes() == DATA[:70_000]
    if sent == "SIGINT":
        assert process.returncode == 130 and "Traceback" not in said
        assert "the same command goes on" in said and "got" in said
    assert "1 files fetched" in done(script("data/download.py", *arguments))
    assert (tmp_path / "got/f").read_bytes() == DATA and ranges(server) == [None, "bytes=70000-"]
    assert not list((tmp_path / "got").glob("*.partial*"))


@pytest.mark.parametrize("name", ["f.parquet", "f.jsonl.gz", "f.zst", "f.xz", "f.bz2"])
def test_a_file_of_which_nothing_is_known_begins_as_its_name_says(tmp_path, name):
    with files(**{name: DATA}) as server:
        assert "does not begin" in fetch(tmp_path, Source(f"{server.address}/{name}")).failed[name]
        assert not (tmp_path / name).exists()
        assert fetch(tmp_path, Source(f"{server.address}/{name}", **KNOWN)).done == [name]


@pytest.mark.soak_only
def test_a_large_file_over_a_line_that_drops_all_the_time_is_whole(tmp_path):
    large = random.Random(3).randbytes(10_000_000)
    with files(f=large) as server:
        server.faults["/f"] = ["drop", "error"] * 140
        assert fetch(tmp_path, Source(f"{server.address}/f", sha256=sha256(large)), retries=1).done == ["f"]
    assert (tmp_path / "f").read_bytes() == large


def test_a_failed_file_ends_the_script_with_its_name_and_reason(server, tmp_path, script, environment):
    server.files["/g"] = OTHER
    process = script("data/download.py", f"--urls={server.address}/none,{server.address}/g", "--download_dir=got")
    line = error_of(process)
    assert "1 of 2 files failed: none: not there" in line and "1 files fetched" in process.stdout
    assert (tmp_path / "got/g").read_bytes() == OTHER
