"""Files that appear whole or not at all."""

import json
import os
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]  # the folder that the scripts lie in
RETRY_SECONDS = 3.0


def replace_file(source, target):
    """os.replace, tried again for a moment where another program (a reader, a virus scanner) holds the target."""
    deadline = time.monotonic() + RETRY_SECONDS
    while True:
        try:
            return os.replace(source, target)
        except PermissionError:  # Windows
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def write_atomic(path, write, keep=None):
    """Call `write(file)` on a binary file beside `path`, flush it to disk, and give it that name.

    keep: the name, beside it, under which the older file stays.
    Whatever goes wrong (OSError, Ctrl-C), an older file stays as it was and nothing half-written is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            replace_file(path, path.with_name(keep))
        replace_file(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path, values):
    """Write values as readable UTF-8 JSON, atomically."""
    text = json.dumps(values, ensure_ascii=False, indent=1) + "\n"
    # A file's name may have bytes that are no UTF-8.
    write_atomic(path, lambda file: file.write(text.encode(errors="backslashreplace")))
