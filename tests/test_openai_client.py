"""The client of OpenAI-compatible APIs, with servers that behave well and badly."""

import contextlib
import socket
import time

import pytest
from peer_fakes import peer

from minigpt.openai_client import ApiClient, ApiFailure, Limits, RemoteStream, base_url, changes_after, is_near
from minigpt.synth.client import FATAL, advice_for, failure_cause


def ended(stream):
    """The text of a stream that has ended, for whatever reason. Fails if no piece comes for a minute."""
    pieces = []
    with contextlib.suppress(RuntimeError):
        while (piece := stream.next_piece(60)) is not None:
            pieces.append(piece)
    return "".join(pieces)


def asked(model, prompt="你好世界", limits=None, **fields):
    """(text, stream, the peer) of a chat with one of the peer's models."""
    with peer() as other:
        stream = ApiClient(other.address, limits=limits).chat(model, [{"role": "user", "content": prompt}], **fields)
        return ended(stream), stream, other


@pytest.mark.parametrize(
    ("address", "base"),
    [
        ("192.168.1.5:5000", "http://192.168.1.5:5000/v1"),
        (" http://host/v1/ ", "http://host/v1"),
        ("https://a.b/api/paas/v4", "https://a.b/api/paas/v4"),
        ("http://host/v1/chat/completions", "http://host/v1"),
        ("[::1]:5000", "http://[::1]:5000/v1"),
    ],
)
def test_addresses_are_completed(address, base):
    assert base_url(address) == base


@pytest.mark.parametrize(
    "address",
    ["ftp://x", "file:///etc/passwd", "gopher://x:70", "javascript:alert(1)", "http://", "", "http://u:p@x", "x:99999",
     "http://x/?q=1", "http://x/#f", "http://a b", "x:0", "http://[::1", "http://a\nb"],
)  # fmt: skip
def test_invalid_addresses_are_refused(address):
    with pytest.raises(ApiFailure) as raised:
        base_url(address)
    assert raised.value.code == "address" and "write it like" in str(raised.value)


def test_machines_nearby_are_recognized():
    near = ["127.0.0.1", "localhost:5000", "192.168.1.5", "[::1]", "nas", "100.101.102.103", "me.tail1.ts.net"]
    assert all(is_near(f"http://{host}/v1") for host in near)
    assert not is_near("https://api.example.com/v1") and not is_near("http://8.8.8.8/v1")


def test_a_proxy_in_the_environment_is_not_used_for_this_machine(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert asked("echo")[0] == "你好世界"


def test_text_is_streamed_with_counts_and_times():
    with peer() as other:
        stream = ApiClient(other.address).chat("slow", [{"role": "user", "content": "一二三四"}])
        assert list(stream) == [*"一二三四"] and stream.finish_reason == "stop"
    assert stream.completion_tokens == 4 == stream.prompt_tokens
    assert stream.started < stream.first_token < stream.finished and not stream.cut


def test_the_key_and_the_fields_are_sent_and_netrc_is_ignored(monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with peer() as other:
        client = ApiClient(other.address, key="sk-1")
        assert ended(client.complete("echo", "好", temperature=0.5, top_k=3, max_tokens=9)) == "好"
        client.models()
    (path, headers, body), (listing, listed, _) = other.seen
    assert path == "/v1/completions" and listing == "/v1/models"
    assert headers["Authorization"] == listed["Authorization"] == "Bearer sk-1"
    assert body["temperature"] == 0.5 and body["top_k"] == 3 and body["max_tokens"] == 9 and body["stream"]


def test_a_broken_connection_keeps_the_text_before_it():
    text, stream, _ = asked("dies")
    assert text == "你好世" and stream.finish_reason == "error" and stream.error.code == "broke_off"


@pytest.mark.parametrize("model", ["endless", "line", "zipped"])
def test_the_size_of_an_answer_is_limited(model):
    text, stream, _ = asked(model, limits=Limits(chars=1000, seconds=20))
    assert len(text) <= 1000
    assert (stream.cut, stream.finish_reason) == ("size", "length") or stream.error.code in ("not_openai", "broke_off")


@pytest.mark.parametrize("model", ["drips", "silent", "headers", "continue"])
def test_the_time_of_an_answer_is_limited(model):
    _, stream, _ = asked(model, limits=Limits(seconds=0.8))
    assert stream.error.code == "too_slow"


def test_a_slow_answer_is_cut_at_the_time_limit():
    text, stream, _ = asked("slow", "慢" * 100, limits=Limits(seconds=2))
    assert 0 < len(text) < 100 and (stream.cut, stream.finish_reason) == ("time", "length")


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("junk", "not_openai"),
        ("odd", "not_openai"),
        ("elsewhere", "refused"),
        ("error", "refused"),
        ("faraway", "refused"),
    ],
)
def test_invalid_answers_and_redirects_are_errors(model, code):
    _, stream, other = asked(model)
    assert stream.error.code == code and len(other.seen) == 1  # a redirect is not followed


def test_impossible_counts_and_unpaired_surrogates_are_replaced():
    text, stream, _ = asked("counts")
    assert text == "好" and stream.finish_reason == "stop" and stream.completion_tokens == 1
    text, stream, _ = asked("surrogate")
    assert text == "?好?" and text.encode()


def test_servers_that_do_not_stream_or_refuse_optional_fields_work():
    text, stream, _ = asked("whole")
    assert text == "整个你好世界" and stream.finish_reason == "length"
    text, _, other = asked("plain", top_k=20, seed=1)
    assert text == "你好世界" and [("top_k" in body) for _, _, body in other.seen] == [True, False, False, False]


@pytest.mark.parametrize(
    ("model", "fields", "expected"),
    [
        ("plain", {"seed": 1}, ["the field seed for plain: it is left out", "stream_options"]),
        ("newer", {"max_tokens": 9}, ["the field max_tokens for newer: max_completion_tokens is sent instead"]),
        ("single", {}, ["the field stream for single", "stream_options"]),
    ],
)
def test_fields_that_a_model_refuses_are_changed_once_and_reported(model, fields, expected):
    notes = []
    with peer() as other:
        client = ApiClient(other.address, report=notes.append)
        for _ in range(3):
            assert "好" in ended(chat(client, model, **fields))
        before = len(other.seen)
        assert ended(chat(client, "echo", **fields)) == "好" and before == 3 + len(expected) - (model == "single")
    assert len(notes) == len(expected) and all(words in note for words, note in zip(expected, notes, strict=True))
    last, echo = other.seen[before - 1][2], other.seen[-1][2]
    assert set(fields) <= set(echo) and not set(fields) & set(last)
    assert ("max_completion_tokens" in last) == (model == "newer")


@pytest.mark.parametrize(
    ("detail", "body", "changes"),
    [
        ("'max_tokens' or 'max_completion_tokens' is too large: 2048", {"max_tokens": 1}, {}),
        ("Invalid max_tokens value, the valid range of max_tokens is [1, 8192]", {"max_tokens": 1}, {}),
        ("this model is not supported MaxTokens, please use MaxCompletionTokens", {"max_tokens": 1}, {"max_tokens"}),
        ("不支持参数 max_tokens，请使用 max_completion_tokens", {"max_tokens": 1}, {"max_tokens"}),
        ('Unknown name "seed": Cannot find field.', {"seed": 1, "top_k": 1}, {"seed"}),
        ("The model doubao-seed-1.6 does not exist", {"seed": 1}, {}),
        ("Unsupported value: 'temperature' does not support 0.7", {"temperature": 0.7, "max_tokens": 1}, {}),
    ],
)
def test_only_fields_that_a_refusal_calls_unknown_are_changed(detail, body, changes):
    failure = ApiFailure("refused", address="x", status=400, detail=detail, param="")
    assert set(changes_after(failure, body)) == set(changes)


def test_extra_fields_are_sent_and_take_the_place_of_ours():
    with peer() as other:
        client = ApiClient(other.address, extra={"reasoning_effort": "none", "max_completion_tokens": 7, "seed": 5})
        assert ended(chat(client, "echo", max_tokens=3, seed=1)) == "好"
    body = other.seen[0][2]
    assert (body["reasoning_effort"], body["max_completion_tokens"], body["seed"]) == ("none", 7, 5)
    assert "max_tokens" not in body


def test_a_compressed_answer_is_read_and_reasoning_is_counted_but_is_no_text():
    assert asked("packed")[0] == "你好世界"
    text, stream, _ = asked("thoughtful")
    assert text == "好" and stream.thought_chars == 3


def test_optional_fields_are_sent_again_after_a_refusal_with_another_cause():
    with peer(["busy"]) as other:
        client = ApiClient(other.address)
        other.refuse = 2
        ended(client.chat("echo", [{"role": "user", "content": "好"}], top_k=5))
        ended(client.chat("echo", [{"role": "user", "content": "好"}], top_k=5))
    assert [("top_k" in body) for _, _, body in other.seen] == [True, False, True]


def test_a_busy_server_is_retried_a_limited_number_of_times():
    text, _, other = asked("busy")
    assert text == "你好世界" and len(other.seen) == 3
    _, stream, other = asked("busy", limits=Limits(retries=1))
    assert stream.error.code == "busy" and len(other.seen) == 2


def test_cancelling_ends_the_stream_and_closes_the_connection():
    with peer() as other:
        stream = ApiClient(other.address).chat("slow", [{"role": "user", "content": "长" * 400}])
        assert stream.next_piece(60)
        stream.cancel()
        ended(stream)
        assert stream.finish_reason == "cancelled" and came(lambda: other.left == ["slow"])


def test_a_request_without_an_answer_can_be_cancelled():
    with peer() as other:
        stream = ApiClient(other.address).chat("silent", [{"role": "user", "content": "好"}])
        assert came(lambda: other.seen)
        stream.cancel()
        assert ended(stream) == "" and stream.finish_reason == "cancelled"


def test_a_server_that_is_not_there_is_reported():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        client = ApiClient(f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ApiFailure, match="does not answer"):
            client.models()
        stream = client.chat("echo", [{"role": "user", "content": "好"}])
        ended(stream)
        assert stream.error.code == "unreachable"


def test_models_are_listed_with_the_time_without_invalid_names_and_models_that_label_texts():
    labels = {"id": "labels", "task": "classify"}
    with peer(models=["a", "a", "b" * 500, 7, "", labels], owner="minigpt") as other:
        models, seconds = ApiClient(other.address).models()
    assert models == [{"id": "a", "owned_by": "minigpt"}] and 0 < seconds < 3


def test_the_time_of_a_model_list_is_limited():
    with peer(None, listing_seconds=5) as other:
        with pytest.raises(ApiFailure) as raised:
            ApiClient(other.address).models(0.5)
        assert raised.value.code == "too_slow"


def chat(client, model="kept", prompt="好", **fields):
    return client.chat(model, [{"role": "user", "content": prompt}], **fields)


def came(condition):
    """Wait for a condition, at most a minute; whether it became true."""
    until = time.monotonic() + 60
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return condition()


def test_consecutive_requests_share_a_connection_until_the_client_is_closed():
    with peer() as other:
        client = ApiClient(other.address)
        other.refuse = 1
        for _ in range(3):
            stream = chat(client)
            assert ended(stream) == "好" and came(lambda: not client._requests)
            assert ended(chat(client, "whole")) == "整个好" and came(lambda: not client._requests)
            client.models()
        assert len(other.seen) == 10 and other.connected == 1 and other.disconnected == 0
        assert not any("Cookie" in headers for _, headers, _ in other.seen)
        client.close()
        assert came(lambda: other.disconnected == 1)
        assert ended(chat(client)) == "好"  # a closed client can still be used
        assert came(lambda: other.disconnected == 2)


def test_concurrent_requests_have_a_connection_each_and_closing_cuts_none():
    with peer() as other:
        client = ApiClient(other.address)
        streams = [chat(client, "slow", "一二三四五六") for _ in range(120)]
        assert all(stream.next_piece(60) == "一" for stream in streams)
        client.close()
        assert [ended(stream) for stream in streams] == ["二三四五六"] * 120
        assert other.connected == 120 and client.models()[0]


@pytest.mark.parametrize("error", [ZeroDivisionError, ValueError, KeyError])
def test_an_internal_error_is_not_blamed_on_the_server(monkeypatch, capsys, error):
    def add(self, text):
        raise error("ours")

    monkeypatch.setattr(RemoteStream, "_add", add)
    _, stream, _ = asked("echo")
    assert stream.error.code == "internal" and error.__name__ in str(stream.error)
    told = capsys.readouterr().err
    assert "Traceback" in told and error.__name__ in told and "ours" in told
    assert failure_cause(stream.error, replies=9) == FATAL and "traceback" in advice_for(stream.error)
