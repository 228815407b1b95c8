"""Cutting a text into rows: at sentence ends; in a sentence that is too long at clauses, and otherwise at characters.

A text without a Chinese sentence end (English, a poem, code) is cut at Latin sentence ends and line ends.

A text is encoded once, and its rows are slices of its ids. If a token ends exactly at the end of a sentence, encoding
the whole text and slicing the ids gives the same ids as encoding each part. (Exception: a run of line breaks at that
place, which the cleaning step `litter` removes.)
"""

import itertools
import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minigpt.common.errors import UserError
from minigpt.corpus.cleaning import SENTENCE_END

LATIN_END = re.compile(r"[.!?…]+[\"')\]”’]*(?=\s|$)|\n+")  # also a line's end
CLAUSE_COMMA = re.compile(r"[，；]")
WORD = re.compile(r"\S(?=\s)")
UNSPACED_CHARACTER = re.compile(r"\S(?=\S)", re.DOTALL)  # spaces stay with what follows them, as in tokens
CHARACTER = re.compile(r".", re.DOTALL)
SENTENCE_MARKS = ("。", "！", "？")
CLOSING_QUOTES = "”’」』\"'"
# What follows the last sentence end is kept in "split" where it is longer than both.
MAX_REST_CHARS = 100
MAX_REST_SHARE = 0.1  # of the text


def last_sentence_end(text):
    """Position behind the last sentence end and its closing quotes; 0 where there is none."""
    end = max(map(text.rfind, SENTENCE_MARKS)) + 1
    while 0 < end < len(text) and text[end] in CLOSING_QUOTES:
        end += 1
    return end


def end_of_text(text, overflow):
    """Position in a text up to which it goes into rows; 0 where it has no sentence end. overflow: see `cut_text`.

    It is the last Chinese sentence end. Where there is none, "truncate" takes the last Latin one, or all of a text of
    lines, and "split" all. "split" also takes a long rest behind that end; "whole" takes all.
    """
    if text.endswith(SENTENCE_MARKS):  # the common case
        return len(text)
    whole, end = len(text.rstrip()), last_sentence_end(text)
    is_long = not end or whole - end > max(MAX_REST_CHARS, whole * MAX_REST_SHARE)
    if overflow == "whole" or (overflow == "split" and is_long):
        return whole
    if end:
        return end
    latin = match_ends(LATIN_END, text[:whole])
    return 0 if not latin else whole if text[latin[-1] - 1] == "\n" else latin[-1]


def match_ends(pattern, text, start=0, end=None):
    """Positions in text behind each match of `pattern` in text[start:end]."""
    return [match.end() for match in pattern.finditer(text, start, len(text) if end is None else end)]


class TextTokens:
    """The ids of a text, and the positions at which tokens end. ids: where they are known already."""

    def __init__(self, text, tokenizer, ids=None):
        self.text = text
        self.tokenizer = tokenizer
        self.ids = tokenizer.encode_array(text) if ids is None else ids

    @cached_property
    def ends(self):
        """(tokens,) where each token ends, in bytes."""
        return np.cumsum(self.tokenizer.token_lengths[self.ids])

    def cuts_at(self, positions):
        """[(tokens before, position)] of those ascending positions in the text at which a token ends."""
        n_bytes = np.cumsum([len(self.text[a:b].encode()) for a, b in itertools.pairwise([0, *positions])])
        last_tokens = np.searchsorted(self.ends, n_bytes)
        is_token_end = self.ends[np.minimum(last_tokens, len(self.ends) - 1)] == n_bytes
        return [
            (int(token) + 1, position)
            for token, position, is_end in zip(last_tokens, positions, is_token_end, strict=True)
            if is_end and not self.text.startswith("'", position)  # GPT-2's tokenizer has tokens such as 's
        ]


def add_finer_cuts(tokens, cuts, limit):
    """The cuts, with further ones where more than `limit` tokens are between two: at Latin sentence ends and line ends,
    at clauses, words and characters."""
    for pattern in (LATIN_END, CLAUSE_COMMA, WORD, UNSPACED_CHARACTER, CHARACTER):
        finer = []
        for before, cut in itertools.pairwise([(0, 0), *cuts]):
            if cut[0] - before[0] > limit:
                positions = match_ends(pattern, tokens.text, before[1], cut[1])
                finer += [c for c in tokens.cuts_at(positions) if before[0] < c[0] < cut[0]]
            finer.append(cut)
        cuts = finer
    return cuts


def cut_text(text, tokenizer, limit, overflow, ids=None):
    """([(ids, n_chars)] of the rows of at most `limit` tokens that a text is cut into, characters in no row).

    overflow: "truncate": one row, the text up to the last sentence that fits; none where not even the first fits.
    "split": all sentences; one longer than a row is cut at finer places. What follows `end_of_text` is in no row.
    "whole": as split, but all of the text. ids: those up to `end_of_text`, if they are known.
    """
    body = text[: end_of_text(text, overflow)]
    if not body:
        return [], len(text)
    sentence_end = SENTENCE_END if last_sentence_end(body) else LATIN_END
    if ids is None and overflow == "truncate":
        tokens = encode_beginning(body, tokenizer, limit, sentence_end)
    else:
        tokens = TextTokens(body, tokenizer, ids)
    if overflow != "truncate":
        rows = split_tokens(tokens, limit)
    elif len(tokens.ids) <= limit:
        rows = [(tokens.ids, len(body))]
    else:
        cuts = [cut for cut in tokens.cuts_at(match_ends(sentence_end, tokens.text)) if cut[0] <= limit]
        rows = [(tokens.ids[: cuts[-1][0]], cuts[-1][1])] if cuts else []
    return rows, len(text) - sum(n_chars for _, n_chars in rows)


def encode_beginning(text, tokenizer, limit, sentence_end):
    """`TextTokens` of the first sentences of a text: only about as many as make more than `limit` tokens."""
    window = limit
    while True:
        match = sentence_end.search(text, window)
        tokens = TextTokens(text[: match.end()] if match else text, tokenizer)
        if len(tokens.ids) > limit or len(tokens.text) == len(text):
            return tokens
        window *= 2


def split_tokens(tokens, limit):
    """[(ids, n_chars)] of all of `TextTokens`, in rows of at most `limit` tokens."""
    if len(tokens.ids) <= limit:
        return [(tokens.ids, len(tokens.text))]
    ends = dict.fromkeys([*match_ends(SENTENCE_END, tokens.text), len(tokens.text)])  # a text may end in a rest
    cuts = add_finer_cuts(tokens, tokens.cuts_at(ends), limit)
    counts = [count for count, _ in cuts]
    rows, start, position = [], 0, 0
    while start < len(tokens.ids):
        last = bisect_right(counts, start + limit) - 1
        if last < 0 or counts[last] <= start:  # no token ends at a character's end, as in GPT-2's 恶恶恶恶
            return rows + split_by_characters(tokens.text[position:], tokens.tokenizer, limit)
        rows.append((tokens.ids[start : counts[last]], cuts[last][1] - position))
        start, position = cuts[last]
    return rows


def split_by_characters(text, tokenizer, limit):
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


@dataclass
class TextCuts:
    """What n texts were cut into, R rows in all."""

    ids: np.ndarray  # of all rows, concatenated
    lengths: np.ndarray  # (R,) ids of each row
    characters: np.ndarray  # (R,)
    rows: np.ndarray  # (n,) rows of each text, 0 where none fits
    lost: np.ndarray  # (n,) characters of each that are in no row


def cut_all(texts, tokenizer, limit, overflows):
    """The `TextCuts` of texts, each as `cut_text` cuts it; overflows: one for each.

    Texts that may fit into a row are encoded by one call, which is faster.
    """
    ends = list(map(end_of_text, texts, overflows))
    # Of a long text, truncating encodes only the beginning.
    is_encoded = [end > 0 and (end <= limit or how != "truncate") for end, how in zip(ends, overflows, strict=True)]
    together = [i for i, encode in enumerate(is_encoded) if encode]
    bodies = [texts[i] if ends[i] == len(texts[i]) else texts[i][: ends[i]] for i in together]
    encoded = tokenizer.encode_joined(bodies) if bodies else None
    # The common case: each text is one row.
    if encoded and encoded[1].max() <= limit and len(together) == len(texts):
        ends = np.array(ends)
        rows = np.ones(len(texts), dtype=np.int64)
        return TextCuts(*encoded, ends, rows, np.array(list(map(len, texts))) - ends)
    known = dict(zip(together, np.split(encoded[0], np.cumsum(encoded[1])[:-1]), strict=True)) if encoded else {}
    return join_cuts([cut_text(text, tokenizer, limit, overflows[i], known.get(i)) for i, text in enumerate(texts)])


def join_cuts(cuts):
    """The `TextCuts` of [(rows, characters cut off), …]."""
    rows = [row for of_text, _ in cuts for row in of_text]
    return TextCuts(
        np.concatenate([ids for ids, _ in rows]) if rows else np.zeros(0, dtype=np.uint16),
        np.array([len(ids) for ids, _ in rows], dtype=np.int64),
        np.array([n_chars for _, n_chars in rows], dtype=np.int64),
        np.array([len(of_text) for of_text, _ in cuts], dtype=np.int64),
        np.array([lost for _, lost in cuts], dtype=np.int64),
    )
