"""The page's texts: complete in both languages, with equal placeholders, for every error."""

import re

import pytest
from corpora import ROOT

from minigpt.arena.links import MAX_LINK_CHARS
from minigpt.arena.problems import Problem, describe_error
from minigpt.arena.votes import SAMPLING_KEYS
from minigpt.arena_ui.i18n import TEXTS, fill_text, language_of, script_texts, translations
from minigpt.openai_client import MESSAGES, ApiFailure

FILES = [path for folder in ("arena", "arena_ui") for path in (ROOT / "minigpt" / folder).glob("*.py")]
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in FILES)


def placeholders(text):
    """Names of a text's placeholders."""
    return set(re.findall(r"{(\w+)", text))


def test_every_text_has_both_languages_with_equal_placeholders():
    for key, pair in TEXTS.items():
        assert len(pair) == 2 and all(pair) and placeholders(pair[0]) == placeholders(pair[1]), key
    chinese, english = translations()["zh-CN"], translations()["en"]
    assert set(chinese) == set(english) and chinese != english


def test_every_key_in_the_code_has_a_text():
    named = re.findall(r"""(?:\bT|\btranslate|\bProblem)\((?:request, )?"(\w+)\"""", SOURCE)
    assert len(named) > 60 and set(named) <= set(TEXTS)


def test_the_pages_script_has_all_its_texts_and_agrees_with_python_about_links():
    script = (ROOT / "minigpt" / "arena_ui" / "page.js").read_text(encoding="utf-8")
    for texts in script_texts().values():
        assert set(re.findall(r"\btexts\.(\w+)", script)) == set(texts)
    assert f"MAX_LINK_CHARS = {MAX_LINK_CHARS};" in script
    assert re.search(r"FIELDS = \[(.*?)\]", script)[1] == ", ".join(f'"{key}"' for key in SAMPLING_KEYS)


@pytest.mark.parametrize("code", MESSAGES)
def test_errors_of_peers_have_texts_in_both_languages(code):
    values = dict.fromkeys(placeholders(MESSAGES[code]), 7)
    for language in ("zh", "en"):
        words = describe_error(
            ApiFailure(code, **values), lambda key, language=language, **v: fill_text(key, language, **v)
        )
        assert "7" in words and bool(re.search(r"[\u4e00-\u9fff]", words)) == (language == "zh")


def test_the_text_of_a_problem_contains_its_values():
    problem = Problem("long_prompt", length=9, most=5)
    assert describe_error(problem, lambda key, **values: fill_text(key, "zh", **values)) == "提示有 9 个字符，最多 5 个"
    assert "long_prompt" in str(problem)


@pytest.mark.parametrize(
    ("header", "language"),
    [("zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("zh", "zh"), ("en-US,zh;q=0.9", "en"), ("fr", "en"), ("", "en"), (None, "en")],
)
def test_the_first_language_of_the_header_is_used(header, language):
    assert language_of(header) == language
