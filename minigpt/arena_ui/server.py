"""The page in uvicorn: who may reach it and what of Gradio is served."""

import contextlib
import hmac
import json
import threading
import time
from urllib.parse import urlsplit

import anyio.to_thread
import gradio as gr
import uvicorn
from fastapi import FastAPI

from minigpt.arena_ui.bootstrap import FOLDER
from minigpt.arena_ui.common import LOCAL_NAMES
from minigpt.arena_ui.i18n import translations
from minigpt.arena_ui.language import ChineseForAll
from minigpt.common.net import LOOPBACK_HOSTS

THREADS = 256  # handlers that may wait at once: each answer on its way has one
UPLOAD = "8mb"
BODY_BYTES = 9 << 20  # of any request, uploads among them
START_SECONDS = 30
SESSIONS = 500  # whose state is kept, a quarter of a megabyte each; the oldest is forgotten
API = "/gradio_api/"
# What the page needs of Gradio's paths below API; its others (a proxy, an editor, recordings …) are not served.
SERVED = (
    "api/", "app_id", "call/", "cancel", "file=", "heartbeat/", "info", "login_check", "queue/", "reset", "run/",
    "startup-events", "theme.css", "upload", "upload_progress", "user",
)  # fmt: skip
NOT_SERVED = ("/monitoring", "/dev/", "/svelte", "/openapi.json", "/docs", "/redoc")
CSS = """
#head { align-items: center; flex-wrap: nowrap; }
#title { font-size: 1.3em; font-weight: 600; }
.status textarea { border: 0 !important; background: none !important; padding: 2px 4px; font-size: .9em; }
.vega-embed { width: 100%; }
.vega-embed summary { display: none; }
.table-wrap th, .table-wrap td { min-width: 4.5em; }
.table-wrap * { font-family: var(--font) !important; }
.message, .message * { overflow-wrap: anywhere; }
@media (max-width: 640px) { .gradio-container { padding: 6px !important; } }
"""


class Guard:
    """ASGI: refuses what the page never sends.

    local: the page is for this machine alone, so a name that is not this machine's is a web page's trick (DNS
    rebinding). A form or script of another origin (CSRF) is refused always, and so are paths of Gradio that the page
    does not use, among them those that would fetch an address for whoever asks.
    """

    def __init__(self, app, local):
        self.app, self.local = app, local

    async def __call__(self, scope, receive, send):
        reason = self.refusal(scope) if scope["type"] == "http" else None
        if reason is None:
            return await self.app(scope, receive, send)
        status, text = reason
        body = json.dumps({"detail": text}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def refusal(self, scope):
        """(status, why), or None for what may pass."""
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        host, path = headers.get("host", ""), scope["path"]
        if self.local and host.rsplit(":", 1)[0] not in LOCAL_NAMES:
            return 403, "this page is for this machine only: open it as http://127.0.0.1, or start it with --host"
        origin = headers.get("origin")
        if origin and urlsplit(origin).netloc != host:
            return 403, "another page may not ask this one"
        if not self.serves(path):
            return 404, "not found"
        if "transfer-encoding" in headers:
            return 411, "send the body's length"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > BODY_BYTES:
            return 413, f"the request is longer than {BODY_BYTES} bytes"
        return None

    def serves(self, path):
        """Whether the page has a use for a path."""
        if path.startswith(NOT_SERVED):
            return False
        if not path.startswith(API):
            return True
        rest = path.removeprefix(API)
        return rest.startswith(SERVED) and not rest.startswith(("file=http", "file=//"))


def checker(auth):
    """The function that checks a name and password against "name:password", taking as long for any."""
    wanted = auth.encode()
    return lambda user, password: hmac.compare_digest(f"{user}:{password}".encode("utf-8", "replace"), wanted)


class PageServer:
    """uvicorn over the page, in a thread of its own.

    sock: from sockets.listening_socket; auth: "user:password", or "" for none.
    """

    def __init__(self, blocks, sock, host, auth=""):
        self.port = sock.getsockname()[1]
        blocks.state_session_capacity = SESSIONS
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=enough_threads)
        app = gr.mount_gradio_app(
            app, blocks, path="/", auth=checker(auth) if auth else None, server_name=host, server_port=self.port,
            footer_links=[], run_history=False, show_error=False, max_file_size=UPLOAD, ssr_mode=False,
            enable_monitoring=False, mcp_server=False, pwa=False, i18n=gr.I18n(**translations()), theme=theme(),
            css=CSS,
        )  # fmt: skip
        blocks.has_launched = True  # else Gradio takes the set-up for not yet done, and checks no path of a file
        config = uvicorn.Config(
            Guard(ChineseForAll(app), local=host in LOOPBACK_HOSTS and not auth), log_level="warning", access_log=False,
            ws="none",  # the page opens no WebSocket
            proxy_headers=False,  # else a header could say that a request is from this machine
            timeout_graceful_shutdown=2,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([sock],), name="page", daemon=True)

    def start(self):
        """Serve; returns once the page can be opened, and says whether that is so."""
        self._thread.start()
        until = time.monotonic() + START_SECONDS
        while self._thread.is_alive() and not self._server.started and time.monotonic() < until:
            time.sleep(0.02)
        return self._server.started

    def is_alive(self):
        """Whether it still serves."""
        return self._thread.is_alive()

    def stop(self, seconds=5.0):
        """Close the connections, end, and delete what Gradio has kept."""
        self._server.should_exit = True
        self._thread.join(seconds)
        FOLDER.cleanup()


@contextlib.asynccontextmanager
async def enough_threads(app):
    """Let as many handlers wait at once as there may be answers on their way."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
    yield


def theme():
    """Gradio's default in the system's fonts: those of the web are not reached everywhere."""
    fonts = ["system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]
    return gr.themes.Default(font=fonts, font_mono=["ui-monospace", "Consolas", "monospace"])
