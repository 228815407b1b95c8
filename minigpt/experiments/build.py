"""Trains and measures the runs of the experiments, several at once. What they give is kept."""

import json
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context

from tqdm import tqdm

from minigpt.common.files import write_json
from minigpt.corpus.row_files import META
from minigpt.experiments.results import RESULT, hash_code, make_spec, read_figures, read_spec, run_logged, to_flags


def run_all(plan, names, seeds, workers, threads):
    """Train and measure the runs of those names, and the runs that they need, with each seed.

    workers: runs at a time; threads: of each. Returns {name: [figures of each seed]}. Raises what the first run that
    failed raised, once those under way have ended.
    """
    runs = plan.needed(names)
    tasks = [(run, seed) for seed in seeds for run in runs]  # seed by seed: all runs have been tried after the first
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
    return {run.name: [done[run.name, seed] for seed in seeds] for run in runs}


def is_ready(run, seed, done):
    """Whether the runs that a run needs are done with its seed."""
    return all((name, seed) in done for name in (run.base, run.as_long_as) if name)


def train_and_measure(plan, run, seed, threads):
    """Train a run with a seed and measure it, unless it is kept; returns its figures."""
    from minigpt.experiments import measure  # loads torch, which the process that starts all runs does not need

    result = plan.place(run.name, seed) / RESULT
    given = training_settings(plan, run, seed)
    rows = read_spec(plan.folder / "rows" / run.rows / RESULT)
    base = read_spec(plan.place(run.base, seed) / RESULT) if run.base else None
    spec = make_spec(given, rows, base, hash_code("train.py", "minigpt/experiments/build.py"))
    if (figures := read_figures(result, spec)) is None:
        run_logged("train.py", *to_flags(given), log=result.with_name("train.log"), threads=threads)
        figures = measure.measure_run(plan, run, result.parent, threads)
        write_json(result, {"spec": spec, "figures": figures})
    return figures


def training_settings(plan, run, seed):
    """train.py's settings of a run with a seed."""
    settings = plan.settings
    steps = settings.tune_iters if run.tunes else settings.max_iters
    if run.tunes:
        rates = {"learning_rate": 3e-4, "muon_learning_rate": 3e-3, "warmup_iters": 20}
    else:
        rates = {name: getattr(settings, name) for name in ("learning_rate", "muon_learning_rate")}
        rates["warmup_iters"] = 50
    given = {
        "data_dir": str(plan.folder / "rows" / run.rows), "out_dir": str(plan.place(run.name, seed)), "seed": seed,
        "max_iters": steps, "block_size": settings.block_size, "batch_size": settings.batch_size, **rates,
        "min_lr_ratio": 0.0, "compile": "off", "eval_interval": max(1, steps // 4), "n_layer": settings.n_layer,
        "n_head": settings.n_head, "n_embd": settings.n_embd, "dtype": settings.dtype,
    }  # fmt: skip
    if run.base:
        given["init_from"] = str(plan.place(run.base, seed) / "last.pt")
    given |= run.given
    if "batch_tokens" in given:
        given["batch_tokens"] = count_batch_tokens(plan, settings.batch_size)
    if run.each_epoch:
        meta = json.loads((plan.folder / "rows" / run.rows / META).read_text(encoding="utf-8"))
        steps = -(-meta["parts"]["train"]["rows"] // given["batch_size"])
        given |= {"eval_interval": steps, "keep_every": steps if run.tunes else 0}
    if run.as_long_as:
        other = plan.place(run.as_long_as, seed) / RESULT
        given["max_seconds"] = json.loads(other.read_text(encoding="utf-8"))["figures"]["seconds"]
        if not run.tunes:  # the time that the other's tokenizer took to train counts
            tokenizer = json.loads((plan.folder / "tokenizer.json").read_text(encoding="utf-8"))
            given["max_seconds"] += tokenizer["figures"]["seconds"]
        given["max_iters"] = steps * 10
    return given


def count_batch_tokens(plan, batch_size):
    """Tokens, without PAD, of a batch of rows with one article each."""
    meta = json.loads((plan.folder / "rows" / "plain" / META).read_text(encoding="utf-8"))
    part = meta["parts"]["train"]
    return max(meta["block_size"], round(part["tokens"] / part["rows"] * batch_size))
