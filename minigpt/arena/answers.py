"""Answers on their way: from a model here or elsewhere, several at once, each with its time, stopped together."""

import contextlib
import threading
import time

from minigpt.common.streams import all_ready

EVERY = 0.04  # seconds between two looks of a reader, so that a fast model's tokens do not each cost a message
PATIENCE = 0.02  # seconds that one answer may keep the others of its round waiting


class Answer:
    """One model's answer.

    name: the model's, as it is chosen; key: as votes know it; text: so far; failure: what ended it badly, or None.
    """

    def __init__(self, name, key, stream, release=lambda: None):
        self.name, self.key, self.stream, self._release = name, key, stream, release
        self.text, self.failure, self.ended, self.stopped = "", None, False, False

    def pull(self, wait):
        """Take what is ready, after `wait` seconds at most; returns whether anything changed."""
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
        """End it where it is; the model, here or elsewhere, stops too."""
        self.stopped = True
        self.stream.cancel()

    def close(self):
        """Let go of the model. Once is enough, twice does no harm."""
        if not self.ended:
            self.ended = True
            self.stream.cancel()
            self._release()

    @property
    def seconds_to_first(self):
        """From asking to the first token, None before it."""
        first = self.stream.first_token
        return None if first is None else first - self.stream.started

    @property
    def seconds(self):
        """From asking to the end, or to now."""
        return (self.stream.finished or time.perf_counter()) - self.stream.started

    @property
    def tokens(self):
        return self.stream.completion_tokens

    @property
    def rate(self):
        """Tokens a second in all, None before the first."""
        return self.tokens / self.seconds if self.tokens and self.seconds > 0 else None

    @property
    def cut(self):
        """Which limit for peers ended it, time or size; "" where none did."""
        return getattr(self.stream, "cut", "")


def follow(answers):
    """Yields at once, and when there is something new in any of the answers, until all have ended.

    Closes them, however it ends.
    """
    try:
        yield
        while not all(answer.ended for answer in answers):
            patience = EVERY if len(answers) == 1 else PATIENCE
            changed = [answer.pull(patience) for answer in answers]
            if any(changed):
                yield
                time.sleep(0 if all(answer.ended for answer in answers) else EVERY)
    finally:
        for answer in answers:
            answer.close()


class Ticket:
    """A reader's leave to have answers made, which can be withdrawn at any time, also before there is an answer.

    stopped: it has been; discarded: and nobody wants to see what there is.
    """

    def __init__(self):
        self.stopped = self.discarded = False
        self._answers, self._lock = [], threading.Lock()

    def add(self, answers):
        """These are being made by it now; stopped at once where it has been."""
        with self._lock:
            self._answers = list(answers)
        if self.stopped:
            self.stop()

    def stop(self):
        """Withdraw it: answers end where they are, and no others should be asked for."""
        self.stopped = True
        with self._lock:
            answers = list(self._answers)
        for answer in answers:
            if not answer.ended:
                answer.stop()


class Running:
    """The tickets under way, by who holds them (any hashable): one each."""

    def __init__(self):
        self._tickets, self._lock = {}, threading.Lock()

    @contextlib.contextmanager
    def ticket(self, who):
        """A new Ticket, for as long as the block runs; the one that `who` still holds is stopped."""
        ticket = Ticket()
        with self._lock:
            before, self._tickets[who] = self._tickets.get(who), ticket
        if before:
            before.stop()
        try:
            yield ticket
        finally:
            with self._lock:
                if self._tickets.get(who) is ticket:
                    del self._tickets[who]

    def stop(self, who, discard=False):
        """Stop what runs for `who`; returns whether anything did. discard: it is not to be shown any more."""
        with self._lock:
            ticket = self._tickets.get(who)
        if ticket is None:
            return False
        ticket.discarded |= discard
        ticket.stop()
        return True
