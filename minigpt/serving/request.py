"""One request's way through the engine: a place, its streams, and their pieces until all have ended."""

import threading
import time

from minigpt.common.streams import all_ready
from minigpt.serving.errors import ApiError

# Seconds between looks at whether the client is still there.
LOOK = 0.25
# Seconds that a stream whose time is up has to end.
LAST_WORDS = 1.0
# Of several streams of one request, seconds that the first may keep the others waiting.
TURN = 0.02
# Seconds of rest after each piece, for each stream that runs: with 32 streams, so many threads that wake for every
# token would take from the engine more time than the sending. One stream alone is sent token by token.
REST = 0.001


class Places:
    """Counts the prompts under way, so that no more are taken than may run and wait.

    models: names; max_batch: prompts that a model runs at once; max_queue: prompts that may wait, of all models.
    """

    def __init__(self, models, max_batch, max_queue):
        self.max_batch, self.max_queue = max_batch, max_queue
        self.stopping = False
        self._taken = dict.fromkeys(models, 0)
        self._changed = threading.Condition()
        self._usual = 1.0  # seconds that a request takes, a moving mean

    @property
    def total(self):
        """Prompts that may be under way at once."""
        return self.max_batch * len(self._taken) + self.max_queue

    def take(self, model, count):
        """Take `count` places. Raises ApiError: 429 where the queue is full, 503 where the server is stopping."""
        with self._changed:
            if self.stopping:
                raise ApiError(503, "the server is stopping", None, "stopping", "server_error")
            after = {**self._taken, model: self._taken[model] + count}
            waiting = sum(max(0, taken - self.max_batch) for taken in after.values())
            if after[model] > self.max_batch and waiting > self.max_queue:
                raise too_busy(f"{self.max_queue} requests are waiting already", self._usual)
            self._taken = after

    def give_back(self, model, count, seconds):
        """The places of a request that took so many seconds."""
        with self._changed:
            self._taken[model] -= count
            self._usual += (seconds - self._usual) / 8
            self._changed.notify_all()

    def stop(self, seconds):
        """Take no more; wait so many seconds for those under way. Returns whether all are done."""
        with self._changed:
            self.stopping = True
            return self._changed.wait_for(lambda: not any(self._taken.values()), seconds)


def too_busy(what, seconds):
    """429 with the seconds, 1 to 30, after which to come back."""
    after = {"Retry-After": str(round(min(max(seconds, 1), 30)))}
    return ApiError(429, f"{what}; try again later", None, "rate_limit_exceeded", "rate_limit_exceeded", after)


class ClientGone(Exception):
    """Nobody is there to answer."""


class Work:
    """The streams of one request.

    service: what the app shares (places, counters, the seconds a request may take); model: a name;
    prompts: text or ids each; gone(): whether the client has left. `close()` must be called in the end, and may be
    called twice.
    """

    def __init__(self, service, model, prompts, params, gone):
        """Takes places and submits the prompts. Raises ApiError where there is none."""
        self._service, self._model, self._gone = service, model, gone
        self._generator = service.models[model]
        self.started = time.monotonic()
        self._deadline = self.started + service.request_seconds
        self._places, self.streams, self._closed = len(prompts), [], False
        self._first, self._first_at, self._late = [], None, False
        service.places.take(model, self._places)
        try:
            for prompt in prompts:
                self.streams.append(self._generator.submit(prompt, params))
        except BaseException:
            self.close()
            raise
        self._turns = self._all_turns()

    def wait_for_first(self):
        """Wait until there is something to send. Raises ClientGone; ApiError (429) where no place came free."""
        self._first = next(self._turns, [])
        if self._late and not self.completion_tokens:
            raise too_busy("no place came free in time", self._service.request_seconds / 2)
        self._first_at = time.monotonic()
        self._service.counters.first_token(self._model, self._first_at - self.started)

    def turns(self):
        """Yields lists of (index, text, finish_reason or None), as there is something new. Raises ClientGone,
        and RuntimeError where the engine failed."""
        yield self._first
        yield from self._turns

    def texts(self):
        """(texts, finish reasons), once all are done."""
        texts, reasons = [""] * len(self.streams), [None] * len(self.streams)
        for turn in self.turns():
            for i, text, reason in turn:
                texts[i] += text
                reasons[i] = reason
        return texts, reasons

    def close(self):
        """Give everything back; a stream that still runs is cancelled."""
        if self._closed:
            return
        self._closed = True
        for stream in self.streams:
            stream.cancel()
        now = time.monotonic()
        self._service.places.give_back(self._model, self._places, now - self.started)
        self._service.counters.request_done(
            self._model, self.streams, now - self.started, now - (self._first_at or now)
        )

    @property
    def prompt_tokens(self):
        return sum(stream.prompt_tokens for stream in self.streams)

    @property
    def completion_tokens(self):
        return sum(stream.completion_tokens for stream in self.streams)

    @property
    def prompt_cut(self):
        """Whether the start of a prompt was cut off."""
        return any(stream.prompt_cut for stream in self.streams)

    def _all_turns(self):
        live = dict(enumerate(self.streams))
        while live:
            if self._gone():
                raise ClientGone
            left = self._deadline - time.monotonic()
            if left <= 0:  # it ends with what it has
                self._late = True
                for stream in live.values():
                    stream.cancel()
                yield [(i, all_ready(stream, LAST_WORDS)[0], "length") for i, stream in live.items()]
                return
            wait, turn = min(left, LOOK if len(live) == 1 else TURN), []
            for i, stream in list(live.items()):
                text, ended = all_ready(stream, wait)
                wait = 0
                if ended:
                    del live[i]
                if text or ended:
                    # Only a server that stops cancels what a client still waits for: the answer is cut, as by length.
                    reason = stream.finish_reason if stream.finish_reason != "cancelled" else "length"
                    turn.append((i, text, reason if ended else None))
            if turn:
                yield turn
                if live:
                    time.sleep(REST * self._generator.running)
