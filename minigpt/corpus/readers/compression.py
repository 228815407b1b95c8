"""Compressed files: the suffixes that name them, the first bytes that tell them, and their decompressed bytes."""

import bz2
import lzma
import re
import zlib
from pathlib import Path

import zstandard

from minigpt.corpus.readers.encodings import is_binary

COMPRESSED_CHUNK_BYTES = 256  # decompressed at once; a few bytes may become thousands of times as many
MAGIC_BYTES = 512  # that are looked at
DAMAGE_ERRORS = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
# Suffix -> (the first bytes of such a file, what decompresses it).
COMPRESSIONS = {
    ".gz": (re.compile(rb"\x1f\x8b"), lambda: zlib.decompressobj(wbits=31)),
    ".bz2": (re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), bz2.BZ2Decompressor),
    ".xz": (re.compile(rb"\xfd7zXZ\0"), lzma.LZMADecompressor),
    ".zst": (
        re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
        lambda: zstandard.ZstdDecompressor().decompressobj(),
    ),
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


def open_decompressed(file, path):
    """The stream of an open file's decompressed bytes; the file itself where its first bytes tell no compression.

    A name that promises a compression is believed only where the file's bytes are no text: they are then damaged.
    """
    head = file.peek(MAGIC_BYTES)[:MAGIC_BYTES]
    compression = next((suffix for suffix, (magic, _) in COMPRESSIONS.items() if magic.match(head)), "")
    if not compression and is_binary(head):
        compression = split_suffixes(path)[1]
    return DecompressedStream(file, COMPRESSIONS[compression][1]) if compression else file


def split_suffixes(path):
    """(suffix, compression) of a file's name in lower case, such as (".jsonl", ".gz"); "" for what it lacks."""
    name = Path(path).name.lower()
    compression = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    return Path(name.removesuffix(compression)).suffix, compression
