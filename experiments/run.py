"""The report's comparisons, repeated small: each trains its runs with three seeds and tests what the report claims.

    python experiments/run.py                        # all of them, and docs/experiments.md: 100 minutes on two cores
    python experiments/run.py order layout           # some of them: printed, and renewed on the page
    python experiments/run.py tuning                 # the methods of tuning, and docs/tuning.md: an hour on two cores
    python experiments/run.py --input_dir=my_wiki --qa_files=my_qa.jsonl --articles=my_wiki --docs=my_experiments.md

A run that several comparisons need is made once. Results stay in out_dir, so the same command continues after a stop;
a run is made anew when its settings, its data or the code that makes it has changed. `--help` lists the settings and
the experiments.
"""

import os
import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.common.files import PROJECT, write_json
from minigpt.experiments import build, data
from minigpt.experiments.claims import EXPERIMENTS
from minigpt.experiments.plan import Plan
from minigpt.experiments.report import cost_line, experiment_table, read_page, verdict_lines, write_page
from minigpt.experiments.results import read_figures, to_flags
from minigpt.experiments.tuning_data import make_tuning_data
from minigpt.experiments.tuning_plan import TuningPlan
from minigpt.experiments.tuning_report import write_tuning_page
from minigpt.settings.parse import help_text, load_settings
from minigpt.settings.stages import ExperimentSettings, TuningPageSettings

TUNING = "tuning"
TUNING_HELP = (
    "`python experiments/run.py tuning` compares the methods of tuning (tuning --help has its settings) 微调方法比较"
)
PAGE_HEAD = PROJECT / "minigpt/experiments/page_head.md"


def page_command(settings):
    """The command that makes a page with those settings."""
    default = ExperimentSettings().to_dict()
    changed = {name: value for name, value in settings.to_dict().items() if value != default[name]}
    for name in ("docs", "out_dir", "workers"):
        changed.pop(name, None)
    return " ".join(["python experiments/run.py", *to_flags(changed)])


def machine_text():
    """The machine in words."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def page_head(plan, counts, seconds):
    """Text at the head of the page: the command, the models, the data, the machine."""
    settings = plan.settings
    return PAGE_HEAD.read_text(encoding="utf-8").format(
        settings=settings, counts=counts, questions_per_set=data.QUESTIONS_PER_SET, minutes=seconds / 60,
        command=page_command(settings), machine=machine_text(),
        files=", ".join(f"`{Path(f).name}`" for f in settings.input_dir),
        n_seeds=len(settings.seeds), seeds=", ".join(map(str, settings.seeds)),
    )  # fmt: skip


def experiments_help():
    """The part of --help that lists the experiments."""
    width = max(len(experiment.name) for experiment in EXPERIMENTS)
    lines = [f"  {experiment.name:{width}}  {experiment.title} {experiment.title_zh}" for experiment in EXPERIMENTS]
    head = "experiments, named as in `python experiments/run.py order layout`; without a name, all of them:"
    return "\n".join([head, *lines, "", f"by its name alone: {TUNING_HELP}"])


def compare_tuning(arguments):
    """The comparison of tuning methods, from its data to its page. arguments: of the command line."""
    settings = load_settings(TuningPageSettings, arguments)
    plan, started = TuningPlan(settings), time.perf_counter()
    if not plan.has_bitsandbytes:
        print("qlora is left out: it needs bitsandbytes (pip install bitsandbytes)")
    counts = make_tuning_data(plan)
    workers = settings.workers or os.cpu_count()
    results = build.run_all(plan, [], settings.seeds, workers, max(1, os.cpu_count() // workers))
    total_seconds = add_seconds(plan, time.perf_counter() - started)
    write_tuning_page(plan, results, counts, total_seconds)
    print(f"\nwritten: {settings.docs}")


def main():
    names = [a for a in sys.argv[1:] if not a.startswith("-") and not a.endswith(".py")]
    asks_help = {"--help", "-h"} & set(sys.argv[1:])
    if TUNING in names:
        if others := [name for name in names if name != TUNING]:
            raise UserError(f"{TUNING} has a page and settings of its own; ask for {others[0]} in another command")
        compare_tuning([a for a in sys.argv[1:] if a != TUNING])
        return
    if asks_help:
        print(help_text(ExperimentSettings) + "\n\n" + experiments_help())
        return
    settings = load_settings(ExperimentSettings, [a for a in sys.argv[1:] if a not in names])
    known = [e.name for e in EXPERIMENTS]
    if wrong := [name for name in names if name not in known]:
        raise UserError(f"no experiment {wrong[0]!r}; there are {', '.join(known)}")
    plan, seeds = Plan(settings), settings.seeds
    workers = settings.workers or os.cpu_count()
    started = time.perf_counter()
    selected = [experiment for experiment in EXPERIMENTS if not names or experiment.name in names]
    # Data first: questions, the tokenizer, and the rows of all runs.
    counts = data.write_questions(plan)
    tokenizer_spec = data.make_tokenizer(plan, data.hash_sources(settings))
    needed = plan.needed([name for experiment in selected for name in experiment.runs])
    for rows in dict.fromkeys(["plain", *(run.rows for run in needed)]):
        data.prepare_rows(plan, plan.rows[rows], tokenizer_spec)
    threads = max(1, os.cpu_count() // workers)
    results = build.run_all(plan, [run.name for run in needed], seeds, workers, threads)
    total_seconds = add_seconds(plan, time.perf_counter() - started)
    for experiment in selected:
        lines = [experiment.title, "", experiment_table(experiment, results), "", *verdict_lines(experiment, results)]
        print("\n" + "\n".join(lines))
    if not names:
        write_page(settings.docs, EXPERIMENTS, results, page_head(plan, counts, total_seconds))
        print(f"\nwritten: {settings.docs}")
    elif Path(settings.docs).exists():
        renew_sections(plan, selected, results)


def renew_sections(plan, selected, results):
    """Renew the sections of some experiments on a page that was made with the same settings."""
    settings = plan.settings
    head, *kept = read_page(settings.docs)
    if f"`{page_command(settings)}`" in head:
        costs = {
            each.name: cost_line([run.name for run in plan.needed(each.runs)], results, machine_text())
            for each in selected
        }
        write_page(settings.docs, selected, results, head, costs, kept)
        print(f"\nrenewed in {settings.docs}: {', '.join(each.name for each in selected)}")
    else:
        print(f"\n{settings.docs} stays as it is: it was made with other settings than {page_command(settings)}")


def add_seconds(plan, seconds):
    """Seconds of work of all calls together, this one included. They are kept in the plan's folder."""
    path = plan.folder / "seconds.json"
    seconds += read_figures(path, "seconds") or 0.0
    write_json(path, {"spec": "seconds", "figures": seconds})
    return seconds


if __name__ == "__main__":
    run_script(main)
