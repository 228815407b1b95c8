"""When the next request may start: a server's own wishes, pauses that grow while it is away, and the user's limit."""

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0  # seconds


def pause_after(failures):
    """Seconds to wait after so many failures in a row."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failures - 1, 20))


class RateLimit:
    """Of all requests together; times are `time.monotonic()`. Its user holds a lock.

    A single failure pauses nobody, since the article may be the cause. Two without a success between them do, and the
    pauses grow until one comes.
    """

    def __init__(self, requests_per_minute, wait_minutes):
        self.spacing = 60 / requests_per_minute if requests_per_minute else 0.0
        self.wait_seconds, self.wait_minutes = wait_minutes * 60, wait_minutes
        self.next_start = 0.0
        self.asked_until, self.pause_until = 0.0, 0.0  # by the server; by us
        self.trouble = None  # when the first failure since the last success was
        self.failures, self.rounds, self.paused_at = 0, 0, 0.0

    def ready_in(self, now):
        """Seconds until a request may start; 0 or less: now."""
        return max(self.next_start, self.asked_until, self.pause_until) - now

    def start(self, now):
        """Note that a request starts."""
        self.next_start = max(now, self.next_start) + self.spacing

    def succeeded(self):
        """Note a reply, whatever is in it."""
        self.trouble, self.failures, self.rounds, self.pause_until = None, 0, 0, 0.0

    def failed(self, started, now, asked=None, busy=False):
        """Note a failure of a request begun at `started`; returns whether to go on waiting.

        asked: seconds that the server asks to be left alone, None where it asks none; busy: it said that it is.
        """
        self.trouble = now if self.trouble is None else self.trouble
        left = self.trouble + self.wait_seconds - now
        if left <= 0:
            return False
        self.failures += 1
        if asked is not None:
            self.asked_until = max(self.asked_until, now + min(asked, left))
        elif started >= self.paused_at and (busy or self.failures > 1):  # of several under way at once, one counts
            self.rounds += 1
            self.paused_at, self.pause_until = now, now + min(pause_after(self.rounds), left)
        return True

    def waiting(self, now):
        """Seconds that are still waited for the server, 0 where it is not waited for."""
        return max(0.0, max(self.asked_until, self.pause_until) - now)
