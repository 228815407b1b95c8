"""Cutting a text into rows: at sentences, where one is too long at clauses, and only then between characters.

A text is encoded once, and rows are pieces of its ids: where a token ends at the end of a sentence, byte pairs that
were merged before it and behind it are those of the two parts alone, so that a row has the ids that its text has (but
where a run of line breaks, which cleaning takes out, ends it).
"""

import itertools
import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minigpt.common.errors import UserError
from minigpt.corpus.cleaning import SENTENCE_END

CLAUSE_END = re.compile(r"[，；]")
UNSPACED_CHARACTER = re.compile(r"\S(?=\S)", re.DOTALL)  # spaces stay with what follows them, as their tokens do
CHARACTER = re.compile(r".", re.DOTALL)
CLOSING = "”’」』\"'"


def last_sentence_end(text):
    """Position behind the last sentence end and its closing quotes; 0 where there is none."""
    end = max(text.rfind("。"), text.rfind("！"), text.rfind("？")) + 1
    while 0 < end < len(text) and text[end] in CLOSING:
        end += 1
    return end


def positions(pattern, text, start=0, end=None):
    """Positions in text behind each match of `pattern` in text[start:end]."""
    return [match.end() for match in pattern.finditer(text, start, len(text) if end is None else end)]


class Tokens:
    """The ids of a text, and which positions in the text a token ends at. ids: where they are known already."""

    def __init__(self, text, tokenizer, ids=None):
        self.text, self.ids = text, tokenizer.encode_array(text) if ids is None else ids
        self.tokenizer, self.lengths = tokenizer, tokenizer.token_lengths

    @cached_property
    def ends(self):
        """Where each token ends, in bytes."""
        return np.cumsum(self.lengths[self.ids])

    def marks(self, places):
        """[(tokens before, position)] of the ascending positions in the text that a token ends at."""
        in_bytes = np.cumsum([len(self.text[a:b].encode()) for a, b in itertools.pairwise([0, *places])])
        at = np.searchsorted(self.ends, in_bytes)
        whole = self.ends[np.minimum(at, len(self.ends) - 1)] == in_bytes
        return [
            (int(n) + 1, place)
            for n, place, right in zip(at, places, whole, strict=True)
            if right and not self.text.startswith("'", place)  # GPT-2's table has 's and its like as one
        ]


def refined(tokens, marks, limit):
    """Marks, with further ones where more than `limit` tokens lie between two."""
    for pattern in (CLAUSE_END, UNSPACED_CHARACTER, CHARACTER):
        finer = []
        for before, mark in itertools.pairwise([(0, 0), *marks]):
            if mark[0] - before[0] > limit:
                places = positions(pattern, tokens.text, before[1], mark[1])
                finer += [m for m in tokens.marks(places) if before[0] < m[0] < mark[0]]
            finer.append(mark)
        marks = finer
    return marks


def cut_truncate(text, tokenizer, limit):
    """([(ids, n_chars)] of one row, tail_chars): the article up to the last full sentence that fits `limit` tokens.

    [] where not even the first sentence fits, or there is no sentence end.
    """
    end, window = last_sentence_end(text), limit
    until = 0
    while until < end:
        # Only so much of a long article is encoded as a row may take.
        place = SENTENCE_END.search(text, window)
        until = min(end, place.end() if place else end)
        tokens = Tokens(text[:until], tokenizer)
        if len(tokens.ids) > limit:
            return truncated(tokens, limit), len(text) - sum(n for _, n in truncated(tokens, limit))
        window *= 2
    return ([(tokens.ids, end)] if end else []), len(text) - end


def truncated(tokens, limit):
    """[(ids, n_chars)] of the full sentences of `Tokens` that fit, [] where none does."""
    marks = [mark for mark in tokens.marks(positions(SENTENCE_END, tokens.text)) if mark[0] <= limit]
    return [(tokens.ids[: marks[-1][0]], marks[-1][1])] if marks else []


def cut_split(text, tokenizer, limit):
    """([(ids, n_chars)] of several rows, tail_chars): all full sentences, in rows of at most `limit` tokens.

    A sentence longer than a row is cut at `，；`, then anywhere between two characters.
    """
    end = last_sentence_end(text)
    return (split(Tokens(text[:end], tokenizer), limit) if end else []), len(text) - end


def split(tokens, limit):
    """[(ids, n_chars)] of all of `Tokens`, in rows of at most `limit`."""
    if len(tokens.ids) <= limit:
        return [(tokens.ids, len(tokens.text))]
    marks = refined(tokens, tokens.marks(positions(SENTENCE_END, tokens.text)), limit)
    counts = [count for count, _ in marks]
    rows, start, place = [], 0, 0
    while start < len(tokens.ids):
        last = bisect_right(counts, start + limit) - 1
        if last < 0 or counts[last] <= start:  # no token ends where a character does, as in 恶恶恶恶 by GPT-2's
            return rows + by_characters(tokens.text[place:], tokens.tokenizer, limit)
        rows.append((tokens.ids[start : counts[last]], marks[last][1] - place))
        start, place = marks[last]
    return rows


def by_characters(text, tokenizer, limit):
    """[(ids, n_chars)] of a text, each character encoded by itself. Raises UserError where one is longer than a row."""
    rows, ids, n_chars = [], [], 0
    for character in text:
        more = tokenizer.encode_array(character)
        if len(more) > limit:
            raise UserError(f"block_size is too small for the character {character!r}; make it at least 8")
        if len(ids) + len(more) > limit:
            rows.append((np.array(ids, dtype=more.dtype), n_chars))
            ids, n_chars = [], 0
        ids, n_chars = [*ids, *more.tolist()], n_chars + 1
    return [*rows, (np.array(ids, dtype=more.dtype), n_chars)]


CUTS = {"truncate": cut_truncate, "split": cut_split}


@dataclass
class Cuts:
    """What n texts were cut into, R rows in all."""

    ids: np.ndarray  # of all rows, one behind the other
    lengths: np.ndarray  # (R,) ids of each row
    characters: np.ndarray  # (R,)
    rows: np.ndarray  # (n,) rows of each text, 0 where none fits
    lost: np.ndarray  # (n,) characters of each that are in no row


def cut_all(texts, tokenizer, limit, overflow):
    """The `Cuts` of texts, each as `CUTS[overflow]` cuts it; those that may fit a row are encoded by one call."""
    ends = [last_sentence_end(text) for text in texts]
    # Of a long text, truncating encodes its start alone.
    together = [i for i, end in enumerate(ends) if end > 0 and (end <= limit or overflow == "split")]
    bodies = [texts[i] if ends[i] == len(texts[i]) else texts[i][: ends[i]] for i in together]
    encoded = tokenizer.encode_joined(bodies) if bodies else None
    if encoded and encoded[1].max() <= limit and len(together) == len(texts):
        ends = np.array(ends)
        rows = np.ones(len(texts), dtype=np.int64)
        return Cuts(*encoded, ends, rows, np.array(list(map(len, texts))) - ends)
    found = dict(zip(together, np.split(encoded[0], np.cumsum(encoded[1])[:-1]), strict=True)) if encoded else {}
    return gathered([cut_one(text, tokenizer, limit, overflow, found.get(i)) for i, text in enumerate(texts)])


def cut_one(text, tokenizer, limit, overflow, ids):
    """What `CUTS[overflow]` gives for a text; ids: of all up to its last sentence end, where they are known."""
    if ids is None:
        return CUTS[overflow](text, tokenizer, limit)
    end = last_sentence_end(text)
    if len(ids) <= limit:
        return [(ids, end)], len(text) - end
    tokens = Tokens(text[:end], tokenizer, ids)
    rows = split(tokens, limit) if overflow == "split" else truncated(tokens, limit)
    return rows, len(text) - sum(n_chars for _, n_chars in rows)


def gathered(cuts):
    """The `Cuts` of [(rows, tail_chars), …]."""
    rows = [row for of_text, _ in cuts for row in of_text]
    return Cuts(
        np.concatenate([ids for ids, _ in rows]) if rows else np.zeros(0, dtype=np.uint16),
        np.array([len(ids) for ids, _ in rows], dtype=np.int64),
        np.array([n_chars for _, n_chars in rows], dtype=np.int64),
        np.array([len(of_text) for of_text, _ in cuts], dtype=np.int64),
        np.array([lost for _, lost in cuts], dtype=np.int64),
    )
