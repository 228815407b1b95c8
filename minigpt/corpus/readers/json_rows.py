"""JSON, a value per line: an object, or a string, or a list of messages or strings.

Files of any other form of JSON are split into such lines (`json_values`).
"""

import codecs
import json
import re

from minigpt.corpus.readers import blocks

NO_OBJECT = "not a JSON object"
LINE_SEPARATOR = b'"~|~"'
BETWEEN_FILES = re.compile(rb"(?<=[}\]])\s*\xef\xbb\xbf\s*(?=[{\[])")
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


def parse_json_value(record):
    """(value, None) of a record's bytes, or (None, reason)."""
    if len(record) > blocks.MAX_RECORD_BYTES:
        return None, blocks.too_long_reason()
    try:
        text = record.decode().strip()
        value, end = UNIQUE_KEY_DECODER.raw_decode(text)
        if end < len(text):
            return None, explain_bad_json(record)
    except UnicodeDecodeError:
        return None, "bad UTF-8"
    except DuplicateKey:
        return None, "duplicate key"
    except (ValueError, RecursionError):
        return None, explain_bad_json(record)
    return value, None


def parse_json_record(record):
    """(row, None) of the bytes of an object, or (None, reason)."""
    value, reason = parse_json_value(record)
    return (value, None) if isinstance(value, dict) else (None, reason or NO_OBJECT)


def parse_bare_record(record):
    """(row, None) of the bytes of an object, a string or a list of messages or strings, or (None, reason)."""
    value, reason = parse_json_value(record)
    name = field_of_value(value)
    if reason or isinstance(value, dict):
        return value, reason
    return (row_of_value(value), None) if name else (None, NO_OBJECT)


def row_of_value(value):
    """The row of a value that is no object, but has a field by `field_of_value`."""
    mark = {blocks.PLAIN_MARK: True} if isinstance(value, str) else {}
    return {field_of_value(value) or "text": value, **mark}


def field_of_value(value):
    """The field under which a value that is no object becomes a row: a string a text, a list a talk; or None."""
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(item, dict) for item in value):
        return "messages"
    return "turns" if all(isinstance(item, str) for item in value) else None


def explain_bad_json(record):
    """The reason why a record could not be parsed."""
    record = record.removeprefix(codecs.BOM_UTF8)
    if record.startswith(blocks.TOO_LONG_MARK):
        return blocks.too_long_reason()
    if not record.strip():
        return "empty line"
    return "NUL character" if b"\0" in record else "bad JSON"


def parse_json_lines(block, parse_record=parse_json_record):
    """Yields (line number, row, None) or (line number, None, reason) of each line of a `FileBlock`."""
    lines = block.data.split(b"\n")
    if not lines[-1]:
        lines.pop()  # behind the last newline
    rows = parse_lines_together(lines) if len(block.data) <= blocks.MAX_RECORD_BYTES else None
    for i, line in enumerate(lines):
        if rows:
            yield block.number + i, rows[i], None
        elif codecs.BOM_UTF8 in line:
            yield from ((block.number + i, *parsed) for parsed in parse_joined_line(line, parse_record))
        else:
            yield block.number + i, *parse_record(line)


def parse_bare_lines(block):
    """As `parse_json_lines`, of lines that may also be a string or a list."""
    return parse_json_lines(block, parse_bare_record)


def parse_joined_line(line, parse_record):
    """[(row, None) or (None, reason)] of a line with byte order marks: files' heads, also behind the line before."""
    line = line.strip().removeprefix(codecs.BOM_UTF8)
    parsed = [parse_record(piece) for piece in BETWEEN_FILES.split(line)]
    return [parse_record(line)] if any(reason for _, reason in parsed) else parsed  # if the marks stand in a text


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
