"""Admission of requests, and one admitted request with its streams of text."""

import threading
import time

from minigpt.common.streams import all_ready
from minigpt.serving.errors import ApiError

# How often a request checks that its client is still connected.
CLIENT_POLL_SECONDS = 0.25
# How long a stream may take to end after it has been cancelled at its deadline.
CANCEL_WAIT_SECONDS = 1.0
# How long a request with several streams waits for the first of them before it looks at the others.
MAX_STREAM_WAIT_SECONDS = 0.02
# Pause between two updates of a request, for each further stream that the models run. An update wakes a thread here and
# one of the client, which takes more processor time than its tokens do.
PAUSE_SECONDS_PER_STREAM = 0.004
MAX_PAUSE_SECONDS = 0.04  # 25 updates a second look like a steady flow


class Admission:
    """Counts the prompts that run or wait, and admits no more than the limits allow.

    models: names; max_batch: prompts that one model runs at once; max_queue: prompts that may wait, over all models.
    """

    def __init__(self, models, max_batch, max_queue):
        self.max_batch = max_batch
        self.max_queue = max_queue
        self.stopping = False
        self._admitted = dict.fromkeys(models, 0)
        self._changed = threading.Condition()
        self._mean_seconds = 1.0  # of a request, a moving mean

    @property
    def capacity(self):
        """Number of prompts that may run or wait at once."""
        return self.max_batch * len(self._admitted) + self.max_queue

    def admit(self, model, count):
        """Admit `count` prompts. Raises ApiError: 429 if the queue is full, 503 if the server is stopping."""
        with self._changed:
            if self.stopping:
                raise ApiError(503, "the server is stopping", None, "stopping", "server_error")
            after = {**self._admitted, model: self._admitted[model] + count}
            waiting = sum(max(0, admitted - self.max_batch) for admitted in after.values())
            if after[model] > self.max_batch and waiting > self.max_queue:
                raise too_many_requests(f"the queue is full ({self.max_queue} prompts)", self._mean_seconds)
            self._admitted = after

    def release(self, model, count, seconds):
        """Release the `count` prompts of a request that took `seconds`."""
        with self._changed:
            self._admitted[model] -= count
            self._mean_seconds += (seconds - self._mean_seconds) / 8
            self._changed.notify_all()

    def stop(self, seconds):
        """Admit no more; wait up to `seconds` for the admitted prompts. Returns whether all have ended."""
        with self._changed:
            self.stopping = True
            return self._changed.wait_for(lambda: not any(self._admitted.values()), seconds)


def too_many_requests(reason, seconds):
    """The ApiError for 429. Its Retry-After is `seconds`, limited to 1 to 30."""
    headers = {"Retry-After": str(round(min(max(seconds, 1), 30)))}
    return ApiError(429, f"{reason}; try again later", None, "rate_limit_exceeded", "rate_limit_exceeded", headers)


def pause_seconds(running):
    """Seconds between two updates of a request while the models run so many streams.

    A single stream is sent token by token. Of several, an update has the tokens of several steps, so that sending takes
    little of the processor from the model. The first update is not delayed, nor is the end of a request's only stream.
    """
    return min(MAX_PAUSE_SECONDS, PAUSE_SECONDS_PER_STREAM * max(0, running - 1))


class ClientGone(Exception):
    """The client has disconnected."""


class RunningRequest:
    """An admitted request and its streams. `close()` must be called at the end; a second call is safe.

    service: the `Service` that all requests share; model: a name; prompts: each text or a list of ids; params: the
    SamplingParams of each choice, of which every prompt has as many; client_gone(): whether the client has
    disconnected. The streams have the order of OpenAI's choices: the first prompt's come first.
    """

    def __init__(self, service, model, prompts, params, client_gone):
        """Submits the prompts to the model. Raises ApiError if they are not admitted."""
        self._service = service
        self._model = model
        self._client_gone = client_gone
        self._generator = service.models[model]
        self.started = time.monotonic()
        self._deadline = self.started + service.request_seconds
        self._n_choices = len(params)
        self._n_streams = len(prompts) * len(params)
        self.streams = []
        self._closed = False
        self._first_update = []
        self._first_update_at = None
        self._timed_out = False
        self._sends_parts = True
        service.admission.admit(model, self._n_streams)
        try:
            for prompt in prompts:
                for choice in params:
                    self.streams.append(self._generator.submit(prompt, choice))
        except BaseException:
            self.close()
            raise
        self._updates = self._read_streams()

    def wait_for_first(self):
        """Wait until there is something to send. Raises ClientGone; ApiError (429) if the request never started."""
        self._first_update = next(self._updates, [])
        if self._timed_out and not self.completion_tokens:
            raise too_many_requests("the request did not start in time", self._service.request_seconds / 2)
        self._first_update_at = time.monotonic()
        self._service.counters.first_token(self._model, self._first_update_at - self.started)

    def updates(self):
        """Yields the new text as it comes: lists of (index of the stream, text, finish_reason or None).

        Raises ClientGone; RuntimeError if the engine failed.
        """
        yield self._first_update
        yield from self._updates

    def wait_for_texts(self):
        """(texts, finish reasons) of all streams, when all have ended."""
        self._sends_parts = False
        texts = [""] * len(self.streams)
        reasons = [None] * len(self.streams)
        for update in self.updates():
            for i, text, reason in update:
                texts[i] += text
                reasons[i] = reason
        return texts, reasons

    def close(self):
        """Cancel the streams that still run, release the prompts and count the request."""
        if self._closed:
            return
        self._closed = True
        for stream in self.streams:
            stream.cancel()
        now = time.monotonic()
        self._service.admission.release(self._model, self._n_streams, now - self.started)
        since_first = now - (self._first_update_at or now)
        self._service.counters.request_done(self._model, self.streams, now - self.started, since_first)

    @property
    def prompt_tokens(self):
        """Tokens of the prompts. As OpenAI counts, a prompt with several choices counts once."""
        return sum(stream.prompt_tokens for stream in self.streams[:: self._n_choices])

    @property
    def completion_tokens(self):
        return sum(stream.completion_tokens for stream in self.streams)

    @property
    def prompt_cut(self):
        """Whether a prompt was longer than the model's block and lost its start."""
        return any(stream.prompt_cut for stream in self.streams)

    def _read_streams(self):
        """Yields the updates until all streams have ended or the deadline has passed."""
        live = dict(enumerate(self.streams))
        while live:
            if self._client_gone():
                raise ClientGone
            left = self._deadline - time.monotonic()
            if left <= 0:
                # The answer ends with what has been generated so far.
                self._timed_out = True
                for stream in live.values():
                    stream.cancel()
                yield [(i, all_ready(stream, CANCEL_WAIT_SECONDS)[0], "length") for i, stream in live.items()]
                return
            # Wait for the first stream only; take from the others what is ready.
            wait = min(left, CLIENT_POLL_SECONDS if len(live) == 1 else MAX_STREAM_WAIT_SECONDS)
            update = []
            for i, stream in list(live.items()):
                text, ended = all_ready(stream, wait)
                wait = 0
                if ended:
                    del live[i]
                if text or ended:
                    # Only a stopping server cancels a stream whose client still waits. The client sees a cut answer.
                    reason = stream.finish_reason if stream.finish_reason != "cancelled" else "length"
                    update.append((i, text, reason if ended else None))
            if update:
                yield update
                # An answer that is sent whole needs no updates; its thread wakes to check that its client is there.
                pause = pause_seconds(self._service.running) if self._sends_parts else CLIENT_POLL_SECONDS
                if live and pause:
                    next(iter(live.values())).wait_for_end(min(pause, left))
