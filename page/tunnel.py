"""Gradio's streams of events over WebSockets, so that many tabs can be open at once.

A browser holds no more than six HTTP/1.1 connections to a server, all tabs together. Each of Gradio's tabs holds one
for as long as it is open and one more while an answer comes, so that the fourth tab would wait for the others'.
WebSockets are not counted among the six: SCRIPT, in the page, opens one where Gradio's client would read such a stream,
and `Tunnel` passes on what the app answers. Where no WebSocket comes about, the stream is read as it always was.
"""

import asyncio
import contextlib

from starlette.exceptions import HTTPException

STREAMS = ("/gradio_api/queue/data", "/gradio_api/heartbeat/")
# Of the opening handshake alone; the app is asked by a plain GET.
HANDSHAKE = (b"connection", b"upgrade", b"origin")
SCRIPT = """<script>
// Gradio knows zh-CN and zh-TW, and takes other forms of Chinese for English.
if (/^zh/i.test(navigator.language)) {
  Object.defineProperty(navigator, "language", {get: () => "zh-CN"});
  Object.defineProperty(navigator, "languages", {get: () => ["zh-CN"]});
}
(() => {
  const plain = window.fetch;
  // An event that joins just when the stream of the one before is closing would wait for news from it for ever: the
  // answer to the joining must not overtake the news that the stream is closed.
  const OVERTAKING = 40, PATIENCE = 3000;  // milliseconds
  let live = 0;
  const streams = new RegExp("/gradio_api/(queue/data|heartbeat/)");
  const overSocket = (url, init, fallBack) => new Promise((resolve, reject) => {
    const socket = new WebSocket(url.replace(/^http/, "ws"));
    socket.binaryType = "arraybuffer";
    const isData = url.includes("/queue/data");
    let begun = false, output;
    live += isData;
    const body = new ReadableStream({
      start(controller) { output = controller; },
      cancel() { socket.close(); },
    });
    socket.onmessage = ({data}) => {  // the first is empty: the app has answered 200
      if (begun) output.enqueue(new Uint8Array(data));
      else resolve(new Response(body, {headers: {"Content-Type": "text/event-stream"}}));
      begun = true;
    };
    setTimeout(() => begun || socket.close(), PATIENCE);  // a proxy may swallow the handshake
    socket.onclose = ({code}) => {
      live -= isData;
      if (!begun) fallBack().then(resolve, reject);
      else try {
        // A connection that broke is no end: Gradio says so, and opens another for what is asked next.
        if (code === 1000) output.close(); else output.error(new TypeError("network error"));
      } catch { /* it was aborted */ }
    };
    init?.signal?.addEventListener("abort", () => {
      const error = new DOMException("aborted", "AbortError");
      if (begun) try { output.error(error); } catch { /* it had ended */ }
      begun = true;
      reject(error);
      socket.close();
    });
  });
  window.fetch = (input, init) => {
    const url = new URL(input instanceof Request ? input.url : input, location.href).href;
    const fallBack = () => plain(input, init);
    if (url.includes("/gradio_api/queue/join") && live)
      return fallBack().then((answer) => new Promise((resolve) => setTimeout(resolve, OVERTAKING, answer)));
    return streams.test(url) ? overSocket(url, init, fallBack) : fallBack();
  };
})();
</script>"""


class Tunnel:
    """ASGI: a WebSocket to the path of one of STREAMS gets, as binary messages, the body of the app's answer to a GET.

    The first message is empty and says that the status is 200; with any other the socket is closed without one. The
    app sees the reader leave when the socket closes. (Sockets that another origin's page opens: page.serving.Guard.)
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and scope["path"] == "/":
            return await self._with_script(scope, receive, send)
        if scope["type"] != "websocket":
            return await self.app(scope, receive, send)
        await receive()  # websocket.connect
        if not scope["path"].startswith(STREAMS):
            return await send({"type": "websocket.close", "code": 1008})
        await send({"type": "websocket.accept"})
        await Passage(scope, receive, send).run(self.app)

    async def _with_script(self, scope, receive, send):
        """The page with SCRIPT as the first thing in its head: Gradio's own setting adds it too late."""
        headers = [(key, value) for key, value in scope["headers"] if key != b"accept-encoding"]
        started, body = None, b""

        async def hold(message):
            nonlocal started, body
            if message["type"] == "http.response.start":
                started = message
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            whole = body.replace(b"<head>", b"<head>" + SCRIPT.encode(), 1)
            kept = [(key, value) for key, value in started["headers"] if key != b"content-length"]
            length = (
                started["headers"] if scope["method"] == "HEAD" else [*kept, (b"content-length", b"%d" % len(whole))]
            )
            await send({**started, "headers": length})
            await send({"type": "http.response.body", "body": whole})

        await self.app({**scope, "headers": headers}, receive, hold)


class Passage:
    """One stream on its way through a socket."""

    def __init__(self, scope, receive, send):
        headers = [(key, value) for key, value in scope["headers"] if not is_handshake(key)]
        self.scope = {
            **scope, "type": "http", "method": "GET", "scheme": scope["scheme"].replace("ws", "http"),
            "headers": headers, "http_version": "1.1",
            "asgi": {"version": "3.0", "spec_version": "2.3"},  # by which the app listens for the reader's leaving
        }  # fmt: skip
        self._receive, self._send = receive, send
        self._left, self._asked, self._whole = asyncio.Event(), False, False

    async def run(self, app):
        """Pass the answer on until it ends, or the reader has left."""
        watching = asyncio.create_task(self._watch())
        try:
            # The socket broke while something was sent; a session that Gradio does not know.
            with contextlib.suppress(OSError, HTTPException):
                await app(self.scope, self._request, self._response)
        finally:
            watching.cancel()
            if not self._left.is_set():
                await self._send({"type": "websocket.close", "code": 1000 if self._whole else 1011})

    async def _watch(self):
        while (await self._receive())["type"] != "websocket.disconnect":
            pass
        self._left.set()

    async def _request(self):
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _response(self, message):
        if self._left.is_set():
            return
        if message["type"] == "http.response.start":
            if message["status"] != 200:
                self._left.set()
                await self._send({"type": "websocket.close", "code": 1011})
            else:
                await self._send({"type": "websocket.send", "bytes": b""})
            return
        self._whole = not message.get("more_body")
        if message.get("body"):
            await self._send({"type": "websocket.send", "bytes": message["body"]})


def is_handshake(key):
    return key in HANDSHAKE or key.startswith(b"sec-websocket")
