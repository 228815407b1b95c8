"""Network helpers: the listening socket, the addresses of this machine, the Retry-After header."""

import errno
import re
import socket
import sys
import time
from contextlib import suppress
from email.utils import mktime_tz, parsedate_tz

from minigpt.common.errors import UserError

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
# Names in the Host header of requests that come from this machine: also a container's names of the machine it runs on.
LOCAL_HOST_NAMES = (*LOOPBACK_HOSTS, "host.docker.internal", "host.containers.internal")
MINIGPT_OWNER = "minigpt"  # `owned_by` of this project's models in OpenAI's list of models


def host_name(header):
    """The name in a Host header, in lower case, without port and brackets."""
    return re.sub(r":\d*$", "", header).strip("[]").lower()


def announce_server(title, host, port, protected, protection):
    """Print where a server is reached, and a warning if other machines can reach it without a key or password.

    protected: whether it has a key or password; protection: how to set one.
    """
    print(f"{title} at", flush=True)
    for address in addresses(host, port):
        print(f"  {address}", flush=True)
    if host not in LOOPBACK_HOSTS and not protected:
        print(f"warning: everyone who can reach this machine can use it; set {protection}", flush=True)
    print("open the address in a browser; Ctrl-C stops", flush=True)


def listening_socket(host, port):
    """A listening TCP socket; port 0: any free port. Raises UserError if the port is taken or the host not local."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":  # there SO_REUSEADDR would share a port that is in use
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen()  # on Linux two sockets may bind to one port, but only one may listen
    except (OverflowError, OSError) as error:
        sock.close()
        raise UserError(listen_error(host, port, error)) from None
    return sock


def listen_error(host, port, error):
    """Why listening failed, and what the user can do."""
    if isinstance(error, OverflowError):
        return f"--port={port}: a port is a number from 0 to 65535"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"--host={host} is not an address of this machine; 127.0.0.1 is this machine only, 0.0.0.0 every address"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} may not be used ({error.strerror}); choose another, above 1023, with --port="
    note = " (macOS keeps 5000 for AirPlay)" if sys.platform == "darwin" and port == 5000 else ""
    return f"port {port} is taken{note}; choose another with --port=, such as --port={port + 1 if port < 65535 else 0}"


def addresses(host, port):
    """The URLs at which a server listening at `host` is reachable, the most local first. IPv4; sends no packet."""
    if host == "::":
        host = "::1"
    if host not in ("0.0.0.0", ""):
        return [f"http://{f'[{host}]' if ':' in host else host}:{port}"]
    found = ["127.0.0.1"]
    # Connecting a datagram socket sends nothing, but selects the local address for that destination.
    for remote in ("192.168.0.1", "10.0.0.1", "172.16.0.1", "100.64.0.1", "192.0.2.1"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
            probe.connect((remote, 9))
            found.append(probe.getsockname()[0])
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
