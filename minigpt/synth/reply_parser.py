"""Pairs of question and answer out of what a model wrote: JSON, or what is nearly that.

A pair is taken only where the reply names both parts by their keys; nothing is guessed. JSON is read as such; what
does not parse is scanned for keys and quoted texts, in time linear in its length. (A library that mends JSON was
tried: it took minutes for 100 KB of open braces, and of objects in lines it kept the last alone.)
"""

import json
import re
from dataclasses import dataclass, field

MAX_CHARS = 1 << 18  # of a reply that are read; beyond stands no honest answer
MAX_STARTS = 200  # brackets at which JSON is looked for

NAMES = {
    "question": "question questions q query 问题 问 提问 問題 問",
    "answer": "answer answers a response 答案 答 回答 解答",
    "number": "article 文章 文章编号 文章序号",
}
KINDS = {name: kind for kind, names in NAMES.items() for name in names.split()}

DOUBLE, SINGLE = '"“”„＂', "'‘’＇"
QUOTE = f"[{DOUBLE}{SINGLE}]"
# A key with its quotes and colon, all of which may be full-width; 20 characters at most, which may be none of ours.
ANY_KEY = rf"{QUOTE}[^{DOUBLE}{SINGLE}:：\n]{{1,20}}{QUOTE}\s*+[:：]"
WORDS = "|".join(sorted(KINDS, key=len, reverse=True))
OUR_KEY = rf"(?P<key>{QUOTE}\d{{1,3}}(?={QUOTE})|(?<![^\W_])(?:{WORDS})_?\d{{0,3}}){QUOTE}?\s*+[:：]\s*+"
TOKEN = re.compile(rf"(?P<end>[}}｝])|{OUR_KEY}", re.IGNORECASE)
INNER_KEY = re.compile(rf"{QUOTE}\s*+(?:{WORDS})\s*+{QUOTE}\s*+[:：]", re.IGNORECASE)
# What follows a text's closing quote: the next key, a closing bracket, or the end.
AFTER = re.compile(rf"\s*+[,，;；、]?\s*+(?:\Z|[}}\]｝］]|```|{{|｛|{ANY_KEY}|(?:{WORDS})\s*+[:：])")


def closing(quote):
    """What may close a text that this quote opens: itself alone for JSON's own, else any double or any single one."""
    closers = quote if quote == '"' else DOUBLE if quote in DOUBLE else SINGLE
    return re.compile(rf"\\.|[{closers}]", re.DOTALL)


STOPS = {quote: closing(quote) for quote in DOUBLE + SINGLE}
ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": " ", "f": " "}
NUMBER = re.compile(r"\D{0,4}(\d{1,3})\D{0,2}")
NUMERAL = re.compile(r"-?\d{1,20}(?:\.\d{1,20})?(?=\s*+[,，}\]｝］])")  # an answer that is no text
# What some models put before each text.
PREFIX = re.compile(
    r"\s*(?:(?:问题?|提问|答案?|回答|[QA]|question|answer)\s?\d{0,3}\s?[:：]|[QA]\d{1,3}\s?[.．、)）])\s*",
    re.IGNORECASE,
)
OPENING = re.compile(r"[\[{]")
# Objects as tuples of (key, value), so that a key that comes twice is not lost.
DECODER = json.JSONDecoder(strict=False, object_pairs_hook=tuple)


@dataclass
class Reply:
    """pairs: {number of the article, None where none is told: [(question, answer)]}; cut: whether it breaks off."""

    pairs: dict = field(default_factory=dict)
    cut: bool = False

    def of(self, number):
        """Pairs of the article with this number (from 1)."""
        return self.pairs.get(number, [])

    def all(self):
        """Pairs of every number, in order."""
        return [pair for pairs in self.pairs.values() for pair in pairs]


def parse(text):
    """The `Reply` that a model's text holds."""
    text = without_thoughts(text[:MAX_CHARS])
    events, whole = json_events(text)
    found = collect(events)
    if not whole or not found.pairs:
        scanned = collect(scan_events(text))
        # Where JSON alone did not do, what is read of it may be a part, or have lost whose it is.
        if len(scanned.all()) >= len(found.all()):
            found = scanned
    return found


def without_thoughts(text):
    """The text behind a reasoning model's thoughts; "" where these do not end."""
    _, end, rest = text.rpartition("</think>")
    if end:
        return rest
    return "" if text.lstrip().startswith("<think>") else text


def kind_of(key):
    """ "question", "answer", "number" or "" of a key as written; ("number" also where it is a number itself)."""
    key = key.strip().lower()
    return "number" if key.isdecimal() else KINDS.get(key.rstrip("0123456789").rstrip("_ "), "")


def collect(events):
    """The `Reply` of (kind, text) events: a question and an answer in one object, in any order, are a pair."""
    reply, number, question, answer = Reply(), None, None, None
    for kind, value in events:
        if kind == "number":
            number = value
        elif kind == "question":
            question = tidy(without_prefix(value))
        elif kind == "answer":
            answer = tidy(without_prefix(value))
        elif kind == "end":
            question = answer = None
        elif kind == "cut":
            reply.cut = True
        if question is not None and answer is not None:
            reply.pairs.setdefault(number, []).append((question, answer))
            question = answer = None
    return reply


def tidy(text):
    """A text without white space at its ends, in its lines' places a space."""
    return " ".join(text.split())


def without_prefix(text):
    """A text without the 问： or Q1. before it."""
    found = PREFIX.match(text)
    return text[found.end() :] if found else text


# JSON


def json_events(text):
    """(events, whether all that looks like JSON is) of every JSON value in a text."""
    events, position, whole, starts = [], 0, True, 0
    while (match := OPENING.search(text, position)) and starts < MAX_STARTS:
        starts += 1
        try:
            value, position = DECODER.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            position, whole = match.end(), False
        else:
            events += walk(value)
    return events, whole and starts < MAX_STARTS


def walk(value):
    """Events of a decoded value. (Its depth is bounded by the decoder's.)"""
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
    """Events of an object's key and value, a container being left for later."""
    kind, number = kind_of(key), NUMBER.fullmatch(str(value)[:10])
    if kind == "number" and key.strip().isdecimal():
        yield kind, int(key)
        yield "value", value
    elif kind == "number" and number:
        yield kind, int(number[1])
    elif kind in ("question", "answer") and type(value) in (str, int, float):
        yield kind, str(value)
    elif isinstance(value, (list, tuple)):
        yield "value", value


# What is nearly JSON


def scan_events(text):
    """Events of keys and quoted texts as they stand, whatever is between them; ("cut", "") where one does not end."""
    position, open_question = 0, False
    while match := TOKEN.search(text, position):
        position = match.end()
        if match["end"]:
            open_question = False
            yield "end", ""
            continue
        key = match["key"].lstrip(DOUBLE + SINGLE)
        kind = kind_of(key)
        if kind == "number":
            if found := NUMBER.match(key) or NUMBER.match(text, position):
                yield kind, int(found[1])
            continue
        value, position = quoted(text, position)
        if position is None:
            yield "cut", ""
            return
        if value is not None and not INNER_KEY.search(value):
            open_question = kind == "question"
            yield kind, value
    if open_question:
        yield "cut", ""


def quoted(text, start):
    """(text, end) of the quoted text that begins at `start`: (None, start) where none does, (None, None) without end.

    Its end is the first quote of its kind behind which the structure goes on, so that quotes inside do no harm.
    """
    if found := NUMERAL.match(text, start):
        return found[0], found.end()
    stops = STOPS.get(text[start : start + 1])
    if not stops:
        return None, start
    for match in stops.finditer(text, start + 1):
        if match[0][0] != "\\" and AFTER.match(text, match.end()):
            return unescaped(text[start + 1 : match.start()]), match.end()
    return None, None


def unescaped(text):
    """A JSON string's text, its escapes resolved."""

    def plain(match):
        code = match[1]
        return chr(int(code[1:], 16)) if len(code) == 5 else ESCAPED.get(code, code)

    text = ESCAPE.sub(plain, text)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
