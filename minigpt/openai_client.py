"""A client of OpenAI-compatible APIs: this project's server.py, LM Studio, Ollama, vLLM, hosted services.

The server is not trusted: the size and the time of every response are limited, also of a compressed one, redirects are
not followed, and unpaired surrogates are replaced. All requests run on one event loop in its own thread, so that each
can be cancelled at any moment, also before the connection or the headers exist.
"""

import asyncio
import contextlib
import functools
import ipaddress
import json
import re
import sys
import threading
import time
import traceback
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from urllib.parse import urlsplit

import httpx

from minigpt.common.errors import UserError
from minigpt.common.net import MINIGPT_OWNER, retry_after_seconds
from minigpt.common.streams import TextStream

MAX_LIST_BYTES = 1 << 20  # of a list of models
MAX_MODELS = 100
MAX_CLAIMED_TOKENS = 10**9  # a larger token count of a server is ignored
MAX_NAME_CHARS = 80  # of a model's name
MAX_DETAIL_CHARS = 400  # of a server's error message
MAX_NAME_LOOKUPS = 64  # concurrent DNS lookups
LOOP_LOCK = threading.Lock()
MAX_ERROR_BYTES = 65536  # of an error's body that are read
MAX_BYTES_PER_CHAR = 256  # size of an event with a single character; 32,768 characters may take 8 MiB
KEEPALIVE_SECONDS = 3.0  # an idle connection is kept; servers keep theirs longer (uvicorn: 5 s)
DRAIN_SECONDS, DRAIN_BYTES = 1.0, 65536  # read after an answer's end, so that its connection can be reused
# Fields that a server may not know: the first two are not OpenAI's, the others are newer than some servers. If a server
# refuses a request with them, it is repeated without those that it names, or without all if it names none.
OPTIONAL_FIELDS = ("top_k", "repetition_penalty", "stream_options", "seed")
# Words of a refusal that say that a field is not known, and words that say that only its value is wrong.
UNKNOWN_FIELD = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|extra inputs|not permitted|not allowed|deprecated|"
    r"instead|please use|cannot find field|不支持|未知|无法识别|弃用|代替|改用|请使用",
    re.IGNORECASE,
)
WRONG_VALUE = re.compile(
    r"too (?:large|big|long|high)|exceed|at most|maximum|range|less than|greater|超|范围|最大", re.IGNORECASE
)
NEWER_LIMIT = re.compile(r"max_?completion_?tokens", re.IGNORECASE)  # the name that replaces max_tokens
INFLATED_BYTES = 65536  # decompressed at once
BEGUN_EVENTS = 8  # events after which an answer has begun
INVALID_STATUSES = (400, 422)  # of a request with a field that the server does not take
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")  # of the text of a model's reasoning in a message
BUSY_STATUSES = (429, 503)
DEFAULT_RETRY_SECONDS = 1.0  # before the next try where a busy server sends no Retry-After
# What httpx raises if a connection fails or an address is invalid.
CONNECTION_ERRORS = (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError)


MESSAGES = {
    "address": "{address} is not a usable address ({detail}); write it like http://192.168.1.5:5000",
    "unreachable": "{address} does not answer ({detail})",
    "refused": "{address} refused the request with status {status}: {detail}",
    "busy": "{address} is too busy now (status {status}: {detail})",
    "not_openai": "{address} does not speak OpenAI's API ({detail})",
    "broke_off": "{address} broke off in the middle of the answer",
    "too_slow": "{address} sent no whole answer within {seconds:g} s",
    "internal": "an internal error of this program, not of {address} ({detail}); its traceback is on its stderr",
}


class ApiFailure(UserError):
    """A failed request.

    code: a key of MESSAGES. values: the values of the message's placeholders, so that it can be translated.
    retry_after: seconds to wait as the server's Retry-After header says, or None.
    """

    retry_after = None

    def __init__(self, code, **values):
        super().__init__(MESSAGES[code].format(**values))
        self.code, self.values = code, values


@dataclass(frozen=True)
class Limits:
    """Limits of one request."""

    seconds: float = 120.0  # for the whole answer
    connect_seconds: float = 5.0
    chars: int = 32768  # of the answer
    retries: int = 2  # if the server is busy
    longest_wait: float = 10.0  # seconds; a busy server that asks for more is not retried


def clean_text(text):
    """The text with each unpaired surrogate replaced by a question mark, so that it can be encoded as UTF-8."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def base_url(address):
    """The base URL of an API. The default scheme is http, the default path /v1.

    Raises ApiFailure("address") if it is not http(s), or contains a password, a query or a fragment.
    """
    text = address.strip()
    shown = clean_text(text)[:MAX_NAME_CHARS]
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ApiFailure("address", address=shown, detail=str(error)) from None
    for is_wrong, detail in (
        (parts.scheme not in ("http", "https"), "only http and https are supported"),
        (not host or not text.isprintable() or " " in text or "\\" in text, "no host"),
        ("@" in parts.netloc, "a key has its own field"),
        (parts.query or parts.fragment, "a query is not allowed"),
        (port == 0, "port 0"),
    ):
        if is_wrong:
            raise ApiFailure("address", address=shown, detail=detail)
    path = parts.path.rstrip("/")
    for ending in ("/chat/completions", "/completions", "/models"):
        path = path.removesuffix(ending)
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def changed_body(body, changes):
    """A request's body with the fields that `changes` renames or, where the new name is None, without them."""
    return {changes.get(field, field): value for field, value in body.items() if changes.get(field, field)}


def changes_after(failure, body):
    """{field: its other name, or None to leave it out} that may mend a refusal of a request's body, or {}.

    A value that is refused, such as a temperature, is the caller's matter: it is never changed.
    """
    words = f"{failure.values['detail']} {failure.values['param']}"
    if optional := [field for field in OPTIONAL_FIELDS if field in body and names_field(words, field)]:
        return dict.fromkeys(optional)
    if not UNKNOWN_FIELD.search(words) or WRONG_VALUE.search(words):
        return {}
    if "max_tokens" in body and (names_field(words, "max_tokens") or NEWER_LIMIT.search(words)):
        return {"max_tokens": "max_completion_tokens"}
    if "stream" in body and names_field(words, "stream"):
        return {"stream": None, "stream_options": None}
    return {}


def names_field(words, field):
    """Whether a refusal's words name a field, not as a part of another name."""
    return re.search(rf"(?<![\w-]){field}(?![\w-])", words) is not None


def is_near(url):
    """Whether a URL's host is this machine or in a private network (Tailscale included), which no proxy can reach."""
    host = urlsplit(url).hostname
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return host == "localhost" or host.endswith((".local", ".localhost", ".lan", ".ts.net")) or "." not in host


def print_to_stderr(line):
    """Print a line for the user."""
    print(line, file=sys.stderr, flush=True)


def event_loop():
    """The event loop of all requests, which runs in its own thread."""
    with LOOP_LOCK:
        return new_event_loop()


@functools.cache
def new_event_loop():
    loop = asyncio.new_event_loop()
    # A DNS lookup that hangs occupies a thread; a few of them must not delay the others.
    loop.set_default_executor(ThreadPoolExecutor(MAX_NAME_LOOKUPS, "api-lookup"))
    threading.Thread(target=loop.run_forever, name="api-client", daemon=True).start()
    return loop


@functools.cache
def certificates():
    """The trusted root certificates, loaded once because that is slow."""
    return httpx.create_ssl_context()


class ApiClient:
    """A client of one server; thread-safe. Connections are reused until `close`.

    address: see `base_url`. key: sent as a bearer token; "": none. limits: `Limits`. extra: {field: value} merged into
    every request for text. report(line): called once for each field that is left out or renamed from then on.
    """

    def __init__(self, address, key="", limits=None, extra=None, report=print_to_stderr):
        self.base = base_url(address)
        self.key = key
        self.limits = limits or Limits()
        self.extra = extra or {}
        self.report = report
        # Used on the event loop only.
        self.changes = {}  # {model: see `changes_after`} of the models that have answered
        self._http = None  # the httpx.AsyncClient
        self._requests = 0  # under way
        self._closing = False  # whether to close _http after the last of them

    def close(self):
        """Close the connections after the requests that are under way. A later request opens one for itself alone."""
        self._closing = True
        asyncio.run_coroutine_threadsafe(self._close_if_idle(), event_loop())

    async def _close_if_idle(self):
        if self._closing and self._http and not self._requests:
            http, self._http = self._http, None
            await http.aclose()

    def _new_http(self):
        """An httpx.AsyncClient. Raises ApiFailure("unreachable")."""
        try:
            return httpx.AsyncClient(
                follow_redirects=False, trust_env=not is_near(self.base), verify=certificates(),
                timeout=httpx.Timeout(None, connect=self.limits.connect_seconds),
                limits=httpx.Limits(keepalive_expiry=KEEPALIVE_SECONDS),  # no limit of concurrent connections
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # cookies are ignored
            )  # fmt: skip
        except (ImportError, ValueError):  # a SOCKS proxy, or an invalid one
            detail = "the proxy in the environment cannot be used"
            raise ApiFailure("unreachable", address=self.base, detail=detail) from None

    @contextlib.asynccontextmanager
    async def open(self, method, path, body=None):
        """Context manager: the httpx.Response to a request, its body not yet read. Raises ApiFailure("unreachable")."""
        headers, content = {"Accept-Encoding": "identity"}, None
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(body, ensure_ascii=False).encode("utf-8", errors="replace")
        self._http = self._http or self._new_http()
        self._requests += 1
        try:
            try:
                request = self._http.build_request(method, self.base + path, content=content, headers=headers)
                response = await self._http.send(request, stream=True)
            except (*CONNECTION_ERRORS, UnicodeError) as error:  # UnicodeError: the key is not ASCII
                raise ApiFailure("unreachable", address=self.base, detail=reason_of(error)) from None
            try:
                yield response
            finally:
                await response.aclose()
        finally:
            self._requests -= 1
            await self._close_if_idle()

    def models(self, seconds=3.0):
        """(the server's models that generate text [{"id", "owned_by"}], seconds that the request took).

        Raises ApiFailure.
        """
        started = time.perf_counter()
        listing = asyncio.run_coroutine_threadsafe(self._listed(seconds), event_loop())
        owners = {}
        try:
            for entry in json.loads(listing.result())["data"]:
                generates = not (entry.get("owned_by") == MINIGPT_OWNER and "task" in entry)
                if generates and isinstance(entry["id"], str) and 0 < len(entry["id"]) <= MAX_NAME_CHARS:
                    owners.setdefault(entry["id"], entry.get("owned_by"))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise ApiFailure("not_openai", address=self.base, detail="/models does not return a list") from None
        models = [{"id": name, "owned_by": owner} for name, owner in owners.items()]
        return models[:MAX_MODELS], time.perf_counter() - started

    async def _listed(self, seconds):
        try:
            async with asyncio.timeout(seconds), self.open("GET", "/models") as response:
                if response.status_code != 200:
                    raise await self.refusal(response)
                return await self.read(response, MAX_LIST_BYTES)
        except TimeoutError:
            raise ApiFailure("too_slow", address=self.base, seconds=seconds) from None

    def learn(self, model, changes):
        """Keep the changes of fields with which a model has answered, and report those that are new."""
        known = self.changes.get(model, {})
        for field, name in changes.items():
            if field not in known:
                instead = f"{name} is sent instead" if name else "it is left out"
                self.report(f"note: {self.base} refuses the field {field} for {model}: {instead} from now on")
        self.changes[model] = {**known, **changes}

    def complete(self, model, prompt, **fields):
        """The `RemoteStream` of a completion. (server.py's fine-tuned models answer the prompt as a question.)

        fields: request fields of OpenAI's API, top_k and repetition_penalty.
        """
        return RemoteStream(self, "/completions", {"model": model, "prompt": prompt, **fields, **self.extra})

    def chat(self, model, messages, **fields):
        """The `RemoteStream` of a chat completion. messages: [{"role", "content"}]; fields: as in `complete`."""
        return RemoteStream(self, "/chat/completions", {"model": model, "messages": messages, **fields, **self.extra})

    async def read(self, response, max_bytes):
        """The body (bytes) of a response. Raises ApiFailure if it is longer than max_bytes, or the connection fails."""
        body = bytearray()
        try:
            async for chunk in inflated_chunks(response):
                body += chunk
                if len(body) > max_bytes:
                    raise ApiFailure("not_openai", address=self.base, detail="its response is too long")
        except CONNECTION_ERRORS as error:
            raise ApiFailure("unreachable", address=self.base, detail=reason_of(error)) from None
        return bytes(body)

    async def refusal(self, response):
        """The `ApiFailure` of a response whose status is not 200."""
        status = response.status_code
        try:
            async with asyncio.timeout(self.limits.connect_seconds):
                body = await self.read(response, MAX_ERROR_BYTES)
        except (ApiFailure, TimeoutError):
            body = b""
        detail = detail_of(body) or clean_text(response.reason_phrase)[:MAX_DETAIL_CHARS]
        values = {"address": self.base, "status": status, "detail": detail}
        code = "busy" if status in BUSY_STATUSES else "refused"
        failure = ApiFailure(code, quota=b"insufficient_quota" in body, param=param_of(body), **values)
        failure.retry_after = retry_after_seconds(response.headers.get("Retry-After"))
        return failure


CONNECTION_REASONS = {
    "refused": "connection refused", "ll connection attempts failed": "connection refused", "timed out": "timed out",
    "resolve": "no such host", "getaddrinfo": "no such host", "Name or service": "no such host",
    "No address": "no such host", "unreachable": "network unreachable", "No route": "no route",
    "certificate": "its certificate is not trusted",
    "ascii": "the key has characters that an HTTP header cannot contain",
}  # fmt: skip


def reason_of(error):
    """The reason of a failed connection in a few words; unknown ones are named by their class."""
    if isinstance(error, httpx.TimeoutException):
        return "timed out"
    text = f"{error} {error.__cause__ or ''}"
    return next((words for part, words in CONNECTION_REASONS.items() if part in text), type(error).__name__)


async def inflated_chunks(response):
    """The chunks of a response's body, decompressed in pieces of at most INFLATED_BYTES where it is gzip or deflate.

    Requests ask for no compression; some gateways compress all the same. Raises OSError if the data are damaged.
    """
    inflater = None
    if response.headers.get("Content-Encoding", "").lower() in ("gzip", "x-gzip", "deflate"):
        inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: gzip's header or zlib's
    async for chunk in response.aiter_raw():
        if not inflater:
            yield chunk
        while inflater and chunk:
            try:
                yield inflater.decompress(chunk, INFLATED_BYTES)
            except zlib.error as error:
                raise OSError(str(error)) from None
            chunk = inflater.unconsumed_tail


def detail_of(body):
    """The message in an error's body (bytes), which may be OpenAI's JSON, other JSON, or plain text."""
    text = body.decode("utf-8", errors="replace")
    with contextlib.suppress(ValueError, RecursionError):
        text = words_of_error(json.loads(text))
    return " ".join(clean_text(text).split())[:MAX_DETAIL_CHARS]


def words_of_error(error):
    """The message in an error's decoded JSON: OpenAI's, FastAPI's list of fields, or one of these within another."""
    if isinstance(error, list):
        return "; ".join(map(words_of_error, error))
    if not isinstance(error, dict):
        return str(error)
    if "msg" in error:
        return ".".join(map(str, [*error.get("loc", ())])) + f": {error['msg']}"
    inner = next((error[key] for key in ("error", "detail", "message") if error.get(key)), None)
    return json.dumps(error, ensure_ascii=False) if inner is None else words_of_error(inner)


def param_of(body):
    """The field that OpenAI's form of an error (bytes) blames, or ""."""
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        return str(json.loads(body)["error"]["param"] or "")[:MAX_NAME_CHARS]
    return ""


class RemoteStream(TextStream):
    """The text stream of an answer from a server.

    cut: "time" or "size" if a limit ended it (finish_reason is "length" then), otherwise "". error: an `ApiFailure`.
    completion_tokens: as the server reports it, or the number of pieces if it does not. thought_chars: length of the
    reasoning that the server sends apart from the text; it is no part of the text.
    """

    prompt_cut = False  # not known for a remote model

    def __init__(self, client, path, body):
        super().__init__()
        self._client, self._path = client, path
        self._body = {"stream_options": {"include_usage": True}, **body, "stream": True}
        if "max_completion_tokens" in body:
            self._body.pop("max_tokens", None)  # the same limit under another name
        self.cut = ""
        self.thought_chars = 0
        self._begun, self._events = threading.Event(), 0
        self._chars = 0
        self._piece_count = 0
        self._reason = None  # the server's finish_reason
        self._task = asyncio.run_coroutine_threadsafe(self._run(), event_loop())

    def cancel(self):
        """End the stream and close the connection, so that the server stops as well."""
        self.finish("cancelled")
        self._task.cancel()

    def finish(self, reason, error=None):
        super().finish(reason, error)
        self._begun.set()

    def wait_until_begun(self):
        """Wait for BEGUN_EVENTS events of the answer, or for its end."""
        self._begun.wait()

    def fail(self, code, **values):
        """End the stream with an ApiFailure."""
        self.finish("error", ApiFailure(code, address=self._client.base, **values))

    async def _run(self):
        seconds = self._client.limits.seconds
        try:
            async with asyncio.timeout(seconds):
                await self._answer()
            if self._reason:  # a server that sends no [DONE]
                self.finish(self._reason)
            self.fail("broke_off")
        except TimeoutError:
            if self._chars:
                self.cut = "time"
                self.finish("length")
            self.fail("too_slow", seconds=seconds)
        except ApiFailure as failure:
            self.finish("error", failure)
        except (httpx.HTTPError, OSError):
            self.fail("broke_off")
        except Exception as error:  # a bug of this program: nothing awaits this task, so its exception would be lost
            traceback.print_exc()
            self.fail("internal", detail=type(error).__name__)
        finally:
            self.finish("cancelled")  # the task was cancelled: the reader must not wait forever

    async def _answer(self):
        """Request and read the answer. Retries if the server is busy, or with other fields if it refuses some."""
        client, model, tries = self._client, self._body["model"], 0
        changes, refused = client.changes.get(model, {}), None
        while True:
            body = changed_body(self._body, changes)
            async with client.open("POST", self._path, body) as response:
                if response.status_code == 200:
                    client.learn(model, changes)
                    return await self._read(response)
                failure = await client.refusal(response)
            wait = DEFAULT_RETRY_SECONDS if failure.retry_after is None else failure.retry_after
            if failure.code == "busy" and tries < client.limits.retries and wait <= client.limits.longest_wait:
                tries += 1
                await asyncio.sleep(wait)
                continue
            is_invalid = response.status_code in INVALID_STATUSES
            optional = [field for field in OPTIONAL_FIELDS if field in body]
            if is_invalid and (named := changes_after(failure, body)):
                changes, refused = {**changes, **named}, None
            elif is_invalid and optional and model not in client.changes:
                # It names no field of ours. An older server may not know the optional ones.
                changes, refused = {**changes, **dict.fromkeys(optional)}, failure
            else:
                raise refused or failure

    async def _read(self, response):
        if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
            return await self._read_whole(response)
        buffer, searched = bytearray(), 0
        bytes_left = self._client.limits.chars * MAX_BYTES_PER_CHAR
        chunks = inflated_chunks(response)
        async for chunk in chunks:
            buffer += chunk
            bytes_left -= len(chunk)
            while (end := buffer.find(b"\n", searched)) >= 0:
                line, searched = bytes(buffer[:end]).strip(), 0
                del buffer[: end + 1]
                if self._take_event(line):
                    return await self._drain(chunks)
            searched = len(buffer)
            if bytes_left < 0:
                self.cut = "size"
                return self.finish("length")

    async def _drain(self, chunks):
        """Read what follows the end of an answer: a connection with unread data cannot be reused."""
        bytes_left = 0 if self.cut else DRAIN_BYTES
        with contextlib.suppress(httpx.HTTPError, OSError):  # TimeoutError is one
            async with asyncio.timeout(DRAIN_SECONDS):
                while bytes_left > 0 and (chunk := await anext(chunks, b"")):
                    bytes_left -= len(chunk)

    async def _read_whole(self, response):
        """Read the answer of a server that does not stream: a single JSON object."""
        body = await self._client.read(response, self._client.limits.chars * MAX_BYTES_PER_CHAR)
        self._take_event(b"data: " + body)
        self.finish(self._reason or "stop")

    def _take_event(self, line):
        """Process a line of the event stream. Returns whether the answer has ended."""
        if not line.startswith(b"data:"):
            return False
        data = line[5:].strip()
        if data == b"[DONE]":
            self.finish(self._reason or "stop")
            return True
        try:
            event = json.loads(data)
            if event.get("error"):
                raise ApiFailure("refused", address=self._client.base, status=200, detail=detail_of(data))
            usage = event.get("usage") or {}
            prompt_tokens, completion_tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
            choice = (event.get("choices") or [{}])[0]
            message = choice.get("delta") or choice.get("message") or choice
            text = message.get("content") or choice.get("text") or ""
            thoughts = next((message[key] for key in THOUGHT_KEYS if message.get(key)), "")
            reason = choice.get("finish_reason")
        except (ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError):
            raise ApiFailure("not_openai", address=self._client.base, detail="malformed event in its stream") from None
        self.thought_chars += len(thoughts) if isinstance(thoughts, str) else 0
        self._events += 1
        if self._events >= BEGUN_EVENTS:
            self._begun.set()
        self.prompt_tokens = count_of(prompt_tokens, self.prompt_tokens)
        self._add(clean_text(text) if isinstance(text, str) else "")
        self.completion_tokens = count_of(completion_tokens, self._piece_count)
        if reason:
            self._reason = "length" if reason == "length" else "stop"
        return self.finish_reason is not None

    def _add(self, text):
        if not text:
            return
        self.first_token = self.first_token or time.perf_counter()
        self._piece_count += 1
        chars_left = self._client.limits.chars - self._chars
        self._chars += len(text)
        self.put(text[:chars_left])
        if len(text) > chars_left:
            self.cut = "size"
            self.finish("length")


def count_of(claimed, known):
    """The token count that a server reports if it is plausible, otherwise the `known` one."""
    is_plausible = isinstance(claimed, (int, float)) and 0 < claimed <= MAX_CLAIMED_TOKENS
    return int(claimed) if is_plausible else known
