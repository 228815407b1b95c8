"""Writes the page of the experiments: tables of means over seeds, plots, and whether each claim holds.

The page can be renewed in parts: an experiment has a section, behind an anchor with its name, and rows in the table of
claims, which name the anchor.
"""

import math
import re
from pathlib import Path

import numpy as np

from minigpt.common.errors import UserError
from minigpt.common.files import write_atomic
from minigpt.evaluation.plots import COLOURS, plt, save_plot
from minigpt.evaluation.tables import markdown_table
from minigpt.experiments.claims import COLUMNS, EXPERIMENTS, column_values, judge_claim
from minigpt.experiments.curves import CHARACTER_CLASSES, TARGET_LOSS

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
PAGE_TITLE = "# Experiments / 实验"
ANCHOR = re.compile(r'^<a id="(\w+)"></a>$', re.MULTILINE)
CLAIMS_HEADS = ("experiment", "claim", "what it comes to", "figure", "better by", "seeds")
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
        digits, seeds = claim.column.digits, f"in {verdict.seeds_in_favour} of {count} seeds"
        error = f" (standard error {verdict.standard_error:.{digits}f})" if count > 1 else ""
        mean = f"{verdict.differences.mean():.{digits}f}{error}"
        came = f"better by {mean}" if claim.within is None else f"{mean} apart, at most {claim.within:g} allowed"
        yield (
            f"- **{claim.text}: {said[0]}, {agrees[0]}.** {compared_text(claim)}: {came}, {seeds}.  \n"
            f"  {claim.text_zh}：{said[1]}，{agrees[1]}。"
        )


def compared_text(claim):
    """The two figures that a claim compares, in words."""
    share = "" if claim.share == 1 else f"{claim.share:g} of "
    if not claim.share:
        return f"`{claim.better}`, {claim.column.title}, against 0"
    if claim.against:
        other = "" if claim.worse == claim.better else f" of `{claim.worse}`"
        return f"`{claim.better}`, {claim.column.title} against {share}{claim.against.title}{other}"
    return f"`{claim.better}` against {share}`{claim.worse}`, {claim.column.title}"


def claims_table(experiments, results):
    """Markdown table of all claims."""
    rows = []
    for experiment in experiments:
        for verdict in verdicts_of(experiment, results):
            claim, count = verdict.claim, len(verdict.differences)
            mean = f"{verdict.differences.mean():.{claim.column.digits}f}"
            mean += "" if claim.within is None else f" apart (≤ {claim.within:g})"
            words = f"{AGREES[claim.source, verdict.holds][0]} / {AGREES[claim.source, verdict.holds][1]}"
            link = f"[{experiment.title}](#{experiment.name})"
            rows.append([link, claim.text, words, claim.column.title, mean, f"{verdict.seeds_in_favour} of {count}"])
    return markdown_table(CLAIMS_HEADS, rows, left=4)


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
        panel.set_ylim(0, 1 if column.share else None)
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


# Curves of losses


def draw_loss(panel, runs, key, x, label, colour):
    """Draw a loss (`key` of a run's curve) over x, the mean of a run's seeds and their range."""
    curves = [figures["curve"] for figures in runs]
    draw_range(
        panel, [line[x] for line in curves[0]], [[line[key] for line in curve] for curve in curves], label, colour
    )
    panel.grid(alpha=0.3)
    panel.legend(fontsize=7)


def draw_rebound(experiment, results):
    """Figure of the validation losses in the first epoch of fine-tuning: all of it, and its beginning."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4))
    for panel, end in zip(panels, (1.0, 0.3), strict=True):
        for name, colour in zip(experiment.runs, COLOURS, strict=False):
            draw_loss(panel, results[name], "val_loss", "epoch", name, colour)
        panel.set(xlabel="epoch", ylabel="validation loss (nats a token)", xlim=(0, end * 1.02))
    return figure


def draw_falls(experiment, results):
    """Figure with a panel for each run: its training and its validation loss."""
    figure, panels = plt.subplots(1, len(experiment.runs), figsize=(4 * len(experiment.runs), 3.6))
    for panel, name in zip(panels, experiment.runs, strict=True):
        draw_loss(panel, results[name], "train_loss", "epoch", "training", COLOURS[0])
        draw_loss(panel, results[name], "val_loss", "epoch", "validation", COLOURS[5])
        panel.set(title=name, xlabel="epoch")
    panels[0].set_ylabel("loss (nats a token)")
    return figure


def draw_shortens(experiment, results):
    """Figure of the validation losses of fine-tuning after more and less pretraining."""
    figure, panel = plt.subplots(figsize=(7, 4))
    for name, colour in zip(experiment.runs, COLOURS, strict=False):
        draw_loss(panel, results[name], "val_loss", "step", name, colour)
    panel.axhline(TARGET_LOSS, color="k", lw=0.8, ls=":")
    panel.set(xlabel="step of fine-tuning", ylabel="validation loss (nats a token)", ylim=(0, None))
    return figure


def draw_digits(experiment, results):
    """Figure of the bits a character by kind of character over the steps of pretraining."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    (name,) = experiment.runs
    for panel, part, title in zip(panels, ("train", "val"), ("training articles", "subjects never seen"), strict=True):
        seeds = [figures["characters"][part] for figures in results[name]]
        steps = [line["step"] for line in seeds[0]]
        for kind, colour in zip(CHARACTER_CLASSES, COLOURS, strict=False):
            if kind in seeds[0][0]:
                draw_range(panel, steps, [[line[kind] for line in seed] for seed in seeds], kind, colour)
        panel.set(title=title, xlabel="step")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    panels[0].set_ylabel("bits a character")
    return figure


CURVES = {"rebound": draw_rebound, "falls": draw_falls, "shortens": draw_shortens, "digits": draw_digits}


def prompts_table(results):
    """Markdown table of the corrections asked for in six ways, after short and long training."""
    runs = ("corrected_short", "corrected_long")
    names = ["system prompt", "examples"]
    names += [f"{run}: {what}" for run in runs for what in ("to change, right", "to keep, right")]
    names.append("prompts cut, too long for the block")
    rows = []
    for number, first in enumerate(results[runs[0]][0]["prompts"]):
        row = ["none / 无" if first["system"] == "none" else "the default / 默认", str(first["shots"])]
        for run in runs:
            for key in ("to_change", "to_keep"):
                found = [figures["prompts"][number][key] for figures in results[run]]
                row.append(format_mean(np.array([value for value in found if value is not None]), 3))
        row.append(f"{np.mean([figures['prompts'][number]['cut'] for figures in results[runs[0]]]):.2f}")
        rows.append(row)
    return markdown_table(names, rows)


# The page


def cost_line(names, results, machine):
    """What the runs of those names took, in English and Chinese; "" where the system does not say it (Windows)."""
    seconds = sum(figures.get("cpu_seconds", math.nan) for name in names for figures in results[name])
    if math.isnan(seconds):
        return ""
    return (
        f"{seconds / 60:.0f} CPU minutes on {machine}, runs that other sections share included. / "
        f"共 {seconds / 60:.0f} 分钟 CPU 时间（{machine}），含与其他小节共用的训练。"
    )


def experiment_section(experiment, results, folder, cost=""):
    """Markdown lines of one experiment. Its plots are written to the folder. cost: what `cost_line` says, or ""."""
    save_plot(CURVES.get(experiment.name, draw_bars)(experiment, results), folder / f"{experiment.name}.png")
    lines = [
        f'<a id="{experiment.name}"></a>', "", f"## {experiment.title} / {experiment.title_zh}", "", experiment.about,
        "", experiment.about_zh, "", "```", f"python experiments/run.py {experiment.name}", "```", "",
        *([cost, ""] if cost else []), experiment_table(experiment, results), "",
        f"![{experiment.title}]({folder.name}/{experiment.name}.png)", "", *verdict_lines(experiment, results), "",
    ]  # fmt: skip
    if experiment.name == "overfitting":
        save_plot(draw_epochs(results), folder / "epochs.png")
        lines += [f"![by epoch]({folder.name}/epochs.png)", "", epochs_table(results), ""]
    if experiment.name == "correction":
        lines += [prompts_table(results), ""]
    return lines


def write_page(path, experiments, results, about, costs=None, kept=None):
    """Write the page as Markdown, and its plots into a folder of the same name beside it.

    about: text at its head; costs: {experiment: `cost_line`}. kept: ({experiment: rows of the table of claims},
    {experiment: section}) of the experiments that stay as they are, of a page that `read_page` has read.
    """
    path = Path(path)
    folder = path.with_suffix("")
    rows, sections = kept or ({}, {})
    rows, sections = dict(rows), dict(sections)
    for experiment in experiments:
        table = claims_table([experiment], results).splitlines()
        rows[experiment.name] = table[2:]
        lines = experiment_section(experiment, results, folder, (costs or {}).get(experiment.name, ""))
        sections[experiment.name] = "\n".join(lines).rstrip() + "\n"
    known = [experiment.name for experiment in EXPERIMENTS if experiment.name in sections]
    heads = markdown_table(CLAIMS_HEADS, [], left=4)
    table = "\n".join([heads, *(row for name in known for row in rows.get(name, []))])
    text = "\n".join([PAGE_TITLE, "", about.rstrip("\n"), "", table, "", *(sections[name] for name in known)])
    for svg in folder.glob("*.svg"):  # the page shows the PNG files
        svg.unlink()
    write_atomic(path, lambda file: file.write((text.rstrip() + "\n").encode()))


def read_page(path):
    """(text at the head, rows of the table of claims by experiment, sections by experiment) of a page.

    Raises UserError where the file is none.
    """
    text = Path(path).read_text(encoding="utf-8")
    before, *parts = ANCHOR.split(text)
    head, table, rest = before.partition(markdown_table(CLAIMS_HEADS, [], left=4))
    if not head.startswith(PAGE_TITLE) or not table:
        raise UserError(f"{path} is no page of the experiments; write it anew without a name, or name another --docs=…")
    rows = {}
    for line in rest.strip().splitlines():
        rows.setdefault(re.search(r"\(#(\w+)\)", line)[1], []).append(line)
    sections = {
        name: f'<a id="{name}"></a>{body}'.rstrip() + "\n" for name, body in zip(parts[::2], parts[1::2], strict=True)
    }
    return head.removeprefix(PAGE_TITLE).strip("\n") + "\n", rows, sections
