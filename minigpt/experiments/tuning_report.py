"""Writes the page of the comparison of tuning methods: the machinery of report.py, with plots and tables of its own."""

import os
import platform
from pathlib import Path

import numpy as np

from minigpt.common.files import PROJECT, write_atomic
from minigpt.evaluation.plots import COLOURS, plt, save_plot
from minigpt.evaluation.tables import markdown_table
from minigpt.experiments.claims import column_values, read_claims
from minigpt.experiments.report import claims_table, draw_range, experiment_table, format_mean, verdict_lines
from minigpt.experiments.results import to_flags
from minigpt.experiments.tuning_plan import (
    BASE_RUN,
    BASE_SHARES,
    FEW_SHOT,
    LORA_RANKS,
    QUESTION_SHARES,
    RATE_FACTORS,
    REPLAY_SHARES,
    REPLAYED,
    SWEPT_METHODS,
    TUNED_TASKS,
    TUNING_METHODS,
    share_name,
)
from minigpt.settings.stages import TuningPageSettings

TUNING_HEAD = PROJECT / "minigpt/experiments/tuning_head.md"
TUNING_COLUMNS, TUNING_EXPERIMENTS = read_claims("tuning.toml")
QUALITY = TUNING_COLUMNS["quality"]
TASK_TITLES = {
    "questions": "questions, exact match",
    "field": "field, accuracy",
    "correction": "correction, exact match",
}
FULL_METHODS = {"full": "Muon", "full_adamw": "AdamW"}  # whose changes of the matrices are shown
COLOUR_OF = dict(zip(("full", "lora_8", "adapter", "prefix", "p-tuning", "prompt", FEW_SHOT), COLOURS, strict=True))
COLOUR_OF |= {"full_adamw": COLOUR_OF["full"], "head": COLOUR_OF[FEW_SHOT]}
COLOUR_OF |= {method: COLOUR_OF["lora_8"] for method in ("qlora", *(f"lora_{rank}" for rank in LORA_RANKS))}
SQUARES = ("full_adamw", "qlora", "head")  # methods drawn as squares, or dashed: their colour is another's
LABEL_HEIGHTS = {"full": -11, "p-tuning": -18, "qlora": 8} | {
    f"lora_{rank}": -11 for rank in LORA_RANKS
}  # points; the others are above


def write_tuning_page(plan, results, counts, seconds):
    """Write the page as Markdown, and its plots into a folder of the same name beside it.

    results: {run: [figures of each seed]}; runs that are missing are left out. counts: what `make_tuning_data` gave.
    """
    path = Path(plan.settings.docs)
    folder = path.with_suffix("")
    add_shares_of_full(plan, results)
    lines = ["# Ways to tune, compared / 微调方法比较", "", tuning_head(plan, results, counts, seconds), ""]
    lines += [claims_table(TUNING_EXPERIMENTS, results), ""]
    save_plot(draw_methods(results), folder / "methods.png")
    lines += [f"![Quality over trained parameters]({folder.name}/methods.png)", ""]
    for experiment in TUNING_EXPERIMENTS:
        lines += [
            f'<a id="{experiment.name}"></a>', "", f"## {experiment.title} / {experiment.title_zh}", "",
            experiment.about, "", experiment.about_zh, "",
        ]  # fmt: skip
        if experiment.name in EXTRAS:
            lines += EXTRAS[experiment.name](results, folder)
        lines += [experiment_table(experiment, results), "", *verdict_lines(experiment, results), ""]
    for svg in folder.glob("*.svg"):  # the page shows the PNG files
        svg.unlink()
    write_atomic(path, lambda file: file.write(("\n".join(lines).rstrip() + "\n").encode()))


def tuning_head(plan, results, counts, seconds):
    """Text at the head of the page: the command, the data, the machine, and what is missing."""
    settings, default = plan.settings, TuningPageSettings().to_dict()
    changed = {name: value for name, value in settings.to_dict().items() if value != default[name]}
    for name in ("docs", "out_dir", "workers"):
        changed.pop(name, None)
    planned = {(run.name, seed) for run in plan.runs.values() for seed in settings.seeds[: None if run.repeated else 1]}
    made = {(name, seed) for name, each in results.items() for seed in settings.seeds[: len(each)]}
    missing = sorted(f"{name} (seed {seed})" for name, seed in planned - made)
    base = results[BASE_RUN][0]
    return TUNING_HEAD.read_text(encoding="utf-8").format(
        settings=settings, counts=counts, minutes=seconds / 60, n_seeds=len(settings.seeds),
        base_parameters=base["parameters"],
        command=" ".join(["python experiments/run.py tuning", *to_flags(changed)]),
        seeds=", ".join(map(str, settings.seeds)),
        missing=f"Not made: {', '.join(missing)}.\n\n" if missing else "",
        perplexities=", ".join(f"{value:.1f} ({share_name(float(share))})" for share, value in
                               sorted(base["perplexities"].items(), key=lambda item: float(item[0]))),
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    )  # fmt: skip


def add_shares_of_full(plan, results):
    """Add `of_full` to the figures of the tunings: quality over that of full tuning from the same base, on the same
    rows, with the same seed."""
    for name, each in results.items():
        run = plan.runs[name]
        ending = name.removeprefix(f"{run.task}_{run.method}")
        for figures, full in zip(each, results.get(f"{run.task}_full{ending}", []), strict=False):
            if full["quality"]:
                figures["of_full"] = figures["quality"] / full["quality"]


def values_of(results, name, column=QUALITY):
    """(seeds,) of a column of a run; (0,) where the run is missing."""
    return column_values(column, results.get(name, []))


# Quality over trained parameters


def draw_methods(results):
    """Figure with a panel for each task: quality over trained parameters, a point for the mean of each method and the
    range of its seeds; LoRA's ranks are joined; few-shot is a line across."""
    figure, panels = plt.subplots(1, len(TUNED_TASKS), figsize=(5.2 * len(TUNED_TASKS), 4.6))
    for panel, task in zip(panels, TUNED_TASKS, strict=True):
        draw_task(panel, task, results)
        panel.set(title=TASK_TITLES[task], xlabel="trained parameters", xscale="log", ylim=(-0.08, 1.08))
    panels[0].set_ylabel("held-out, right")
    return figure


def draw_task(panel, task, results):
    """Draw a task's panel of `draw_methods`."""
    points = {}
    for method in TUNING_METHODS:
        name = f"{task}_{method}"
        if name in results:
            quality, size = values_of(results, name), results[name][0]["parameters"]
            points[method] = size, quality.mean()
            error = [[quality.mean() - quality.min()], [quality.max() - quality.mean()]]
            style = {"color": COLOUR_OF[method], "marker": "s" if method in SQUARES else "o"}
            panel.errorbar(*points[method], yerr=error, markersize=4, capsize=3, **style)
            panel.annotate(method.replace("lora_", "r"), points[method], (0, LABEL_HEIGHTS.get(method, 6)),
                           textcoords="offset points", ha="center", fontsize=7, color=COLOUR_OF[method])  # fmt: skip
    lora = [points[f"lora_{rank}"] for rank in LORA_RANKS if f"lora_{rank}" in points]
    panel.plot(*zip(*lora, strict=True), color=COLOUR_OF["lora_8"], lw=1, alpha=0.7)
    few = values_of(results, f"{task}_{FEW_SHOT}")
    if len(few):
        panel.axhline(few.mean(), color=COLOUR_OF[FEW_SHOT], ls="--", lw=1)
        panel.annotate("few-shot", (0.3, few.mean()), (0, 3), xycoords=("axes fraction", "data"),
                       textcoords="offset points", fontsize=7, color=COLOUR_OF[FEW_SHOT])  # fmt: skip


# Sweeps


def sweep_lines(results, methods, endings, heads, column):
    """Markdown table of a column: a line for each method, a column for each ending of the runs' names."""
    rows = []
    for method in methods:
        names = [f"questions_{method}{ending}" for ending in endings]
        if any(name in results for name in names):
            rows.append([method, *(format_mean(values_of(results, name, column), column.digits) for name in names)])
    return markdown_table([column.title, *heads], rows)


def draw_methods_over(panel, results, methods, x, endings, column):
    """Draw a line for each method: a column over x, with the range of the seeds that all points have."""
    for method in methods:
        names = [f"questions_{method}{ending}" for ending in endings]
        values = [values_of(results, name, column) for name in names]
        if all(len(each) for each in values):
            count = min(map(len, values))
            draw_range(panel, x, np.array([each[:count] for each in values]).T, method, COLOUR_OF[method])
            panel.lines[-1].set_linestyle("--" if method in SQUARES else "-")
    panel.set(xscale="log", ylabel=column.title)
    panel.set_xticks(x, [share_name(share) for share in x])
    panel.minorticks_off()


def sweep_section(results, folder, name, methods, shares, endings, columns, xlabel):
    """Markdown lines with the plot and a table for each column of a sweep."""
    figure, panels = plt.subplots(1, len(columns), figsize=(1 + 5 * len(columns), 4), squeeze=False)
    for panel, column in zip(panels[0], columns, strict=True):
        draw_methods_over(panel, results, methods, shares, endings, column)
        panel.set_xlabel(xlabel)
    panels[0, 0].legend(fontsize=7)
    save_plot(figure, folder / f"{name}.png")
    heads = [share_name(share) for share in shares]
    lines = [f"![{name}]({folder.name}/{name}.png)", ""]
    for column in columns:
        lines += [sweep_lines(results, methods, endings, heads, column), ""]
    return lines


def bases_section(results, folder):
    """Markdown lines of the bases after shares of pretraining, with a plot."""
    endings = [*(f"_base{share_name(share)}" for share in BASE_SHARES), ""]
    columns = [QUALITY, TUNING_COLUMNS["of_full"]]
    methods = [*SWEPT_METHODS, FEW_SHOT]
    return sweep_section(results, folder, "bases", methods, [*BASE_SHARES, 1.0], endings, columns, "pretraining")


def amounts_section(results, folder):
    """Markdown lines of the shares of the questions, with a plot."""
    endings = [*(f"_of{share_name(share)}" for share in QUESTION_SHARES), ""]
    columns = [QUALITY, TUNING_COLUMNS["gap"]]
    return sweep_section(results, folder, "amounts", SWEPT_METHODS, [*QUESTION_SHARES, 1.0], endings, columns,
                         "training questions")  # fmt: skip


def rates_section(results, folder):
    """Markdown lines of other learning rates, with a plot."""
    low, high = RATE_FACTORS
    endings = [f"_rate{share_name(low)}", "", f"_rate{share_name(high)}"]
    methods = ["full_adamw", *SWEPT_METHODS]
    return sweep_section(results, folder, "rates", methods, [low, 1.0, high], endings, [QUALITY], "of the rate")


# Ranks


def ranks_section(results, folder):
    """Markdown lines of the rank of full tuning's changes, with the plot beside quality over LoRA's rank."""
    save_plot(draw_ranks(results), folder / "ranks.png")
    lines = [f"![Quality over LoRA's rank, and singular values]({folder.name}/ranks.png)", ""]
    heads = ["matrix", "rank"]
    methods = [method for method in FULL_METHODS if f"questions_{method}" in results]
    for method in methods:
        heads += [f"{FULL_METHODS[method]}: effective", "stable", "for 90%", "change, relative"]
    first = results["questions_full"][0]["singular"]
    rows = []
    for matrix in first:
        cells = [short_matrix(matrix), str(first[matrix]["rank"])]
        for method in methods:
            found = [figures["singular"][matrix] for figures in results[f"questions_{method}"]]
            for key, digits in (("effective_rank", 1), ("stable_rank", 1), ("energy_rank", 0), ("relative", 4)):
                cells.append(format_mean(np.array([each[key] for each in found], dtype=np.float64), digits))
        rows.append(cells)
    return [*lines, markdown_table(heads, rows), ""]


def short_matrix(name):
    """A matrix's name of Hugging Face's in short: "0 q_proj" of layer 0, or "embed_tokens"."""
    parts = name.removesuffix(".weight").split(".")
    layers = [part for part in parts if part.isdigit()]
    return " ".join([*layers, parts[-1]])


def draw_ranks(results):
    """Figure: quality over LoRA's rank for each task, with full tuning's as a line across, and the singular values of
    the changes under full tuning, a panel for each optimizer."""
    methods = [method for method in FULL_METHODS if f"questions_{method}" in results]
    figure, panels = plt.subplots(1, 1 + len(methods), figsize=(5 * (1 + len(methods)), 4))
    for task, colour in zip(TUNED_TASKS, COLOURS, strict=False):
        ranks = [rank for rank in LORA_RANKS if f"{task}_lora_{rank}" in results]
        means = [values_of(results, f"{task}_lora_{rank}").mean() for rank in ranks]
        panels[0].plot(ranks, means, color=colour, marker="o", markersize=3, label=TASK_TITLES[task])
        panels[0].axhline(values_of(results, f"{task}_full").mean(), color=colour, ls="--", lw=1)
    panels[0].set_xscale("log", base=2)
    panels[0].set_xticks(LORA_RANKS, [str(rank) for rank in LORA_RANKS])
    panels[0].set(
        title="LoRA (dashed: full tuning)", xlabel="rank", ylabel="held-out, right", xlim=(0.8, 80), ylim=(0, 1.03)
    )
    panels[0].legend(fontsize=7)
    for panel, method in zip(panels[1:], methods, strict=True):
        for number, (matrix, figures) in enumerate(results[f"questions_{method}"][0]["singular"].items()):
            if "values" in figures:
                style = {"color": COLOURS[number % len(COLOURS)], "ls": "-" if number < len(COLOURS) else "--"}
                panel.plot(range(1, 1 + len(figures["values"])), figures["values"], lw=1, label=short_matrix(matrix),
                           **style)  # fmt: skip
        panel.set(title=f"changes under full tuning, {FULL_METHODS[method]}", xlabel="singular value number",
                  ylabel="over the largest", xscale="log", yscale="log", ylim=(1e-3, 1.2))  # fmt: skip
    panels[-1].legend(fontsize=6, ncols=2)
    return figure


# Forgetting


def replay_section(results, folder):
    """Markdown lines of forgetting with pretraining rows mixed in, with a plot."""
    endings = ["", *(f"_replay{share_name(share)}" for share in REPLAY_SHARES)]
    base = results[BASE_RUN][0]["perplexity"]
    figure, panels = plt.subplots(1, 2, figsize=(10, 4))
    for panel, column in zip(panels, (TUNING_COLUMNS["perplexity"], QUALITY), strict=True):
        for method in REPLAYED:
            values = [values_of(results, f"questions_{method}{ending}", column) for ending in endings]
            found = [(share, each) for share, each in zip([0.0, *REPLAY_SHARES], values, strict=True) if len(each)]
            count = min((len(each) for _, each in found), default=0)
            series = np.array([each[:count] for _, each in found]).T
            if count:
                draw_range(panel, [share for share, _ in found], series, method, COLOUR_OF[method])
        panel.set(xlabel="replay_share", ylabel=column.title)
    panels[0].axhline(base, color=COLOUR_OF[FEW_SHOT], ls="--", lw=1, label="the base")
    panels[0].legend(fontsize=7)
    panels[1].set_ylim(0, 1)
    save_plot(figure, folder / "replay.png")
    return [
        f"![Forgetting]({folder.name}/replay.png)",
        "",
        f"The base has perplexity {base:.1f} / 底座：{base:.1f}",
        "",
    ]


EXTRAS = {
    "bases": bases_section, "amounts": amounts_section, "rates": rates_section, "ranks": ranks_section,
    "replay": replay_section,
}  # fmt: skip
