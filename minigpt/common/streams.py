"""Text that comes piece by piece, from a model in this process or from another machine, as its reader sees it."""

import queue
import time

END = None  # what follows a stream's last piece


class TextStream:
    """One answer: iterating gives pieces of its text, whole characters, as they are made.

    prompt_tokens, completion_tokens (EOT not counted): int. finish_reason: why it ended ("stop", "length",
    "cancelled", "error": reading raises), or None while it has not. error: the exception behind "error". started,
    first_token, finished: `time.perf_counter()` of these, or None.
    """

    def __init__(self, prompt_tokens=0):
        self.prompt_tokens, self.completion_tokens, self.finish_reason, self.error = prompt_tokens, 0, None, None
        self.started, self.first_token, self.finished = time.perf_counter(), None, None
        self._pieces = queue.SimpleQueue()

    def __iter__(self):
        while (piece := self.next_piece()) is not END:
            yield piece

    def next_piece(self, timeout=None):
        """The next piece of text, or None behind the last. Raises TimeoutError when none came within so many
        seconds, RuntimeError when the model failed."""
        try:
            piece = self._pieces.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        if piece is END:
            self._pieces.put(END)  # for whoever asks again
            if self.error:
                raise RuntimeError(f"generation failed: {self.error}") from self.error
        return piece

    def put(self, text):
        """A piece for the reader; "" is none."""
        if text:
            self._pieces.put(text)

    def finish(self, reason, error=None):
        """End the stream; the first reason counts."""
        if self.finish_reason is None:
            self.finish_reason, self.error, self.finished = reason, error, time.perf_counter()
            self._pieces.put(END)


def all_ready(stream, wait):
    """(text, whether the stream has ended): every piece that is ready, after `wait` seconds at most.

    Raises RuntimeError as `next_piece` does, once what came before has been returned.
    """
    pieces = []
    try:
        while (piece := stream.next_piece(wait)) is not END:
            pieces.append(piece)
            wait = 0
    except TimeoutError:
        return "".join(pieces), False
    except RuntimeError:
        if not pieces:
            raise
        return "".join(pieces), False
    return "".join(pieces), True
