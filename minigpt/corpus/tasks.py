"""Labelled examples: texts, pairs of texts and tagged texts, read from files of any format.

| kind | what has a label | fields of a row |
|---|---|---|
| classify | a text | `text`, `label` |
| pair | two texts together | `text_a`, `text_b`, `label` |
| tag | each character of a text | `text` or `tokens`, and `tags`: a list, or a text with spaces between the tags |

Fields may have the other names below. A table without a header has the columns text and label, or text_a, text_b and
label. A file of lines `character tag`, with blank lines between the texts (as in CoNLL 2003), is read, too.

Tags are BIO: B-type begins a name, I-type goes on with it, O is no name. BIOES, BMES and BILOU become BIO.
"""

import math
import os
import re
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from minigpt.common.errors import UserError, first_line
from minigpt.corpus.questions import has_any, is_blank, load_json, lower_names
from minigpt.corpus.readers.compression import DAMAGE_ERRORS, open_decompressed
from minigpt.corpus.readers.encodings import Utf8Stream
from minigpt.corpus.readers.rows import record_unit
from minigpt.corpus.records import read_rows, text_field

CLASSIFY, PAIR, TAG = "classify", "pair", "tag"

# Fields, in lower case; of several that a row has, the first counts.
PAIR_NAMES = (
    ("text_a", "text_b"), ("sentence1", "sentence2"), ("sentence_a", "sentence_b"), ("premise", "hypothesis"),
    ("question1", "question2"), ("text1", "text2"), ("前提", "假设"),
)  # fmt: skip
SINGLE_TEXT_NAMES = (
    "text", "sentence", "content", "review", "comment", "text_a", "sentence1", "title", "文本", "句子", "内容", "评论",
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "gold_label", "target", "sentiment", "category", "class", "标签", "类别", "分类", "情感",
)  # fmt: skip
TAG_NAMES = ("tags", "ner_tags", "bio", "bio_tags")
CHARACTER_NAMES = ("tokens", "chars", "characters", "words")
NO_LABEL = ("-", "nan")  # in SNLI and its kin: the annotators disagreed; in Parquet: an empty cell

TAG_PATTERN = re.compile(r"O|[BIMESLU](?:-[^\s\"]+)?")
BIO_MARKS = {"M": "I", "E": "I", "L": "I", "S": "B", "U": "B"}  # marks of BIOES, BMES and BILOU
TAGGED_LINE = re.compile(rf"(\S)[ \t](?:.*[ \t])?({TAG_PATTERN.pattern})[ \t]*")
LOOKED_AT_BYTES = 4096  # of a file, by which lines of tags are recognized
FEWEST_TAGGED_LINES = 2
TAGGED_SHARE = 0.9  # of these lines, which are a character and a tag
READ_BYTES = 1 << 20
MOST_LABELS = 1000
FEWEST_LABELS_REFUSED = 20  # from which on labels are refused where they are more than half as many as the rows


@dataclass
class LabelledExample:
    """A text with its label, a pair of texts with their label, or a text with a tag for each of its characters."""

    source: str  # the file
    number: int  # its line or row there
    text: str
    text_b: str | None = None
    label: str | None = None
    tags: list | None = None

    @property
    def kind(self):
        """CLASSIFY, PAIR or TAG."""
        return TAG if self.tags is not None else PAIR if self.text_b is not None else CLASSIFY

    @property
    def place(self):
        """Where it is, as text."""
        return f"{self.source}, {record_unit(self.source)} {self.number}"

    @property
    def key(self):
        """The text or texts, by which examples are split into parts and compared."""
        return self.text if self.text_b is None else f"{self.text}\0{self.text_b}"

    @property
    def n_chars(self):
        """Number of its characters."""
        return len(self.text) + len(self.text_b or "")

    @property
    def names(self):
        """The names of its labels: of the tags, or the one label."""
        return [self.label] if self.tags is None else self.tags


class ExampleFields(NamedTuple):
    """The fields of a row: those of its text or texts, and that of its label or tags."""

    kind: str
    texts: tuple
    label: str


class ExampleReader:
    """Finds the examples in rows. All must be of one kind.

    problems: `Problems`, to which the rows are added that cannot be used; text_field, label_field, labels, encoding: as
    in `PrepareTaskSettings`.
    """

    def __init__(self, problems, text_field="", label_field="", labels=(), encoding=""):
        self.problems = problems
        self.text_names = tuple(name.strip().lower() for name in text_field.split(",") if name.strip())
        if len(self.text_names) > 2:
            raise UserError(
                f"--text_field={text_field} names {len(self.text_names)} fields; name one, or two of a pair"
            )
        self.label_name = label_field.strip().lower()
        self.labels = list(labels)
        self.encoding = encoding
        self.first = None  # the first example, whose kind is that of all

    def read(self, path, progress=None):
        """Yields every `LabelledExample` of a file. Raises UserError where one is of another kind than the first."""
        if is_tagged_lines(path, self.encoding):
            rows = read_tagged_lines(path, self.problems, progress, self.encoding)
        else:
            rows = read_rows(path, self.problems, progress, encoding=self.encoding)
        for number, row in rows:
            example, reason = self.parse(row, path, number)
            if reason:
                self.problems.add(reason, path, number)
                continue
            self.first = self.first or example
            if example.kind != self.first.kind:
                raise UserError(
                    f"{example.place} is of kind {example.kind}, but {self.first.place} is of kind {self.first.kind}; "
                    "prepare one kind at a time, or name the fields with --text_field=… and --label_field=…"
                )
            yield example

    def parse(self, row, path, number):
        """(`LabelledExample`, None) of a row, or (None, reason)."""
        row = name_example_columns(lower_names(row))
        fields, reason = self.find_fields(row)
        if reason:
            return None, reason
        if fields.kind == TAG:
            text, tags, reason = self.read_tagged(row, fields)
            return (None, reason) if reason else (LabelledExample(path, number, text, tags=tags), None)
        texts = []
        for name in fields.texts:
            text, reason = text_field(row, name)
            if reason:
                return None, reason
            texts.append(text)
        label, reason = read_label(row[fields.label], fields.label, self.labels)
        return (None, reason) if reason else (LabelledExample(path, number, *texts, label=label), None)

    def find_fields(self, row):
        """(`ExampleFields` of a row, None), or (None, reason)."""
        pair = next((pair for pair in PAIR_NAMES if all(name in row for name in pair)), None)
        texts = self.text_names or pair or first_name(row, SINGLE_TEXT_NAMES) or first_name(row, CHARACTER_NAMES)
        if not texts or not has_any(row, texts):
            return None, f'no "{texts[0] if texts else "text"}"{list_fields(row)}'
        label_names = (self.label_name,) if self.label_name else LABEL_NAMES
        if len(texts) == 1:
            tag_names = (self.label_name,) if self.label_name else (*TAG_NAMES, *LABEL_NAMES)
            tags = next((name for name in tag_names if is_tag_list(row.get(name), name)), None)
            if tags:
                # Where a row has its characters in a list, too, these are what the tags belong to.
                tokens = () if self.text_names else first_name(row, CHARACTER_NAMES)
                return ExampleFields(TAG, tokens or texts, tags), None
        label = next((name for name in label_names if not is_blank(row.get(name)) and name not in texts), None)
        if label is None:
            return None, f'no "{label_names[0]}"{list_fields(row)}'
        return ExampleFields(PAIR if len(texts) == 2 else CLASSIFY, texts, label), None

    def read_tagged(self, row, fields):
        """(text, BIO tags, None) of a row, or (None, None, reason)."""
        (name,) = fields.texts
        characters = load_json(row[name])
        if isinstance(characters, list):
            if any(not isinstance(token, str) or len(token) != 1 for token in characters):
                return None, None, f'"{name}" has a token that is no single character'
            row = {**row, name: "".join(characters)}
        text, reason = text_field(row, name)
        if reason:
            return None, None, reason
        tags, labels = [], list(map(to_bio, self.labels))
        for value in split_tags(row[fields.label]):
            tag, reason = read_label(to_bio(value), fields.label, labels)
            if tag and not TAG_PATTERN.fullmatch(tag):
                reason = f'"{fields.label}" has a tag that is not O, B-… or I-…'
                reason += ": name the tags of its numbers with --labels=…" if tag.isdecimal() else ""
            if reason:
                return None, None, reason
            tags.append(tag)
        if len(tags) != len(text):
            return None, None, f'"{fields.label}" has not as many tags as the text has characters'
        return text, tags, None


def first_name(row, names):
    """The first of the names that a row has, as a tuple; () where it has none."""
    return next(((name,) for name in names if name in row), ())


def list_fields(row):
    """What a reason adds about a row without a text or label."""
    return "; name the fields with --text_field=… and --label_field=…" if len(row) > 1 else ""


def name_example_columns(row):
    """A row of a table without a header ({"columns": [cell, …]}) with names for its two or three cells."""
    cells = row.get("columns")
    names = {2: ("text", "label"), 3: ("text_a", "text_b", "label")}.get(len(cells) if isinstance(cells, list) else 0)
    return dict(zip(names, cells, strict=True)) if names else row


def read_label(value, name, labels):
    """(text of a label, None), or (None, reason). labels: those that may be; [] for any.

    A number that is none of them is the place of one, from 0 on. name: of the field.
    """
    if isinstance(value, (list, dict)):
        return None, f'"{name}" has a list or an object in place of a label'
    is_whole = isinstance(value, float) and value.is_integer()
    text = str(value).lower() if isinstance(value, bool) else str(int(value) if is_whole else value).strip()
    if text in NO_LABEL:
        return None, f'"{name}" has no label ({text})'
    if labels and text not in labels:
        if not text.isdecimal() or int(text) >= len(labels):
            return None, f'"{name}" is none of --labels'
        text = labels[int(text)]
    return text, None


def split_tags(value):
    """The list of tags in a field: a list, the JSON of one, or a text with spaces between the tags."""
    value = load_json(value)
    return value if isinstance(value, list) else str(value).split()


def to_bio(tag):
    """A tag of BIOES, BMES or BILOU as one of BIO; anything else as it is."""
    is_tag = isinstance(tag, str) and TAG_PATTERN.fullmatch(tag)
    return BIO_MARKS.get(tag[0], tag[0]) + tag[1:] if is_tag else tag


def is_tag_list(value, name):
    """Whether a field's value is a list of tags. A text of one word is tags only where the field's name says so."""
    if isinstance(load_json(value), list):
        return True
    tags = value.split() if isinstance(value, str) else []
    return all(map(TAG_PATTERN.fullmatch, tags)) and len(tags) > (name not in TAG_NAMES)


# Lines of tags


def is_tagged_lines(path, encoding=""):
    """Whether nearly all of a file's first lines are a character and a tag each."""
    try:
        with open(path, "rb") as file:
            head = Utf8Stream(open_decompressed(file, path), encoding).read(LOOKED_AT_BYTES)
    except (OSError, *DAMAGE_ERRORS):
        return False
    lines = head.decode(errors="replace").split("\n")
    lines = [line.strip("\r") for line in (lines[:-1] if len(lines) > 1 else lines) if line.strip()]
    tagged = sum(TAGGED_LINE.fullmatch(line) is not None for line in lines)
    return tagged >= FEWEST_TAGGED_LINES and tagged >= TAGGED_SHARE * len(lines)


def read_tagged_lines(path, problems, progress=None, encoding=""):
    """Yields (number of the first line, {"tokens", "tags"}) of each text of a file of lines `character tag`.

    A text with another line is added to `problems`. Of more than two columns, the first and the last count.
    """
    try:
        with open(path, "rb") as file:
            stream = Utf8Stream(open_decompressed(file, path), encoding)
            data = b"".join(iter(lambda: stream.read(READ_BYTES), b""))
    except DAMAGE_ERRORS as error:
        raise UserError(f"{path} is damaged ({first_line(error)}); download or copy it again") from None
    if progress:
        progress(os.path.getsize(path))
    tokens, tags, start, broken = [], [], 1, None
    for number, line in enumerate([*data.decode(errors="replace").split("\n"), ""], start=1):
        found = TAGGED_LINE.fullmatch(line.strip("\r"))
        if found:
            tokens.append(found[1])
            tags.append(found[2])
        elif line.strip():
            broken = broken or number
        else:
            if broken:
                problems.add("a line that is no character and tag", path, broken)
            elif tokens:
                yield start, {"tokens": tokens, "tags": tags}
            tokens, tags, start, broken = [], [], number + 1, None


# Labels


def order_labels(examples, given=()):
    """The names of all labels of examples: as given, else sorted, numbers by their value.

    Raises UserError where there is one only, or so many that the field holds no labels.
    """
    counts = Counter(name for example in examples for name in example.names)
    given = map(to_bio, given) if examples[0].kind == TAG else given
    labels = list(dict.fromkeys(given)) or sorted(
        counts, key=lambda name: (int(name) if name.isdecimal() else math.inf, name)
    )
    if len(labels) < 2:
        raise UserError(f"all rows have the label {labels[0]}: there is nothing to tell apart; name others")
    if len(labels) > min(MOST_LABELS, max(FEWEST_LABELS_REFUSED, sum(counts.values()) // 2)):
        raise UserError(
            f"{len(labels):,} different labels in {len(examples):,} rows, such as {labels[0]!r}: the field holds no "
            "labels; name another with --label_field=…"
        )
    return labels
