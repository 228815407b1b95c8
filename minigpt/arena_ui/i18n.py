"""The texts of texts.toml in the reader's language: labels, which the browser picks, and what handlers say."""

import tomllib
from pathlib import Path

TEXTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
LANGUAGES = ("zh", "en")
PREFIX = "minigpt_"  # of the keys in the browser, where Gradio has texts of its own


def text(key, language, **values):
    """The text of a key in a language of LANGUAGES, filled in."""
    return TEXTS[key][LANGUAGES.index(language)].format(**values)


def translations():
    """{locale: {key: text}} for the browser, which takes its own language's, or English."""
    tables = {language: {PREFIX + key: pair[i] for key, pair in TEXTS.items()} for i, language in enumerate(LANGUAGES)}
    return {"en": tables["en"], **{locale: tables["zh"] for locale in ("zh-CN", "zh-TW")}}


def language_of(header):
    """The language of an Accept-Language header: Chinese where its first choice is, else English."""
    first = (header or "").split(",")[0].strip().lower()
    return "zh" if first == "zh" or first.startswith("zh-") else "en"
