"""The summary of a report: sentences of report_words.toml, in Chinese and English, filled in with the figures."""

import tomllib
from pathlib import Path

from minigpt.evaluation.contamination import NGRAM_CHARS
from minigpt.metrics import FEWEST_ROWS, too_few
from minigpt.run_log import MIN_OVERFITTING_RISE

REPORT_TEXTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def fill_sentence(key, **values):
    """[Chinese, English] of a sentence. A value may be such a pair too."""

    def in_language(i):
        return {name: value[i] if isinstance(value, list) else value for name, value in values.items()}

    return [text.format(**in_language(i)) for i, text in enumerate(REPORT_TEXTS["sentences"][key])]


def interval_brackets(edges, digits=3):
    """A 95% interval as text."""
    return "–" if not edges else f"[{edges[0]:.{digits}f}, {edges[1]:.{digits}f}]"


def interval_pair(report, edges, rows, digits=3):
    """[Chinese, English]: an interval, or the reason why there is none. The Chinese begins with its space."""
    if not edges and report.get("resamples") and too_few(rows):
        return few_rows(rows)
    return [f" {interval_brackets(edges, digits)}", interval_brackets(edges, digits)]


def few_rows(rows):
    """[Chinese, English]: that there are too few rows for an interval, in brackets."""
    return fill_sentence("too_few", rows=rows, fewest=FEWEST_ROWS, reason=too_few(rows))


def summary_sentences(report):
    """[(Chinese, English)]: the summary of a report (see report_page.py)."""
    parts = (
        contamination_sentences, answer_sentences, correction_sentences, perplexity_sentences, decoding_sentences,
        grammar_sentences, training_sentences,
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
    values = {"n": n, "f": scores["rouge_l_f"], "f_edges": interval_pair(report, edges["rouge_l_f"], n)}
    if report["about"]["stage"] == "pretrain":
        return [fill_sentence("continuations", **values)]
    values |= {"exact": scores["exact_match"], "edges": interval_pair(report, edges["exact_match"], n)}
    sentences = [fill_sentence("answers", **values)]
    if scores["numbers"] is not None:
        n = scores["pairs_with_numbers"]
        values = {"n": n, "right": scores["numbers"], "edges": interval_pair(report, edges["numbers"], n)}
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
        values = {"part": row["part"], "value": row["perplexity"], "bits": row["bits_per_token"]}
        edges = interval_pair(report, row["intervals"]["perplexity"], row["rows"], digits=2)
        kind = REPORT_TEXTS["texts_of_stage"][row["stage"]]
        sentences.append(fill_sentence("perplexity", kind=kind, edges=edges, **values))
    before, after = (next((row for row in rows if row.get("chain") == place), None) for place in ("before", "after"))
    if before and after:
        values = {"before": before["perplexity"], "after": after["perplexity"]}
        values["times"] = values["after"] / values["before"]
        edges = interval_pair(report, report["change"], after["rows"])
        sentences.append(fill_sentence("fine_tuned", edges=edges, **values))
    return sentences


def decoding_sentences(report):
    rows = report.get("decoding") or ()
    given = next((row for row in rows if row["as_given"]), None)
    if not given:
        return []
    pairs = min(row["pairs"] for row in rows)
    if report.get("resamples") and too_few(pairs):
        return [fill_sentence("decoding_few", few=few_rows(pairs))]
    best = max(rows, key=lambda row: row["rouge_l_f"])
    if best["rouge_l_f"] <= given["rouge_l_f"]:
        return [fill_sentence("decoding_as_given", given=given["rouge_l_f"])]
    what = f"{best['setting']}={best['value']:g}"
    if best["setting"] != "temperature" and best["temperature"] != given["temperature"]:
        what += f" (temperature={best['temperature']:g})"
    low, high, overlap = best["rouge_l_f_low"], given["rouge_l_f_high"], ""
    if low is not None and high is not None:
        overlap = fill_sentence("no_overlap" if high < low else "overlap")
    values = {"what": what, "best": best["rouge_l_f"], "given": given["rouge_l_f"], "overlap": overlap}
    return [fill_sentence("decoding", **values)]


def grammar_sentences(report):
    found = report.get("grammar")
    if not found:
        return []
    edges = interval_pair(report, found["intervals"]["grammar"], found["pairs"])
    shares = {"right": found["grammar"], "shorter": found["fewer_tokens"]}
    return [fill_sentence("grammar", n=found["pairs"], edges=edges, **shares)]


def training_sentences(report):
    training = report.get("training")
    if not training or training["best_step"] is None:
        return []
    found = training["overfitting"]
    if not found:
        return [fill_sentence("no_over_fitting", share=MIN_OVERFITTING_RISE)]
    return [fill_sentence("over_fitting", rise=found["last"] / found["best"] - 1, **found)]
