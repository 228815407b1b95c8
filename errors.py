"""The one error that users see, and the frame in which every script runs.

Below every other module, so that all of them can raise it.
"""

import sys


class UserError(Exception):
    """A mistake that the user can mend: says what is wrong, where, and what to do, in one line."""


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
