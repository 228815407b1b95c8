"""Formats that are not read: recognizing them, and how their files are converted."""

import zipfile
from pathlib import Path

from minigpt.common.errors import UserError
from minigpt.corpus.readers.compression import DAMAGE_ERRORS, open_decompressed, split_suffixes
from minigpt.corpus.readers.encodings import BYTE_ORDER_MARKS, is_binary

SNIFFED_BYTES = 4096
TAR_MARK, TAR_MARK_OFFSET = b"ustar", 257
TABLE_WAY = (
    "write its table as CSV: python -c \"import pandas; pandas.{reader}('{path}').to_csv('{path}.csv', index=False)\""
)
ARROW_WAY = (
    "write its rows as JSON: python -c \"import datasets; datasets.Dataset.from_file('{path}')"
    ".to_json('{path}.jsonl', force_ascii=False)\""
)
DUMP_WAY = "extract its articles: python -m wikiextractor.WikiExtractor --json -o extracted {path}"
SQLITE_ENTRY = (
    "a SQLite database",
    "write a table's rows as JSON: sqlite3 -json {path} 'select * from TABLE' > rows.json",
)
TEXT_WAY = "save its text as a .txt file in UTF-8"
ROWS_WAY = "write its rows as JSON, one a line"

# Suffix -> (what such a file is, how it is converted).
UNREAD_FORMATS = {
    ".xlsx": ("an Excel workbook", TABLE_WAY.replace("{reader}", "read_excel")),
    ".xls": ("an Excel workbook", TABLE_WAY.replace("{reader}", "read_excel")),
    ".ods": ("a spreadsheet", TABLE_WAY.replace("{reader}", "read_excel")),
    ".feather": ("a Feather table", TABLE_WAY.replace("{reader}", "read_feather")),
    ".h5": ("an HDF5 file", TABLE_WAY.replace("{reader}", "read_hdf")),
    ".hdf5": ("an HDF5 file", TABLE_WAY.replace("{reader}", "read_hdf")),
    ".pkl": ("a Python pickle", TABLE_WAY.replace("{reader}", "read_pickle")),
    ".pickle": ("a Python pickle", TABLE_WAY.replace("{reader}", "read_pickle")),
    ".orc": ("an ORC table", TABLE_WAY.replace("{reader}", "read_orc")),
    ".arrow": ("an Arrow file", ARROW_WAY),
    ".avro": ("an Avro file", ROWS_WAY),
    ".msgpack": ("a MessagePack file", ROWS_WAY),
    ".tfrecord": ("a TFRecord file", ROWS_WAY),
    ".npy": ("a NumPy array", ROWS_WAY),
    ".npz": ("a file of NumPy arrays", ROWS_WAY),
    ".db": SQLITE_ENTRY,
    ".sqlite": SQLITE_ENTRY,
    ".sql": ("an SQL dump", ROWS_WAY),
    ".yaml": ("a YAML file", ROWS_WAY),
    ".yml": ("a YAML file", ROWS_WAY),
    ".xml": ("XML, such as a dump of Wikipedia", DUMP_WAY),
    ".zip": ("a ZIP archive", "unpack it: unzip {path}"),
    ".7z": ("a 7z archive", "unpack it: 7z x {path}"),
    ".rar": ("a RAR archive", "unpack it: unrar x {path}"),
    ".tar": ("a tar archive", "unpack it: tar xf {path}"),
    ".tgz": ("a tar archive", "unpack it: tar xf {path}"),
    ".docx": ("a Word document", TEXT_WAY),
    ".doc": ("a Word document", TEXT_WAY),
    ".pdf": ("a PDF document", TEXT_WAY),
    ".rtf": ("an RTF document", TEXT_WAY),
    ".epub": ("an e-book", TEXT_WAY),
    ".mobi": ("an e-book", TEXT_WAY),
    ".html": ("a web page", TEXT_WAY),
    ".htm": ("a web page", TEXT_WAY),
    ".partial": ("an unfinished download", "run the same download again: it goes on from there"),
}
# First bytes -> the suffix that usually goes with them.
BINARY_MARKS = {
    b"PK\x03\x04": ".zip",
    b"PK\x05\x06": ".zip",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ".xls",
    b"ARROW1": ".arrow",
    b"\xff\xff\xff\xff": ".arrow",
    b"FEA1": ".feather",
    b"\x89HDF\r\n\x1a\n": ".h5",
    b"7z\xbc\xaf\x27\x1c": ".7z",
    b"Rar!\x1a\x07": ".rar",
    b"SQLite format 3\0": ".db",
    b"\x93NUMPY": ".npy",
    b"Obj\x01": ".avro",
    b"\x80\x02": ".pkl",
    b"\x80\x03": ".pkl",
    b"\x80\x04": ".pkl",
    b"\x80\x05": ".pkl",
    b"%PDF-": ".pdf",
    b"{\\rtf": ".rtf",
}
TEXT_MARKS = {b"<?xml": ".xml", b"<mediawiki": ".xml", b"<!doctype html": ".html", b"<html": ".html"}
TEXT_SUFFIXES = (".xml", ".html", ".htm", ".sql", ".yaml", ".yml")  # of formats that are text, not always with a mark
ROW_STARTS = (b"{", b"[", b'"', b"<doc ")
# A file of one of these suffixes has the first bytes of another: of a ZIP archive, of an old Office document.
CONTAINED = {".zip": (".xlsx", ".ods", ".docx", ".epub", ".npz"), ".xls": (".doc",)}
ZIP_FOLDERS = {"xl": ".xlsx", "word": ".docx"}


def unread_suffix(path):
    """The key of UNREAD_FORMATS that a file has by its name, or None."""
    suffix = split_suffixes(path)[0].partition("-")[0]  # Wikipedia's dumps end in such as .xml-p1p187712.bz2
    return suffix if suffix in UNREAD_FORMATS else None


def recognize_unread(path):
    """The key of UNREAD_FORMATS that a file has by its content, or by its name where that is no text; None for others.

    An unreadable or damaged file is none: reading it tells its fault.
    """
    try:
        with open(path, "rb") as file:
            head = open_decompressed(file, path).read(SNIFFED_BYTES)[:SNIFFED_BYTES]
    except DAMAGE_ERRORS:
        return None
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if any(head.startswith(mark) for mark in BYTE_ORDER_MARKS):
        text = head.replace(b"\0", b"")[2:].lstrip().lower()
    found = next((suffix for mark, suffix in BINARY_MARKS.items() if head.startswith(mark)), None)
    found = found or next((suffix for mark, suffix in TEXT_MARKS.items() if text.startswith(mark)), None)
    if head[TAR_MARK_OFFSET:].startswith(TAR_MARK):
        found = ".tar"
    by_name = unread_suffix(path)
    if found == ".zip" and by_name not in CONTAINED[".zip"]:
        return zip_content(path)
    if found:
        return by_name if by_name in CONTAINED.get(found, ()) else found
    is_other_text = by_name in TEXT_SUFFIXES and not text.startswith(ROW_STARTS)
    return by_name if is_binary(head) or is_other_text else None


def zip_content(path):
    """The key of UNREAD_FORMATS for a ZIP archive: an Office document's, or the archive's own."""
    try:
        folders = {name.partition("/")[0] for name in zipfile.ZipFile(path).namelist()}
    except (OSError, zipfile.BadZipFile):
        folders = ()
    return next((suffix for folder, suffix in ZIP_FOLDERS.items() if folder in folders), ".zip")


def unread_format(format, path):
    """(what a file of a format of UNREAD_FORMATS is, how it is converted)."""
    what, how = UNREAD_FORMATS[format]
    return what, how.format(path=Path(path).as_posix())


def unread_error(path, format):
    """The UserError about a file of a format of UNREAD_FORMATS."""
    what, how = unread_format(format, path)
    return UserError(f"{path} is {what}, which is not read; {how}")


def refuse_unread(path):
    """Raises UserError where a file has a format that is not read."""
    format = recognize_unread(path)
    if format:
        raise unread_error(path, format)
