"""A model of a Hugging Face folder over HTTP: its chat template, its special tokens, its ends of an answer."""

import jinja2
import pytest
from hugging_folders import write_model

from minigpt.checkpoint import load_checkpoint, load_model
from minigpt.inference.engine import TextGenerator
from minigpt.serving import create_app
from minigpt.settings.stages import ServerSettings

pytest.importorskip("transformers")

CHAT = [{"role": "system", "content": "short"}, {"role": "user", "content": "江？"}]


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    folder, _ = write_model(tmp_path_factory.mktemp("adopted") / "qwen", kind="thinking")
    (folder / "generation_config.json").write_text('{"eos_token_id": [602, 600]}', encoding="utf-8")
    content = load_checkpoint(folder)
    made = TextGenerator(*load_model(content), content["stage"])
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(generator):
    return create_app({"qwen": generator}, ServerSettings(max_batch=4)).test_client()


def answer(client, path, **fields):
    response = client.post(path, json=fields)
    assert response.status_code == 200, response.text
    return response.json


def test_a_chat_is_asked_by_the_template_and_described_by_it(client, generator):
    tokenizer = generator.tokenizer
    ids = answer(client, "/tokenize", messages=CHAT)["tokens"]
    assert ids == tokenizer.chat_ids(CHAT) and tokenizer.eot_id in ids
    about = client.get("/tokenizer_info").json
    assert (about["eos_token"], about["pad_token"]) == ("<|im_end|>", "<|endoftext|>")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    template = about["chat_template"].replace("{%- generation %}", "").replace("{%- endgeneration %}", "")
    text = environment.from_string(template).render(messages=CHAT, add_generation_prompt=True)
    assert answer(client, "/tokenize", prompt=text)["tokens"] == ids
    usage = answer(client, "/v1/chat/completions", model="qwen", messages=CHAT, max_tokens=3)["usage"]
    assert usage["prompt_tokens"] == len(ids)
    (question,) = CHAT[1:]
    usage = answer(client, "/v1/completions", model="qwen", prompt=question["content"], max_tokens=3)["usage"]
    assert usage["prompt_tokens"] == len(tokenizer.chat_ids([question]))


def test_an_answer_ends_at_each_id_that_the_generation_config_names(client, generator):
    assert generator.tokenizer.stop_ids == [600, 602]
    choose = generator.engine.choose
    for end in (600, 602):
        script = iter([*generator.tokenizer.encode("江"), end])
        generator.engine.choose = lambda logits, samplers, script=script: [next(script)]
        (choice,) = answer(client, "/v1/chat/completions", model="qwen", messages=CHAT)["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("江", "stop")
    generator.engine.choose = choose


def test_messages_that_the_template_refuses_are_a_bad_request(client, generator, monkeypatch):
    monkeypatch.setattr(generator.tokenizer, "_template", jinja2.Template("{{ 1 / 0 }}"))
    for path in ("/v1/chat/completions", "/tokenize"):
        response = client.post(path, json={"model": "qwen", "messages": CHAT})
        assert response.status_code == 400 and "refuses these messages" in response.json["error"]["message"]
        assert response.json["error"]["param"] == "messages"
