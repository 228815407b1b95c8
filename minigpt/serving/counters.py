"""The metrics of the server, and their text for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Counters:
    """The metrics of one app, in a registry of its own.

    models: dict of name to generator; `running` and `waiting` of each are read when the metrics are read.
    """

    def __init__(self, models):
        self.registry = CollectorRegistry()

        def metric(kind, name, help, *labels, **more):
            return kind(f"minigpt_{name}", help, labels, registry=self.registry, **more)

        def histogram(name, help):
            return metric(Histogram, name, help, "model", buckets=BUCKETS_SECONDS)

        self._requests = metric(Counter, "requests", "HTTP requests", "route", "status")
        self._errors = metric(Counter, "errors", "HTTP requests answered with 4xx or 5xx", "route")
        self._failed = metric(Counter, "failed_streams", "streams that broke off because the engine failed", "route")
        self._cancelled = metric(Counter, "cancelled", "requests ended by a disconnect or a timeout", "model")
        self._prompt = metric(Counter, "prompt_tokens", "tokens of prompts", "model")
        self._completion = metric(Counter, "completion_tokens", "tokens generated", "model")
        self._first = histogram("time_to_first_token_seconds", "seconds from a request to its first token")
        self._between = histogram("time_between_tokens_seconds", "mean seconds between the tokens of a request")
        self._seconds = histogram("request_seconds", "seconds of a request")
        running = metric(Gauge, "running", "prompts that are being generated", "model")
        waiting = metric(Gauge, "queue_length", "prompts that wait for the model", "model")
        for name, generator in models.items():
            running.labels(name).set_function(lambda g=generator: g.running)
            waiting.labels(name).set_function(lambda g=generator: g.waiting)
            for counter in (self._prompt, self._completion, self._cancelled):
                counter.labels(name)  # shown as 0 before the first request

    def response_started(self, route, status):
        """Count a response whose status and headers are about to be sent."""
        self._requests.labels(route, str(status)).inc()
        if status >= 400:
            self._errors.labels(route).inc()

    def stream_failed(self, route):
        """Count a stream that ended in an error after its start."""
        self._failed.labels(route).inc()

    def first_token(self, model, seconds):
        """Record the seconds from a request to its first token."""
        self._first.labels(model).observe(seconds)

    def request_done(self, model, streams, seconds, since_first):
        """Record a request whose streams have ended.

        seconds: since the request came; since_first: seconds since its first token.
        """
        self._seconds.labels(model).observe(seconds)
        tokens = sum(stream.completion_tokens for stream in streams)
        self._prompt.labels(model).inc(sum(stream.prompt_tokens for stream in streams))
        self._completion.labels(model).inc(tokens)
        if tokens > len(streams):
            self._between.labels(model).observe(since_first * len(streams) / (tokens - len(streams)))
        if any(stream.finish_reason in (None, "cancelled") for stream in streams):
            self._cancelled.labels(model).inc()

    def text(self):
        """(bytes, content type) for Prometheus."""
        return generate_latest(self.registry), "text/plain; version=0.0.4; charset=utf-8"
