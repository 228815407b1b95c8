"""The HTTP API without a socket: fields, bodies, admission, names, addresses."""

import threading
import time

import openai.types.chat.completion_create_params as chat_params
import openai.types.completion_create_params as completion_params
import pytest
from serving_fakes import FakeGenerator

from minigpt.checkpoint import model_names
from minigpt.common.net import addresses
from minigpt.inference.params import SamplingParams
from minigpt.serving import create_app
from minigpt.serving.errors import ApiError, read_json, to_json
from minigpt.serving.request import Admission
from minigpt.serving.schemas import N_SEEDS, parse_request, request_models
from minigpt.settings.stages import ServerSettings

LIMITS = ServerSettings(max_prompt_chars=100, max_tokens_limit=50, max_batch=3)
N_VOCAB = 1000
CHAT = {"model": "m", "messages": [{"role": "user", "content": "问"}]}
COMPLETION = {"model": "m", "prompt": "从"}
VALID = {"/generate": {"prompt": "从"}, "/v1/completions": COMPLETION, "/v1/chat/completions": CHAT}
MODELS = {path: model for path, model in request_models(LIMITS).items() if path in VALID}  # of those that generate


def parsed(path, **fields):
    """The valid body of this path with these fields, parsed."""
    return parse_request(MODELS[path], {**VALID[path], **fields})


def refused(path, **fields):
    """The error for the valid body of this path with these fields."""
    with pytest.raises(ApiError) as error:
        body = parsed(path, **fields)
        if path == "/v1/completions":
            body.prompts(N_VOCAB)
    assert error.value.status == 400
    assert error.value.param in error.value.message
    return error.value


@pytest.mark.parametrize("path", MODELS)
@pytest.mark.parametrize(
    "name, value",
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_k", 1.5),
        ("top_k", -1),
        ("top_p", 1.01),
        ("frequency_penalty", -2.5),
        ("repetition_penalty", 0),
        ("seed", 2**63),
        ("seed", "1"),
        ("stop", ["a"] * 5),
        ("stop", [1]),
        ("stop", {"a": 1}),
        ("stop", "\ud800"),
        ("stream", 1),
        ("stream", "true"),
        ("model", 3),
    ],
)
def test_a_wrong_value_is_refused_by_name(path, name, value):
    assert refused(path, **{name: value}).param.startswith(name)


def test_a_token_limit_is_refused_by_the_name_that_was_used():
    for path, name in [
        ("/generate", "max_new_tokens"),
        ("/v1/completions", "max_tokens"),
        ("/v1/chat/completions", "max_tokens"),
        ("/v1/chat/completions", "max_completion_tokens"),
    ]:
        for value in (51, 10**30, 1.5, "1", True):
            assert refused(path, **{name: value}).param == name


@pytest.mark.parametrize("path", MODELS)
def test_an_unknown_field_is_refused_with_the_nearest_name_in_a_short_message(path):
    error = refused(path, temprature=1)
    assert error.param == "temprature" and "did you mean temperature?" in error.message
    assert "the fields are" in refused(path, xyzzy=1).message
    for huge in ({"x" * 10**6: 1}, {"top_k": [[[[["x" * 99] * 9] * 9] * 9] * 9]}):
        assert len(refused(path, **huge).message) < 1000
    to_json(refused(path, **{"\ud800": 1}).body)  # can be sent


@pytest.mark.parametrize("path", MODELS)
def test_a_missing_field_is_named_and_null_is_the_same_as_left_out(path):
    fields = MODELS[path].model_fields
    for name in (name for name, field in fields.items() if field.is_required()):
        assert refused(path, **{name: None}).param == name
    everything = dict.fromkeys(fields) | VALID[path]
    assert parsed(path, **everything) == parsed(path)


@pytest.mark.parametrize(
    "path, module", [("/v1/completions", completion_params), ("/v1/chat/completions", chat_params)]
)
def test_every_field_of_openai_is_known_and_unsupported_ones_are_refused_with_a_reason(path, module):
    names = set().union(*(kind.__annotations__ for kind in module.CompletionCreateParams.__args__))
    names |= set(module.CompletionCreateParamsBase.__annotations__)
    properties = MODELS[path].model_json_schema()["properties"]
    assert names <= set(properties)
    for name, field in properties.items():
        if "not supported" in field.get("description", ""):
            assert "not supported" in refused(path, **{name: ["x"]}).message
            for neutral in field["enum"]:
                parsed(path, **{name: neutral})
    assert "or give 1 " in refused(path, n=2).message and "given: True" in refused(path, n=True).message


def test_sampling_params_come_from_the_fields_and_their_defaults_from_the_project():
    def params(path, **fields):
        return parsed(path, **fields).sampling_params

    for path in MODELS:
        assert params(path) == SamplingParams()
        given = {"temperature": 1, "top_k": 0, "top_p": 0.5, "frequency_penalty": -1, "repetition_penalty": 1.5}
        assert params(path, **given) == SamplingParams(**given)
        assert params(path, stop="。").stop == ("。",)
        assert params(path, stop=["。", "", "\n"]).stop == ("。", "\n")
        assert params(path, seed=-1).seed == N_SEEDS - 1 and params(path, seed=5).seed == 5
    assert params("/generate", max_new_tokens=7.0).max_new_tokens == 7
    assert params("/v1/completions", max_tokens=7).max_new_tokens == 7
    assert params("/v1/chat/completions", max_tokens=7, max_completion_tokens=9).max_new_tokens == 9


def test_a_completion_has_one_prompt_or_several_of_a_kind():
    def prompts(prompt):
        return parsed("/v1/completions", prompt=prompt).prompts(N_VOCAB)

    assert prompts("从") == ["从"] and prompts(["从", ""]) == ["从", ""]
    assert prompts([1, 2]) == [[1, 2]] and prompts([[1], [2, 3]]) == [[1], [2, 3]]
    for wrong, named in [
        ([], "prompt"),
        ([[]], "prompt[0]"),
        (["a", [1]], "prompt[1]"),
        ([1, "a"], "prompt[1]"),
        ([1000], "prompt[0]"),
        ([[1], [2, 1000]], "prompt[1][1]"),
        ([[1], [-1]], "prompt[1][0]"),
        ([[1.5]], "prompt[0][0]"),
        ([True], "prompt[0]"),
        (["a"] * 4, "prompt"),
        ("长" * 101, "prompt"),
        (["长" * 60] * 2, "prompt"),
        (5, "prompt"),
    ]:
        assert refused("/v1/completions", prompt=wrong).param == named


def test_a_chat_has_roles_and_text_and_ends_with_the_user():
    def chat(*messages):
        return parsed("/v1/chat/completions", messages=list(messages)).conversation

    user = {"role": "user", "content": "问"}
    echoed = {"role": "assistant", "content": "答", "refusal": None, "tool_calls": None, "annotations": []}
    parts = {"role": "user", "content": [{"type": "text", "text": "上"}, {"type": "text", "text": "下"}]}
    assert chat(user, echoed, parts) == [
        user,
        {"role": "assistant", "content": "答"},
        {"role": "user", "content": "上下"},
    ]
    for wrong, named in [
        ([], "messages"),
        ("问", "messages"),
        ([1], "messages[0]"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"content": "问"}], "messages[0].role"),
        ([{**user, "role": "tool"}], "messages[0].role"),
        ([{**user, "content": 1}], "messages[0].content"),
        ([{**user, "content": [{"type": "image_url", "text": ""}]}], "messages[0].content[0].type"),
        ([{**user, "content": "长" * 101}], "messages[0].content"),
        ([{**user, "content": "长" * 60}] * 2, "messages"),
        ([{**user, "tool_calls": [1]}], "messages[0].tool_calls"),
        ([{**user, "conten": "问"}], "messages[0].conten"),
        ([user, {"role": "assistant", "content": "答"}], "messages[1].role"),
    ]:
        assert refused("/v1/chat/completions", messages=wrong).param == named
    assert refused("/v1/chat/completions", stream_options={"include_usage": True}).param == "stream_options"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"\xff\xfe{}",
        '{"prompt": "从"}'.encode("gbk"),
        '{"prompt": "从"}'.encode("utf-16"),
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e400}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a":' * 100_000,
        b"[" * 1_000_000,
        b'{"a": 01}',
        b"{'a': 1}",
        b'{"a": "\n"}',
    ],
    ids=lambda body: repr(body[:16]),
)
def test_a_body_that_is_not_a_json_object_in_utf8_is_refused(body):
    with pytest.raises(ApiError) as error:
        read_json(body)
    assert error.value.status == 400 and error.value.param == "body"


def test_a_body_may_have_a_byte_order_mark_and_a_repeated_key():
    assert read_json(b'\xef\xbb\xbf{"a": 1, "a": 2}') == {"a": 2}


def test_admission_counts_what_runs_and_waits_over_all_models():
    admission = Admission(["a", "b"], max_batch=2, max_queue=1)
    admission.admit("a", 2)
    admission.admit("b", 1)
    admission.admit("a", 1)
    with pytest.raises(ApiError) as full:
        admission.admit("a", 1)
    assert full.value.status == 429 and int(full.value.headers["Retry-After"]) >= 1
    admission.admit("b", 1)  # model b has a free batch slot
    with pytest.raises(ApiError):
        admission.admit("b", 1)
    admission.release("a", 1, 0.1)
    admission.admit("b", 1)
    assert admission.capacity == 5


def test_stopping_waits_for_running_requests_and_admits_no_more():
    admission = Admission(["a"], 2, 0)
    admission.admit("a", 1)
    threading.Timer(0.1, lambda: admission.release("a", 1, 0.1)).start()
    started = time.monotonic()
    assert admission.stop(60) and time.monotonic() - started < 50  # woken by the release, not by the timeout
    with pytest.raises(ApiError) as stopping:
        admission.admit("a", 1)
    assert stopping.value.status == 503


def test_models_are_named_by_their_runs():
    paths = ["out/demo_sft/ckpt.pt", "out/demo_sft/last.pt", "out/demo/step_000500.pt", "x/demo_sft/ckpt.pt"]
    assert model_names(paths) == ["demo_sft", "demo_sft/last", "demo/step_000500", "demo_sft-2"]


def test_addresses_are_those_of_the_host_or_all():
    assert addresses("127.0.0.1", 80) == ["http://127.0.0.1:80"] and addresses("::1", 80) == ["http://[::1]:80"]
    found = addresses("0.0.0.0", 5000)
    assert found[0] == "http://127.0.0.1:5000" and len(set(found)) == len(found)


def test_a_stream_that_is_never_started_releases_its_prompt():
    app = create_app({"m": FakeGenerator()}, ServerSettings())
    with app.test_request_context("/generate", method="POST", json={"prompt": "从"}):
        response = app.full_dispatch_request()
        with pytest.raises(ApiError):
            app.service.admission.admit("m", 32 + 64)
        response.close()
    app.service.admission.admit("m", 32 + 64)
