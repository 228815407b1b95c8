"""Makes many runs, some at a time, each once what it starts from is there."""

from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context

from tqdm import tqdm

from minigpt.experiments import build as making


def make_all(plan, names, seeds, workers, threads):
    """Make and measure the runs of those names, and all that they need, with each seed; returns {name: [figures of
    each seed]}. Raises what the first run that failed raised, once those under way have ended."""
    runs = plan.needed(names)
    tasks = [(run, seed) for seed in seeds for run in runs]  # a whole seed first: what breaks is seen early
    done, waiting = {}, list(tasks)
    with (
        ProcessPoolExecutor(workers, get_context("spawn")) as pool,
        tqdm(total=len(tasks), unit="run", desc="experiments") as bar,
    ):
        under_way = {}
        try:
            while waiting or under_way:
                for task in [task for task in waiting if is_ready(*task, done)][: workers - len(under_way)]:
                    waiting.remove(task)
                    run, seed = task
                    under_way[pool.submit(making.make_run, plan, run, seed, threads)] = task
                    bar.set_postfix_str(", ".join(f"{r.name} {s}" for r, s in under_way.values()))
                ended, _ = wait(under_way, return_when=FIRST_COMPLETED)
                for future in ended:
                    run, seed = under_way.pop(future)
                    done[run.name, seed] = future.result()
                    bar.update()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, KeyboardInterrupt):
                bar.write(f"{len(done)} of {len(tasks)} runs are kept in {plan.folder}; the same command goes on")
            raise
    return {run.name: [done[run.name, seed] for seed in seeds] for run in runs}


def is_ready(run, seed, done):
    return all((name, seed) in done for name in (run.base, run.as_long_as) if name)
