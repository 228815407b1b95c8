"""Network helpers: the listening socket, the addresses of this machine, the Retry-After header."""

import errno
import re
import socket
import sys
import time
from email.utils import mktime_tz, parsedate_tz

from minigpt.common.errors import UserError


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


def retry_after_seconds(header):
    """Seconds to wait that a Retry-After header asks for, 0 or more; None if the header is missing or malformed.

    header: the header's text (a number of seconds, decimals allowed, or an HTTP date), or None.
    """
    try:
        if re.fullmatch(r"[0-9.]+", header or ""):
            return float(header)
        return max(0.0, mktime_tz(parsedate_tz(header)) - time.time())
    except (TypeError, ValueError, OverflowError):
        return None
