"""What the blocks of `readers` hold, row by row. A record that cannot be read gives its reason, and costs no other."""

import html
import json
import re

from minigpt.corpus import readers


class DuplicateKey(ValueError):
    pass


def unique_keys(pairs):
    row = dict(pairs)
    if len(row) != len(pairs):
        raise DuplicateKey
    return row


MOST_TRIES = 10_000  # objects that are looked for in a bad element
ROW_FIELDS = {"text", "question", "instruction", "conversations", "messages"}
BETWEEN_LINES = b'"~|~"'
DECODER = json.JSONDecoder(object_pairs_hook=unique_keys)


def parse(record):
    """(row, None) of a record's bytes, or (None, reason)."""
    if len(record) > readers.MAX_RECORD:
        return None, reason_of_bad(readers.TOO_LONG)
    try:
        text = record.decode().strip()
        row, end = DECODER.raw_decode(text)
        if end < len(text):
            return None, reason_of_bad(record)
    except UnicodeDecodeError:
        return None, "bad UTF-8"
    except DuplicateKey:
        return None, "duplicate key"
    except (ValueError, RecursionError):
        return None, reason_of_bad(record)
    return (row, None) if isinstance(row, dict) else (None, "not a JSON object")


def reason_of_bad(record):
    if record.startswith(readers.TOO_LONG):
        return f"longer than {readers.MAX_RECORD >> 20} MiB"
    if not record.strip():
        return "empty line"
    return "NUL character" if b"\0" in record else "bad JSON"


def rows_of(block):
    """Yields (number, row, None), or (number, None, reason), of each record of a `FileBlock`."""
    return READERS[block.kind](block)


def rows_of_lines(block):
    lines = block.data.split(b"\n")
    if not lines[-1]:
        lines.pop()  # behind the last newline
    rows = parse_together(lines) if len(block.data) <= readers.MAX_RECORD else None
    for number, line in enumerate(lines, start=block.number):
        yield number, *((rows[number - block.number], None) if rows else parse(line))


def parse_together(lines):
    """The rows of good lines, by one call of the parser; None where a line may be bad, for each to be parsed alone.

    Between two rows stands a mark that no line has, so that no two bad lines make a good row.
    """
    data = (b",%s," % BETWEEN_LINES).join(lines)
    try:
        if data.count(BETWEEN_LINES) != len(lines) - 1:
            return None
        values = DECODER.decode(f"[{data.decode()}]")
    except (ValueError, RecursionError):
        return None
    rows, between = values[::2], values[1::2]
    whole = len(rows) == len(lines) and all(isinstance(row, dict) for row in rows)
    return rows if whole and all(isinstance(mark, str) for mark in between) else None


def rows_of_array(block):
    parsed = [(element, *parse(element)) for element in block.data.split(b"\n")]
    shapes = {frozenset(row) for _, row, reason in parsed if not reason}
    for number, (element, row, reason) in enumerate(parsed, start=block.number):
        if reason == "bad JSON":  # a missing quote, comma or brace may have made one of several
            yield from ((number, within, None) for within in rows_within(element, shapes))
        yield number, row, reason


def rows_within(element, shapes):
    """Good rows in a bad element: the objects whose fields are those of a good one, or have a text or question."""
    text, place, found = element.decode(errors="replace"), 0, []
    for _ in range(MOST_TRIES):
        place = text.find("{", place)
        if place < 0:
            break
        try:
            row, end = DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            place += 1
            continue
        fits = frozenset(row) in shapes or (not shapes and ROW_FIELDS & set(row) and "type" not in row)
        if fits and "\ufffd" not in text[place:end]:
            found.append(row)
        place = end if fits else place + 1
    return found


DOC_START = re.compile(rb"^(?=<doc )", re.MULTILINE)
DOC = re.compile(r"\s*<doc ([^\n]*)>[ \t]*\r?\n(.*)", re.DOTALL)
ATTRIBUTE = re.compile(r'(\w+)="(.*?)"(?=\s+\w+="|\s*$)')


def rows_of_docs(block):
    """Of wikiextractor's own form, whose texts are escaped as HTML is."""
    number, pieces = block.number, block.data.split(readers.DOC_END)
    for i, piece in enumerate(pieces):
        parts = DOC_START.split(piece)
        for k, part in enumerate(parts, start=1):
            bare = part.lstrip()
            at = number + part[: len(part) - len(bare)].count(b"\n")
            number += part.count(b"\n")
            # Behind the last end, and before another start, stands what has no end.
            closed = (i + 1 < len(pieces) and k == len(parts)) or bare.startswith(readers.TOO_LONG)
            if bare:
                yield at, *(doc_of(bare) if closed else (None, "no </doc>"))


def doc_of(record):
    """(row, None) of a document's bytes up to its end, or (None, reason)."""
    if record.startswith(readers.TOO_LONG):
        return None, reason_of_bad(record)
    try:
        doc = DOC.fullmatch(record.decode())
    except UnicodeDecodeError:
        return None, "bad UTF-8"
    if not doc:
        return None, "not a <doc>"
    fields = {name: html.unescape(value) for name, value in ATTRIBUTE.findall(doc[1])}
    return {**fields, "text": html.unescape(doc[2])}, None


def rows_of_texts(block):
    """Of plain text, documents with a blank line between them."""
    return rows_of_plain(block.number, re.split(rb"(?<=\n)\r?\n", block.data), 1)


def rows_of_text_lines(block):
    """Of plain text, one document a line."""
    return rows_of_plain(block.number, block.data.splitlines(keepends=True), 0)


def rows_of_plain(number, records, between):
    """Rows of documents as bytes; between: lines that stand between two of them."""
    for record in records:
        bare = record.lstrip()
        at = number + record[: len(record) - len(bare)].count(b"\n")
        number += record.count(b"\n") + between
        if not bare:
            continue
        if bare.startswith(readers.TOO_LONG) or len(record) > readers.MAX_RECORD:
            yield at, None, reason_of_bad(readers.TOO_LONG)
            continue
        try:
            yield at, {"text": record.decode()}, None
        except UnicodeDecodeError:
            yield at, None, "bad UTF-8"


def rows_of_table(block):
    import pyarrow

    with pyarrow.ipc.open_stream(block.data) as stream:
        table = stream.read_all()
    try:
        rows = [(row, None) for row in table.to_pylist()]
    except (ValueError, OverflowError, LookupError, TypeError, pyarrow.ArrowException):
        rows = [row_of_table(table, i) for i in range(table.num_rows)]
    for number, (row, reason) in enumerate(rows, start=block.number):
        yield number, row, reason


def row_of_table(table, i):
    """(row, None) of a table's row, without the values that cannot be read, or (None, reason) where no text is left."""
    import pyarrow

    row, lost = {}, []
    for name in table.column_names:
        try:
            row[name] = table.column(name)[i].as_py()
        except (ValueError, OverflowError, LookupError, TypeError, pyarrow.ArrowException):
            lost.append(name)
    texts = any(isinstance(value, (str, list)) for name, value in row.items() if name not in ("id", "title", "url"))
    return (row, None) if texts else (None, f'"{lost[0] if lost else "text"}" cannot be read')


def rows_of_damage(block):
    yield block.number, None, block.data


READERS = {
    "lines": rows_of_lines,
    "array": rows_of_array,
    "docs": rows_of_docs,
    "texts": rows_of_texts,
    "text_lines": rows_of_text_lines,
    "table": rows_of_table,
    "damage": rows_of_damage,
}
