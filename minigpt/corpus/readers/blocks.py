"""Blocks of whole records, which all formats share.

A file is read in blocks of about BLOCK_BYTES, whatever its size. Blocks can be parsed in other processes.
"""

from dataclasses import dataclass

BLOCK_BYTES = 1 << 20
MAX_RECORD_BYTES = 8 << 20  # longer records are skipped without being held in memory
TOO_LONG_MARK = b"\0too long"  # replaces a record that is too long; never valid JSON


@dataclass
class FileBlock:
    """Some whole records of a file."""

    path: str
    format: str  # a key of rows.FORMATS
    number: int  # of the first record: its line, or in arrays and tables its row
    data: object  # bytes; of format "parsed" a list of (number, row, None) and (number, None, reason)
    n_bytes: int  # bytes of the file that were read for this block


class PlainRow(dict):
    """The row, {"text"}, of a text that has no fields: of plain text, or a string in JSON."""


def too_long_reason():
    """The reason under which a record of more than MAX_RECORD_BYTES is dropped."""
    return f"longer than {MAX_RECORD_BYTES >> 20} MiB"


def read_chunks(head, stream):
    """Yields the bytes of a stream piece by piece, beginning with `head`, which has been read from it already."""
    chunk = head
    while chunk:
        yield chunk
        chunk = stream.read(BLOCK_BYTES)


def split_records(head, stream, end):
    """Yields (line number, bytes of whole records, None) of a stream whose records end with the bytes `end`.

    A record of more than MAX_RECORD_BYTES is replaced by TOO_LONG_MARK and its newlines, and never held in memory.
    """
    number, kept = 1, b""
    # While a record that is too long is skipped: how many newlines stand before it, and in it so far.
    newlines_before, newlines_inside, skipping = 0, 0, False
    for chunk in read_chunks(head, stream):
        kept += chunk
        end_of_whole = kept.rfind(end) + len(end)
        if end_of_whole >= len(end):
            data, kept = kept[:end_of_whole], kept[end_of_whole:]
            if skipping:
                rest = data.find(end)
                newlines = newlines_inside + data.count(b"\n", 0, rest)
                data = b"\n" * newlines_before + TOO_LONG_MARK + b"\n" * newlines + data[rest:]
                skipping = False
            yield number, data, None
            number += data.count(b"\n")
        if len(kept) > MAX_RECORD_BYTES:
            if not skipping:
                stripped = kept.lstrip()
                newlines_before, newlines_inside = kept.count(b"\n", 0, len(kept) - len(stripped)), 0
                kept, skipping = stripped, True
            cut = len(kept) - len(end)  # the last bytes may be the first half of `end`
            newlines_inside += kept.count(b"\n", 0, cut)
            kept = kept[cut:]
    if skipping:
        yield number, b"\n" * newlines_before + TOO_LONG_MARK, None
    elif kept.strip():
        yield number, kept, None
