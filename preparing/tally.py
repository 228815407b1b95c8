"""What becomes of prepared blocks: duplicates go, rows are written, everything is counted, and a kill costs little."""

import json
import os
from collections import Counter

import numpy as np

from configurator import FIELDS
from corpus import Problems, read_heldout
from files import write_json
from preparing.keys import KeySet
from preparing.mixing import input_of
from preparing.near import NearDuplicates
from preparing.statistics import Statistics
from row_files import padded_rows
from settings import CLEANING

DUPLICATE, NEAR_DUPLICATE = "exact duplicate", "near duplicate"
STATE = "state.json"
VERSION = 1  # of what a state means
# Settings that change no row.
INDIFFERENT = {"workers", "data_dir"}


def fingerprint(settings, files, tokenizer):
    """Text that tells whether a broken-off preparation was of the same files, settings and table."""
    used = {
        name: getattr(settings, name)
        for name, field in FIELDS.items()
        if "prepare" in field.metadata["used_by"] and name not in INDIFFERENT
    }
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

    def __enter__(self):
        folder = self.writer.partial
        state = read_state(folder / STATE)
        if state and state["told"] != self.told:
            print("what is left of an earlier preparation is of other files or settings: beginning anew")
            state = None
        if not state:
            for left in folder.glob("*.db*"):
                left.unlink()
        self.keys = KeySet(folder)
        self.near = NearDuplicates(folder / "near.db", self.settings.near_share) if self.is_near else None
        self._take_up(state)
        return self

    def __exit__(self, *_):
        self.keys.close()
        if self.near:
            self.near.close()

    def add(self, block, files):
        """Take the next `preparing.Prepared`."""
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
                self.statistics.example(reason, f"{block.path} {block.numbers[i]}", block.texts[i])
        return new

    def _write(self, block, new):
        rows = padded_rows(block.ids, block.lengths, self.writer.block_size, self.writer.tokenizer)
        times = np.where(block.in_train, block.takes, 1) * new
        counts = self.inputs[input_of(block.path, self.settings.input_dir)]
        for part, of_part in (("train", block.in_train), ("val", ~block.in_train)):
            chosen = np.repeat(np.where(of_part, times, 0), block.rows)
            every = chosen.all() and (chosen == 1).all()
            order = slice(None) if every else np.repeat(np.arange(len(rows)), chosen)
            tokens = int(block.lengths[order].sum()) + len(block.lengths[order])
            self.writer.add_rows(part, rows[order], tokens, block.characters[order].sum())
            counts["rows"] += len(block.lengths[order])
            counts["tokens"] += tokens

    def save(self):
        """Put on the disk all that was done, so that a kill costs what comes after it at most."""
        self.writer.flush()
        self.keys.flush()
        if self.near:
            self.near.flush()
        state = {
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
        write_json(self.writer.partial / STATE, state)

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
        missing = sorted(read_heldout(self.settings.heldout) - self.heldout)
        if missing:
            print(f"warning: {len(missing)} held-out subjects have no article: {', '.join(missing[:5])}")
        steps = [step for step in CLEANING if step in self.settings.clean]
        meta = self.writer.finish(
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
        if self.statistics:
            from preparing.report import write_report  # matplotlib takes its time

            write_report(self.writer.folder / "report.html", self.statistics, meta)
        return meta
