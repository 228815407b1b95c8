"""A sweep over sampling settings: each is varied alone; the figures as rows, as a table and as a plot."""

from dataclasses import astuple, replace

import numpy as np

from minigpt.evaluation.plots import curve_widths, plt
from minigpt.evaluation.tables import interval_text
from minigpt.metrics import distinct, exact_match, interval, repetition, rouge_l

SWEPT_VALUES = {
    "temperature": [0.0, 0.1, 0.5, 1.0, 1.5],
    "top_k": [1, 5, 20, 100, 0],  # 0 means all tokens
    "top_p": [0.5, 0.8, 0.9, 0.95, 1.0],
    "frequency_penalty": [0.0, 0.2, 0.5, 1.0, 2.0],
    "repetition_penalty": [1.0, 1.1, 1.2, 1.5, 2.0],
}
AT_TEMPERATURE_1 = ("top_k", "top_p")  # in nearly greedy decoding they have no effect
TABLE_COLUMNS = {
    "setting": "setting", "value": "value", "temperature": "temperature", "rouge_l_f": "Rouge-L F",
    "rouge_l_f_interval": "95%", "exact_match": "exact match", "exact_match_interval": "95%",
    "repetition": "repetition", "distinct_2": "distinct-2", "distinct_3": "distinct-3", "characters": "characters",
}  # fmt: skip
SWEEP_CURVES = {
    "rouge_l_f": "Rouge-L F", "exact_match": "exact match", "repetition": "repetition (4-grams)",
    "distinct_2": "distinct-2", "distinct_3": "distinct-3",
}  # fmt: skip
SWEEP_NOTES = (
    "Each setting is varied alone, starting from the given values (marked *); top_k and top_p at temperature 1, since "
    "they have no effect in nearly greedy decoding. top_k 0: all tokens. 95%: bootstrap interval over questions. "
    "Repetition: share of an answer's 4-grams of characters that occurred in it before. distinct-n: share of different "
    "n-grams over all answers. characters: mean length of an answer."
)


def plan_sweep(params, names):
    """[(setting, value, `SamplingParams`)]: for each setting its SWEPT_VALUES and the given value."""
    steps = []
    for name in names:
        base = replace(params, temperature=1.0) if name in AT_TEMPERATURE_1 else params
        values = sorted({*SWEPT_VALUES[name], getattr(params, name)})
        if name == "top_k" and 0 in values:
            values = [*values[1:], 0]
        steps += [(name, value, replace(base, **{name: value})) for value in values]
    return steps


def sweep_size(params, names):
    """How many times a sweep answers all pairs. Parameters that several settings share are run once."""
    return len({astuple(own) for _, _, own in plan_sweep(params, names)})


def run_sweep(model, pairs, params, names, progress=None, resamples=1000, seed=0):
    """[{"setting", "value", "given", "temperature", "rouge_l_f", …}]: a row for each value of each setting.

    model: a `LocalModel` or `RemoteModel`; pairs: [(prompt, reference)]; names: keys of SWEPT_VALUES; progress(n): n
    more prompts are answered, of sweep_size × len(pairs). "rouge_l_f_low" and "rouge_l_f_high" (and so on) are the 95%
    interval, or None. Raises UserError if nothing is answered.
    """
    prompts, rows, results = [prompt for prompt, _ in pairs], [], {}
    for name, value, own in plan_sweep(params, names):
        key = astuple(own)
        if key not in results:
            results[key] = sweep_figures(model.answers(prompts, own, progress), pairs, resamples, seed)
        about = {"given": value == getattr(params, name), "temperature": own.temperature}
        rows.append({"setting": name, "value": value, **about, **results[key]})
    return rows


def sweep_figures(predictions, pairs, resamples, seed):
    """The figures of one row. Predictions that are None are not counted, except as "failed"."""
    answered = [(text, reference) for text, (_, reference) in zip(predictions, pairs, strict=True) if text is not None]
    texts = [text for text, _ in answered]
    scores = {
        "rouge_l_f": [rouge_l(*pair)[2] for pair in answered],
        "exact_match": [float(exact_match(*pair)) for pair in answered],
        "repetition": [repetition(text) for text in texts],
    }
    row = {name: float(np.mean(values)) for name, values in scores.items()}
    for name, values in scores.items():
        edges = interval(values, resamples=resamples, seed=seed)
        row[f"{name}_low"], row[f"{name}_high"] = edges or (None, None)
    row |= {f"distinct_{n}": distinct(texts, n) for n in (2, 3)}
    row["characters"] = float(np.mean([len(text) for text in texts]))
    return {**row, "pairs": len(answered), "failed": len(predictions) - len(answered)}


def sweep_table(rows):
    """(column names, rows of cells) of a sweep, as tables.py takes them."""
    cells = []
    for row in rows:
        value = f"{row['value']:g}{'*' if row['given'] else ''}"
        texts = {**row, "value": value, "temperature": f"{row['temperature']:g}"}
        texts["characters"] = f"{row['characters']:.1f}"
        for name in ("rouge_l_f", "exact_match"):
            edges = row[f"{name}_low"], row[f"{name}_high"]
            texts[f"{name}_interval"] = None if None in edges else interval_text(edges)
        cells.append([texts[key] for key in TABLE_COLUMNS])
    return list(TABLE_COLUMNS.values()), cells


def draw_sweep(rows):
    """Figure of a sweep's rows: a panel for each setting, with 95% bands."""
    names = list(dict.fromkeys(row["setting"] for row in rows))
    columns = min(3, len(names) + 1)
    lines = -(-(len(names) + 1) // columns)  # the last panel holds the legend
    figure, panels = plt.subplots(lines, columns, figsize=(4 * columns, 3.2 * lines), squeeze=False)
    panels = panels.flatten()
    for panel, name in zip(panels, names, strict=False):
        own = [row for row in rows if row["setting"] == name]
        places = range(len(own))  # the values are evenly spaced, in the order of the rows
        widths = curve_widths([dict(enumerate(row[key] for row in own)) for key in SWEEP_CURVES])
        for number, (key, label) in enumerate(SWEEP_CURVES.items()):
            panel.plot(places, [row[key] for row in own], "o-", color=f"C{number}", label=label, **widths[number])
            lows, highs = ([row.get(f"{key}_{edge}") for row in own] for edge in ("low", "high"))
            if None not in lows:
                panel.fill_between(places, lows, highs, color=f"C{number}", alpha=0.15, lw=0)
        given = next((place for place, row in enumerate(own) if row["given"]), None)
        if given is not None:
            panel.axvline(given, color="grey", lw=0.8, ls=":")
        ticks = ["all" if (name, row["value"]) == ("top_k", 0) else f"{row['value']:g}" for row in own]
        panel.set_xticks(list(places), ticks)
        panel.set(title=name + (" (at temperature 1)" if name in AT_TEMPERATURE_1 else ""), ylim=(-0.03, 1.03))
    for panel in panels[len(names) :]:
        panel.axis("off")
    handles, labels = panels[0].get_legend_handles_labels()
    panels[-1].legend(handles, labels, loc="center", frameon=False, title="bands: 95%; dotted: as given")
    return figure
