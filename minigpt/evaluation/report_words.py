"""The summary of a report: sentences in Chinese and English, chosen and filled in by the figures."""

from minigpt.evaluation.contamination import NGRAM_CHARS
from minigpt.metrics import FEWEST_ROWS, too_few
from minigpt.run_log import MIN_OVERFITTING_RISE

SENTENCES = {
    "contaminated": (
        "**{of} 上的数字不能说明它在新内容上的能力**：{n:,} 行中有 {leaked:,} 行训练时见过；"
        "这些行里每 {chars} 个字的片段，有 {share:.1%} 出现在训练数据里。",
        "**The figures on {of} do not show how it does on new text**: {leaked:,} of the {n:,} rows were trained on, "
        "and {share:.1%} of their n-grams of {chars} characters occur in training rows.",
    ),
    "not checked": (
        "没有检查训练时是否见过 {of}。",
        "It was not checked whether {of} was trained on.",
    ),
    "clean": (
        "没有在训练数据里找到评测内容。",
        "The text under evaluation was not found in the training data.",
    ),
    "answers": (
        "{n:,} 个问题中，{exact:.1%} 的回答与参考答案完全一致{edges_zh}；Rouge-L F 为 {f:.3f}{f_edges_zh}。",
        "Of {n:,} questions, it answers {exact:.1%} exactly as the reference {edges}; Rouge-L F is {f:.3f} {f_edges}.",
    ),
    "continuations": (
        "从 {n:,} 篇文章的第一个分句续写，与原文的 Rouge-L F 为 {f:.3f}{f_edges_zh}。",
        "Its continuations of {n:,} articles from their first clause have a Rouge-L F of {f:.3f} {f_edges}.",
    ),
    "numbers": (
        "参考答案含数字的 {n:,} 个问题中，数字准确率为 {right:.1%}{edges_zh}。",
        "On the {n:,} whose reference has numbers, its number accuracy is {right:.1%} {edges}.",
    ),
    "corrections": (
        "需要改的句子改对 {change:.1%}，不用改的句子保持不动 {keep:.1%}。",
        "It corrects {change:.1%} of the sentences to change, and leaves {keep:.1%} of those to keep unchanged.",
    ),
    "perplexity": (
        "在 {part} 部分的{kind_zh}上困惑度为 {value:.2f}{edges_zh}，每个 token {bits:.3f} 比特。",
        "On the {kind} of the {part} part its perplexity is {value:.2f} {edges}: {bits:.3f} bits per token.",
    ),
    "fine-tuned": (
        "微调之后，同样的文章上的困惑度从 {before:.2f} 变为 {after:.2f}，是原来的 {times:.3f} 倍{edges_zh}。",
        "Fine-tuning changed its perplexity on the same articles from {before:.2f} to {after:.2f}, by a factor of "
        "{times:.3f} {edges}.",
    ),
    "decoding few": (
        "所试的解码参数不作比较{few_zh}。",
        "The decoding settings tried are not compared ({few}).",
    ),
    "decoding as given": (
        "所试的解码参数中，没有一个的 Rouge-L F 高于给定的（{given:.3f}）。",
        "Of the decoding settings tried, none has a higher Rouge-L F than the given ones ({given:.3f}).",
    ),
    "decoding": (
        "所试的解码参数中，{what} 的 Rouge-L F 最高：{best:.3f}，给定的为 {given:.3f}{overlap_zh}。",
        "Of the decoding settings tried, {what} has the highest Rouge-L F: {best:.3f}, against {given:.3f} as "
        "given{overlap}.",
    ),
    "over-fitting": (
        "第 {step:,} 步之后过拟合：验证损失从 {best:.3f} 升到 {last:.3f}（{rise:+.1%}），训练损失仍在下降。",
        "It over-fits after step {step:,}: validation loss rose from {best:.3f} to {last:.3f} ({rise:+.1%}) while "
        "training loss kept falling.",
    ),
    "no over-fitting": (
        "训练曲线上看不到过拟合：最好的一步之后，没有在训练损失下降的同时验证损失上升超过 {share:.0%}。",
        "Its curves show no over-fitting: after the best step, validation loss did not end over {share:.0%} higher "
        "while training loss fell.",
    ),
}
KINDS_OF_TEXT = {"pretrain": ("文章", "articles"), "sft": ("答案", "answers")}


def fill_sentence(key, **values):
    """(Chinese, English) of a sentence."""
    return tuple(text.format(**values) for text in SENTENCES[key])


def interval_brackets(edges, digits=3):
    """A 95% interval as text."""
    return "–" if not edges else f"[{edges[0]:.{digits}f}, {edges[1]:.{digits}f}]"


def too_few_chinese(rows):
    """`too_few` in Chinese."""
    return f"（只有 {rows:,} 行，给不出区间，至少要 {FEWEST_ROWS} 行）"


def interval_values(report, edges, rows, name="edges", digits=3):
    """{name, name + "_zh"}: an interval, or the reason why there is none, for `fill_sentence`."""
    if not edges and report.get("resamples") and too_few(rows):
        return {name: f"({too_few(rows)})", f"{name}_zh": too_few_chinese(rows)}
    return {name: interval_brackets(edges, digits), f"{name}_zh": f" {interval_brackets(edges, digits)}"}


def summary_sentences(report):
    """[(Chinese, English)]: the summary of a report (see report_page.py)."""
    parts = (
        contamination_sentences, answer_sentences, correction_sentences, perplexity_sentences, decoding_sentences,
        training_sentences,
    )  # fmt: skip
    return [sentence for part in parts for sentence in part(report)]


def contamination_sentences(report):
    """A sentence for each set of rows that was trained on or not checked; one sentence if all are clean."""
    sentences = []
    for leak in report.get("leaks", ()):
        if leak["verdict"] in ("leaked", "trained on"):
            counts = {"n": leak["rows"], "leaked": leak["leaked_rows"], "share": leak["share"], "chars": NGRAM_CHARS}
            sentences.append(fill_sentence("contaminated", of=leak["of"], **counts))
        elif leak["verdict"] != "clean":
            sentences.append(fill_sentence("not checked", of=leak["of"]))
    return sentences or ([fill_sentence("clean")] if report.get("leaks") else [])


def answer_sentences(report):
    scores = report.get("answers")
    if not scores:
        return []
    n, edges = scores["pairs"], scores["intervals"]
    values = {"n": n, "f": scores["rouge_l_f"], **interval_values(report, edges["rouge_l_f"], n, "f_edges")}
    if report["about"]["stage"] == "pretrain":
        return [fill_sentence("continuations", **values)]
    values |= {"exact": scores["exact_match"], **interval_values(report, edges["exact_match"], n)}
    sentences = [fill_sentence("answers", **values)]
    if scores["numbers"] is not None:
        n = scores["pairs_with_numbers"]
        values = {"n": n, "right": scores["numbers"], **interval_values(report, edges["numbers"], n)}
        sentences.append(fill_sentence("numbers", **values))
    return sentences


def correction_sentences(report):
    found = report.get("corrections")
    if not found or None in (found["to_change"], found["to_keep"]):
        return []
    return [fill_sentence("corrections", change=found["to_change"], keep=found["to_keep"])]


def perplexity_sentences(report):
    rows, sentences = report.get("perplexity", ()), []
    for row in [row for row in rows if not row.get("chain")][:1]:
        chinese, english = KINDS_OF_TEXT[row["stage"]]
        values = {"part": row["part"], "value": row["perplexity"], "bits": row["bits_per_token"]}
        values |= interval_values(report, row["intervals"]["perplexity"], row["rows"], digits=2)
        sentences.append(fill_sentence("perplexity", kind_zh=chinese, kind=english, **values))
    before, after = (next((row for row in rows if row.get("chain") == place), None) for place in ("before", "after"))
    if before and after:
        values = {"before": before["perplexity"], "after": after["perplexity"]}
        values["times"] = values["after"] / values["before"]
        values |= interval_values(report, report["change"], after["rows"])
        sentences.append(fill_sentence("fine-tuned", **values))
    return sentences


def decoding_sentences(report):
    rows = report.get("decoding") or ()
    given = next((row for row in rows if row["as_given"]), None)
    if not given:
        return []
    pairs = min(row["pairs"] for row in rows)
    if report.get("resamples") and too_few(pairs):
        return [fill_sentence("decoding few", few=too_few(pairs), few_zh=too_few_chinese(pairs))]
    best = max(rows, key=lambda row: row["rouge_l_f"])
    if best["rouge_l_f"] <= given["rouge_l_f"]:
        return [fill_sentence("decoding as given", given=given["rouge_l_f"])]
    what = f"{best['setting']}={best['value']:g}"
    if best["setting"] != "temperature" and best["temperature"] != given["temperature"]:
        what += f" (temperature={best['temperature']:g})"
    values = {"what": what, "best": best["rouge_l_f"], "given": given["rouge_l_f"], "overlap": "", "overlap_zh": ""}
    low, high = best["rouge_l_f_low"], given["rouge_l_f_high"]
    if low is not None and high is not None:
        apart = high < low
        values["overlap"] = ", and the intervals do not overlap" if apart else ", but the intervals overlap"
        values["overlap_zh"] = "，区间不重叠" if apart else "，区间有重叠"
    return [fill_sentence("decoding", **values)]


def training_sentences(report):
    training = report.get("training")
    if not training or training["best_step"] is None:
        return []
    found = training["overfitting"]
    if not found:
        return [fill_sentence("no over-fitting", share=MIN_OVERFITTING_RISE)]
    return [fill_sentence("over-fitting", rise=found["last"] / found["best"] - 1, **found)]
