"""The report of a checkpoint as one Markdown page in Chinese and English.

All numbers and sentences are made from the measured figures. The page lists what could not be measured, and why.
"""

import re

from minigpt.evaluation.asking import lowest_and_highest, shorten, strip_controls
from minigpt.evaluation.decoding_sweep import SWEEP_NOTES, sweep_table
from minigpt.evaluation.report_words import REPORT_TEXTS, interval_brackets, summary_sentences
from minigpt.evaluation.tables import markdown_table
from minigpt.metrics import FEWEST_ROWS

LISTED_ANSWERS = 10  # of the worst and of the best
MAX_LISTED_CHARS = 80
# Characters with a meaning in Markdown or in the HTML within it. "|" is escaped by the tables.
MARKDOWN_CHARACTERS = re.compile(r"([\\`*_{}\[\]#~$!])")


def escape_markdown(text):
    """The text so that Markdown shows it unchanged. A model may have written anything."""
    text = MARKDOWN_CHARACTERS.sub(r"\\\1", strip_controls(" ".join(text.split())))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")


def parameter_count(n):
    return f"{n / 1e9:.2f}B" if n >= 1e9 else f"{n / 1e6:.2f}M" if n >= 1e6 else f"{n:,}"


# The sections: each is a list of Markdown blocks, empty or None to leave it out.


def model_section(report):
    a = report["about"]
    trained = a["trained_on"]
    data = escape_markdown(a["data_dir"])
    if trained:
        data += f": {trained['rows']:,} 行 rows, {trained['tokens']:,} token"
        data += f" ({', '.join(map(escape_markdown, trained['sources']))})" if trained["sources"] else ""
    rows = [
        ["检查点 checkpoint", f"{escape_markdown(a['checkpoint'])} ({a['megabytes']} MB)"],
        ["阶段 stage", REPORT_TEXTS["stages"][a["stage"]]],
        ["参数 parameters", parameter_count(a["parameters"])],
        ["架构 architecture", a["architecture"]],
        ["层 layers", f"{a['n_layer']} × ({a['n_head']} 头 heads, 宽 width {a['n_embd']})"],
        ["上下文长度 context length", f"{a['block_size']} token"],
        ["分词器 tokenizer", f"{escape_markdown(a['table'])}, 词表 vocabulary {a['vocab_size']:,}"],
        ["训练数据 trained on", data],
        ["步数 step", f"{a['step']:,}" + (f" / {a['planned_steps']:,}" if a["planned_steps"] else "")],
        ["轮数 epochs", "–" if a["epochs"] is None else f"{a['epochs']:.2f}"],
        ["训练的 token 数 training tokens", "–" if a["tokens"] is None else f"{a['tokens']:,.0f}"],
        ["训练时间 training time", "–" if a["seconds"] is None else f"{a['seconds']:,.0f} s"],
        ["初始权重 initialized from", escape_markdown(a["init_from"])],
    ]
    blocks = [markdown_table(["", ""], rows, left=2)]
    if report["settings"]:
        changed = [[escape_markdown(name), escape_markdown(str(value))] for name, value in report["settings"].items()]
        table = markdown_table(["设置 setting", "值 value"], changed, left=2)
        blocks += [REPORT_TEXTS["notes"]["changed_settings"], table]
    return blocks


def contamination_section(report):
    lines = [f"- {escape_markdown(leak['of'])}: {escape_markdown(leak['line'])}" for leak in report.get("leaks", ())]
    return lines and ["\n".join(lines)]


def perplexity_section(report):
    rows = []
    for row in report.get("perplexity", ()):
        count = f"{row['rows']:,}" + (f" / {row['all_rows']:,}" if row["rows"] < row["all_rows"] else "")
        data = f"{REPORT_TEXTS['rows_of_stage'][row['stage']]}: {escape_markdown(row['data_dir'])} {row['part']}"
        cells = [escape_markdown(row["model"]), data, count, f"{row['tokens']:,}"]
        for key, digits in (("perplexity", 2), ("bits_per_token", 3), ("bits_per_char", 3)):
            cells.append(f"{row[key]:.{digits}f} {interval_brackets(row['intervals'][key], digits)}")
        rows.append(cells)
    names = ["模型 model", "数据 data", "行 rows", "token", "困惑度 perplexity", "比特/token bits per token",
             "比特/字 bits per character"]  # fmt: skip
    return rows and [markdown_table(names, rows, left=2), REPORT_TEXTS["notes"]["perplexity"]]


def answers_section(report):
    scores = report.get("answers")
    if not scores:
        return None
    names = REPORT_TEXTS["answer_figures"]
    rows = [[name, scores[key], interval_brackets(scores["intervals"][key])] for key, name in names.items()]
    asked = f"{scores['pairs']:,} 对 pairs, {escape_markdown(report['asked'])}; {escape_markdown(report['params'])}."
    return [asked, markdown_table(["指标 figure", "值 value", "95%"], rows), *worst_and_best_answers(report["pairs"])]


def worst_and_best_answers(pairs):
    """Markdown blocks of the worst and the best of [(question, reference, prediction, F)]; of a few, all are listed."""

    def listed(title, places):
        cells = [
            [f"{pairs[i][3]:.3f}", *(escape_markdown(shorten(text, MAX_LISTED_CHARS)) for text in pairs[i][:3])]
            for i in places
        ]
        return [title, markdown_table(["F", "问题 question", "参考 reference", "回答 answer"], cells, left=4)]

    pairs = [pair for pair in pairs if pair[2] is not None]
    worst, best = lowest_and_highest([pair[3] for pair in pairs], LISTED_ANSWERS)
    if not worst:
        return listed("**所有的回答 All answers**", sorted(range(len(pairs)), key=lambda i: pairs[i][3]))
    perfect = sum(pair[3] == 1 for pair in pairs)
    more = f"（共有 {perfect:,} 个 1.000 the first of {perfect:,} with 1.000）" if perfect > LISTED_ANSWERS else ""
    return [
        *listed(f"**最差的 {LISTED_ANSWERS} 个 The worst {LISTED_ANSWERS}**", worst),
        *listed(f"**最好的 {LISTED_ANSWERS} 个 The best {LISTED_ANSWERS}**{more}", best),
    ]


def corrections_section(report):
    found = report.get("corrections")
    if not found:
        return None
    rows = []
    for key, name in REPORT_TEXTS["correction_figures"].items():
        count = found["pairs" if key == "accuracy" else f"pairs_{key}"]
        rows.append([name, count, found[key], interval_brackets(found["intervals"][key])])
    for kind, of in found["kinds"].items():
        rows.append([f"　{escape_markdown(kind)}", of["pairs"], of["accuracy"], interval_brackets(of["interval"])])
    verdicts = ", ".join(f"{name} {count:,}" for name, count in found["verdicts"].items())
    return [markdown_table(["句子 sentences", "数量 count", "准确率 accuracy", "95%"], rows), f"{verdicts}."]


def decoding_section(report):
    if not report.get("decoding"):
        return None
    return [plot_link("decoding", report), markdown_table(*sweep_table(report["decoding"])), SWEEP_NOTES]


def grammar_section(report):
    found = report.get("grammar")
    if not found:
        return None
    edges = interval_brackets(found["intervals"]["grammar"])
    rows = [["**全部 all**", found["pairs"], found["grammar"], edges, found["fewer_tokens"]]]
    for name, of in found["phenomena"].items():
        rows.append(
            [escape_markdown(name), of["pairs"], of["accuracy"], interval_brackets(of["interval"]), of["fewer_tokens"]]
        )
    about = f"{escape_markdown(found['asked'])}. {REPORT_TEXTS['notes']['grammar']}"
    table = markdown_table(["现象 phenomenon", "句对 pairs", "判对 right", "95%", "只看长短 fewer tokens"], rows)
    return [about, plot_link("grammar", report), table]


def training_section(report):
    training = report.get("training")
    return training and [plot_link("training", report), *map(escape_markdown, training["lines"])]


def plot_link(name, report):
    return f"![{name}](<{report['plots'][name]}>)"


def missing_section(report):
    return report["missing"] and ["\n".join(f"- {what}: {escape_markdown(why)}" for what, why in report["missing"])]


SECTIONS = {
    "模型 Model": model_section,
    "数据污染检查 Contamination check": contamination_section,
    "困惑度 Perplexity": perplexity_section,
    "问答 Answers": answers_section,
    "句子纠错 Sentence correction": corrections_section,
    "解码参数 Decoding": decoding_section,
    "语法 Grammar": grammar_section,
    "训练曲线 Training curves": training_section,
    "没有测的 Not measured": missing_section,
}


def report_markdown(report):
    """The page of a report: the summary, then every section that has content.

    report: `found` of evaluations-report.py's `Report`, and "pairs": [(question, reference, prediction, F)].
    """
    lines = [f"- {chinese}\n  {english}" for chinese, english in summary_sentences(report)]
    blocks = [f"# 模型评测报告 Evaluation report: {escape_markdown(report['name'])}"]
    blocks.append(REPORT_TEXTS["notes"]["intervals"].format(rows=FEWEST_ROWS) if report["resamples"] else "")
    blocks.append("\n".join(lines))
    for title, section in SECTIONS.items():
        content = section(report)
        blocks += [f"## {title}", *content] if content else []
    blocks.append(f"*{escape_markdown(report['made_by'])}*")
    return "\n\n".join(block for block in blocks if block) + "\n"
