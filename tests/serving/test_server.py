"""The answers of the server process, with a generator that needs no model."""

import contextlib
import http.client
import json
import re
import shlex
import socket
import sys
import time

import pytest
from serving_fakes import __file__ as fake
from serving_fakes import serving

from minigpt.common.errors import UserError
from minigpt.common.net import listening_socket

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "你好"}]}


@pytest.fixture(scope="module")
def server():
    flags = ["--ckpt=out/fake/ckpt.pt,out/base/last.pt", "--max_batch=4", "--max_queue=3"]
    with serving(fake, *flags, "--max_body_bytes=20000", "--max_prompt_chars=1000") as server:
        yield server


@pytest.fixture(scope="module")
def hurried():
    with serving(fake, "--request_seconds=1", "--stop_seconds=0.2", "--host=0.0.0.0") as server:
        assert "warning" in "".join(server.lines)  # open to the network, without a key
        yield server


@pytest.fixture(scope="module")
def guarded():
    with serving(fake, "--host=0.0.0.0", "--cors=http://a.example", key="钥匙") as server:
        assert "warning" not in "".join(server.lines)
        yield server


def error_of(body, status):
    """The error in an answer; checks its form."""
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and status >= 400
    return error


def test_generate_streams_plain_text_while_it_is_generated(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    body = json.dumps({"prompt": "慢slow", "max_new_tokens": 4000})  # at 50 ms a token, the whole would take minutes
    connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.getheader("Content-Type") == "text/plain; charset=utf-8"
    text = b""
    while len(text) < len("慢slow慢".encode()):
        text += response.read1()
    assert text.startswith("慢slow慢".encode())
    response.close()
    connection.close()
    server.wait_until(running=0)


def test_generate_returns_one_json_object_without_stream(server):
    status, answer = server.post("/generate", prompt="你好", stream=False, max_new_tokens=5)
    assert status == 200 and answer.pop("seconds") >= 0
    assert answer == {
        "text": "你好你好你",
        "finish_reason": "length",
        "prompt_tokens": 2,
        "completion_tokens": 5,
        "prompt_cut": False,
    }
    assert server.post("/generate", prompt="full stop", stream=False)[1]["finish_reason"] == "stop"
    status, answer = server.post("/generate", prompt="长" * 600, stream=False, max_new_tokens=1)
    assert answer["prompt_cut"]
    assert server.ask("POST", "/generate", {"prompt": "长" * 600})[1]["X-Prompt-Cut"] == "true"


def test_the_model_is_selected_by_name_and_is_the_first_without_one(server):
    assert server.post("/generate", prompt="a", stream=False, model="base/last", max_new_tokens=1)[0] == 200
    status, answer = server.post("/generate", prompt="a", model="gpt-4")
    assert status == 404 and answer["error"]["param"] == "model" and "fake, base/last" in answer["error"]["message"]
    listed = json.loads(server.ask("GET", "/v1/models")[2])
    assert [entry["id"] for entry in listed["data"]] == ["fake", "base/last"] and listed["object"] == "list"
    for path in ("/v1/models/base/last", "/v1/models/base%2Flast", "/v1/models/fake"):
        assert json.loads(server.ask("GET", path)[2])["object"] == "model"
    status, _, body = server.ask("GET", "/v1/models/none")
    assert status == 404 and error_of(body, status)["code"] == "model_not_found"


def test_a_stream_of_events_is_as_openai_writes_it(server):
    fields = {**CHAT, "stream": True, "max_tokens": 3, "stream_options": {"include_usage": True}}
    status, headers, body = server.ask("POST", "/v1/chat/completions", fields)
    assert status == 200 and headers["Content-Type"] == "text/event-stream; charset=utf-8"
    events = body.decode().split("\n\n")
    assert all(event.startswith("data: ") for event in events[:-1]) and events[-1] == ""
    assert events[-2] == "data: [DONE]"
    chunks = [json.loads(event[6:]) for event in events[:-2]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"} and len({c["id"] for c in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1])
    assert text == "你好你" and "你" in body.decode()  # not escaped
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["total_tokens"] == 5


def test_a_failure_of_the_engine_is_reported_at_every_stage(server):
    status, answer = server.post("/generate", prompt="fail", stream=False)
    assert status == 500 and answer["error"]["type"] == "server_error" and "Traceback" not in answer["error"]["message"]
    chat = {"model": "fake", "messages": [{"role": "user", "content": "fail slow"}], "stream": True}
    body = server.ask("POST", "/v1/chat/completions", chat)[2].decode()
    assert "generation failed" in body and "[DONE]" not in body
    with pytest.raises(http.client.IncompleteRead):
        server.ask("POST", "/generate", {"prompt": "fail slow"})
    assert server.post("/generate", prompt="a", stream=False)[0] == 200


@pytest.mark.parametrize("fields", [{"stream": True}, {"stream": False}], ids=["streaming", "whole"])
def test_a_client_that_disconnects_frees_its_batch_slot(server, fields):
    for prompt in ("slow", "never"):  # after the first token, and before it
        sock = server.open("/generate", prompt=prompt, max_new_tokens=4000, **fields)
        server.wait_until(running=1)
        sock.close()
        server.wait_until(running=0)


def test_a_client_that_disconnects_while_it_waits_leaves_the_queue(server):
    running = [server.open("/generate", prompt="slow", max_new_tokens=4000) for _ in range(4)]
    server.wait_until(running=4)
    queued = [server.open("/generate", prompt="slow", max_new_tokens=4000, stream=i > 0) for i in range(3)]
    server.wait_until(waiting=3)
    for sock in queued:
        sock.close()
    # New requests are admitted, although the fake drops the old ones from its queue only when a batch slot is free.
    again = []
    for waiting in (4, 5, 6):
        for _ in range(20):  # until the server has noticed that a client disconnected
            again.append(server.open("/generate", prompt="slow", max_new_tokens=5))
            try:
                server.wait_until(1, waiting=waiting)
                break
            except AssertionError:
                continue
    server.wait_until(waiting=6)
    assert server.post("/generate", prompt="a")[0] == 429
    for sock in [*running, *again]:
        sock.close()
    server.wait_until(running=0, waiting=0)


def test_a_client_that_pipelines_many_requests_and_disconnects_frees_its_batch_slot(server):
    body = b'{"prompt": "never", "stream": false}'
    head = (
        b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % len(body)
    )
    for count in (2, 30):
        sock = server.send((head + body) * count)
        if count == 2:
            server.wait_until(running=1)
        sock.close()
        server.wait_until(running=0)


def test_an_unknown_host_name_is_refused_without_a_key(server, guarded):
    status, _, body = server.ask("GET", "/v1/models", headers={"Host": "rebound.example"})
    assert status == 400 and error_of(body, status)["param"] == "Host"
    assert guarded.ask("GET", "/v1/models", headers={"Host": "box.example"})[0] == 200
    for host in (
        "localhost:5000",
        "127.0.0.1",
        f"127.0.0.1:{server.port}",
        "[::1]",
        "[::1]:80",
        "Host.Docker.Internal:5000",
    ):
        assert server.ask("GET", "/v1/models", headers={"Host": host})[0] == 200


def test_a_full_queue_is_answered_with_429_and_health_still_answers(server):
    held = [server.open("/generate", prompt="slow", max_new_tokens=4000) for _ in range(4 + 3)]
    server.wait_until(running=4, waiting=3)
    for path, fields in [
        ("/generate", {"prompt": "a"}),
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"model": "fake", "prompt": ["a", "b"]}),
    ]:
        status, headers, body = server.ask("POST", path, fields)
        assert status == 429 and 1 <= int(headers["Retry-After"]) <= 30
        assert error_of(body, status)["code"] == "rate_limit_exceeded"
    assert server.post("/generate", prompt="a", model="base/last", stream=False)[0] == 200  # its queue is empty
    assert server.ask("GET", "/health")[0] == server.ask("GET", "/metrics")[0] == 200
    for sock in held:
        sock.close()
    server.wait_until(running=0, waiting=0)


def test_a_request_that_reaches_its_time_limit_returns_what_was_generated(hurried):
    started = time.monotonic()
    status, answer = hurried.post("/generate", prompt="slow", stream=False, max_new_tokens=4000)
    assert status == 200 and answer["finish_reason"] == "length" and 0 < answer["completion_tokens"] < 4000
    assert time.monotonic() - started > 0.9
    status, answer = hurried.post("/generate", prompt="never", stream=False)
    assert status == 429 and "in time" in answer["error"]["message"]
    hurried.wait_until(running=0)


def test_a_wrong_path_method_or_body_is_a_json_error(server):
    cases = [
        (404, "GET", "/nothing", None, {}, "path"),
        (404, "POST", "/v1/images", {}, {}, "path"),
        (405, "GET", "/generate", None, {}, "method"),
        (405, "DELETE", "/v1/models", None, {}, "method"),
        (405, "POST", "/health", {}, {}, "method"),
        (405, "PROPFIND", "/v1/completions", None, {}, "method"),
        (415, "POST", "/generate", b"a=1", {"Content-Type": "application/x-www-form-urlencoded"}, "Content-Type"),
        (415, "POST", "/generate", b"{}", {"Content-Type": None}, "Content-Type"),
        (415, "POST", "/generate", b"{}", {"Content-Type": "application/json; charset=gbk"}, "Content-Type"),
        (415, "POST", "/generate", b"{}", {"Content-Encoding": "gzip"}, "Content-Encoding"),
        (413, "POST", "/generate", {"prompt": "a" * 20000}, {}, "body"),
        (413, "POST", "/v1/chat/completions", {"prompt": "a" * 2_000_000}, {}, "HTTP"),
        (400, "POST", "/generate", {"prompt": "a" * 1001}, {}, "prompt"),
        (400, "POST", "/generate", {"prompt": "a", "max_new_tokens": -5}, {}, "max_new_tokens"),
        (400, "POST", "/generate", {"prompt": "a", "temprature": 1}, {}, "temprature"),
        (400, "POST", "/generate", b"", {}, "body"),
    ]
    for wanted, method, path, body, headers, param in cases:
        if param == "HTTP":  # the answer may come while the body is still being sent
            with server.send(
                f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000\r\n\r\n".encode()
            ) as sock:
                head, _, answer = sock.makefile("rb").read().partition(b"\r\n\r\n")
            status = int(head.split()[1])
        else:
            status, reply, answer = server.ask(method, path, body, headers)
            assert status != 405 or reply["Allow"]
        assert status == wanted, (path, answer)
        assert error_of(answer, status)["param"] == param
        assert json.loads(answer)["error"]["message"].startswith(f"{param}: ")
    status, _, body = server.ask("HEAD", "/generate")
    assert status == 405 and body == b""
    status, headers, body = server.ask("OPTIONS", "/generate")
    assert status == 200 and body == b"" and "POST" in headers["Allow"]
    assert server.ask("HEAD", "/health")[0] == server.ask("GET", "/health/")[0] == 200


@pytest.mark.parametrize(
    "method, path, hint",
    [
        ("POST", "/chat/completions", "use /v1/chat/completions"),
        ("POST", "/v1/v1/chat/completions", "use /v1/chat/completions"),
        ("POST", "//chat/completions", "use /v1/chat/completions"),
        ("POST", "/api/chat/completions/", "use /v1/chat/completions"),
        ("POST", "/completions", "use /v1/completions"),
        ("GET", "/models", "use /v1/models"),
        ("GET", "/v1//models", "use /v1/models"),
        ("GET", "/api/tags", "Ollama's API is not served"),
        ("POST", "/api/chat", "Ollama's API is not served"),
        ("POST", "/v1/responses", "OpenAI's Responses API is not served; use /v1/chat/completions"),
        ("GET", "/v1/responses/resp_1", "Responses API is not served"),
        ("GET", "/v1", "/v1/chat/completions"),
        ("GET", "/v1/", "/v1/chat/completions"),
    ],
)
def test_an_address_that_is_nearly_right_is_answered_with_the_right_one(server, method, path, hint):
    status, _, body = server.ask(method, path, {} if method == "POST" else None)
    error = error_of(body, status)
    assert (
        status == 404
        and hint in error["message"]
        and "the base address of OpenAI's API ends in /v1" in error["message"]
    )


def test_a_strict_server_refuses_what_it_does_not_know():
    with serving(fake, "--strict=True") as strict:
        status, answer = strict.post("/v1/chat/completions", **CHAT, typical_p=1)
        assert status == 400 and answer["error"]["param"] == "typical_p"
        assert strict.post("/v1/chat/completions", **CHAT, enable_thinking=False, max_tokens=1)[0] == 200


def test_a_content_length_over_the_limit_is_answered_before_the_body_is_sent(server):
    with server.send(
        b"POST /generate HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2000000\r\n\r\n"
    ) as sock:
        assert sock.makefile("rb").read().startswith(b"HTTP/1.1 413")
    body = b'{"prompt": "a", "max_new_tokens": 1}'
    head = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
    with server.send(head + b"Content-Length: %d\r\n\r\n" % len(body)) as sock:
        assert sock.recv(100).startswith(b"HTTP/1.1 100")
        sock.sendall(body)
        assert sock.makefile("rb").read().startswith(b"HTTP/1.1 200")


def test_an_incomplete_request_is_closed(server):
    head = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n"
    for sock in [server.send(part) for part in (head + b'{"pro', head, head[:30], b"")]:
        answer = sock.makefile("rb").read()  # the fake server gives a request 2 s to arrive, this socket waits 30 s
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
        sock.close()


def test_metrics_count_what_happened(server):
    before = server.ask("GET", "/metrics")[2].decode()
    server.post("/generate", prompt="你好", stream=False, max_new_tokens=5)
    server.post("/generate", prompt=1)
    status, headers, body = server.ask("GET", "/metrics")
    after = body.decode()
    assert status == 200 and headers["Content-Type"].startswith("text/plain")

    def grown(sample):
        values = [re.search(re.escape(sample) + r" ([\d.]+)", text) for text in (before, after)]
        return float(values[1][1]) - float(values[0][1] if values[0] else 0)

    assert grown('minigpt_completion_tokens_total{model="fake"}') == 5
    assert grown('minigpt_prompt_tokens_total{model="fake"}') == 2
    assert grown('minigpt_time_to_first_token_seconds_count{model="fake"}') == 1
    assert grown('minigpt_time_between_tokens_seconds_count{model="fake"}') == 1
    assert grown('minigpt_requests_total{route="/generate",status="200"}') == 1
    assert grown('minigpt_requests_total{route="/generate",status="400"}') == 1
    assert grown('minigpt_errors_total{route="/generate"}') == 1
    assert 'minigpt_queue_length{model="fake"} 0.0' in after and 'minigpt_running{model="base/last"} 0.0' in after


def test_the_curl_lines_of_the_page_work_unchanged(server, guarded):
    connection = http.client.HTTPConnection("localhost", server.port)
    connection.request("GET", "/", headers={"Host": f"localhost:{server.port}"})
    page = connection.getresponse().read().decode()
    assert "fake" in page and "base/last" in page and "Models that are running" in page and "正在运行的模型" in page
    assert not re.search(r"""(src|href)=["']?https?:""", page)
    lines = [line.replace("&#34;", '"').replace("&#39;", "'") for line in re.findall(r"<pre>(.*?)</pre>", page)]
    assert len(lines) == 4 and all(f"http://localhost:{server.port}/" in line for line in lines)
    for line in lines[:3]:
        command = shlex.split(line)
        body = json.loads(command[command.index("-d") + 1]) if "-d" in command else None
        path = next(part for part in command if part.startswith("http")).removeprefix(f"http://localhost:{server.port}")
        assert server.ask("POST" if body else "GET", path, body)[0] == 200
    for_windows = re.search(r'-d "(.*)"$', lines[3])[1].replace('\\"', '"')
    assert json.loads(for_windows) == json.loads(shlex.split(lines[0])[-1])
    for port in (server.port, guarded.port):  # one refuses the host name, the other puts it on the page
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/", headers={"Host": '"><script>'})
        answer = connection.getresponse()
        assert b"<script>" not in answer.read() or answer.headers["Content-Type"] == "application/json"


def test_a_key_is_needed_for_all_but_the_page_and_health(guarded):
    right = guarded.authorization
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
        for authorization in (None, "Bearer wrong", "Bearer", right.replace("Bearer", "Basic"), right + "x"):
            status, reply, body = guarded.ask("GET", path, headers={"Authorization": authorization})
            assert status == 401 and reply["WWW-Authenticate"] == "Bearer"
            assert error_of(body, status)["code"] == "invalid_api_key"
    assert guarded.ask("POST", "/generate", {"prompt": "a"}, {"Authorization": None})[0] == 401
    for path in ("/health", "/"):
        assert guarded.ask("GET", path, headers={"Authorization": None})[0] == 200
    assert guarded.ask("GET", "/v1/models")[0] == guarded.ask("POST", "/generate", {"prompt": "a"})[0] == 200
    assert "$MINIGPT_API_KEY" in guarded.ask("GET", "/")[2].decode()


def test_only_pages_of_the_origins_in_cors_can_read_answers(guarded, server):
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}
    status, headers, _ = guarded.ask("OPTIONS", "/generate", headers={"Origin": "http://a.example", **asked})
    assert status == 200 and headers["Access-Control-Allow-Origin"] == "http://a.example"
    assert "POST" in headers["Access-Control-Allow-Methods"]
    assert headers["Access-Control-Allow-Headers"] == "authorization, content-type"
    _, headers, _ = guarded.ask(
        "GET", "/v1/models", headers={"Origin": "http://a.example", "Authorization": "x"}
    )  # also an error
    assert headers["Access-Control-Allow-Origin"] == "http://a.example" and "Origin" in headers["Vary"]
    assert "X-Ignored-Fields" in headers["Access-Control-Expose-Headers"]
    for asked_of, origin in ((guarded, "http://b.example"), (server, "http://a.example")):
        _, headers, _ = asked_of.ask("GET", "/health", headers={"Origin": origin})
        assert headers["Access-Control-Allow-Origin"] is None


def test_an_unusable_address_is_reported_with_the_setting_to_change():
    with listening_socket("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is taken.*--port="):
            listening_socket("127.0.0.1", port)
    for host, port, named in [("no.such.host.invalid", 0, "--host"), ("192.0.2.1", 0, "--host"), ("", 70000, "--port")]:
        with pytest.raises(UserError, match=named):
            listening_socket(host, port)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without a signal")
def test_sigterm_finishes_running_requests_and_exits_with_0(guarded):
    right = {"Authorization": guarded.authorization, "Content-Type": "application/json"}
    connection = http.client.HTTPConnection("127.0.0.1", guarded.port, timeout=30)
    connection.request("POST", "/generate", json.dumps({"prompt": "slow", "max_new_tokens": 80}), right)
    response = connection.getresponse()
    idle = http.client.HTTPConnection("127.0.0.1", guarded.port, timeout=30)
    idle.request("GET", "/health")
    idle.getresponse().read()
    guarded.process.terminate()
    with pytest.raises(ConnectionRefusedError):
        while True:
            with contextlib.suppress(
                ConnectionResetError
            ):  # the system accepted the connection, and the closing server did not
                socket.create_connection(("127.0.0.1", guarded.port), timeout=5).close()
            time.sleep(0.05)
    idle.request("POST", "/generate", b'{"prompt": "a"}', right)  # over a connection that was open before
    assert idle.getresponse().status == 503
    assert response.read() == b"slow" * 20
    _, out = guarded.ended(20)
    assert guarded.process.returncode == 0 and "Traceback" not in out and "cut short" not in out


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without a signal")
def test_requests_that_do_not_finish_in_time_are_cut_short_and_the_server_reports_it(hurried):
    connection = http.client.HTTPConnection("127.0.0.1", hurried.port, timeout=30)
    fields = {**CHAT, "messages": [{"role": "user", "content": "slow"}], "stream": True, "max_tokens": 4000}
    connection.request("POST", "/v1/chat/completions", json.dumps(fields), {"Content-Type": "application/json"})
    response = connection.getresponse()
    code, out = hurried.stop()
    text = response.read().decode()
    assert code == 0 and "cut short" in out
    assert '"finish_reason":"length"' in text and text.endswith("data: [DONE]\n\n")
