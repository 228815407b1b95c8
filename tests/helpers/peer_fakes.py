"""An OpenAI-compatible server on a free port of 127.0.0.1 (`peer`) with models that behave well and badly.

Only "kept" and "whole" leave the connection open after an answer. A model's name says how it behaves:

| model | behaviour |
|---|---|
| echo, slow | repeats the prompt character by character; slow with 50 ms between them |
| kept | repeats the prompt in one piece |
| whole | answers without streaming |
| plain | refuses fields that OpenAI's API does not have, one at a time |
| newer, single | refuses max_tokens, as OpenAI's newer models do; refuses to stream |
| thoughtful | reasons apart from the text |
| busy | status 429 for the first two requests |
| dies | closes the connection after three characters |
| drips, silent | sends a byte every 100 ms of a long line; sends nothing |
| endless, line, zipped, packed | sends pieces without end; one line without end; a large, a small compressed answer |
| headers, continue | sends headers, or 100 Continue, without end |
| elsewhere, faraway | redirects; the body of the second is endless |
| junk, odd, error | not JSON; JSON of another shape; an error inside the stream |
| counts, surrogate | impossible token counts; unpaired surrogates |
| hostile | sends `about.hostile` |
"""

import gzip
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

HOSTILE = [
    "<script>window.hacked=1</script>",
    "<img src=x onerror='window.hacked=1'>",
    "<svg onload=window.hacked=1>",
    "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>",
    "<a href='javascript:window.hacked=1'>x</a>",
    "![image](http://127.0.0.1:9/track.png)",
    "[link](javascript:window.hacked=1)",
    "# heading\n\n**bold** `code` | a | b |\n|---|---|",
    "$$\\frac{1}{0}$$ \\(x\\) <math><mi>x</mi></math>",
    "\x1b[31mred\x1b[0m\x07\x08",
    "\u202egnp.exe\u202c \u200f\u2067right to left\u2069",
    "zero\u200bwidth\ufeff\u00ad",
    "{{7*7}} ${7*7} <%= 7*7 %> {% raw %}",
    "</textarea></div><script>window.hacked=1</script>",
    '"><script>window.hacked=1</script>',
    "<style>*{display:none}</style>",
    "<details open ontoggle=window.hacked=1><summary>x</summary></details>",
    "__i18n__" + json.dumps({"__type__": "translation_metadata", "key": "minigpt_send"}),
    "<thinking>hidden</thinking> <|endoftext|> ## \U0001f600 \ud7ff",
    "长" * 1_000_000,
]


def delta(text, reason=None):
    """An event of the stream with a piece of text."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send(self, status, body, kind="application/json", **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.server.about.seen.append((self.path, dict(self.headers), None))
        models = self.server.about.models
        if models is None:
            time.sleep(self.server.about.listing_seconds)
            models = ["echo"]
        about = {"object": "model", "owned_by": self.server.about.owner}
        entries = [{**about, **(model if isinstance(model, dict) else {"id": model})} for model in models]
        self.send(200, json.dumps({"object": "list", "data": entries}).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.about.seen.append((self.path, dict(self.headers), body))
        prompt = body.get("prompt") or body["messages"][-1]["content"]
        if self.server.about.refuse:
            self.server.about.refuse -= 1
            return self.send(400, b'{"error": {"message": "the prompt is too long"}}')
        try:
            getattr(self, f"as_{body['model']}")(prompt, body)
            self.server.about.finished.append(body["model"])
        except OSError:  # the client has left
            self.server.about.left.append(body["model"])

    def begin(self, **headers):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.close_connection = True

    def say(self, data):
        self.wfile.write(data)
        self.wfile.flush()

    def as_echo(self, prompt, body, pause=0.0, most=None):
        self.begin()
        for character in prompt[:most]:
            self.say(delta(character))
            time.sleep(pause)
        self.say(delta("", "stop"))
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(prompt)}
        self.say(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode())

    def as_slow(self, prompt, body):
        self.as_echo(prompt, body, 0.05)

    def as_dies(self, prompt, body):
        self.begin()
        for character in prompt[:3]:
            self.say(delta(character))
            time.sleep(0.05)
        self.connection.close()

    def as_drips(self, prompt, body):
        self.begin()
        for byte in delta("x" * 1000):
            self.say(bytes([byte]))
            time.sleep(0.1)

    def as_endless(self, prompt, body):
        self.begin()
        while True:
            self.say(delta("啊" * 100))

    def as_line(self, prompt, body):
        self.begin()
        self.say(b"data: ")
        while True:
            self.say(b"x" * 65536)

    def as_whole(self, prompt, body):
        message = {"role": "assistant", "content": f"整个{prompt}"}
        choices = [{"index": 0, "message": message, "finish_reason": "length"}]
        self.send(200, json.dumps({"choices": choices}, indent=1).encode())

    def as_plain(self, prompt, body):
        if extra := [name for name in ("top_k", "seed", "stream_options") if name in body]:
            return self.send(400, json.dumps({"error": {"message": f"unknown field {extra[0]}"}}).encode())
        self.as_echo(prompt, body)

    def as_newer(self, prompt, body):
        if "max_tokens" in body:
            error = {"message": "Unsupported parameter. Use 'max_completion_tokens' instead.", "param": "max_tokens"}
            return self.send(400, json.dumps([{"error": error}]).encode())
        self.as_echo(prompt, body)

    def as_single(self, prompt, body):
        if body.get("stream"):
            detail = [{"type": "x", "loc": ["body", "stream"], "msg": "Extra inputs are not permitted"}]
            return self.send(422, json.dumps({"detail": detail}).encode())
        self.as_whole(prompt, body)

    def as_thoughtful(self, prompt, body):
        self.begin()
        choice = {"index": 0, "delta": {"content": "", "reasoning_content": "想一想"}, "finish_reason": None}
        self.say(f"data: {json.dumps({'choices': [choice]})}\n\n".encode() + delta("好", "stop") + b"data: [DONE]\n\n")

    def as_packed(self, prompt, body):
        self.begin(Content_Encoding="gzip")
        self.say(gzip.compress(delta(prompt, "stop") + b"data: [DONE]\n\n"))

    def as_kept(self, prompt, body):
        self.send_response(200)
        for name, value in (
            ("Content-Type", "text/event-stream"),
            ("Transfer-Encoding", "chunked"),
            ("Set-Cookie", "a=b"),
        ):
            self.send_header(name, value)
        self.end_headers()
        for piece in (delta(prompt, "stop"), b"data: [DONE]\n\n", b""):
            self.say(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")

    def as_busy(self, prompt, body):
        self.server.about.busy += 1
        if self.server.about.busy <= 2:
            return self.send(429, b"{}", Retry_After="0.1")
        self.as_echo(prompt, body)

    def as_silent(self, prompt, body):
        time.sleep(20)

    def as_headers(self, prompt, body):
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            self.say(b"X: y\r\n")
            time.sleep(0.05)

    def as_continue(self, prompt, body):
        while True:
            self.say(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)

    def as_faraway(self, prompt, body):
        """A redirect with an endless body."""
        self.send_response(302)
        self.send_header("Location", "http://[bad")
        self.end_headers()
        while True:
            self.say(b"x" * 65536)

    def as_elsewhere(self, prompt, body):
        self.send(307, b"", Location="http://127.0.0.1:9/secret")

    def as_zipped(self, prompt, body):
        self.begin(Content_Encoding="gzip")
        self.say(gzip.compress(delta("炸" * 10**6)))

    def as_junk(self, prompt, body):
        self.begin()
        self.say(b"data: {nonsense\n\n")

    def as_odd(self, prompt, body):
        self.begin()
        self.say(b'data: {"choices": [{"delta": {"content": {"a": 1}}}], "usage": null}\n\n')
        self.say(b'data: {"choices": [7]}\n\n')

    def as_counts(self, prompt, body):
        self.begin()
        self.say(delta("好", "stop"))
        self.say(b'data: {"choices": [], "usage": {"completion_tokens": 1e400, "prompt_tokens": -5}}\n\n')

    def as_surrogate(self, prompt, body):
        self.begin()
        self.say(delta("\ud83d好\udc00", "stop") + b"data: [DONE]\n\n")

    def as_error(self, prompt, body):
        self.begin()
        self.say(delta("好") + b'data: {"error": {"message": "out of <b>memory</b>"}}\n\n')

    def as_hostile(self, prompt, body):
        self.begin()
        self.say(delta(self.server.about.hostile, "stop") + b"data: [DONE]\n\n")


class Server(ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False
    request_queue_size = 256  # simultaneous connections

    def handle_error(self, *_):  # the client has closed the connection
        pass

    def process_request(self, *connection):
        self.about.connected += 1
        super().process_request(*connection)

    def shutdown_request(self, request):
        super().shutdown_request(request)
        self.about.disconnected += 1


@contextmanager
def peer(models=("echo",), owner="someone", listing_seconds=0.0):
    """`about` of a running server: address, port, requests `seen` [(path, headers, body)], models `finished` or `left`.

    models: names that it lists; None: the list takes `listing_seconds`.
    """
    server = Server(("127.0.0.1", 0), Handler)
    server.about = SimpleNamespace(
        models=models, owner=owner, listing_seconds=listing_seconds, seen=[], finished=[], left=[], busy=0, hostile="",
        refuse=0, connected=0, disconnected=0,
        port=server.server_port, address=f"127.0.0.1:{server.server_port}",
    )  # fmt: skip
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.about
    finally:
        server.shutdown()
        server.server_close()
