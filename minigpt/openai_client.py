"""A client of OpenAI-compatible APIs: this project's server.py, LM Studio, Ollama, vLLM, hosted services.

Everything that comes from the other side is bounded in size and time, and is text: no redirect is followed, nothing is
decompressed, no character is half of a pair. Requests run on one event loop in a thread of its own, where each can be
given up at any moment, also before a connection or a header has come.
"""

import asyncio
import contextlib
import functools
import ipaddress
import json
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from urllib.parse import urlsplit

import httpx

from minigpt.common.errors import UserError
from minigpt.common.net import retry_after_seconds
from minigpt.common.streams import TextStream

MAX_LIST = 1 << 20  # bytes of a list of models
MAX_MODELS = 100
MAX_COUNT = 10**9  # of tokens that a server claims
MAX_NAME = 80  # characters of a model's name
MAX_DETAIL = 200  # characters of a foreign error that are shown
LOOKUPS = 64  # names looked up at once
LOOP_LOCK = threading.Lock()
MAX_ERROR = 65536  # bytes of an error's body that are read
BYTES_PER_CHAR = 256  # of an event around a single character; 32,768 characters may thus take 8 MiB
KEPT_SECONDS = 3.0  # that a connection is kept for the next request; less than servers do, uvicorn's 5 s among them
REST_SECONDS, REST_BYTES = 1.0, 65536  # what is read behind an answer's end, so that its connection can be kept
# What a server may not know: the first two are not OpenAI's, the others came later than many a server. They are left
# out where a server refuses a request with them.
EXTRAS = ("top_k", "repetition_penalty", "stream_options", "seed")
TOO_BUSY = (429, 503)
DEFAULT_RETRY_SECONDS = 1.0  # before the next try where a busy server sends no Retry-After
# What httpx lets through when a connection fails, or an address is none after all.
BROKEN = (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError)


MESSAGES = {
    "address": "{address} is not a usable address ({detail}); write it like http://192.168.1.5:5000",
    "unreachable": "{address} does not answer ({detail})",
    "refused": "{address} refused the request with status {status}: {detail}",
    "busy": "{address} is too busy now (status {status}: {detail})",
    "not_openai": "{address} does not speak OpenAI's API ({detail})",
    "broke_off": "{address} broke off in the middle of the answer",
    "too_slow": "{address} sent nothing within {seconds:g} s",
    "internal": "an internal error of this program, not of {address} ({detail}); its traceback is on its stderr",
}


class ApiFailure(UserError):
    """A request that failed. code: unreachable, refused, busy, not_openai, broke_off, too_slow, address or internal;
    values: what the message is filled with, for those who say it in another language; retry_after: seconds that the
    server's Retry-After header asks to wait, or None."""

    retry_after = None

    def __init__(self, code, **values):
        super().__init__(MESSAGES[code].format(**values))
        self.code, self.values = code, values


@dataclass(frozen=True)
class Limits:
    """What an answer may cost: seconds in all, seconds to connect, characters, tries again where a server is busy,
    and the longest that it may ask to be waited for."""

    seconds: float = 120.0
    connect_seconds: float = 5.0
    chars: int = 32768
    retries: int = 2
    longest_wait: float = 10.0


def clean_text(text):
    """Text that can be written as UTF-8: half of a surrogate pair becomes a question mark."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def base_url(address):
    """The URL below which an API's paths are: http where no scheme is given, /v1 where no path is.

    Raises ApiFailure for what is no http(s) address, or bears a password, a query or a fragment.
    """
    text = address.strip()
    shown = clean_text(text)[:MAX_NAME]
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ApiFailure("address", address=shown, detail=str(error)) from None
    wrong = (
        "only http and https are asked"
        if parts.scheme not in ("http", "https")
        else "no host"
        if not host or not text.isprintable() or any(c in text for c in " \\")
        else "a key has its own field"
        if "@" in parts.netloc
        else "a query has no place in it"
        if parts.query or parts.fragment
        else "port 0"
        if port == 0
        else ""
    )
    if wrong:
        raise ApiFailure("address", address=shown, detail=wrong)
    path = parts.path.rstrip("/")
    for ending in ("/chat/completions", "/completions", "/models"):
        path = path.removesuffix(ending)
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def is_near(url):
    """Whether a URL's host is this machine or a private network (Tailscale's too), where no proxy leads."""
    host = urlsplit(url).hostname
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return host == "localhost" or host.endswith((".local", ".localhost", ".lan", ".ts.net")) or "." not in host


def event_loop():
    """The loop on which all requests run, in a thread of its own."""
    with LOOP_LOCK:
        return new_event_loop()


@functools.cache
def new_event_loop():
    loop = asyncio.new_event_loop()
    # Looking up a name takes a thread for as long as it hangs; a few that do must not hold up the others.
    loop.set_default_executor(ThreadPoolExecutor(LOOKUPS, "api-lookup"))
    threading.Thread(target=loop.run_forever, name="api-client", daemon=True).start()
    return loop


@functools.cache
def certificates():
    """What servers' certificates are checked against; it takes a moment to read."""
    return httpx.create_ssl_context()


class ApiClient:
    """One server. address: as `base_url` takes it; key: sent as a bearer token, "": none. For many threads.

    Its connections are kept for further requests until `close`.
    """

    def __init__(self, address, key="", limits=None):
        self.base, self.key, self.limits = base_url(address), key, limits or Limits()
        self.plain = False  # whether the server is known to refuse EXTRAS
        # The loop's own: the httpx.AsyncClient, how many requests it has in hand, whether it goes with the last one.
        self._http, self._requests, self._closing = None, 0, False

    def close(self):
        """Give up the connections, once the requests in hand are done. A later request opens one for itself alone."""
        asyncio.run_coroutine_threadsafe(self._close(), event_loop())

    async def _close(self):
        self._closing = True
        await self._leave()

    async def _leave(self):
        if self._closing and self._http and not self._requests:
            http, self._http = self._http, None
            await http.aclose()

    def _new_http(self):
        """An httpx.AsyncClient. Raises ApiFailure("unreachable")."""
        try:
            return httpx.AsyncClient(
                follow_redirects=False, trust_env=not is_near(self.base), verify=certificates(),
                timeout=httpx.Timeout(None, connect=self.limits.connect_seconds),
                limits=httpx.Limits(keepalive_expiry=KEPT_SECONDS),  # as many at once as are asked for
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # none is taken
            )  # fmt: skip
        except (ImportError, ValueError):  # SOCKS, or what is no proxy at all
            detail = "the proxy in the environment cannot be used"
            raise ApiFailure("unreachable", address=self.base, detail=detail) from None

    @contextlib.asynccontextmanager
    async def open(self, method, path, body=None):
        """The httpx.Response to a request, its body not read. Raises ApiFailure("unreachable")."""
        headers = {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        content = None if body is None else json.dumps(body, ensure_ascii=False).encode("utf-8", errors="replace")
        if content is not None:
            headers["Content-Type"] = "application/json"
        self._http = self._http or self._new_http()
        self._requests += 1
        try:
            try:
                request = self._http.build_request(method, self.base + path, content=content, headers=headers)
                response = await self._http.send(request, stream=True)
            except (*BROKEN, UnicodeError) as error:  # UnicodeError: a key that no header can bear
                raise ApiFailure("unreachable", address=self.base, detail=reason_of(error)) from None
            try:
                yield response
            finally:
                await response.aclose()
        finally:
            self._requests -= 1
            await self._leave()

    def models(self, seconds=3.0):
        """([{"id", "owned_by"}], seconds it took): what the server offers. Raises ApiFailure."""
        started = time.perf_counter()
        listing = asyncio.run_coroutine_threadsafe(self._listed(seconds), event_loop())
        found = {}
        try:
            for entry in json.loads(listing.result())["data"]:
                if isinstance(entry["id"], str) and 0 < len(entry["id"]) <= MAX_NAME:
                    found.setdefault(entry["id"], entry.get("owned_by"))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise ApiFailure("not_openai", address=self.base, detail="/models is no list of models") from None
        models = [{"id": name, "owned_by": owner} for name, owner in found.items()]
        return models[:MAX_MODELS], time.perf_counter() - started

    async def _listed(self, seconds):
        try:
            async with asyncio.timeout(seconds), self.open("GET", "/models") as response:
                if response.status_code != 200:
                    raise await self.refusal(response)
                return await self.read(response, MAX_LIST)
        except TimeoutError:
            raise ApiFailure("too_slow", address=self.base, seconds=seconds) from None

    def complete(self, model, prompt, **fields):
        """The `RemoteStream` that continues a prompt (of server.py's fine-tuned models: answers a question).

        fields: OpenAI's names, and top_k and repetition_penalty.
        """
        return RemoteStream(self, "/completions", {"model": model, "prompt": prompt, **fields})

    def chat(self, model, messages, **fields):
        """The `RemoteStream` of the answer to a chat, messages as {"role", "content"} each."""
        return RemoteStream(self, "/chat/completions", {"model": model, "messages": messages, **fields})

    async def read(self, response, most):
        """A body of at most `most` bytes. Raises ApiFailure."""
        body = bytearray()
        try:
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > most:
                    raise ApiFailure("not_openai", address=self.base, detail="its answer has no end")
        except BROKEN as error:
            raise ApiFailure("unreachable", address=self.base, detail=reason_of(error)) from None
        return bytes(body)

    async def refusal(self, response):
        """The ApiFailure of a response whose status is no 200."""
        status = response.status_code
        try:
            async with asyncio.timeout(self.limits.connect_seconds):
                body = await self.read(response, MAX_ERROR)
        except (ApiFailure, TimeoutError):
            body = b""
        detail = detail_of(body) or clean_text(response.reason_phrase)[:MAX_DETAIL]
        values = {"address": self.base, "status": status, "detail": detail}
        code = "busy" if status in TOO_BUSY else "refused"
        failure = ApiFailure(code, quota=b"insufficient_quota" in body, **values)
        failure.retry_after = retry_after_seconds(response.headers.get("Retry-After"))
        return failure


REASONS = {
    "refused": "connection refused", "ll connection attempts failed": "connection refused", "timed out": "timed out",
    "resolve": "no such host", "getaddrinfo": "no such host", "Name or service": "no such host",
    "No address": "no such host", "unreachable": "network unreachable", "No route": "no route",
    "certificate": "its certificate is not trusted", "ascii": "the key has characters that no header can bear",
}  # fmt: skip


def reason_of(error):
    """Why a connection failed, in a few words."""
    text = f"{error} {error.__cause__ or ''}"
    known = next((words for sign, words in REASONS.items() if sign in text), type(error).__name__)
    return "timed out" if isinstance(error, httpx.TimeoutException) else known


def detail_of(body):
    """The message of an error's body (bytes), in OpenAI's form or any."""
    text = body.decode("utf-8", errors="replace")
    with contextlib.suppress(ValueError, AttributeError, RecursionError):
        error = json.loads(text)
        error = error.get("error", error.get("detail", error.get("message", text)))
        text = error.get("message", text) if isinstance(error, dict) else error
    return " ".join(clean_text(str(text)).split())[:MAX_DETAIL]


class RemoteStream(TextStream):
    """An answer as another machine makes it.

    cut: "time" or "size" where a limit ended it (finish_reason "length" then), else "". Token counts are the server's,
    or, where it tells none, pieces. error: an ApiFailure.
    """

    prompt_cut = False  # a server tells that in a header at most

    def __init__(self, client, path, body):
        super().__init__()
        self._client, self._path = client, path
        self._body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        self.cut, self._chars, self._pieces_made = "", 0, 0
        self._reason = None  # why it ended, as the server says
        self._ending = threading.Lock()
        self._task = asyncio.run_coroutine_threadsafe(self._run(), event_loop())

    def cancel(self):
        """Give up; the connection is closed, so that the server stops too."""
        self.finish("cancelled")
        self._task.cancel()

    def finish(self, reason, error=None):
        """End the stream; the first reason counts."""
        with self._ending:
            super().finish(reason, error)

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
        except Exception as error:  # a mistake of ours: nobody else reads what this task raises
            traceback.print_exc()
            self.fail("internal", detail=type(error).__name__)
        finally:
            self.finish("cancelled")  # where the loop gives it up: a reader must not wait for ever

    async def _answer(self):
        """Read the answer, asked for again where the server is busy or does not know EXTRAS."""
        client, tries, plain = self._client, 0, self._client.plain
        while True:
            body = {k: v for k, v in self._body.items() if not (plain and k in EXTRAS)}
            async with client.open("POST", self._path, body) as response:
                if response.status_code == 200:
                    client.plain = plain
                    return await self._read(response)
                failure = await client.refusal(response)
            wait = DEFAULT_RETRY_SECONDS if failure.retry_after is None else failure.retry_after
            if failure.code == "busy" and tries < client.limits.retries and wait <= client.limits.longest_wait:
                tries += 1
                await asyncio.sleep(wait)
            elif response.status_code in (400, 422) and not plain:
                plain, refused = True, failure
            else:
                again = response.status_code in (400, 422) and not client.plain
                raise refused if again else failure

    async def _read(self, response):
        if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
            return await self._read_whole(response)
        buffer, searched, most = bytearray(), 0, self._client.limits.chars * BYTES_PER_CHAR
        chunks = response.aiter_raw()
        async for chunk in chunks:
            buffer += chunk
            most -= len(chunk)
            while (end := buffer.find(b"\n", searched)) >= 0:
                line, searched = bytes(buffer[:end]).strip(), 0
                del buffer[: end + 1]
                if self._take(line):
                    return await self._read_rest(chunks)
            searched = len(buffer)
            if most < 0:
                self.cut = "size"
                return self.finish("length")

    async def _read_rest(self, chunks):
        """Read what comes behind an answer's end: a connection with something left in it could not be kept."""
        most = 0 if self.cut else REST_BYTES
        with contextlib.suppress(httpx.HTTPError, OSError):  # TimeoutError is one
            async with asyncio.timeout(REST_SECONDS):
                while most > 0 and (piece := await anext(chunks, b"")):
                    most -= len(piece)

    async def _read_whole(self, response):
        """An answer in one JSON, from a server that does not stream."""
        body = await self._client.read(response, self._client.limits.chars * BYTES_PER_CHAR)
        self._take(b"data: " + body)
        self.finish(self._reason or "stop")

    def _take(self, line):
        """Take an event; returns whether the answer is over."""
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
            text = (choice.get("delta") or choice.get("message") or choice).get("content") or choice.get("text") or ""
            reason = choice.get("finish_reason")
        except (ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError):
            raise ApiFailure("not_openai", address=self._client.base, detail="a piece of its stream") from None
        self.prompt_tokens = count_of(prompt_tokens, self.prompt_tokens)
        self._add(clean_text(text) if isinstance(text, str) else "")
        self.completion_tokens = count_of(completion_tokens, self._pieces_made)
        if reason:
            self._reason = "length" if reason == "length" else "stop"
        return self.finish_reason is not None

    def _add(self, text):
        if not text:
            return
        self.first_token = self.first_token or time.perf_counter()
        self._pieces_made += 1
        room = self._client.limits.chars - self._chars
        self._chars += len(text)
        self.put(text[:room])
        if len(text) > room:
            self.cut = "size"
            self.finish("length")


def count_of(claimed, known):
    """A count of tokens that a server claims, where it is a credible number, else the one that is known."""
    credible = isinstance(claimed, (int, float)) and 0 < claimed <= MAX_COUNT
    return int(claimed) if credible else known
