"""Mistakes as people make them in writing, put into right sentences: what a model learns to correct.

A mistake falls on Han characters alone: punctuation, numbers and Latin letters stay as they are.
"""

import itertools
import re

from minigpt.corpus.cleaning import HAN_RUN, SENTENCE_END
from minigpt.metrics import cut_words

UNCHANGED = "unchanged"
FREQUENT = 500  # characters that take the place of another: those that the corpus has most often
TRIES = 8  # draws of one kind before it is taken to be impossible in a sentence
CLAUSE = re.compile(r"[^，；]*[，；]?")
ENDING = re.compile(r"[，；。！？”’」』\"']*$")
UNMOVED = re.compile(
    r"[。！？“”‘’「」『』《》〈〉（）()\[\]【】\"']"
)  # a clause with these stays, lest pairs be torn apart


def sentences_of(text):
    """The sentences of a text, each with its end and closing quotes; together they are the text. What follows the last
    end, if anything, comes last. Line breaks end a sentence too, and stay with it."""
    found = []
    for line in text.splitlines(keepends=True):
        start = 0
        for match in SENTENCE_END.finditer(line):
            if line[match.end() :].strip():
                found.append(line[start : match.end()])
                start = match.end()
        found.append(line[start:])
    return found


def is_whole(sentence):
    """Whether a sentence has an end."""
    ends = list(SENTENCE_END.finditer(sentence))
    return bool(ends) and ends[-1].end() == len(sentence)


def han_places(text):
    """Positions of the Han characters of a text."""
    return [i for run in HAN_RUN.finditer(text) for i in range(*run.span())]


def drop(text, rng, frequent):
    places = han_places(text)
    if len(places) < 2:  # a sentence of none is no sentence
        return None
    i = rng.choice(places)
    return text[:i] + text[i + 1 :]


def double(text, rng, frequent):
    """A character twice; not one that stands twice already, of which nobody would say that it is a slip."""
    places = [i for i in han_places(text) if text[i] not in (text[i - 1 : i], text[i + 1 : i + 2])]
    if not places:
        return None
    i = rng.choice(places)
    return text[:i] + text[i] + text[i:]


def swap(text, rng, frequent):
    places = han_places(text)
    places = [i for i, j in itertools.pairwise(places) if j == i + 1 and text[i] != text[j]]
    if not places:
        return None
    i = rng.choice(places)
    return text[:i] + text[i + 1] + text[i] + text[i + 2 :]


def replace(text, rng, frequent):
    places = han_places(text)
    if not places:
        return None
    i = rng.choice(places)
    others = [char for char in frequent if char != text[i]]
    return text[:i] + rng.choice(others) + text[i + 1 :] if others else None


def swap_clauses(text, rng):
    """Two neighbouring clauses in each other's place, with the signs that end them staying where they were."""
    clauses = CLAUSE.findall(text)[:-1]  # the last match is empty
    bodies = [ENDING.sub("", clause) for clause in clauses]
    ends = [clause[len(body) :] for clause, body in zip(clauses, bodies, strict=True)]
    places = [
        i
        for i, (a, b) in enumerate(itertools.pairwise(bodies))
        if a != b and all(han_places(part) and not UNMOVED.search(part) for part in (a, b))
    ]
    if not places:
        return None
    i = rng.choice(places)
    bodies[i], bodies[i + 1] = bodies[i + 1], bodies[i]
    return "".join(body + end for body, end in zip(bodies, ends, strict=True))


def swap_words(text, rng):
    """Two neighbouring words in each other's place; of two single characters that would be `swap`."""
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


def reorder(text, rng, frequent):
    """Clauses or words in wrong order, by a coin where both can be."""
    ways = [swap_clauses, swap_words]
    rng.shuffle(ways)
    return ways[0](text, rng) or ways[1](text, rng)


# Each: (text, rng, frequent) -> the text with one mistake, or None where it can have none of this kind.
KINDS = {"dropped": drop, "doubled": double, "swapped": swap, "wrong": replace, "order": reorder}


def most_frequent(counts):
    """The Han characters that a Counter of characters has most often, by falling count."""
    han = [(-n, char) for char, n in counts.items() if HAN_RUN.fullmatch(char)]
    return [char for _, char in sorted(han)[:FREQUENT]]


def spoilt(sentence, kind, rng, frequent, taken=()):
    """The sentence with one mistake of a kind, never itself and none of the texts in `taken`; None where there is none.

    rng: a random.Random; frequent: characters that a wrong one is drawn from; taken: anything with `in`.
    """
    for _ in range(TRIES):
        text = KINDS[kind](sentence, rng, frequent)
        if text is None:
            return None
        if text != sentence and text not in taken:
            return text
    return None
