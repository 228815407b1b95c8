"""Row files as they are written: `train.bin` and others, of shape (rows, block_size), and `meta.json`.

A row is `tokens EOT PAD PAD …`. Its ids are uint16, or uint32 for a vocabulary of more than 65,536 ids, as meta.json
says. Files appear under their final names only when all of them are complete.
"""

import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from minigpt.common.errors import UserError
from minigpt.common.files import replace_file, write_json
from minigpt.huggingface_tokenizer import HuggingFaceTokenizer, id_type

LAYOUT = "one_per_row"
META = "meta.json"
# A tokenizer other than GPT-2's is stored beside its rows: one of ours, or one of a Hugging Face folder.
TOKENIZER_FILE, ADOPTED_TOKENIZER_FILE = "tokenizer.tiktoken", "adopted_tokenizer.json"
UNFINISHED = ".unfinished"  # folder of files that are not complete, perhaps of a preparation that can resume
MIN_BLOCK_SIZE = 8


def padded_rows(ids, lengths, block_size, tokenizer):
    """(n, block_size), of type `id_type`: rows of `lengths` (n,) ids each, taken from the concatenated `ids`, then EOT
    and PAD."""
    rows = np.full((len(lengths), block_size), tokenizer.pad_id, dtype=id_type(tokenizer))
    places = np.arange(block_size)
    rows[places < lengths[:, None]] = ids
    rows[np.arange(len(lengths)), lengths] = tokenizer.eot_id
    return rows


def refuse_to_replace(settings, folder_name, sources_name, files):
    """Raises UserError where rows of other sources would be replaced by those of the default sources.

    folder_name, sources_name: the settings of the rows' folder and of their sources; files: all files of the sources.
    """
    folder = getattr(settings, folder_name)
    try:
        meta = json.loads((Path(folder) / META).read_text(encoding="utf-8"))
        sources = list(meta.get("sources") or [])
    except (OSError, ValueError, AttributeError):  # there are no rows, or none that can be read
        return
    ours = {Path(file).resolve() for file in files}
    others = [source for source in sources if Path(source).resolve() not in ours]
    if others and sources_name not in settings.given:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise UserError(
            f"{folder} holds rows made of {others[0]}{more}, which would be replaced by the embedded "
            f"{', '.join(getattr(settings, sources_name))}; name what to prepare with --{sources_name}=…, or another "
            f"folder with --{folder_name}=…"
        )


class RowWriter:
    """Writes the parts of a data folder.

    with RowWriter("data/processed", ["train", "val"], block_size=512, tokenizer=tokenizer) as writer:
        writer.add("train", ids, n_chars)
        writer.finish({"stage": "pretrain", …})

    resumable: rows stay in the folder UNFINISHED when the work ends with an exception, and `resume` takes them up.
    counts: {part: {"rows", "tokens" (EOT among them), "characters"}}.
    """

    def __init__(self, folder, parts, block_size, tokenizer, resumable=False):
        if block_size < MIN_BLOCK_SIZE:
            raise UserError(f"block_size is {block_size}; make it at least {MIN_BLOCK_SIZE}")
        if not str(folder).strip():
            raise UserError("the folder of the rows has no name; name one with --data_dir=…")
        self.folder = Path(folder)
        self.partial = self.folder / UNFINISHED
        self.block_size = block_size
        self.tokenizer = tokenizer
        self.dtype = np.dtype(id_type(tokenizer))
        self.resumable = resumable  # False: the folder UNFINISHED is deleted at the end, whatever happened
        self.counts = {part: {"rows": 0, "tokens": 0, "characters": 0} for part in parts}

    def __enter__(self):
        self.open, self.files = ExitStack(), {}
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            self.open.enter_context(FileLock(self.partial / "lock", timeout=0))
            if not self.resumable:
                for left in self.partial.glob("*.bin"):  # of a run that was killed
                    left.unlink()
            for part in self.counts:
                file = open(self.partial / f"{part}.bin", "ab")
                self.files[part] = self.open.enter_context(file)
        except Timeout:
            raise UserError(f"another run is writing to {self.folder}; wait for it, or name another folder") from None
        except OSError as error:
            self.open.close()
            raise UserError(f"{self.folder} cannot be made ({error.strerror}); name another folder") from None
        return self

    def __exit__(self, kind, error, traceback):
        try:
            self.open.close()
        except OSError as late:  # there was no room for what was still buffered
            error = error or late
        if not self.resumable or error is None:
            shutil.rmtree(self.partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"{self.folder} could not be written ({error}); free some space, or stop what has it open")

    def discard(self):
        """Leaves nothing behind that a later run resumes."""
        self.resumable = False

    def add(self, part, ids, n_chars):
        """Writes one row: ids (at most block_size - 1), EOT and padding."""
        rows = padded_rows(ids, np.array([len(ids)]), self.block_size, self.tokenizer)
        self.add_rows(part, rows, len(ids) + 1, n_chars)

    def add_rows(self, part, rows, n_tokens, n_chars):
        """Writes rows (n, block_size), as `padded_rows` makes them.

        n_tokens, n_chars: how many tokens (EOT among them) and characters they hold.
        """
        self.files[part].write(np.ascontiguousarray(rows).data)  # `tofile` takes four times as long
        counts = self.counts[part]
        counts["rows"] += len(rows)
        counts["tokens"] += int(n_tokens)
        counts["characters"] += int(n_chars)

    @property
    def row_bytes(self):
        """Bytes of a row."""
        return self.block_size * self.dtype.itemsize

    def flush(self):
        """Hands the rows to the operating system; `sync` puts them on the disk."""
        for file in self.files.values():
            file.flush()

    def sync(self):
        """Waits until what was flushed is on the disk; may be called from another thread."""
        for file in self.files.values():
            os.fsync(file.fileno())

    def has(self, counts):
        """Whether as many rows are written as `counts` says."""
        sizes = {part: os.fstat(file.fileno()).st_size for part, file in self.files.items()}
        return all(sizes[part] >= counts[part]["rows"] * self.row_bytes for part in self.files)

    def resume(self, counts):
        """Keeps as many rows as `counts` says, and removes the others."""
        self.counts = {part: dict(counts[part]) for part in self.counts}
        for part, file in self.files.items():
            file.truncate(self.counts[part]["rows"] * self.row_bytes)
            file.seek(0, os.SEEK_END)

    def finish(self, about):
        """Moves all parts into place and writes meta.json (`about` and what the writer knows); returns the meta."""
        tokenizer = self.tokenizer
        for counts in self.counts.values():
            text_tokens = counts["tokens"] - counts["rows"]  # without EOT
            counts["tokens_per_character"] = round(text_tokens / max(1, counts["characters"]), 4)
        meta = {
            "block_size": self.block_size,
            "layout": LAYOUT,
            "dtype": self.dtype.name,
            "parts": self.counts,
            "tokenizer": {"name": tokenizer.name, "sha256": tokenizer.sha256, "n_vocab": tokenizer.n_vocab},
            "special_ids": tokenizer.special_ids(),
            **about,
        }
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
        for name in (TOKENIZER_FILE, ADOPTED_TOKENIZER_FILE):
            (self.folder / name).unlink(missing_ok=True)
        if not tokenizer.is_gpt2:
            is_adopted = isinstance(tokenizer, HuggingFaceTokenizer)
            name = ADOPTED_TOKENIZER_FILE if is_adopted else TOKENIZER_FILE
            (self.folder / name).write_bytes(tokenizer.vocabulary)
        write_json(self.folder / META, meta)
        return meta
