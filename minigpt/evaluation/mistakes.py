"""Puts typical writing mistakes into correct sentences. A model learns to correct them.

Only Han characters are changed: punctuation, numbers and Latin letters stay as they are.
"""

import itertools
import re

from minigpt.common.text import HAN_RUN
from minigpt.corpus.cleaning import SENTENCE_END
from minigpt.metrics import cut_words

UNCHANGED = "unchanged"
REPLACEMENTS = 500  # a wrong character is one of the corpus's most frequent ones
MAX_TRIES = 8  # of one kind of mistake in one sentence
CLAUSE = re.compile(r"[^，；]*[，；]?")
CLAUSE_PUNCTUATION = re.compile(r"[，；。！？”’」』\"']*$")
# A clause with one of these is not moved, because that could separate quotes or brackets from their partners.
FIXED_CLAUSE = re.compile(r"[。！？“”‘’「」『』《》〈〉（）()\[\]【】\"']")


def sentences_of(text):
    """The sentences of a text, each with its final punctuation and closing quotes. Joined, they are the text.

    A line break ends a sentence too, and stays with it. The last sentence may be incomplete.
    """
    sentences = []
    for line in text.splitlines(keepends=True):
        start = 0
        for match in SENTENCE_END.finditer(line):
            if line[match.end() :].strip():
                sentences.append(line[start : match.end()])
                start = match.end()
        sentences.append(line[start:])
    return sentences


def is_complete(sentence):
    """Whether a text ends as a sentence does."""
    ends = list(SENTENCE_END.finditer(sentence))
    return bool(ends) and ends[-1].end() == len(sentence)


def han_places(text):
    """Positions of the Han characters of a text."""
    return [i for run in HAN_RUN.finditer(text) for i in range(*run.span())]


# Each kind of mistake is a function of (text, rng, frequent). It returns the edits that make it, as (start, end, new
# text), of which one is made.


def drop_character(text, rng, frequent):
    places = han_places(text)
    return [(i, i + 1, "") for i in places] if len(places) > 1 else []  # a character has to be left


def double_character(text, rng, frequent):
    """Double a character. One that is doubled already is left alone: tripled, it would not look like a slip."""
    return [(i, i, text[i]) for i in han_places(text) if text[i] not in (text[i - 1 : i], text[i + 1 : i + 2])]


def swap_characters(text, rng, frequent):
    neighbours = itertools.pairwise(han_places(text))
    return [(i, i + 2, text[j] + text[i]) for i, j in neighbours if j == i + 1 and text[i] != text[j]]


def replace_character(text, rng, frequent):
    places = han_places(text)
    i = rng.choice(places) if places else 0
    return [(i, i + 1, char) for char in frequent if char != text[i]] if places else []


def swap_clauses(text):
    """Swap two neighbouring clauses. Their final punctuation stays in its place."""
    clauses = [match for match in CLAUSE.finditer(text) if match[0]]
    spans = [(match.start(), CLAUSE_PUNCTUATION.search(text, match.start(), match.end()).start()) for match in clauses]
    edits = []
    for (start, end), (next_start, next_end) in itertools.pairwise(spans):
        first, second = text[start:end], text[next_start:next_end]
        if first != second and all(han_places(part) and not FIXED_CLAUSE.search(part) for part in (first, second)):
            edits.append((start, next_end, second + text[end:next_start] + first))
    return edits


def swap_words(text):
    """Swap two neighbouring words, of which at least one has several characters (else it is `swap_characters`)."""
    edits = []
    for run in HAN_RUN.finditer(text):
        start = run.start()
        for first, second in itertools.pairwise(cut_words(run[0])):
            if len(first + second) > 2 and first + second != second + first:
                edits.append((start, start + len(first + second), second + first))
            start += len(first)
    return edits


def reorder_text(text, rng, frequent):
    """Swap clauses or words, at random if both are possible."""
    ways = [edits for edits in (swap_clauses(text), swap_words(text)) if edits]
    return rng.choice(ways) if ways else []


MISTAKE_KINDS = {
    "dropped": drop_character, "doubled": double_character, "swapped": swap_characters, "wrong": replace_character,
    "order": reorder_text,
}  # fmt: skip


def frequent_characters(counts):
    """The most frequent Han characters of a Counter of characters, at most REPLACEMENTS, by falling count."""
    han = [(-n, char) for char, n in counts.items() if HAN_RUN.fullmatch(char)]
    return [char for _, char in sorted(han)[:REPLACEMENTS]]


def add_mistake(sentence, kind, rng, frequent, taken=()):
    """The sentence with one mistake of a kind of MISTAKE_KINDS; None if none is possible.

    rng: a random.Random; frequent: characters that a wrong one is drawn from; taken: texts that are not returned.
    """
    edits = MISTAKE_KINDS[kind](sentence, rng, frequent)
    for start, end, new in rng.sample(edits, min(MAX_TRIES, len(edits))):
        text = sentence[:start] + new + sentence[end:]
        if text not in taken:
            return text
    return None
