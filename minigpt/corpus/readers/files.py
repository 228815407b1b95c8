"""Input files: finding them, what their names say about their format, and decompressing them."""

import bz2
import lzma
import os
import zlib
from pathlib import Path

import zstandard

from minigpt.common.errors import UserError

COMPRESSED_CHUNK_BYTES = 256  # decompressed at once; a few bytes may become thousands of times as many
ROW_SUFFIXES = (".jsonl", ".json", ".parquet", "")  # that are found in folders; "": wikiextractor's files
TEXT_SUFFIX = ".txt"
NUMBERED_BY_ROW = (".json", ".parquet")
DAMAGE_ERRORS = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
COMPRESSIONS = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
}


class DecompressedStream:
    """The decompressed bytes of a file that holds one compressed stream, or several in a row.

    Bytes that come before damage are returned before the error is raised.
    """

    def __init__(self, file, new_decompressor):
        self._file, self._new_decompressor = file, new_decompressor
        self._decompressor, self._error = None, None

    def read(self, size):
        """About `size` bytes; b"" at the end. Raises one of DAMAGE_ERRORS: EOFError where the end is missing."""
        pieces, n_bytes = [], 0
        while n_bytes < size and not self._error:
            chunk = self._file.read(COMPRESSED_CHUNK_BYTES)
            if not chunk:
                self._error = EOFError("it ends in the middle") if self._decompressor else None
                break
            try:
                for data in self._decompress(chunk):
                    pieces.append(data)
                    n_bytes += len(data)
            except DAMAGE_ERRORS as error:
                self._error = error
        if self._error and not n_bytes:
            raise self._error
        return b"".join(pieces)

    def _decompress(self, chunk):
        while chunk:
            if not self._decompressor:
                chunk = chunk.lstrip(b"\0")  # some programs pad the last block of a tape with zeros
                if not chunk:
                    return
                self._decompressor = self._new_decompressor()
            yield self._decompressor.decompress(chunk)
            chunk = b""
            if self._decompressor.eof:
                chunk, self._decompressor = self._decompressor.unused_data, None


def decompress_file(file, path):
    """The stream of the decompressed bytes of an open file, by the suffix of its path; the file if it has none."""
    compression = split_suffixes(path)[1]
    return DecompressedStream(file, COMPRESSIONS[compression]) if compression else file


def split_suffixes(path):
    """(suffix, compression) of a file's name in lower case, such as (".jsonl", ".gz"); "" for what it lacks."""
    name = Path(path).name.lower()
    compression = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    return Path(name.removesuffix(compression)).suffix, compression


def record_unit(path):
    """What the records of a file are counted in: "line" or "row"."""
    return "row" if split_suffixes(path)[0] in NUMBERED_BY_ROW else "line"


def is_row_file(name, plain_text=False):
    """Whether a file that is found in a folder is read, by its name. plain_text: whether `.txt` files are."""
    suffix, compression = split_suffixes(name)
    if str(name).endswith(".partial.json"):  # what a download notes beside an unfinished file
        return False
    if suffix == TEXT_SUFFIX:
        return plain_text
    return suffix in ROW_SUFFIXES and not (suffix == ".parquet" and compression)


def find_files(folders, setting="input_dir", plain_text=False, leave_out=""):
    """Sorted paths of all row files in folders (any depth), and of the files that are named directly.

    In folders, files that end in `.jsonl`, `.json` or `.parquet` or have no suffix (wikiextractor's) are found; all
    but Parquet may be compressed (`.gz .bz2 .xz .zst`). plain_text: `.txt` files too. leave_out: a folder to skip.
    Raises UserError when a folder does not exist, or no file is found; `setting` is the setting that named them.
    """
    if not any(folders):
        raise UserError(f"{setting} is empty; name your folder of articles with --{setting}=…")
    found, left_out = [], leave_out and os.path.abspath(leave_out)
    for folder in folders:
        if not os.path.exists(folder):
            raise UserError(f"input {folder} is not there; name your folder of articles with --{setting}=…")
        if os.path.isfile(folder):
            found.append(folder)
        for root, inner, names in os.walk(folder):
            # Hidden files (.DS_Store) and folders (.git) hold no articles. Pipes and dangling links are no files.
            inner[:] = [n for n in inner if not n.startswith(".") and os.path.abspath(f"{root}/{n}") != left_out]
            paths = [os.path.join(root, n) for n in names if not n.startswith(".") and is_row_file(n, plain_text)]
            found += filter(os.path.isfile, paths)
    if not found:
        raise UserError(
            f"no .jsonl, .json or .parquet file in {', '.join(map(str, folders))}; "
            'a row is {"id", "title", "text"}, compressed or not (.gz .bz2 .xz .zst)'
        )
    return sorted(dict.fromkeys(Path(f).as_posix() for f in found))
