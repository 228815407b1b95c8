"""Generation with a server that fails for some articles, and the choice of the model."""

import json
from types import SimpleNamespace

import pytest
from corpora import made_up_articles, write_jsonl
from download_fakes import files
from factory_fakes import LONG, large_model

from minigpt.common.errors import UserError
from minigpt.openai_client import ApiFailure
from minigpt.settings.stages import GenerateSettings
from minigpt.synth import generator, rate_limit
from minigpt.synth.articles import ArticleSource, article_key, short_hash
from minigpt.synth.client import LargeModelClient, choose_model, extra_fields
from minigpt.synth.diagnosis import PromptSizes, refusal_trouble
from minigpt.synth.generator import PairGenerator
from minigpt.synth.rate_limit import RateLimit
from minigpt.synth.store import Appender


@pytest.fixture
def hurried(monkeypatch):
    """Makes the backoff a hundredth as long."""
    for module in (rate_limit, generator):
        monkeypatch.setattr(module, "backoff_seconds", lambda failures: 0.002 * 2 ** min(failures, 5))


def worked(folder, about, count=24, **fields):
    """The `PairGenerator` after a run over `count` articles, with {titles of the rejects: reasons}."""
    settings = GenerateSettings()
    write_jsonl(folder / "wiki/a.jsonl", made_up_articles(count, tellings=1))
    given = {"input_dir": [str(folder / "wiki")], "api_base": about.base, "api_model": about.models[0], **fields}
    for name, value in given.items():
        setattr(settings, name, value)
    saves, rejects = Appender(folder / "saves.jsonl"), Appender(folder / "rejects.jsonl")
    pace = RateLimit(0, settings.wait_minutes)
    ours = PairGenerator(settings, LargeModelClient(settings, ""), settings.api_model, pace, saves, rejects, set())
    try:
        ours.run(ArticleSource(settings), lambda: False, lambda: None)
    finally:
        saves.close()
        rejects.close()
    rows = (folder / "rejects.jsonl").read_text("utf-8").splitlines() if (folder / "rejects.jsonl").exists() else []
    return ours, {row["title"]: row["reasons"] for row in map(json.loads, rows)}


@pytest.mark.parametrize(("concurrency", "first", "bad"), [(1, 0, 3), (1, 5, 3), (4, 0, 16), (4, 2, 20)])
def test_articles_that_crash_the_server_are_rejected_and_delay_no_other(tmp_path, hurried, concurrency, first, bad):
    poisoned = {f"第{n}镇" for n in range(first, first + bad)}
    with large_model(models=("poison",)) as about:
        about.poisoned = poisoned
        ours, rejects = worked(tmp_path, about, concurrency=concurrency, wait_minutes=0.5)
    assert set(rejects) == poisoned and ours.counts.articles["accepted"] == 24 - bad


def test_an_article_for_which_the_server_is_always_busy_is_rejected(tmp_path, hurried):
    with large_model(models=("crowded",)) as about:
        ours, rejects = worked(tmp_path, about, count=8, concurrency=2, wait_minutes=0.5)
    assert set(rejects) == {LONG} and "too many tokens a minute) (20 times" in rejects[LONG][0][0]
    assert ours.counts.articles["accepted"] == 7


def test_an_article_that_the_server_refuses_is_left_for_the_next_run(tmp_path):
    with large_model(models=("moderated",)) as about:
        ours, rejects = worked(tmp_path, about, count=8, concurrency=2)
    assert rejects == {} and ours.counts.articles == {"accepted": 7, "unanswered": 1}
    (line,) = ours.troubles.lines()
    assert "1 × an article was refused with status 403: not to our taste" in line and "filter" in line


@pytest.mark.parametrize(
    ("words", "settings", "advice"),
    [
        ("invalid temperature: only 0.6 is allowed for this model", {}, "--temperature=0.6 (now 0.45)"),
        ("This model's maximum context length is 4096 tokens. However, you requested 4596 tokens (548 in the messages, "
         "4048 in the completion).", {"max_new_tokens": 4048}, "--max_new_tokens=1472 (now 4048)"),
        ("request (548 tokens) exceeds the available context size (1024 tokens), try increasing it", {},
         "--max_new_tokens=256 --article_chars="),
        ("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 512. Given: 548 `inputs` tokens", {},
         "a longer context than 512 tokens"),
        ("Range of max_tokens should be [1, 1024]", {}, "--max_new_tokens=1024 (now 2048)"),
        ("The model `x` does not exist.", {}, "--api_model"),
        ('"qwen" does not support top_p here', {"api_extra": '{"top_p": 1}'}, "--api_extra (now"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_setting_and_the_number_that_mend_it(words, settings, advice):
    given = GenerateSettings(**settings)
    failure = ApiFailure("refused", address="x", status=400, detail=words, param="")
    extra = {"top_p": 1} if given.api_extra else {}
    assert advice in refusal_trouble(failure, given, 548, extra).advice


@pytest.mark.parametrize(
    ("sizes", "limit"),
    [
        ([(2048, 900), (2048, 950), (2048, 1000)], 2048),
        ([(500, 300), (4095, 2000), (4095, 2000), (4095, 2100)], 4095),
        ([(1500, 900), (1500, 1000), (1500, 1500)], 1500),
        ([(1500, 900), (1500, 905), (1500, 910)], 0),
        ([(2048, 900), (2048, 950), (2048, 1000), (2300, 1200)], 0),
        ([(7, 900), (7, 1200), (7, 2000)], 0),
        ([(0, 900), (0, 1200), (0, 2000)], 0),
    ],
)
def test_prompts_of_different_lengths_with_equal_tokens_are_cut(sizes, limit):
    found = PromptSizes()
    for tokens, chars in sizes:
        found.add(tokens, chars)
    assert found.limit() == limit


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("", {}),
        ('{"reasoning_effort": "none"}', {"reasoning_effort": "none"}),
        ("{'chat_template_kwargs': {'enable_thinking': false, 'x': null}}",
         {"chat_template_kwargs": {"enable_thinking": False, "x": None}}),
    ],
)  # fmt: skip
def test_extra_fields_are_json_also_with_single_quotes(text, fields):
    assert extra_fields(text) == fields


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{reasoning_effort: none}", "PowerShell"),
        ("[1]", "no JSON object"),
        ("{'a': open('b')}", "no JSON object"),
        ("{" * 9999, "no JSON object"),
        ('{"stream": false}', "may not have stream"),
        ('{"messages": []}', "may not have messages"),
    ],
)
def test_other_extra_fields_are_reported(text, words):
    with pytest.raises(UserError, match=words):
        extra_fields(text)


def test_an_internal_error_ends_the_run_with_one_line_that_names_it(tmp_path, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("by naught")

    monkeypatch.setattr(generator, "check_reply", broken)
    with large_model() as about, pytest.raises(UserError, match="ZeroDivisionError: by naught"):
        worked(tmp_path, about)


def test_good_pairs_of_several_replies_are_merged(tmp_path, monkeypatch):
    with large_model(models=("halves",)) as about:
        ours, _ = worked(tmp_path, about, count=4, tries=2)
    assert ours.counts.articles["in_part"] == 4 and ours.counts.pairs == 12


def test_ids_that_are_neither_int_nor_str_become_str(tmp_path):
    rows = [{"id": id, "title": "甲", "text": "甲在乙。"} for id in ([1, 2], {"a": 1}, 1.5, True, "x", 7)]
    write_jsonl(tmp_path / "wiki/a.jsonl", rows)
    settings = GenerateSettings()
    settings.input_dir = [str(tmp_path / "wiki")]
    found = [article.id for article in ArticleSource(settings) if article]
    assert found and all(type(id) in (int, str) for id in found) and {"x", 7} <= set(found)


def test_finished_articles_are_skipped_without_cleaning_and_none_is_yielded_between(tmp_path):
    write_jsonl(tmp_path / "wiki/a.jsonl", made_up_articles(400, 1))
    settings = GenerateSettings()
    settings.input_dir = [str(tmp_path / "wiki")]
    source = ArticleSource(settings, {short_hash(article_key("wiki/a.jsonl", n)) for n in range(400)})
    source.cleaner = None  # nothing is cleaned
    assert set(source) == {None} and source.done_before == 400


@pytest.mark.parametrize(
    ("base", "api_model"),
    [("http://no-such-host.invalid/v1", "good"), ("http://no-such-host.invalid/v1", ""), ("{page}/v1", "")],
)
def test_a_wrong_address_ends_the_run_without_waiting(tmp_path, monkeypatch, base, api_model):
    monkeypatch.setenv("NO_PROXY", "*")
    page = b"<!doctype html><title>Not here</title>"
    with files(**{"v1/models": page}) as site:
        about = SimpleNamespace(base=base.format(page=site.address), models=[api_model])
        settings = GenerateSettings()
        settings.api_base = about.base
        with pytest.raises(UserError, match="--api_base"):
            if api_model:
                worked(tmp_path, about)
            else:
                choose_model(LargeModelClient(settings, ""), settings, RateLimit(0, 30), lambda: True, None)


def test_models_that_write_no_text_are_not_chosen():
    settings = GenerateSettings()
    with large_model(models=("text-embedding-3", "bge-m3", "good")) as about:
        settings.api_base = about.base
        client = LargeModelClient(settings, "")
        assert choose_model(client, settings, RateLimit(0, 1), lambda: True, None) == ("good", 3)


def test_an_account_without_quota_ends_the_run_at_once(tmp_path):
    with large_model(models=("poor",)) as about, pytest.raises(UserError, match=r"no money.*OPENAI_API_KEY"):
        worked(tmp_path, about)
