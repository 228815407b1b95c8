"""The one error that users see, the frame in which every script runs, and the signals that end a server.

Below every other module, so that all of them can raise it.
"""

import signal
import sys


class UserError(Exception):
    """A mistake that the user can mend: says what is wrong, where, and what to do, in one line."""


class Signals:
    """Notes Ctrl-C and SIGTERM (and Windows' Ctrl-Break) from now on; `asked` says that one came.

    The second Ctrl-C is not waited for.
    """

    def __init__(self):
        self.asked = False
        for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._note)

    def _note(self, *_):
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run_script(main):
    """Run a script's `main()`. A UserError prints its line and exits with 1, Ctrl-C with 130."""
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
