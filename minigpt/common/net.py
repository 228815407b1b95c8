"""Where a server listens: a bound socket, and the addresses under which it is reached."""

import errno
import socket
import sys

from minigpt.common.errors import UserError

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
MINIGPT_OWNER = "minigpt"  # `owned_by` of this project's models in OpenAI's list of models


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
    """A TCP socket that listens at host and port; port 0 is a free one.

    Raises UserError if the port is taken or the host is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":  # there, SO_REUSEADDR would let two processes share the port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen()  # on Linux, two sockets may bind to one port, and only one may listen
    except OverflowError:
        sock.close()
        raise UserError(f"--port={port}: a port is a number from 0 to 65535") from None
    except OSError as error:
        sock.close()
        raise UserError(explain_bind_error(host, port, error)) from None
    return sock


def explain_bind_error(host, port, error):
    """The message for an OSError of `listening_socket`: the reason, and what to do."""
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"--host={host} is not an address of this machine; use 127.0.0.1 for this machine only, 0.0.0.0 for all"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} may not be used ({error.strerror}); choose another, above 1023, with --port="
    note = " (macOS keeps 5000 for AirPlay)" if sys.platform == "darwin" and port == 5000 else ""
    return f"port {port} is taken{note}; choose another with --port=, such as --port={port + 1 if port < 65535 else 0}"


def addresses(host, port):
    """The URLs at which a server that listens at `host` is reached, most local first (IPv4). Sends nothing."""
    if host == "::":
        host = "::1"
    if host not in ("0.0.0.0", ""):
        return [f"http://{f'[{host}]' if ':' in host else host}:{port}"]
    found = ["127.0.0.1"]
    # Connecting a datagram socket sends nothing, and selects the local address that is used to reach the other one.
    for beyond in ("192.168.0.1", "10.0.0.1", "172.16.0.1", "100.64.0.1", "192.0.2.1"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((beyond, 9))
                found.append(probe.getsockname()[0])
            except OSError:
                continue
    return [f"http://{address}:{port}" for address in dict.fromkeys(found) if address != "0.0.0.0"]
