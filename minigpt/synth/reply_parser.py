"""Extraction of the question-answer pairs from a model's reply, which should be JSON and often is not quite.

A pair is taken only if the reply names or pairs both parts: by their keys, by the roles of a chat's messages, as a list
of two texts, as entries of an object whose keys are all questions, or by labels at the starts of lines. Nothing is
guessed. Valid JSON is decoded. Otherwise the text is scanned for keys and quoted strings, and then for labelled lines,
each in time linear in its length. (A JSON-repair library was tried: it took minutes for 100 KB of open braces, and kept
only the last of several objects on separate lines.)
"""

import json
import re
from dataclasses import dataclass, field

MAX_REPLY_CHARS = 1 << 18  # longest reply that is parsed; the rest is ignored
MAX_JSON_STARTS = 200  # brackets at which decoding is tried

KEY_NAMES = {
    "question": "question questions q query instruction prompt user human 问题 问 提问 問題 問 指令 提示 用户",
    "answer": "answer answers a response output completion assistant gpt bot 答案 答 回答 解答 输出 回复 助手",
    "input": "input 输入",  # the question, or what belongs to an instruction
    "role": "role from 角色",
    "content": "content value 内容",
    "number": "article 文章 文章编号 文章序号",
}
KEY_KINDS = {name: kind for kind, names in KEY_NAMES.items() for name in names.split()}
TEXT_TYPES = (str, int, float)
PART_KINDS = ("question", "answer", "input", "role", "content")


def labels_of(*kinds):
    """Pattern of the keys of some kinds; lines of plain text begin with the same words."""
    return "|".join(sorted((key for key, kind in KEY_KINDS.items() if kind in kinds), key=len, reverse=True))


DOUBLE, SINGLE = '"“”„＂', "'‘’＇"
QUOTE = f"[{DOUBLE}{SINGLE}]"
# Any key of at most 20 characters with its quotes and colon, all of which may be full-width.
ANY_KEY = rf"{QUOTE}[^{DOUBLE}{SINGLE}:：\n]{{1,20}}{QUOTE}\s*+[:：]"
KEY_WORDS = labels_of(*KEY_NAMES)
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


def parse_reply(text, is_cut=False):
    """The `ParsedReply` of a model's text. is_cut: whether a limit ended it, so that its last words may be missing."""
    text = strip_thoughts(text[:MAX_REPLY_CHARS])
    events, is_valid = json_events(text)
    reply = collect_pairs(events)
    if not is_valid or not reply.pairs:
        scanned = collect_pairs(scan_events(text))
        # The parts of invalid JSON that do decode may be incomplete, or lack the number of their article.
        if len(scanned.all_pairs()) >= len(reply.all_pairs()):
            reply = scanned
    labelled = ParsedReply() if reply.pairs else collect_pairs(label_events(text, is_cut))
    return labelled if labelled.pairs else reply


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
    """The `ParsedReply` of (kind, value) events.

    A question and an answer of one object, in any order, are a pair, and so are a user's message and the assistant's
    message after it.
    """
    reply = ParsedReply()
    number, parts, asked = None, {}, ""  # asked: the user's message that has no answer yet
    for kind, value in events:
        if kind == "number":
            number = value
        elif kind == "cut":
            reply.cut = True
        elif kind == "end":
            asked = asked if "role" in parts else ""
            parts = {}
        elif value or kind != "input":  # an instruction without input may have an empty one
            parts[kind] = collapse_spaces(strip_prefix(value))
        pair = None
        if "answer" in parts and ("question" in parts or "input" in parts):
            words = (parts[name] for name in ("question", "input") if name in parts)
            pair = " ".join(words), parts["answer"]
            parts = {}
        elif "role" in parts and "content" in parts:
            role, content = key_kind(parts["role"]), parts.pop("content")
            if role == "answer" and asked:
                pair = asked, content
            asked = content if role == "question" else ""
        if pair:
            reply.pairs.setdefault(number, []).append(pair)
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
        elif is_pair_list(value) or is_question_object(value):
            for question, answer in reversed(value):
                if key_kind(question) != "question":  # no header
                    pending += [("end", ""), ("answer", str(answer)), ("question", question)]
        elif isinstance(value, list):
            pending += [("value", part) for part in reversed(value)]
        elif isinstance(value, tuple):
            pending.append(("end", ""))
            for key, part in reversed(value):
                pending += reversed(list(entry_events(key, part)))


def is_pair_list(value):
    """Whether a decoded value is a list of lists of two texts each."""
    return isinstance(value, list) and all(
        isinstance(row, list) and list(map(type, row)) == [str, str] for row in value
    )


def is_question_object(value):
    """Whether a decoded value is an object of several questions with their answers: {"甲在哪？": "在乙。", …}."""
    return (
        isinstance(value, tuple)
        and len(value) > 1
        and all(key.rstrip().endswith(("?", "？")) and type(answer) in TEXT_TYPES for key, answer in value)
    )


def entry_events(key, value):
    """Events of an object's key and value; for a container, a "value" event with the container."""
    kind, number = key_kind(key), ARTICLE_NUMBER.fullmatch(str(value)[:10])
    if kind == "number" and key.strip().isdecimal():
        yield kind, int(key)
        yield "value", value
    elif kind == "number" and number:
        yield kind, int(number[1])
    elif kind in PART_KINDS and type(value) in TEXT_TYPES:
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
            open_question = kind in ("question", "input")
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


# Plain text

QUESTION_LABELS = labels_of("question", "input")
ANSWER_LABELS = labels_of("answer")
# What stands around a label: list marks, bold type, brackets.
OPENING = r"[-*_•#>【\[（(\s]*+"
LIST_NUMBER = r"(?:(?P<listed>\d{1,3})\s?[.．、:：)）])?"
LINE_LABEL = re.compile(
    rf"{OPENING}{LIST_NUMBER}{OPENING}(?:(?P<question>{QUESTION_LABELS})|(?:{ANSWER_LABELS}))\s?"
    r"(?P<number>\d{1,3}|[一二三四五六七八九十]{1,3})?\s?(?P<closing>[*_】\]）)]*+)\s?(?P<colon>[:：]?)(?P<dot>[.．、]?)(?P<text>.*)",
    re.IGNORECASE,
)
LISTED_LINE = re.compile(rf"{OPENING}{LIST_NUMBER}(?P<text>.*)")
INLINE_ANSWER = re.compile(
    rf"(?<=[\s*_?？。！!])(?:{ANSWER_LABELS})\s?\d{{0,3}}\s?[*_】\]）)]*+\s?[:：]", re.IGNORECASE
)
ARTICLE_LINE = re.compile(rf"{OPENING}(?:文章|article)\s?(\d{{1,3}})(?!\d)", re.IGNORECASE)
SENTENCE_ENDS = ("。", "！", "？", ".", "!", "?", "”", "」", "』", "）", ")")
BOLD_AND_SPACE = "*_ \t　"


@dataclass
class LabelledText:
    """A part of a plain text. kind: "question", "answer", or "article", whose number is that of an article.

    number: the label's, as written, or None; is_numbered: whether the label or its place in a list has a number.
    """

    kind: str
    number: str | None
    is_numbered: bool
    lines: list


def label_events(text, is_cut):
    """Events of the pairs of a text whose lines begin with labels: "问题1：…", "**A1:** …", "1. 问：… 答：…".

    A single pair counts only if it is numbered: prose may contain a line that begins with 问 or 答.
    """
    parts = labelled_texts(text)
    if is_cut and parts:
        parts.pop()  # its end may be missing
    events, pairs, is_numbered = [], 0, False
    waiting, latest = {}, None  # questions without an answer, by number; the question directly before
    for part in parts:
        if part.kind == "article":
            waiting = {}
            latest = None
            events.append(("number", int(part.number)))
        elif part.kind == "question":
            waiting[part.number] = latest = part
        else:
            asked = waiting.pop(part.number, None) if part.number else latest
            latest = None
            if asked and any(asked.lines) and any(part.lines):
                pairs += 1
                is_numbered = is_numbered or asked.is_numbered
                events += [("question", " ".join(asked.lines)), ("answer", " ".join(part.lines)), ("end", "")]
    return events if pairs > 1 or is_numbered else []


def labelled_texts(text):
    """[LabelledText]. One that does not end like a sentence goes on in the next line, up to an empty line."""
    parts, is_open = [], False
    for line in text.splitlines():
        added = parts_of_line(line)
        line = line.strip(BOLD_AND_SPACE)
        if added:
            parts += added
            is_open = added[-1].kind != "article"
        elif line and is_open:
            parts[-1].lines.append(line)
        if is_open and any(parts[-1].lines):
            is_open = bool(line) and not parts[-1].lines[-1].endswith(SENTENCE_ENDS)
    return parts


def parts_of_line(line):
    """[LabelledText] that begin in a line: none, one, or a question and its answer."""
    if article := ARTICLE_LINE.match(line):
        return [LabelledText("article", article[1], True, [])]
    kind, number = "", None
    if (found := LINE_LABEL.match(line)) and is_label(found):
        kind, number = "question" if found["question"] else "answer", found["number"]
    elif (found := LISTED_LINE.match(line)) and found["listed"]:
        is_question = found["text"].rstrip(BOLD_AND_SPACE).endswith(("?", "？")) or INLINE_ANSWER.search(found["text"])
        kind = "question" if is_question else ""
    if not kind:
        return []
    words, is_numbered = found["text"], bool(number or found["listed"])
    parts = [LabelledText(kind, number, is_numbered, [words])]
    if kind == "question" and is_numbered and (inline := INLINE_ANSWER.search(words)):
        parts[0].lines = [words[: inline.start()]]
        parts.append(LabelledText("answer", number, is_numbered, [words[inline.end() :]]))
    for part in parts:
        part.lines = [part.lines[0].strip(BOLD_AND_SPACE)]
    return parts


def is_label(found):
    """Whether a match of LINE_LABEL is a label and not the beginning of a sentence: A4纸, 问题不大."""
    if found["colon"]:
        return True
    is_bracketed = found["closing"] and (found["closing"][-1] in "】]" or not found["text"])
    return is_bracketed or bool(found["number"] and (found["dot"] or found["closing"] or not found["text"]))
