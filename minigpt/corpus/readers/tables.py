"""Tables: Parquet, and text with a delimiter between the cells, such as CSV and TSV."""

import codecs
import collections
import csv
import io
import itertools
import os
import re

from minigpt.corpus.readers import blocks
from minigpt.corpus.readers.field_names import count_field_names

DELIMITERS = ("\t", ",", ";")
LOOKED_AT_LINES = 20  # to choose the delimiter
SEPARATOR_LINE = re.compile("sep=(.)")
TOO_LONG_LINE = blocks.TOO_LONG_MARK.decode()
ASCII_NAME = re.compile(r"[A-Za-z_][\w.-]{0,30}", re.ASCII)
NAME_MARK = re.compile(r"[_\d]")
DATA_CELL = re.compile(r"[。！？!?；，]|^[\d.]*$|.{31}")  # no name of a field
PARQUET_BLOCK_ROWS = 500  # at most


def split_parquet(_head, stream):
    """Yields (row number, Arrow's stream format, share of the file's bytes) of a Parquet file.

    A block has about BLOCK_BYTES, and PARQUET_BLOCK_ROWS at most. Raises OSError where the file is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    size = stream.seek(0, os.SEEK_END)
    try:
        table = pyarrow.parquet.ParquetFile(stream, pre_buffer=False, buffer_size=blocks.BLOCK_BYTES)
        groups = [table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)]
        row_bytes = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=1)
        batch_rows = max(1, min(PARQUET_BLOCK_ROWS, blocks.BLOCK_BYTES // max(1, row_bytes)))
        n_rows, done, counted = max(1, table.metadata.num_rows), 0, 0
        for batch in table.iter_batches(batch_size=batch_rows):
            sink = io.BytesIO()
            with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
                writer.write_batch(batch)
            until = size * (done + batch.num_rows) // n_rows
            yield done + 1, sink.getvalue(), until - counted
            done, counted = done + batch.num_rows, until
    except pyarrow.ArrowException as error:
        raise OSError(str(error)) from None


def parse_arrow(block):
    """Yields (row number, row, None) or (row number, None, reason) of each row of a Parquet file's block."""
    import pyarrow

    with pyarrow.ipc.open_stream(block.data) as stream:
        table = stream.read_all()
    try:
        rows = [(row, None) for row in table.to_pylist()]
    except (ValueError, OverflowError, LookupError, TypeError, pyarrow.ArrowException):
        rows = [parse_arrow_row(table, i) for i in range(table.num_rows)]
    for number, (row, reason) in enumerate(rows, start=block.number):
        yield number, row, reason


def parse_arrow_row(table, i):
    """(row, None) of an Arrow table's row without its unreadable values, or (None, reason) if no text is left."""
    import pyarrow

    row, unreadable = {}, []
    for name in table.column_names:
        try:
            row[name] = table.column(name)[i].as_py()
        except (ValueError, OverflowError, LookupError, TypeError, pyarrow.ArrowException):
            unreadable.append(name)
    has_text = any(isinstance(value, (str, list)) for name, value in row.items() if name not in ("id", "title", "url"))
    return (row, None) if has_text else (None, f'"{unreadable[0] if unreadable else "text"}" cannot be read')


# CSV and the like


def split_table(head, stream):
    """Yields (line number, [(line number, row, None) or (line number, None, reason)], None) of a table in text.

    Its first record names the fields, or the rows are {"columns": [cell, …]} (`has_header`). Blocks are parsed already:
    only a parser finds the ends of a table's records.
    """
    lines = read_numbered_lines(head, stream)
    first = next(lines, (1, ""))
    delimiter = stated_delimiter(first[1])
    if delimiter:
        first = next(lines, (2, ""))
    delimiter = delimiter or choose_delimiter(head)
    names, rows, n_characters = None, [], 0
    for number, cells, reason in read_records(itertools.chain([first], lines), delimiter):
        if names is None and not reason:
            names = [name.strip() for name in cells] if has_header(cells, delimiter) else ()
            if names:
                continue
        if reason:
            rows.append((number, None, reason))
        elif cells and cells != list(names or ()):  # files that were joined repeat the header
            rows.append((number, *row_of_cells(names, cells)))
            n_characters += sum(map(len, cells))
        if n_characters >= blocks.BLOCK_BYTES:
            yield rows[0][0], rows, None
            rows, n_characters = [], 0
    if rows:
        yield rows[0][0], rows, None


def read_numbered_lines(head, stream):
    """Yields (number, line with its end) of a stream's lines. Bytes that are no UTF-8 become lone surrogates."""
    for number, data, _ in blocks.split_records(head, stream, b"\n"):
        for count, line in enumerate(data.removesuffix(b"\n").split(b"\n")):
            yield number + count, line.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape") + "\n"


def stated_delimiter(line):
    """The delimiter of Excel's first line `sep=;`, or None."""
    match = SEPARATOR_LINE.fullmatch(line.strip("\r\n"))
    return match and match[1]


def choose_delimiter(head):
    """The delimiter of a table by its first lines: which separates most known names in the first of them, else which
    gives most lines as many cells as the first, else which gives most cells."""
    lines = [
        line for line in head.decode(errors="replace").split("\n", LOOKED_AT_LINES)[:LOOKED_AT_LINES] if line.strip()
    ]

    def score(delimiter):
        cells = [parse_cells(line, delimiter) or line.split(delimiter) for line in lines or [""]]
        n_alike = sum(len(others) == len(cells[0]) for others in cells) if len(cells[0]) > 1 else 0
        return count_field_names(cells[0]), n_alike, len(cells[0])

    return max(DELIMITERS, key=score)


def has_header(cells, delimiter):
    """Whether a table's first record names its fields: one name is known, or all look like names.

    With tabs, where pairs without a header are common, these are such as `sentence_a`; otherwise anything short that is
    no number and has no punctuation of a sentence.
    """
    names = [cell.strip() for cell in cells]
    if count_field_names(names):
        return True
    if delimiter == "\t":
        return all(map(ASCII_NAME.fullmatch, names)) and any(map(NAME_MARK.search, names))
    return len(set(names)) == len(names) and not any(map(DATA_CELL.search, names))


def parse_cells(text, delimiter):
    """The cells of one record, [] where it is blank, or None where a quote is not closed."""
    for strict in (True, False):
        try:
            return next(csv.reader([text], delimiter=delimiter, strict=strict), [])
        except csv.Error as error:
            if "end of data" in str(error):
                return None
    return text.split(delimiter)


def split_cells(text, delimiter):
    """The cells of a line whose quotes are characters like others."""
    return text.rstrip("\r\n").split(delimiter)


def read_records(lines, delimiter):
    """Yields (line number, cells, None) or (line number, None, reason) of each record of a table that is not blank.

    A record goes over several lines where quotes enclose a line's end. Where a quote is never closed, or what closes it
    gives another number of cells, the quotes of that line are characters like others: a stray quote costs no other
    record. So are they in every line of a table with tabs and without a header, which no program has written.
    """
    csv.field_size_limit(blocks.MAX_RECORD_BYTES)
    waiting, n_cells, may_be_long = collections.deque(), None, True
    while True:
        number, text = waiting.popleft() if waiting else next(lines, (0, ""))
        if not text:
            return
        if text.startswith(TOO_LONG_LINE):
            yield number, None, blocks.too_long_reason()
            continue
        cells = parse_cells(text, delimiter)
        if n_cells is None:
            may_be_long = delimiter != "\t" or has_header(text.split(delimiter), delimiter)
        if cells is None and not may_be_long:
            cells = split_cells(text, delimiter)
        if cells is None:
            cells, n_more, is_too_long = parse_long_record(text, waiting, lines, delimiter, n_cells)
            for _ in range(n_more):
                waiting.popleft()
            if is_too_long:
                yield number, None, blocks.too_long_reason()
                continue
        if cells and text.strip():
            n_cells = n_cells or len(cells)
            yield number, *checked_cells(cells, n_cells)


def parse_long_record(text, waiting, lines, delimiter, n_cells):
    """(cells, further lines that it takes, whether it is too long) of a record whose first line leaves a quote open.

    waiting: (number, line) that have been read ahead; more are taken from `lines`.
    """
    unquoted = split_cells(text, delimiter)
    pieces, n_characters = [text], len(text)
    for n_more in itertools.count(1):
        if n_more > len(waiting):
            following = next(lines, None)
            if following is None:
                return unquoted, 0, False
            waiting.append(following)
        line = waiting[n_more - 1][1]
        pieces.append(line)
        n_characters += len(line)
        if n_characters > blocks.MAX_RECORD_BYTES or line.startswith(TOO_LONG_LINE):
            return None, 0, True
        if f'"{delimiter}' in line or line.rstrip().endswith('"'):
            cells = parse_cells("".join(pieces), delimiter)
            if cells is not None:
                return (cells, n_more, False) if len(cells) == (n_cells or len(cells)) else (unquoted, 0, False)


def checked_cells(cells, n_cells):
    """(cells, None) of a record, or (None, reason) where they are no UTF-8, or more than the header's and not empty."""
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return None, "bad UTF-8"
    if any(cell.strip() for cell in cells[n_cells:]):
        return None, "more cells than the first line has"
    return cells[:n_cells], None


def row_of_cells(names, cells):
    """(row, None) of a record's cells. names: of the fields; empty for a table without a header."""
    return (dict(zip(names, cells, strict=False)) if names else {"columns": cells}), None
