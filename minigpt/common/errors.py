"""The one error that users see, the frame in which every script runs, and the signals that end a server.

Below every other module, so that all of them can raise it.
"""

import os
import signal
import socket
import sys
import threading

LONGEST_REASON = 200  # characters of an exception's text that are shown


class UserError(Exception):
    """A mistake that the user can mend: says what is wrong, where, and what to do, in one line."""


def first_line(error):
    """What an exception of another's code says, for a line of ours: its class and the first line of its text."""
    text = str(error).strip().splitlines() or ["no reason given"]
    return f"{type(error).__name__}: {text[0][:LONGEST_REASON]}"


class Signals:
    """Notes Ctrl-C and SIGTERM (and Windows' Ctrl-Break) from now on; `asked` says that one came.

    A second Ctrl-C interrupts. words: what is printed at once when the first signal comes; then a second Ctrl-C
    ends the process at once, too. Python's own handlers wait until the operation in hand is done, which in training
    may take a minute, so a thread does both.
    """

    def __init__(self, words=None):
        self.asked = False
        for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._note)
        if words:
            reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._acknowledge, args=(reader, words), name="signals", daemon=True).start()

    def _note(self, *_):
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    @staticmethod
    def _acknowledge(reader, words):
        reader.recv(1)
        print(f"\n{words}", file=sys.stderr, flush=True)
        while reader.recv(1) != bytes([signal.SIGINT]):
            pass
        print("\nstopped at once", file=sys.stderr, flush=True)
        os._exit(130)


def run_script(main):
    """Run a script's `main()`. A UserError prints its line and exits with 1, Ctrl-C with 130."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        # A GBK console cannot print (or read) every character; a replaced one is better than a crash.
        # Line by line, so that a log or a pipe has each line when it is printed.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace", line_buffering=True)
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        raise SystemExit(130) from None
