"""Requests that the page refuses: for files and addresses, from other hosts and origins, without a login."""

import http.client
import json
import socket
import uuid

import gradio_client
import pytest
from arena_fakes import __file__ as fake
from arena_fakes import arena_settings
from arena_visitors import ELSEWHERE, FIELDS
from serving_fakes import started

import sample_gradio
from minigpt.common.errors import UserError
from minigpt.common.net import announce_server

FILE = {"_type": "gradio.FileData"}


def ask_raw(arena, method, path, body=b"", **headers):
    """(status, body) of a plain request."""
    return arena.ask(method, path, body, headers={k.replace("_", "-"): v for k, v in headers.items()})[::2]


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/file=/etc/passwd", "/gradio_api/file=peers.json", "/gradio_api/file=../peers.json",
     "/gradio_api/file=arena/votes.jsonl", "/gradio_api/file=out/alpha/ckpt.pt", "/file=/etc/passwd",
     "/gradio_api/file=http://127.0.0.1:9/", "/gradio_api/file=https://example.com/x", "/gradio_api/file=HTTP://x/",
     "/gradio_api/proxy=http://127.0.0.1:9/", "/gradio_api/vibe-code", "/gradio_api/deep_link", "/monitoring",
     "/monitoring/summary", "/gradio_api/run-history/buckets", "/gradio_api/custom_component/x/y/z/w",
     "/static/../../peers.json",
     "/gradio_api/../peers.json", "/assets/..%2f..%2f..%2fpeers.json"],
)  # fmt: skip
def test_no_file_and_no_address_is_fetched_for_a_visitor(arena, peers_file, path):
    peers_file.write_text('[{"name": "a", "address": "x", "key": "geheim"}]', encoding="utf-8")
    status, body = ask_raw(arena, "GET", path)
    assert status in (403, 404, 405, 422) and b"geheim" not in body and b"root:" not in body


def raw(arena, name, data):
    """The event stream of a function that is sent these data (gradio_client would upload files first)."""
    session, config = uuid.uuid4().hex, json.loads(ask_raw(arena, "GET", "/config")[1])
    (index,) = (each["id"] for each in config["dependencies"] if each["api_name"] == name)
    body = json.dumps({"data": data, "fn_index": index, "session_hash": session}).encode()
    status, answer = ask_raw(arena, "POST", "/gradio_api/queue/join", body)
    assert status == 200, answer
    return ask_raw(arena, "GET", f"/gradio_api/queue/data?session_hash={session}")[1].decode()


@pytest.mark.parametrize("path", ["/etc/passwd", "peers.json", "http://127.0.0.1:9/x", "https://example.com/x"])
def test_a_file_in_the_place_of_a_text_is_not_read(arena, peers_file, path):
    peers_file.write_text('[{"name": "a", "address": "x", "key": "geheim"}]', encoding="utf-8")
    path = str(peers_file) if path == "peers.json" else path
    payload = {"path": path, "meta": FILE}
    for name, data in (
        *(("ask", ["alpha", each, None, *FIELDS]) for each in (payload, {"path": path}, [payload], {"url": path})),
        ("duel_ask", [False, "alpha", payload, "x", None, *FIELDS]),
        ("match", [["alpha", "beta"], payload, 1, *FIELDS]),
    ):
        said = raw(arena, name, data)
        assert '"success":false' in said and not any(word in said for word in ("root:", "geheim", "/tmp/gradio"))
    status, said = ask_raw(arena, "POST", "/gradio_api/run/add_peer", json.dumps({"data": [payload, "x", ""]}).encode())
    assert status == 500 and b"passwd" not in said and b"geheim" not in said


def test_another_name_and_another_origin_are_refused(arena):
    for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example"):
        assert ask_raw(arena, "GET", "/", Host=host)[0] == 403
    for host in ("localhost", "host.docker.internal", "[::1]"):
        assert ask_raw(arena, "GET", "/", Host=f"{host}:{arena.port}")[0] == 200
    posted = {"Content_Type": "text/plain", "Origin": "http://evil.example"}
    assert ask_raw(arena, "POST", "/gradio_api/queue/join", b"{}", **posted)[0] == 403
    assert ask_raw(arena, "POST", "/gradio_api/queue/join", b"{}", Origin="null")[0] == 403


def test_no_page_of_another_origin_reads_anything(arena):
    for path in ("/config", "/gradio_api/token", "/gradio_api/info", "/"):
        status, body = ask_raw(arena, "GET", path, Origin="https://evil.example")
        assert status in (403, 404) and b"token" not in body.replace(b"tokens", b"")


def test_what_is_far_too_long_is_refused_before_it_is_read(arena):
    connection = http.client.HTTPConnection("127.0.0.1", arena.port, timeout=10)
    connection.putrequest("POST", "/gradio_api/queue/join")
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
    connection = http.client.HTTPConnection("127.0.0.1", arena.port, timeout=10)
    chunks = (b"x" * 65536 for _ in range(10))
    connection.request("POST", "/gradio_api/queue/join", chunks, {"Transfer-Encoding": "chunked"}, encode_chunked=True)
    assert connection.getresponse().status == 411
    connection.close()


def test_a_login_is_needed_where_one_is_set_and_ctrl_c_ends_the_page(folder, peers_file):
    with started(fake, "--port=0", "--host=0.0.0.0", "--auth=me:geheim", "--peers=peers.json", cwd=folder) as server:
        assert "warning" not in "".join(server.lines)
        for path in ("/config", "/gradio_api/info", "/gradio_api/file=x", "/gradio_api/queue/data?session_hash=a"):
            assert ask_raw(server, "GET", path)[0] == 401
        with pytest.raises(Exception, match=r"(?i)login|auth|credentials|401"):
            gradio_client.Client(server.url, verbose=False, auth=("me", "wrong"))
        client = gradio_client.Client(server.url, verbose=False, auth=("me", "geheim"), headers=ELSEWHERE)
        assert "127.0.0.1:9" in json.dumps(client.predict("x", "127.0.0.1:9", "", api_name="/add_peer"), default=str)
        assert peers_file.exists()
        client.close()
        code, said = server.stop()
        assert code == 0 and "Traceback" not in said


def test_mistakes_at_the_start_are_one_line_and_an_open_page_warns(folder, script, tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = script("sample_gradio.py", f"--port={port}", cwd=folder)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and f"port {port} is taken" in done.stderr
    for auth in ("onlyuser", "user:", ":password"):
        with pytest.raises(UserError, match="user:password"):
            sample_gradio.read_auth(arena_settings(tmp_path, auth=auth))
    for host, auth, warns in (("0.0.0.0", "", True), ("0.0.0.0", "me:geheim", False), ("127.0.0.1", "", False)):
        announce_server("the arena is", host, 7860, bool(auth), "--auth")
        assert ("warning: everyone" in capsys.readouterr().out) == warns


@pytest.mark.parametrize(("origin", "status"), [("http://evil.example", 403), ("null", 403), ("", 200)])
def test_a_stream_is_given_to_no_page_of_another_origin(arena, origin, status):
    origin = f"Origin: {origin}\r\n" if origin else ""
    request = f"GET /gradio_api/heartbeat/abc HTTP/1.1\r\nHost: 127.0.0.1:{arena.port}\r\n{origin}\r\n"
    with arena.send(request.encode()) as sock:
        assert sock.recv(4096).split()[1] == str(status).encode()
