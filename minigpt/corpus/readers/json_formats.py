"""Which form of JSON a file has, by its first bytes.

| format | what the file is |
|---|---|
| lines | an object a line |
| bare_lines | a string a line, or a list of messages or strings |
| array | an array of objects, strings or lists; several one behind another |
| values | objects or lists one behind another, over several lines each, with or without commas |
| container | an object with lists of such rows, such as {"version": "1", "data": […]} |
| object | an object that holds all rows otherwise, as pandas writes columns; it is held in memory as a whole |
"""

import re

from minigpt.corpus.readers.field_names import ROW_LIST_NAMES, count_field_names
from minigpt.corpus.readers.json_rows import PLAIN_DECODER, field_of_value
from minigpt.corpus.readers.json_values import (
    BETWEEN_MEMBERS,
    BROKEN,
    MEMBER_NAME,
    decode_member,
    find_row_list,
    is_row,
    unfold_object,
)

DETECTED_LINES = 20  # that are looked at
INDENTED_MEMBER = re.compile(r'^\s*"(?:[^"\\\n]|\\.)*+"\s*:', re.MULTILINE)
BLANK_START = re.compile(r"[\s\ufeff]*+")


def detect_json(head, is_whole, is_named_json):
    """The key of rows.FORMATS for a file of JSON by its first bytes, or None where they are no JSON.

    is_whole: whether the bytes are the whole file. is_named_json: whether its name says JSON, so that it may be broken.
    """
    text = head.decode(errors="surrogateescape")
    start = BLANK_START.match(text).end()
    pieces = text[start:].split("\n", 2 * DETECTED_LINES)
    is_cut = not is_whole or len(pieces) > 2 * DETECTED_LINES  # then the last piece is no whole line
    lines = [line for line in (pieces[:-1] if is_cut else pieces) if line.strip()][:DETECTED_LINES]
    values = [decode_line(line) for line in lines]
    if text.startswith("{", start):
        return detect_objects(text, start, values) or ("lines" if is_named_json else None)
    if text.startswith("[", start):
        return detect_lists(text, start, values) or ("array" if is_named_json else None)
    if text.startswith('"', start):
        strings = [value for value in values if isinstance(value, str)]
        if strings and (is_named_json or len(strings) == len(values)) and not count_field_names(strings[:1]):
            return "bare_lines"
        if is_named_json and not strings and isinstance(decode_member(text, start)[0], str):
            return "values"
    return None


def decode_line(line):
    """The JSON value that is a whole line, not indented; else BROKEN."""
    try:
        return PLAIN_DECODER.decode(line) if line[0] in '{["' else BROKEN
    except (ValueError, RecursionError):
        return BROKEN


def detect_objects(text, start, values):
    """As `detect_json`, of a text that begins with an object; None where it may be broken. values: of its lines."""
    first, end = decode_member(text, start)
    if first is not BROKEN and not text[end:].strip("\ufeff \t\r\n,"):
        if unfold_object(first) != [first]:
            return "object"
        return "values" if "\n" in text[start:end] else "lines"
    n_objects = sum(isinstance(value, dict) for value in values)
    if n_objects > 1 or (values and isinstance(values[0], dict)):
        return "lines"
    if first is not BROKEN:
        return "values" if "\n" in text[start:end] or not n_objects else "lines"
    # The first object is broken, or longer than `text`: see to the members that are whole.
    members, at = leading_members(text, start)
    if not is_row(members) and find_row_list(text, start) is not None:
        return "container"
    name = MEMBER_NAME.match(text, BETWEEN_MEMBERS.match(text, at).end())
    starts = ("{",) if name and name[1] in ROW_LIST_NAMES else ("{", "[")
    may_have_columns = all(isinstance(value, (list, dict)) for value in members.values())
    if n_objects:
        return "lines"
    if may_have_columns and (members or (name and text.startswith(starts, name.end()))):
        return "object"
    return "values" if INDENTED_MEMBER.search(text, start) else None


def leading_members(text, start):
    """({name: value}, position behind them) of an object's members, up to the first that is not whole."""
    members, at = {}, start
    while name := MEMBER_NAME.match(text, BETWEEN_MEMBERS.match(text, at).end()):
        value, end = decode_member(text, name.end())
        if value is BROKEN:
            break
        members[name[1]], at = value, end
    return members, at


def detect_lists(text, start, values):
    """As `detect_json`, of a text that begins with a list; None where it may be broken. values: of its lines."""
    lists = [value for value in values if isinstance(value, list) and value]
    is_array = text[start : text.find("\n", start)].strip() == "["  # whose elements begin on the next line
    if lists and not is_array:
        if all(is_message(item) for item in lists[0]):
            return "bare_lines"
        if len(lists) > 1 and field_of_value(lists[0]) == "turns":
            return "bare_lines"
    first, _ = decode_member(text, BLANK_START.match(text, start + 1).end())
    if first is BROKEN:
        return None
    return "values" if is_message(first) else "array"


def is_message(value):
    """Whether a value is a message of a talk: who says it, and what."""
    return isinstance(value, dict) and bool({"role", "from"} & value.keys() and {"content", "value"} & value.keys())
