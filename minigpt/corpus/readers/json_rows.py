"""JSON rows: an object per line, or an array of objects of any size.

An array is split here because a broken element must not cost those behind it: ijson, which reads arrays of any size
too, stops at the first one.
"""

import codecs
import itertools
import json
import re

from minigpt.corpus.readers import blocks

# Fields by which an object behind a broken element is recognized as a row.
ROW_FIELDS = {"text", "question", "问题", "prompt", "instruction", "conversations", "messages"}
MAX_RECOVERY_TRIES = 10_000  # objects in a chunk that are tried behind a broken element
MAX_CUT_CHARS = 10  # before the end of a chunk, where an error may only mean that a token of JSON is cut in two
BROKEN = object()  # stands for an element that is not valid JSON
LINE_SEPARATOR = b'"~|~"'

# Also ends an array and begins another one.
BETWEEN_ELEMENTS = re.compile(r"(?:\]\s*\[|[\s,\]])*+")
PLAIN_DECODER = json.JSONDecoder()


class DuplicateKey(ValueError):
    """An object has the same key twice."""


def dict_of_unique_keys(pairs):
    """The dict of an object's (key, value) pairs. Raises DuplicateKey."""
    row = dict(pairs)
    if len(row) != len(pairs):
        raise DuplicateKey
    return row


UNIQUE_KEY_DECODER = json.JSONDecoder(object_pairs_hook=dict_of_unique_keys)


def parse_json_record(record):
    """(row, None) of a record's bytes, or (None, reason)."""
    if len(record) > blocks.MAX_RECORD_BYTES:
        return None, blocks.too_long_reason()
    try:
        text = record.decode().strip()
        row, end = UNIQUE_KEY_DECODER.raw_decode(text)
        if end < len(text):
            return None, explain_bad_json(record)
    except UnicodeDecodeError:
        return None, "bad UTF-8"
    except DuplicateKey:
        return None, "duplicate key"
    except (ValueError, RecursionError):
        return None, explain_bad_json(record)
    return (row, None) if isinstance(row, dict) else (None, "not a JSON object")


def explain_bad_json(record):
    """The reason why a record could not be parsed."""
    if record.startswith(blocks.TOO_LONG_MARK):
        return blocks.too_long_reason()
    if not record.strip():
        return "empty line"
    return "NUL character" if b"\0" in record else "bad JSON"


# An object per line


def parse_json_lines(block):
    """Yields (line number, row, None) or (line number, None, reason) of each line of a `FileBlock`."""
    lines = block.data.split(b"\n")
    if not lines[-1]:
        lines.pop()  # behind the last newline
    rows = parse_lines_together(lines) if len(block.data) <= blocks.MAX_RECORD_BYTES else None
    for i, line in enumerate(lines):
        yield block.number + i, *((rows[i], None) if rows else parse_json_record(line))


def parse_lines_together(lines):
    """The rows of lines, parsed by one call, which is faster; None if a line may be bad and each must be parsed alone.

    Between two lines stands a separator that no line contains, so that two bad lines never make one good row.
    """
    data = (b",%s," % LINE_SEPARATOR).join(lines)
    try:
        if data.count(LINE_SEPARATOR) != len(lines) - 1:
            return None
        values = UNIQUE_KEY_DECODER.decode(f"[{data.decode()}]")
    except (ValueError, RecursionError):
        return None
    rows, separators = values[::2], values[1::2]
    all_rows = len(rows) == len(lines) and all(isinstance(row, dict) for row in rows)
    return rows if all_rows and all(isinstance(separator, str) for separator in separators) else None


# Arrays


def decode_element(text, start):
    """(value, end) of the JSON value at a position, or (BROKEN, position of the error)."""
    try:
        return PLAIN_DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        return BROKEN, len(text) if error.msg.startswith("Unterminated") else error.pos
    except RecursionError:
        return BROKEN, start


def split_json_array(head, stream):
    """Yields (row number, elements of a JSON array as JSON lines, None).

    Behind a broken element the next object that is a row is looked for: it has the fields of the last good row, or one
    of ROW_FIELDS. A broken element, or one of more than MAX_RECORD_BYTES, becomes a line that is not valid.
    """
    utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    text, number, fields, tries = "", 1, None, 0
    for chunk in itertools.chain(blocks.read_chunks(head.lstrip()[1:], stream), [b""]):
        text += utf8.decode(chunk, final=not chunk)
        elements, at, tries = [], 0, min(tries, 1)
        while (at := BETWEEN_ELEMENTS.match(text, at).end()) < len(text):
            value, end = decode_element(text, at)
            is_too_long = len(text) - at > blocks.MAX_RECORD_BYTES
            if chunk and len(text) - end < MAX_CUT_CHARS and not is_too_long:
                break  # the rest of the element may follow
            has_row_fields = isinstance(value, dict) and ROW_FIELDS & value.keys() and "type" not in value
            is_row = has_row_fields or (isinstance(value, dict) and value.keys() == fields)
            if value is not BROKEN and (is_row or not tries):
                elements.append(text[at:end].encode(errors="surrogateescape").replace(b"\n", b"\r"))
                fields, tries, at = set(value) if isinstance(value, dict) else fields, 0, end
                continue
            if not tries:
                elements.append(blocks.TOO_LONG_MARK if is_too_long else b"{")
            tries += 1
            following = text.find("{", at + 1) if tries <= MAX_RECOVERY_TRIES else -1
            at = following if following >= 0 else len(text)
        text = text[at:]
        if elements:
            yield number, b"\n".join(elements), None
            number += len(elements)
