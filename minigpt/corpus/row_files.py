"""Row files as they are written: `train.bin` and its like, uint16 of shape (rows, block_size), and `meta.json`.

A row is `tokens EOT PAD PAD …`. Nothing is seen under the final names until all of it is whole.
"""

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from minigpt.common.errors import UserError
from minigpt.common.files import replace_file, write_json

LAYOUT = "one_per_row"
META = "meta.json"
TABLE = "tokenizer.tiktoken"  # a trained table travels with its rows
UNFINISHED = ".unfinished"  # folder of what is not whole yet, perhaps of a preparation that can go on


def padded_rows(ids, lengths, block_size, tokenizer):
    """(rows, block_size) of uint16: the `ids` of all rows, one behind the other, and the `lengths` of each."""
    rows = np.full((len(lengths), block_size), tokenizer.pad_id, dtype=np.uint16)
    places = np.arange(block_size)
    rows[places < lengths[:, None]] = ids
    rows[np.arange(len(lengths)), lengths] = tokenizer.eot_id
    return rows


class RowWriter:
    """Writes the parts of a data folder.

    with RowWriter("data/processed", ["train", "val"], block_size=512, tokenizer=tokenizer) as writer:
        writer.add("train", ids, n_chars)
        writer.finish({"stage": "pretrain", …})

    resumable: what is written stays in the folder's UNFINISHED when the work breaks off, and `go_on` takes it up.
    counts: {part: {"rows", "tokens" (EOT among them), "characters"}}.
    """

    def __init__(self, folder, parts, block_size, tokenizer, resumable=False):
        if block_size < 8:
            raise UserError(f"block_size is {block_size}; make it at least 8")
        if tokenizer.n_vocab > 2**16:
            raise UserError(f"tokenizer {tokenizer.name} has {tokenizer.n_vocab} ids; rows of uint16 hold 65536")
        self.folder, self.block_size, self.tokenizer = Path(folder), block_size, tokenizer
        self.resumable = resumable
        if not str(folder).strip():
            raise UserError("the folder of the rows has no name; name one with --data_dir=…")
        self.counts = {part: {"rows": 0, "tokens": 0, "characters": 0} for part in parts}

    def __enter__(self):
        self.open, self.files = ExitStack(), {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.partial = self.folder / UNFINISHED
            self.partial.mkdir(exist_ok=True)
            self._lock()
            if not self.resumable:
                for left in self.partial.glob("*.bin"):  # of a run that was killed
                    left.unlink()
            for part in self.counts:
                file = open(self.partial / f"{part}.bin", "ab")
                self.files[part] = self.open.enter_context(file)
        except OSError as error:
            self.open.close()
            raise UserError(f"{self.folder} cannot be made ({error.strerror}); name another folder") from None
        return self

    def _lock(self):
        lock = FileLock(self.partial / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"another run is writing to {self.folder}; wait for it, or name another folder") from None
        self.open.callback(lock.release)

    def __exit__(self, kind, error, traceback):
        try:
            self.open.close()
        except OSError as late:  # what was still to be written had no room
            error = error or late
        if not self.resumable or error is None:
            shutil.rmtree(self.partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"{self.folder} could not be written ({error}); free some space, or stop what has it open")

    def discard(self):
        """Keep nothing that is unfinished when the work breaks off: it would be of no use to go on with."""
        self.resumable = False

    def add(self, part, ids, n_chars):
        """One row: ids (at most block_size - 1) and EOT, padded."""
        row = np.full((1, self.block_size), self.tokenizer.pad_id, dtype=np.uint16)
        row[0, : len(ids)] = ids
        row[0, len(ids)] = self.tokenizer.eot_id
        self.add_rows(part, row, len(ids) + 1, n_chars)

    def add_rows(self, part, rows, n_tokens, n_chars):
        """Whole rows, uint16 of shape (n, block_size), which hold so many tokens (EOT among them) and characters."""
        self.files[part].write(np.ascontiguousarray(rows).data)  # `tofile` takes four times as long
        counts = self.counts[part]
        counts["rows"] += len(rows)
        counts["tokens"] += int(n_tokens)
        counts["characters"] += int(n_chars)

    def flush(self):
        """Hand what has been added to the system; `sync` puts it on the disk."""
        for file in self.files.values():
            file.flush()

    def sync(self):
        """Wait until what was flushed is on the disk; may be called from another thread."""
        for file in self.files.values():
            os.fsync(file.fileno())

    def has(self, counts):
        """Whether the rows that `counts` tells of are there."""
        sizes = {part: os.fstat(file.fileno()).st_size for part, file in self.files.items()}
        return all(sizes[part] >= counts[part]["rows"] * self.block_size * 2 for part in self.files)

    def go_on(self, counts):
        """Take up the rows that `counts` tells of; what was written behind them goes."""
        self.counts = {part: dict(counts[part]) for part in self.counts}
        for part, file in self.files.items():
            file.truncate(self.counts[part]["rows"] * self.block_size * 2)
            file.seek(0, os.SEEK_END)

    def finish(self, about):
        """Move all parts into place and write meta.json (`about` and the counts); returns the meta."""
        return self.place(self.meta(about))

    def meta(self, about):
        """What meta.json says: `about` and the counts."""
        tokenizer = self.tokenizer
        for counts in self.counts.values():
            text_tokens = counts["tokens"] - counts["rows"]  # EOT left out
            counts["tokens_per_character"] = round(text_tokens / max(1, counts["characters"]), 4)
        return {
            "block_size": self.block_size,
            "layout": LAYOUT,
            "parts": self.counts,
            "tokenizer": {"name": tokenizer.name, "sha256": tokenizer.sha256, "n_vocab": tokenizer.n_vocab},
            "special_ids": tokenizer.special_ids(),
            **about,
        }

    def place(self, meta):
        """Move all parts into place and write meta.json; returns the meta."""
        tokenizer = self.tokenizer
        for file in self.files.values():
            file.close()
        old = self.folder / META
        old_meta = old.read_bytes() if old.exists() else None
        # Without meta.json the folder counts as not prepared, so a crash in between leaves no mixture.
        old.unlink(missing_ok=True)
        moved = 0
        try:
            for part in self.files:
                replace_file(self.partial / f"{part}.bin", self.folder / f"{part}.bin")
                moved += 1
        except OSError:  # on Windows a file that is mapped elsewhere cannot be replaced
            if not moved and old_meta is not None:
                old.write_bytes(old_meta)
            raise
        (self.folder / TABLE).unlink(missing_ok=True)
        if not tokenizer.is_gpt2:
            (self.folder / TABLE).write_bytes(tokenizer.table)
        write_json(self.folder / META, meta)
        return meta
