"""From a file to its rows: which format it has, its blocks, and what a block holds.

The format is told by the content, and by the name only where the content leaves it open. A record that cannot be read
gives a reason and costs no other record.
"""

import os
from functools import lru_cache, partial

from minigpt.common.errors import UserError, first_line
from minigpt.corpus.readers import blocks, documents, json_rows, json_values, tables
from minigpt.corpus.readers.blocks import FileBlock
from minigpt.corpus.readers.compression import DAMAGE_ERRORS, open_decompressed, split_suffixes
from minigpt.corpus.readers.encodings import Utf8Stream, print_note
from minigpt.corpus.readers.field_names import count_field_names
from minigpt.corpus.readers.json_formats import detect_json
from minigpt.corpus.readers.unread import refuse_unread

PARQUET_MARK = b"PAR1"
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (".csv", ".tsv")
MIN_HEADER_NAMES = 2  # by which a table is recognized whose name does not say that it is one
split_lines = partial(blocks.split_records, end=b"\n")
# How a format is read: (split, parse, what its records are counted in).
#   split  (head, stream) -> yields (number of the first record, data of whole records, bytes of the file or None where
#          they are those that were read from it); head: the first bytes, which have been read from the stream
#   parse  `FileBlock` -> yields (number, row, None) or (number, None, reason)
FORMATS = {
    "lines": (split_lines, json_rows.parse_json_lines, "line"),
    "bare_lines": (split_lines, json_rows.parse_bare_lines, "line"),
    "array": (json_values.split_json_array, json_rows.parse_json_lines, "row"),
    "values": (json_values.split_json_values, json_rows.parse_json_lines, "row"),
    "container": (json_values.split_json_container, json_rows.parse_json_lines, "row"),
    "object": (json_values.split_json_object, json_rows.parse_json_lines, "row"),
    "docs": (documents.split_docs, documents.parse_docs, "line"),
    **{
        name: (partial(documents.split_texts, format=name), documents.parse_texts, "line")
        for name in documents.SEPARATORS
    },
    "question_lines": (split_lines, documents.parse_question_lines, "line"),
    "pair_lines": (split_lines, documents.parse_pair_lines, "line"),
    "parquet": (tables.split_parquet, tables.parse_arrow, "row"),
    "parsed": (tables.split_table, lambda block: iter(block.data), "line"),
}


def detect_format(path, head, is_whole, one_per_line=False):
    """The key of FORMATS for a file of text, by its first bytes and its suffix.

    is_whole: whether the bytes are the whole file. one_per_line: of plain text, a text is a line.
    """
    suffix, _ = split_suffixes(path)
    if head.lstrip().startswith(b"<doc ") or (not suffix and b"\n<doc " in head and not head.lstrip().startswith(b"{")):
        return "docs"
    is_named_json = suffix in JSON_SUFFIXES or (not suffix and b"\n{" in head)
    has_header = not head.lstrip().startswith((b"{", b"[")) and names_fields(head)
    found = None if has_header else detect_json(head, is_whole, is_named_json)
    if found:
        return found
    if suffix in TABLE_SUFFIXES or has_header:
        return "parsed"
    if suffix == ".parquet":
        return "parquet"  # a damaged one
    if is_named_json:
        return "lines"
    return documents.detect_question_lines(head) if one_per_line else documents.detect_text(head)


def names_fields(head):
    """Whether the first line of a text names fields, as a table's header does."""
    line, _, following = head.lstrip().partition(b"\n")
    delimiter = tables.stated_delimiter(line.decode(errors="replace"))
    if delimiter:
        line = following.partition(b"\n")[0]
    cells = tables.parse_cells(line.decode(errors="replace"), delimiter or tables.choose_delimiter(head.lstrip())) or []
    return count_field_names(cells) >= MIN_HEADER_NAMES


def open_file_rows(file, path, one_per_line=False, encoding=""):
    """(key of FORMATS, first bytes, stream of the others) of an open file.

    Raises one of DAMAGE_ERRORS.
    """
    if file.peek(len(PARQUET_MARK)).startswith(PARQUET_MARK):
        return "parquet", b"", file
    unpacked = open_decompressed(file, path)
    stream = Utf8Stream(unpacked, encoding)
    head = stream.read(blocks.BLOCK_BYTES)
    name = detect_format(path, head, stream.at_end, one_per_line)
    if name == "lines" and unpacked is file and split_suffixes(path)[1] and not head.lstrip().startswith(b"{"):
        raise OSError("it is neither compressed, as its name says, nor are its lines rows")
    return name, head, file if name == "parquet" else stream


def read_blocks(path, one_per_line=False, encoding=""):
    """Yields every `FileBlock` of a file, in order. Raises UserError where the file may not be read.

    one_per_line: of plain text, each line is a text; otherwise `documents.detect_text` tells what separates texts.
    encoding: Python's name of the encoding of all text files; "" to decide by each file's content.
    """
    if not os.path.isfile(path):
        yield FileBlock(path, "parsed", 1, [(1, None, "the file is gone")], 0)
        return
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} cannot be read; see to its permissions")
    refuse_unread(path)
    number, n_read = 1, 0
    try:
        with open(path, "rb") as file:
            name, head, stream = open_file_rows(file, path, one_per_line, encoding)
            for number, data, n_bytes in FORMATS[name][0](head, stream):
                if n_bytes is None:
                    n_bytes = file.tell() - n_read
                n_read += n_bytes
                code = getattr(stream, "encoding", None) or "utf-8"
                if code == "gb18030" and not encoding:
                    print_note(f"{path} is read as GB18030; --encoding= forces another")
                yield FileBlock(path, name, number, data, n_bytes, code)
            if file.tell() > n_read:  # the end of a compressed file
                yield FileBlock(path, "parsed", number, [], file.tell() - n_read)
    except json_values.ObjectTooLong as error:
        raise UserError(f"{path}: {error}") from None
    except DAMAGE_ERRORS as error:
        reason = f"the file is damaged from here on ({first_line(error)})"
        yield FileBlock(path, "parsed", number, [(number, None, reason)], 0)


def parse_block(block):
    """Yields (number, row, None) or (number, None, reason) of each record of a `FileBlock`."""
    rows = FORMATS[block.format][1](block)
    if block.encoding == "utf-8":
        return rows
    bad = f"bad {block.encoding.upper()}"
    return ((number, row, bad if reason == "bad UTF-8" else reason) for number, row, reason in rows)


def record_unit(path):
    """What the records of a file are counted in: "line" or "row"."""
    try:
        status = os.stat(path)
        return unit_of_file(path, status.st_size, status.st_mtime_ns)
    except (*DAMAGE_ERRORS, UserError):
        return "row" if split_suffixes(path)[0] in (".json", ".parquet") else "line"


@lru_cache(maxsize=1000)
def unit_of_file(path, _size, _time):
    """As `record_unit`, by the file's content. _size, _time: of the file, so that a changed file is looked at again."""
    with open(path, "rb") as file:
        return FORMATS[open_file_rows(file, path)[0]][2]
