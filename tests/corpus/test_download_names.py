"""The names that files from elsewhere get, and who is sent the token."""

import pytest
from download_fakes import DATA, files
from processes import done

from data.download import safe_name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b/c.parquet?download=true", "c.parquet"),
        ("a/", "a"),
        ("", "example.org"),
        ("%E7%BB%B4%E5%9F%BA.jsonl", "维基.jsonl"),
        ("..%2F..%2Fetc%2Fpasswd", "_.._etc_passwd"),
        ("..%5Cboot.ini", "_boot.ini"),
        ("%2e%2e", "file"),
        (".bashrc", "bashrc"),
        ("CON", "_CON_"),
        ("lpt1.txt", "_lpt1.txt_"),
        ("a%00b%0A%3A%2A%22c.txt", "a_b____c.txt"),
        ("a%E2%80%AEfdp.exe", "a_fdp.exe"),
        ("x.partial", "_x.partial_"),
        ("end.%20.", "end"),
        ("%FF.txt", "\ufffd.txt"),
        ("%E9%95%BF" * 200 + ".jsonl", "长" * 58 + ".jsonl"),
    ],
)
def test_a_name_from_an_address_is_one_that_every_system_can_write(path, name):
    assert safe_name(f"https://example.org/{path}") == name


def test_a_token_is_not_sent_with_addresses_of_another_host(script, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with files(f=DATA) as server:
        assert "1 files fetched" in done(script("data/download.py", f"--urls={server.address}/f", "--download_dir=got"))
        assert server.seen and not any("Authorization" in headers for _, headers, _ in server.seen)
