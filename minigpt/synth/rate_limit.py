"""When the next request may start: the user's limit, the server's Retry-After, and backoff while the server fails."""

FIRST_BACKOFF_SECONDS = 0.2
MAX_BACKOFF_SECONDS = 30.0


def backoff_seconds(failures):
    """Seconds to wait after a number of consecutive failures: exponential, at most MAX_BACKOFF_SECONDS."""
    return min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** min(failures - 1, 20))


class RateLimit:
    """The rate limit of all requests together. Times are `time.monotonic()`. Not thread-safe: the caller locks.

    A single failure delays no other request, since its article may be the cause. From the second failure without a
    success between them, all requests pause, for longer and longer until one succeeds.
    """

    def __init__(self, requests_per_minute, wait_minutes):
        """requests_per_minute: 0 for no limit; wait_minutes: how long the server may fail before the run ends."""
        self.spacing_seconds = 60 / requests_per_minute if requests_per_minute else 0.0
        self.wait_seconds = wait_minutes * 60
        self.next_start = 0.0
        self.retry_after_until = 0.0  # as the server asked
        self.backoff_until = 0.0
        self.backoff_began = 0.0
        self.backoffs = 0
        self.failures = 0
        self.failing_since = None  # time of the first failure since the last success

    def seconds_until_ready(self, now):
        """Seconds until a request may start; 0 or less: now."""
        return max(self.next_start, self.retry_after_until, self.backoff_until) - now

    def seconds_paused(self, now):
        """Seconds of pause left because of failures; 0 if requests are not paused."""
        return max(0.0, max(self.retry_after_until, self.backoff_until) - now)

    def record_start(self, now):
        """A request starts."""
        self.next_start = max(now, self.next_start) + self.spacing_seconds

    def record_success(self):
        """A reply has come, good or bad. Ends the backoff; a Retry-After stays in force."""
        self.failing_since = None
        self.failures = 0
        self.backoffs = 0
        self.backoff_until = 0.0

    def record_failure(self, started, now, retry_after=None, busy=False):
        """A request that began at `started` has failed. Returns False if the server has failed for wait_minutes.

        retry_after: seconds that the server asks to wait, or None; busy: whether it answered that it is busy.
        """
        if self.failing_since is None:
            self.failing_since = now
        remaining = self.failing_since + self.wait_seconds - now
        if remaining <= 0:
            return False
        self.failures += 1
        if retry_after is not None:
            self.retry_after_until = max(self.retry_after_until, now + min(retry_after, remaining))
        # Of several requests that were under way when a pause began, only the first extends the backoff.
        elif started >= self.backoff_began and (busy or self.failures > 1):
            self.backoffs += 1
            self.backoff_began = now
            self.backoff_until = now + min(backoff_seconds(self.backoffs), remaining)
        return True
