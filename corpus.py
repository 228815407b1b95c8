"""Articles and questions as text: reading them, cleaning, cutting at sentences, and splitting into parts."""

import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from errors import UserError

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


class Problems:
    """Counts what could not be used, by reason, and keeps where the first ten stood."""

    def __init__(self):
        self.counts = Counter()
        self.places = []

    def add(self, reason, path, line):
        """One more row dropped for `reason`, which stood at `path`, `line`."""
        self.counts[reason] += 1
        if len(self.places) < SHOWN_PROBLEMS:
            self.places.append(f"{path}, line {line}: {reason}")

    def about(self):
        """What a data folder's meta.json keeps of it."""
        return {"dropped": dict(self.counts), "first_dropped": self.places}


def dropped_text(meta):
    """Lines for a person: the first rows that were dropped, and how many for which reason."""
    counts = ", ".join(f"{n} {reason}" for reason, n in meta["dropped"].items()) or "none"
    return "\n".join([*(f"  dropped: {place}" for place in meta["first_dropped"]), f"dropped: {counts}"])


def find_files(folders, setting="input_dir"):
    """Sorted paths of all `.jsonl` files, and files without an ending, in folders (any depth) or named directly.

    Raises UserError when a folder is not there, or there is no such file in all of them; `setting` is
    the one that the user gave them by.
    """
    if not any(folders):
        raise UserError(f"{setting} is empty; name your folder of jsonl files with --{setting}=…")
    found = []
    for folder in folders:
        if not os.path.exists(folder):
            raise UserError(f"input {folder} is not there; name your folder of jsonl files with --{setting}=…")
        if os.path.isfile(folder):
            found.append(folder)
        for root, _, names in os.walk(folder):
            # wikiextractor writes files without an ending; hidden files (.DS_Store) are nobody's articles.
            names = [n for n in names if not n.startswith(".")]
            found += [os.path.join(root, n) for n in names if n.endswith(".jsonl") or "." not in n]
    if not found:
        raise UserError(f'no .jsonl file in {", ".join(map(str, folders))}; a row is {{"id", "title", "text"}}')
    return sorted(dict.fromkeys(Path(f).as_posix() for f in found))


def read_rows(path, problems, progress=None):
    """Yields (line number, dict) of a jsonl file. A line that is no JSON object is added to `problems`.

    `progress(n_bytes)` is called for every line read.
    """
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} cannot be read; see to its permissions")
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if progress:
                progress(len(line))
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError:
                problems.add("bad UTF-8", path, number)
            except (ValueError, RecursionError):
                problems.add("bad JSON", path, number)
            else:
                if isinstance(row, dict):
                    yield number, row
                else:
                    problems.add("not a JSON object", path, number)


# A tokenizer's regular expression overflows its stack on a million spaces in a row.
ENDLESS_SPACE = re.compile(r"\s{1000,}")


def text_field(row, name):
    """(text, None), or (None, reason) where the field is missing, of a wrong type, or empty."""
    if name not in row:
        return None, f'no "{name}"'
    if not isinstance(row[name], str):
        return None, f'"{name}" is not a text'
    # A lone surrogate (half of an escaped pair) is no character and cannot be written as UTF-8.
    text = row[name].encode("utf-8", errors="ignore").decode("utf-8")
    text = ENDLESS_SPACE.sub(" ", text)
    return (text, None) if text.strip() else (None, f'"{name}" is empty')


def read_articles(files, problems, progress=None):
    """Yields (line number, `Article`) of every row with a text; other rows go to `problems`."""
    for path in files:
        for number, row in read_rows(path, problems, progress):
            text, reason = text_field(row, "text")
            if reason:
                problems.add(reason, path, number)
                continue
            title = text_field(row, "title")[0] or ""
            subject = text_field(row, "subject")[0] or title or hashlib.sha256(text.encode()).hexdigest()
            yield number, Article(path, row.get("id"), title.strip(), text, subject.strip())


def read_questions(files, problems, progress=None):
    """Yields (line number, `Question`) of every row with question and answer; other rows go to `problems`."""
    for path in files:
        for number, row in read_rows(path, problems, progress):
            question, no_question = text_field(row, "question")
            answer, no_answer = text_field(row, "answer")
            if no_question or no_answer:
                problems.add(no_question or no_answer, path, number)
                continue
            yield number, Question(path, row.get("id"), question.strip(), answer.strip())


# Cleaning

# What a wiki dump leaves behind where a link or template was taken out; the report's list.
LITTER = re.compile(r"（[；，\s]*）|\([;,\s]*\)|「」|《》|“”|-\{\}-|</?div\b[^<>]*>|[\r\n]+")
SHORT_TITLE = 40  # characters; a first paragraph without a sentence end below this is a title line
SENTENCE_END = re.compile(r"[。！？]+[”’」』\"']*")
CLAUSE_END = re.compile(r"[，；]")


def drop_title(text, title=""):
    """The text without its title line: the part before the first blank line, if that is the title.

    It is one when it equals `title`, or is short and has no sentence end (Hugging Face's Wikipedia
    texts have no title line; their first paragraph must stay).
    """
    text = text.lstrip()
    match = re.search(r"\n[ \t\r]*\n", text)
    if not match:
        return text
    head = text[: match.start()].strip()
    is_title = head == title.strip() or (
        len(head) <= SHORT_TITLE and "\n" not in head and not SENTENCE_END.search(head)
    )
    return text[match.end() :] if is_title else text


def clean(text):
    """The text without the dump's litter and line breaks; repeats until nothing matches: `（《》）` goes whole."""
    before = None
    while text != before:
        before, text = text, LITTER.sub("", text)
    return text.strip()


# Cutting


def split_after(pattern, text):
    """Pieces of text, each ending behind a match of `pattern`, the last perhaps without one. They join to `text`."""
    ends = [match.end() for match in pattern.finditer(text)]
    starts = [0, *ends]
    return [text[a:b] for a, b in zip(starts, [*ends, len(text)], strict=True) if a < b]


def sentences(text):
    """(list of full sentences, tail): the tail is what follows the last sentence end."""
    pieces = split_after(SENTENCE_END, text)
    if pieces and not SENTENCE_END.search(pieces[-1]):
        return pieces[:-1], pieces[-1]
    return pieces, ""


def fill(pieces, start, encode, limit):
    """(ids, end): as many whole pieces from `start` on as fit `limit` tokens, encoded as one text.

    The text is encoded whole, so that the ids are those that a prompt of the same text has.
    """
    total, end = 0, start
    while end < len(pieces) and total + (n_tokens := len(encode(pieces[end]))) <= limit:
        total += n_tokens
        end += 1
    ids = encode("".join(pieces[start:end]))
    # Encoded together, pieces may take a token more or less than one by one.
    while len(ids) > limit:
        end -= 1
        ids = encode("".join(pieces[start:end]))
    while end < len(pieces) and len(more := encode("".join(pieces[start : end + 1]))) <= limit:
        ids, end = more, end + 1
    return ids, end


def cut_truncate(text, encode, limit):
    """([(ids, n_chars)] of one row, tail_chars): the article up to the last full sentence that fits `limit` tokens.

    [] where not even the first sentence fits, or there is no sentence end.
    """
    pieces, _ = sentences(text)
    ids, end = fill(pieces, 0, encode, limit)
    kept = sum(map(len, pieces[:end]))
    return ([(ids, kept)] if end else []), len(text) - kept


def cut_split(text, encode, limit):
    """([(ids, n_chars)] of several rows, tail_chars): all full sentences, in rows of at most `limit` tokens.

    A sentence longer than a row is cut at `，；`, then anywhere between two characters.
    """
    pieces, tail = sentences(text)
    for pattern in (CLAUSE_END, re.compile(r".", re.DOTALL)):
        pieces = [
            part
            for piece in pieces
            for part in (split_after(pattern, piece) if len(encode(piece)) > limit else [piece])
        ]
    rows, start = [], 0
    while start < len(pieces):
        ids, end = fill(pieces, start, encode, limit)
        if end == start:  # one character that takes more tokens than a row has
            raise UserError(f"block_size is too small for the character {pieces[start]!r}; make it at least 8")
        rows.append((ids, sum(map(len, pieces[start:end]))))
        start = end
    return rows, len(tail)


CUTS = {"truncate": cut_truncate, "split": cut_split}


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
