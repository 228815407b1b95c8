"""Documents without JSON: wikiextractor's `<doc>` elements, plain text, and a question a line.

| format | what separates the documents of plain text, beside `<|endoftext|>` |
|---|---|
| paragraphs | blank lines, of which also spaces, tabs and U+3000 may consist |
| text_lines | the ends of lines |
| one_text | nothing: a novel, or text that is wrapped at some width |
"""

import codecs
import html
import re
from functools import partial

from minigpt.corpus.readers import blocks

DOC_END = b"</doc>"
split_docs = partial(blocks.split_records, end=DOC_END)
DOC_START = re.compile(rb"^(?=<doc )", re.MULTILINE)
DOC = re.compile(r"\s*<doc ([^\n]*)>[ \t]*\r?\n(.*)", re.DOTALL)
ATTRIBUTE = re.compile(r'(\w+)="(.*?)"(?=\s+\w+="|\s*$)')

BLANKS = rb"(?:[ \t\r\x0b\x0c]|\xe3\x80\x80|\xc2\xa0|\xef\xbb\xbf)*+"
END_OF_TEXT = rb"<\|endoftext\|>"
# Behind a document: the rest of its last line, and what separates it from the next one.
SEPARATORS = {
    "one_text": re.compile(END_OF_TEXT),
    "paragraphs": re.compile(END_OF_TEXT + rb"|\n" + BLANKS + rb"(?:\n" + BLANKS + rb")*\n"),
    "text_lines": re.compile(END_OF_TEXT + rb"|\n"),
}
INDENT = re.compile(r"[ \t\u3000\xa0]")
PLAIN_SENTENCE_ENDS = ("。", "！", "？", "…", "!", "?", ".", ";", "；")
CLOSING_MARKS = "”’」』）)】》\"' \t\r\u3000"
SENTENCE_END_BYTES = [end.encode() for end in ("。", "！", "？", "!", "?")]
MAX_HEADING_CHARS = 40  # of a document that is a heading of the next one
PAIR_SHARE = 0.9  # of the lines of a file of questions, which have one tab


# wikiextractor's form


def parse_docs(block):
    """Yields (line number, row, None) or (line number, None, reason) of each `<doc>` of a `FileBlock`."""
    number, pieces = block.number, block.data.split(DOC_END)
    for i, piece in enumerate(pieces):
        parts = DOC_START.split(piece)
        for k, part in enumerate(parts, start=1):
            stripped = part.lstrip().removeprefix(codecs.BOM_UTF8)
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


# Plain text


def detect_text(head):
    """The key of SEPARATORS for plain text by its first bytes.

    `<|endoftext|>` among them: it alone separates documents. Else a blank line: blank lines do. Else each line is a
    document if most lines look like one: they are not indented, and end where a sentence ends. Other text is one
    document: a novel whose paragraphs are indented, or text whose lines are wrapped at some width.
    """
    if re.search(END_OF_TEXT, head):
        return "one_text"
    if SEPARATORS["paragraphs"].search(head.strip()):
        return "paragraphs"
    lines = [line for line in head.decode(errors="ignore").split("\n") if line.strip()]
    n_documents = sum(not INDENT.match(line) and is_sentence_end(line) for line in lines)
    return "text_lines" if 2 * n_documents > len(lines) else "one_text"


def is_sentence_end(text):
    """Whether a text ends where a sentence ends."""
    return text.rstrip(CLOSING_MARKS).endswith(PLAIN_SENTENCE_ENDS)


def is_heading(document):
    """Whether a document's bytes are a short line without a sentence end, which belongs to the document behind it."""
    line = document.strip()
    text = line.decode(errors="ignore") if len(line) <= 4 * MAX_HEADING_CHARS else ""
    return 0 < len(text) <= MAX_HEADING_CHARS and not is_sentence_end(text)


def document_spans(data, format):
    """[(start, end, position behind its separator)] of the documents in the bytes of plain text.

    The last one has no separator: it is `len(data)`. Between paragraphs a heading is part of what follows it.
    """
    spans, start, heading_start = [], 0, 0
    for separator in SEPARATORS[format].finditer(data):
        is_blank = format == "paragraphs" and not separator[0].startswith(b"<")
        if is_blank and is_heading(data[heading_start : separator.start()]):
            heading_start = separator.end()
            continue
        spans.append((start, separator.start(), separator.end()))
        start = heading_start = separator.end()
    return [*spans, (start, len(data), len(data))]


def split_texts(head, stream, format):
    """Yields (line number, whole documents, None) of plain text.

    A document of more than MAX_RECORD_BYTES is cut: at the end of a line, else of a sentence, else of a character.
    """
    number, kept = 1, b""
    for chunk in blocks.read_chunks(head, stream):
        kept += chunk
        cuts = [behind for _, _, behind in document_spans(kept, format)[-2:-1]]
        while cuts or len(kept) > blocks.MAX_RECORD_BYTES:
            cut = cuts.pop() if cuts else find_text_cut(kept, blocks.MAX_RECORD_BYTES)
            yield number, kept[:cut], None
            number += kept.count(b"\n", 0, cut)
            kept = kept[cut:]
    if kept.strip():
        yield number, kept, None


def find_text_cut(data, limit):
    """The last position up to `limit` where UTF-8 may be cut: behind a line, else a sentence, else a character."""
    line_end = data.rfind(b"\n", 0, limit) + 1
    sentence_end = max(data.rfind(end, 0, limit) + len(end) for end in SENTENCE_END_BYTES)
    if line_end or sentence_end > len(SENTENCE_END_BYTES[0]):
        return line_end or sentence_end
    while data[limit] & 0xC0 == 0x80:  # inside a character
        limit -= 1
    return limit


def parse_texts(block):
    """Yields (line number, {"text"}, None) of each document in a `FileBlock` of plain text.

    A line that is no UTF-8 is left out of its document: (line number, None, reason).
    """
    number = block.number
    for start, end, behind in document_spans(block.data, block.format):
        lines = decode_lines(block.data[start:end])
        text = "\n".join(line for line in lines if line is not None).strip("\r\n")
        yield from ((number + i, None, "bad UTF-8") for i, line in enumerate(lines) if line is None)
        if text.strip():
            first = number + next(i for i, line in enumerate(lines) if line and line.strip())
            yield first, {"text": text, blocks.PLAIN_MARK: True}, None
        number += block.data.count(b"\n", start, behind)


def decode_lines(data):
    """The lines of bytes as texts; None for a line that is no UTF-8."""
    try:
        return data.decode().replace("\n\ufeff", "\n").removeprefix("\ufeff").split("\n")
    except UnicodeDecodeError:
        return [decode_line_or_none(line) for line in data.split(b"\n")]


def decode_line_or_none(line):
    """A line's text, or None where it is no UTF-8."""
    try:
        return line.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError:
        return None


# Questions


def detect_question_lines(head):
    """The key of rows.FORMATS for lines that are a question each: whether nearly all have a tab before an answer."""
    n_tabs = [line.count(b"\t") for line in head.split(b"\n") if line.strip()]
    return "pair_lines" if n_tabs and n_tabs.count(1) >= PAIR_SHARE * len(n_tabs) else "question_lines"


def parse_question_lines(block):
    """Yields (line number, {"text"}, None) or (line number, None, reason) of lines that are a question each."""
    for i, line in enumerate(block.data.split(b"\n")):
        if not line.strip():
            continue
        if line.startswith(blocks.TOO_LONG_MARK) or len(line) > blocks.MAX_RECORD_BYTES:
            yield block.number + i, None, blocks.too_long_reason()
            continue
        try:
            yield block.number + i, {"text": line.removeprefix(codecs.BOM_UTF8).decode().rstrip("\r")}, None
        except UnicodeDecodeError:
            yield block.number + i, None, "bad UTF-8"


def parse_pair_lines(block):
    """As `parse_question_lines`, of lines with tabs between a question and its answer: {"columns": [text, …]}."""
    for number, row, reason in parse_question_lines(block):
        yield number, row and {"columns": row["text"].split("\t")}, reason
