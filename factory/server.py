"""The API that is asked: its model, what its failures mean, and whether it lives."""

import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from api_client import ApiClient, ApiFailure, Limits
from errors import UserError

CHARS_A_TOKEN = 8  # at the most, so that a reply's text is bounded
ARTICLE, SERVER, FATAL = "article", "server", "fatal"  # whose fault a failure is
OF_ARTICLE = (400, 413, 422)  # too long, say; or what every request would be told
PASSING = (200, 408, 409, 425)  # 200: an error in the middle of a stream
PROBE = [{"role": "user", "content": "请回答“好”。"}]
AGAIN = "start again with the same command to go on"


class Server(ApiClient):
    """An `ApiClient` whose failures also say how long the server asks to be left alone (`retry_after`, s, or None)."""

    def __init__(self, settings, key):
        limits = Limits(
            seconds=settings.request_seconds,
            connect_seconds=min(10.0, settings.request_seconds),
            chars=max(32768, CHARS_A_TOKEN * settings.max_new_tokens),
            retries=0,  # a busy server is waited for by all together
        )
        super().__init__(settings.api_base, key, limits)

    async def refusal(self, response):
        failure = await super().refusal(response)
        failure.retry_after = retry_after(response.headers.get("Retry-After"))
        return failure

    def probe(self, model):
        """The stream of a request that nothing is wrong with: one that is answered shows that the server is well."""
        return self.chat(model, PROBE, max_tokens=8)

    def read_all(self, stream):
        """(text, None) of a stream read to its end, or (text, ApiFailure); one that time cut short has failed."""
        pieces = []
        try:
            pieces.extend(stream)
        except RuntimeError:
            return "".join(pieces), stream.error
        slow = ApiFailure("too_slow", address=self.base, seconds=self.limits.seconds) if stream.cut == "time" else None
        return "".join(pieces), slow


def retry_after(header):
    """Seconds that a Retry-After header (a number, or a date) asks for; None where it is missing or neither."""
    try:
        seconds = float(header)
    except (TypeError, ValueError):
        try:
            seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError, AttributeError):
            return None
    return max(0.0, seconds) if seconds == seconds else None


def blame(failure):
    """ARTICLE, SERVER or FATAL: whose fault an ApiFailure is, the last being the user's address, key or model."""
    if failure.code == "address":
        return FATAL
    if failure.code != "refused":
        return SERVER
    status = failure.values["status"]
    return ARTICLE if status in OF_ARTICLE else SERVER if status in PASSING or status >= 500 else FATAL


def choose_model(server, settings, pace, stopped, tell):
    """The name of the model to ask: settings.api_model, or the first that the server offers; None when `stopped()`.

    tell(failure): called while the server is waited for. Raises UserError.
    """
    while not settings.api_model:
        started = time.monotonic()
        try:
            models, _ = server.models(min(10.0, settings.request_seconds))
            if not models:
                raise UserError(f"{server.base} offers no model; load one there, or name it with --api_model=…")
            return models[0]["id"]
        except ApiFailure as failure:
            if blame(failure) != SERVER:
                raise UserError(f"{failure}; {hint_of(failure)}") from None
            waiting = pace.failed(started, time.monotonic(), getattr(failure, "retry_after", None), busy=True)
            if not waiting:
                raise UserError(gave_up(failure, settings)) from None
            tell(failure)
            while not stopped() and pace.ready_in(time.monotonic()) > 0:
                time.sleep(0.1)
            if stopped():
                return None
    return settings.api_model


def hint_of(failure):
    """What the user may do about a failure that no waiting mends."""
    status = failure.values.get("status")
    if status in (401, 403):
        return "set the key in the environment's OPENAI_API_KEY"
    if status == 404:
        return "see to --api_base (it mostly ends in /v1) and --api_model"
    return "see to --api_base, --api_model and the server's log"


def gave_up(failure, settings):
    """The end of a run whose server did not come back."""
    minutes = f"{settings.wait_minutes:g} minutes"
    return f"{failure}; no reply for {minutes} (--wait_minutes): when the server is back, {AGAIN}"
