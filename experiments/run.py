"""The report's comparisons, repeated small: each trains its runs with three seeds and says what came of it.

    python experiments/run.py                        # all of them, and docs/experiments.md: an hour on two cores
    python experiments/run.py order layout           # some, printed
    python experiments/run.py --input_dir=my_wiki --qa_files=my_qa.jsonl --articles=my_wiki --docs=my_experiments.md

Runs that several comparisons need are made once, and what is done stays in out_dir: the same command goes on after a
stop. `--help` lists the settings and the experiments.
"""

import os
import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.common.files import write_json
from minigpt.experiments import build as making
from minigpt.experiments.claims import EXPERIMENTS
from minigpt.experiments.plan import Plan, arguments
from minigpt.experiments.report import chosen, table, verdict_lines, write_page
from minigpt.experiments.scheduling import make_all
from minigpt.settings.parse import defaults, help_text, load_settings


def head(plan, counts, seeds, seconds):
    """The lines that say what was done, and on what."""
    settings = plan.settings
    files = ", ".join(f"`{Path(f).name}`" for f in settings.input_dir)
    shape = f"{settings.n_layer} layers, width {settings.n_embd}, blocks of {settings.block_size} tokens"
    usual = defaults("experiments").to_dict()
    changed = {k: v for k, v in settings.to_dict().items() if v != usual[k] and k not in ("docs", "out_dir", "workers")}
    called = " ".join(["python experiments/run.py", *arguments(changed)])
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return [
        f"Made by `{called}`: models of {shape}, {settings.max_iters} steps of {settings.batch_size} "
        f"rows of pretraining and {settings.tune_iters} of fine-tuning, on {files}. {len(seeds)} seeds "
        f"({', '.join(map(str, seeds))}) of weights, order and batches. A figure is the mean ± standard deviation over "
        "them; dots in the plots are seeds.",
        "",
        f"Three sets of questions: {counts['trained']} that every fine-tuning is trained on; {counts['never_asked']} "
        f"on subjects that were pretrained on and never asked about; {counts['never_seen']} on subjects that nothing "
        f"was trained on. At most {making.ASKED} of each are asked, greedily. A claim holds where every seed says so. "
        "Where the report found the same, its model and data were larger, and only the direction is compared.",
        "",
        f"由 `{called}` 生成：{len(seeds)} 个种子的均值 ± 标准差。三组问题：训练过的；"
        "预训练过、但从未问过的主题；从未见过的主题。每个种子都同向才算成立。",
        "",
        f"{seconds / 60:.0f} minutes of work on {machine}.",
    ]


def numbers(texts):
    try:
        return [int(text) for text in texts]
    except ValueError:
        raise UserError(f"seeds are whole numbers, such as --seeds=1,2,3, not {', '.join(texts)}") from None


def names_text():
    """Lines that name the experiments."""
    width = max(len(experiment.name) for experiment in EXPERIMENTS)
    lines = [f"  {experiment.name:{width}}  {experiment.title} {experiment.title_zh}" for experiment in EXPERIMENTS]
    return "\n".join(
        ["experiments, named as in `python experiments/run.py order layout`; without a name, all of them:", *lines]
    )


def main():
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text("experiments") + "\n\n" + names_text())
        return
    names = [a for a in sys.argv[1:] if not a.startswith("-") and not a.endswith(".py")]
    settings = load_settings("experiments", [a for a in sys.argv[1:] if a not in names])
    known = [e.name for e in EXPERIMENTS]
    if wrong := [name for name in names if name not in known]:
        raise UserError(f"no experiment {wrong[0]!r}; there are {', '.join(known)}")
    plan, seeds = Plan(settings), numbers(settings.seeds)
    workers = settings.workers or os.cpu_count()
    started = time.perf_counter()
    counts = making.write_questions(plan)
    making.make_table(plan)
    needed = plan.needed([name for e in chosen(names) for name in e.runs])
    for rows in dict.fromkeys(["plain", *(run.rows for run in needed)]):
        making.make_rows(plan, plan.rows[rows])
    threads = max(1, os.cpu_count() // workers)
    results = make_all(plan, [run.name for run in needed], seeds, workers, threads)
    took = spent(plan, started)
    for experiment in chosen(names):
        print(
            f"\n{experiment.title}\n\n{table(experiment, results)}\n\n" + "\n".join(verdict_lines(experiment, results))
        )
    if not names:
        write_page(settings.docs, EXPERIMENTS, results, head(plan, counts, seeds, took))
        print(f"\nwritten: {settings.docs}")


def spent(plan, started):
    """Seconds that all calls together have worked: what was done by an earlier one counts."""
    path = plan.folder / "seconds.json"
    before = making.known_result(path, "seconds") or 0.0
    now = before + time.perf_counter() - started
    write_json(path, {"spec": "seconds", "figures": now})
    return now


if __name__ == "__main__":
    run_script(main)
