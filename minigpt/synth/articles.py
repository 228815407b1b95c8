"""Selection of the articles to ask about: sampling, cleaning, shortening for the prompt, and keys."""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from minigpt.common.errors import UserError
from minigpt.corpus.cleaning import Cleaner
from minigpt.corpus.cutting import last_sentence_end
from minigpt.corpus.losses import Losses, check_losses
from minigpt.corpus.records import Problems
from minigpt.corpus.sources import articles_of, find_articles
from minigpt.corpus.splits import hash_share

OUTSIDE_SAMPLE = "not in the sample"
SKIPPED_PER_YIELD = 50  # articles skipped in a row after which `ArticleSource` yields None


@dataclass
class PromptArticle:
    """An article as the prompt contains it. id: from the file, or "line 7"; source: see `source_names`."""

    source: str
    id: object
    title: str
    text: str
    subject: str

    @property
    def key(self):
        return article_key(self.source, self.id)


def article_key(source, id):
    """The key of an article. It includes the source because ids are unique within one file only."""
    return f"{source}:{id}"


def short_hash(key):
    """The first eight bytes of a key's SHA-256, as an int: millions of them fit in memory."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", errors="replace")).digest()[:8], "big")


def source_names(settings):
    """{path: source} of all article files in settings.input_dir. A source is the path from the folder's name on,
    such as `wiki/AA/wiki_00`.

    It depends neither on the working directory nor on how the folder was given. Raises UserError if two files have the
    same source.
    """
    names, paths = {}, {}
    if not any(settings.input_dir):
        find_articles(settings)  # raises the UserError about an empty setting
    for folder in settings.input_dir:
        root = Path(folder).resolve()
        for path in find_articles(settings, [folder]):
            if path in names:
                continue
            below = Path(os.path.relpath(path, folder)).as_posix()
            name = f"{root.parent.name}/{root.name}" if below == "." else f"{root.name}/{below}"
            if name in paths:
                if os.path.samefile(path, paths[name]):
                    continue
                raise UserError(
                    f"{path} and {paths[name]} would both have the source {name} in the file of pairs; rename the "
                    "folder of one, or run each input_dir with its own --saves=…"
                )
            names[path] = name
            paths[name] = path
    return names


def cut_at_sentence(text, limit):
    """The start of a text, at most `limit` characters, up to the last sentence end within them if there is one."""
    start = text[:limit]
    return text if len(text) <= limit else start[: last_sentence_end(start)] or start


class ArticleSource:
    """Iterable over the articles to ask about, as `PromptArticle`, in the order of the files.

    It yields None after SKIPPED_PER_YIELD skipped articles in a row, so that the caller can check for a stop. The same
    files and settings give the same articles in every run.

    finished: hashes of article keys. With one article a request these are skipped and counted in done_before; in
    groups they are yielded, so that a group stays what it was.
    total, read: bytes. used: articles that were yielded, or are finished. skipped: Counter by reason. problems: of rows
    that are not articles.
    """

    def __init__(self, settings, finished=frozenset()):
        self.settings = settings
        self.finished = finished if settings.articles_per_request == 1 else frozenset()
        self.done_before = 0
        self.cleaner = Cleaner(settings)
        self.problems = Problems()
        self.names = source_names(settings)
        self.total = sum(map(os.path.getsize, self.names))
        self.read = 0
        self.skipped = Counter()
        self.used = 0

    def __iter__(self):
        seen, skipped_in_a_row = set(), 0
        for line, row in articles_of(self.settings, sorted(self.names), self.problems, self._add_progress):
            id = f"line {line}" if row.id is None else row.id
            id = id if type(id) in (int, str) else str(id)
            article = self._select(row, id, self.names[row.source], seen)
            skipped_in_a_row = 0 if article else skipped_in_a_row + 1
            if article or skipped_in_a_row % SKIPPED_PER_YIELD == 0:
                yield article

    def _select(self, row, id, source, seen):
        """The `PromptArticle` of an article, or None if it is skipped. seen: hashes of the keys so far."""
        key = article_key(source, id)
        short = short_hash(key)
        if hash_share("generate:" + key) >= self.settings.article_sample:
            self.skipped[OUTSIDE_SAMPLE] += 1
        elif short in seen:
            self.skipped["same id as an earlier article of the file"] += 1
        elif short in self.finished:
            seen.add(short)
            self.done_before += 1
            self.used += 1
        else:
            text, reason = self.cleaner.clean(row)
            if not reason:
                seen.add(short)
                self.used += 1
                title = self.cleaner.text(row.title)
                return PromptArticle(source, id, title, cut_at_sentence(text, self.settings.article_chars), row.subject)
            self.skipped[reason] += 1
        return None

    def loss_warnings(self):
        """Lines that warn of rows and articles that were lost. Raises UserError where nearly all were."""
        problems = Problems()
        problems.counts, problems.places = self.problems.counts + self.skipped, self.problems.places
        del problems.counts[OUTSIDE_SAMPLE]
        return check_losses(Losses(problems, self.used))

    def _add_progress(self, n_bytes):
        self.read += n_bytes
