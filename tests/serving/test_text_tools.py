"""Log probabilities, echo, embeddings and tokenization over HTTP, with a small model in this process."""

import base64
import json
from contextlib import contextmanager
from itertools import chain
from types import SimpleNamespace

import jinja2
import numpy as np
import openai
import pytest
import torch
from serving_fakes import FakeGenerator, serving
from serving_fakes import __file__ as fake
from tiny import EOT, MARK, PAD, random_ids, tiny_model, tiny_tokenizer

from minigpt.inference.engine import TextGenerator
from minigpt.inference.params import SamplingParams
from minigpt.serving import create_app
from minigpt.serving.choices import Choice
from minigpt.serving.errors import ApiError
from minigpt.serving.text_tools import embed
from minigpt.settings.stages import ServerSettings

pytestmark = pytest.mark.numeric

TOKENIZER = tiny_tokenizer()
# What lm-eval's local-completions asks for loglikelihood tasks.
LM_EVAL = {"model": "base", "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1234}


@pytest.fixture(scope="module")
def generators():
    return {stage: TextGenerator(tiny_model(), TOKENIZER, stage) for stage in ("pretrain", "sft")}


@pytest.fixture(scope="module")
def client(generators):
    settings = ServerSettings(max_batch=4, max_prompt_chars=500, max_body_bytes=20_000)
    app = create_app({"base": generators["pretrain"], "chat": generators["sft"]}, settings)
    yield app.test_client()
    for generator in generators.values():
        generator.close()


def answer(client, path, **fields):
    response = client.post(path, json=fields)
    assert response.status_code == 200, response.text
    return response.json


def refusal(client, path, **fields):
    """The error for a body that is answered with 400."""
    response = client.post(path, json=fields)
    assert response.status_code == 400, response.text
    return response.json["error"]


def streamed(client, path, **fields):
    """The choices of the events of a stream, as a list."""
    response = client.post(path, json={**fields, "stream": True})
    events = [event.removeprefix("data: ") for event in response.text.split("\n\n")]
    assert events[-2:] == ["[DONE]", ""]
    return [choice for event in events[:-2] for choice in json.loads(event)["choices"]]


def plain_log_probs(ids):
    with torch.inference_mode():
        return tiny_model()(torch.tensor([ids]))[0].log_softmax(dim=-1)


@contextmanager
def scripted(generator, ids):
    """The generator samples these ids."""
    script, choose = iter(ids), generator.engine.choose
    generator.engine.choose = lambda logits, samplers: [next(script)]
    yield
    generator.engine.choose = choose


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_what_lm_eval_reads_is_the_likelihood_of_the_continuation(client, max_tokens):
    prompts = [random_ids(n, seed=n).tolist() for n in (3, 32, 17, 2)]  # the second fills the block
    choices = answer(client, "/v1/completions", **{**LM_EVAL, "prompt": prompts, "max_tokens": max_tokens})["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    for ids, choice in zip(prompts, choices, strict=True):
        log_probs, found = plain_log_probs(ids), choice["logprobs"]
        assert len(found["tokens"]) == len(ids) + max_tokens
        assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
        expected = [log_probs[t - 1, ids[t]].item() for t in range(1, len(ids))]
        assert found["token_logprobs"][1 : len(ids)] == pytest.approx(expected, abs=1e-4)
        for t in range(1, len(ids)):
            is_greedy = found["token_logprobs"][t] == max(found["top_logprobs"][t].values())
            assert is_greedy == (log_probs[t - 1, :263].argmax().item() == ids[t])


def test_an_answer_that_is_ended_at_once_still_has_a_last_log_probability(client, generators):
    """lm-eval drops the last one, that of the token which it has to ask for."""
    with scripted(generators["pretrain"], [EOT]):
        (choice,) = answer(client, "/v1/completions", **LM_EVAL, prompt=[[65, 66, 67]])["choices"]
    assert choice["logprobs"]["tokens"] == ["A", "B", "C", "<|endoftext|>"] and choice["text"] == "ABC"
    assert choice["finish_reason"] == "stop" and len(choice["logprobs"]["token_logprobs"]) == 4


def test_completions_give_the_same_log_probabilities_whole_and_in_a_stream(client, generators):
    ids = [*b" a", *"桥".encode(), *"的".encode()[:2], 257, *b"stop", EOT]
    fields = {"model": "base", "prompt": "河B", "logprobs": 2, "max_tokens": 20, "stop": "st"}
    for echo, start in ((False, 0), (True, 2)):
        with scripted(generators["pretrain"], ids):
            (whole,) = answer(client, "/v1/completions", **fields, echo=echo)["choices"]
        assert whole["text"] == "河B"[:start] + " a桥的"
        found = whole["logprobs"]
        texts = [" ", "a", r"bytes:\xe6", r"bytes:\xa1", r"bytes:\xa5", r"bytes:\xe7", r"bytes:\x9a", "的"]
        shown = (["河", "B"] if echo else []) + [*texts[:5], *found["tokens"][start + 5 :]]
        assert found["tokens"] == shown
        offsets = [start + i for i in (0, 1, 2, 2, 2)]
        assert found["text_offset"][: start + 5] == ([0, 1] if echo else []) + offsets
        assert all(len(top) in (2, 3) for top in found["top_logprobs"][1 if echo else 0 :])
        with scripted(generators["pretrain"], ids):
            pieces = streamed(client, "/v1/completions", **fields, echo=echo)
        # How many pieces there are depends on how soon the reader takes them: at least the text, and the end.
        assert "".join(piece["text"] for piece in pieces) == whole["text"] and len(pieces) > 1
        parts = [piece["logprobs"] for piece in pieces if piece["logprobs"]]
        assert {key: [*chain.from_iterable(part[key] for part in parts)] for key in found} == found
        if echo:
            assert pieces[0]["text"].startswith("河B")


def test_chats_give_the_same_log_probabilities_whole_and_in_a_stream(client, generators):
    ids = [*"河桥".encode(), EOT]
    fields = {"model": "chat", "messages": [{"role": "user", "content": "a"}], "logprobs": True, "max_tokens": 20}
    for top in (0, 3):
        with scripted(generators["sft"], ids):
            (whole,) = answer(client, "/v1/chat/completions", **fields, top_logprobs=top)["choices"]
        with scripted(generators["sft"], ids):
            pieces = streamed(client, "/v1/chat/completions", **fields, top_logprobs=top)
        content = whole["logprobs"]["content"]
        parts = [piece["logprobs"]["content"] for piece in pieces if piece["logprobs"]]
        assert [*chain.from_iterable(parts)] == content
        assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == whole["message"]["content"] == "河桥"
        assert len(content) == 6 and content[3]["token"] == r"\xe6"
        log_probs = plain_log_probs([97, MARK, *ids])
        assert [entry["logprob"] for entry in content] == pytest.approx(
            [log_probs[t + 1, token].item() for t, token in enumerate(ids[:-1])], abs=1e-4
        )
        assert all(len(entry["top_logprobs"]) == top for entry in content)
    silent = answer(client, "/v1/chat/completions", **{**fields, "logprobs": False})["choices"][0]
    assert silent["logprobs"] is None


def test_a_request_that_ended_before_its_prompt_was_computed_is_no_answer():
    params = SamplingParams(max_new_tokens=0, logprobs=0, prompt_logprobs=0)
    unread = SimpleNamespace(prompt=[65], params=params, logprobs=[], prompt_logprobs=[], embedding=None)
    running = SimpleNamespace(streams=[unread], prompt_tokens=1, wait_for_texts=lambda: None, close=lambda: None)
    body = SimpleNamespace(dimensions=None, prompts=lambda n_vocab: ["A"])
    for ask in (
        lambda: Choice(unread, TOKENIZER, chat=False, echo=True).take("", True),
        lambda: embed(TextGenerator(tiny_model(), TOKENIZER, "pretrain"), body, lambda prompts: running, 4),
    ):
        with pytest.raises(ApiError) as error:
            ask()
        assert error.value.status == 503


def test_no_tokens_are_generated_for_max_tokens_0(client):
    for fields, text in [({"echo": True}, "河的"), ({}, ""), ({"logprobs": 0}, "")]:
        body = answer(client, "/v1/completions", model="base", prompt="河的", max_tokens=0, **fields)
        assert body["choices"][0]["text"] == text and body["choices"][0]["finish_reason"] == "length"
        assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 0, "total_tokens": 2}
    pieces = streamed(client, "/v1/completions", model="base", prompt="河的", max_tokens=0, echo=True, logprobs=1)
    assert [piece["text"] for piece in pieces] == ["河的", ""] and pieces[0]["logprobs"]["tokens"] == ["河", "的"]


def test_echo_shows_the_prompt_as_the_model_gets_it(client):
    echoed = [
        answer(client, "/v1/completions", model=name, prompt=prompt, max_tokens=0, echo=True)["choices"][0]["text"]
        for name, prompt in (("base", "河 "), ("chat", "河？"), ("chat", [65, 66]), ("base", "长" * 40))
    ]
    assert echoed == ["河 ", "河？##", "AB", "长" * 10]  # the last is cut to the block
    response = client.post("/v1/completions", json={"model": "base", "prompt": "长" * 40, "max_tokens": 0})
    assert response.headers["X-Prompt-Cut"] == "true"


def test_a_prompt_that_would_be_cut_gets_no_wrong_log_probabilities(client):
    for prompt in ([1] * 33, [[1] * 5, [1] * 33], "长" * 11):
        error = refusal(client, "/v1/completions", **LM_EVAL, prompt=prompt)
        assert error["param"] == "prompt" and "33 tokens does not fit into the model's 32" in error["message"]
    assert refusal(client, "/v1/completions", model="base", prompt="a", logprobs=21)["param"] == "logprobs"
    assert refusal(client, "/v1/completions", model="base", prompt="a", best_of=2)["param"] == "best_of"
    chat = {"model": "chat", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    assert refusal(client, "/v1/chat/completions", **chat, top_logprobs=2)["param"] == "top_logprobs"
    assert answer(client, "/v1/completions", model="base", prompt="a", max_tokens=1, best_of=1)["choices"]


def test_embeddings_are_the_means_of_the_models_states(client):
    texts = ["河的桥", "a", "", "a", "东河", "西河", "b", "c", "d"]  # more than the four of one batch
    body = answer(client, "/v1/embeddings", model="chat", input=texts)
    assert [entry["index"] for entry in body["data"]] == list(range(9)) and body["object"] == "list"
    n_tokens = 0
    for text, entry in zip(texts, body["data"], strict=True):
        ids = TOKENIZER.encode(text) or [EOT]
        n_tokens += len(ids)
        with torch.inference_mode():
            mean = tiny_model().hidden(torch.tensor([ids]))[0].mean(dim=0)
        assert entry["embedding"] == pytest.approx((mean / mean.norm()).tolist(), abs=1e-5)
    assert body["usage"] == {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    first = body["data"][0]["embedding"]
    for same in ("河的桥", TOKENIZER.encode("河的桥"), [TOKENIZER.encode("河的桥")]):
        fields = {"input": same, "encoding_format": "base64", "dimensions": 32}
        (entry,) = answer(client, "/v1/embeddings", model="base", **fields)["data"]
        numbers = np.frombuffer(base64.b64decode(entry["embedding"]), dtype="<f4")
        assert numbers.tolist() == pytest.approx(first, abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": ["a", "长" * 11]}, "input[1]", "33 tokens does not fit into the model's 32"),
        ({"input": "长" * 11}, "input", "33 tokens"),
        ({"input": ["长" * 501]}, "input[0]", "500"),
        ({"input": [[1], [2, 263]]}, "input[1][1]", "check_embedding_ctx_length=False"),
        ({"input": []}, "input", ""),
        ({"input": {"a": 1}}, "input", ""),
        ({"input": "a", "dimensions": 16}, "dimensions", "32"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", ""),
    ],
)
def test_inputs_that_cannot_be_embedded_are_refused_by_name(client, fields, param, words):
    error = refusal(client, "/v1/embeddings", model="base", **fields)
    assert error["param"] == param and words in error["message"]


def test_text_is_tokenized_as_the_models_read_it(client, generators):
    encode = TOKENIZER.encode

    def tokens(**fields):
        return answer(client, "/tokenize", **fields)["tokens"]

    # lm-eval's tokenizer names no model; its request for EOT is the name of EOT.
    assert tokens(prompt="河a", add_special_tokens=False) == encode("河a")
    assert tokens(prompt="<|endoftext|>", add_special_tokens=False) == [EOT]
    assert tokens(prompt="a<|endoftext|>") == encode("a<|endoftext|>") and EOT not in tokens(prompt="a<|endoftext|>")
    assert tokens(prompt="问##答") == [*encode("问"), 35, 35, *encode("答")]
    # The ids of a question with its mark begin those of the question and its answer.
    assert tokens(model="chat", prompt="问##答") == [*encode("问"), MARK, *encode("答")]
    assert tokens(model="chat", prompt="问##") == [*encode("问"), MARK]
    talk = [{"role": "user", "content": "问"}]
    assert tokens(model="chat", messages=talk) == generators["sft"].prompt_ids(talk)
    body = answer(client, "/tokenize", model="chat", prompt="桥a##", return_token_strs=True)
    assert body["count"] == 5 and body["max_model_len"] == 32
    assert body["token_strs"] == [r"\xe6", r"\xa1", r"\xa5", "a", "##"]
    assert answer(client, "/tokenize", prompt="")["tokens"] == []
    for fields in ({}, {"prompt": "a", "messages": talk}):
        assert refusal(client, "/tokenize", **fields)["param"] == "prompt"
    assert refusal(client, "/tokenize", prompt="长" * 501)["param"] == "prompt"
    assert client.post("/tokenize", json={"prompt": "a", "model": "none"}).status_code == 404
    assert client.post("/tokenize", data=b"{" * 30_000, content_type="application/json").status_code == 413


def test_ids_are_turned_back_into_text(client):
    assert answer(client, "/detokenize", tokens=[*TOKENIZER.encode("河a的"), EOT, PAD]) == {"prompt": "河a的"}
    assert answer(client, "/detokenize", model="chat", tokens=[65, MARK]) == {"prompt": "A##"}
    assert answer(client, "/detokenize", tokens=[]) == {"prompt": ""}
    for tokens, param in ([[263], "tokens[0]"], [[1, -1], "tokens[1]"], ["a", "tokens"], [[[1]], "tokens[0]"]):
        assert refusal(client, "/detokenize", tokens=tokens)["param"] == param


def test_the_tokenizer_describes_itself_and_its_template_gives_the_ids_of_chats(client, generators):
    base = client.get("/tokenizer_info").json
    assert (base["eos_token"], base["bos_token"], base["pad_token"]) == ("<|endoftext|>", None, "<|pad|>")
    assert base["chat_template"] is None and base["vocab_size"] == 263 and base["model_max_length"] == 32
    assert client.get("/tokenizer_info?model=none").status_code == 404
    template = jinja2.Template(client.get("/tokenizer_info?model=chat").json["chat_template"])
    system, ask, say = (lambda text, role=role: (role, text) for role in ("system", "user", "assistant"))
    for turns in (
        [ask(" 甲？ ")],
        [system("要短。"), ask("甲？"), say("乙。"), ask("丙？")],
        [ask("甲？"), say("乙 ")],
        [ask("甲"), ask("乙")],
    ):
        messages = [{"role": role, "content": text} for role, text in turns]
        rendered = template.render(messages=messages, add_generation_prompt=True)
        found = answer(client, "/tokenize", model="chat", prompt=rendered)["tokens"]
        assert found == generators["sft"].prompt_ids(messages)


def test_a_key_is_needed_for_tokens_and_embeddings_too():
    client = create_app({"fake": FakeGenerator()}, ServerSettings(), "secret").test_client()
    for path, fields in [
        ("/tokenize", {"prompt": "a"}),
        ("/detokenize", {"tokens": [1]}),
        ("/v1/embeddings", {"model": "fake", "input": "a"}),
    ]:
        assert client.post(path, json=fields).status_code == 401
        assert client.post(path, json=fields, headers={"Authorization": "Bearer secret"}).status_code == 200
    assert client.get("/tokenizer_info").status_code == 401


def test_the_openai_client_reads_embeddings_and_log_probabilities():
    started = serving(fake, "--ckpt=out/fake/ckpt.pt")
    with started as server, openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        for more in ({}, {"encoding_format": "float"}):  # the client's own default is base64
            found = client.embeddings.create(model="fake", input=["ab", "c"], **more)
            assert [len(entry.embedding) for entry in found.data] == [3, 3] and found.usage.total_tokens == 3
            assert found.data[0].embedding == pytest.approx([0.002, 0.6, -0.8])
        fields = {"model": "fake", "messages": [{"role": "user", "content": "full stop"}], "logprobs": True}
        chat = client.chat.completions.create(**fields, top_logprobs=2)
        assert [entry.token for entry in chat.choices[0].logprobs.content] == [*"full stop"]
        with client.chat.completions.stream(**fields) as stream:
            for _ in stream:
                pass
            assert len(stream.get_final_completion().choices[0].logprobs.content) == 9
        echoed = client.completions.create(model="fake", prompt="ab", max_tokens=1, echo=True, logprobs=0)
        assert echoed.choices[0].logprobs.tokens == ["a", "b", "a"]
