"""Downloads: whole and right after every fault, or an error that says what is wrong."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import requests
from corpora import ROOT
from download_fakes import DATA, DATASET, HALF, OTHER, files, hub, sha256
from filelock import FileLock
from processes import done, error_of

from data.download import read_urls
from minigpt.common.errors import UserError
from minigpt.corpus import fetch
from minigpt.corpus.fetch import LOCK, RemoteFile, download_files, safe_name

KNOWN, UNKNOWN = {"sha256": sha256(DATA), "size": len(DATA)}, {}


@pytest.fixture
def server():
    with files(f=DATA) as about:
        yield about


@pytest.fixture
def waits(monkeypatch):
    """The seconds between attempts, which are not waited for."""
    seconds = []
    monkeypatch.setattr(fetch, "time", SimpleNamespace(sleep=seconds.append))  # other threads sleep as they do
    return seconds


def download(folder, *sources, retries=3, timeout=60):
    """(downloaded, kept, failed) of `download_files`."""
    with requests.Session() as session:
        session.max_redirects = 5
        found = download_files(session, sources, folder, retries, timeout)
    for name in found[0]:
        assert not list(folder.glob(f"{name}.partial*"))
    return found


def ranges(server):
    return [headers.get("Range") for _, headers in server.seen]


# Faults before all is well; what is known of the file; ranges that are asked for.
REST = f"bytes={HALF}-"
MENDED = {
    "drops the connection": (["drop", "drop"], UNKNOWN, [None, REST, f"bytes={2 * HALF}-"]),
    "drops it, and the sha256 is known": (["drop"], KNOWN, [None, REST]),
    "ignores the range": (["drop", "no_range"], UNKNOWN, [None, REST]),
    "sends another range": (["drop", "wrong_start"], KNOWN, [None, REST, None]),
    "has errors": (["error", "error", "drop", "error"], UNKNOWN, [None, None, None, REST, REST]),
    "asks to wait": (["busy"], UNKNOWN, [None, None]),
}


@pytest.mark.parametrize("case", MENDED)
def test_a_file_is_whole_and_right_after_a_fault(server, tmp_path, waits, case):
    faults, known, asked = MENDED[case]
    server.faults["/f"] = list(faults)
    assert download(tmp_path, RemoteFile(f"{server.address}/f", "f", **known)) == (["f"], [], {})
    assert (tmp_path / "f").read_bytes() == DATA and ranges(server) == asked
    assert all(headers["Accept-Encoding"] == "identity" for _, headers in server.seen)
    if case == "asks to wait":
        assert waits == [7]


def test_a_file_that_changes_between_two_attempts_is_begun_again(server, tmp_path, waits):
    server.faults["/f"] = ["drop_and_change"]
    assert download(tmp_path, RemoteFile(f"{server.address}/f", "f"))[0] == ["f"]
    assert (tmp_path / "f").read_bytes() == OTHER[: len(DATA)]


def test_a_connection_without_a_byte_is_ended_and_tried_again(server, tmp_path, waits, capsys):
    server.faults["/f"] = ["stall"]
    assert download(tmp_path, RemoteFile(f"{server.address}/f", "f"), retries=100, timeout=0.2)[0] == ["f"]
    assert (tmp_path / "f").read_bytes() == DATA
    assert "timed out" in capsys.readouterr().err


FAILING = {
    "is corrupt": ("corrupt", KNOWN, sha256(bytes([DATA[0] ^ 1]) + DATA[1:])),
    "has another size": ("good", {"size": 5}, "300,000 bytes of it, not 5"),
    "is broken": ("error", UNKNOWN, "status 500 (tried 4 times)"),
    "wants a token": ("unauthorized", UNKNOWN, "HF_TOKEN"),
    "redirects in a circle": ("loop", UNKNOWN, "redirects"),
    "sends a page instead": ("html", UNKNOWN, "a web page in its place"),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_fault_that_stays_is_said_and_the_other_files_are_downloaded(server, tmp_path, waits, case):
    fault, known, said = FAILING[case]
    server.faults["/f"], server.files["/g"] = [fault], OTHER
    server.always.add("/f")
    sources = RemoteFile(f"{server.address}/f", "f", **known), RemoteFile(f"{server.address}/g", "g")
    downloaded, _, failed = download(tmp_path, *sources)
    assert said in failed["f"] and not (tmp_path / "f").exists() and not (tmp_path / "f.partial").exists()
    assert downloaded == ["g"] and (tmp_path / "g").read_bytes() == OTHER


def test_a_file_that_is_there_is_kept_and_never_taken_for_another(server, tmp_path):
    source, known = RemoteFile(f"{server.address}/f", "f"), RemoteFile(f"{server.address}/f", "f", **KNOWN)
    (tmp_path / "f").write_bytes(DATA)
    assert download(tmp_path, known) == ([], ["f"], {}) and server.seen == []
    assert download(tmp_path, source) == ([], ["f"], {})  # by the size that the server gives
    for content, wanted in ((b"mine", source), (b"mine", known), (DATA[:-1] + b"?", known)):
        (tmp_path / "f").write_bytes(content)
        assert "move it away" in download(tmp_path, wanted)[2]["f"]
        assert (tmp_path / "f").read_bytes() == content


def test_a_folder_has_one_download_at_a_time_and_a_full_disk_is_said(server, tmp_path, monkeypatch):
    source = RemoteFile(f"{server.address}/f", "f")
    with FileLock(tmp_path / LOCK), pytest.raises(UserError, match="another download"):
        download(tmp_path, source)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"cannot be written to \(No space left"):
        patch.setattr(fetch, "tqdm", lambda **_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        download(tmp_path, source)
    assert download(tmp_path, source)[0] == ["f"]


def test_a_list_gives_sums_and_sizes_and_a_bad_line_is_named_before_any_download(server, tmp_path, script):
    url = f"{server.address}/f"
    lines = f"{url} {KNOWN['sha256'].upper()} 300000  # whole\n{url}2\t300000\r\n{url}3#x"
    (tmp_path / "good.txt").write_text(f"\ufeff# files\n\n{lines}", encoding="utf-8")
    assert read_urls([str(tmp_path / "good.txt"), f"{url}3#x"]) == [
        RemoteFile(url, "f", **KNOWN), RemoteFile(f"{url}2", "f2", None, 300000), RemoteFile(f"{url}3#x", "f3"),
    ]  # fmt: skip
    for line in (f"{url} {KNOWN['sha256'][1:]}", f"{url} x", "f.txt", "ftp://x/f", "http://", "http://u:p@x/f"):
        (tmp_path / "bad.txt").write_text(f"{url}\n\n{line}\n", encoding="utf-8")
        with pytest.raises(UserError, match=r"bad\.txt, line 3: "):
            read_urls([str(tmp_path / "bad.txt")])
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    for items, said in (
        (["nowhere.txt"], "no text file"),
        (["ftp://x/f"], "is no address"),
        ([str(tmp_path / "bytes.txt")], "utf-8"),
        (["http://x/a/f", "http://x/b/F"], "2 addresses give a file f"),
    ):
        with pytest.raises(UserError, match=said):
            read_urls(items)
    assert "bad.txt, line 3" in error_of(script("data/download.py", f"--urls={url},bad.txt"))
    assert server.seen == [] and not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b/c.parquet?download=true", "c.parquet"),
        ("", "example.org"),
        ("%E7%BB%B4%E5%9F%BA.jsonl", "维基.jsonl"),
        ("..%2F..%2Fetc%2Fpasswd", "_.._etc_passwd"),
        ("..%5Cboot.ini", "_boot.ini"),
        ("%2e%2e", "file"),
        (".bashrc", "bashrc"),
        ("lpt1.txt", "_lpt1.txt_"),
        ("a%00b%0A%3A%2A%22c.txt", "a_b____c.txt"),
        ("x.partial", "_x.partial_"),
        ("%E9%95%BF" * 200 + ".jsonl", "长" * 58 + ".jsonl"),
    ],
)
def test_a_name_from_an_address_is_one_that_every_system_can_write(path, name):
    assert safe_name(f"https://example.org/{path}") == name


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Set the environment of scripts; nothing of this machine's Hugging Face settings is left in it."""
    for name in ("HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return monkeypatch.setenv


FLAGS = ["data/download.py", "--dataset=someone/wiki/zh", "--download_dir=got"]


def test_a_dataset_is_downloaded_and_the_token_stays_with_its_host(script, tmp_path, environment):
    with hub() as site:
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login other password other\n", encoding="utf-8")
        environment("NETRC", str(tmp_path / "netrc"))  # does not replace the token
        environment("HF_TOKEN", "hf_secret")
        site.store.faults["/a.parquet"] = ["drop"]
        said = done(script(*FLAGS, f"--mirror={site.address}/", own_process=True))
        assert (tmp_path / "got/a.parquet").read_bytes() == DATA
        assert (tmp_path / "got/b.parquet").read_bytes() == OTHER
        assert "2 files downloaded" in said and "2 files, 610,000 bytes" in said
        assert "next: python data/prepare.py --input_dir=got" in said
        tokens = {headers.get("authorization") or headers.get("Authorization") for _, headers in site.seen}
        assert len(site.seen) == 4 and tokens == {"Bearer hf_secret"}
        assert len(site.store.seen) == 3 and not any("Authorization" in h for _, h in site.store.seen)
        environment("HF_ENDPOINT", site.address)
        assert (
            "0 files downloaded, 2 were there already" in done(script(*FLAGS, own_process=True))
            and len(site.store.seen) == 3
        )


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("html", "--mirror=https://hf-mirror.com"), ("loop", "--mirror=https://hf-mirror.com"),
        ("closed", "--mirror=https://hf-mirror.com"), ("error", "status 500"),
        ("unauthorized", "not permitted: check --dataset, or set HF_TOKEN"),
    ],
)  # fmt: skip
def test_a_dataset_that_cannot_be_listed_is_said_with_what_to_do(script, environment, fault, said):
    with hub() as site:
        site.faults[DATASET] = [fault]
        site.always.add(DATASET)
        address = site.address if fault != "closed" else "http://127.0.0.1:9"
        line = error_of(script(*FLAGS, f"--mirror={address}", own_process=True))
    assert said in line and "someone/wiki/zh" in line and address in line
    assert ("--mirror=https" in line and "--urls=" in line) == (fault != "unauthorized")


def half_way(server, tmp_path):
    """The script as a process, with the half of f on the disk and no more to come."""
    server.faults["/f"] = ["stall"]
    flags = [f"--urls={server.address}/f,{server.address}/none", "--download_dir=got", "--stall_seconds=60"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "data/download.py"), *flags], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    partial = tmp_path / "got/f.partial"
    while not (partial.exists() and partial.stat().st_size == HALF):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    return process, flags


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither signal for another process")
@pytest.mark.parametrize("sent", ["SIGINT", "SIGKILL"])
def test_a_download_that_is_stopped_or_killed_goes_on_by_the_same_command(server, tmp_path, script, environment, sent):
    """And one of its files is not there, which ends the script with that file's name and reason."""
    environment("HF_TOKEN", "hf_secret")  # is not sent to any address of --urls
    process, flags = half_way(server, tmp_path)
    process.send_signal(getattr(signal, sent))
    _, said = process.communicate(timeout=60)
    assert not (tmp_path / "got/f").exists() and (tmp_path / "got/f.partial").read_bytes() == DATA[:HALF]
    if sent == "SIGINT":
        assert process.returncode == 130 and "Traceback" not in said
        assert "kept in got; the same command continues" in said
    again = script("data/download.py", *flags)
    assert "1 of 2 files failed: none: not there" in error_of(again) and "1 files downloaded" in again.stdout
    assert (tmp_path / "got/f").read_bytes() == DATA and ranges(server) == [None, REST, None]
    assert not any("Authorization" in headers for _, headers in server.seen)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--dataset=wiki"], "not like wikimedia/wikipedia/20231101.zh"),
        (["--mirror=hf-mirror.com"], "write it like https://"),
        (["--urls=http://127.0.0.1:9/f", "--download_dir=taken/x"], "cannot be written to"),
    ],
)
def test_a_users_mistake_is_one_line(script, tmp_path, environment, flags, said):
    (tmp_path / "taken").write_bytes(b"")
    assert said in error_of(script("data/download.py", *flags))


@pytest.mark.soak_only
def test_a_large_file_over_a_line_that_drops_all_the_time_is_whole(tmp_path, waits):
    large = os.urandom(10_000_000)
    with files(f=large) as server:
        server.faults["/f"] = ["drop", "error"] * 140
        assert download(tmp_path, RemoteFile(f"{server.address}/f", "f", sha256(large)), retries=1)[0] == ["f"]
    assert (tmp_path / "f").read_bytes() == large
