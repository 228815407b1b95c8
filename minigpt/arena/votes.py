"""The arena's files: votes (JSON lines) and flagged answers (CSV)."""

import csv
import io
import json
import threading
import uuid
from collections import OrderedDict
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from minigpt.arena.problems import Problem
from minigpt.common.files import append_durably, file_stamp

LOCK_TIMEOUT_SECONDS = 20.0
RESULTS = ("left", "right", "tie", "bad")
# Fields of SamplingParams that are stored with a vote, in the order of the page's inputs.
SAMPLING_KEYS = ("max_new_tokens", "temperature", "top_k", "top_p", "frequency_penalty", "seed")
MAX_OPEN_BATTLES = 10_000  # beyond these the oldest is dropped
# A spreadsheet takes a cell that starts with one of these for a formula.
FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r")
FLAG_COLUMNS = ("time", "models", "prompt", "outputs", "settings")


def utc_now():
    """The time in UTC as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def append_lines(path, text, head=""):
    """Append text (whole lines) to a file durably; writers in other threads and processes wait for each other.

    head: first line of a new file. Raises Problem if it cannot be written; the file then has its previous content.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=LOCK_TIMEOUT_SECONDS):
            append_durably(path, text, head)
    except (OSError, Timeout) as error:
        detail = "locked" if isinstance(error, Timeout) else error.strerror
        raise Problem("not_written", path=str(path), detail=detail) from None


class Votes:
    """The votes of a file with one JSON object (see `make_vote`) per line."""

    def __init__(self, path):
        self.path = Path(path)
        self._stamp = None  # of the file when it was read
        self._read = [], 0
        self._lock = threading.Lock()

    def add(self, votes):
        """Append votes (dicts). They are on the disk when this returns. Raises Problem."""
        append_lines(self.path, "".join(json.dumps(vote, ensure_ascii=False) + "\n" for vote in votes))

    def all(self):
        """As `read_votes`; ([], 0) without a file. The same list is returned until the file changes."""
        with self._lock:
            stamp = file_stamp(self.path)
            if stamp != self._stamp:
                self._read = read_votes(self.path) if stamp else ([], 0)
                self._stamp = stamp
            return self._read


def read_votes(path):
    """([dict], number of invalid lines) of a file of votes."""
    votes, unreadable = [], 0
    with open(path, "rb") as file:
        for line in file:
            try:
                vote = json.loads(line)
                if vote["result"] not in RESULTS or not all(isinstance(vote[side], str) for side in ("left", "right")):
                    raise ValueError
                votes.append(vote)
            except (ValueError, TypeError, KeyError, RecursionError):
                unreadable += bool(line.strip())
    return votes, unreadable


class Battles:
    """Pairs of answers that wait for a vote. Each has an id, which is valid for one vote."""

    def __init__(self, votes):
        self.votes, self._open, self._lock = votes, OrderedDict(), threading.Lock()

    def begin(self, prompt, answers, blind, settings):
        """The id of a new battle between two ModelAnswers. settings: dict of the sampling parameters."""
        battle = {"prompt": prompt, "answers": answers, "blind": blind, "settings": settings}
        id = uuid.uuid4().hex
        with self._lock:
            self._open[id] = battle
            while len(self._open) > MAX_OPEN_BATTLES:
                self._open.popitem(last=False)
        return id

    def get(self, id):
        """The battle (dict) of an id, or None."""
        return self._open.get(id)

    def cast(self, id, result):
        """Write a vote (one of RESULTS) on a battle to the file and return it.

        Raises Problem if that is not possible; the battle then stays open.
        """
        if result not in RESULTS:
            raise Problem("bad_result", result=str(result)[:20], results=", ".join(RESULTS))
        with self._lock:  # so that a battle gets one vote
            battle = self._open.pop(id, None)
        if battle is None:
            raise Problem("no_battle")
        try:
            left, right = battle["answers"]
            if not (left.ended and right.ended):
                raise Problem("battle_runs")
            if left.failure or right.failure:
                raise Problem("battle_failed")
            vote = make_vote(battle["prompt"], left, right, result, battle["settings"], blind=battle["blind"], id=id)
            self.votes.add([vote])
            return vote
        except Problem:
            with self._lock:
                self._open[id] = battle
            raise


def make_vote(prompt, left, right, result, settings, kind="vote", **more):
    """A vote as the file stores it. left, right: objects with `key` and `text`; kind: "vote" (by a person) or "match";
    more: further entries."""
    return {
        "time": utc_now(), "kind": kind, "left": left.key, "right": right.key, "result": result, "prompt": prompt,
        "left_answer": left.text, "right_answer": right.text, "settings": settings, **more,
    }  # fmt: skip


def format_csv(rows):
    """Rows (lists) as CSV text. Cells that a spreadsheet would take for a formula get a leading apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    for row in rows:
        cells = [cell if isinstance(cell, (int, float)) else str(cell) for cell in row]
        writer.writerow([f"'{c}" if isinstance(c, str) and c.startswith(FORMULA_PREFIXES) else c for c in cells])
    return text.getvalue()


def flag_answers(path, prompt, answers, settings):
    """Append a row about one or two answers (objects with `key` and `text`) to a CSV file. Raises Problem.

    A new file starts with a byte order mark, from which spreadsheets know that it is UTF-8.
    """
    outputs = json.dumps({answer.key: answer.text for answer in answers}, ensure_ascii=False)
    if len(answers) == 1:
        outputs = answers[0].text
    models = " | ".join(answer.key for answer in answers)
    row = [utc_now(), models, prompt, outputs, json.dumps(settings)]
    append_lines(path, format_csv([row]), head="\ufeff" + format_csv([FLAG_COLUMNS]))
