"""What decoding does to answers: each of its settings varied alone, as figures and as a plot."""

from dataclasses import astuple, replace

import matplotlib.pyplot as plt
import numpy as np

from minigpt.evaluation.plots import nested, save_plot  # which sees to it that no screen is needed
from minigpt.metrics import distinct, exact_match, interval, repetition, rouge_l

VALUES = {
    "temperature": [0.0, 0.1, 0.5, 1.0, 1.5],
    "top_k": [1, 5, 20, 100, 0],  # 0, all of them, is the most
    "top_p": [0.5, 0.8, 0.9, 0.95, 1.0],
    "frequency_penalty": [0.0, 0.2, 0.5, 1.0, 2.0],
    "repetition_penalty": [1.0, 1.1, 1.2, 1.5, 2.0],
}
AT_TEMPERATURE_1 = ("top_k", "top_p")  # near greedy, they change nothing
COLUMNS = {
    "setting": "setting", "value": "value", "temperature": "temperature", "rouge_l_f": "Rouge-L F",
    "rouge_l_f_interval": "95%", "exact_match": "exact match", "exact_match_interval": "95%",
    "repetition": "repetition", "distinct_2": "distinct-2", "distinct_3": "distinct-3", "characters": "characters",
}  # fmt: skip
CURVES = {
    "rouge_l_f": "Rouge-L F", "exact_match": "exact match", "repetition": "repetition (4-grams)",
    "distinct_2": "distinct-2", "distinct_3": "distinct-3",
}  # fmt: skip
NOTES = (
    "Each setting is varied alone from the values given (marked *); top_k and top_p at temperature 1, since in nearly "
    "greedy decoding they change nothing. top_k 0: all tokens. 95%: bootstrap interval over questions. Repetition: "
    "share of an answer's 4-grams of characters that stood in it before; distinct-n: share of unlike n-grams over all "
    "answers; characters: of an answer, on average."
)


def plan(params, names):
    """[(setting, value, `SamplingParams`)] of a sweep: each setting's VALUES, and the one given."""
    steps = []
    for name in names:
        base = replace(params, temperature=1.0) if name in AT_TEMPERATURE_1 else params
        values = sorted({*VALUES[name], getattr(params, name)})
        if name == "top_k" and 0 in values:
            values = [*values[1:], 0]
        steps += [(name, value, replace(base, **{name: value})) for value in values]
    return steps


def sweep_size(params, names):
    """How often a sweep has all pairs answered: what several settings have in common is asked once."""
    return len({astuple(own) for _, _, own in plan(params, names)})


def sweep(model, pairs, params, names, progress=None, resamples=1000, seed=0):
    """[{"setting", "value", "given", "temperature", "rouge_l_f", …}], a row for each value of each setting.

    model: as models.py has them; pairs: [(prompt, reference)]; names: settings, keys of VALUES;
    progress(n): n more prompts are done, of sweep_size × len(pairs). "rouge_l_f_low", "rouge_l_f_high" and their
    like are the 95% interval, or None. Raises UserError where nothing was answered.
    """
    prompts, rows, known = [prompt for prompt, _ in pairs], [], {}
    for name, value, own in plan(params, names):
        key = astuple(own)
        if key not in known:
            known[key] = figures(model.answers(prompts, own, progress), pairs, resamples, seed)
        about = {"given": value == getattr(params, name), "temperature": own.temperature}
        rows.append({"setting": name, "value": value, **about, **known[key]})
    return rows


def figures(predictions, pairs, resamples, seed):
    """A row's figures; predictions that are None are left out, and counted as "failed"."""
    there = [(text, reference) for text, (_, reference) in zip(predictions, pairs, strict=True) if text is not None]
    texts = [text for text, _ in there]
    each = {
        "rouge_l_f": [rouge_l(*pair)[2] for pair in there],
        "exact_match": [float(exact_match(*pair)) for pair in there],
        "repetition": [repetition(text) for text in texts],
    }
    row = {name: float(np.mean(values)) for name, values in each.items()}
    for name, values in each.items():
        edges = interval(values, resamples=resamples, seed=seed)
        row[f"{name}_low"], row[f"{name}_high"] = edges or (None, None)
    row |= {f"distinct_{n}": distinct(texts, n) for n in (2, 3)}
    row["characters"] = float(np.mean([len(text) for text in texts]))
    return {**row, "pairs": len(there), "failed": len(predictions) - len(there)}


def table(rows):
    """(names, rows of cells) of a sweep, as tables.py takes them."""
    cells = []
    for row in rows:
        value = f"{row['value']:g}{'*' if row['given'] else ''}"
        shown = {**row, "value": value, "temperature": f"{row['temperature']:g}"}
        shown["characters"] = f"{row['characters']:.1f}"
        for name in ("rouge_l_f", "exact_match"):
            low, high = row[f"{name}_low"], row[f"{name}_high"]
            shown[f"{name}_interval"] = None if low is None else f"{low:.3f}–{high:.3f}"
        cells.append([shown[key] for key in COLUMNS])
    return list(COLUMNS.values()), cells


def draw_sweep(rows):
    """Figure of a sweep's rows: a panel for each setting, its values as they are listed, with 95% bands."""
    names = list(dict.fromkeys(row["setting"] for row in rows))
    columns = min(3, len(names) + 1)
    lines = -(-(len(names) + 1) // columns)  # the last panel bears the legend
    figure, panels = plt.subplots(lines, columns, figsize=(4 * columns, 3.2 * lines), squeeze=False)
    panels = panels.flatten()
    for panel, name in zip(panels, names, strict=False):
        own = [row for row in rows if row["setting"] == name]
        places = range(len(own))
        thickness = nested([dict(enumerate(row[key] for row in own)) for key in CURVES])
        for number, (key, label) in enumerate(CURVES.items()):
            panel.plot(places, [row[key] for row in own], "o-", color=f"C{number}", label=label, **thickness[number])
            lows, highs = ([row.get(f"{key}_{edge}") for row in own] for edge in ("low", "high"))
            if None not in lows:
                panel.fill_between(places, lows, highs, color=f"C{number}", alpha=0.15, lw=0)
        given = next((place for place, row in enumerate(own) if row["given"]), None)
        if given is not None:
            panel.axvline(given, color="grey", lw=0.8, ls=":")
        panel.set_xticks(
            list(places), ["all" if (name, row["value"]) == ("top_k", 0) else f"{row['value']:g}" for row in own]
        )
        panel.set(title=name + (" (at temperature 1)" if name in AT_TEMPERATURE_1 else ""), ylim=(-0.03, 1.03))
        panel.grid(alpha=0.3)
    for panel in panels[len(names) :]:
        panel.axis("off")
    handles, labels = panels[0].get_legend_handles_labels()
    panels[-1].legend(handles, labels, loc="center", frameon=False, title="bands: 95%; dotted: as given")
    return figure


def save_sweep(rows, path):
    """Draw a sweep's rows into `path`, a PNG, and an SVG beside it; returns both paths. Raises UserError."""
    return save_plot(draw_sweep(rows), path)
