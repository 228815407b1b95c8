"""The official openai client with the server process."""

import asyncio

import openai
import pytest
from serving_fakes import __file__ as fake
from serving_fakes import serving

ASKED = [{"role": "system", "content": "简短"}, {"role": "user", "content": "你好"}]


@pytest.fixture(scope="module")
def server():
    with serving(
        fake, "--ckpt=out/fake/ckpt.pt,out/base/ckpt.pt", "--max_batch=2", "--max_queue=0", key="secret"
    ) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="secret", timeout=30, max_retries=0) as client:
        yield client


def test_models_are_listed_and_found(client):
    assert [model.id for model in client.models.list()] == ["fake", "base"]
    assert client.models.retrieve("base").owned_by == "minigpt"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("gpt-4")
    assert error.value.code == "model_not_found" and error.value.param == "model"


def test_a_chat_whole_and_in_a_stream_is_the_same_text(client):
    def chat(**more):
        return client.chat.completions.create(model="fake", messages=ASKED, max_completion_tokens=7, **more)

    whole = chat(temperature=0, seed=1, user="someone", n=1, presence_penalty=0, extra_body={"top_k": 5})
    assert whole.choices[0].message.content == "简短\n你好简短" and whole.choices[0].finish_reason == "length"
    assert whole.choices[0].message.role == "assistant" and whole.model == "fake" and whole.created > 1.7e9
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens) == (5, 7, 12)
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage == whole.usage and all(chunk.usage is None for chunk in chunks[:-1])
    again = [*ASKED, whole.choices[0].message, {"role": "user", "content": [{"type": "text", "text": "再见"}]}]
    assert client.chat.completions.create(model="fake", messages=again, max_tokens=2).choices[0].message.content


def test_the_stream_helper_of_the_client_works(client):
    asked = [{"role": "user", "content": "full stop"}]
    with client.chat.completions.stream(model="fake", messages=asked) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == "full stop"


def test_completions_of_one_prompt_and_several_whole_and_in_a_stream(client):
    one = client.completions.create(model="base", prompt="甲乙", max_tokens=3, stop="丙")
    assert one.choices[0].text == "甲乙甲" and one.object == "text_completion"
    ids = client.completions.create(model="base", prompt=[65, 66], max_tokens=2)
    assert ids.choices[0].text == "AB"
    both = client.completions.create(model="base", prompt=["甲", "乙"], max_tokens=2)
    assert [(choice.index, choice.text) for choice in both.choices] == [(0, "甲甲"), (1, "乙乙")]
    assert both.usage.completion_tokens == 4
    texts = ["", ""]
    ends = [None, None]
    for chunk in client.completions.create(model="base", prompt=["甲", "乙slow"], max_tokens=5, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.text
        ends[choice.index] = choice.finish_reason
    assert texts == ["甲甲甲甲甲", "乙slow"] and ends == ["length", "length"]


def test_several_choices_whole_and_in_a_stream_count_their_prompt_once(client):
    asked = {"model": "fake", "messages": [{"role": "user", "content": "甲乙"}], "n": 2, "seed": 1, "max_tokens": 3}
    whole = client.chat.completions.create(**asked)
    assert [(choice.index, choice.message.content) for choice in whole.choices] == [(0, "甲乙甲"), (1, "甲乙甲")]
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (2, 6)
    texts, roles, ends = ["", ""], [None, None], [None, None]
    for chunk in client.chat.completions.create(**asked, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        roles[choice.index] = choice.delta.role or roles[choice.index]
        ends[choice.index] = choice.finish_reason
    assert texts == ["甲乙甲"] * 2 and roles == ["assistant"] * 2 and ends == ["length"] * 2
    both = client.completions.create(model="base", prompt="丙", n=2, max_tokens=2)
    assert [(choice.index, choice.text) for choice in both.choices] == [(0, "丙丙"), (1, "丙丙")]


def test_a_field_that_was_ignored_is_named_in_a_header(client):
    for stream in (False, True):
        raw = client.chat.completions.with_raw_response.create(
            model="fake", messages=ASKED, max_tokens=1, stream=stream, extra_body={"tfs_z": 1, "钥\n匙": 1, "think": 0}
        )
        assert raw.headers["X-Ignored-Fields"] == "tfs_z, %E9%92%A5%0A%E5%8C%99"
    many = {f"field of a program {i}": 1 for i in range(1000)}
    raw = client.chat.completions.with_raw_response.create(model="fake", messages=ASKED, max_tokens=1, extra_body=many)
    named = raw.headers["X-Ignored-Fields"]
    assert named.startswith("field%20of%20a%20program%200, ") and named.endswith("...") and len(named) < 1000


def test_errors_become_the_client_s_exceptions(client, server):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="fake", messages=ASKED, n=3)
    assert error.value.param == "n" and error.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.completions.create(model="gpt-4", prompt="a")
    with pytest.raises(openai.InternalServerError):
        client.completions.create(model="fake", prompt="fail")
    with pytest.raises(openai.APIError, match="generation failed"):
        list(client.completions.create(model="fake", prompt="fail slow", stream=True))
    held = [server.open("/generate", prompt="slow", max_new_tokens=4000) for _ in range(2)]
    server.wait_until(running=2)
    with pytest.raises(openai.RateLimitError) as error:
        client.completions.create(model="fake", prompt="a")
    assert error.value.response.headers["Retry-After"] and error.value.code == "rate_limit_exceeded"
    for sock in held:
        sock.close()
    patient = client.with_options(max_retries=5)
    assert patient.completions.create(model="fake", prompt="a", max_tokens=1).choices[0].text == "a"


def test_a_stream_that_the_client_closes_frees_its_batch_slot(client, server):
    stream = client.completions.create(model="fake", prompt="slow", max_tokens=4000, stream=True)
    next(iter(stream))
    server.wait_until(running=1)
    stream.close()
    server.wait_until(running=0)


def test_several_tasks_of_the_async_client(server):
    async def ask():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="secret", max_retries=0) as client:
            whole = client.chat.completions.create(model="fake", messages=ASKED, max_tokens=4)
            stream = await client.completions.create(model="base", prompt="甲", max_tokens=4, stream=True)
            text = "".join([chunk.choices[0].text async for chunk in stream])
            return (await whole).choices[0].message.content, text

    assert asyncio.run(ask()) == ("简短\n你", "甲甲甲甲")


def test_a_wrong_key_is_the_client_s_authentication_error(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as error:
            client.models.list()
        assert error.value.code == "invalid_api_key"
