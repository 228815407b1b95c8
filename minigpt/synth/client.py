"""The API that is asked: its model, what its failures mean, and whether it lives."""

import re
import time

from minigpt.common.errors import UserError
from minigpt.openai_client import ApiClient, ApiFailure, Limits

CHARS_A_TOKEN = 8  # at the most, so that a reply's text is bounded
ARTICLE, SERVER, FATAL = "article", "server", "fatal"  # whose fault a failure is
OF_ALL = (401, 402)  # the other 4xx may be an article's: too long, say, or not to the taste of who moderates
PASSING = (200, 408, 425)  # 200: an error in the middle of a stream
# What is mended by nobody's waiting where nothing has been answered yet.
HOPELESS = ("no such host", "certificate", "proxy", "no header can bear")
NO_CHAT = re.compile("embed|rerank|whisper|tts|bge", re.IGNORECASE)  # in names of models that write nothing
PROBE = [{"role": "user", "content": "请回答“好”。"}]
AGAIN = "start again with the same command to go on"


class LargeModelClient(ApiClient):
    """An `ApiClient` with the limits of the generation's settings, and what only the generation needs."""

    def __init__(self, settings, key):
        limits = Limits(
            seconds=settings.request_seconds,
            connect_seconds=min(10.0, settings.request_seconds),
            chars=max(32768, CHARS_A_TOKEN * settings.max_new_tokens),
            retries=0,  # a busy server is waited for by all together
        )
        super().__init__(settings.api_base, key, limits)

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


def blame(failure, replies=0):
    """ARTICLE, SERVER or FATAL: whose fault an ApiFailure is, the last being the user's address, key or model, or ours.

    replies: how many requests have been answered. Behind the first what looks like a wrong address is a passing fault.
    """
    if failure.code in ("address", "internal") or failure.values.get("quota"):
        return FATAL
    if failure.code != "refused":
        return FATAL if not replies and is_hopeless(failure) else SERVER
    status = failure.values["status"]
    if status in PASSING or status >= 500:
        return SERVER
    return ARTICLE if 400 <= status < 500 and status not in OF_ALL else FATAL


def is_hopeless(failure):
    """Whether a failure shows that the address is none of such a server, or the request can reach none."""
    detail = str(failure.values.get("detail", ""))
    return failure.code == "not_openai" or (
        failure.code == "unreachable" and any(words in detail for words in HOPELESS)
    )


def choose_model(server, settings, pace, stopped, tell):
    """(the model to ask, how many there are): settings.api_model, or the first of the server's that may write.

    None when `stopped()`. tell(line): called while the server is waited for. Raises UserError.
    """
    while not settings.api_model:
        started = time.monotonic()
        try:
            models, _ = server.models(min(10.0, settings.request_seconds))
            if not models:
                raise UserError(f"{server.base} offers no model; load one there, or name it with --api_model=…")
            names = [model["id"] for model in models]
            return next((name for name in names if not NO_CHAT.search(name)), names[0]), len(names)
        except ApiFailure as failure:
            if blame(failure) != SERVER:
                raise UserError(f"{failure}; {hint_of(failure)}") from None
            waiting = pace.failed(started, time.monotonic(), failure.retry_after, busy=True)
            if not waiting:
                raise UserError(gave_up(failure, settings)) from None
            tell(waiting_text(failure, pace.waiting(time.monotonic()), settings))
            while not stopped() and pace.ready_in(time.monotonic()) > 0:
                time.sleep(0.1)
            if stopped():
                return None
    return settings.api_model, 1


def hint_of(failure):
    """What the user may do about a failure that no waiting mends."""
    status, detail = failure.values.get("status"), str(failure.values.get("detail", ""))
    if failure.values.get("quota") or status == 402:
        return "see to the account whose key is in OPENAI_API_KEY"
    if status in (401, 403) or "header" in detail:
        return "set the key in the environment's OPENAI_API_KEY"
    if failure.code in ("unreachable", "not_openai", "address"):
        also = " and to the proxy in the environment" if "proxy" in detail else ""
        return f"see to --api_base{also} (LM Studio: http://localhost:1234/v1)"
    if status == 404:
        return "see to --api_base (it mostly ends in /v1) and --api_model"
    if failure.code == "internal":
        return f"please report the traceback above; {AGAIN}"
    return "see to --api_base, --api_model and the server's log"


def gave_up(failure, settings):
    """The end of a run whose server did not come back."""
    minutes = f"{settings.wait_minutes:g} minutes"
    slow = "give it more time with --request_seconds, or less at once with --concurrency; "
    slow = slow if failure.code == "too_slow" else ""
    return f"{failure}; no reply for {minutes} (--wait_minutes): {slow}when the server is back, {AGAIN}"


def waiting_text(failure, seconds, settings):
    """What is said while the server is waited for, before it has answered at all."""
    return (
        f"waiting {seconds:.0f} s for the server, {settings.wait_minutes:g} minutes in all; Ctrl-C stops: {failure} "
        "(is --api_base right?)"
    )
