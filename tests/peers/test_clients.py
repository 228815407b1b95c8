"""The client libraries that programs use, unchanged, against server.py with models that answer reproducible noise."""

import math

import pytest
from packages import require_packages

require_packages("openai", "langchain_openai", "litellm")

pytestmark = pytest.mark.peers

QUESTION = "河的名字?"
ASKED = [{"role": "user", "content": QUESTION}]
TALK = [("system", "短"), ("human", "河?"), ("ai", "是"), ("human", QUESTION)]
GREEDY = {"temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def expected(server):
    """expected(path, **fields): the text of the first choice of a plain request."""

    def ask(path="/v1/chat/completions", **fields):
        status, answer = server.post(path, **{**GREEDY, **fields})
        assert status == 200, answer
        return (answer["choices"][0].get("message") or {"content": answer["choices"][0].get("text")})["content"]

    return ask


def is_unit(vector):
    return math.isclose(sum(x * x for x in vector), 1, rel_tol=1e-3)


class TestOpenAI:
    @pytest.fixture(scope="class")
    def client(self, server):
        import openai

        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            yield client

    def test_models(self, client):
        assert [model.id for model in client.models.list()] == ["tuned", "base"]
        assert client.models.retrieve("tuned").id == "tuned"

    def test_a_chat_whole_raw_and_in_a_stream(self, client, expected):
        asked = {"model": "tuned", "messages": ASKED, **GREEDY}
        text = expected(model="tuned", messages=ASKED)
        assert client.chat.completions.create(**asked).choices[0].message.content == text
        raw = client.chat.completions.with_raw_response.create(**asked)
        assert raw.headers["Content-Type"].startswith("application/json")
        assert raw.parse().choices[0].message.content == text
        *chunks, last = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
        assert 0 < last.usage.completion_tokens <= 8 and last.choices == []

    def test_completions_of_several_prompts(self, client, expected):
        prompts = ["The river", "的河"]
        answer = client.completions.create(model="base", prompt=prompts, **GREEDY)
        assert [choice.text for choice in answer.choices] == [
            expected("/v1/completions", model="base", prompt=prompt) for prompt in prompts
        ]

    def test_several_choices(self, client):
        asked = {"model": "tuned", "n": 2, "temperature": 1, "seed": 3, "max_tokens": 8}
        answer = client.chat.completions.create(messages=ASKED, **asked)
        assert [choice.index for choice in answer.choices] == [0, 1]
        assert answer.choices[0].message.content != answer.choices[1].message.content
        assert 8 < answer.usage.completion_tokens <= 16

    def test_log_probabilities_of_an_answer(self, client):
        answer = client.chat.completions.create(model="tuned", messages=ASKED, logprobs=True, top_logprobs=2, **GREEDY)
        entries = answer.choices[0].logprobs.content
        assert len(entries) >= answer.usage.completion_tokens > 0
        for entry in entries:
            best, second = entry.top_logprobs
            assert 0 >= best.logprob >= second.logprob and entry.logprob <= best.logprob

    def test_log_probabilities_of_a_prompt(self, client):
        echoed = client.completions.create(model="base", prompt="rivers", echo=True, logprobs=1, max_tokens=0)
        about = echoed.choices[0].logprobs
        assert echoed.choices[0].text == "rivers" == "".join(about.tokens)
        assert about.token_logprobs[0] is None and all(value < 0 for value in about.token_logprobs[1:])

    def test_embeddings(self, client):
        both = client.embeddings.create(model="base", input=["河的", "a longer text"], encoding_format="float")
        one = client.embeddings.create(model="base", input="a longer text")  # as base64, the client's default
        assert both.data[1].embedding == pytest.approx(one.data[0].embedding, abs=1e-5)
        assert all(is_unit(entry.embedding) for entry in both.data)
        assert both.usage.prompt_tokens > one.usage.prompt_tokens > 0

    def test_what_is_not_there_is_said(self, client):
        import openai

        with pytest.raises(openai.APIStatusError, match="/v1/chat/completions") as error:
            client.responses.create(model="tuned", input=QUESTION)
        assert 400 <= error.value.status_code < 500
        with pytest.raises(openai.BadRequestError, match="tools"):
            function = {"name": "f", "parameters": {"type": "object", "properties": {}}}
            client.chat.completions.create(
                model="tuned", messages=ASKED, tools=[{"type": "function", "function": function}]
            )


class TestLangChain:
    @pytest.fixture(scope="class")
    def chat(self, server):
        """chat(**settings): LangChain's client of the fine-tuned model."""
        from langchain_openai import ChatOpenAI

        return lambda **settings: ChatOpenAI(
            base_url=f"{server.url}/v1", api_key="none", model="tuned", max_retries=0, **{**GREEDY, **settings}
        )

    def test_a_chat_whole_in_a_stream_and_in_a_batch(self, chat, expected):
        text = expected(model="tuned", messages=ASKED)
        assert chat().invoke(QUESTION).content == text
        assert "".join(piece.content for piece in chat().stream(QUESTION)) == text
        assert [message.content for message in chat().batch([QUESTION] * 3)] == [text] * 3

    def test_a_talk_with_a_system_message(self, chat, expected):
        roles = {"human": "user", "ai": "assistant"}
        messages = [{"role": roles.get(role, role), "content": content} for role, content in TALK]
        assert chat().invoke(TALK).content == expected(model="tuned", messages=messages)

    def test_a_stop_string(self, chat, expected):
        text = expected(model="tuned", messages=ASKED)
        assert chat().invoke(QUESTION, stop=[text[-1]]).content == text[: text.index(text[-1])]

    @pytest.mark.parametrize("field", [{"presence_penalty": 0.1}, {"reasoning_effort": "low"}])
    def test_fields_of_its_models(self, chat, field):
        assert chat(**field).invoke(QUESTION).content

    def test_several_choices_and_log_probabilities(self, chat):
        from langchain_core.messages import HumanMessage

        generations = chat(n=2, temperature=1).generate([[HumanMessage(QUESTION)]]).generations[0]
        assert len(generations) == 2
        entries = chat(logprobs=True).invoke(QUESTION).response_metadata["logprobs"]["content"]
        assert entries and all(entry["logprob"] <= 0 for entry in entries)

    def test_completions_and_embeddings(self, server, expected):
        from langchain_openai import OpenAI, OpenAIEmbeddings

        settings = {"base_url": f"{server.url}/v1", "api_key": "none", "model": "base", "max_retries": 0}
        text = expected("/v1/completions", model="base", prompt="The river")
        assert OpenAI(**settings, **GREEDY).invoke("The river") == text
        # Its default sends the ids of an OpenAI model's tokenizer, which it downloads.
        embeddings = OpenAIEmbeddings(**settings, check_embedding_ctx_length=False)
        vectors = embeddings.embed_documents(["河的", "The river"])
        assert embeddings.embed_query("The river") == pytest.approx(vectors[1], abs=1e-5)
        assert all(map(is_unit, vectors))


class TestLiteLLM:
    @pytest.fixture(scope="class")
    def where(self, server):
        return {"api_base": f"{server.url}/v1", "api_key": "none", "max_retries": 0}

    @pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
    def test_a_chat_whole_and_in_a_stream(self, where, expected, provider):
        import litellm

        text = expected(model="tuned", messages=ASKED)
        asked = {"model": f"{provider}/tuned", "messages": ASKED, **where, **GREEDY}
        assert litellm.completion(**asked).choices[0].message.content == text
        pieces = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**asked, stream=True)]
        assert "".join(pieces) == text

    def test_completions_and_embeddings(self, where, expected):
        import litellm

        text = expected("/v1/completions", model="base", prompt="The river")
        answer = litellm.text_completion(model="text-completion-openai/base", prompt="The river", **where, **GREEDY)
        assert answer.choices[0].text == text
        answer = litellm.embedding(model="openai/base", input=["河的", "The river"], **where)
        assert [is_unit(entry["embedding"]) for entry in answer.data] == [True, True]
