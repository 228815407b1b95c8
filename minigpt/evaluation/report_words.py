"""The sentences that sum a report card up, in Chinese and English; the figures decide which, and what they say."""

from minigpt.evaluation.contamination import RUN_CHARS
from minigpt.metrics import FEWEST_ROWS, too_few
from minigpt.run_log import RISE

TEXTS = {
    "leaked": (
        "**{of} 上的数字不说明它对新内容的能力**：{n:,} 行中有 {leaked:,} 行训练时见过；"
        "这些行里每 {run} 个字的片段，有 {share:.1%} 出现在训练数据里。",
        "**The figures of {of} do not tell how it does on what is new to it**: {leaked:,} of the {n:,} rows were "
        "trained on, and of their runs of {run} characters {share:.1%} stand in training rows.",
    ),
    "unchecked": (
        "没有检查 {of} 训练时是否见过。",
        "Whether it was trained on {of} was not checked.",
    ),
    "clean": (
        "在训练数据里没有找到所测的内容。",
        "What is measured was not found in what it was trained on.",
    ),
    "answers": (
        "{n:,} 个问题中，{exact:.1%} 的回答与参考答案完全一致{edges_zh}；Rouge-L F 为 {f:.3f}{f_edges_zh}。",
        "Of {n:,} questions, it answers {exact:.1%} exactly as the reference {edges}; Rouge-L F is {f:.3f} {f_edges}.",
    ),
    "continuations": (
        "给 {n:,} 篇文章的第一句往下写，与原文的 Rouge-L F 为 {f:.3f}{f_edges_zh}。",
        "Continuing {n:,} articles from their first clause, it comes to a Rouge-L F of {f:.3f} {f_edges}.",
    ),
    "numbers": (
        "参考里有数字的 {n:,} 个中，{right:.1%} 的数字全对{edges_zh}。",
        "Of the {n:,} whose reference has numbers, {right:.1%} have just these numbers {edges}.",
    ),
    "corrections": (
        "需要改的句子改对 {change:.1%}，不用改的句子保持不动 {keep:.1%}。",
        "It corrects {change:.1%} of the sentences to change, and leaves {keep:.1%} of those to keep as they are.",
    ),
    "perplexity": (
        "在 {part} 部分的{kind_zh}上困惑度为 {value:.2f}{edges_zh}，每个 token {bits:.3f} 比特。",
        "On the {kind} of the {part} part its perplexity is {value:.2f} {edges}: {bits:.3f} bits a token.",
    ),
    "fine-tuned": (
        "微调之后，同样的文章上的困惑度从 {before:.2f} 变为 {after:.2f}，是原来的 {times:.3f} 倍{edges_zh}。",
        "By fine-tuning, its perplexity on the same articles went from {before:.2f} to {after:.2f}, {times:.3f} times "
        "what it was {edges}.",
    ),
    "decoding few": (
        "所试的解码参数不作比较{few_zh}。",
        "The decoding settings tried are not compared ({few}).",
    ),
    "decoding as given": (
        "所试的解码参数中，没有一个的 Rouge-L F 高于给定的（{given:.3f}）。",
        "Of the decoding settings tried, none has a higher Rouge-L F than those given ({given:.3f}).",
    ),
    "decoding": (
        "所试的解码参数中，{what} 的 Rouge-L F 最高：{best:.3f}，给定的为 {given:.3f}{clear_zh}。",
        "Of the decoding settings tried, {what} has the highest Rouge-L F: {best:.3f}, against {given:.3f} as "
        "given{clear}.",
    ),
    "over-fitting": (
        "第 {step:,} 步之后过拟合：验证损失从 {best:.3f} 升到 {last:.3f}（{rise:+.1%}），训练损失仍在下降。",
        "It over-fits after step {step:,}: validation loss rose from {best:.3f} to {last:.3f} ({rise:+.1%}) while "
        "training loss fell on.",
    ),
    "no over-fitting": (
        "训练曲线上看不到过拟合：最好的一步之后，没有在训练损失下降的同时验证损失上升超过 {share:.0%}。",
        "Its curves show no over-fitting: after the best step, validation loss did not end over {share:.0%} higher "
        "while training loss fell.",
    ),
}
KINDS = {"pretrain": ("文章", "articles"), "sft": ("答案", "answers")}
CLEAR = {
    None: ("", ""),
    True: ("，区间不重叠", ", the intervals apart"),
    False: ("，区间有重叠", ", the intervals overlapping"),
}


def said(key, **values):
    """(Chinese, English) of a sentence."""
    return tuple(text.format(**values) for text in TEXTS[key])


def bracket(edges, digits=3):
    """A 95% interval as text."""
    return "–" if not edges else f"[{edges[0]:.{digits}f}, {edges[1]:.{digits}f}]"


def few_zh(rows):
    """`too_few` in a Chinese sentence."""
    return f"（只有 {rows:,} 行，给不出区间，至少要 {FEWEST_ROWS} 行）"


def edges_in(card, edges, rows, name="edges", digits=3):
    """{name, name + "_zh"}: an interval, or why there is none, as it stands in an English and in a Chinese sentence."""
    if not edges and card.get("resamples") and too_few(rows):
        return {name: f"({too_few(rows)})", f"{name}_zh": few_zh(rows)}
    return {name: bracket(edges, digits), f"{name}_zh": f" {bracket(edges, digits)}"}


def compared(a, b):
    """{"clear_zh", "clear"}: whether two intervals have nothing in common; nothing where one is not known."""
    known = a and b and None not in (*a, *b)
    zh, en = CLEAR[(a[1] < b[0] or b[1] < a[0]) if known else None]
    return {"clear_zh": zh, "clear": en}


def glance(card):
    """[(Chinese, English)]: what the figures of a card come to."""
    parts = of_leak, of_answers, of_corrections, of_perplexity, of_decoding, of_training
    return [pair for part in parts for pair in part(card)]


def of_leak(card):
    """A sentence for each set of rows that was trained on, or was not looked at; one where all are clean."""
    found = []
    for leak in card.get("leaks", ()):
        if leak["verdict"] in ("leaked", "trained on"):
            about = {"n": leak["rows"], "leaked": leak["leaked_rows"], "share": leak["share"], "run": RUN_CHARS}
            found.append(said("leaked", of=leak["of"], **about))
        elif leak["verdict"] != "clean":
            found.append(said("unchecked", of=leak["of"]))
    return found or ([said("clean")] if card.get("leaks") else [])


def of_answers(card):
    scores = card.get("answers")
    if not scores:
        return []
    n, edges = scores["pairs"], scores["intervals"]
    about = {"n": n, "f": scores["rouge_l_f"], **edges_in(card, edges["rouge_l_f"], n, "f_edges")}
    if card["about"]["stage"] == "pretrain":
        return [said("continuations", **about)]
    found = [said("answers", exact=scores["exact_match"], **edges_in(card, edges["exact_match"], n), **about)]
    if scores["numbers"] is not None:
        n = scores["pairs_with_numbers"]
        found.append(said("numbers", n=n, right=scores["numbers"], **edges_in(card, edges["numbers"], n)))
    return found


def of_corrections(card):
    found = card.get("corrections")
    if not found or None in (found["to_change"], found["to_keep"]):
        return []
    return [said("corrections", change=found["to_change"], keep=found["to_keep"])]


def of_perplexity(card):
    rows, found = card.get("perplexity", ()), []
    for row in [row for row in rows if not row.get("chain")][:1]:
        kind_zh, kind = KINDS[row["stage"]]
        about = {"part": row["part"], "value": row["perplexity"], "bits": row["bits_per_token"]}
        about |= edges_in(card, row["intervals"]["perplexity"], row["rows"], digits=2)
        found.append(said("perplexity", kind_zh=kind_zh, kind=kind, **about))
    before, after = (next((row for row in rows if row.get("chain") == place), None) for place in ("before", "after"))
    if before and after:
        told = {"before": before["perplexity"], "after": after["perplexity"]}
        told["times"] = told["after"] / told["before"]
        found.append(said("fine-tuned", **edges_in(card, card["change"], after["rows"]), **told))
    return found


def of_decoding(card):
    rows = card.get("decoding") or ()
    given = next((row for row in rows if row["as_given"]), None)
    if not given:
        return []
    pairs = min(row["pairs"] for row in rows)
    if card.get("resamples") and too_few(pairs):
        return [said("decoding few", few=too_few(pairs), few_zh=few_zh(pairs))]
    best = max(rows, key=lambda row: row["rouge_l_f"])
    if best["rouge_l_f"] <= given["rouge_l_f"]:
        return [said("decoding as given", given=given["rouge_l_f"])]
    clear = compared(*((row["rouge_l_f_low"], row["rouge_l_f_high"]) for row in (best, given)))
    what = f"{best['setting']}={best['value']:g}"
    if best["setting"] != "temperature" and best["temperature"] != given["temperature"]:
        what += f" (temperature={best['temperature']:g})"
    return [said("decoding", what=what, best=best["rouge_l_f"], given=given["rouge_l_f"], **clear)]


def of_training(card):
    training = card.get("training")
    if not training or training["best_step"] is None:
        return []
    found = training["overfitting"]
    if not found:
        return [said("no over-fitting", share=RISE)]
    return [said("over-fitting", rise=found["last"] / found["best"] - 1, **found)]
