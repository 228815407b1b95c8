"""Rows of every input format: jsonl, JSON arrays, parquet, wikiextractor's `<doc>`s, packed by gzip, bzip2, xz or zstd.

A file is read in blocks of whole records, about a mebibyte each, whatever its size; what a block holds is parsed by
`parsing.rows_of`, in this process or in another one. A record that cannot be read costs nothing but itself.
"""

import bz2
import io
import lzma
import os
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from minigpt.common.errors import UserError
from minigpt.corpus.json_array import array_blocks

BLOCK_BYTES = 1 << 20
MAX_RECORD = 8 << 20  # bytes; a longer one is no article, and is passed over without being held in memory
PACKED_BYTES = 256  # that are unpacked at once
TABLE_ROWS = 500  # of a parquet file that make a block
TOO_LONG = b"\0too long"  # stands for such a record; it is never JSON
ROW_ENDINGS = (".jsonl", ".json", ".parquet", "")  # "": as wikiextractor writes them
DOC_END = b"</doc>"
TEXT_ENDING = ".txt"  # texts without fields, read where they are asked for


@dataclass
class FileBlock:
    """Some whole records of a file."""

    path: str
    kind: str  # a key of parsing.READERS
    number: int  # of its first record: its line, or in arrays and tables its row
    data: bytes  # or, of a damaged file, a str that says what is wrong
    read: int  # bytes of the file that were read for it


class Unpacked:
    """The unpacked bytes of a file, of one packed stream or several behind one another.

    Unpacked by little, as a few bytes may become thousands of times as many; what comes before damage is given first.
    """

    def __init__(self, file, new_stream):
        self._file, self._new_stream, self._stream, self._error = file, new_stream, None, None

    def read(self, size):
        """About `size` bytes; b"" at the end. Raises what the unpacker raises, EOFError where the end is missing."""
        found, n_bytes = [], 0
        while n_bytes < size and not self._error:
            chunk = self._file.read(PACKED_BYTES)
            if not chunk:
                self._error = EOFError("it ends in the middle") if self._stream else None
                break
            try:
                for data in self._unpack(chunk):
                    found.append(data)
                    n_bytes += len(data)
            except (*DAMAGED, *own_errors(self._new_stream)) as error:
                self._error = error if isinstance(error, DAMAGED) else OSError(str(error))
        if self._error and not n_bytes:
            raise self._error
        return b"".join(found)

    def _unpack(self, chunk):
        while chunk:
            if not self._stream:
                chunk = chunk.lstrip(b"\0")  # what some programs fill the last block of a tape with
                if not chunk:
                    return
                self._stream = self._new_stream()
            yield self._stream.decompress(chunk)
            chunk = b""
            if self._stream.eof:
                chunk, self._stream = self._stream.unused_data, None


def own_errors(new_stream):
    """The classes of errors that an unpacker has of its own."""
    if new_stream is not new_zstd:
        return ()
    import zstandard

    return (zstandard.ZstdError,)


def new_zstd():
    import zstandard  # only who has such a file needs it loaded

    return zstandard.ZstdDecompressor().decompressobj()


PACKINGS = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
    ".zst": new_zstd,
}
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
        stream = Unpacked(file, PACKINGS[packing]) if packing else file
        yield file, stream


def read_blocks(path):
    """Yields every `FileBlock` of a file, in order. Raises UserError where it may not be read."""
    if not os.path.isfile(path):
        yield FileBlock(path, "damage", 1, "the file is gone", 0)
        return
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} cannot be read; see to its permissions")
    kind, number, read = "lines", 1, 0
    try:
        with opened(path) as (file, stream):
            for kind, number, data, share in records_of(path, stream):
                now = file.tell() - read if share is None else share
                read += now
                yield FileBlock(path, kind, number, data, now)
            if kind != "table" and file.tell() > read:  # the end of what is packed
                yield FileBlock(path, "lines", number, b"", file.tell() - read)
    except DAMAGED as error:
        reason = str(error).splitlines() or [type(error).__name__]
        yield FileBlock(path, "damage", number, f"the file is damaged from here on ({reason[0][:100]})", 0)


def records_of(path, stream):
    """Yields (kind, number of the first record, bytes, share of the file's bytes or None) of a file's blocks."""
    ending, _ = ending_of(path)
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
    elif start == b"<doc " or (not ending and b"\n<doc " in head and not start.startswith(b"{")):
        kind, blocks = "docs", delimited_blocks(head, stream, DOC_END)
    else:
        kind, blocks = "lines", delimited_blocks(head, stream, b"\n")
    for number, data in blocks:
        yield kind, number, data, None


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
    """Yields ("table", number, bytes, share) of a parquet file: Arrow's stream format, about BLOCK_BYTES or TABLE_ROWS.

    Raises OSError where it is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(stream, pre_buffer=False, buffer_size=BLOCK_BYTES)
        groups = [table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)]
        row_bytes = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=1)
        size, rows, done, share = os.path.getsize(path), max(1, table.metadata.num_rows), 0, 0
        for batch in table.iter_batches(batch_size=max(1, min(TABLE_ROWS, BLOCK_BYTES // max(1, row_bytes)))):
            sink = io.BytesIO()
            with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
                writer.write_batch(batch)
            until = size * (done + batch.num_rows) // rows
            yield "table", done + 1, sink.getvalue(), until - share
            done, share = done + batch.num_rows, until
    except pyarrow.ArrowException as error:
        raise OSError(str(error)) from None
