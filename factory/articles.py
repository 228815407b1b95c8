"""The articles that are asked about: chosen, cleaned, cut to what a model is shown, and known by a lasting key."""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cleaning import SENTENCE_END, Cleaner
from corpus import Problems, find_files, hash_share, read_articles
from errors import UserError


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


class Source:
    """Iterating gives every article to ask about as `Shown`, in the files' order.

    total, read: bytes. skipped: Counter of articles that are not asked about, by reason; problems: of rows that are
    none. Reading the same files with the same settings gives the same articles each time.
    """

    def __init__(self, settings):
        self.settings, self.cleaner, self.problems = settings, Cleaner(settings), Problems()
        self.names = names_of(settings.input_dir)
        self.total, self.read, self.skipped = sum(map(os.path.getsize, self.names)), 0, Counter()

    def __iter__(self):
        settings, seen = self.settings, set()
        for line, article in read_articles(sorted(self.names), self.problems, self._progress):
            id = f"line {line}" if article.id is None else article.id
            source = self.names[article.source]
            key = key_of(source, id)
            if hash_share("generate:" + key) >= settings.article_sample:
                self.skipped["not in the sample"] += 1
                continue
            text, reason = self.cleaner.clean(article)
            if reason or not text.strip():
                self.skipped[reason or "empty"] += 1
            elif (short := short_hash(key)) in seen:
                self.skipped["same id as an earlier one of its file"] += 1
            else:
                seen.add(short)
                title = self.cleaner.text(article.title)
                yield Shown(source, id, title, cut(text, settings.article_chars), article.subject)

    def _progress(self, n_bytes):
        self.read += n_bytes
