"""A stream of text, from a model in this process or on another machine, as its reader sees it."""

import queue
import threading
import time

END = None  # marks the end of a stream


class TextStream:
    """One answer. Iterating yields pieces of its text (whole characters) as they are generated.

    prompt_tokens, completion_tokens: int, without EOT. finish_reason: "stop", "length", "cancelled", "error" (then
    reading raises), or None until the stream ends. error: the exception if finish_reason is "error". started,
    first_token, finished: `time.perf_counter()` of these events, or None.
    """

    def __init__(self, prompt_tokens=0):
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = 0
        self.finish_reason = None
        self.error = None
        self.started = time.perf_counter()
        self.first_token = None
        self.finished = None
        self._pieces = queue.SimpleQueue()
        self._finish_lock = threading.Lock()
        self._ended = threading.Event()

    def __iter__(self):
        while (piece := self.next_piece()) is not END:
            yield piece

    def next_piece(self, timeout=None):
        """The next piece of text, or None after the last. Raises TimeoutError if none comes within `timeout` seconds,
        RuntimeError if the model failed."""
        try:
            piece = self._pieces.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        if piece is END:
            self._pieces.put(END)  # for further calls
            if self.error:
                raise RuntimeError(f"generation failed: {self.error}") from self.error
        return piece

    @property
    def is_ready(self):
        """Whether `next_piece` returns without waiting."""
        return not self._pieces.empty()

    def wait_for_end(self, seconds):
        """Wait until the stream ends, up to `seconds`."""
        self._ended.wait(seconds)

    def put(self, text):
        """Add a piece of text; "" is ignored."""
        if text:
            self._pieces.put(text)

    def finish(self, reason, error=None):
        """End the stream; the first reason is kept."""
        with self._finish_lock:
            if self.finish_reason is None:
                self.error = error
                self.finished = time.perf_counter()
                self.finish_reason = reason
                self._pieces.put(END)
                self._ended.set()


def all_ready(stream, wait):
    """(text, whether the stream has ended): all pieces that are ready. Waits up to `wait` seconds for the first one.

    Raises RuntimeError as `next_piece` does, after the pieces before it have been returned.
    """
    pieces = []
    try:
        while (piece := stream.next_piece(wait)) is not END:
            pieces.append(piece)
            if not stream.is_ready:
                return "".join(pieces), False
    except TimeoutError:
        return "".join(pieces), False
    except RuntimeError:
        if not pieces:
            raise
        return "".join(pieces), False
    return "".join(pieces), True
