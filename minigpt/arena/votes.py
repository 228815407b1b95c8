"""What the arena writes down: votes (jsonl) and flagged answers (csv), appended so that no writer harms another's."""

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
from minigpt.common.files import append_durably

LOCK_SECONDS = 20.0
RESULTS = ("left", "right", "tie", "bad")
OPEN_BATTLES = 10_000  # of which the oldest is forgotten
# A spreadsheet takes a cell that begins so for a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")
FLAG_COLUMNS = ("time", "models", "prompt", "outputs", "settings")


def now():
    """The time in UTC, to the second, as ISO 8601 writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def append(path, text, head=""):
    """Append text (whole lines) to a file durably; writers in other threads and processes wait for each other.

    head: first line of a new file. Raises Problem if it cannot be written; the file then has its previous content.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=LOCK_SECONDS):
            append_durably(path, text, head)
    except (OSError, Timeout) as error:
        detail = "locked" if isinstance(error, Timeout) else error.strerror
        raise Problem("not_written", path=str(path), detail=detail) from None


class Votes:
    """The votes of a file, a JSON object a line; see `Battles.cast` for what is in one."""

    def __init__(self, path):
        self.path = Path(path)
        self._seen, self._votes, self._unreadable = None, [], 0
        self._lock = threading.Lock()

    def add(self, votes):
        """Append votes (dicts); they are on the disk when this returns. Raises Problem."""
        append(self.path, "".join(json.dumps(vote, ensure_ascii=False) + "\n" for vote in votes))

    def all(self):
        """([dict], lines that are no votes). A file that has not changed is not read again."""
        with self._lock:
            try:
                stat = self.path.stat()
                seen = (stat.st_mtime_ns, stat.st_size)
            except OSError:
                return [], 0
            if seen != self._seen:
                self._votes, self._unreadable = read_votes(self.path)
                self._seen = seen
            return self._votes, self._unreadable


def read_votes(path):
    """([dict], count of lines that are no votes) of a file of votes."""
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
    """Two answers that wait for a vote, by an id that is good for one vote."""

    def __init__(self, votes):
        self.votes, self._open, self._lock = votes, OrderedDict(), threading.Lock()

    def begin(self, prompt, answers, blind, settings):
        """The id of a new battle between two Answers. settings: dict of how they were sampled."""
        battle = {"prompt": prompt, "answers": answers, "blind": blind, "settings": settings}
        name = uuid.uuid4().hex
        with self._lock:
            self._open[name] = battle
            while len(self._open) > OPEN_BATTLES:
                self._open.popitem(last=False)
        return name

    def look(self, name):
        """The battle (dict) of an id, or None."""
        return self._open.get(name)

    def cast(self, name, result):
        """Write the vote (one of RESULTS) on a battle down; returns it. Raises Problem, and the battle stays open."""
        if result not in RESULTS:
            raise Problem("bad_result", result=str(result)[:20], results=", ".join(RESULTS))
        with self._lock:  # no two votes on one battle
            battle = self._open.pop(name, None)
        if battle is None:
            raise Problem("no_battle")
        try:
            left, right = battle["answers"]
            if not (left.ended and right.ended):
                raise Problem("battle_runs")
            if left.failure or right.failure:
                raise Problem("battle_failed")
            vote = vote_of(battle["prompt"], left, right, result, battle["settings"], blind=battle["blind"], id=name)
            self.votes.add([vote])
            return vote
        except Problem:
            with self._lock:
                self._open[name] = battle
            raise


def vote_of(prompt, left, right, result, settings, kind="vote", **more):
    """A vote as the file has it. left, right: what has `key` and `text`; kind: "vote" (a person's) or "match"."""
    return {
        "time": now(), "kind": kind, "left": left.key, "right": right.key, "result": result, "prompt": prompt,
        "left_answer": left.text, "right_answer": right.text, "settings": settings, **more,
    }  # fmt: skip


def preferences(votes):
    """[{"prompt", "chosen", "rejected"}], which DPO trainers read: every vote with a winner, by people or matches."""
    pairs = []
    for vote in votes:
        answers = {side: vote.get(f"{side}_answer") for side in ("left", "right")}
        if vote["result"] in answers and all(isinstance(text, str) for text in (vote.get("prompt"), *answers.values())):
            chosen = answers.pop(vote["result"])
            (rejected,) = answers.values()
            if chosen != rejected:
                pairs.append({"prompt": vote["prompt"], "chosen": chosen, "rejected": rejected})
    return pairs


def to_csv(rows):
    """Rows (lists) as CSV text; no cell is a formula to a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    for row in rows:
        cells = [cell if isinstance(cell, (int, float)) else str(cell) for cell in row]
        writer.writerow([f"'{c}" if isinstance(c, str) and c.startswith(FORMULA) else c for c in cells])
    return text.getvalue()


def flag(path, prompt, answers, settings):
    """Append a row about answers (of Answer) to a CSV, which spreadsheets open as UTF-8. Raises Problem."""
    outputs = json.dumps({answer.key: answer.text for answer in answers}, ensure_ascii=False)
    if len(answers) == 1:
        outputs = answers[0].text
    models = " | ".join(answer.key for answer in answers)
    row = [now(), models, prompt, outputs, json.dumps(settings)]
    append(path, to_csv([row]), head="\ufeff" + to_csv([FLAG_COLUMNS]))
