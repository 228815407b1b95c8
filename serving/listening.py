"""The app in waitress: sockets, errors below HTTP, the addresses of the machine, a stop that waits."""

import errno
import http
import select
import socket
import sys
import threading
import time

from waitress import create_server, wasyncore
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.task import ErrorTask
from waitress.utilities import BadRequest

from errors import UserError
from serving.replies import ApiError, to_json

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


def listening_socket(host, port):
    """A bound TCP socket; port 0: a free one. Raises UserError where the port is taken or the host is not here."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":  # where SO_REUSEADDR would share the port with whoever has it
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen()  # on Linux two may bind, one may listen
    except OverflowError:
        sock.close()
        raise UserError(f"--port={port}: a port is a number from 0 to 65535") from None
    except OSError as error:
        sock.close()
        raise UserError(unusable(host, port, error)) from None
    return sock


def unusable(host, port, error):
    """Why one cannot listen there, and what to do."""
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"--host={host} is no address of this machine; 127.0.0.1 is this machine only, 0.0.0.0 every address"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} may not be used ({error.strerror}); choose another, above 1023, with --port="
    note = " (macOS keeps 5000 for AirPlay)" if sys.platform == "darwin" and port == 5000 else ""
    return f"port {port} is taken{note}; choose another with --port=, such as --port={port + 1 if port < 65535 else 0}"


def addresses(host, port):
    """The URLs, most local first, under which a server that listens at `host` is reachable. IPv4; asks no network."""
    if host == "::":
        host = "::1"
    if host not in ("0.0.0.0", ""):
        return [f"http://{f'[{host}]' if ':' in host else host}:{port}"]
    found = ["127.0.0.1"]
    # Connecting a datagram socket sends nothing; it tells which of our addresses leads there.
    for beyond in ("192.168.0.1", "10.0.0.1", "172.16.0.1", "100.64.0.1", "192.0.2.1"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((beyond, 9))
                found.append(probe.getsockname()[0])
            except OSError:
                continue
    return [f"http://{address}:{port}" for address in dict.fromkeys(found) if address != "0.0.0.0"]


class Listener:
    """waitress over an app, in a thread of its own.

    sock: from `listening_socket`; threads: requests that are served at once, some to spare counted.
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
