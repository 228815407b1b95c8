"""The large model's API: choice of the model, classification of failures, and messages about them."""

import ast
import json
import re
import time

from minigpt.common.errors import UserError
from minigpt.openai_client import ApiClient, ApiFailure, Limits, print_to_stderr
from minigpt.synth.diagnosis import CONTEXT, refusal_topic

MAX_CHARS_PER_TOKEN = 8  # bounds the size of a reply
MODEL_LIST_SECONDS = 10.0
ARTICLE, SERVER, FATAL = "article", "server", "fatal"  # causes of a failure, see `failure_cause`
OWN_FIELDS = ("model", "messages", "stream")  # which --api_extra may not have
FATAL_STATUSES = (401, 402)  # any other 4xx may be due to one article: too long, or refused by a moderation filter
TRANSIENT_STATUSES = (200, 408, 425)  # 200: an error inside a stream
# Connection errors that retrying cannot fix if no request has ever succeeded.
PERMANENT_ERRORS = ("no such host", "certificate", "proxy", "HTTP header")
NON_CHAT_MODEL = re.compile("embed|rerank|whisper|tts|bge", re.IGNORECASE)  # in names of models that write no text
PROBE_MESSAGES = [{"role": "user", "content": "请回答“好”。"}]
RESTART_HINT = "start again with the same command to go on"


class JsonNames(ast.NodeTransformer):
    """Turns the names true, false and null of JSON into constants of Python."""

    VALUES = {"true": True, "false": False, "null": None}  # noqa: RUF012 (it is not changed)

    def visit_Name(self, node):
        """The constant of a name. Raises KeyError for any other."""
        return ast.Constant(self.VALUES[node.id])


def extra_fields(text):
    """The fields of the setting api_extra: a JSON object, also with single quotes, which need no escapes on Windows.

    Raises UserError.
    """
    try:
        if not text.strip():
            return {}
        try:
            fields = json.loads(text)
        except ValueError:
            fields = ast.literal_eval(JsonNames().visit(ast.parse(text.strip(), mode="eval")))
        if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
            raise ValueError("no object")
        json.dumps(fields)
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError):
        raise UserError(
            f"--api_extra={text} is no JSON object; "
            """in a Unix shell write --api_extra='{"reasoning_effort": "none"}', """
            "--api_extra=\"{'reasoning_effort': 'none'}\" in Windows' cmd and PowerShell"
        ) from None
    if taken := [name for name in OWN_FIELDS if name in fields]:
        raise UserError(f"--api_extra may not have {taken[0]}: the script writes it itself (model: --api_model)")
    return fields


class LargeModelClient(ApiClient):
    """An `ApiClient` with the generation's settings: its limits and fields, a probe, and reading of whole replies."""

    def __init__(self, settings, key, report=print_to_stderr):
        limits = Limits(
            seconds=settings.request_seconds,
            connect_seconds=min(10.0, settings.request_seconds),
            chars=max(32768, MAX_CHARS_PER_TOKEN * settings.max_new_tokens),
            retries=0,  # the RateLimit delays all requests together
        )
        super().__init__(settings.api_base, key, limits, extra_fields(settings.api_extra), report)
        self.settings = settings

    def ask(self, model, messages, temperature, seed):
        """The stream of a reply. The probe and the requests about articles have the same fields."""
        tokens = self.settings.max_new_tokens
        return self.chat(model, messages, temperature=temperature, seed=seed, max_tokens=tokens)

    def probe(self, model):
        """The stream of a request with a short prompt. The begin of a reply shows that the server takes our fields."""
        return self.ask(model, PROBE_MESSAGES, self.settings.temperature, 0)

    def read_all(self, stream):
        """Read a stream to its end: (text, None), or (text, ApiFailure), also if the time limit cut it."""
        pieces = []
        try:
            pieces.extend(stream)
        except RuntimeError:
            return "".join(pieces), stream.error
        slow = ApiFailure("too_slow", address=self.base, seconds=self.limits.seconds) if stream.cut == "time" else None
        return "".join(pieces), slow


def failure_cause(failure, replies=0):
    """The cause of an ApiFailure: ARTICLE (what was asked), SERVER (temporary), or FATAL (the user's address, key,
    account or model, or a bug of this program).

    replies: number of requests answered so far. After the first reply, what looks like a wrong address is temporary.
    """
    if failure.code in ("address", "internal") or failure.values.get("quota"):
        return FATAL
    if failure.code != "refused":
        return FATAL if not replies and is_permanent(failure) else SERVER
    status = failure.values["status"]
    # Some servers tell within a stream, or as an error of their own, that a prompt is too long.
    if refusal_topic(failure) == CONTEXT and (status == 200 or status >= 500):
        return ARTICLE
    if status in TRANSIENT_STATUSES or status >= 500:
        return SERVER
    return ARTICLE if 400 <= status < 500 and status not in FATAL_STATUSES else FATAL


def is_permanent(failure):
    """Whether a failure shows that the address is wrong or cannot be reached at all."""
    detail = str(failure.values.get("detail", ""))
    return failure.code == "not_openai" or (
        failure.code == "unreachable" and any(words in detail for words in PERMANENT_ERRORS)
    )


def choose_model(client, settings, rate_limit, is_stopped, report):
    """(name of the model to use, number of models): settings.api_model, or the server's first chat model.

    Returns None when `is_stopped()`. report(line) is called while the server is waited for. Raises UserError.
    """
    while not settings.api_model:
        started = time.monotonic()
        try:
            models, _ = client.models(min(MODEL_LIST_SECONDS, settings.request_seconds))
            if not models:
                raise UserError(f"{client.base} offers no model; load one there, or name it with --api_model=…")
            names = [model["id"] for model in models]
            return next((name for name in names if not NON_CHAT_MODEL.search(name)), names[0]), len(names)
        except ApiFailure as failure:
            if failure_cause(failure) != SERVER:
                raise UserError(fatal_message(failure)) from None
            if not rate_limit.record_failure(started, time.monotonic(), failure.retry_after, busy=True):
                raise UserError(wait_exceeded_message(failure, settings)) from None
            report(waiting_message(failure, rate_limit.seconds_paused(time.monotonic()), settings))
            while not is_stopped() and rate_limit.seconds_until_ready(time.monotonic()) > 0:
                time.sleep(0.1)
            if is_stopped():
                return None
    return settings.api_model, 1


def fatal_message(failure):
    """The line of a run that ends because of a FATAL failure: what failed and what the user can do."""
    return f"{failure}; {advice_for(failure)}, then {RESTART_HINT}"


def ending_message(words, advice):
    """The line of a run that ends because every request is refused or answered badly for the same reason."""
    return f"{str(words).rstrip('.')}; {advice}. Then start again: these articles are asked about again"


def advice_for(failure):
    """What the user can do about a failure that waiting does not fix."""
    status, detail = failure.values.get("status"), str(failure.values.get("detail", ""))
    if failure.values.get("quota") or status == 402:
        return "check the account whose key is in OPENAI_API_KEY"
    if status in (401, 403) or "header" in detail:
        return "set the key in the environment's OPENAI_API_KEY"
    if failure.code in ("unreachable", "not_openai", "address"):
        also = " and the proxy in the environment" if "proxy" in detail else ""
        return f"check --api_base{also} (LM Studio: http://localhost:1234/v1)"
    if status == 404:
        return "check --api_base (it usually ends in /v1) and --api_model"
    if failure.code == "internal":
        return "please report the traceback above"
    return "check --api_base, --api_model and the server's log"


def wait_exceeded_message(failure, settings):
    """The line of a run that ends because the server did not reply for settings.wait_minutes."""
    advice = "raise --request_seconds, or lower --concurrency; " if failure.code == "too_slow" else ""
    return (
        f"{failure}; no reply for {settings.wait_minutes:g} minutes (--wait_minutes): {advice}when the server is back, "
        f"{RESTART_HINT}"
    )


def waiting_message(failure, seconds, settings):
    """The line shown while the server is waited for."""
    return (
        f"waiting {seconds:.0f} s for the server, {settings.wait_minutes:g} minutes in all; Ctrl-C stops: {failure} "
        "(is --api_base right?)"
    )
