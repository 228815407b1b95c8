"""Requests as chat programs send them are answered; only tools and formats are refused, by name."""

import json

import pytest
from client_requests import CALL, client_requests
from serving_fakes import FakeGenerator

from minigpt.serving import create_app
from minigpt.serving.schemas import NOT_SUPPORTED
from minigpt.settings.stages import ServerSettings

SEED = 16


@pytest.fixture(scope="module")
def client():
    return create_app({"fake": FakeGenerator(obeys=False)}, ServerSettings(max_tokens_limit=8)).test_client()


@pytest.mark.soak
def test_requests_of_chat_programs_are_answered(client, rounds):
    seen = set()
    for program, path, body in client_requests(SEED, rounds(300, 5000), "fake"):
        response = client.post(path, json=body)
        assert response.status_code == 200, (program, body, response.text)
        if body.get("stream"):
            assert response.text.endswith("data: [DONE]\n\n") and '"error"' not in response.text
        else:
            assert response.json["choices"][0]["finish_reason"] in ("stop", "length")
        named = response.headers.get("X-Ignored-Fields", "").split(", ")
        assert not set(named) & set(NOT_SUPPORTED["accepted"]["request"]), (program, named)
        seen |= {(program, name) for name in body}
    assert {name for _, name in seen} >= {"repeat_penalty", "enable_thinking", "prompt", "max_completion_tokens"}


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": CALL["function"]}], "tool_choice": "auto"},
        {"functions": [CALL["function"]]},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
    ],
)
def test_what_the_models_cannot_do_is_a_400_that_says_so_in_every_program(client, fields):
    for _, path, body in client_requests(SEED, 8, "fake"):
        if path != "/v1/chat/completions":
            continue
        response = client.post(path, json={**body, **fields})
        error = json.loads(response.text)["error"]
        assert response.status_code == 400 and "these models" in error["message"]
        assert error["message"].startswith(tuple(fields))
