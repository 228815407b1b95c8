"""server.py with a real model: one client, and many at once."""

import http.client
import json
import signal
import sys
import threading
import time
from collections import Counter

import pytest
from corpora import ROOT
from serving_fakes import serving
from tiny import tiny_model, tiny_tokenizer

from minigpt.checkpoint import save_checkpoint
from minigpt.inference.engine import TextGenerator
from minigpt.inference.params import SamplingParams
from minigpt.settings.stages import TrainSettings

ANSWER_TOKENS = 40


@pytest.fixture(scope="module")
def model():
    return tiny_model(block_size=128)


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    progress = {"step": 1}
    for run, stage in (("base", "pretrain"), ("asked", "sft")):
        weights, path = model.state_dict(), folder / run / "ckpt.pt"
        save_checkpoint(path, weights, model.config, TrainSettings(), stage, tiny_tokenizer(), progress)
    flags = [f"--ckpt={folder / 'base' / 'ckpt.pt'},{folder / 'asked' / 'ckpt.pt'}"]
    with serving(ROOT / "server.py", *flags, "--device=cpu", "--dtype=float32") as server:
        yield server


def texts_of(model, stage, prompts, **sampling):
    """The engine's text for each prompt alone."""
    generator = TextGenerator(model, tiny_tokenizer(), stage)
    return [generator.generate([prompt], SamplingParams(**sampling))[0] for prompt in prompts]


def test_every_endpoint_returns_the_engine_s_text(server, model):
    common = {"temperature": 0, "max_new_tokens": 20, "frequency_penalty": 1.0}
    (continued,) = texts_of(model, "pretrain", ["河的"], **common)
    (answered,) = texts_of(model, "sft", ["河的？"], **common)
    assert server.post("/generate", prompt="河的", stream=False, **common)[1]["text"] == continued
    assert server.ask("POST", "/generate", {"prompt": "河的", **common})[2].decode() == continued
    common["max_tokens"] = common.pop("max_new_tokens")
    _, completion = server.post("/v1/completions", model="base", prompt="河的", **common)
    assert completion["choices"][0]["text"] == continued
    ids = tiny_tokenizer().encode("河的")
    _, of_ids = server.post("/v1/completions", model="base", prompt=ids, **common)
    assert of_ids["choices"] == completion["choices"] and of_ids["usage"] == completion["usage"]
    chat = {"model": "asked", "messages": [{"role": "user", "content": "河的？"}], **common}
    assert server.post("/v1/chat/completions", **chat)[1]["choices"][0]["message"]["content"] == answered
    body = server.ask("POST", "/v1/chat/completions", {**chat, "stream": True})[2].decode()
    events = [json.loads(line[6:]) for line in body.split("\n\n") if line.startswith("data: {")]
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == answered
    talk = [
        {"role": "system", "content": "短"},
        {"role": "user", "content": "一"},
        {"role": "assistant", "content": "二"},
    ]
    for messages in (talk + chat["messages"], [*talk[1:], *chat["messages"]], talk[:1] + chat["messages"]):
        assert server.post("/v1/chat/completions", **{**chat, "messages": messages})[0] == 200
    assert server.post("/v1/chat/completions", **{**chat, "model": "base"})[0] == 200


def test_a_chat_s_sampling_choices_and_last_message_are_the_engine_s(server, model):
    sampling = {"temperature": 1.0, "min_p": 0.02, "presence_penalty": 0.6, "seed": 5}
    for talk in (
        [{"role": "user", "content": "河的？"}, {"role": "assistant", "content": "的河"}],
        [{"role": "user", "content": "河的？"}, {"role": "system", "content": "短"}],
        [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool", "content": "河"}],
    ):
        asked = {
            "model": "asked",
            "messages": talk,
            "max_completion_tokens": 20,
            "repeat_penalty": 1.3,
            "n": 2,
            **sampling,
        }
        status, answer = server.post("/v1/chat/completions", **asked)
        assert status == 200
        generator = TextGenerator(model, tiny_tokenizer(), "sft")
        ids = generator.prompt_ids([{**message, "content": message["content"] or ""} for message in talk])
        texts = [
            generator.generate(
                [ids], SamplingParams(**sampling | {"seed": seed}, repetition_penalty=1.3, max_new_tokens=20)
            )
            for seed in (5, 6)
        ]
        assert [[choice["message"]["content"]] for choice in answer["choices"]] == texts and texts[0] != texts[1]
        assert answer["usage"]["prompt_tokens"] == len(ids)


def test_a_prompt_longer_than_the_block_is_cut_and_reported(server):
    status, answer = server.post("/generate", prompt="河" * 500, stream=False, max_new_tokens=5)
    assert status == 200 and answer["prompt_cut"] and answer["prompt_tokens"] <= 128
    for fields in ({"prompt": ""}, {"prompt": "\n"}, {"prompt": "##"}, {"prompt": "a", "top_p": 0, "top_k": 0}):
        for name in ("base", "asked"):
            assert server.post("/generate", **fields, model=name, stream=False, max_new_tokens=3)[0] == 200


class Client(threading.Thread):
    """Sends the same request again and again until `until`, and until it has been answered; counts texts and statuses.

    A status other than 200 and 429 ends it.
    """

    def __init__(self, server, fields, until, how):
        super().__init__(daemon=True)
        self.server, self.fields, self.until, self.how = server, fields, until, how
        self.texts, self.statuses = Counter(), Counter()

    def run(self):
        while self.statuses.keys() <= {200, 429} and (time.monotonic() < self.until or not self.texts):
            status, headers, body = self.server.ask("POST", *self.how(self.fields), timeout=120)
            self.statuses[status] += 1
            if status == 429:
                time.sleep(int(headers["Retry-After"]))
            elif status == 200:
                self.texts[text_of(headers["Content-Type"], body)] += 1


def text_of(content_type, body):
    """The text in an answer of any content type."""
    if content_type.startswith("text/plain"):
        return body.decode()
    if content_type == "application/json":
        return json.loads(body)["text"]
    assert body.endswith(b"data: [DONE]\n\n")
    events = [json.loads(line[6:]) for line in body.decode().split("\n\n") if line.startswith("data: {")]
    return "".join(event["choices"][0]["text"] for event in events)


def plain(fields):
    return "/generate", fields


def whole(fields):
    return "/generate", {**fields, "stream": False}


def events(fields):
    fields = {"model": "base", "stream": True, "max_tokens": fields["max_new_tokens"], **fields}
    return "/v1/completions", {name: value for name, value in fields.items() if name != "max_new_tokens"}


@pytest.mark.soak
def test_each_of_many_clients_gets_the_same_text_as_alone(server, model, rounds):
    count, seconds = rounds(8, 200), rounds(3, 60)
    asked = [
        {
            "prompt": f"第{i}" + "河的"[i % 2] * (i % 7),
            "seed": 1000 + i,
            "temperature": 1.0,
            "top_k": (0, 20)[i % 2],
            "max_new_tokens": ANSWER_TOKENS - i % 10,
        }
        for i in range(count)
    ]
    expected = []
    for fields in asked:
        sampling = {name: value for name, value in fields.items() if name != "prompt"}
        expected += texts_of(model, "pretrain", [fields["prompt"]], **sampling)
    assert len(set(expected)) > count * 0.9
    until = time.monotonic() + seconds
    clients = [Client(server, fields, until, (plain, whole, events)[i % 3]) for i, fields in enumerate(asked)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    statuses = sum((client.statuses for client in clients), Counter())
    assert set(statuses) <= {200, 429}, statuses
    served, differing = 0, []
    for client, text in zip(clients, expected, strict=True):
        served += client.texts.total()
        differing += [(text, other, times) for other, times in client.texts.items() if other != text]
    assert sum(times for *_, times in differing) <= served / 1000, differing
    server.wait_until(running=0, waiting=0)
    print(f"{count} clients, {seconds} s: {statuses}")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without a signal")
def test_ctrl_c_stops_it_with_0(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    body = b'{"prompt": "a", "max_new_tokens": 120}'
    connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
    server.process.send_signal(signal.SIGINT)
    _, out = server.ended()
    assert server.process.returncode == 0 and "Traceback" not in out and "terminate" not in out, out
    assert connection.getresponse().status == 200
