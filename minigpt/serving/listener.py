"""The HTTP server (waitress) that runs the app."""

import http
import select
import threading
import time

from waitress import create_server, wasyncore
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.task import ErrorTask
from waitress.utilities import BadRequest

from minigpt.serving.errors import ApiError, to_json

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None

# Threads in addition to one for each admitted prompt, so that /health and 429 are always answered.
SPARE_THREADS = 8
# How long a request may take to arrive, and how long a connection may be idle.
RECEIVE_SECONDS = 30
MAX_HEADER_BYTES = 64 * 1024
# Requests that a client may send before it has read the first answer. A client that sends more is disconnected.
MAX_REQUESTS_AHEAD = 8
# Up to this multiple of max_body_bytes is read of a body that is too long. If the connection were closed earlier, the
# client would see a broken connection and not the answer (413).
READ_LIMIT_FACTOR = 4
# Connections that may be open in addition to one for each thread, so that many clients can be refused with an answer.
SPARE_CONNECTIONS = 400
# File descriptors that the process needs for anything but connections.
SPARE_FILES = 100


class Parser(HTTPRequestParser):
    """waitress' parser, which answers every malformed request with a 4xx. The original lets some errors escape."""

    def __init__(self, adj):
        super().__init__(adj)
        self._started = time.monotonic()

    def received(self, data):
        consumed = super().received(data)
        if self.completed:
            # Do not answer "100 Continue": there is no body to wait for, or it is too long.
            self.expect_continue = False
        elif time.monotonic() - self._started > RECEIVE_SECONDS:
            self.error = BadRequest("the request took too long to arrive")
            self.completed = True
        return consumed

    def parse_header(self, header_plus):
        try:
            super().parse_header(header_plus)
        except ValueError as error:  # for example, a length of thousands of digits, or a malformed address
            raise ParsingError(str(error)) from None


class JsonErrorTask(ErrorTask):
    """Answers a request that does not reach the app with an error in JSON."""

    def execute(self):
        error = self.request.error
        # waitress answers an unknown transfer coding with 501, although it is the client's mistake.
        status = http.HTTPStatus(400 if error.code == 501 else error.code)
        kind = "invalid_request_error" if status < 500 else "server_error"
        body = to_json(ApiError(status, error.body, "HTTP", kind=kind).body)
        self.status = f"{status.value} {status.phrase}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class Channel(HTTPChannel):
    """A connection that uses `Parser` and `JsonErrorTask`."""

    parser_class = Parser
    error_task_class = JsonErrorTask

    def received(self, data):
        going_on = super().received(data)
        if len(self.requests) > MAX_REQUESTS_AHEAD:
            # waitress now stops reading, and would not notice that the client disconnects.
            self.connected = False
        return going_on


class Listener(threading.Thread):
    """A thread that runs waitress; `start` begins to answer requests.

    app: from `create_app`; sock: from `net.listening_socket`.
    """

    def __init__(self, app, sock):
        threads = app.service.admission.capacity + SPARE_THREADS
        self._server = create_server(
            app,
            sockets=[sock],
            threads=threads,
            connection_limit=connection_limit(threads),
            # waitress notices that a client disconnects only while it reads ahead.
            channel_request_lookahead=MAX_REQUESTS_AHEAD,
            channel_timeout=RECEIVE_SECONDS,
            cleanup_interval=max(1, RECEIVE_SECONDS // 6),
            max_request_header_size=MAX_HEADER_BYTES,
            max_request_body_size=READ_LIMIT_FACTOR * app.config["MAX_CONTENT_LENGTH"],
            asyncore_use_poll=hasattr(select, "poll"),
            log_socket_errors=False,
            ident="MiniGPT",
        )
        self._server.channel_class = Channel
        self.port = sock.getsockname()[1]
        super().__init__(target=self._server.run, name="listener", daemon=True)

    def stop_accepting(self):
        """Accept no new connections. Open connections are still served."""
        self._server.trigger.pull_trigger(lambda: wasyncore.dispatcher.close(self._server))

    def finish(self, seconds):
        """Wait up to `seconds` until all answers have been sent."""
        until = time.monotonic() + seconds
        self._server.task_dispatcher.shutdown(timeout=seconds)
        while time.monotonic() < until and any(c.total_outbufs_len for c in [*self._server.active_channels.values()]):
            time.sleep(0.01)


def connection_limit(threads):
    """Number of connections that may be open at once, within the system's limit of open files."""
    limit = SPARE_CONNECTIONS  # Windows' select takes 512 sockets
    if resource:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        limit = files - SPARE_FILES if files != resource.RLIM_INFINITY else threads + SPARE_CONNECTIONS
    return max(threads, min(threads + SPARE_CONNECTIONS, limit))
