"""Articles: reading them from files of any format, and the fields of rows. Questions: questions.py."""

import hashlib
from collections import Counter
from dataclasses import dataclass

from minigpt.corpus.readers.blocks import PLAIN_MARK
from minigpt.corpus.readers.rows import parse_block, read_blocks, record_unit
from minigpt.tokenizer import bounded_spaces

MAX_SHOWN_PROBLEMS = 10
LISTED_FIELDS = " (it has "  # in a reason: what follows are the fields of the first row that was dropped for it
MAX_LISTED_FIELDS = 8
NO_TEXT_FIELDS = {"id", "title", "subject", "url", "date"}
MAX_FIELD_NAME_CHARS = 30  # of a field's name
ARTICLE_TEXT_NAMES = ("content", "completion", "body", "article", "document", "正文", "内容", "文本")
QUESTION_FIELDS = {"question", "prompt", "instruction", "query", "answer", "response", "问题", "答案", "问", "答"}


@dataclass
class Article:
    source: str  # its file
    id: object  # as the file gives it; source and id together identify an article
    title: str
    text: str  # as the file gives it
    subject: str  # `subject`, else `title`, else the text's hash
    is_plain: bool = False  # of plain text, not of a row with fields


class Problems:
    """Counts the rows that could not be used, by reason, and keeps where the first ten are."""

    def __init__(self):
        self.counts = Counter()
        self.places = []

    def add(self, reason, path, line):
        """Counts a row that is dropped for `reason`, at `line` (or row) of the file `path`.

        Reasons that differ only in the fields that a row has (`missing_field_reason`) are counted as the first one.
        """
        start = reason.partition(LISTED_FIELDS)[0] + LISTED_FIELDS
        if reason.startswith(start):
            reason = next((other for other in self.counts if other.startswith(start)), reason)
        self.counts[reason] += 1
        if len(self.places) < MAX_SHOWN_PROBLEMS:
            self.places.append(f"{path}, {record_unit(path)} {line}: {reason}")

    def about(self):
        """The entries of a data folder's meta.json: {"dropped": {reason: count}, "first_dropped": [place]}."""
        return {"dropped": dict(self.counts), "first_dropped": self.places}


def dropped_text(meta):
    """Lines to print: the first rows that were dropped, and how many for which reason."""
    counts = ", ".join(f"{n} {reason}" for reason, n in meta["dropped"].items()) or "none"
    return "\n".join([*(f"  dropped: {place}" for place in meta["first_dropped"]), f"dropped: {counts}"])


def read_rows(path, problems, progress=None, one_per_line=False, encoding=""):
    """Yields (number, dict) of each row of a file; other records are added to `problems`.

    The number is the line's, or in JSON arrays and Parquet the row's. `progress(n_bytes)` is called for bytes read.
    one_per_line, encoding: as `read_blocks` takes them.
    """
    for block in read_blocks(path, one_per_line, encoding):
        for number, row, reason in parse_block(block):
            if reason:
                problems.add(reason, path, number)
            else:
                yield number, row
        if progress:
            progress(block.n_bytes)


# Fields


def text_field(row, name):
    """(text, None), or (None, reason) where the field is missing, empty, of a wrong type, or not valid text."""
    text = row.get(name)
    if not isinstance(text, str):
        if name not in row:
            return None, f'no "{name}"'
        return None, f'"{name}" is nested' if isinstance(text, (dict, list)) else f'"{name}" is not a text'
    if "\0" in text:
        return None, "NUL character"
    text = bounded_spaces(text)
    try:
        text.encode()
    except UnicodeEncodeError:
        return None, "half of a surrogate pair"
    return (text, None) if text and not text.isspace() else (None, f'"{name}" is empty')


def name_field(row, name):
    """A row's title or subject, "" where it has none; lone surrogates are removed."""
    text = row.get(name)
    if not isinstance(text, str):
        return ""
    return text.encode("utf-8", errors="ignore").decode().strip()


def missing_field_reason(row, name, setting):
    """The reason that a row has no field `name`, with the fields that may stand for it, which `setting` can name."""
    fields = [field for field, text in row.items() if isinstance(text, str) and text.strip() and field.isprintable()]
    has_candidate = bool(set(fields) - NO_TEXT_FIELDS)
    fields = [field[:MAX_FIELD_NAME_CHARS] for field in fields[:MAX_LISTED_FIELDS] if has_candidate]
    listed = f"{LISTED_FIELDS}{', '.join(fields)}: name one with --{setting}=…)" if fields else ""
    return f'no "{name}"{listed}'


# Articles


def name_of_text(row, field):
    """The field of a row's text: `field`, else text, else the one of ARTICLE_TEXT_NAMES, unless it answers."""
    if field in row or "text" in row:
        return field if field in row else "text"
    known = [name for name in ARTICLE_TEXT_NAMES if isinstance(row.get(name), str)]
    return known[0] if len(known) == 1 and not QUESTION_FIELDS & row.keys() else field


def article_of(row, path, field="text"):
    """(`Article`, None) of a row, or (None, reason). field: the field of its text, as `name_of_text` takes it."""
    name = name_of_text(row, field)
    text, reason = text_field(row, name)
    if reason:
        return None, reason if name in row else missing_field_reason(row, name, "text_field")
    title = name_field(row, "title")
    subject = name_field(row, "subject") or title or hashlib.sha256(text.encode()).hexdigest()
    return Article(path, row.get("id"), title, text, subject, PLAIN_MARK in row), None


def read_articles(files, problems, progress=None, field="text", encoding=""):
    """Yields (number, `Article`) of every row with a text; other rows are added to `problems`.

    progress, encoding: as `read_rows` takes them; field: as `article_of` takes it.
    """
    for path in files:
        for number, row in read_rows(path, problems, progress, encoding=encoding):
            article, reason = article_of(row, path, field)
            if reason:
                problems.add(reason, path, number)
            else:
                yield number, article
