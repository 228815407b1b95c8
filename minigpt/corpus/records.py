"""Articles and questions as text: finding and reading them, and splitting them into parts."""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from minigpt.common.errors import UserError
from minigpt.corpus.conversations import chosen_turns, rows_in, turns_of
from minigpt.corpus.fields import name_field, text_field
from minigpt.corpus.parsing import rows_of
from minigpt.corpus.readers import is_readable, read_blocks, unit_of

SHOWN_PROBLEMS = 10


@dataclass
class Article:
    source: str  # the file it stands in
    id: object  # as the file gives it; source and id together are its key
    title: str
    text: str  # as the file gives it
    subject: str  # what it is about: `subject`, else `title`, else the text's hash


@dataclass
class Question:
    source: str
    id: object  # of the article it was made from, or None
    question: str
    answer: str
    subject: str = ""  # of its article, where the row tells it


class Problems:
    """Counts what could not be used, by reason, and keeps where the first ten stood."""

    def __init__(self):
        self.counts = Counter()
        self.places = []

    def add(self, reason, path, line):
        """One more row dropped for `reason`, which stood at `path`, `line` (or row)."""
        self.counts[reason] += 1
        if len(self.places) < SHOWN_PROBLEMS:
            self.places.append(f"{path}, {unit_of(path)} {line}: {reason}")

    def about(self):
        """What a data folder's meta.json keeps of it."""
        return {"dropped": dict(self.counts), "first_dropped": self.places}


def dropped_text(meta):
    """Lines for a person: the first rows that were dropped, and how many for which reason."""
    counts = ", ".join(f"{n} {reason}" for reason, n in meta["dropped"].items()) or "none"
    return "\n".join([*(f"  dropped: {place}" for place in meta["first_dropped"]), f"dropped: {counts}"])


def find_files(folders, setting="input_dir", plain_text=False, leave_out=""):
    """Sorted paths of all files of rows in folders (any depth), and of the files that are named directly.

    These end in `.jsonl`, `.json` or `.parquet`, or have no ending, as wikiextractor writes them; all but parquet may
    be packed (`.gz .bz2 .xz .zst`). plain_text: `.txt` files too. leave_out: a folder. Raises UserError when a folder
    is not there, or there is no such file in all of them; `setting` is the one that the user gave them by.
    """
    if not any(folders):
        raise UserError(f"{setting} is empty; name your folder of articles with --{setting}=…")
    found = []
    for folder in folders:
        if not os.path.exists(folder):
            raise UserError(f"input {folder} is not there; name your folder of articles with --{setting}=…")
        if os.path.isfile(folder):
            found.append(folder)
        for root, inner, names in os.walk(folder):
            # Hidden files (.DS_Store) and folders (.git) are nobody's articles, nor is what is no file, or gone.
            inner[:] = [n for n in inner if not n.startswith(".") and not is_same(os.path.join(root, n), leave_out)]
            paths = [os.path.join(root, n) for n in names if not n.startswith(".") and is_readable(n, plain_text)]
            found += filter(os.path.isfile, paths)
    if not found:
        raise UserError(
            f"no .jsonl, .json or .parquet file in {', '.join(map(str, folders))}; "
            'a row is {"id", "title", "text"}, packed or not (.gz .bz2 .xz .zst)'
        )
    return sorted(dict.fromkeys(Path(f).as_posix() for f in found))


def is_same(folder, other):
    return bool(other) and os.path.abspath(folder) == os.path.abspath(other)


def read_rows(path, problems, progress=None):
    """Yields (number, dict) of each row of a file; what is no row is added to `problems`.

    The number is the line's, or in a JSON array or table the row's. `progress(n_bytes)` is called for what is read.
    """
    for block in read_blocks(path):
        for number, row, reason in rows_of(block):
            if reason:
                problems.add(reason, path, number)
            else:
                yield number, row
        if progress:
            progress(block.read)


def article_of(row, path, field="text"):
    """(`Article`, None) of a row, or (None, reason). field: the one that its text is in, where it has it."""
    text, reason = text_field(row, field if field in row else "text")
    if reason:
        return None, reason
    title = name_field(row, "title")
    subject = name_field(row, "subject") or title or hashlib.sha256(text.encode()).hexdigest()
    return Article(path, row.get("id"), title, text, subject), None


def read_articles(files, problems, progress=None):
    """Yields (number, `Article`) of every row with a text; other rows go to `problems`."""
    for path in files:
        for number, row in read_rows(path, problems, progress):
            article, reason = article_of(row, path)
            if reason:
                problems.add(reason, path, number)
            else:
                yield number, article


def read_questions(files, problems, progress=None, turns="each", forms=None):
    """Yields (number, `Question`) of every row that is understood, one for each turn; other rows go to `problems`.

    turns: as `conversations.chosen_turns` takes it. forms: a Counter of the forms that rows have had.
    """
    for path in files:
        rows = ((number, row) for number, line in read_rows(path, problems, progress) for row in rows_in(line))
        for number, row in rows:
            form, pairs, reason = turns_of(row)
            if reason:
                problems.add(reason, path, number)
                continue
            if forms is not None:
                forms[form] += 1
            for question, answer in chosen_turns(pairs, turns):
                yield (
                    number,
                    Question(path, row.get("id"), question.strip(), answer.strip(), name_field(row, "subject")),
                )


# Parts


def hash_share(text):
    """A number in [0, 1) that depends on the text alone, so that adding files moves nothing."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", errors="replace")).digest()[:8], "big") / 2**64


def pretrain_part(subject, val_share, heldout=()):
    """ "train" or "val" of an article, by its subject; held-out subjects are always pretrained on."""
    return "val" if subject not in heldout and hash_share(subject) < val_share else "train"


def sft_part(subject, val_share, test_share, heldout=()):
    """ "train", "val" or "test" of a question, by its article's subject.

    With held-out subjects they, and they alone, are the test part. The hash is not that of
    `pretrain_part`: questions of the validation part ask about subjects that were pretrained on.
    """
    if heldout:
        test_share = 0.0
        if subject in heldout:
            return "test"
    share = hash_share("sft:" + subject)
    return "test" if share < test_share else "val" if share < test_share + val_share else "train"


def read_heldout(path):
    """Set of subjects, one a line; empty for "". Raises UserError when the file is not there."""
    if not path:
        return frozenset()
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"heldout file {path} is not there, or not UTF-8 text; it has a subject a line") from None
    return frozenset(line.strip() for line in lines if line.strip())


def subjects_by_id(folders):
    """{id: subject} of the articles in `folders`. Raises UserError where one id names two subjects."""
    subjects, where = {}, {}
    for _, article in read_articles(find_files(folders, "articles"), Problems()):
        if article.id is None:
            continue  # no question can name it
        key = str(article.id)
        if subjects.setdefault(key, article.subject) != article.subject:
            raise UserError(
                f"id {key} is {subjects[key]!r} in {where[key]} and {article.subject!r} in {article.source}: ids start "
                "anew in each file, so name one file of articles for each file of questions: --articles=a.jsonl,b.jsonl"
            )
        where.setdefault(key, article.source)
    return subjects
