"""The app in waitress: errors below HTTP, a stop that waits."""

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

# Threads beyond those that the places need, so that /health and 429 always answer.
SPARE_THREADS = 8
# Seconds that a request may take to arrive, and that a connection may stand idle.
RECEIVE_SECONDS = 30
HEADER_BYTES = 64 * 1024
# Requests that a client may send before the answer to the first; more, and it is taken for gone.
LOOKAHEAD = 8
# Of a body that is too long, so many times the limit are still read, so that the client sees the answer and not a
# broken connection.
READ_BEYOND = 4


class Parser(HTTPRequestParser):
    """waitress' parser, where every broken request ends in a 4xx: its own lets some errors escape."""

    def __init__(self, adj):
        super().__init__(adj)
        self._since = time.monotonic()

    def received(self, data):
        consumed = super().received(data)
        if self.completed:
            self.expect_continue = False  # nothing more is awaited of a request without a body, or with too long a one
        elif time.monotonic() - self._since > RECEIVE_SECONDS:
            self.error, self.completed = BadRequest("the request took too long to arrive"), True
        return consumed

    def parse_header(self, header_plus):
        try:
            super().parse_header(header_plus)
        except ValueError as error:  # a length of thousands of digits, an address that is none
            raise ParsingError(str(error)) from None


class Refusal(ErrorTask):
    """The answer to a request that never reaches the app, as JSON."""

    def execute(self):
        error = self.request.error
        # 501 is what waitress says to a transfer coding that it does not know: the client's mistake all the same.
        status = http.HTTPStatus(400 if error.code == 501 else error.code)
        kind = "invalid_request_error" if status < 500 else "server_error"
        body = to_json(ApiError(status, error.body, "HTTP", kind=kind).body)
        self.status = f"{status.value} {status.phrase}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class Channel(HTTPChannel):
    """A connection with our parser and errors."""

    parser_class = Parser
    error_task_class = Refusal

    def received(self, data):
        going_on = super().received(data)
        if len(self.requests) > LOOKAHEAD:  # from here on it would not be noticed that the client leaves
            self.connected = False
        return going_on


class Listener:
    """waitress over an app, in a thread of its own.

    sock: from `sockets.listening_socket`; threads: requests that are served at once, some to spare counted.
    """

    def __init__(self, app, sock):
        threads = app.service.places.total + SPARE_THREADS
        self._server = create_server(
            app,
            sockets=[sock],
            threads=threads,
            connection_limit=connection_limit(threads),
            # Reading on while a request is served is how a client that leaves is noticed.
            channel_request_lookahead=LOOKAHEAD,
            channel_timeout=RECEIVE_SECONDS,
            cleanup_interval=max(1, RECEIVE_SECONDS // 6),
            max_request_header_size=HEADER_BYTES,
            max_request_body_size=READ_BEYOND * app.config["MAX_CONTENT_LENGTH"],
            asyncore_use_poll=hasattr(select, "poll"),
            log_socket_errors=False,
            ident="MiniGPT",
        )
        self._server.channel_class = Channel
        self._thread = threading.Thread(target=self._server.run, name="listener", daemon=True)
        self.port = sock.getsockname()[1]

    def start(self):
        """Begin to answer."""
        self._thread.start()

    def is_alive(self):
        """Whether it still listens."""
        return self._thread.is_alive()

    def stop_accepting(self):
        """Take no new connections; those that are open are served on."""
        self._server.trigger.pull_trigger(lambda: wasyncore.dispatcher.close(self._server))

    def finish(self, seconds):
        """Wait, so many seconds at most, until what was answered has been sent."""
        until = time.monotonic() + seconds
        self._server.task_dispatcher.shutdown(timeout=seconds)
        while time.monotonic() < until and any(c.total_outbufs_len for c in [*self._server.active_channels.values()]):
            time.sleep(0.01)


def connection_limit(threads):
    """Connections that may be open at once: enough to refuse many, within what the system lets a process open."""
    most = 400  # Windows' select takes 512 sockets
    if resource:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = files - 100 if files != resource.RLIM_INFINITY else threads + 400
    return max(threads, min(threads + 400, most))
