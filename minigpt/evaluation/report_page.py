"""The report card of a checkpoint: what was measured, as one Markdown page in Chinese and English.

Every number and every sentence of it is made from the figures; what could not be measured is said, with the reason.
"""

import re

from minigpt.evaluation.asking import clipped, ends_of, printable
from minigpt.evaluation.report_words import bracket, glance
from minigpt.evaluation.tables import markdown_table
from minigpt.metrics import FEWEST_ROWS

STAGES = {"pretrain": "预训练 pretrained", "sft": "微调 fine-tuned"}
ROWS = {"pretrain": "文章 articles", "sft": "问答 questions"}
FIGURES = {
    "rouge_l_recall": "Rouge-L 召回率 recall", "rouge_l_precision": "Rouge-L 精确率 precision",
    "rouge_l_f": "Rouge-L F", "char_f1": "字符 F1（CMRC 2018）character F1", "exact_match": "完全一致 exact match",
    "numbers": "数字全对 numbers right",
}  # fmt: skip
CORRECTIONS = {"accuracy": "全部 all", "to_change": "需要改的 to change", "to_keep": "不用改的 to keep"}
INTERVALS = (
    f"方括号里是 95% 的自助法区间；少于 {FEWEST_ROWS} 行时没有区间。"
    f"In brackets: 95% bootstrap intervals; of fewer than {FEWEST_ROWS} rows there are none."
)
ENDS, CLIPPED = 10, 80
# What Markdown, or the HTML in it, would take for a sign of its own; a table's own escape is of "|".
SIGNS = re.compile(r"([\\`*_{}\[\]#~$!])")


def as_text(text):
    """A text that Markdown shows as it is: what a model wrote may hold anything."""
    text = SIGNS.sub(r"\\\1", printable(" ".join(text.split())))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")


def whole(number):
    return "–" if number is None else f"{number:,.0f}"


def size(n):
    """A number of parameters."""
    return f"{n / 1e9:.2f}B" if n >= 1e9 else f"{n / 1e6:.2f}M" if n >= 1e6 else f"{n:,}"


# The sections, each a list of Markdown blocks


def model_section(card):
    a = card["about"]
    trained = a["trained_on"]
    data = as_text(a["data_dir"])
    if trained:
        data += f": {trained['rows']:,} 行 rows, {trained['tokens']:,} token"
        data += f" ({', '.join(map(as_text, trained['sources']))})" if trained["sources"] else ""
    rows = [
        ["检查点 checkpoint", f"{as_text(a['checkpoint'])} ({a['megabytes']} MB)"],
        ["阶段 stage", STAGES[a["stage"]]],
        ["参数 parameters", size(a["parameters"])],
        ["块 blocks", f"{a['n_layer']} × ({a['n_head']} 头 heads, 宽 width {a['n_embd']})"],
        ["最长 longest row", f"{a['block_size']} token"],
        ["词表 vocabulary", f"{as_text(a['table'])}, {a['vocab_size']:,}"],
        ["训练数据 trained on", data],
        ["步数 step", f"{a['step']:,}" + (f" / {a['planned_steps']:,}" if a["planned_steps"] else "")],
        ["轮数 epochs", "–" if a["epochs"] is None else f"{a['epochs']:.2f}"],
        ["训练的 token 数 tokens seen", whole(a["tokens"])],
        ["训练时间 time", "–" if a["seconds"] is None else f"{a['seconds']:,.0f} s"],
        ["从哪里开始 began from", as_text(a["init_from"])],
    ]
    blocks = [markdown_table(["", ""], rows, left=2)]
    if card["settings"]:
        changed = [[as_text(name), as_text(str(value))] for name, value in card["settings"].items()]
        blocks += ["与默认值不同的训练设置 Training settings that differ from the defaults:"]
        blocks += [markdown_table(["设置 setting", "值 value"], changed, left=2)]
    return blocks


def leak_section(card):
    lines = [f"- {as_text(leak['of'])}: {as_text(leak['line'])}" for leak in card.get("leaks", ())]
    return lines and ["\n".join(lines)]


def perplexity_section(card):
    rows = []
    for row in card.get("perplexity", ()):
        count = f"{row['rows']:,}" + (f" / {row['all_rows']:,}" if row["rows"] < row["all_rows"] else "")
        where = f"{ROWS[row['stage']]}: {as_text(row['data_dir'])} {row['part']}"
        cells = [as_text(row["model"]), where, count, f"{row['tokens']:,}"]
        for key, digits in (("perplexity", 2), ("bits_per_token", 3), ("bits_per_char", 3)):
            cells.append(f"{row[key]:.{digits}f} {bracket(row['intervals'][key], digits)}")
        rows.append(cells)
    names = ["模型 model", "数据 of", "行 rows", "token", "困惑度 perplexity", "比特/token bits a token",
             "比特/字 bits a character"]  # fmt: skip
    return rows and [
        markdown_table(names, rows, left=2),
        "微调数据只算答案，所以文章和问答上的数字不能互相比较。"
        "Of questions only the answers count, so the figures of articles and of questions cannot be compared.",
    ]


def answers_section(card):
    scores = card.get("answers")
    if not scores:
        return None
    rows = [[name, scores[key], bracket(scores["intervals"][key])] for key, name in FIGURES.items()]
    asked = f"{scores['pairs']:,} 对 pairs, {as_text(card['asked'])}; {as_text(card['params'])}."
    return [asked, markdown_table(["指标 figure", "值 value", "95%"], rows), *ends(card["pairs"])]


def ends(pairs):
    """The worst and the best of [(question, reference, prediction, F)], as Markdown blocks."""

    def listed(title, places):
        cells = [[f"{pairs[i][3]:.3f}", *(as_text(clipped(text, CLIPPED)) for text in pairs[i][:3])] for i in places]
        return [title, markdown_table(["F", "问题 question", "参考 reference", "回答 answer"], cells, left=4)]

    pairs = [pair for pair in pairs if pair[2] is not None]
    worst, best = ends_of([pair[3] for pair in pairs], ENDS)
    if not worst:
        return listed("**所有的回答 All answers**", sorted(range(len(pairs)), key=lambda i: pairs[i][3]))
    perfect = sum(pair[3] == 1 for pair in pairs)
    more = f"（共有 {perfect:,} 个 1.000 the first of {perfect:,} with 1.000）" if perfect > ENDS else ""
    titles = f"**最差的 {ENDS} 个 The worst {ENDS}**", f"**最好的 {ENDS} 个 The best {ENDS}**{more}"
    return [*listed(titles[0], worst), *listed(titles[1], best)]


def corrections_section(card):
    found = card.get("corrections")
    if not found:
        return None
    rows = []
    for key, name in CORRECTIONS.items():
        count = found["pairs" if key == "accuracy" else f"pairs_{key}"]
        rows.append([name, count, found[key], bracket(found["intervals"][key])])
    for kind, of in found["kinds"].items():
        rows.append([f"　{as_text(kind)}", of["pairs"], of["accuracy"], bracket(of["interval"])])
    verdicts = ", ".join(f"{name} {count:,}" for name, count in found["verdicts"].items())
    return [markdown_table(["句子 sentences", "数量 count", "改对 right", "95%"], rows), f"{verdicts}."]


def decoding_section(card):
    if not card.get("decoding"):
        return None
    names, cells = card["decoding_table"]
    return [plot("decoding", card), markdown_table(names, cells), card["decoding_notes"]]


def training_section(card):
    training = card.get("training")
    return training and [plot("training", card), *map(as_text, training["lines"])]


def plot(name, card):
    return f"![{name}](<{card['plots'][name]}>)"


def missing_section(card):
    return card["missing"] and ["\n".join(f"- {what}: {as_text(why)}" for what, why in card["missing"])]


SECTIONS = {
    "模型 Model": model_section,
    "泄漏检查 Leak check": leak_section,
    "困惑度 Perplexity": perplexity_section,
    "问答 Answers": answers_section,
    "句子纠错 Sentence correction": corrections_section,
    "解码参数 Decoding": decoding_section,
    "训练曲线 Training curves": training_section,
    "没有测的 Not measured": missing_section,
}


def page_of(card):
    """The Markdown of a card (as evaluations-report.py makes it)."""
    lines = [f"- {zh}\n  {en}" for zh, en in glance(card)]
    blocks = [f"# 模型评估 Report card: {as_text(card['name'])}"]
    blocks.append(INTERVALS if card["resamples"] else "")
    blocks.append("\n".join(lines))
    for title, section in SECTIONS.items():
        found = section(card)
        blocks += [f"## {title}", *found] if found else []
    blocks.append(f"*{as_text(card['made_by'])}*")
    return "\n\n".join(block for block in blocks if block) + "\n"
