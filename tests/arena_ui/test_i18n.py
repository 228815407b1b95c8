"""The page's texts: both languages whole, filled in alike, and there for whatever can go wrong."""

import re

import pytest
from corpora import ROOT

from minigpt.arena.problems import Problem, in_words
from minigpt.arena_ui.i18n import TEXTS, language_of, text, translations
from minigpt.openai_client import MESSAGES, ApiFailure

FILES = [path for folder in ("arena", "arena_ui") for path in (ROOT / "minigpt" / folder).glob("*.py")]
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in FILES)


def places(text):
    """Names that a text is filled in with."""
    return set(re.findall(r"{(\w+)", text))


def test_every_text_is_there_in_both_languages_and_filled_in_alike():
    for key, pair in TEXTS.items():
        assert len(pair) == 2 and all(pair) and places(pair[0]) == places(pair[1]), key
    chinese, english = translations()["zh-CN"], translations()["en"]
    assert set(chinese) == set(english) and chinese != english


def test_every_key_that_the_code_names_has_a_text():
    named = re.findall(r"""(?:\bT|\bsay|\bProblem)\((?:request, )?"(\w+)\"""", SOURCE)
    assert len(named) > 60 and set(named) <= set(TEXTS)


@pytest.mark.parametrize("code", MESSAGES)
def test_what_a_peer_did_wrong_is_said_in_the_readers_language(code):
    values = dict.fromkeys(places(MESSAGES[code]), 7)
    for language in ("zh", "en"):
        words = in_words(ApiFailure(code, **values), lambda key, language=language, **v: text(key, language, **v))
        assert "7" in words and bool(re.search(r"[\u4e00-\u9fff]", words)) == (language == "zh")


def test_a_problem_is_said_with_its_values():
    problem = Problem("long_prompt", length=9, most=5)
    assert in_words(problem, lambda key, **values: text(key, "zh", **values)) == "提示有 9 个字符，最多 5 个"
    assert "long_prompt" in str(problem)


@pytest.mark.parametrize(
    ("header", "language"),
    [("zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("zh", "zh"), ("en-US,zh;q=0.9", "en"), ("fr", "en"), ("", "en"), (None, "en")],
)
def test_the_first_language_of_a_browser_counts(header, language):
    assert language_of(header) == language
