"""What the arena's page refuses: files, addresses, foreign names and pages, who has not logged in."""

import http.client
import json
import socket
import uuid

import gradio_client
import pytest
from arena_fakes import __file__ as fake
from arena_fakes import write_checkpoints
from arena_visitors import ELSEWHERE, FIELDS, table, texts, visitor
from peer_fakes import peer
from serving_fakes import started

FILE = {"_type": "gradio.FileData"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arena")
    write_checkpoints(folder / "out")
    return folder


@pytest.fixture(scope="module")
def arena(folder):
    with started(fake, "--port=0", "--peers=peers.json", cwd=folder) as server:
        yield server


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
def test_no_file_and_no_address_is_fetched_for_a_visitor(arena, folder, path):
    (folder / "peers.json").write_text('[{"name": "a", "address": "x", "key": "geheim"}]', encoding="utf-8")
    status, body = ask_raw(arena, "GET", path)
    assert status in (403, 404, 405, 422) and b"geheim" not in body and b"root:" not in body
    (folder / "peers.json").unlink()


def raw(arena, name, data):
    """What a function's stream says to data sent as they are (gradio_client would upload files first)."""
    session, config = uuid.uuid4().hex, json.loads(ask_raw(arena, "GET", "/config")[1])
    (index,) = (each["id"] for each in config["dependencies"] if each["api_name"] == name)
    body = json.dumps({"data": data, "fn_index": index, "session_hash": session}).encode()
    status, answer = ask_raw(arena, "POST", "/gradio_api/queue/join", body)
    assert status == 200, answer
    return ask_raw(arena, "GET", f"/gradio_api/queue/data?session_hash={session}")[1].decode()


@pytest.mark.parametrize("path", ["/etc/passwd", "peers.json", "http://127.0.0.1:9/x", "https://example.com/x"])
def test_a_file_that_is_named_in_the_place_of_a_text_is_not_read(arena, folder, path):
    (folder / "peers.json").write_text('[{"name": "a", "address": "x", "key": "geheim"}]', encoding="utf-8")
    path = str(folder / path) if path == "peers.json" else path
    for payload in ({"path": path, "meta": FILE}, {"path": path}, [{"path": path, "meta": FILE}], {"url": path}):
        for name, data in (
            ("ask", ["alpha", payload, None, *FIELDS]),
            ("duel", [False, "alpha", payload, "x", None, *FIELDS]),
            ("match", [["alpha", "beta"], payload, 1, *FIELDS]),
        ):
            said = raw(arena, name, data)
            assert '"success":false' in said and not any(word in said for word in ("root:", "geheim", "/tmp/gradio"))
        status, said = ask_raw(
            arena, "POST", "/gradio_api/run/add_peer", json.dumps({"data": [payload, "x", ""]}).encode()
        )
        assert status == 500 and b"passwd" not in said and b"geheim" not in said
    (folder / "peers.json").unlink()


def test_another_name_and_another_origin_are_refused(arena):
    for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example"):
        assert ask_raw(arena, "GET", "/", Host=host)[0] == 403
    assert ask_raw(arena, "GET", "/", Host=f"localhost:{arena.port}")[0] == 200
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


def test_a_login_is_needed_where_one_is_set_and_lets_one_add_peers(folder):
    with started(fake, "--port=0", "--host=0.0.0.0", "--auth=me:geheim", "--peers=peers.json", cwd=folder) as server:
        assert "warning" not in "".join(server.lines)
        for path in ("/config", "/gradio_api/info", "/gradio_api/file=x", "/gradio_api/queue/data?session_hash=a"):
            assert ask_raw(server, "GET", path)[0] == 401
        with pytest.raises(Exception, match=r"(?i)login|auth|credentials|401"):
            gradio_client.Client(server.url, verbose=False, auth=("me", "wrong"))
        client = gradio_client.Client(server.url, verbose=False, auth=("me", "geheim"), headers=ELSEWHERE)
        assert "127.0.0.1:9" in json.dumps(client.predict("x", "127.0.0.1:9", "", api_name="/add_peer"), default=str)
        assert (folder / "peers.json").exists()
        client.close()
    (folder / "peers.json").unlink()


def test_a_proxy_of_any_kind_in_the_environment_does_not_keep_the_page_from_starting(folder):
    with peer(["echo"]) as other:
        (folder / "peers.json").write_text(json.dumps([{"name": "p", "address": other.address}]), encoding="utf-8")
        proxies = {"ALL_PROXY": "socks5://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "NO_PROXY": ""}
        with started(fake, "--port=0", "--peers=peers.json", cwd=folder, **proxies) as server:
            client = visitor(server)
            assert "ms" in table(client.predict(api_name="/peers")[0])[0][2]
            assert texts(client.predict("echo @ p", "你好", *FIELDS, api_name="/ask")[0])[-1] == ("assistant", "你好")
            client.close()
    (folder / "peers.json").unlink()


def test_mistakes_at_the_start_are_one_line(folder, script):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = script("sample_gradio.py", f"--port={port}", cwd=folder)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and f"port {port} is taken" in done.stderr
    for auth in ("onlyuser", "user:", ":password"):
        done = script("sample_gradio.py", f"--auth={auth}", cwd=folder)
        assert done.returncode == 1 and "user:password" in done.stderr


def test_an_open_page_without_a_login_warns_and_stops_at_ctrl_c_with_zero(folder):
    with started(fake, "--port=0", "--host=0.0.0.0", cwd=folder) as server:
        assert "warning: everyone" in "".join(server.lines)
        code, said = server.stop()
        assert code == 0 and "Traceback" not in said


@pytest.mark.parametrize(("origin", "status"), [("http://evil.example", 403), ("null", 403), ("", 200)])
def test_a_stream_is_given_to_no_page_of_another_origin(arena, origin, status):
    origin = f"Origin: {origin}\r\n" if origin else ""
    request = f"GET /gradio_api/heartbeat/abc HTTP/1.1\r\nHost: 127.0.0.1:{arena.port}\r\n{origin}\r\n"
    with arena.send(request.encode()) as sock:
        assert sock.recv(4096).split()[1] == str(status).encode()
