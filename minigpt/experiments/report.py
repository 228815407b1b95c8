"""Writes the page of the experiments: tables of means over seeds, plots, and whether each claim holds."""

from pathlib import Path

import numpy as np

from minigpt.common.files import write_atomic
from minigpt.evaluation.plots import COLOURS, plt, save_plot
from minigpt.evaluation.tables import markdown_table
from minigpt.experiments.claims import COLUMNS, column_values, judge_claim

SAID = {
    True: ("every seed says so", "每个种子都如此"),
    False: ("every seed says the opposite", "每个种子都相反"),
    None: ("the seeds do not agree", "各种子不一致"),
}
AGREES = {
    ("report", True): ("as the report found", "与报告一致"),
    ("report", False): ("not as the report found", "与报告不一致"),
    ("report", None): ("does not settle what the report found", "不足以判断报告的结论"),
    ("lectures", True): ("as the lectures say", "与课上所说一致"),
    ("lectures", False): ("not as the lectures say", "与课上所说不一致"),
    ("lectures", None): ("does not settle what the lectures say", "不足以判断课上所说"),
    ("seen", True): ("seen here, not foretold", "此处所见，事先未料"),
    ("seen", False): ("the opposite is seen here", "此处所见相反"),
    ("seen", None): ("open", "未定"),
    ("expected", True): ("as expected", "符合预期"),
    ("expected", False): ("not as expected", "不符合预期"),
    ("expected", None): ("open", "未定"),
}
PANELS_IN_A_ROW = 4
# Shown over the epochs of fine-tuning.
KNOWN_COLUMNS = [COLUMNS[k] for k in ("trained_match", "never_asked_match", "never_seen_match", "number_accuracy")]


def format_mean(values, digits):
    """Text "mean ± standard deviation" of values (seeds,)."""
    if not len(values):
        return "–"
    mean = f"{values.mean():.{digits}f}"
    return f"{mean} ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else mean


def experiment_table(experiment, results):
    """Markdown table with a line for each run of an experiment."""
    names = ["run", *(column.title for column in experiment.columns)]
    rows = [
        [name, *(format_mean(column_values(column, results[name]), column.digits) for column in experiment.columns)]
        for name in experiment.runs
        if name in results
    ]
    return markdown_table(names, rows)


def verdicts_of(experiment, results):
    """The `Verdict`s on an experiment's claims, of those whose runs and figures there are."""
    known = [claim for claim in experiment.claims if {claim.better, claim.worse} <= set(results)]
    verdicts = [judge_claim(claim, results) for claim in known]
    return [verdict for verdict in verdicts if len(verdict.differences)]


def verdict_lines(experiment, results):
    """Markdown list items, one for each claim, with its figures."""
    for verdict in verdicts_of(experiment, results):
        claim, count = verdict.claim, len(verdict.differences)
        said, agrees = SAID[verdict.holds], AGREES[claim.source, verdict.holds]
        digits, share = claim.column.digits, "" if claim.share == 1 else f"{claim.share:g} of "
        error = f" (standard error {verdict.standard_error:.{digits}f})" if count > 1 else ""
        better = (
            f"better by {verdict.differences.mean():.{digits}f}{error}, in {verdict.seeds_in_favour} of {count} seeds"
        )
        yield (
            f"- **{claim.text}: {said[0]}, {agrees[0]}.** `{claim.better}` against {share}`{claim.worse}`, "
            f"{claim.column.title}: {better}.  \n"
            f"  {claim.text_zh}：{said[1]}，{agrees[1]}。"
        )


def claims_table(experiments, results):
    """Markdown table of all claims."""
    rows = []
    for experiment in experiments:
        for verdict in verdicts_of(experiment, results):
            claim, count = verdict.claim, len(verdict.differences)
            mean = f"{verdict.differences.mean():.{claim.column.digits}f}"
            words = f"{AGREES[claim.source, verdict.holds][0]} / {AGREES[claim.source, verdict.holds][1]}"
            link = f"[{experiment.title}](#{experiment.name})"
            rows.append([link, claim.text, words, claim.column.title, mean, f"{verdict.seeds_in_favour} of {count}"])
    return markdown_table(["experiment", "claim", "what it comes to", "figure", "better by", "seeds"], rows, left=4)


def draw_bars(experiment, results):
    """Figure with a panel for each column: a bar for the mean of each run, and a dot for each seed."""
    columns = [c for c in experiment.columns if any(len(column_values(c, results[name])) for name in experiment.runs)]
    lines = -(-len(columns) // PANELS_IN_A_ROW)
    figure, panels = plt.subplots(lines, PANELS_IN_A_ROW, figsize=(2.9 * PANELS_IN_A_ROW, 3.2 * lines), squeeze=False)
    for panel in panels.flat[len(columns) :]:
        panel.set_axis_off()
    for panel, column in zip(panels.flat, columns, strict=False):
        names = [name for name in experiment.runs if len(column_values(column, results[name]))]
        for i, name in enumerate(names):
            values = column_values(column, results[name])
            colour = COLOURS[experiment.runs.index(name) % len(COLOURS)]
            panel.bar(i, values.mean(), color=colour, alpha=0.6, width=0.7)
            panel.plot(np.full(len(values), i), values, "k.", markersize=4)
        panel.set_xticks(range(len(names)), [name.replace("tuned_", "tuned:\n") for name in names], fontsize=7)
        panel.tick_params(axis="x", rotation=30)
        panel.set_title(column.title.replace(", ", ",\n"), fontsize=8)
        panel.tick_params(axis="y", labelsize=7)
        panel.set_ylim(0, 1 if "." in column.path else None)  # figures of answers are shares
        panel.grid(axis="y", alpha=0.3)
    return figure


def draw_range(panel, x, series, label, colour):
    """Draw a line through the means of series (seeds, points), and the range of the seeds around it."""
    series = np.array(series, dtype=np.float64)
    panel.plot(x, series.mean(axis=0), color=colour, marker="o", markersize=3, label=label)
    panel.fill_between(x, series.min(axis=0), series.max(axis=0), color=colour, alpha=0.15)


def draw_epochs(results):
    """Figure over the epochs of long training: losses of pretraining, and answers during fine-tuning."""
    figure, (losses, known, hot) = plt.subplots(1, 3, figsize=(13, 3.8))
    curves = [figures["curve"] for figures in results["pretrained_long"]]
    epochs = [line["epoch"] for line in curves[0]]
    for key, label, colour in (("train_loss", "training", COLOURS[0]), ("val_loss", "validation", COLOURS[5])):
        draw_range(losses, epochs, [[line[key] for line in curve] for curve in curves], label, colour)
    losses.set(title="pretraining", xlabel="epoch", ylabel="loss (nats a token)")
    tuned = [figures["epochs"] for figures in results["tuned_long"]]
    epochs = [at["epoch"] for at in tuned[0]]
    for column, colour in zip(KNOWN_COLUMNS, COLOURS, strict=False):
        draw_range(known, epochs, [[column.value(at) for at in seed] for seed in tuned], column.title, colour)
    known.set(title="fine-tuning: what it knows", xlabel="epoch", ylabel="share right", ylim=(0, 1))
    for name, colour in (("trained", COLOURS[0]), ("never_asked", COLOURS[1])):
        series = [[at[name]["changed_by_heat"] for at in seed] for seed in tuned]
        draw_range(hot, epochs, series, name.replace("_", " "), colour)
    hot.set(title="answers that temperature 1.5 changes", xlabel="epoch", ylabel="share of answers", ylim=(0, 1))
    for panel in (losses, known, hot):
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    return figure


def epochs_table(results):
    """Markdown table of long fine-tuning, a line for each epoch: means over seeds."""
    tuned = [figures["epochs"] for figures in results["tuned_long"]]
    names = ["epoch", *(column.title for column in KNOWN_COLUMNS)]
    names += ["perplexity, never asked", "trained: changed by temperature 1.5", "trained: right at temperature 1.5"]
    rows = []
    for at in zip(*tuned, strict=True):
        values = [[column.value(figures) for column in KNOWN_COLUMNS] for figures in at]
        for row, figures in zip(values, at, strict=True):
            row += [figures["perplexity"], figures["trained"]["changed_by_heat"], figures["trained"]["exact_match_hot"]]
        rows.append([str(round(at[0]["epoch"], 1)), *(f"{mean:.3f}" for mean in np.mean(values, axis=0))])
    return markdown_table(names, rows)


def experiment_section(experiment, results, folder):
    """Markdown lines of one experiment. Its plots are written to the folder."""
    save_plot(draw_bars(experiment, results), folder / f"{experiment.name}.png")
    lines = [
        f'<a id="{experiment.name}"></a>', "", f"## {experiment.title} / {experiment.title_zh}", "", experiment.about,
        "", experiment.about_zh, "", "```", f"python experiments/run.py {experiment.name}", "```", "",
        experiment_table(experiment, results), "", f"![{experiment.title}]({folder.name}/{experiment.name}.png)", "",
        *verdict_lines(experiment, results), "",
    ]  # fmt: skip
    if experiment.name == "overfitting":
        save_plot(draw_epochs(results), folder / "epochs.png")
        lines += [f"![by epoch]({folder.name}/epochs.png)", "", epochs_table(results), ""]
    return lines


def write_page(path, experiments, results, about):
    """Write the page as Markdown, and its plots into a folder of the same name beside it. about: text at its head."""
    path = Path(path)
    folder = path.with_suffix("")
    lines = ["# Experiments / 实验", "", about, claims_table(experiments, results), ""]
    for experiment in experiments:
        lines += experiment_section(experiment, results, folder)
    for svg in folder.glob("*.svg"):  # the page shows the PNG files
        svg.unlink()
    write_atomic(path, lambda file: file.write(("\n".join(lines).rstrip() + "\n").encode()))
