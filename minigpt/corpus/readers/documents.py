"""Documents without JSON: wikiextractor's `<doc>` elements, and plain text."""

import html
import re
from functools import partial

from minigpt.corpus.readers import blocks

DOC_END = b"</doc>"
split_docs = partial(blocks.split_records, end=DOC_END)
DOC_START = re.compile(rb"^(?=<doc )", re.MULTILINE)
DOC = re.compile(r"\s*<doc ([^\n]*)>[ \t]*\r?\n(.*)", re.DOTALL)
ATTRIBUTE = re.compile(r'(\w+)="(.*?)"(?=\s+\w+="|\s*$)')


def parse_docs(block):
    """Yields (line number, row, None) or (line number, None, reason) of each `<doc>` of a `FileBlock`."""
    number, pieces = block.number, block.data.split(DOC_END)
    for i, piece in enumerate(pieces):
        parts = DOC_START.split(piece)
        for k, part in enumerate(parts, start=1):
            stripped = part.lstrip()
            start = number + part[: len(part) - len(stripped)].count(b"\n")
            number += part.count(b"\n")
            # A document is closed if DOC_END follows it directly, not another DOC_START.
            is_closed = (i + 1 < len(pieces) and k == len(parts)) or stripped.startswith(blocks.TOO_LONG_MARK)
            if stripped:
                yield start, *(parse_doc(stripped) if is_closed else (None, "no </doc>"))


def parse_doc(record):
    """(row, None) of a document's bytes up to its end, or (None, reason). Its text is escaped as in HTML."""
    if record.startswith(blocks.TOO_LONG_MARK):
        return None, blocks.too_long_reason()
    try:
        doc = DOC.fullmatch(record.decode())
    except UnicodeDecodeError:
        return None, "bad UTF-8"
    if not doc:
        return None, "not a <doc>"
    fields = {name: html.unescape(value) for name, value in ATTRIBUTE.findall(doc[1])}
    return {**fields, "text": html.unescape(doc[2])}, None


def blank_line(head):
    """The bytes of a blank line as plain text uses it to separate documents, b"" where `head` has none."""
    return next((line for line in (b"\n\n", b"\r\n\r\n") if line in head), b"")


def split_paragraphs(head, stream):
    """As `blocks.split_records`, of documents with a blank line between them."""
    return blocks.split_records(head, stream, blank_line(head))


def parse_paragraphs(block):
    """Yields the rows ({"text"}) of documents with a blank line between them, as `parse_texts` does."""
    return parse_texts(block.number, re.split(rb"(?<=\n)\r?\n", block.data), 1)


def parse_text_lines(block):
    """Yields the rows ({"text"}) of documents that are a line each, as `parse_texts` does."""
    return parse_texts(block.number, block.data.splitlines(keepends=True), 0)


def parse_texts(number, records, n_between):
    """Yields (line number, {"text"}, None) or (line number, None, reason) of documents as bytes.

    number: the first line's; n_between: lines between two documents.
    """
    for record in records:
        stripped = record.lstrip()
        start = number + record[: len(record) - len(stripped)].count(b"\n")
        number += record.count(b"\n") + n_between
        if not stripped:
            continue
        if stripped.startswith(blocks.TOO_LONG_MARK) or len(record) > blocks.MAX_RECORD_BYTES:
            yield start, None, blocks.too_long_reason()
            continue
        try:
            yield start, blocks.PlainRow(text=record.decode()), None
        except UnicodeDecodeError:
            yield start, None, "bad UTF-8"
