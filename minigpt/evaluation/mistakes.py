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


def drop_character(text, rng, frequent):
    places = han_places(text)
    if len(places) < 2:  # a character has to be left
        return None
    i = rng.choice(places)
    return text[:i] + text[i + 1 :]


def double_character(text, rng, frequent):
    """Double a character. One that is doubled already is left alone: tripled, it would not look like a slip."""
    places = [i for i in han_places(text) if text[i] not in (text[i - 1 : i], text[i + 1 : i + 2])]
    if not places:
        return None
    i = rng.choice(places)
    return text[:i] + text[i] + text[i:]


def swap_characters(text, rng, frequent):
    places = han_places(text)
    places = [i for i, j in itertools.pairwise(places) if j == i + 1 and text[i] != text[j]]
    if not places:
        return None
    i = rng.choice(places)
    return text[:i] + text[i + 1] + text[i] + text[i + 2 :]


def replace_character(text, rng, frequent):
    places = han_places(text)
    if not places:
        return None
    i = rng.choice(places)
    others = [char for char in frequent if char != text[i]]
    return text[:i] + rng.choice(others) + text[i + 1 :] if others else None


def swap_clauses(text, rng):
    """Swap two neighbouring clauses. Their final punctuation stays in its place."""
    clauses = CLAUSE.findall(text)[:-1]  # the last match is empty
    bodies = [CLAUSE_PUNCTUATION.sub("", clause) for clause in clauses]
    ends = [clause[len(body) :] for clause, body in zip(clauses, bodies, strict=True)]
    places = [
        i
        for i, (a, b) in enumerate(itertools.pairwise(bodies))
        if a != b and all(han_places(part) and not FIXED_CLAUSE.search(part) for part in (a, b))
    ]
    if not places:
        return None
    i = rng.choice(places)
    bodies[i], bodies[i + 1] = bodies[i + 1], bodies[i]
    return "".join(body + end for body, end in zip(bodies, ends, strict=True))


def swap_words(text, rng):
    """Swap two neighbouring words, of which at least one has several characters (else it is `swap_characters`)."""
    runs = list(HAN_RUN.finditer(text))
    places = []
    for run in runs:
        at, words = run.start(), cut_words(run[0])
        for a, b in itertools.pairwise(words):
            if len(a + b) > 2 and a + b != b + a:
                places.append((at, a, b))
            at += len(a)
    if not places:
        return None
    at, a, b = rng.choice(places)
    return text[:at] + b + a + text[at + len(a + b) :]


def reorder_text(text, rng, frequent):
    """Swap clauses or words, at random if both are possible."""
    ways = [swap_clauses, swap_words]
    rng.shuffle(ways)
    return ways[0](text, rng) or ways[1](text, rng)


# Each is called with (text, rng, frequent); it returns the text with one mistake, or None if that is impossible.
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
    for _ in range(MAX_TRIES):
        text = MISTAKE_KINDS[kind](sentence, rng, frequent)
        if text is None:
            return None
        if text != sentence and text not in taken:
            return text
    return None
