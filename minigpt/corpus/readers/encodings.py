"""Text of any encoding becomes UTF-8 without a byte order mark at its head, before its format is looked at.

An encoding is forced, or told by a byte order mark, or guessed from the first block that is not all ASCII: GB18030
where over half of the lines that are not ASCII are lines of GB18030 (`is_gb18030_line`), and UTF-8 otherwise. In a file
that is read as GB18030, lines of UTF-8 are still read as UTF-8.
"""

import codecs
import re
import sys
from functools import cache

from tqdm import tqdm

from minigpt.common.errors import UserError
from minigpt.corpus.readers import blocks

BYTE_ORDER_MARKS = {  # UTF-32's before UTF-16's, which begins alike
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
# UTF-8 needs three bytes from here on. GB18030's text that is also valid UTF-8 by chance has hardly such characters.
THREE_BYTE_CHARACTER = re.compile("[\u0800-\U0010ffff]")
CONTROL_BYTE = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")
NOT_ASCII = re.compile(r"[^\0-\x7f]")
COMMON_SHARE = 1 / 3  # of a Chinese text's characters that are not ASCII, at least; nearly all in simplified characters
BAD_BYTE = "\udcff"  # stands for bytes that cannot be decoded; becomes a byte that is no UTF-8
BAD_BYTES = "minigpt.bad_bytes"
codecs.register_error(BAD_BYTES, lambda error: (BAD_BYTE, error.end))
printed_notes = set()


def print_note(line):
    """Prints a line to stderr, once in this process, also where a progress bar is shown."""
    if line not in printed_notes:
        printed_notes.add(line)
        tqdm.write(f"note: {line}", file=sys.stderr)


@cache
def common_characters():
    """GB2312's symbols, full-width letters and 3,755 common characters: nearly all characters of a Chinese text."""
    rows = [*range(0xA1, 0xA4), *range(0xB0, 0xD8)]
    return frozenset(
        "".join(bytes([row, cell]).decode("gb2312", "ignore") for row in rows for cell in range(0xA1, 255))
    )


def check_encoding(encoding):
    """Raises UserError where Python knows no text encoding of that name. "" is none that is forced."""
    try:
        codecs.getincrementaldecoder(encoding or "utf-8")
        "a".encode(encoding or "utf-8")
    except (LookupError, ValueError):
        raise UserError(
            f"encoding is {encoding!r}, which Python does not know; give its name for one, such as utf-8, gb18030, "
            "utf-16 or big5, or leave it empty"
        ) from None


def is_binary(head):
    """Whether a file's first bytes are no text: they have control characters, and no mark tells UTF-16."""
    return bool(CONTROL_BYTE.search(head)) and not head.startswith(tuple(BYTE_ORDER_MARKS))


def decode_utf8(data):
    """The text of bytes that may end inside a character, or None where they are no UTF-8."""
    try:
        return codecs.utf_8_decode(data, "strict", False)[0]
    except UnicodeDecodeError:
        return None


def is_gb18030_line(line):
    """Whether bytes are no UTF-8 but GB18030, by decoding them and by how many of their characters are common."""
    if decode_utf8(line) is not None:
        return False
    try:
        text = codecs.getincrementaldecoder("gb18030")().decode(line)
    except UnicodeDecodeError:
        return False
    characters = NOT_ASCII.findall(text)
    return sum(c in common_characters() for c in characters) >= COMMON_SHARE * len(characters)


def guess_encoding(data):
    """ "utf-8" or "gb18030", by the lines of a file's first bytes that are not all ASCII."""
    if decode_utf8(data) is not None:
        return "utf-8"
    whole_lines = data[: data.rfind(b"\n") + 1] or data
    lines = [line for line in whole_lines.split(b"\n") if not line.isascii()]
    return "gb18030" if 2 * sum(map(is_gb18030_line, lines)) > len(lines) else "utf-8"


def gb18030_line_to_utf8(line):
    """A line of a file of GB18030 as UTF-8. A line that is UTF-8 already stays as it is."""
    text = None if line.isascii() else decode_utf8(line)
    if line.isascii() or (text and THREE_BYTE_CHARACTER.search(text)):
        return line
    return line.decode("gb18030", BAD_BYTES).encode(errors="surrogateescape")


class Utf8Stream:
    """A stream's text as UTF-8. Bytes that cannot be decoded stay no UTF-8, so that only their record is lost.

    encoding: of the bytes; None until it is known, which is at the latest when a byte that is not ASCII was read.
    at_end: whether all bytes have been read.
    """

    def __init__(self, stream, encoding=""):
        check_encoding(encoding)
        self.encoding = codecs.lookup(encoding).name if encoding else None
        self._stream = stream
        self._decoder = (
            codecs.getincrementaldecoder(encoding)(BAD_BYTES) if self.encoding not in (None, "utf-8") else None
        )
        self._kept = b""  # the beginning of a line of GB18030
        self._at_head, self.at_end = True, False

    def read(self, size):
        """About `size` bytes; b"" at the end. Raises what the stream raises."""
        data = b""
        while not data and not self.at_end:
            chunk = self._stream.read(size)
            self.at_end = len(chunk) < size  # of a damaged stream: up to the damage, which the next read raises
            if self._at_head and not self.encoding:
                chunk = self._skip_byte_order_mark(chunk)
            data = self._to_utf8(chunk)
            if self._at_head and data:
                data, self._at_head = data.removeprefix(codecs.BOM_UTF8), False
        if not data:
            self._stream.read(size)
        return data

    def _skip_byte_order_mark(self, chunk):
        for mark, encoding in BYTE_ORDER_MARKS.items():
            if chunk.startswith(mark):
                self.encoding, self._decoder = encoding, codecs.getincrementaldecoder(encoding)(BAD_BYTES)
                return chunk.removeprefix(mark)
        return chunk.removeprefix(codecs.BOM_UTF8)

    def _to_utf8(self, chunk):
        if not self.encoding and not chunk.isascii():
            self.encoding = guess_encoding(chunk)
        if self._decoder:
            return self._decoder.decode(chunk, final=self.at_end).encode(errors="surrogateescape")
        return self._gb18030_to_utf8(chunk) if self.encoding == "gb18030" else chunk

    def _gb18030_to_utf8(self, chunk):
        data = self._kept + chunk
        end = len(data) if self.at_end else data.rfind(b"\n") + 1
        if not end and len(data) > 2 * blocks.BLOCK_BYTES:  # a line of any length is not held in memory
            decoder = codecs.getincrementaldecoder("gb18030")(BAD_BYTES)
            text = decoder.decode(data)
            self._kept = decoder.getstate()[0]
            return text.encode(errors="surrogateescape")
        data, self._kept = data[:end], data[end:]
        return b"".join(map(gb18030_line_to_utf8, data.splitlines(keepends=True)))
