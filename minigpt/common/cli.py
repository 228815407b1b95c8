"""The frame in which every script runs (`run_script`), and the signals that stop a long-running one (`Signals`)."""

import os
import signal
import socket
import sys
import threading

from minigpt.common.errors import UserError


class Signals:
    """Records Ctrl-C, SIGTERM and Windows' Ctrl-Break: `asked` becomes True. A second Ctrl-C interrupts.

    words: if given, a thread prints them at the first signal, and a second Ctrl-C (or Ctrl-Break) ends the process
    immediately.
    Python's own handlers run only between bytecodes, so a long operation in C (a training step) would delay both.
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
        at_once = {signal.SIGINT, getattr(signal, "SIGBREAK", signal.SIGINT)}
        while reader.recv(1)[0] not in at_once:
            pass
        print("\nstopped at once", file=sys.stderr, flush=True)
        os._exit(130)


def run_script(main):
    """Run a script's `main()`. A UserError is printed in one line (exit status 1); Ctrl-C exits with 130."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        # A GBK console cannot print (or read) every character: replace it instead of crashing.
        # Line buffering, so that a log or a pipe gets each line as soon as it is printed.
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
