"""The articles that are asked about: chosen, cleaned, cut to what a model is shown, and known by a lasting key."""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from minigpt.common.errors import UserError
from minigpt.corpus.cleaning import SENTENCE_END, Cleaner
from minigpt.corpus.readers.files import find_files
from minigpt.corpus.records import Problems, read_articles
from minigpt.corpus.splits import hash_share

PASSED = 50  # articles that are passed by before a None is given, so that the caller can look around


@dataclass
class Shown:
    """An article as the model is shown it. id: as the file gives it, or "line 7"; source: see `names_of`."""

    source: str
    id: object
    title: str
    text: str
    subject: str

    @property
    def key(self):
        return key_of(self.source, self.id)


def key_of(source, id):
    """What tells an article from all others: ids start anew in each file."""
    return f"{source}:{id}"


def short_hash(key):
    """Eight bytes of a key's hash, as an int: millions of them fit in memory."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", errors="replace")).digest()[:8], "big")


def names_of(folders):
    """{path: source} of all files of articles in folders: the path from the folder's own name on (`wiki/AA/wiki_00`).

    So it is the same from wherever the script is started, and however the folder was named. Raises UserError where two
    files would bear one name.
    """
    names, paths = {}, {}
    if not any(folders):
        find_files(folders)  # it says so
    for folder in folders:
        root = Path(folder).resolve()
        for path in find_files([folder]):
            if path in names:
                continue
            below = Path(os.path.relpath(path, folder)).as_posix()
            name = f"{root.parent.name}/{root.name}" if below == "." else f"{root.name}/{below}"
            if name in paths:
                if os.path.samefile(path, paths[name]):
                    continue
                raise UserError(
                    f"{path} and {paths[name]} both go by {name} in the file of pairs; rename the folder of one, or "
                    "give each input_dir a run of its own with its own --saves=…"
                )
            names[path], paths[name] = name, path
    return names


def cut(text, limit):
    """A text's start of at most `limit` characters, up to a sentence end where it has one."""
    if len(text) <= limit:
        return text
    ends = [match.end() for match in SENTENCE_END.finditer(text, 0, limit)]
    return text[: ends[-1]] if ends else text[:limit]


class ArticleSource:
    """Iterating gives every article to ask about as `Shown`, in the files' order, and None now and then between.

    done: hashes of keys that are passed by, counted in done_before, where each article has a request of its own; in
    a group they stay, so that the group is what it was.
    total, read: bytes. skipped: Counter of articles that are not asked about, by reason; problems: of rows that are
    none. Reading the same files with the same settings gives the same articles each time.
    """

    def __init__(self, settings, done=frozenset()):
        self.done = done if settings.articles_per_request == 1 else frozenset()
        self.done_before = 0
        self.settings, self.cleaner, self.problems = settings, Cleaner(settings), Problems()
        self.names = names_of(settings.input_dir)
        self.total, self.read, self.skipped = sum(map(os.path.getsize, self.names)), 0, Counter()

    def __iter__(self):
        settings, seen, passed = self.settings, set(), 0
        for line, article in read_articles(sorted(self.names), self.problems, self._progress):
            id = f"line {line}" if article.id is None else article.id
            id = id if type(id) in (int, str) else str(id)
            shown = self._shown(article, id, self.names[article.source], settings, seen)
            passed = 0 if shown else passed + 1
            if shown or passed % PASSED == 0:
                yield shown

    def _shown(self, article, id, source, settings, seen):
        """The `Shown` of an article, or None where it is not asked about; seen: hashes of keys."""
        key = key_of(source, id)
        short = short_hash(key)
        if hash_share("generate:" + key) >= settings.article_sample:
            self.skipped["not in the sample"] += 1
        elif short in seen:
            self.skipped["same id as an earlier one of its file"] += 1
        elif short in self.done:
            seen.add(short)
            self.done_before += 1
        else:
            text, reason = self.cleaner.clean(article)
            if not reason and text.strip():
                seen.add(short)
                title = self.cleaner.text(article.title)
                return Shown(source, id, title, cut(text, settings.article_chars), article.subject)
            self.skipped[reason or "empty"] += 1
        return None

    def _progress(self, n_bytes):
        self.read += n_bytes
