"""Rows of every input format: jsonl, JSON arrays, parquet, wikiextractor's `<doc>`s, packed by gzip, bzip2, xz or zstd.

A file is read in blocks of whole records, about a mebibyte each, whatever its size; what a block holds is parsed by
`rows_of`, in this process or in another one. A record that cannot be read costs nothing but itself.
"""

import bz2
import gzip
import html
import io
import json
import lzma
import os
import re
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from errors import UserError
from json_array import BETWEEN_ROWS, array_blocks

BLOCK_BYTES = 1 << 20
MAX_RECORD = 8 << 20  # bytes; a longer one is no article, and is passed over without being held in memory
ZSTD_BYTES = 1024  # that are unpacked at once
TABLE_ROWS = 500  # of a parquet file that make a block
TOO_LONG = b"\0too long"  # stands for such a record; it is never JSON
ROW_ENDINGS = (".jsonl", ".json", ".parquet", "")  # "": as wikiextractor writes them
TEXT_ENDING = ".txt"  # texts without fields, read where they are asked for


@dataclass
class Block:
    """Some whole records of a file."""

    path: str
    kind: str  # a key of READERS
    number: int  # of its first record: its line, or in arrays and tables its row
    data: bytes  # or, of a damaged file, a str that says what is wrong
    read: int  # bytes of the file that were read for it


class ZstdStream:
    """The unpacked bytes of a zstd file, of one frame or many. Raises EOFError where the last one is cut off."""

    def __init__(self, file):
        import zstandard  # only who has such a file needs it loaded

        self._file, self._new_frame, self._frame = file, zstandard.ZstdDecompressor().decompressobj, None

    def read(self, size):
        """About `size` unpacked bytes; b"" at the end."""
        found, n_bytes = [], 0
        # Unpacked by little, as a few bytes may become a thousand times as many.
        while n_bytes < size and (chunk := self._file.read(ZSTD_BYTES)):
            while chunk:
                self._frame = self._frame or self._new_frame()
                found.append(self._frame.decompress(chunk))
                n_bytes += len(found[-1])
                chunk = self._frame.unused_data
                if self._frame.eof:
                    self._frame = None
        if not n_bytes and self._frame:
            raise EOFError("it ends in the middle")
        return b"".join(found)


PACKINGS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": ZstdStream}
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError)


def ending_of(path):
    """(ending, packing) of a file's name, such as (".jsonl", ".gz"), each "" where it has none."""
    name = Path(path).name.lower()
    packing = next((p for p in PACKINGS if name.endswith(p)), "")
    return Path(name.removesuffix(packing)).suffix, packing


def is_readable(name, plain_text=False):
    """Whether a file of this name is one of rows; a download's note beside what it has so far is none.

    plain_text: whether `.txt` files are, too.
    """
    ending, packing = ending_of(name)
    if str(name).endswith(".partial.json"):
        return False
    return (plain_text and ending == TEXT_ENDING) or (ending in ROW_ENDINGS and not (ending == ".parquet" and packing))


def unit_of(path):
    """What records of a file are counted in: "line" or "row"."""
    return "row" if ending_of(path)[0] in (".json", ".parquet") else "line"


@contextmanager
def opened(path):
    """(file as it lies on the disk, its unpacked stream of bytes)"""
    with open(path, "rb") as file:
        packing = ending_of(path)[1]
        stream = PACKINGS[packing](file) if packing else file
        yield file, stream


def read_blocks(path):
    """Yields every `Block` of a file, in order. Raises UserError where it cannot be opened at all."""
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} cannot be read; see to its permissions")
    number, read = 1, 0
    try:
        with opened(path) as (file, stream):
            for kind, number, data, share in records_of(path, stream):
                now = file.tell() - read if share is None else share
                read += now
                yield Block(path, kind, number, data, now)
    except DAMAGED as error:
        reason = str(error).splitlines() or [type(error).__name__]
        yield Block(path, "damage", number, f"the file is damaged from here on ({reason[0][:100]})", 0)


def records_of(path, stream):
    """Yields (kind, number of the first record, bytes, share of the file's bytes or None) of a file's blocks."""
    ending, packing = ending_of(path)
    with as_damage(ending, packing):
        if ending == ".parquet":
            yield from table_blocks(path, stream)
            return
        head = stream.read(BLOCK_BYTES).removeprefix(b"\xef\xbb\xbf")
        start = head.lstrip()[:5]
        if ending == ".json" and start.startswith(b"["):
            kind, blocks = "array", array_blocks(chunks_of(head, stream), MAX_RECORD, TOO_LONG)
        elif ending == TEXT_ENDING:
            # Documents with a blank line between them or, where the first mebibyte has none, one a line.
            blank = next((b for b in (b"\n\n", b"\r\n\r\n") if b in head), None)
            kind, blocks = "texts" if blank else "text_lines", delimited_blocks(head, stream, blank or b"\n")
        elif start == b"<doc ":
            kind, blocks = "docs", delimited_blocks(head, stream, DOC_END)
        else:
            kind, blocks = "lines", delimited_blocks(head, stream, b"\n")
        for number, data in blocks:
            yield kind, number, data, None


@contextmanager
def as_damage(ending, packing):
    """Turns the errors of pyarrow's and zstd's own classes into OSError."""
    own = ()
    if ending == ".parquet":
        import pyarrow

        own = pyarrow.ArrowException
    elif packing == ".zst":
        import zstandard

        own = zstandard.ZstdError
    try:
        yield
    except own as error:
        raise OSError(str(error)) from None


def chunks_of(head, stream):
    """Yields the stream's bytes piece by piece; `head` was read of it before."""
    chunk = head
    while chunk:
        yield chunk
        chunk = stream.read(BLOCK_BYTES)


def delimited_blocks(head, stream, end):
    """Yields (line number, bytes of whole records) of a stream whose records end with `end`.

    A record of more than MAX_RECORD bytes becomes TOO_LONG (and its newlines), and is never in memory whole.
    """
    number, kept, passed = 1, b"", None  # passed: the newlines before and in a record that is passed over, or None
    for chunk in chunks_of(head, stream):
        kept += chunk
        whole = kept.rfind(end) + len(end)
        if whole >= len(end):
            data, kept = kept[:whole], kept[whole:]
            if passed is not None:
                first = data.find(end)
                newlines = passed[1] + data.count(b"\n", 0, first)
                data, passed = b"\n" * passed[0] + TOO_LONG + b"\n" * newlines + data[first:], None
            yield number, data
            number += data.count(b"\n")
        if len(kept) > MAX_RECORD:
            if passed is None:
                bare = kept.lstrip()
                passed, kept = (kept.count(b"\n", 0, len(kept) - len(bare)), 0), bare
            left = len(kept) - len(end)  # an end may stand half in what is kept
            passed, kept = (passed[0], passed[1] + kept.count(b"\n", 0, left)), kept[left:]
    if passed is not None:
        yield number, b"\n" * passed[0] + TOO_LONG
    elif kept.strip():
        yield number, kept


def table_blocks(path, stream):
    """Yields ("table", number, bytes, share) of a parquet file: Arrow's stream format, TABLE_ROWS rows each."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(stream, pre_buffer=False, buffer_size=BLOCK_BYTES)
    size, rows, done, share = os.path.getsize(path), max(1, table.metadata.num_rows), 0, 0
    for batch in table.iter_batches(batch_size=TABLE_ROWS):
        sink = io.BytesIO()
        with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        until = size * (done + batch.num_rows) // rows
        yield "table", done + 1, sink.getvalue(), until - share
        done, share = done + batch.num_rows, until


# Parsing


class DuplicateKey(ValueError):
    pass


def unique_keys(pairs):
    row = dict(pairs)
    if len(row) != len(pairs):
        raise DuplicateKey
    return row


DECODER = json.JSONDecoder(object_pairs_hook=unique_keys)


def parse(record):
    """(row, None) of a record's bytes, or (None, reason)."""
    if len(record) > MAX_RECORD:
        return None, reason_of_bad(TOO_LONG)
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
    if record.startswith(TOO_LONG):
        return f"longer than {MAX_RECORD >> 20} MiB"
    if not record.strip():
        return "empty line"
    return "NUL character" if b"\0" in record else "bad JSON"


def rows_of(block):
    """Yields (number, row, None), or (number, None, reason), of each record of a `Block`."""
    return READERS[block.kind](block)


def rows_of_lines(block):
    lines = block.data.split(b"\n")
    if not lines[-1]:
        lines.pop()  # behind the last newline
    rows = parse_together(lines) if len(block.data) <= MAX_RECORD else None
    for number, line in enumerate(lines, start=block.number):
        yield number, *((rows[number - block.number], None) if rows else parse(line))


def parse_together(lines):
    """The rows of good lines, by one call of the parser; None where a line may be bad, for each to be parsed alone.

    Between two rows stands a 0, so that no two bad lines make a good row.
    """
    try:
        values = DECODER.decode((b"[" + b",0,".join(lines) + b"]").decode())
    except (ValueError, RecursionError):
        return None
    rows, between = values[::2], values[1::2]
    whole = len(rows) == len(lines) and not any(between) and all(isinstance(row, dict) for row in rows)
    return rows if whole and len(between) == len(lines) - 1 else None


def rows_of_array(block):
    for number, element in enumerate(block.data.split(b"\n"), start=block.number):
        row, reason = parse(element)
        parts = BETWEEN_ROWS.split(element) if reason else [element]
        if len(parts) > 1:  # a missing quote made one of several
            yield from ((number, *parse(part)) for part in parts)
        else:
            yield number, row, reason


DOC_END = b"</doc>"
DOC = re.compile(r"\s*<doc ([^\n]*)>[ \t]*\r?\n(.*)", re.DOTALL)
ATTRIBUTE = re.compile(r'(\w+)="(.*?)"(?=\s+\w+="|\s*$)')


def rows_of_docs(block):
    """Of wikiextractor's own form, whose texts are escaped as HTML is."""
    number = block.number
    for record in block.data.split(DOC_END):
        at = number + record[: len(record) - len(record.lstrip())].count(b"\n")
        number += record.count(b"\n")
        if not record.strip():
            continue
        if record.lstrip().startswith(TOO_LONG):
            yield at, None, reason_of_bad(record.lstrip())
            continue
        try:
            doc = DOC.fullmatch(record.decode())
        except UnicodeDecodeError:
            yield at, None, "bad UTF-8"
            continue
        if doc:
            fields = {name: html.unescape(value) for name, value in ATTRIBUTE.findall(doc[1])}
            yield at, {**fields, "text": html.unescape(doc[2])}, None
        else:
            yield at, None, "not a <doc>"


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
        if bare.startswith(TOO_LONG) or len(record) > MAX_RECORD:
            yield at, None, reason_of_bad(TOO_LONG)
            continue
        try:
            yield at, {"text": record.decode()}, None
        except UnicodeDecodeError:
            yield at, None, "bad UTF-8"


def rows_of_table(block):
    import pyarrow

    with pyarrow.ipc.open_stream(block.data) as stream:
        rows = stream.read_all().to_pylist()
    yield from ((number, row, None) for number, row in enumerate(rows, start=block.number))


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
