"""Consumes prepared blocks in order: drops duplicates, writes rows, counts everything, and saves its state.

A run that was killed resumes from the last state that was saved.
"""

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from minigpt.common.files import write_atomic
from minigpt.corpus.cleaning import Cleaner
from minigpt.corpus.dedup import KeySet
from minigpt.corpus.losses import Losses
from minigpt.corpus.pipeline import input_of
from minigpt.corpus.readers.rows import record_unit
from minigpt.corpus.records import Problems
from minigpt.corpus.report import CorpusStatistics, write_report
from minigpt.corpus.row_files import MIN_BLOCK_SIZE, padded_rows
from minigpt.corpus.splits import read_heldout
from minigpt.settings.stages import CLEANING

DUPLICATE = "exact duplicate"
NEAR_DUPLICATE = "near duplicate"
SPLIT_BY_SUBJECT, SPLIT_FROM_ENDS = "by subject", "from each document's end"
STATE_FILE = "state.json"
REPORT_FILE = "report.html"
ROW_BUFFER_BYTES = 4 << 20  # rows that are made at once
STATE_VERSION = 4
# That are saved as they are.
SAVED_ATTRIBUTES = ("place", "n_bytes", "articles", "kept", "characters", "lost", "unused_characters")
SETTINGS_WITHOUT_EFFECT = {"workers", "data_dir"}  # on the rows


def fingerprint(settings, files, tokenizer):
    """JSON that is the same for two preparations if they have the same files, settings and tokenizer."""
    used = {name: value for name, value in settings.to_dict().items() if name not in SETTINGS_WITHOUT_EFFECT}
    content = {
        "version": STATE_VERSION,
        "settings": used,
        "heldout": sorted(read_heldout(settings.heldout)),
        "table": tokenizer.sha256,
        "files": [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in files],
    }
    return json.dumps(content, ensure_ascii=False, sort_keys=True)


def read_state(path):
    """The saved state of a preparation, or None."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def open_near(folder, settings):
    """The `NearDuplicates` in a folder; None without the cleaning step `near`."""
    if "near" not in settings.clean:
        return None
    from minigpt.corpus.near_duplicates import NearDuplicates  # numba is loaded only where the step is on

    return NearDuplicates(folder, settings.near_share)


class PrepareProgress:
    """One preparation's blocks, taken in order. `with` opens and closes its files.

    place: (index of a file, blocks of it that are done); n_bytes: read of all files; kept: articles that became rows;
    characters: of their texts, lost: those that are in no row; unused_characters: of texts of which nothing is.
    """

    def __init__(self, settings, plan, writer, own_fingerprint):
        self.settings = settings
        self.plan = plan
        self.writer = writer
        self.fingerprint = own_fingerprint
        self.problems = Problems()
        self.steps = {"changed": Counter(), "dropped": Counter()}
        self.place = (0, 0)
        self.n_bytes, self.articles, self.kept = 0, 0, 0
        self.characters, self.lost, self.unused_characters = 0, 0, 0
        self.heldout = set()
        self.inputs = {name: Counter() for name in settings.input_dir}
        self.statistics = CorpusStatistics() if settings.report else None
        self.background, self.saving = ThreadPoolExecutor(1, "save"), None

    def __enter__(self):
        folder = self.writer.partial
        self.keys, self.near = KeySet(folder), open_near(folder, self.settings)
        # Resume from the state if it belongs to the same preparation, and its rows and keys are there.
        state, why = read_state(folder / STATE_FILE), ""
        if state and state["fingerprint"] != self.fingerprint:
            why = "has other files or settings, or is of another version of MiniGPT"
        elif state and not self._has_files(state):
            why = "is not complete"
        if why:
            print(f"the interrupted preparation {why}: starting again")
            state = None
        if not state:
            (folder / STATE_FILE).unlink(missing_ok=True)
        self._resume(state)
        return self

    def _has_files(self, state):
        """Whether the rows, the keys and the signatures that a state counts are there."""
        has_near = not self.near or self.near.has(state["near"])
        return has_near and self.writer.has(state["counts"]) and self.keys.has(state["keys"])

    def __exit__(self, *_):
        self.background.shutdown()
        self.keys.close()
        if self.near:
            self.near.close()

    def add(self, block, files):
        """Takes the next `PreparedBlock`; files: all files in order."""
        new = self._find_new(block)
        self.articles += block.articles
        self.kept += int(new.sum())
        self.characters += int(block.lengths[new].sum())
        self.lost += int(block.cuts.lost[new].sum())
        self.unused_characters += block.unused_characters
        self.heldout |= block.heldout
        for name, counts in block.steps.items():
            self.steps[name].update(counts)
        if self.statistics:
            self.statistics.merge(block.statistics)
        self._write_rows(block, new)
        index = self.place[0]
        self.place = (index, self.place[1] + 1)
        while files[index] != block.path:
            index += 1
            self.place = (index, 1)
        self.n_bytes += block.n_bytes

    def _find_new(self, block):
        """(n,) of bool: which articles repeat none. The others, and those dropped before, are added to `problems`."""
        new = self.keys.add(block.keys)
        dropped = [*block.dropped, *((block.numbers[i], DUPLICATE) for i in np.flatnonzero(~new))]
        if self.near:
            places = np.flatnonzero(new)
            near = places[~self.near.add(block.signatures[places])]
            new[near] = False
            dropped += [(block.numbers[i], NEAR_DUPLICATE) for i in near]
            self.steps["dropped"].update(["near"] * len(near))
        for number, reason in sorted(dropped):
            self.problems.add(reason, block.path, number)
        if self.statistics:
            for i in np.flatnonzero(~new):
                number, text = block.numbers[i], block.texts[i]
                self.statistics.after.add(text, -1)
                reason = next(reason for other, reason in dropped if other == number)
                self.statistics.add_example(reason, f"{block.path}, {record_unit(block.path)} {number}", text)
        return new

    def _write_rows(self, block, new):
        """Writes the rows of a block's new articles, each as often as it is used in its part."""
        counts = self.inputs[input_of(block.path, self.settings.input_dir)]
        cuts = block.cuts
        starts = np.concatenate([[0], np.cumsum(cuts.lengths)])
        repeats_by_part = {
            "train": np.repeat(block.repeats * new, cuts.rows) * ~block.in_val,
            "val": np.repeat(new, cuts.rows) * block.in_val,
        }
        # Make a few mebibytes of rows at once, however wide a row is and however often it is used.
        n_at_once = max(1, ROW_BUFFER_BYTES // (2 * self.writer.block_size))
        for first in range(0, len(cuts.lengths), n_at_once):
            lengths = cuts.lengths[first : first + n_at_once]
            characters = cuts.characters[first : first + n_at_once]
            ids = cuts.ids[starts[first] : starts[first + len(lengths)]]
            rows = padded_rows(ids, lengths, self.writer.block_size, self.writer.tokenizer)
            for part, repeats_of_rows in repeats_by_part.items():
                here = repeats_of_rows[first : first + n_at_once]
                order = np.repeat(np.arange(len(here)), here)
                for some in np.split(order, range(n_at_once, len(order), n_at_once)):
                    tokens = int(lengths[some].sum()) + len(some)
                    is_all = len(some) == len(rows) and (here == 1).all()  # then no copy is needed
                    self.writer.add_rows(part, rows if is_all else rows[some], tokens, characters[some].sum())
                    counts["rows"] += len(some)
                    counts["tokens"] += tokens

    def save(self):
        """Saves the state, so that a kill or a power cut costs only later work.

        Rows, keys and state are put on the disk in the background: that may take seconds, during which the workers
        would be idle.
        """
        if self.saving and not self.saving.done():
            return
        self.wait()
        self.writer.flush()
        self.keys.flush()
        if self.near:
            self.near.flush()
        text = json.dumps(self._state(), ensure_ascii=False, default=vars).encode(errors="backslashreplace")
        self.saving = self.background.submit(self._write_state, text)

    def _write_state(self, state):
        self.writer.sync()
        self.keys.sync()
        if self.near:
            self.near.sync()
        write_atomic(self.writer.partial / STATE_FILE, lambda file: file.write(state))

    def wait(self):
        """Waits until the state that is being saved is written. Raises OSError where it could not be written."""
        saving, self.saving = self.saving, None
        if saving:
            saving.result()

    def _state(self):
        """All that a run that resumes needs, as a dict for JSON."""
        return {
            "fingerprint": self.fingerprint,
            **{name: getattr(self, name) for name in SAVED_ATTRIBUTES},
            "heldout": sorted(self.heldout),
            "inputs": self.inputs,
            "steps": self.steps,
            "keys": self.keys.count,
            "near": self.near.count if self.near else 0,
            "counts": self.writer.counts,
            "problems": self.problems.about(),
            "statistics": self.statistics,
        }

    def _resume(self, state):
        """Takes up a state, or starts from nothing."""
        if not state:
            self.keys.resume(0)
            if self.near:
                self.near.resume(0)
            self.writer.resume({part: dict.fromkeys(counts, 0) for part, counts in self.writer.counts.items()})
            return
        for name in SAVED_ATTRIBUTES:
            setattr(self, name, state[name])
        self.heldout = set(state["heldout"])
        self.inputs = {name: Counter(counts) for name, counts in state["inputs"].items()}
        self.steps = {name: Counter(counts) for name, counts in state["steps"].items()}
        self.problems.counts = Counter(state["problems"]["dropped"])
        self.problems.places = state["problems"]["first_dropped"]
        if self.statistics:
            self.statistics = CorpusStatistics.from_dict(state["statistics"])
        self.writer.resume(state["counts"])
        self.keys.resume(state["keys"])
        if self.near:
            self.near.resume(state["near"])

    def losses(self):
        """The `Losses` so far."""
        return Losses(
            self.problems,
            self.kept,
            characters=self.characters + self.unused_characters,
            characters_lost=self.lost + self.unused_characters,
            is_truncated=self.settings.overflow == "truncate",
        )

    def hint_for_more_rows(self):
        """What makes more rows of few documents, as the end of a message; "" where nothing does."""
        if not self.plan.is_small:
            return ""
        if self.settings.overflow == "truncate" and self.lost:
            return ", or --overflow=split"
        counts = self.writer.counts.values()
        half_of_row = sum(part["tokens"] for part in counts) // max(1, 2 * sum(part["rows"] for part in counts))
        return f", or shorter rows: --block_size={half_of_row}" if half_of_row >= MIN_BLOCK_SIZE else ""

    def finish(self, files):
        """Puts the rows in place and writes meta.json, and the report if asked for; returns the meta."""
        clean_text = Cleaner(self.settings).text
        missing = sorted({clean_text(subject) for subject in read_heldout(self.settings.heldout)} - self.heldout)
        if missing:
            print(f"warning: {len(missing)} held-out subjects have no article: {', '.join(missing[:5])}")
        steps = [step for step in CLEANING if step in self.settings.clean]
        self.wait()
        # From here on rows leave the folder of unfinished files: a run that is killed now must start again.
        (self.writer.partial / STATE_FILE).unlink(missing_ok=True)
        meta = self.writer.finish(
            {
                "stage": "pretrain",
                "overflow": self.settings.overflow,
                "split": SPLIT_FROM_ENDS if self.plan.is_small else SPLIT_BY_SUBJECT,
                "articles": self.articles,
                **self.problems.about(),
                "cleaning": {"steps": steps, **{name: dict(counts) for name, counts in self.steps.items()}},
                "characters_cut": self.lost,
                "inputs": {name: {"rows": c["rows"], "tokens": c["tokens"]} for name, c in self.inputs.items()},
                "weights": self.settings.weights,
                "sources": files,
            }
        )
        if self.statistics:
            write_report(self.writer.folder / REPORT_FILE, self.statistics, meta)
        return meta
