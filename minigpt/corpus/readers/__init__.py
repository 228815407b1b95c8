"""Rows of every input format, whatever the file's size: a module for each kind of format.

    blocks.py     what all formats share: blocks of whole records
    files.py      finding files, and decompressing them
    json_rows.py  a JSON object per line, JSON arrays
    documents.py  wikiextractor's <doc>s, plain text
    tables.py     Parquet, CSV
    rows.py       which format a file has; file -> blocks -> rows

A new format is a pair of functions, one that splits a stream into blocks and one that parses a block, and an entry of
`rows.FORMATS`.
"""
