"""Extraction of the question-answer pairs from a model's reply, which should be JSON and often is not quite.

A pair is taken only if the reply names both parts by their keys; nothing is guessed. Valid JSON is decoded. Otherwise
the text is scanned for keys and quoted strings, in time linear in its length. (A JSON-repair library was tried: it took
minutes for 100 KB of open braces, and kept only the last of several objects on separate lines.)
"""

import json
import re
from dataclasses import dataclass, field

MAX_REPLY_CHARS = 1 << 18  # longest reply that is parsed; the rest is ignored
MAX_JSON_STARTS = 200  # brackets at which decoding is tried

KEY_NAMES = {
    "question": "question questions q query 问题 问 提问 問題 問",
    "answer": "answer answers a response 答案 答 回答 解答",
    "number": "article 文章 文章编号 文章序号",
}
KEY_KINDS = {name: kind for kind, names in KEY_NAMES.items() for name in names.split()}

DOUBLE, SINGLE = '"“”„＂', "'‘’＇"
QUOTE = f"[{DOUBLE}{SINGLE}]"
# Any key of at most 20 characters with its quotes and colon, all of which may be full-width.
ANY_KEY = rf"{QUOTE}[^{DOUBLE}{SINGLE}:：\n]{{1,20}}{QUOTE}\s*+[:：]"
KEY_WORDS = "|".join(sorted(KEY_KINDS, key=len, reverse=True))
OUR_KEY = rf"(?P<key>{QUOTE}\d{{1,3}}(?={QUOTE})|(?<![^\W_])(?:{KEY_WORDS})_?\d{{0,3}}){QUOTE}?\s*+[:：]\s*+"
KEY_OR_END = re.compile(rf"(?P<end>[}}｝])|{OUR_KEY}", re.IGNORECASE)
INNER_KEY = re.compile(rf"{QUOTE}\s*+(?:{KEY_WORDS})\s*+{QUOTE}\s*+[:：]", re.IGNORECASE)
# What follows a string's closing quote: the next key, a closing bracket, or the end.
AFTER_STRING = re.compile(rf"\s*+[,，;；、]?\s*+(?:\Z|[}}\]｝］]|```|{{|｛|{ANY_KEY}|(?:{KEY_WORDS})\s*+[:：])")


def closing_quote(quote):
    """Pattern of the end of a string that this quote opens: for JSON's quote the same, otherwise any of its kind."""
    closers = quote if quote == '"' else DOUBLE if quote in DOUBLE else SINGLE
    return re.compile(rf"\\.|[{closers}]", re.DOTALL)


STRING_ENDS = {quote: closing_quote(quote) for quote in DOUBLE + SINGLE}
ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
ESCAPE_CHARACTERS = {"n": "\n", "t": "\t", "r": "\r", "b": " ", "f": " "}
ARTICLE_NUMBER = re.compile(r"\D{0,4}(\d{1,3})\D{0,2}")
BARE_NUMBER = re.compile(r"-?\d{1,20}(?:\.\d{1,20})?(?=\s*+[,，}\]｝］])")  # an answer without quotes
# Prefixes that some models write before each text.
TEXT_PREFIX = re.compile(
    r"\s*(?:(?:问题?|提问|答案?|回答|[QA]|question|answer)\s?\d{0,3}\s?[:：]|[QA]\d{1,3}\s?[.．、)）])\s*",
    re.IGNORECASE,
)
JSON_START = re.compile(r"[\[{]")
# Objects are decoded as tuples of (key, value), so that a repeated key is not lost.
PAIRS_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=tuple)


@dataclass
class ParsedReply:
    """pairs: {number of the article, or None if the reply has none: [(question, answer)]}; cut: ends within a pair."""

    pairs: dict = field(default_factory=dict)
    cut: bool = False

    def pairs_of(self, number):
        """Pairs of the article with this number (from 1)."""
        return self.pairs.get(number, [])

    def all_pairs(self):
        """Pairs of all articles, in order."""
        return [pair for pairs in self.pairs.values() for pair in pairs]


def parse_reply(text):
    """The `ParsedReply` of a model's text."""
    text = strip_thoughts(text[:MAX_REPLY_CHARS])
    events, is_valid = json_events(text)
    reply = collect_pairs(events)
    if not is_valid or not reply.pairs:
        scanned = collect_pairs(scan_events(text))
        # The parts of invalid JSON that do decode may be incomplete, or lack the number of their article.
        if len(scanned.all_pairs()) >= len(reply.all_pairs()):
            reply = scanned
    return reply


def strip_thoughts(text):
    """The text after a reasoning model's thoughts; "" if these do not end."""
    _, end, rest = text.rpartition("</think>")
    if end:
        return rest
    return "" if text.lstrip().startswith("<think>") else text


def key_kind(key):
    """The kind of a key: "question", "answer", "number" (of an article; also a key that is a number), or ""."""
    key = key.strip().lower()
    return "number" if key.isdecimal() else KEY_KINDS.get(key.rstrip("0123456789").rstrip("_ "), "")


def collect_pairs(events):
    """The `ParsedReply` of (kind, value) events: a question and an answer of one object, in any order, are a pair."""
    reply = ParsedReply()
    number, parts = None, {}
    for kind, value in events:
        if kind == "number":
            number = value
        elif kind == "end":
            parts = {}
        elif kind == "cut":
            reply.cut = True
        else:  # a question or an answer
            parts[kind] = collapse_spaces(strip_prefix(value))
        if len(parts) == 2:
            reply.pairs.setdefault(number, []).append((parts["question"], parts["answer"]))
            parts = {}
    return reply


def collapse_spaces(text):
    """The text with each run of white space as one space, and none at its ends."""
    return " ".join(text.split())


def strip_prefix(text):
    """The text without a prefix such as 问： or Q1."""
    found = TEXT_PREFIX.match(text)
    return text[found.end() :] if found else text


# JSON


def json_events(text):
    """(events of every JSON value in a text, whether everything that looks like JSON is valid)."""
    events, is_valid = [], True
    position = starts = 0
    while (match := JSON_START.search(text, position)) and starts < MAX_JSON_STARTS:
        starts += 1
        try:
            value, position = PAIRS_DECODER.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            position = match.end()
            is_valid = False
        else:
            events += value_events(value)
    return events, is_valid and starts < MAX_JSON_STARTS


def value_events(value):
    """Events of a decoded JSON value, depth first, without recursion."""
    pending = [("value", value)]
    while pending:
        kind, value = pending.pop()
        if kind != "value":
            yield kind, value
        elif isinstance(value, list):
            pending += [("value", part) for part in reversed(value)]
        elif isinstance(value, tuple):
            pending.append(("end", ""))
            for key, part in reversed(value):
                pending += reversed(list(entry_events(key, part)))


def entry_events(key, value):
    """Events of an object's key and value; for a container, a "value" event with the container."""
    kind, number = key_kind(key), ARTICLE_NUMBER.fullmatch(str(value)[:10])
    if kind == "number" and key.strip().isdecimal():
        yield kind, int(key)
        yield "value", value
    elif kind == "number" and number:
        yield kind, int(number[1])
    elif kind in ("question", "answer") and type(value) in (str, int, float):
        yield kind, str(value)
    elif isinstance(value, (list, tuple)):
        yield "value", value


# Nearly JSON


def scan_events(text):
    """Events of the keys and quoted strings of a text, whatever is between them; ("cut", "") if one does not end."""
    position, open_question = 0, False
    while match := KEY_OR_END.search(text, position):
        position = match.end()
        if match["end"]:
            open_question = False
            yield "end", ""
            continue
        key = match["key"].lstrip(DOUBLE + SINGLE)
        kind = key_kind(key)
        if kind == "number":
            if found := ARTICLE_NUMBER.match(key) or ARTICLE_NUMBER.match(text, position):
                yield kind, int(found[1])
            continue
        value, position = read_quoted(text, position)
        if position is None:
            yield "cut", ""
            return
        if value is not None and not INNER_KEY.search(value):
            open_question = kind == "question"
            yield kind, value
    if open_question:
        yield "cut", ""


def read_quoted(text, start):
    """(string, end) of the quoted string at `start`; (None, start) if there is none, (None, None) if it does not end.

    It ends at the first matching quote that is followed by a key, a bracket or the end, so it may contain quotes.
    """
    if found := BARE_NUMBER.match(text, start):
        return found[0], found.end()
    stops = STRING_ENDS.get(text[start : start + 1])
    if not stops:
        return None, start
    for match in stops.finditer(text, start + 1):
        if match[0][0] != "\\" and AFTER_STRING.match(text, match.end()):
            return unescape(text[start + 1 : match.start()]), match.end()
    return None, None


def unescape(text):
    """The text of a JSON string with its escapes resolved."""

    def character(match):
        code = match[1]
        return chr(int(code[1:], 16)) if len(code) == 5 else ESCAPE_CHARACTERS.get(code, code)

    text = ESCAPE.sub(character, text)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
