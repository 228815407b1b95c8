"""Answers while they are generated, by local or remote models: several at once, timed, and cancelled together."""

import contextlib
import threading
import time

from minigpt.common.streams import all_ready

UPDATE_SECONDS = 0.04  # least time between two updates, so that a fast model does not send a message for each token
POLL_SECONDS = 0.02  # longest wait for one of several answers, before the next one is polled


class ModelAnswer:
    """One model's answer to one prompt.

    name: the model's name in the lists; key: its name in votes; text: what has been generated so far; failure: the
    exception that ended it, or None; ended: nothing more will come; stopped: a reader cancelled it.
    """

    def __init__(self, name, key, stream, release=lambda: None):
        self.name, self.key, self.stream, self._release = name, key, stream, release
        self.text, self.failure = "", None
        self.ended = self.stopped = False

    def pull(self, wait):
        """Append the text that is ready, after `wait` seconds at most. Returns whether anything changed."""
        if self.ended:
            return False
        try:
            text, ended = all_ready(self.stream, wait)
        except RuntimeError as error:
            text, ended, self.failure = "", True, self.stream.error or error
        self.text += text
        if ended:
            self.close()
        return bool(text) or ended

    def stop(self):
        """Cancel the generation, here or on the remote server. The text so far stays."""
        self.stopped = True
        self.stream.cancel()

    def close(self):
        """Cancel the stream and release the model. May be called more than once."""
        if not self.ended:
            self.ended = True
            self.stream.cancel()
            self._release()

    @property
    def seconds_to_first(self):
        """Seconds from the request to the first token; None before it."""
        first = self.stream.first_token
        return None if first is None else first - self.stream.started

    @property
    def seconds(self):
        """Seconds from the request to the end, or to now."""
        return (self.stream.finished or time.perf_counter()) - self.stream.started

    @property
    def tokens(self):
        """Tokens generated so far."""
        return self.stream.completion_tokens

    @property
    def rate(self):
        """Tokens per second of the whole answer; None before the first token."""
        return self.tokens / self.seconds if self.tokens and self.seconds > 0 else None

    @property
    def cut(self):
        """The limit for remote models that ended the answer, "time" or "size"; "" if none did."""
        return getattr(self.stream, "cut", "")


def follow_answers(answers):
    """Yield at once, and then after each change of any of the answers, until all have ended.

    Closes all answers when the loop ends, whether it was finished, broken off or failed.
    """
    try:
        yield
        while not all(answer.ended for answer in answers):
            wait = UPDATE_SECONDS if len(answers) == 1 else POLL_SECONDS
            changed = [answer.pull(wait) for answer in answers]
            if any(changed):
                yield
                time.sleep(0 if all(answer.ended for answer in answers) else UPDATE_SECONDS)
    finally:
        for answer in answers:
            answer.close()


class CancelToken:
    """Cancellation token of one visitor's request. It may be cancelled before its answers exist.

    stopped: it was cancelled; discarded: the text so far is not to be shown either.
    """

    def __init__(self):
        self.stopped = self.discarded = False
        self._answers = []

    def add(self, answers):
        """Set the answers that the request waits for. They are stopped at once if the token is already cancelled."""
        self._answers = answers
        if self.stopped:  # `stop` may have run before the answers were set
            self.stop()

    def stop(self):
        """Cancel the request: its answers end where they are, and the caller asks for no more."""
        self.stopped = True
        for answer in self._answers:
            if not answer.ended:
                answer.stop()


class RunningRequests:
    """The CancelToken of each visitor's current request. A visitor is any hashable value, and has one at a time."""

    def __init__(self):
        self._tokens, self._lock = {}, threading.Lock()

    @contextlib.contextmanager
    def open_token(self, visitor):
        """A new CancelToken for the duration of the block. Stops the visitor's previous request."""
        token = CancelToken()
        with self._lock:
            previous, self._tokens[visitor] = self._tokens.get(visitor), token
        if previous:
            previous.stop()
        try:
            yield token
        finally:
            with self._lock:
                if self._tokens.get(visitor) is token:
                    del self._tokens[visitor]

    def stop(self, visitor, discard=False):
        """Stop the visitor's request; returns whether there was one. discard: its text is not to be shown."""
        with self._lock:
            token = self._tokens.get(visitor)
        if token is None:
            return False
        token.discarded |= discard
        token.stop()
        return True
