"""JSON rows: an object per line, or an array of objects of any size.

The array is scanned by hand because a broken element must not cost those behind it: ijson, which reads arrays of any
size too, stops at the first one.
"""

import json
import re

from minigpt.corpus.readers import blocks

# Fields by which an object inside a broken element is recognized as a row.
ROW_FIELDS = {"text", "question", "instruction", "conversations", "messages"}
MAX_RECOVERY_TRIES = 10_000  # positions in a broken element at which an object is looked for
LINE_SEPARATOR = b'"~|~"'

STRUCTURE = re.compile(rb'["{}\[\],]')
# The rest of a string. A newline ends it too: JSON allows none in a string, so its closing quote is missing.
STRING_REST = re.compile(rb'[^"\\\n]*+(?:\\.[^"\\\n]*+)*+(["\n])', re.DOTALL)
BETWEEN_ROWS = re.compile(rb"(?<=\})\s*,\s*(?=\{)")


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


class ArrayScanner:
    """Cuts the bytes of a JSON array into its elements, as they arrive.

    An object at a position where JSON does not allow one begins a new element: a quote or brace before it is missing.
    An element of more than MAX_RECORD_BYTES is replaced by TOO_LONG_MARK.
    """

    def __init__(self):
        self.buffer = b""
        self.start = 0  # of the element that is being read
        self.position = 0
        self.open_brackets = []
        self.in_string = False
        self.is_broken = False  # the element has a string without its closing quote
        self.is_too_long = False
        self.elements = []

    def feed(self, chunk):
        """The elements that end in this chunk, each on one line."""
        self.buffer = self.buffer[self.start :] + chunk
        self.position -= self.start
        self.start = 0
        while self._step():
            pass
        if len(self.buffer) - self.start > blocks.MAX_RECORD_BYTES:
            self._give_up_element()
        elements, self.elements = self.elements, []
        return elements

    def finish(self):
        """What remains behind the last element that ended: an array that is cut off."""
        self._end_element(len(self.buffer))
        return self.elements

    def _give_up_element(self):
        """Ends an element that is too long: either rows that a missing quote has merged, or one endless row."""
        boundaries = [match.span() for match in BETWEEN_ROWS.finditer(self.buffer, self.start)]
        if boundaries:  # begin again at the last one
            end, self.position = boundaries[-1]
            self._end_element(end)
            self.start = self.position
            self.open_brackets, self.in_string = [b"["], False
        else:
            self.start, self.is_too_long = len(self.buffer), True
            self.position = max(self.position, self.start)

    def _step(self):
        """Goes on to the next structural character; returns whether there was one."""
        if self.in_string:
            match = STRING_REST.match(self.buffer, self.position)
            if match:
                self.in_string, self.position = False, match.end()
                self.is_broken |= match[1] == b"\n"
            return match is not None
        match = STRUCTURE.search(self.buffer, self.position)
        if not match:
            self.position = len(self.buffer)
            return False
        self.position = match.end()
        self._take_character(match[0], match.start())
        return True

    def _take_character(self, character, at):
        """Updates the state for a structural character at a position."""
        if character == b'"':
            self.in_string = True
        elif character == b"," and len(self.open_brackets) == 1:
            self._end_element(at)
        elif character == b"{" and self._is_misplaced(at):
            self._end_element(at)
            self.start, self.open_brackets = at, [b"[", b"{"]
        elif character in b"{[":
            self.open_brackets.append(character)
            if len(self.open_brackets) == 1:
                self.start = self.position
        elif character == b"]" and len(self.open_brackets) == 1:
            self._end_element(at)
            self.open_brackets = []
        elif character in b"}]" and len(self.open_brackets) > 1:
            self.open_brackets.pop()

    def _is_misplaced(self, at):
        """Whether an object that starts here is inside another one where a key must be."""
        before = self.buffer[self.start : at].rstrip(b" \t\r\n")[-1:]
        in_object = len(self.open_brackets) > 1 and self.open_brackets[-1] == b"{"
        return in_object and (before == b"," or self.is_broken)

    def _end_element(self, at):
        element = self.buffer[self.start : at].strip(b", \t\r\n") if self.open_brackets else b""
        if element or self.is_too_long:
            self.elements.append(blocks.TOO_LONG_MARK if self.is_too_long else element.replace(b"\n", b"\r"))
        self.start, self.is_broken, self.is_too_long = at + 1, False, False


def split_json_array(head, stream):
    """Yields (row number, elements of a JSON array with one on each line, None)."""
    scanner, number = ArrayScanner(), 1
    for chunk in blocks.read_chunks(head, stream):
        if elements := scanner.feed(chunk):
            yield number, b"\n".join(elements), None
            number += len(elements)
    if elements := scanner.finish():
        yield number, b"\n".join(elements), None


def parse_array_elements(block):
    """Yields (row number, row, None) or (row number, None, reason) of each element of a `FileBlock`."""
    parsed = [(element, *parse_json_record(element)) for element in block.data.split(b"\n")]
    shapes = {frozenset(row) for _, row, reason in parsed if not reason}
    for number, (element, row, reason) in enumerate(parsed, start=block.number):
        if reason == "bad JSON":  # a missing quote, comma or brace may have merged several rows
            yield from ((number, found, None) for found in recover_rows(element, shapes))
        yield number, row, reason


def recover_rows(element, shapes):
    """The good rows in a broken element.

    shapes: sets of fields of the good elements; where there are none, an object with one of ROW_FIELDS is a row.
    """
    text, position, rows = element.decode(errors="replace"), 0, []
    for _ in range(MAX_RECOVERY_TRIES):
        position = text.find("{", position)
        if position < 0:
            break
        try:
            row, end = UNIQUE_KEY_DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):
            position += 1
            continue
        is_row = frozenset(row) in shapes or (not shapes and ROW_FIELDS & set(row) and "type" not in row)
        if is_row and "\ufffd" not in text[position:end]:
            rows.append(row)
        position = end if is_row else position + 1
    return rows
