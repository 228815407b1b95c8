"""What the server counts, and its text for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Counters:
    """The counters of one app, in a registry of its own.

    models: dict of name to generator, whose `running` and `waiting` are read when asked for.
    """

    def __init__(self, models):
        self.registry = CollectorRegistry()

        def metric(kind, name, help, *labels, **more):
            return kind(f"minigpt_{name}", help, labels, registry=self.registry, **more)

        self._requests = metric(Counter, "requests", "HTTP requests", "route", "status")
        self._errors = metric(Counter, "errors", "HTTP requests answered with 4xx or 5xx", "route")
        self._failed = metric(Counter, "failed_streams", "answers that broke off because the engine failed", "route")
        self._gone = metric(Counter, "cancelled", "requests whose client left, or whose time was up", "model")
        self._prompt = metric(Counter, "prompt_tokens", "tokens of prompts", "model")
        self._completion = metric(Counter, "completion_tokens", "tokens generated", "model")
        first = "seconds from a request to its first token"
        self._first = metric(Histogram, "time_to_first_token_seconds", first, "model", buckets=SECONDS)
        between = "seconds between a request's tokens, its mean"
        self._between = metric(Histogram, "time_between_tokens_seconds", between, "model", buckets=SECONDS)
        self._seconds = metric(Histogram, "request_seconds", "seconds of a generation", "model", buckets=SECONDS)
        running = metric(Gauge, "running", "prompts that are being generated", "model")
        waiting = metric(Gauge, "queue_length", "prompts that wait for a place in the batch", "model")
        for name, generator in models.items():
            running.labels(name).set_function(lambda g=generator: g.running)
            waiting.labels(name).set_function(lambda g=generator: g.waiting)
            for counter in (self._prompt, self._completion, self._gone):
                counter.labels(name)  # shown as 0 before the first request

    def answered(self, route, status):
        """A response has been started."""
        self._requests.labels(route, str(status)).inc()
        if status >= 400:
            self._errors.labels(route).inc()

    def broke_off(self, route):
        """A stream ended in an error after its start."""
        self._failed.labels(route).inc()

    def first_token(self, model, seconds):
        """A request's first piece came after so many seconds."""
        self._first.labels(model).observe(seconds)

    def request_done(self, model, streams, seconds, since_first):
        """A request's streams have ended, so many seconds after it came and after its first piece."""
        self._seconds.labels(model).observe(seconds)
        tokens = sum(stream.completion_tokens for stream in streams)
        self._prompt.labels(model).inc(sum(stream.prompt_tokens for stream in streams))
        self._completion.labels(model).inc(tokens)
        if tokens > len(streams):
            self._between.labels(model).observe(since_first * len(streams) / (tokens - len(streams)))
        if any(stream.finish_reason in (None, "cancelled") for stream in streams):
            self._gone.labels(model).inc()

    def text(self):
        """(bytes, content type) for Prometheus."""
        return generate_latest(self.registry), "text/plain; version=0.0.4; charset=utf-8"
