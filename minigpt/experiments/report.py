"""The page of the experiments: tables with seeds' spread, plots, and what each claim comes to. All of it computed."""

from pathlib import Path

import numpy as np

from minigpt.common.files import write_atomic
from minigpt.evaluation.plots import COLOURS, plt, save_plot
from minigpt.evaluation.tables import markdown_table
from minigpt.experiments.claims import ASKED, EXPERIMENTS, NUMBERS, SEEN, TRAINED, judge, values_of

SAID = {
    True: ("every seed says so", "每个种子都如此"),
    False: ("every seed says the opposite", "每个种子都相反"),
    None: ("the seeds do not agree", "各种子不一致"),
}
AGREES = {
    ("report", True): ("as the report found", "与报告一致"),
    ("report", False): ("not as the report found", "与报告不一致"),
    ("report", None): ("does not settle what the report found", "不足以判断报告的结论"),
    ("expected", True): ("as expected", "符合预期"),
    ("expected", False): ("not as expected", "不符合预期"),
    ("expected", None): ("open", "未定"),
}
PANELS = 4  # beside each other


def spread(values, digits):
    """ "mean ± standard deviation" of seeds."""
    if not len(values):
        return "–"
    mean = f"{values.mean():.{digits}f}"
    return f"{mean} ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else mean


def table(experiment, results):
    names = ["run", *(column.title for column in experiment.columns)]
    rows = [
        [name, *(spread(values_of(column, results[name]), column.digits) for column in experiment.columns)]
        for name in experiment.runs
    ]
    return markdown_table(names, rows)


def verdict_lines(experiment, results):
    """A list item for each claim, with the figures that it stands on."""
    for verdict in (judge(claim, results) for claim in experiment.claims):
        claim, count = verdict.claim, len(verdict.differences)
        said, agrees = SAID[verdict.holds], AGREES[claim.source, verdict.holds]
        digits = claim.column.digits
        sure = f" (standard error {verdict.error:.{digits}f})" if count > 1 else ""
        better = f"better by {verdict.differences.mean():.{digits}f}{sure}, in {verdict.for_it} of {count} seeds"
        yield (
            f"- **{claim.text}: {said[0]}, {agrees[0]}.** `{claim.better}` against `{claim.worse}`, "
            f"{claim.column.title}: {better}.  \n"
            f"  {claim.text_zh}：{said[1]}，{agrees[1]}。"
        )


def summary(experiments, results):
    """A table of all claims."""
    rows = []
    for experiment in experiments:
        for verdict in (judge(claim, results) for claim in experiment.claims):
            claim, count = verdict.claim, len(verdict.differences)
            mean = f"{verdict.differences.mean():.{claim.column.digits}f}"
            words = f"{AGREES[claim.source, verdict.holds][0]} / {AGREES[claim.source, verdict.holds][1]}"
            link = f"[{experiment.title}](#{experiment.name})"
            rows.append([link, claim.text, words, claim.column.title, mean, f"{verdict.for_it} of {count}"])
    return markdown_table(["experiment", "claim", "what it comes to", "figure", "better by", "seeds"], rows, left=4)


def draw_bars(experiment, results):
    """A panel a column: each run's mean over seeds as a bar, the seeds as dots."""
    columns = [c for c in experiment.columns if any(len(values_of(c, results[name])) for name in experiment.runs)]
    lines = -(-len(columns) // PANELS)
    figure, panels = plt.subplots(lines, PANELS, figsize=(2.9 * PANELS, 3.2 * lines), squeeze=False)
    for panel in panels.flat[len(columns) :]:
        panel.set_axis_off()
    for panel, column in zip(panels.flat, columns, strict=False):
        names = [name for name in experiment.runs if len(values_of(column, results[name]))]
        for i, name in enumerate(names):
            values = values_of(column, results[name])
            colour = COLOURS[experiment.runs.index(name) % len(COLOURS)]
            panel.bar(i, values.mean(), color=colour, alpha=0.6, width=0.7)
            panel.plot(np.full(len(values), i), values, "k.", markersize=4)
        panel.set_xticks(range(len(names)), [name.replace("tuned_", "tuned:\n") for name in names], fontsize=7)
        panel.tick_params(axis="x", rotation=30)
        panel.set_title(column.title.replace(", ", ",\n"), fontsize=8)
        panel.tick_params(axis="y", labelsize=7)
        panel.set_ylim(0, 1 if "." in column.path else None)  # what is told of answers are shares
        panel.grid(axis="y", alpha=0.3)
    return figure


def band(panel, x, series, label, colour):
    """A line through the means of seeds (seeds, points), with their range."""
    series = np.array(series, dtype=np.float64)
    panel.plot(x, series.mean(axis=0), color=colour, marker="o", markersize=3, label=label)
    panel.fill_between(x, series.min(axis=0), series.max(axis=0), color=colour, alpha=0.15)


def draw_epochs(results):
    """By epoch of long training: losses of pretraining, and what a model still knows in fine-tuning."""
    figure, (losses, known, hot) = plt.subplots(1, 3, figsize=(13, 3.8))
    curves = [figures["curve"] for figures in results["pretrained_long"]]
    epochs = [line["epoch"] for line in curves[0]]
    for key, label, colour in (("train_loss", "training", COLOURS[0]), ("val_loss", "validation", COLOURS[5])):
        band(losses, epochs, [[line[key] for line in curve] for curve in curves], label, colour)
    losses.set(title="pretraining", xlabel="epoch", ylabel="loss (nats a token)")
    tuned = [figures["epochs"] for figures in results["tuned_long"]]
    epochs = [at["epoch"] for at in tuned[0]]
    for column, colour in zip((TRAINED, ASKED, SEEN, NUMBERS), COLOURS, strict=False):
        band(known, epochs, [[column.of(at) for at in seed] for seed in tuned], column.title, colour)
    known.set(title="fine-tuning: what it knows", xlabel="epoch", ylabel="share right", ylim=(0, 1))
    for name, colour in (("trained", COLOURS[0]), ("never_asked", COLOURS[1])):
        series = [[at[name]["changed_by_heat"] for at in seed] for seed in tuned]
        band(hot, epochs, series, name.replace("_", " "), colour)
    hot.set(title="answers that temperature 1.5 changes", xlabel="epoch", ylabel="share of answers", ylim=(0, 1))
    for panel in (losses, known, hot):
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    return figure


def epochs_table(results):
    """Long fine-tuning, epoch by epoch, means over seeds."""
    tuned = [figures["epochs"] for figures in results["tuned_long"]]
    names = ["epoch", TRAINED.title, ASKED.title, SEEN.title, NUMBERS.title]
    names += ["perplexity, never asked", "trained: changed by temperature 1.5", "trained: right at temperature 1.5"]
    rows = []
    for at in zip(*tuned, strict=True):
        paths = [column.of for column in (TRAINED, ASKED, SEEN, NUMBERS)]
        paths += [lambda a: a["perplexity"], lambda a: a["trained"]["changed_by_heat"]]
        paths += [lambda a: a["trained"]["exact_match_hot"]]
        rows.append([str(round(at[0]["epoch"], 1)), *(f"{np.mean([path(a) for a in at]):.3f}" for path in paths)])
    return markdown_table(names, rows)


def section(experiment, results, folder):
    """Lines of one experiment; its plots go into the folder."""
    save_plot(draw_bars(experiment, results), folder / f"{experiment.name}.png")
    lines = [
        f'<a id="{experiment.name}"></a>', "", f"## {experiment.title} / {experiment.title_zh}", "", experiment.about,
        "", experiment.about_zh, "", "```", f"python experiments/run.py {experiment.name}", "```", "",
        table(experiment, results), "", f"![{experiment.title}]({folder.name}/{experiment.name}.png)", "",
        *verdict_lines(experiment, results), "",
    ]  # fmt: skip
    if experiment.name == "overfitting":
        save_plot(draw_epochs(results), folder / "epochs.png")
        lines += [f"![by epoch]({folder.name}/epochs.png)", "", epochs_table(results), ""]
    return lines


def write_page(path, experiments, results, about):
    """Write the page as Markdown, its plots into a folder of its name beside it. about: lines at its head."""
    path = Path(path)
    folder = path.with_suffix("")
    lines = ["# Experiments / 实验", "", *about, "", summary(experiments, results), ""]
    for experiment in experiments:
        lines += section(experiment, results, folder)
    for svg in folder.glob("*.svg"):  # a page needs but one of the two
        svg.unlink()
    write_atomic(path, lambda file: file.write(("\n".join(lines).rstrip() + "\n").encode()))


def chosen(names):
    """The experiments of those names; all for none."""
    return [e for e in EXPERIMENTS if not names or e.name in names]
