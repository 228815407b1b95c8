"""A client of OpenAI-compatible APIs: this project's server.py, LM Studio, Ollama, vLLM, hosted services.

Everything that comes from the other side is bounded in size and time, and is text: no redirect is followed, nothing is
decompressed, no character is half of a pair.
"""

import ipaddress
import json
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests
import urllib3

from errors import UserError
from streams import TextStream

MAX_LINE = 1 << 20  # bytes of one event
MAX_LIST = 1 << 20  # bytes of a list of models
MAX_MODELS = 100
MAX_COUNT = 10**9  # of tokens that a server claims
MAX_NAME = 80  # characters of a model's name
MAX_DETAIL = 200  # characters of a foreign error that are shown
PIECE = 65536  # bytes read at once, at most
BYTES_PER_CHAR = 256  # of an event around a single character; 32,768 characters may thus take 8 MiB
# What OpenAI's own API does not know; left out where a server refuses a request with them.
EXTRAS = ("top_k", "repetition_penalty", "stream_options", "seed")
TOO_BUSY = (429, 503)
# What requests and the libraries below it let through when a connection fails.
BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)


MESSAGES = {
    "address": "{address} is not a usable address ({detail}); write it like http://192.168.1.5:5000",
    "unreachable": "{address} does not answer ({detail})",
    "refused": "{address} refused the request with status {status}: {detail}",
    "busy": "{address} is too busy now (status {status})",
    "not_openai": "{address} does not speak OpenAI's API ({detail})",
    "broke_off": "{address} broke off in the middle of the answer",
    "too_slow": "{address} sent nothing within {seconds:g} s",
}


class ApiFailure(UserError):
    """A request that failed. code: unreachable, refused, busy, not_openai, broke_off, too_slow or address;
    values: what the message is filled with, for those who say it in another language."""

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
    """Whether a URL's host is this machine or a private network, where no proxy leads."""
    host = urlsplit(url).hostname
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host == "localhost" or host.endswith((".local", ".localhost", ".lan")) or "." not in host


class ApiClient:
    """One server. address: as `base_url` takes it; key: sent as a bearer token, "": none. For many threads."""

    def __init__(self, address, key="", limits=None):
        self.base, self.key, self.limits = base_url(address), key, limits or Limits()
        self.plain = False  # whether the server is known to refuse EXTRAS

    def open(self, method, path, body=None, timeout=None):
        """The response to a request, its body not read. Raises ApiFailure("unreachable")."""
        headers = {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        session = requests.Session()
        session.trust_env = not is_near(self.base)
        data = None if body is None else json.dumps(body, ensure_ascii=False).encode("utf-8", errors="replace")
        if data is not None:
            headers["Content-Type"] = "application/json"
        try:
            return session.request(
                method, self.base + path, data=data, headers=headers, stream=True, allow_redirects=False,
                timeout=timeout or (self.limits.connect_seconds, self.limits.seconds),
                auth=lambda request: request,  # else a .netrc would put its own in the key's place
            )  # fmt: skip
        except (*BROKEN, UnicodeError) as error:  # UnicodeError: a key that no header can bear
            raise ApiFailure("unreachable", address=self.base, detail=reason_of(error)) from None

    def models(self, seconds=3.0):
        """([{"id", "owned_by"}], seconds it took): what the server offers. Raises ApiFailure."""
        started = time.perf_counter()
        with self.open("GET", "/models", timeout=(seconds, seconds)) as response:
            if response.status_code != 200:
                raise self.refusal(response)
            body = self.read(response, MAX_LIST, started + seconds)
        try:
            listed = json.loads(body)["data"]
            found = [(entry["id"], entry.get("owned_by")) for entry in listed if isinstance(entry["id"], str)]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise ApiFailure("not_openai", address=self.base, detail="/models is no list of models") from None
        models = [{"id": name, "owned_by": owner} for name, owner in found if 0 < len(name) <= MAX_NAME]
        return models[:MAX_MODELS], time.perf_counter() - started

    def complete(self, model, prompt, **fields):
        """The `RemoteStream` that continues a prompt (of server.py's fine-tuned models: answers a question).

        fields: OpenAI's names, and top_k and repetition_penalty.
        """
        return RemoteStream(self, "/completions", {"model": model, "prompt": prompt, **fields})

    def chat(self, model, messages, **fields):
        """The `RemoteStream` of the answer to a chat, messages as {"role", "content"} each."""
        return RemoteStream(self, "/chat/completions", {"model": model, "messages": messages, **fields})

    def read(self, response, most, until):
        """A body of at most `most` bytes, read until `until` (perf_counter) at the latest. Raises ApiFailure."""
        body = b""
        try:
            while chunk := response.raw.read1(PIECE):
                body += chunk
                if len(body) > most or time.perf_counter() > until:
                    raise ApiFailure("not_openai", address=self.base, detail="its answer has no end")
        except BROKEN as error:
            raise ApiFailure("unreachable", address=self.base, detail=reason_of(error)) from None
        return body

    def refusal(self, response):
        """The ApiFailure of a response whose status is no 200."""
        status = response.status_code
        if status in TOO_BUSY:
            return ApiFailure("busy", address=self.base, status=status)
        try:
            body = self.read(response, PIECE, time.perf_counter() + self.limits.connect_seconds)
        except ApiFailure:
            body = b""
        return ApiFailure("refused", address=self.base, status=status, detail=detail_of(body) or response.reason)


def reason_of(error):
    """Why a connection failed, in a few words."""
    text = str(error)
    for sign, words in (
        ("refused", "connection refused"),
        ("timed out", "timed out"),
        ("resolve", "no such host"),
        ("getaddrinfo", "no such host"),
        ("unreachable", "network unreachable"),
        ("No route", "no route"),
        ("certificate", "its certificate is not trusted"),
        ("latin-1", "the key has characters that no header can bear"),
    ):
        if sign in text:
            return words
    return type(error).__name__


def detail_of(body):
    """The message of an error's body (bytes), in OpenAI's form or any."""
    text = body.decode("utf-8", errors="replace")
    try:
        error = json.loads(text)
        error = error.get("error", error.get("detail", error.get("message", text)))
        text = error.get("message", text) if isinstance(error, dict) else error
    except (ValueError, AttributeError, RecursionError):
        pass
    return " ".join(clean_text(str(text)).split())[:MAX_DETAIL]


class RemoteStream(TextStream):
    """An answer as another machine makes it, read in a thread of its own.

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
        self._response, self._ended, self._ending = None, threading.Event(), threading.Lock()
        self._timer = threading.Timer(client.limits.seconds, self._time_is_up)
        self._timer.daemon = True
        self._timer.start()
        threading.Thread(target=self._run, name="peer", daemon=True).start()

    def cancel(self):
        """Give up; the connection is closed, so that the server stops too."""
        self.finish("cancelled")

    def finish(self, reason, error=None):
        """End the stream, and the connection with it."""
        with self._ending:
            super().finish(reason, error)
        self._ended.set()
        self._timer.cancel()
        self._hang_up()

    def _hang_up(self):
        if (response := self._response) is not None:
            try:
                response.raw.shutdown()  # wakes the thread that reads
            except (*BROKEN, ValueError, AttributeError, RuntimeError):
                pass  # it has been closed already

    def _time_is_up(self):
        if self._chars:
            self.cut = "time"
            self.finish("length")
        else:
            limits = self._client.limits
            self.finish("error", ApiFailure("too_slow", address=self._client.base, seconds=limits.seconds))

    def _run(self):
        try:
            with self._open() as self._response:
                if self._ended.is_set():  # cancelled meanwhile
                    return
                self._read(self._response)
            if self._reason:  # a server that sends no [DONE]
                self.finish(self._reason)
        except ApiFailure as failure:
            self.finish("error", failure)
        except BROKEN:
            self.finish("error", ApiFailure("broke_off", address=self._client.base))
        finally:
            # Also where something else was raised: a reader must not wait for ever.
            self.finish("error", ApiFailure("broke_off", address=self._client.base))

    def _open(self):
        """The response with status 200, tried again where the server is busy or does not know EXTRAS."""
        client, tries = self._client, 0
        while True:
            body = {k: v for k, v in self._body.items() if not (client.plain and k in EXTRAS)}
            response = client.open("POST", self._path, body)
            if response.status_code == 200:
                return response
            with response:
                failure = client.refusal(response)
                wait = seconds_of(response.headers.get("Retry-After"))
            if failure.code == "busy" and tries < client.limits.retries and wait <= client.limits.longest_wait:
                tries += 1
                if self._ended.wait(wait):
                    raise failure
            elif response.status_code in (400, 422) and any(k in body for k in EXTRAS):
                client.plain = True
            else:
                raise failure

    def _read(self, response):
        if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
            return self._read_whole(response)
        buffer, most = b"", self._client.limits.chars * BYTES_PER_CHAR
        while chunk := response.raw.read1(PIECE):
            most -= len(chunk)
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                if self._take(line.strip()):
                    return
            if len(buffer) > MAX_LINE or most < 0:
                self.cut = "size"
                return self.finish("length")

    def _read_whole(self, response):
        """An answer in one JSON, from a server that does not stream."""
        limits = self._client.limits
        body = self._client.read(response, max(MAX_LINE, 8 * limits.chars), self.started + limits.seconds)
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
            self.prompt_tokens = min(int(usage.get("prompt_tokens") or self.prompt_tokens), MAX_COUNT)
            choice = (event.get("choices") or [{}])[0]
            text = (choice.get("delta") or choice.get("message") or choice).get("content") or choice.get("text") or ""
            self._add(clean_text(text) if isinstance(text, str) else "")
            self.completion_tokens = min(int(usage.get("completion_tokens") or self._pieces_made), MAX_COUNT)
            if choice.get("finish_reason"):
                self._reason = "length" if choice["finish_reason"] == "length" else "stop"
        except (ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError, OverflowError):
            raise ApiFailure("not_openai", address=self._client.base, detail="a piece of its stream") from None
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


def seconds_of(header):
    """Seconds that a Retry-After header asks for; 1 where it is missing or a date."""
    try:
        return max(0.0, float(header))
    except (TypeError, ValueError):
        return 1.0
