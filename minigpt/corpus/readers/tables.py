"""Tables: Parquet and CSV."""

import csv
import io
import os

from minigpt.corpus.readers import blocks

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


def split_csv(head, stream):
    """Yields (line number, [(line number, row, None) or (line number, None, reason)], None) of a CSV file.

    Its first record names the fields. Blocks are parsed already: only a parser finds the ends of a CSV's records.
    """
    csv.field_size_limit(blocks.MAX_RECORD_BYTES)
    # Bytes that are no UTF-8 become lone surrogates.
    data_of_lines = (data for _, data, _ in blocks.split_records(head, stream, b"\n"))
    lines = (line for data in data_of_lines for line in data.splitlines(keepends=True))
    reader = csv.reader(line.decode(errors="surrogateescape") for line in lines)
    names, rows, n_characters = None, [], 0
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error:  # a cell over the limit, most likely behind a quote that is not closed
            rows.append((number, None, blocks.too_long_reason()))
            continue
        if cells is None:
            break
        if names is None:
            names = [name.strip() for name in cells]
        elif cells:
            rows.append((number, *parse_csv_record(names, cells)))
            n_characters += sum(map(len, cells))
        if n_characters >= blocks.BLOCK_BYTES:
            yield rows[0][0], rows, None
            rows, n_characters = [], 0
    if rows:
        yield rows[0][0], rows, None


def parse_csv_record(names, cells):
    """(row, None) of a record's cells, or (None, reason)."""
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return None, "bad UTF-8"
    if cells[0].startswith(blocks.TOO_LONG_MARK.decode()):
        return None, blocks.too_long_reason()
    return dict(zip(names, cells, strict=False)), None
