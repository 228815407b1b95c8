"""Writing safely: replacement as a whole (`write_atomic`, `write_folder_atomic`) and durable appending."""

import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]  # the folder that contains the scripts
RETRY_SECONDS = 3.0


def replace_file(source, target):
    """os.replace, retried for RETRY_SECONDS while another program (a reader, a virus scanner) holds the target."""
    deadline = time.monotonic() + RETRY_SECONDS
    while True:
        try:
            return os.replace(source, target)
        except PermissionError:  # Windows
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def write_atomic(path, write, keep=None):
    """Call `write(file)` on a temporary binary file beside `path`, flush it to disk, and rename it to `path`.

    keep: file name in the same folder under which the previous version is kept; None: it is replaced.
    On any exception (OSError, Ctrl-C) the previous version is unchanged and the temporary file is removed.
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


def write_folder_atomic(path, write):
    """Call `write(folder)` on a new temporary folder beside `path`, flush its files, and rename it to `path`.

    A folder of that name is removed then. On any exception (OSError, Ctrl-C) it is unchanged, and the temporary one is
    removed.
    """
    path = Path(path).absolute()  # "." has no name
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (path.with_name(path.name + ending) for ending in (".partial", ".old"))
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        partial.mkdir()
        write(partial)
        for file in partial.iterdir():
            with open(file, "rb+") as opened:
                os.fsync(opened.fileno())
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            replace_file(path, old)
        replace_file(partial, path)
    except BaseException:
        if not path.exists() and old.exists():
            replace_file(old, path)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def append_durably(path, text, header=""):
    """Append text (whole lines) to a UTF-8 file and flush it to the disk before returning.

    header: first line of a new file. An incomplete last line, left by a killed writer, is ended first, so that only
    that line is lost. The caller locks out other writers. Raises OSError; the file then has its previous content.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        is_torn = size and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
        rest = (("" if size else header) + "\n" * bool(is_torn) + text).encode("utf-8", errors="replace")
        try:
            while rest:  # a nearly full disk accepts only a part
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise


def file_stamp(path):
    """(modification time in ns, size in bytes) of a file, by which a change is noticed; None if there is no file."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def write_json(path, values):
    """Write values as readable UTF-8 JSON, atomically."""
    text = json.dumps(values, ensure_ascii=False, indent=1) + "\n"
    # A file name in `values` may contain bytes that are not UTF-8.
    write_atomic(path, lambda file: file.write(text.encode(errors="backslashreplace")))
