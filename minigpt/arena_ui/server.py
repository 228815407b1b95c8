"""Serves the page with uvicorn, and restricts who can reach it and which of Gradio's paths are served."""

import contextlib
import hmac
import json
import logging
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import anyio.to_thread
import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from minigpt.arena_ui.bootstrap import GRADIO_FOLDER
from minigpt.arena_ui.i18n import PageHead, script_texts, translations
from minigpt.arena_ui.theme import make_theme
from minigpt.common.net import LOCAL_HOST_NAMES, LOOPBACK_HOSTS, host_name

PAGE_FOLDER = Path(__file__).parent
MAX_HANDLER_THREADS = 256  # each answer that is being generated occupies one
MAX_UPLOAD = "8mb"
MAX_BODY_BYTES = 9 << 20  # of any request: an upload and its form
START_TIMEOUT_SECONDS = 30
MAX_SESSIONS = 500  # sessions with state, about 256 KiB each; beyond these the oldest is dropped
API_PREFIX = "/gradio_api/"
# The paths below API_PREFIX that the page needs. Others (a proxy, an editor, recordings …) are not served.
ALLOWED_API_PATHS = (
    "api/", "app_id", "call/", "cancel", "file=", "heartbeat/", "info", "login_check", "queue/", "reset", "run/",
    "startup-events", "theme.css", "upload", "upload_progress", "user",
)  # fmt: skip
REFUSED_PATHS = ("/monitoring", "/dev/", "/svelte", "/openapi.json", "/docs", "/redoc")


class Guard:
    """ASGI middleware that refuses requests which the page itself never sends.

    Always refused: requests from other origins (CSRF), and Gradio's paths that the page does not use, some of which
    would fetch any address. local: the page is for this machine only, so other host names are refused as well (DNS
    rebinding).
    """

    def __init__(self, app, local):
        self.app, self.local = app, local

    async def __call__(self, scope, receive, send):
        reason = self.refusal(scope) if scope["type"] == "http" else None
        if reason is None:
            return await self.app(scope, receive, send)
        status, text = reason
        await JSONResponse({"detail": text}, status)(scope, receive, send)

    def refusal(self, scope):
        """(status, message), or None if the request is allowed."""
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        host, path = headers.get("host", ""), scope["path"]
        if self.local and host_name(host) not in LOCAL_HOST_NAMES:
            return 403, "this page is for this machine only: open it as http://127.0.0.1, or start it with --host"
        origin = headers.get("origin")
        if origin and urlsplit(origin).netloc != host:
            return 403, "requests from other origins are refused"
        if not is_served(path):
            return 404, "not found"
        if "transfer-encoding" in headers:
            return 411, "a Content-Length header is required"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            return 413, f"the request is longer than {MAX_BODY_BYTES} bytes"
        return None


def is_served(path):
    """Whether the page uses a path."""
    if path.startswith(REFUSED_PATHS):
        return False
    if not path.startswith(API_PREFIX):
        return True
    rest = path.removeprefix(API_PREFIX)
    return rest.startswith(ALLOWED_API_PATHS) and not rest.startswith(("file=http", "file=//"))


def login_checker(auth):
    """A function that compares a user and password with "user:password", in constant time."""
    expected = auth.encode()
    return lambda user, password: hmac.compare_digest(f"{user}:{password}".encode("utf-8", "replace"), expected)


class PageServer:
    """A thread that serves the page with uvicorn.

    sock: from common.net.listening_socket; auth: "user:password", or "" for none.
    """

    def __init__(self, blocks, sock, host, auth=""):
        self.port = sock.getsockname()[1]
        blocks.state_session_capacity = MAX_SESSIONS
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=raise_thread_limit)
        app = gr.mount_gradio_app(
            app, blocks, path="/", auth=login_checker(auth) if auth else None, server_name=host, server_port=self.port,
            footer_links=[], run_history=False, show_error=False, max_file_size=MAX_UPLOAD, ssr_mode=False,
            enable_monitoring=False, mcp_server=False, pwa=False, i18n=gr.I18n(**translations()), theme=make_theme(),
            css_paths=PAGE_FOLDER / "page.css", head=page_script(), favicon_path=str(PAGE_FOLDER / "icon.svg"),
        )  # fmt: skip
        blocks.has_launched = True  # before it is launched, Gradio does not check the paths of files
        config = uvicorn.Config(
            Guard(PageHead(app), local=host in LOOPBACK_HOSTS and not auth), log_level="warning",
            access_log=False, ws="none",  # the page opens no WebSocket
            proxy_headers=False,  # otherwise a header could claim that a request comes from this machine
            timeout_graceful_shutdown=2,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([sock],), name="page", daemon=True)

    def start(self):
        """Start the thread and wait until the page can be opened. Returns whether it can."""
        self._thread.start()
        until = time.monotonic() + START_TIMEOUT_SECONDS
        while self._thread.is_alive() and not self._server.started and time.monotonic() < until:
            time.sleep(0.02)
        return self._server.started

    def is_alive(self):
        """Whether the thread is running."""
        return self._thread.is_alive()

    def stop(self, seconds=5.0):
        """Close the connections, end the thread, and delete Gradio's files."""
        # uvicorn would log the event streams of open pages, which it cancels, as errors with tracebacks.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self._server.should_exit = True
        self._thread.join(seconds)
        GRADIO_FOLDER.cleanup()


def page_script():
    """The tags of page.js and its texts, for the page's head."""
    script = (PAGE_FOLDER / "page.js").read_text(encoding="utf-8")
    texts = json.dumps(script_texts(), ensure_ascii=False).replace("<", "\\u003c")
    return f"<script>window.minigptTexts = {texts};\n{script}</script>"


@contextlib.asynccontextmanager
async def raise_thread_limit(app):
    """Lifespan of the app: allow MAX_HANDLER_THREADS handlers at the same time."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = MAX_HANDLER_THREADS
    yield
