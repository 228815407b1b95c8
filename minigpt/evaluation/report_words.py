"""The summary of a report: sentences of report_words.toml, in Chinese and English, filled in with the figures."""

import tomllib
from pathlib import Path

from minigpt.evaluation.contamination import NGRAM_CHARS
from minigpt.metrics import FEWEST_ROWS, too_few
from minigpt.run_log import MIN_OVERFITTING_RISE

REPORT_TEXTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def fill_sentence(key, **values):
    """(Chinese, English) of a sentence."""
    return tuple(text.format(**values) for text in REPORT_TEXTS["sentences"][key])


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
            sentences.append(fill_sentence("not_checked", of=leak["of"]))
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
        chinese, english = REPORT_TEXTS["texts_of_stage"][row["stage"]]
        values = {"part": row["part"], "value": row["perplexity"], "bits": row["bits_per_token"]}
        values |= interval_values(report, row["intervals"]["perplexity"], row["rows"], digits=2)
        sentences.append(fill_sentence("perplexity", kind_zh=chinese, kind=english, **values))
    before, after = (next((row for row in rows if row.get("chain") == place), None) for place in ("before", "after"))
    if before and after:
        values = {"before": before["perplexity"], "after": after["perplexity"]}
        values["times"] = values["after"] / values["before"]
        values |= interval_values(report, report["change"], after["rows"])
        sentences.append(fill_sentence("fine_tuned", **values))
    return sentences


def decoding_sentences(report):
    rows = report.get("decoding") or ()
    given = next((row for row in rows if row["as_given"]), None)
    if not given:
        return []
    pairs = min(row["pairs"] for row in rows)
    if report.get("resamples") and too_few(pairs):
        return [fill_sentence("decoding_few", few=too_few(pairs), few_zh=too_few_chinese(pairs))]
    best = max(rows, key=lambda row: row["rouge_l_f"])
    if best["rouge_l_f"] <= given["rouge_l_f"]:
        return [fill_sentence("decoding_as_given", given=given["rouge_l_f"])]
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
        return [fill_sentence("no_over_fitting", share=MIN_OVERFITTING_RISE)]
    return [fill_sentence("over_fitting", rise=found["last"] / found["best"] - 1, **found)]
