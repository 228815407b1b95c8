"""Wrong requests of every kind get a 4xx that names the field or a closed connection, and do not harm the server."""

import contextlib
import http.client
import json
import re
import socket
import sys

import pytest
import schemathesis
from broken_requests import LIMIT_FLAGS, VALID, below, reaching
from hypothesis import HealthCheck, given, seed
from hypothesis import settings as hypothesis_settings
from schemathesis import GenerationMode
from serving_fakes import FakeClassifier, FakeGenerator, serving
from serving_fakes import __file__ as fake

from minigpt.serving import create_app
from minigpt.settings.stages import ServerSettings

SEED = 4
MODELS = ("fake", "classify", "tag")
MAX_CLOSE_SECONDS = 30  # the fake server gives a request 2 s to arrive


@pytest.fixture(scope="module")
def server():
    with serving(fake, f"--ckpt={','.join(f'out/{name}/ckpt.pt' for name in MODELS)}", *LIMIT_FLAGS) as server:
        yield server


def answers(server):
    """The answers to valid requests, without what differs each time."""
    got = [server.post(path, **fields) for path, fields in VALID.items()]
    for _, body in got:
        for changing in ("seconds", "id", "created"):
            body.pop(changing, None)
    return got


def ask_on(connection, method, path, body, headers):
    """(status, bytes) over an open connection."""
    connection.request(method, path, body, {"Content-Type": "application/json", **headers})
    response = connection.getresponse()
    return response.status, response.read()


def check_reaching(server, count):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for method, path, body, headers, field in reaching(SEED, count):
        shown = f"{method} {path} {headers} {body[:300]}: "
        status, answer = ask_on(connection, method, path, body, headers)
        assert 400 <= status < 500, shown + str(status)
        if status == 405 and method == "HEAD":
            continue
        error = json.loads(answer)["error"]
        assert error["param"] and error["param"].split("[")[0].split(".")[0] == field.split(".")[0], shown + str(error)
        assert len(answer) < 2000
    connection.close()


def read_all(sock):
    """All bytes until the other side closes the connection."""
    sock.settimeout(MAX_CLOSE_SECONDS)
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(65536):
            data += piece
    return data


def check_below(server, count):
    held = []
    for i, data in enumerate(below(SEED, count)):
        try:
            sock = server.send(data)
            gives_up = i % 3 == 0
            if gives_up:
                sock.shutdown(socket.SHUT_WR)
        except OSError:
            continue  # answered and closed before all was sent
        held.append((sock, data, gives_up))
        if len(held) > 100 or i == count - 1:
            for sock, data, gives_up in held:
                answer = read_all(sock)
                sock.close()
                assert answer == b"" or answer.startswith((b"HTTP/1.0 4", b"HTTP/1.1 4")), (data, answer)
                if answer and not gives_up:
                    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
            held.clear()


@pytest.mark.soak
def test_malformed_requests_are_refused_and_leave_the_server_as_it_was(server, rounds):
    count = rounds(300, 10_000)
    good = answers(server)
    assert all(status == 200 for status, _ in good)
    check_reaching(server, 150)  # so that memory for lazy imports and caches is already in use
    check_below(server, 30)
    before = server.memory() if sys.platform == "linux" else 0
    check_reaching(server, count * 7 // 10)
    check_below(server, count * 3 // 10)
    assert answers(server) == good
    if before:
        assert server.memory() - before < 16 * 2**20
    server.wait_until(running=0, waiting=0)
    metrics = server.ask("GET", "/metrics")[2].decode()
    assert 'status="5' not in metrics


@pytest.fixture(scope="module")
def described():
    """The app's API as schemathesis reads it from /openapi.json."""
    limits = ServerSettings(max_batch=4, max_prompt_chars=200, max_tokens_limit=5)
    models = {"fake": FakeGenerator(obeys=False), "classify": FakeClassifier(), "tag": FakeClassifier("tag")}
    return schemathesis.openapi.from_wsgi("/openapi.json", create_app(models, limits))


@pytest.mark.soak
@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("path", VALID)
def test_requests_that_fit_the_description_are_served_and_others_refused(described, rounds, path, mode):
    refusals = []

    @seed(SEED)
    @hypothesis_settings(
        max_examples=rounds(10, 300), deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(described[path]["POST"].as_strategy(mode))
    def ask(case):
        if isinstance(case.body, dict) and "model" in case.body and mode is GenerationMode.POSITIVE:
            case.body["model"] = VALID[path].get("model", "fake")  # names of models are not in the description
        if mode is GenerationMode.POSITIVE and case.body.get("text") is not None:
            for other in ("text_a", "text_b", "texts"):  # as alternatives they are not in the description
                case.body.pop(other, None)
        response = case.call()
        refusals.append(response.status_code)
        if mode is GenerationMode.POSITIVE:
            # A description cannot express: the length and number of all prompts together, which roles need a text,
            # log probabilities of chats, dimensions and texts that fit the model, ids that are in the vocabulary,
            # alternatives of texts to label, and names that are taken for misspelt ones.
            error = {} if response.status_code == 200 else response.json()["error"]
            fields = ("prompt", "messages", "n", "best_of", "top_logprobs", "dimensions", "input", "tokens")
            fields += ("text", "text_a", "text_b", "model")
            not_described = re.split(r"\W", error["param"])[0] in fields if error else True
            assert not_described or error["code"] == "unknown_field", response.text
        else:
            assert 400 <= response.status_code < 500, (case.body, response.text)
        if response.status_code != 200:
            assert response.json()["error"]["param"] is not None, response.text

    ask()
    if mode is GenerationMode.POSITIVE:
        assert 200 in refusals
