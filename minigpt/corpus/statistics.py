"""What a corpus looks like before and after cleaning, counted block by block within bounds of memory."""

import math
from collections import Counter

from minigpt.corpus.cleaning import SENTENCE_END

BINS_A_DECADE = 10  # of lengths
EXAMPLES = 10  # of each reason
EXAMPLE_CHARS = 120
OPENING_CHARS = 60
KEPT_OPENINGS = 20_000  # different first sentences in memory; beyond twice as many, the rarest are forgotten


class Side:
    """Texts before cleaning, or after: articles, characters, lengths by bin, each character, first sentences."""

    def __init__(self):
        self.articles, self.characters = 0, 0
        self.lengths, self.counts, self.openings = Counter(), Counter(), Counter()

    def add(self, text, sign=1):
        """Count a text; sign -1 takes one out again."""
        self.articles += sign
        self.characters += sign * len(text)
        self.lengths[int(math.log10(max(1, len(text))) * BINS_A_DECADE)] += sign
        self.openings[opening(text)] += sign
        for character, count in Counter(text).items():
            self.counts[character] += sign * count

    def merge(self, other):
        """Add what another one has counted."""
        self.articles += other.articles
        self.characters += other.characters
        for name in ("lengths", "counts", "openings"):
            getattr(self, name).update(getattr(other, name))
        if len(self.openings) > 2 * KEPT_OPENINGS:
            self.openings = Counter(dict(self.openings.most_common(KEPT_OPENINGS)))

    def to_dict(self):
        return {**vars(self), "lengths": {str(k): v for k, v in self.lengths.items()}}

    @classmethod
    def from_dict(cls, values):
        side = cls()
        side.articles, side.characters = values["articles"], values["characters"]
        side.lengths = Counter({int(k): v for k, v in values["lengths"].items()})
        side.counts, side.openings = Counter(values["counts"]), Counter(values["openings"])
        return side


def opening(text):
    """A text's first sentence, or its start."""
    text = text[:400].lstrip()
    end = SENTENCE_END.search(text)
    return text[: min(end.end() if end else OPENING_CHARS, OPENING_CHARS)].strip()


class Statistics:
    """Both sides, and examples of what was dropped: {reason: [(place, text), …]}, in the order of the corpus."""

    def __init__(self):
        self.before, self.after, self.examples = Side(), Side(), {}

    def keep(self, article, text):
        """Count an `Article` that is kept, and its cleaned text."""
        self.before.add(article.text)
        self.after.add(text)

    def drop(self, article, reason, place):
        """Count a row that is dropped: its `Article`, or None where it is none."""
        if article:
            self.before.add(article.text)
        self.example(reason, place, f"{article.title}: {article.text[:EXAMPLE_CHARS]}" if article else "")

    def example(self, reason, place, text):
        """Keep one more row that was dropped, if there are few of its reason."""
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append((place, text[:EXAMPLE_CHARS]))

    def merge(self, other):
        """Add what those of the next block have counted."""
        self.before.merge(other.before)
        self.after.merge(other.after)
        for reason, examples in other.examples.items():
            for place, text in examples:
                self.example(reason, place, text)

    def to_dict(self):
        """All of it, for JSON."""
        return {"before": self.before.to_dict(), "after": self.after.to_dict(), "examples": self.examples}

    @classmethod
    def from_dict(cls, values):
        """The inverse of `to_dict`."""
        statistics = cls()
        statistics.before, statistics.after = Side.from_dict(values["before"]), Side.from_dict(values["after"])
        statistics.examples = values["examples"]
        return statistics
