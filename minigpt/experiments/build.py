"""Trains and measures the runs of the experiments, several at once. What they give is kept."""

from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict
from multiprocessing import get_context

from tqdm import tqdm

from minigpt.common.files import write_json
from minigpt.experiments.results import (
    RESULT,
    TRAINED,
    Cost,
    hash_code,
    make_spec,
    read_figures,
    run_logged,
    to_flags,
)

BUILD_FILE = "minigpt/experiments/build.py"


def run_all(plan, names, seeds, workers, threads):
    """Train and measure a plan's runs of those names, and the runs that they need, with their seeds.

    plan: a `Plan`, or another that has `tasks`, `requirements`, `place`, `training_settings`, `sources`, `measure` and
    MEASURING. workers: runs at a time; threads: of each. Returns {name: [figures of each seed]}. Raises what the first
    run that failed raised, once those under way have ended.
    """
    tasks = plan.tasks(names, seeds)
    done, waiting = {}, list(tasks)
    with (
        ProcessPoolExecutor(workers, get_context("spawn")) as pool,
        tqdm(total=len(tasks), unit="run", desc="experiments") as bar,
    ):
        under_way = {}
        try:
            while waiting or under_way:
                for task in [task for task in waiting if is_ready(plan, *task, done)][: workers - len(under_way)]:
                    waiting.remove(task)
                    under_way[pool.submit(train_and_measure, plan, *task, threads)] = task
                    bar.set_postfix_str(", ".join(f"{run.name} {seed}" for run, seed in under_way.values()))
                ended, _ = wait(under_way, return_when=FIRST_COMPLETED)
                for future in ended:
                    run, seed = under_way.pop(future)
                    done[run.name, seed] = future.result()
                    bar.update()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, KeyboardInterrupt):
                bar.write(f"{len(done)} of {len(tasks)} runs are kept in {plan.folder}; the same command continues")
            raise
    results = {}
    for run, seed in tasks:
        results.setdefault(run.name, []).append(done[run.name, seed])
    return results


def is_ready(plan, run, seed, done):
    """Whether the runs that a run needs are done."""
    return all(needed in done for needed in plan.requirements(run, seed))


def train_and_measure(plan, run, seed, threads):
    """Train a run with a seed and measure it, unless it is kept; returns its figures.

    A run without settings of train.py is measured only. Figures are kept as long as the run's settings, what it is made
    from (`sources`) and the code stay the same. Where only the code that measures has changed, the run is not trained
    again.
    """
    result = plan.place(run.name, seed) / RESULT
    given = plan.training_settings(run, seed)
    trained = make_spec(given, *plan.sources(run, seed), hash_code("train.py", BUILD_FILE))
    spec = make_spec(trained, asdict(run), hash_code(plan.MEASURING))
    if (figures := read_figures(result, spec)) is None:
        cost = train_once(result.with_name(TRAINED), trained, given, threads) if given else None
        figures = plan.measure(run, seed, cost, threads)
        write_json(result, {"spec": spec, "figures": figures})
    return figures


def train_once(kept, spec, given, threads):
    """Train with those settings, unless `kept` says that it was done with that spec; returns the training's `Cost`."""
    if (figures := read_figures(kept, spec)) is None:
        kept.unlink(missing_ok=True)  # its checkpoints are about to be replaced
        log = kept.with_name("train.log")
        figures = asdict(run_logged("train.py", *to_flags(given), log=log, threads=threads) or Cost())
        write_json(kept, {"spec": spec, "figures": figures})
    return Cost(**figures)
