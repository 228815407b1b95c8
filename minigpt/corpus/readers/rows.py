"""From a file to its rows: which format it has, its blocks, and what a block holds.

A record that cannot be read gives a reason and costs no other record.
"""

import os
from functools import partial

from minigpt.common.errors import UserError, first_line
from minigpt.corpus.readers import blocks, documents, json_rows, tables
from minigpt.corpus.readers.blocks import FileBlock
from minigpt.corpus.readers.files import DAMAGE_ERRORS, TEXT_SUFFIX, decompress_file, split_suffixes

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


split_lines = partial(blocks.split_records, end=b"\n")
# How a format is read: (split, parse).
#   split  (head, stream) -> yields (number of the first record, data of whole records, bytes of the file or None where
#          they are those that were read from it); head: the first bytes, which have been read from the stream
#   parse  `FileBlock` -> yields (number, row, None) or (number, None, reason)
FORMATS = {
    "lines": (split_lines, json_rows.parse_json_lines),
    "array": (json_rows.split_json_array, json_rows.parse_json_lines),
    "docs": (documents.split_docs, documents.parse_docs),
    "paragraphs": (documents.split_paragraphs, documents.parse_paragraphs),
    "text_lines": (split_lines, documents.parse_text_lines),
    "parquet": (tables.split_parquet, tables.parse_arrow),
    "parsed": (tables.split_csv, lambda block: iter(block.data)),
}


def detect_format(path, head, one_per_line=False):
    """The key of FORMATS for a file, by its suffix and its first bytes. one_per_line: of `.txt`, a text is a line."""
    suffix, _ = split_suffixes(path)
    start = head.lstrip()[:5]
    if suffix == ".parquet":
        return "parquet"
    if suffix == ".csv":
        return "parsed"
    if suffix == TEXT_SUFFIX:
        return "paragraphs" if documents.blank_line(head) and not one_per_line else "text_lines"
    if suffix == ".json" and start.startswith(b"["):
        return "array"
    if start == b"<doc " or (not suffix and b"\n<doc " in head and not start.startswith(b"{")):
        return "docs"
    return "lines"


def read_blocks(path, one_per_line=False, encoding=""):
    """Yields every `FileBlock` of a file, in order. Raises UserError where the file may not be read.

    one_per_line: each line of a `.txt` file is a text; otherwise blank lines separate texts where the file has some.
    """
    if not os.path.isfile(path):
        yield FileBlock(path, "parsed", 1, [(1, None, "the file is gone")], 0)
        return
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} cannot be read; see to its permissions")
    number, n_read = 1, 0
    try:
        with open(path, "rb") as file:
            stream = decompress_file(file, path)
            head = stream.read(blocks.BLOCK_BYTES).removeprefix(BYTE_ORDER_MARK)
            name = detect_format(path, head, one_per_line)
            for number, data, n_bytes in FORMATS[name][0](head, stream):
                if n_bytes is None:
                    n_bytes = file.tell() - n_read
                n_read += n_bytes
                yield FileBlock(path, name, number, data, n_bytes)
            if file.tell() > n_read:  # the end of a compressed file
                yield FileBlock(path, "parsed", number, [], file.tell() - n_read)
    except DAMAGE_ERRORS as error:
        reason = f"the file is damaged from here on ({first_line(error)})"
        yield FileBlock(path, "parsed", number, [(number, None, reason)], 0)


def parse_block(block):
    """Yields (number, row, None) or (number, None, reason) of each record of a `FileBlock`."""
    return FORMATS[block.format][1](block)
