"""The HTTP API without a socket: fields, bodies, admission, names, addresses."""

import json
import re
import threading
import time
from types import SimpleNamespace

import openai.types.chat.completion_create_params as chat_params
import openai.types.completion_create_params as completion_params
import pytest
from serving_fakes import FakeGenerator, FakeTokenizer

from minigpt.checkpoint import model_names
from minigpt.common.net import addresses
from minigpt.common.streams import all_ready
from minigpt.inference.params import SamplingParams
from minigpt.serving import create_app
from minigpt.serving import request as requests
from minigpt.serving.errors import ApiError, read_json, to_event, to_json
from minigpt.serving.openai_api import OpenAIAnswer
from minigpt.serving.request import Admission
from minigpt.serving.schemas import N_SEEDS, NOT_SUPPORTED, parse_request, request_models
from minigpt.settings.stages import ServerSettings

LIMITS = ServerSettings(max_prompt_chars=100, max_tokens_limit=50, max_batch=3)
N_VOCAB = 1000
CHAT = {"model": "m", "messages": [{"role": "user", "content": "问"}]}
COMPLETION = {"model": "m", "prompt": "从"}
VALID = {"/generate": {"prompt": "从"}, "/v1/completions": COMPLETION, "/v1/chat/completions": CHAT}
MODELS = {path: model for path, model in request_models(LIMITS).items() if path in VALID}  # of those that generate


def parsed(path, **fields):
    """The valid body of this path with these fields, parsed."""
    return parse_request(MODELS[path], {**VALID[path], **fields})[0]


def ignored(path, **fields):
    """The fields that are ignored and named, of the valid body of this path with these fields."""
    return parse_request(MODELS[path], {**VALID[path], **fields})[1]


def refused(path, strict=False, **fields):
    """The error for the valid body of this path with these fields."""
    with pytest.raises(ApiError) as error:
        body, _ = parse_request(MODELS[path], {**VALID[path], **fields}, strict)
        if path == "/v1/completions":
            body.prompts(N_VOCAB)
    assert error.value.status == 400
    assert error.value.message.startswith(error.value.param + ": ") and "\n" not in error.value.message
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
        ("top_k", -2),
        ("top_p", 1.01),
        ("frequency_penalty", -2.5),
        ("presence_penalty", 2.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0),
        ("repeat_penalty", 0),
        ("seed", 2**63),
        ("seed", "1"),
        ("stop", ["a"] * 17),
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


ANSWER_LENGTHS = ("max_tokens", "max_completion_tokens", "max_new_tokens")


@pytest.mark.parametrize("path", MODELS)
def test_an_answer_s_length_is_clamped_under_each_of_its_names(path):
    for name in ANSWER_LENGTHS:
        for value, tokens in ((0, 0), (7, 7), (7.0, 7), (50, 50), (51, 50), (32000, 50), (10**30, 50), (-1, 50)):
            assert parsed(path, **{name: value}).sampling_params.max_new_tokens == tokens
        for value in (-2, 1.5, "1", True):
            assert refused(path, **{name: value}).param == name
    assert parsed(path, max_tokens=7, max_completion_tokens=9).sampling_params.max_new_tokens == 9
    assert parsed(path, max_tokens=7, max_completion_tokens=None).sampling_params.max_new_tokens == 7


def typing_mistakes(name):
    """Names that miss, double, change or swap letters of a name, or write it in another style."""
    yield from (name.upper(), name.replace("_", "-") + "_", name.title().replace("_", ""))
    for i in range(len(name)):
        yield from (name[:i] + name[i + 1 :], name[: i + 1] + name[i:], name[:i] + "x" + name[i + 1 :])
        yield name[:i] + name[i + 1 : i + 2] + name[i] + name[i + 2 :]


@pytest.mark.parametrize("path", MODELS)
def test_a_misspelt_field_is_refused_with_the_name_that_was_meant(path):
    known = set(MODELS[path].model_fields)
    others = {*known, *NOT_SUPPORTED["accepted"]["request"], *NOT_SUPPORTED["ignored"]["request"]}
    for name in known - {"n"}:
        for mistake in set(typing_mistakes(name)) - others:
            error = refused(path, **{mistake: 1})
            assert error.param == mistake and error.code == "unknown_field" and "did you mean" in error.message
    assert "did you mean temperature?" in refused(path, temprature=1).message
    assert "did you mean max_tokens?" in refused(path, maxTokens=1).message


# What other servers read and what chat programs add, by their public documentation.
OTHER_FIELDS = re.findall(
    r"\w+",
    """
typical_p tfs_z mirostat mirostat_mode mirostat_tau mirostat_eta ignore_eos top_a top_n_sigma epsilon_cutoff eta_cutoff
dynatemp_range dynatemp_exponent dynamic_temperature smoothing_factor dry_multiplier dry_base dry_allowed_length
dry_sequence_breakers xtc_probability xtc_threshold repeat_last_n penalize_nl rep_pen rep_pen_range
no_repeat_ngram_size encoder_repetition_penalty guidance_scale negative_prompt num_beams length_penalty early_stopping
do_sample add_bos_token truncation_length skip_special_tokens spaces_between_special_tokens min_tokens min_length
max_length max_output_tokens max_time n_predict num_predict n_probs samplers sampler_order temp
use_beam_search stop_token_ids stop_sequences stop_sequence stopping_strings include_stop_str_in_output bad_words
prompt_logprobs return_tokens_as_token_ids allowed_token_ids logits_processors documents web_search_options web_search
enable_search plugins transforms models route safe_prompt random_seed system system_prompt instructions input inputs
context extra_body extra_headers translation_options image_url template grammar_string json_mode lora cfg_scale
guided_decoding_backend character name1 mode instruction_template continue_ regenerate safety_settings
generation_config candidate_count timeout max_retries title tags summary task type object created trace_id thread_id
assistant_id agent_id promptPrefix endpoint modelLabel spec resendFiles maxContextTokens artifacts topic sessionId
token api_key caching fallbacks num_retries base_url data_sources speed voice size quality
""",
)


@pytest.mark.parametrize("path", MODELS)
def test_other_servers_fields_are_accepted_and_named_or_without_effect(path):
    for names in (OTHER_FIELDS[:80], OTHER_FIELDS[80:]):  # of one body, not more than 100 are named
        assert ignored(path, **dict.fromkeys(names, "x")) == names
    silent = {name: {"any": ["value", 1]} for name in NOT_SUPPORTED["accepted"]["request"]}
    assert ignored(path, **silent) == [] and parsed(path, **silent) == parsed(path)
    parse_request(MODELS[path], {**VALID[path], **silent}, strict=True)
    assert "the fields are" in refused(path, strict=True, xyzzy=1).message
    assert refused(path, strict=True, typical_p=1).param == "typical_p"


def test_fields_of_objects_within_a_body_are_named_with_their_place():
    part = {"type": "text", "text": "问", "cache_control": {}, "colour": 1}
    messages = [{"role": "user", "content": [part, part], "mood": "x", "reasoning_content": "想"}] * 2
    fields = {"messages": messages, "stream": True, "stream_options": {"include_usage": True, "obs": 1}}
    named = ["messages[].mood", "messages[].content[].colour", "stream_options.obs"]
    assert sorted(ignored("/v1/chat/completions", **fields)) == sorted(named)
    assert refused("/v1/chat/completions", strict=True, messages=messages).param == "messages[0].mood"
    for wrong, param in [
        ({"stream_options": {"include_usge": True}}, "stream_options.include_usge"),
        ({"messages": [{**CHAT["messages"][0], "rolle": "x"}]}, "messages[0].rolle"),
        ({"messages": [{"role": "user", "content": [{**part, "txt": "x"}]}]}, "messages[0].content[0].txt"),
    ]:
        assert refused("/v1/chat/completions", **wrong).param == param


@pytest.mark.parametrize("path", MODELS)
def test_an_error_is_short_and_of_one_line_whatever_was_sent(path):
    for huge in ({"x" * 10**6: 1}, {"top_k": [[[[["x" * 99] * 9] * 9] * 9] * 9]}, {"stop": "a\nb\u2028" * 99}):
        assert len(refused(path, strict=True, **huge).message) < 1500
    with pytest.raises(ApiError) as error:
        parse_request(MODELS[path], {**VALID[path], "temp\ud800er\n": 1}, strict=True)
    assert "\n" not in error.value.message
    to_json(error.value.body)  # can be sent


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
    assert names - {"web_search_options"} <= {*properties, *NOT_SUPPORTED["accepted"]["request"]}
    refusing = {name: field for name, field in properties.items() if "leave it out" in field.get("description", "")}
    assert {"response_format", "logit_bias"} <= set(refusing)
    for name, field in refusing.items():
        assert field["description"] in refused(path, **{name: ["x"]}).message
        for neutral in field["enum"]:
            parsed(path, **{name: neutral})


def test_what_the_models_cannot_do_is_refused_with_the_reason():
    for fields, param, reason in [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "cannot call tools"),
        ({"tool_choice": "required"}, "tool_choice", "cannot call tools"),
        ({"functions": [{"name": "f"}]}, "functions", "cannot call functions"),
        ({"response_format": {"type": "json_object"}}, "response_format", "such as JSON"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format", "such as JSON"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"modalities": ["text", "audio"]}, "modalities", "text only"),
    ]:
        error = refused("/v1/chat/completions", **fields)
        assert error.param == param and reason in error.message and "leave it out" in error.message


def test_sampling_params_come_from_the_fields_and_their_defaults_from_the_project():
    def params(path, **fields):
        return parsed(path, **fields).sampling_params

    for path in MODELS:
        assert params(path) == SamplingParams(max_new_tokens=50)  # the limit, which is below the default
        given = {"temperature": 1, "top_k": 0, "top_p": 0.5, "frequency_penalty": -1, "repetition_penalty": 1.5}
        given |= {"min_p": 0.1, "presence_penalty": 0.6}
        assert params(path, **given) == SamplingParams(**given, max_new_tokens=50)
        assert params(path, repeat_penalty=1.1).repetition_penalty == 1.1 and params(path, top_k=-1).top_k == 0
        assert params(path, stop="。").stop == ("。",)
        assert params(path, stop=["。", "", "\n"]).stop == ("。", "\n")
        assert params(path, seed=-1).seed == N_SEEDS - 1 and params(path, seed=5).seed == 5


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_each_of_n_choices_has_a_seed_of_its_own(path):
    def seeds(**fields):
        return [params.seed for params in parsed(path, **fields).choices_params]

    assert seeds(n=3, seed=N_SEEDS - 2) == [N_SEEDS - 2, N_SEEDS - 1, 0] and seeds(n=2) == [None, None]
    for value in (0, 4, 1.5, True):
        assert refused(path, n=value).param == "n"


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
    assert refused("/v1/completions", prompt=["a", "b"], n=2).param == "n"


USER = {"role": "user", "content": "问"}


def test_a_chat_has_roles_and_text_in_any_order():
    def chat(*messages):
        return [(m["role"], m["content"]) for m in parsed("/v1/chat/completions", messages=list(messages)).conversation]

    echoed = {"role": "assistant", "content": "答", "refusal": None, "tool_calls": None, "annotations": []}
    parts = {"role": "user", "content": [{"type": "text", "text": "上"}, {"type": "text", "text": "下"}]}
    assert chat(USER, echoed, parts) == [("user", "问"), ("assistant", "答"), ("user", "上下")]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    thought = [{"type": "thinking", "thinking": "想"}, {"type": "output_text", "text": "答"}]
    for message, expected in [
        ({"role": "assistant", "content": "答到一半"}, ("assistant", "答到一半")),
        ({"role": "system", "content": "给这段对话起个标题"}, ("system", "给这段对话起个标题")),
        ({"role": "developer", "content": ""}, ("developer", "")),
        ({"role": "assistant", "content": None, "tool_calls": [call]}, ("assistant", "")),
        ({"role": "assistant", "tool_calls": [call]}, ("assistant", "")),
        ({"role": "assistant", "content": ""}, ("assistant", "")),
        ({"role": "assistant", "content": []}, ("assistant", "")),
        ({"role": "assistant", "content": thought}, ("assistant", "答")),
        ({"role": "tool", "tool_call_id": "1", "content": "三点"}, ("tool", "三点")),
        ({"role": "function", "name": "f", "content": "三点"}, ("tool", "三点")),
    ]:
        assert chat(USER, message) == [("user", "问"), expected]
        assert chat(message, USER) == [expected, ("user", "问")]


@pytest.mark.parametrize(
    "wrong, named",
    [
        ([], "messages"),
        ("问", "messages"),
        ([1], "messages[0]"),
        ([{"role": "user"}], "messages[0].content"),
        ([USER, {"role": "system", "content": None}], "messages[1].content"),
        ([{"content": "问"}], "messages[0].role"),
        ([{**USER, "role": "robot"}], "messages[0].role"),
        ([{**USER, "content": 1}], "messages[0].content"),
        ([{**USER, "content": [{"type": "image_url", "text": ""}]}], "messages[0].content[0].type"),
        ([{**USER, "content": [{"type": "text", "text": "a"}, {"type": "file"}]}], "messages[0].content[1].type"),
        ([{**USER, "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{**USER, "images": ["aGk="]}], "messages[0].images"),
        ([{**USER, "content": "长" * 101}], "messages[0].content"),
        ([{**USER, "content": "长" * 60}] * 2, "messages"),
        ([{**USER, "conten": "问"}], "messages[0].conten"),
    ],
)
def test_a_wrong_message_is_refused_by_its_place(wrong, named):
    error = refused("/v1/chat/completions", messages=wrong)
    assert error.param == named
    assert not named.endswith(".type") or "read text only" in error.message


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


@pytest.mark.parametrize("stream", [True, False])
def test_tokens_that_come_in_a_pause_are_read_together_and_the_end_ends_it(monkeypatch, stream):
    reads, found = [], []
    monkeypatch.setattr(requests, "all_ready", lambda *given: reads.append(given) or all_ready(*given))
    monkeypatch.setattr(requests, "pause_seconds", lambda running: 3600)
    monkeypatch.setattr(requests, "CLIENT_POLL_SECONDS", 3600)
    client = create_app({"m": FakeGenerator()}, ServerSettings()).test_client()

    def ask():
        body = {"model": "m", "prompt": "slow", "max_tokens": 4, "stream": stream}
        found.extend(re.findall('"text":"(.*?)"', client.post("/v1/completions", json=body).text))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(60)
    assert "".join(found) == "slow" and len(reads) <= 2


def test_a_single_stream_has_no_pauses_and_many_have_longer_ones():
    assert [requests.pause_seconds(running) for running in (0, 1)] == [0, 0]
    assert 0 < requests.pause_seconds(2) < requests.pause_seconds(8) <= requests.pause_seconds(10**6) < 0.05


@pytest.mark.parametrize("chat", [False, True])
def test_an_event_of_text_is_as_the_json_of_its_values(chat):
    text, model = '河"\\\n\0\ud800', '"\\u0000"\0text'
    stream = SimpleNamespace(prompt=[], params=SamplingParams())
    running = SimpleNamespace(streams=[stream] * 2, updates=lambda: [[(1, text, None)]])
    update, _ = OpenAIAnswer(model, chat, FakeTokenizer(), False).events(running, False)
    event = update.split(b"\n\n")[-2]  # a chat's role comes before it
    values = json.loads(event[6:])
    choice = {"index": 1, **({"delta": {"content": text}} if chat else {"text": text})}
    choice |= {"logprobs": None, "finish_reason": None}
    assert values["model"] == model and event + b"\n\n" == to_event({**values, "choices": [choice]})


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
