"""JSON arrays of any size: no parser of whole files reads them within bounds, or goes on behind a broken element."""

import re

STRUCTURE = re.compile(rb'["{}\[\],]')
# The rest of a string. A newline ends it too: JSON allows none in a string, so its closing quote is missing.
STRING_REST = re.compile(rb'[^"\\\n]*+(?:\\.[^"\\\n]*+)*+(["\n])', re.DOTALL)
BETWEEN_ROWS = re.compile(rb"(?<=\})\s*,\s*(?=\{)")


class ArrayScanner:
    """Cuts the bytes of a JSON array into its elements, as they come.

    Where an object stands that JSON does not allow there, a quote or brace before it is missing: it is a new element.
    One of more than `most` bytes becomes `too_long`.
    """

    def __init__(self, most, too_long):
        self.most, self.mark_too_long = most, too_long
        self.buffer, self.start, self.position = b"", 0, 0
        self.open = []  # the brackets that are open
        self.in_string, self.broken, self.too_long = False, False, False
        self.found = []

    def feed(self, chunk):
        """The elements that end in this chunk, each on one line."""
        self.buffer, self.position = self.buffer[self.start :] + chunk, self.position - self.start
        self.start = 0
        while self._step():
            pass
        if len(self.buffer) - self.start > self.most:
            # Either rows that a missing quote has swallowed, which can be told apart again, or one endless row.
            boundaries = [match.span() for match in BETWEEN_ROWS.finditer(self.buffer, self.start)]
            if boundaries:  # begin again at the last one
                end, self.position = boundaries[-1]
                self._end_element(end)
                self.start = self.position
                self.open, self.in_string = [b"["], False
            else:
                self.start, self.too_long = len(self.buffer), True
                self.position = max(self.position, self.start)
        found, self.found = self.found, []
        return found

    def rest(self):
        """What stands behind the last element that ended: an array that is cut off."""
        self._end_element(len(self.buffer))
        return self.found

    def _step(self):
        if self.in_string:
            match = STRING_REST.match(self.buffer, self.position)
            if match:
                self.in_string, self.position = False, match.end()
                self.broken |= match[1] == b"\n"
            return match is not None
        match = STRUCTURE.search(self.buffer, self.position)
        if not match:
            self.position = len(self.buffer)
            return False
        self.position = match.end()
        self._take(match[0], match.start())
        return True

    def _take(self, mark, at):
        if mark == b'"':
            self.in_string = True
        elif mark == b"," and len(self.open) == 1:
            self._end_element(at)
        elif mark == b"{" and self._is_misplaced(at):
            self._end_element(at)
            self.start, self.open = at, [b"[", b"{"]
        elif mark in b"{[":
            self.open.append(mark)
            if len(self.open) == 1:
                self.start = self.position
        elif mark == b"]" and len(self.open) == 1:
            self._end_element(at)
            self.open = []
        elif mark in b"}]" and len(self.open) > 1:
            self.open.pop()

    def _is_misplaced(self, at):
        """Whether an object that starts here stands in another one where a key must: a quote or brace is missing."""
        before = self.buffer[self.start : at].rstrip(b" \t\r\n")[-1:]
        return len(self.open) > 1 and self.open[-1] == b"{" and (before == b"," or self.broken)

    def _end_element(self, at):
        element = self.buffer[self.start : at].strip(b", \t\r\n") if self.open else b""
        if element or self.too_long:
            self.found.append(self.mark_too_long if self.too_long else element.replace(b"\n", b"\r"))
        self.start, self.broken, self.too_long = at + 1, False, False


def array_blocks(chunks, most, too_long):
    """Yields (row number, lines of an element each) of a JSON array that comes in chunks of bytes."""
    scanner, number = ArrayScanner(most, too_long), 1
    for chunk in chunks:
        if elements := scanner.feed(chunk):
            yield number, b"\n".join(elements)
            number += len(elements)
    if elements := scanner.rest():
        yield number, b"\n".join(elements)
