"""The tasks of the embedded corpus, which data/make_sample.py makes from its fact tables.

| task | a row | what it takes |
|---|---|---|
| field | `text`, `label` | which field a subject belongs to; its name and a value tell it, the wording does not |
| same_subject | `text_a`, `text_b`, `label` | whether two sentences tell of one subject; the second does not name it |
| names | `text`, `tags` | the names of a text, by type |

The first two ask for what a model has read in the articles, and which the rows of training do not tell: each part
(train, dev, test) has subjects of its own.
"""

import itertools
import random
import re
import string
from collections import Counter

TEXTS_PER_SUBJECT = 5
PAIRS_PER_SUBJECT = 8  # half of them of one subject
KNOWN_PAIRS = 2  # of these, as many ask for a fact that must be known
NAMES_PER_SUBJECT = 4

# Wordings that fit every field.
FIELD_WORDINGS = [
    "{name}与{value}有关。", "提到{name}，可以想到{value}。", "{value}，说的是{name}。",
    "关于{name}，书上写着{value}。", "在{name}的介绍里，可以读到{value}。", "{name}这一条里写的是{value}。",
    "从{value}可以联想到{name}。", "卡片的正面是{name}，反面是{value}。",
]  # fmt: skip
# What stands for a subject in a sentence that does not name it, by field.
SUBJECT_PRONOUNS = {"cities": "这里", "provinces": "这里", "countries": "这个国家", "writers": "此人"}
# The columns of names, by field, and the types of the names.
NAME_TYPES = {
    "animals": {"name": "animal"},
    "cities": {"name": "city", "province": "province", "river": "water", "sea": "water"},
    "countries": {"name": "country", "capital": "city"},
    "dynasties": {"name": "dynasty", "founder": "person", "capital": "city", "prev": "dynasty", "next": "dynasty"},
    "elements": {"name": "element"},
    "instruments": {"name": "instrument", "origin": "country"},
    "planets_moons": {"name": "body", "parent": "body", "discoverer": "person"},
    "provinces": {"name": "province", "seat": "city", "lake": "water"},
    "rivers": {"name": "water", "country": "country", "mouth": "water", "ocean": "water"},
    "solar_terms": {"name": "term", "prev": "term", "next": "term"},
    "writers": {"name": "person", "dynasty": "dynasty", "work": "work"},
}
# Sentences are left out that have a name of another type, or a value that is no single name of its column's type.
OTHER_NAMES = {"peak", "sight", "source", "place", "alias", "figure"}
NO_NAME = re.compile("团队$|.和.|半岛$|夏威夷|明末清初")


def shuffled(items, rng):
    """The items in a random order. Only rng.random() is used: its numbers are the same in all versions of Python."""
    return [items[i] for _, i in sorted((rng.random(), i) for i in range(len(items)))]


def draw(items, rng):
    """One of the items at random."""
    return items[int(rng.random() * len(items))]


class SampleTasks:
    """Makes the rows of the tasks about some subjects. fields: {name of a field: [subject]}, the whole corpus.

    A subject has a field (the fact table's name), a name, a row of the table ({column: value}), facts and `fill_in`:
    those of `Subject` in data/make_sample.py.
    """

    def __init__(self, fields):
        self.labels = {subject.name: label for label, subjects in fields.items() for subject in subjects}
        everyone = [subject for subjects in fields.values() for subject in subjects]
        self.counts = Counter((s.field, value) for s in everyone for value in s.row.values())
        columns = [(s.row, column) for s in everyone for column in NAME_TYPES[s.field]]
        # A name of one character is also part of many words.
        self.names = {row[column] for row, column in columns if len(row[column]) > 1}

    def rows(self, task, subjects):
        """The rows of a task about some subjects, which are those of a part."""
        make = {"field": self.field_rows, "same_subject": self.pair_rows, "names": self.name_rows}[task]
        for subject in subjects:
            yield from make(subject, subjects, random.Random(f"{task}/{subject.field}/{subject.name}"))

    def field_rows(self, subject, _subjects, rng):
        """Yields TEXTS_PER_SUBJECT texts, each of the name and a value, with the field's label."""
        label = self.labels[subject.name]
        values = [subject.row.get(fact["key"]) for fact in subject.facts]
        values = [value for value in dict.fromkeys(values) if value and label not in value]
        for value in shuffled(values, rng)[:TEXTS_PER_SUBJECT]:
            yield {"text": draw(FIELD_WORDINGS, rng).format(name=subject.name, value=value), "label": label}

    def pair_rows(self, subject, subjects, rng):
        """Yields PAIRS_PER_SUBJECT pairs of sentences about the subject, or about it and another one of its field.

        Of some pairs, neither names its subject, and both tell the same fact in two wordings: the values are to be
        compared. Of the others, the first names the subject, and the second tells another fact: this must be known.
        """
        rest = [other for other in subjects if other.field == subject.field and other is not subject]
        for i in range(PAIRS_PER_SUBJECT):
            other, label = (draw(rest, rng), "否") if i % 2 else (subject, "是")
            facts = [
                (a, b)
                for a, b in itertools.product(subject.facts, other.facts)
                if self.is_known_by(b["key"], subject, other) and (a["key"] == b["key"]) == (i >= KNOWN_PAIRS)
            ]
            found = (self.tell_pair(subject, a, other, b, rng) for a, b in shuffled(facts, rng))
            if texts := next(filter(None, found), None):
                yield {"text_a": texts[0], "text_b": texts[1], "label": label}

    def is_known_by(self, key, subject, other):
        """Whether no other subject of its field has the value of `other` in the column `key`, and `subject` has one."""
        value = other.row.get(key)
        return bool(value and subject.row[key]) and self.counts[other.field, value] == 1

    def tell_pair(self, subject, fact, other, other_fact, rng):
        """(sentence about the subject, one about `other` that does not name it); None where no wordings fit.

        Two facts must have no value in common: one that is copied would tell what the pair is.
        """
        pronoun, is_one_fact = SUBJECT_PRONOUNS.get(subject.field, "它"), fact["key"] == other_fact["key"]
        first = subject.fill_in(fact["wordings"], name=pronoun if is_one_fact else subject.name)
        second = other.fill_in(other_fact["wordings"], name=pronoun)
        values = {value for s in (subject, other) for value in s.row.values() if value}
        for a, b in itertools.product(shuffled(first, rng), shuffled(second, rng)):
            own, others = ({value for value in values if value in text} for text in (a, b))
            if is_one_fact and other.row[fact["key"]] in b and subject.row[fact["key"]] in a and a != b:
                return a, b
            if not is_one_fact and not own & others and subject.name not in b and other.name not in b:
                return a, b
        return None

    def name_rows(self, subject, subjects, rng):
        """Yields NAMES_PER_SUBJECT texts, each a sentence about the subject and one about any other."""
        for _ in range(NAMES_PER_SUBJECT):
            sentences = [found for s in (subject, draw(subjects, rng)) if (found := self.tell_names(s, rng))]
            if sentences:
                text, tags = (list(itertools.chain(*parts)) for parts in zip(*sentences, strict=True))
                yield {"text": "".join(text), "tags": " ".join(tags)}

    def tell_names(self, subject, rng):
        """(sentence, [BIO tag of each character]) about a subject; None where no wording has names of known types."""
        types = NAME_TYPES[subject.field]
        for wording in shuffled([wording for fact in subject.facts for wording in fact["wordings"]], rng):
            pieces = [(literal, column) for literal, column, _, _ in string.Formatter().parse(wording)]
            columns = {column for _, column in pieces if column}
            if any(not subject.row[c] or (c in types and NO_NAME.search(subject.row[c])) for c in columns):
                continue
            text, tags, others = "", [], ""
            for literal, column in pieces:
                value, kind = subject.row[column] if column else "", types.get(column)
                text += literal + value
                tags += ["O"] * len(literal)
                tags += [f"{'I' if i else 'B'}-{kind}" if kind else "O" for i in range(len(value))]
                others += literal + ("|" if kind else value)
            if not columns & OTHER_NAMES and not any(name in others for name in self.names):
                return text, tags
        return None
