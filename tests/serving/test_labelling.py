"""POST /classify and /tag: answers, errors, counters, and which model is asked at which address."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from serving_fakes import FakeClassifier, FakeGenerator
from tiny import tiny_classifier

from minigpt.serving import create_app
from minigpt.settings.stages import ServerSettings

MODELS = {
    "chat": FakeGenerator(), "labels": FakeClassifier(), "pairs": FakeClassifier("pair"), "names": FakeClassifier("tag")
}  # fmt: skip
ODD = {"label": "单", "probabilities": {"双": 0.25, "单": 0.75}, "text_cut": False}
EVEN = {"label": "双", "probabilities": {"双": 1.0, "单": 0.0}, "text_cut": False}


@pytest.fixture(scope="module")
def client():
    return create_app(MODELS, ServerSettings(max_prompt_chars=1000)).test_client()


def test_a_text_a_pair_or_several_texts_get_labels_with_all_probabilities(client):
    assert client.post("/classify", json={"text": "河"}).json == {"model": "labels", **ODD}
    assert client.post("/classify", json={"text_a": "河", "text_b": "的"}).json == {"model": "pairs", **EVEN}
    several = client.post("/classify", json={"texts": ["河", "河的"], "model": "labels"})
    assert several.json == [{"model": "labels", **ODD}, {"model": "labels", **EVEN}]
    assert "X-Prompt-Cut" not in several.headers


def test_tags_come_with_the_entities_that_they_mark(client):
    river = {"type": "地", "start": 1, "end": 2, "text": "河"}
    expected = {"model": "names", "entities": [river], "tags": ["O", "B-地"], "text_cut": False}
    assert client.post("/tag", json={"text": "黄河"}).json == expected
    several = client.post("/tag", json={"texts": ["黄河", ""]}).json
    assert several == [expected, {**expected, "entities": [], "tags": []}]


def test_a_text_that_was_cut_is_told_in_the_answer_and_the_header(client):
    answer = client.post("/classify", json={"text": "a" * 600})
    assert answer.json["text_cut"] and answer.headers["X-Prompt-Cut"] == "true"


@pytest.mark.parametrize(
    ("path", "body", "param", "hint"),
    [
        ("/generate", {"prompt": "a", "model": "labels"}, "model", "POST /classify with text or texts"),
        ("/v1/completions", {"prompt": "a", "model": "names"}, "model", "POST /tag"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "model": "pairs"}, "model", "text_b"),
        ("/v1/embeddings", {"input": "a", "model": "labels"}, "model", "POST /classify"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "model": "labels"}, "messages", "prompt"),
        ("/classify", {"text": "a", "model": "chat"}, "model", "POST /generate"),
        ("/classify", {"text": "a", "model": "pairs"}, "model", "text_a and text_b"),
        ("/classify", {"text_a": "a", "text_b": "b", "model": "labels"}, "model", "with text or texts"),
        ("/tag", {"text": "a", "model": "labels"}, "model", "POST /classify"),
        ("/classify", {}, "text", "text_a and text_b"),
        ("/classify", {"text": "a", "texts": ["b"]}, "text", "give one of these"),
        ("/classify", {"text_a": "a"}, "text_b", "missing"),
        ("/classify", {"texts": []}, "texts", "at least 1"),
        ("/tag", {"text": "a" * 1001}, "text", "1000"),
    ],
)
def test_a_wrong_request_is_answered_with_what_is_right(client, path, body, param, hint):
    answer = client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json["error"]
    assert error["param"] == param and hint in error["message"]


def test_without_a_name_the_first_model_that_fits_the_address_is_asked():
    models = {"labels": FakeClassifier(), "chat": FakeGenerator()}
    client = create_app(models, ServerSettings()).test_client()
    assert client.post("/generate", json={"prompt": "full stop", "stream": False}).json["text"] == "full stop"
    answer = client.post("/tag", json={"text": "a"})
    assert answer.status_code == 400 and "labels: POST /classify" in answer.json["error"]["message"]
    assert [entry.get("task") for entry in client.get("/v1/models").json["data"]] == ["classify", None]
    assert client.get("/v1/models/labels").json["task"] == "classify"
    assert "/classify" in client.get("/").text and "/generate" in client.get("/").text


def test_requests_are_admitted_counted_and_limited_in_time():
    app = create_app({"labels": FakeClassifier()}, ServerSettings(request_seconds=0.1))
    client = app.test_client()
    assert client.post("/classify", json={"text": "abc"}).status_code == 200
    late = client.post("/classify", json={"texts": ["slow"] * 5})
    assert late.status_code == 503 and late.json["error"]["code"] == "too_slow"
    metrics = client.get("/metrics").text
    assert 'minigpt_requests_total{route="/classify",status="200"} 1.0' in metrics
    assert 'minigpt_prompt_tokens_total{model="labels"} 3.0' in metrics
    assert 'minigpt_cancelled_total{model="labels"} 1.0' in metrics
    assert app.service.admission.stop(0)  # both were released
    assert client.post("/classify", json={"text": "a"}).status_code == 503


def test_clients_that_ask_at_the_same_time_get_the_labels_of_their_own_texts():
    classifier = tiny_classifier()
    client = create_app({"labels": classifier}, ServerSettings()).test_client()
    texts = [["河" * (i % 5), f"{i}的"] for i in range(12)]
    expected = [[found.label for found in classifier.classify(pair)] for pair in texts]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda pair: client.post("/classify", json={"texts": pair}).json, texts))
    assert [[found["label"] for found in answer] for answer in answers] == expected
    assert len({label for pair in expected for label in pair}) > 1 and (classifier.running, classifier.waiting) == (
        0,
        0,
    )
