"""Answers on their way: from a model here or elsewhere, several at once, each with its time, stopped together."""

import threading
import time
from collections import defaultdict

from streams import all_ready

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
    """Yields when there is something new in any of the answers, until all have ended. Closes them, however it ends."""
    try:
        while not all(answer.ended for answer in answers):
            patience = EVERY if len(answers) == 1 else PATIENCE
            changed = [answer.pull(patience) for answer in answers]
            if any(changed):
                yield
                time.sleep(0 if all(answer.ended for answer in answers) else EVERY)
    finally:
        for answer in answers:
            answer.close()


class Running:
    """The answers under way, by who waits for them (any hashable), so that these can be stopped."""

    def __init__(self):
        self._answers, self._lock = defaultdict(list), threading.Lock()

    def add(self, who, answers):
        """Answers that belong to `who` from now on; earlier ones that still run are stopped."""
        self.stop(who)
        with self._lock:
            self._answers[who] = list(answers)

    def stop(self, who):
        """Stop all of them; returns how many were running."""
        with self._lock:
            answers = self._answers.pop(who, [])
        running = [answer for answer in answers if not answer.ended]
        for answer in running:
            answer.stop()
        return len(running)

    def forget(self, who, answers):
        """These have ended."""
        with self._lock:
            left = [answer for answer in self._answers.get(who, []) if answer not in answers]
            if left:
                self._answers[who] = left
            else:
                self._answers.pop(who, None)
