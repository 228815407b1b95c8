"""What a corpus is like before and after cleaning: counted block by block in bounded memory, and shown on a page."""

import html
import io
import math
import tomllib
from collections import Counter
from pathlib import Path
from string import Template

from minigpt.common.files import write_atomic
from minigpt.corpus.cleaning import SENTENCE_END
from minigpt.settings.stages import CLEANING

BINS_PER_DECADE = 10  # of lengths
MAX_EXAMPLES = 10  # of each reason
EXAMPLE_CHARS = 120
OPENING_CHARS = 60
KEPT_OPENINGS = 20_000  # different first sentences in memory; beyond twice as many, the rarest are forgotten
SHOWN_OPENINGS = 20
SHOWN_CHARACTERS = 100


# Counting


class TextCounts:
    """Counts over texts: articles, characters, lengths by bin, occurrences of each character and first sentence."""

    def __init__(self):
        self.articles, self.characters = 0, 0
        self.lengths, self.counts, self.openings = Counter(), Counter(), Counter()

    def add(self, text, sign=1):
        """Counts a text; sign -1 takes one out again."""
        self.articles += sign
        self.characters += sign * len(text)
        self.lengths[int(math.log10(max(1, len(text))) * BINS_PER_DECADE)] += sign
        self.openings[first_sentence(text)] += sign
        for character, count in Counter(text).items():
            self.counts[character] += sign * count

    def merge(self, other):
        """Adds the counts of another one."""
        self.articles += other.articles
        self.characters += other.characters
        for name in ("lengths", "counts", "openings"):
            getattr(self, name).update(getattr(other, name))
        if len(self.openings) > 2 * KEPT_OPENINGS:
            self.openings = Counter(dict(self.openings.most_common(KEPT_OPENINGS)))

    @classmethod
    def from_dict(cls, values):
        """The inverse of `vars`, after JSON has made text of the numbers that are keys."""
        counts = cls()
        counts.articles, counts.characters = values["articles"], values["characters"]
        counts.lengths = Counter({int(k): v for k, v in values["lengths"].items()})
        counts.counts, counts.openings = Counter(values["counts"]), Counter(values["openings"])
        return counts


def first_sentence(text):
    """A text's first sentence, at most OPENING_CHARS of it."""
    text = text[:400].lstrip()
    end = SENTENCE_END.search(text)
    return text[: min(end.end() if end else OPENING_CHARS, OPENING_CHARS)].strip()


class CorpusStatistics:
    """`TextCounts` before and after cleaning, and examples of dropped rows: {reason: [(place, text), …]}, in order."""

    def __init__(self):
        self.before, self.after, self.examples = TextCounts(), TextCounts(), {}

    def keep(self, article, text):
        """Counts an `Article` that is kept, and its cleaned text."""
        self.before.add(article.text)
        self.after.add(text)

    def drop(self, article, reason, place):
        """Counts a row that is dropped; article: its `Article`, or None where it is none."""
        if article:
            self.before.add(article.text)
        self.add_example(reason, place, f"{article.title}: {article.text[:EXAMPLE_CHARS]}" if article else "")

    def add_example(self, reason, place, text):
        """Keeps a row that was dropped as an example, unless there are MAX_EXAMPLES of its reason."""
        examples = self.examples.setdefault(reason, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append((place, text[:EXAMPLE_CHARS]))

    def merge(self, other):
        """Adds the statistics of the next block."""
        self.before.merge(other.before)
        self.after.merge(other.after)
        for reason, examples in other.examples.items():
            for place, text in examples:
                self.add_example(reason, place, text)

    @classmethod
    def from_dict(cls, values):
        """The inverse of `vars`, applied to its parts as well."""
        statistics = cls()
        statistics.before = TextCounts.from_dict(values["before"])
        statistics.after = TextCounts.from_dict(values["after"])
        statistics.examples = values["examples"]
        return statistics


# The page

SIDES = ("清洗前 before", "清洗后 after")
HERE = Path(__file__)
STEPS_IN_CHINESE = tomllib.loads(HERE.with_suffix(".toml").read_text(encoding="utf-8"))["steps"]
PAGE = Template(HERE.with_suffix(".html").read_text(encoding="utf-8"))


def write_report(path, statistics, meta):
    """Writes the page of `CorpusStatistics` and of a data folder's meta to `path`, as one HTML file."""
    before, after = statistics.before, statistics.after
    page = PAGE.substitute(
        overview=overview_tables(before, after, meta),
        lengths=length_histograms(before, after),
        steps=steps_table(meta),
        dropped=dropped_section(statistics, meta),
        characters="".join(map(character_list, (before, after), SIDES)),
        openings="".join(map(opening_table, (before, after), SIDES)),
    )
    write_atomic(path, lambda file: file.write(page.encode()))


def html_table(head, rows):
    """An HTML table; cells are HTML, and numbers are aligned to the right."""
    cells = [
        "".join(f'<td class="n">{c:,}</td>' if isinstance(c, int) else f"<td>{c}</td>" for c in row) for row in rows
    ]
    titles = "".join(f"<th>{title}</th>" for title in head)
    return f"<table><tr>{titles}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def overview_tables(before, after, meta):
    """Tables of articles, characters and rows."""
    rows = [
        ["文章 articles", before.articles, after.articles],
        ["字符 characters", before.characters, after.characters],
        ["不同的字符 different characters", len(+before.counts), len(+after.counts)],
        ["平均长度 mean length", round(before.characters / max(1, before.articles)),
         round(after.characters / max(1, after.articles))],
    ]  # fmt: skip
    counted = [*meta["parts"].items(), *meta["inputs"].items()]
    written = [[html.escape(name), counts["rows"], counts["tokens"]] for name, counts in counted]
    return html_table(["", *SIDES], rows) + html_table(["写出的 written", "行 rows", "token"], written)


def length_histograms(before, after):
    """The histograms of articles' lengths before and after cleaning, as SVG."""
    import matplotlib  # slow to import, and not needed by the worker processes
    from matplotlib.figure import Figure

    # The same bytes every time.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "corpus report"})
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for side, name, style in ((before, "before", {"color": "0.75"}), (after, "after", {"color": "C0", "alpha": 0.7})):
        bins = range(min(side.lengths, default=0), max(side.lengths, default=0) + 1)
        edges = [10 ** (b / BINS_PER_DECADE) for b in [*bins, bins.stop]]
        axes.stairs([side.lengths[b] for b in bins], edges, fill=True, label=name, **style)
    axes.set(xscale="log", xlabel="characters", ylabel="articles")
    axes.legend()
    sink = io.StringIO()
    figure.savefig(sink, format="svg", metadata={"Date": None})
    return sink.getvalue().partition("<svg")[2].join(["<svg", ""])


def steps_table(meta):
    """A table of the cleaning steps, with the articles that each changed and dropped."""
    changed, dropped = meta["cleaning"]["changed"], meta["cleaning"]["dropped"]
    rows = []
    for name, what in CLEANING.items():
        counts = [int(changed.get(name, 0)), int(dropped.get(name, 0))]
        description = f"{STEPS_IN_CHINESE[name]}<br><small>{what}</small>"
        rows.append([name, description, *(counts if name in meta["cleaning"]["steps"] else ["–", "–"])])
    return html_table(["步骤 step", "", "改动的文章 changed", "丢弃的文章 dropped"], rows)


def dropped_section(statistics, meta):
    """Examples of dropped rows, by reason, the most common reason first."""
    parts = []
    for reason, count in sorted(meta["dropped"].items(), key=lambda item: -item[1]):
        examples = "".join(
            f'<tr><td class="place">{html.escape(place)}</td><td>{html.escape(text)}</td></tr>'
            for place, text in statistics.examples.get(reason, [])
        )
        name = html.escape(reason)
        parts.append(f"<details open><summary>{name}: {count:,}</summary><table>{examples}</table></details>")
    return "".join(parts) or "<p>无 nothing</p>"


def character_list(counts, title):
    """The most common characters of `TextCounts`, each with its count."""
    common = [(c, n) for c, n in counts.counts.most_common(SHOWN_CHARACTERS) if n > 0]
    return f"<p>{title}</p><p>" + " ".join(f"<b>{printable_character(c)}</b>&nbsp;{n:,} " for c, n in common) + "</p>"


def opening_table(counts, title):
    """The most common first sentences of `TextCounts`."""
    common = [(text, n) for text, n in counts.openings.most_common(SHOWN_OPENINGS) if n > 1]
    return html_table(
        [title, ""], [[html.escape(text), n] for text, n in common] or [["没有重复的首句 none comes twice", ""]]
    )


def printable_character(character):
    """A character as HTML; its code where it cannot be seen."""
    return html.escape(character) if character.isprintable() and character != " " else f"U+{ord(character):04X}"
