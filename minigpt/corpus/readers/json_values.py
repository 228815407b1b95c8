"""JSON over several lines, split into lines: arrays, values one behind another, objects that hold all rows of a file.

Arrays are split here because a broken element must not cost those behind it: ijson, which reads arrays of any size too,
stops at the first one.
"""

import codecs
import itertools
import json
import re

from minigpt.corpus.readers import blocks
from minigpt.corpus.readers.field_names import ROW_LIST_NAMES, TEXT_NAMES, count_field_names
from minigpt.corpus.readers.json_rows import PLAIN_DECODER, field_of_value, row_of_value

# Fields by which an object behind a broken element is recognized as a row.
ROW_FIELDS = {"text", "question", "问题", "prompt", "instruction", "conversations", "messages"}
MAX_RECOVERY_TRIES = 10_000  # objects in a chunk that are tried behind a broken element
MAX_CUT_CHARS = 10  # before the end of a chunk, where an error may only mean that a token of JSON is cut in two
MAX_WHOLE_BYTES = 256 << 20  # of a file that is one object
BROKEN = object()  # stands for an element that is not valid JSON

# Between two elements. In an array the first also ends it and begins another one.
BETWEEN_ELEMENTS = re.compile(r"(?:\][\s\ufeff]*\[|[\s,\]\ufeff])*+")
BETWEEN_VALUES = re.compile(r"[\s,\ufeff]*+")
BETWEEN_MEMBERS = re.compile(r"[\s,{}\]\ufeff]*+")
MEMBER_NAME = re.compile(r'"((?:[^"\\]|\\.)*+)"\s*:\s*')
ROWS_START = re.compile(r"\[\s*(?=\{)")
# Where the next element may begin behind a broken one, by the kind of the elements.
NEXT_ELEMENT = {dict: re.compile(r"(?=\{)"), str: re.compile(r'[,\n]\s*(?=")'), list: re.compile(r"[,\n\]]\s*(?=\[)")}
ELEMENT_END = re.compile(r'[\s\ufeff]*(?:[,\]"]|$)')


class ObjectTooLong(ValueError):
    """An object that must be held in memory as a whole is longer than MAX_WHOLE_BYTES."""


def decode_element(text, start):
    """(value, end) of the JSON value at a position, or (BROKEN, position of the error)."""
    try:
        value, end = PLAIN_DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        return BROKEN, len(text) if error.msg.startswith("Unterminated") else error.pos
    except (RecursionError, ValueError):
        return BROKEN, start
    # A string that is not followed by another element has lost a quote.
    return (BROKEN, end) if isinstance(value, str) and not ELEMENT_END.match(text, end) else (value, end)


def element_line(text, value, kind):
    """The bytes of an element as a line that is an object, if it is one or of the file's kind of element."""
    line = text.encode(errors="surrogateescape").replace(b"\n", b"\r")
    name = None if isinstance(value, dict) or not isinstance(value, kind) else field_of_value(value)
    mark = b", %s: true" % json.dumps(blocks.PLAIN_MARK).encode() if isinstance(value, str) else b""
    return b'{"%s": %s%s}' % (name.encode(), line, mark) if name else line


def split_json_array(head, stream):
    """As `split_json_values`, of the elements of arrays."""
    return split_json_values(head.lstrip()[1:], stream, BETWEEN_ELEMENTS)


def split_json_container(head, stream):
    """As `split_json_values`, of the elements of the lists in an object."""
    return split_json_values(head, stream, BETWEEN_VALUES, has_members=True)


def split_json_values(head, stream, between=BETWEEN_VALUES, has_members=False):
    """Yields (row number, JSON values as lines, None) of values that stand one behind another.

    Behind a broken element the next one that is a row is looked for: an object that has the fields of the last good row
    or one of ROW_FIELDS, or where the first element is a string or a list the next such. A broken element, or one of
    more than MAX_RECORD_BYTES, becomes a line that is not valid. between: matches what stands between two elements.
    has_members: the elements are those of the lists in an object.
    """
    utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    text, number, fields, kind, tries, in_list = "", 1, None, None, 0, not has_members
    for chunk in itertools.chain(blocks.read_chunks(head, stream), [b""]):
        text += utf8.decode(chunk, final=not chunk)
        elements, at, tries = [], 0, min(tries, 1)
        while at < len(text):
            at = between.match(text, at).end() if in_list else at
            if has_members and (not in_list or text.startswith("]", at)):
                start = find_row_list(text, at)
                in_list = start is not None
                if not in_list and len(text) - at > blocks.MAX_RECORD_BYTES:
                    start = len(text)  # skip a member that is too long
                if start is None:
                    break  # a list may follow, or the object ends here
                at = start
                continue
            if at == len(text):
                break
            value, end = decode_element(text, at)
            is_too_long = len(text) - at > blocks.MAX_RECORD_BYTES
            if chunk and len(text) - end < MAX_CUT_CHARS and not is_too_long:
                break  # the rest of the element may follow
            has_row_fields = isinstance(value, dict) and ROW_FIELDS & value.keys() and "type" not in value
            is_good = has_row_fields or (isinstance(value, dict) and value.keys() == fields)
            is_good = is_good or (kind in (str, list) and isinstance(value, kind))
            if value is not BROKEN and (is_good or not tries):
                kind = kind or type(value)
                elements.append(element_line(text[at:end], value, kind))
                fields, tries, at = set(value) if isinstance(value, dict) else fields, 0, end
                continue
            if not tries:
                elements.append(blocks.TOO_LONG_MARK if is_too_long else b"{")
            tries += 1
            following = NEXT_ELEMENT.get(kind, NEXT_ELEMENT[dict]).search(text, at + 1)
            at = following.end() if following and tries <= MAX_RECOVERY_TRIES else len(text)
        text = text[at:]
        if elements:
            yield number, b"\n".join(elements), None
            number += len(elements)


def find_row_list(text, at):
    """The position of the first element of the next list of rows among an object's members, or None.

    at: where the object begins, or another of its lists ends. Members that are no list of rows are skipped.
    """
    while name := MEMBER_NAME.match(text, BETWEEN_MEMBERS.match(text, at).end()):
        if (rows := ROWS_START.match(text, name.end())) and name[1] not in ROW_LIST_NAMES:
            return rows.end()
        value, at = decode_member(text, name.end())
        if value is BROKEN:
            return None
    return None


def decode_member(text, start):
    """(value, end) of the value of an object's member, or (BROKEN, start)."""
    try:
        return PLAIN_DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return BROKEN, start


# An object that holds all rows


def split_json_object(head, stream):
    """As `split_json_values`, of the rows in one object (`unfold_object`). Raises ObjectTooLong."""
    data = bytearray()
    for chunk in blocks.read_chunks(head, stream):
        data += chunk
        if len(data) > MAX_WHOLE_BYTES:
            raise ObjectTooLong(
                f"its rows are columns of one JSON object of more than {MAX_WHOLE_BYTES >> 20} MiB; write one row a "
                "line, in pandas by to_json(path, orient='records', lines=True, force_ascii=False)"
            )
    try:
        rows = unfold_object(json.loads(data))
    except (ValueError, RecursionError, AttributeError):  # AttributeError: it is no object
        yield from split_json_values(bytes(data), stream)
        return
    number, lines, n_bytes = 1, [], 0
    for row in rows:
        lines.append(json.dumps(row).encode())
        n_bytes += len(lines[-1])
        if n_bytes > blocks.BLOCK_BYTES:
            yield number, b"\n".join(lines), None
            number, lines, n_bytes = number + len(lines), [], 0
    if lines:
        yield number, b"\n".join(lines), None


def unfold_object(value):
    """The rows that an object holds: those of its lists of objects, or of its columns; itself where it is a row."""
    if is_row(value):
        return [value]
    lists = {name: items for name, items in value.items() if isinstance(items, list)}
    dicts = {name: items for name, items in value.items() if isinstance(items, dict) and items}
    # pandas' form "split": {"columns": […], "index": […], "data": [[…], …]}
    if {"columns", "data"} <= lists.keys() and all(isinstance(cells, list) for cells in lists["data"]):
        return [dict(zip(lists["columns"], cells, strict=False)) for cells in lists["data"]]
    rows = [row for items in lists.values() for row in items if isinstance(row, dict)]
    if rows:
        return rows
    # Columns as lists: {"text": […], "title": […]}
    if lists and len(lists) == len(value) and len({len(items) for items in lists.values()}) == 1:
        if len(lists) == 1 and not count_field_names(lists):  # the only list has no column's name
            return [row_of_value(item) for items in lists.values() for item in items]
        return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]
    has_only_dicts = len(dicts) == len(value)
    if not dicts or not (has_only_dicts or any(unfold_object(items) != [items] for items in dicts.values())):
        return [value]
    # Columns as objects: {"text": {"0": …, "1": …}}; or rows as members: {"0": {"text": …}, "1": {…}}
    first = next(iter(dicts.values()))
    if has_only_dicts and count_field_names(dicts) and not count_field_names(first):
        return [{name: items.get(index) for name, items in dicts.items()} for index in first]
    return [row for items in dicts.values() for row in unfold_object(items)]


def is_row(value):
    """Whether an object is a row: it has a text of a known name that tells more than about a file, or a talk."""
    texts = [name for name, field in value.items() if isinstance(field, str)]
    return bool(count_field_names(texts, TEXT_NAMES)) or any(map(is_talk, (value.get(name) for name in ROW_LIST_NAMES)))


def is_talk(items):
    """Whether a field holds what is one row's own: a list of objects or strings, or objects of names such as turn_1."""
    if isinstance(items, dict):
        return bool(items) and all(isinstance(item, dict) and not name.isdigit() for name, item in items.items())
    return isinstance(items, list) and bool(items) and isinstance(items[0], (dict, str))
