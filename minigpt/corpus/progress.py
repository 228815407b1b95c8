"""What becomes of prepared blocks: duplicates go, rows are written, everything is counted, and a kill costs little."""

import json
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from minigpt.common.files import replace_file, write_atomic
from minigpt.corpus.cleaning import Cleaner
from minigpt.corpus.keys import KeySet
from minigpt.corpus.mixing import input_of
from minigpt.corpus.near import NearDuplicates
from minigpt.corpus.readers import unit_of
from minigpt.corpus.records import Problems, read_heldout
from minigpt.corpus.row_files import padded_rows
from minigpt.corpus.statistics import Statistics
from minigpt.settings.stages import CLEANING

DUPLICATE, NEAR_DUPLICATE = "exact duplicate", "near duplicate"
STATE, SYNCED, REPORT = "state.json", "synced.json", "report.html"
SYNC_SECONDS = 60.0  # of work that a power cut costs at most; a disk is slow to take all there is
BOOT_SECONDS = 30.0  # by which two readings of when the machine was started may differ
STRETCH_BYTES = 4 << 20  # of rows that are made at once
VERSION = 1  # of what a state means
# Settings that change no row.
INDIFFERENT = {"workers", "data_dir"}


def fingerprint(settings, files, tokenizer):
    """Text that tells whether a broken-off preparation was of the same files, settings and table."""
    used = {name: value for name, value in settings.to_dict().items() if name not in INDIFFERENT}
    stats = [(path, os.stat(path)) for path in files]
    told = {
        "version": VERSION,
        "settings": used,
        "heldout": sorted(read_heldout(settings.heldout)),
        "table": tokenizer.sha256,
        "files": [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats],
    }
    return json.dumps(told, ensure_ascii=False, sort_keys=True)


def read_state(path):
    """What was saved of a preparation, or None."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def boot_time():
    """When the machine was started, about, in seconds since 1970; time that it slept is left out."""
    return time.time() - time.monotonic()


class Tally:
    """The blocks of one preparation, taken in order; `with` opens and closes what it keeps on the disk.

    place: (file, blocks of it) that are done; read: bytes of all files; kept: articles that became rows.
    """

    def __init__(self, settings, writer, told):
        self.settings, self.writer, self.told = settings, writer, told
        self.is_near = "near" in settings.clean
        self.problems, self.steps = Problems(), {"changed": Counter(), "dropped": Counter()}
        self.place, self.read, self.articles, self.kept, self.lost = (0, 0), 0, 0, 0, 0
        self.numbered = 0  # articles that were asked whether they repeat another
        self.heldout, self.inputs = set(), {name: Counter() for name in settings.input_dir}
        self.statistics = Statistics() if settings.report else None
        self.background, self.saving = ThreadPoolExecutor(1, "save"), None
        self.synced = time.monotonic()

    def __enter__(self):
        folder = self.writer.partial
        self.keys = KeySet(folder)
        states = [state for state in map(read_state, (folder / STATE, folder / SYNCED)) if state]
        ours = [state for state in states if state["told"] == self.told]
        ours.sort(key=lambda state: state["place"], reverse=True)
        state = next(filter(self._is_whole, ours), None)
        if not state:
            if states:
                why = "not whole" if ours else "of other files or settings"
                print(f"what is left of an earlier preparation is {why}: beginning anew")
            for left in [folder / STATE, folder / SYNCED, *folder.glob("*.db*")]:
                left.unlink(missing_ok=True)
        self.near = NearDuplicates(folder / "near.db", self.settings.near_share) if self.is_near else None
        self._take_up(state)
        return self

    def _is_whole(self, state):
        """Whether what a state tells of is there: on the disk, or written since the machine was started."""
        written = state["synced"] or abs(state["boot"] - boot_time()) < BOOT_SECONDS
        return written and self.writer.has(state["counts"]) and self.keys.has(state["keys"])

    def __exit__(self, *_):
        self.background.shutdown()
        self.keys.close()
        if self.near:
            self.near.close()

    def add(self, block, files):
        """Take the next `Prepared`."""
        new = self._new_ones(block)
        self.articles += block.articles
        self.kept += int(new.sum())
        self.lost += int(block.lost[new].sum())
        self.heldout |= block.heldout
        for name, counts in block.steps.items():
            self.steps[name].update(counts)
        if self.statistics:
            self.statistics.merge(block.statistics)
        self._write(block, new)
        index = self.place[0]
        self.place = (index, self.place[1] + 1)
        while files[index] != block.path:
            index += 1
            self.place = (index, 1)
        self.read += block.read

    def _new_ones(self, block):
        """(n,) of bool: which articles repeat none; the others, and those dropped before, go to `problems`."""
        new = self.keys.add(block.keys)
        dropped = [*block.dropped, *((block.numbers[i], DUPLICATE) for i in np.flatnonzero(~new))]
        for i in np.flatnonzero(new) if self.near else ():
            if not self.near.add(self.numbered + int(i), block.signatures[i], block.bands[i]):
                new[i] = False
                dropped.append((block.numbers[i], NEAR_DUPLICATE))
                self.steps["dropped"]["near"] += 1
        for number, reason in sorted(dropped):
            self.problems.add(reason, block.path, number)
        self.numbered += len(new)
        if self.statistics:
            for i in np.flatnonzero(~new):
                self.statistics.after.add(block.texts[i], -1)
                reason = next(reason for number, reason in dropped if number == block.numbers[i])
                self.statistics.example(
                    reason, f"{block.path}, {unit_of(block.path)} {block.numbers[i]}", block.texts[i]
                )
        return new

    def _write(self, block, new):
        times = np.where(block.in_train, block.takes, 1) * new
        counts = self.inputs[input_of(block.path, self.settings.input_dir)]
        starts = np.concatenate([[0], np.cumsum(block.lengths)])
        # In stretches of a few mebibytes, however wide a row is and however often it is taken.
        stretch = max(1, STRETCH_BYTES // (2 * self.writer.block_size))
        chosen = {
            "train": np.repeat(np.where(block.in_train, times, 0), block.rows),
            "val": np.repeat(np.where(block.in_train, 0, times), block.rows),
        }
        for first in range(0, len(block.lengths), stretch):
            lengths = block.lengths[first : first + stretch]
            ids = block.ids[starts[first] : starts[first + len(lengths)]]
            rows = padded_rows(ids, lengths, self.writer.block_size, self.writer.tokenizer)
            for part, of_part in chosen.items():
                here = of_part[first : first + stretch]
                order = np.repeat(np.arange(len(here)), here)
                for some in np.split(order, range(stretch, len(order), stretch)):
                    tokens = int(lengths[some].sum()) + len(some)
                    characters = block.characters[first : first + stretch][some].sum()
                    whole = len(some) == len(rows) and (here == 1).all()
                    self.writer.add_rows(part, rows if whole else rows[some], tokens, characters)
                    counts["rows"] += len(some)
                    counts["tokens"] += tokens

    def save(self):
        """Keep all that was done, so that a kill costs what comes after it at most; each minute also on the disk.

        In the background, as a disk may take seconds, in which the workers would have nothing to do.
        """
        if self.saving and not self.saving.done():
            return
        self.wait()
        synced = time.monotonic() - self.synced > SYNC_SECONDS
        self.writer.flush()
        self.keys.flush()
        if self.near:
            self.near.flush()
        state = {**self._state(), "synced": synced, "boot": boot_time()}
        text = json.dumps(state, ensure_ascii=False).encode(errors="backslashreplace")
        self.saving = self.background.submit(self._keep, text, synced)

    def _keep(self, state, synced):
        if synced:
            self.writer.sync()
            self.keys.sync()
            write_atomic(self.writer.partial / SYNCED, lambda file: file.write(state))
            self.synced = time.monotonic()
        else:
            new = self.writer.partial / (STATE + ".new")
            new.write_bytes(state)
            replace_file(new, self.writer.partial / STATE)

    def wait(self):
        """Wait until what is being saved is on the disk. Raises OSError where it could not be put there."""
        saving, self.saving = self.saving, None
        if saving:
            saving.result()

    def _state(self):
        """All that a run that goes on needs, as a dict for JSON."""
        return {
            "told": self.told,
            "place": self.place,
            "read": self.read,
            "articles": self.articles,
            "kept": self.kept,
            "numbered": self.numbered,
            "lost": self.lost,
            "heldout": sorted(self.heldout),
            "inputs": self.inputs,
            "steps": self.steps,
            "keys": self.keys.count,
            "counts": self.writer.counts,
            "problems": self.problems.about(),
            "statistics": self.statistics.to_dict() if self.statistics else None,
        }

    def _take_up(self, state):
        """Go on from a state, or from nothing."""
        if not state:
            self.keys.go_on(0)
            self.writer.go_on({part: dict.fromkeys(counts, 0) for part, counts in self.writer.counts.items()})
            return
        self.place, self.read = tuple(state["place"]), state["read"]
        self.articles, self.kept, self.lost = state["articles"], state["kept"], state["lost"]
        self.numbered = state["numbered"]
        self.heldout = set(state["heldout"])
        self.inputs = {name: Counter(counts) for name, counts in state["inputs"].items()}
        self.steps = {name: Counter(counts) for name, counts in state["steps"].items()}
        self.problems.counts = Counter(state["problems"]["dropped"])
        self.problems.places = state["problems"]["first_dropped"]
        if self.statistics:
            self.statistics = Statistics.from_dict(state["statistics"])
        self.writer.go_on(state["counts"])
        self.keys.go_on(state["keys"])
        if self.near:
            self.near.go_on(self.numbered)

    def finish(self, files):
        """Put the rows in place and write meta.json, and the report if asked for; returns the meta."""
        text = Cleaner(self.settings).text
        missing = sorted({text(subject) for subject in read_heldout(self.settings.heldout)} - self.heldout)
        if missing:
            print(f"warning: {len(missing)} held-out subjects have no article: {', '.join(missing[:5])}")
        steps = [step for step in CLEANING if step in self.settings.clean]
        self.wait()
        meta = self.writer.meta(
            {
                "stage": "pretrain",
                "overflow": self.settings.overflow,
                "articles": self.articles,
                **self.problems.about(),
                "cleaning": {"steps": steps, **{name: dict(counts) for name, counts in self.steps.items()}},
                "characters_cut": self.lost,
                "inputs": {name: {"rows": c["rows"], "tokens": c["tokens"]} for name, c in self.inputs.items()},
                "weights": self.settings.weights,
                "sources": files,
            }
        )
        page, page_place = self.writer.partial / REPORT, self.writer.folder / REPORT
        if self.statistics:
            from minigpt.corpus.report import write_report  # matplotlib takes its time

            write_report(page, self.statistics, meta)
        # From here on the rows leave the folder of what is unfinished: a run that is killed now begins anew.
        for name in (STATE, SYNCED):
            (self.writer.partial / name).unlink(missing_ok=True)
        self.writer.place(meta)
        if self.statistics:
            replace_file(page, page_place)
        return meta
