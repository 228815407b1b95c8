"""The page that tells what a corpus looks like before and after cleaning."""

import html
import io
from string import Template

import matplotlib
from matplotlib.figure import Figure

from minigpt.common.files import write_atomic
from minigpt.corpus.statistics import BINS_A_DECADE
from minigpt.settings.stages import CLEANING

matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "corpus report"})  # the same bytes every time
SHOWN_OPENINGS, SHOWN_CHARACTERS = 20, 100
SIDES = ("清洗前 before", "清洗后 after")
STEPS_IN_CHINESE = {
    "controls": "去掉控制字符和零宽字符",
    "widths": "全角字母、数字和其他兼容字符变成普通字符，标点不变",
    "simplify": "繁体变简体",
    "templates": "去掉模板、表格、注释和链接的残留",
    "title": "第一段是标题时去掉",
    "litter": "去掉空括号、空引号、-{}-、div 标签和换行",
    "short": "丢弃太短的条目",
    "foreign": "丢弃汉字太少的条目",
    "boilerplate": "丢弃消歧义页、重定向页和链接列表",
    "near": "丢弃与前面几乎重复的条目",
}


PAGE = Template("""<!DOCTYPE html>
<html lang="zh-CN"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>语料报告 Corpus report</title>
<style>
body { font: 15px/1.6 system-ui, "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif;
  margin: 2em auto; max-width: 62em; padding: 0 1em }
table { border-collapse: collapse; margin: .5em 0 1.5em }
td, th { border-bottom: 1px solid #ddd; padding: .2em .8em; text-align: left; vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums }
h2 { margin-top: 2em }
svg { max-width: 100%; height: auto }
.place { color: #777; white-space: nowrap }
summary { cursor: pointer }
</style></head><body>
<h1>语料报告 <small>Corpus report</small></h1>
<h2>总览 Overview</h2>$overview
<h2>长度 Lengths</h2>$lengths
<h2>清洗步骤 Cleaning steps</h2>$steps
<h2>丢弃 Dropped</h2>$dropped
<h2>字符 Characters</h2>$characters
<h2>最常见的首句 Most common first sentences</h2>$openings
</body></html>
""")


def write_report(path, statistics, meta):
    """Write the page of `Statistics` and of a data folder's meta to `path`, as HTML that needs no other file."""
    before, after = statistics.before, statistics.after
    page = PAGE.substitute(
        overview=overview(before, after, meta),
        lengths=lengths_plot(before, after),
        steps=steps_table(meta),
        dropped=dropped_section(statistics, meta),
        characters="".join(map(character_list, (before, after), SIDES)),
        openings="".join(map(opening_table, (before, after), SIDES)),
    )
    write_atomic(path, lambda file: file.write(page.encode()))


def table(head, rows):
    """An HTML table; cells are HTML, and numbers stand to the right."""
    cells = [
        "".join(f'<td class="n">{c:,}</td>' if isinstance(c, int) else f"<td>{c}</td>" for c in row) for row in rows
    ]
    titles = "".join(f"<th>{title}</th>" for title in head)
    return f"<table><tr>{titles}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def overview(before, after, meta):
    rows = [
        ["文章 articles", before.articles, after.articles],
        ["字符 characters", before.characters, after.characters],
        ["不同的字符 different characters", len(+before.counts), len(+after.counts)],
        ["平均长度 mean length", round(before.characters / max(1, before.articles)),
         round(after.characters / max(1, after.articles))],
    ]  # fmt: skip
    written = []
    for part, counts in meta["parts"].items():
        written.append([part, counts["rows"], counts["tokens"]])
    written += [[html.escape(name), counts["rows"], counts["tokens"]] for name, counts in meta["inputs"].items()]
    return table(["", *SIDES], rows) + table(["写出的 written", "行 rows", "token"], written)


def lengths_plot(before, after):
    """Both histograms of articles' lengths, as SVG."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for side, name, style in ((before, "before", {"color": "0.75"}), (after, "after", {"color": "C0", "alpha": 0.7})):
        bins = range(min(side.lengths, default=0), max(side.lengths, default=0) + 1)
        edges = [10 ** (b / BINS_A_DECADE) for b in [*bins, bins.stop]]
        axes.stairs([side.lengths[b] for b in bins], edges, fill=True, label=name, **style)
    axes.set(xscale="log", xlabel="characters", ylabel="articles")
    axes.legend()
    sink = io.StringIO()
    figure.savefig(sink, format="svg", metadata={"Date": None})
    return sink.getvalue().partition("<svg")[2].join(["<svg", ""])


def steps_table(meta):
    changed, dropped = meta["cleaning"]["changed"], meta["cleaning"]["dropped"]
    rows = []
    for name, what in CLEANING.items():
        counts = [int(changed.get(name, 0)), int(dropped.get(name, 0))]
        told = f"{STEPS_IN_CHINESE[name]}<br><small>{what}</small>"
        rows.append([name, told, *(counts if name in meta["cleaning"]["steps"] else ["–", "–"])])
    return table(["步骤 step", "", "改动的文章 changed", "丢弃的文章 dropped"], rows)


def dropped_section(statistics, meta):
    parts = []
    for reason, count in sorted(meta["dropped"].items(), key=lambda item: -item[1]):
        examples = "".join(
            f'<tr><td class="place">{html.escape(place)}</td><td>{html.escape(text)}</td></tr>'
            for place, text in statistics.examples.get(reason, [])
        )
        name = html.escape(reason)
        parts.append(f"<details open><summary>{name}: {count:,}</summary><table>{examples}</table></details>")
    return "".join(parts) or "<p>无 nothing</p>"


def character_list(side, title):
    """The most common characters of a side, each with its count."""
    common = [(c, n) for c, n in side.counts.most_common(SHOWN_CHARACTERS) if n > 0]
    return f"<p>{title}</p><p>" + " ".join(f"<b>{shown_character(c)}</b>&nbsp;{n:,} " for c, n in common) + "</p>"


def opening_table(side, title):
    """The most common first sentences of a side."""
    common = [(text, n) for text, n in side.openings.most_common(SHOWN_OPENINGS) if n > 1]
    return table(
        [title, ""], [[html.escape(text), n] for text, n in common] or [["没有重复的首句 none comes twice", ""]]
    )


def shown_character(character):
    return html.escape(character) if character.isprintable() and character != " " else f"U+{ord(character):04X}"
