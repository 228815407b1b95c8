"""The measurements of a checkpoint's report. Each is independent, so that one whose data is missing can be left out."""

import math
import random
import statistics
from pathlib import Path

import numpy as np

from data_utils import check_tokenizer, open_rows, read_meta
from minigpt.checkpoint import load_checkpoint, load_model, model_names
from minigpt.common.errors import UserError
from minigpt.device import pick_device
from minigpt.evaluation.correction import correction_figures, read_details, to_cases
from minigpt.evaluation.decoding_sweep import run_sweep, sweep_size
from minigpt.evaluation.grammar import grammar_figures, read_minimal_pairs, score_pairs_of
from minigpt.evaluation.models import checkpoints_of
from minigpt.evaluation.perplexity import check_rows_fit, perplexity_figures
from minigpt.evaluation.prompts import last_question
from minigpt.inference.likelihood import likelihood_of_rows
from minigpt.inference.params import SamplingParams
from minigpt.metrics import interval, rouge_l
from minigpt.run_log import LOG, RunLog
from minigpt.settings.stages import TrainSettings

MODEL_SHAPE = ("architecture", "n_layer", "n_head", "n_embd", "block_size", "vocab_size")
MAX_PERPLEXITY_ROWS = 2000  # evenly spaced over a larger part
MAX_SWEEP_PAIRS = 100
MAX_CURVE_CHECKPOINTS = 10
MIN_CORRECTION_ROUGE = 0.8  # median Rouge-L F of questions and references that are sentences and their corrections
# Training settings that do not affect learning, or that the report shows elsewhere.
HIDDEN_SETTINGS = {
    "data_dir", "out_dir", "init_from", "tensorboard", "wandb", "sample_prompt", "watch_prompts", "vocab_size",
    "device", "seed",
}  # fmt: skip


def public_path(path):
    """A path for other people to read: relative to the current folder if it is below, else its last two parts."""
    path = Path(path)
    try:
        return (path.resolve().relative_to(Path.cwd()) if path.is_absolute() else path).as_posix()
    except ValueError:
        return "/".join(path.parts[-2:])


def evaluated_folder(settings, content):
    """The data folder to measure on: the setting data_dir, else the one that the checkpoint was trained on."""
    return settings.data_dir or content["settings"].get("data_dir") or TrainSettings().data_dir


def changed_settings(content):
    """{setting: value} of the training settings that differ from the defaults."""
    given = content["settings"]
    return {
        name: given[name]
        for name, default in TrainSettings().to_dict().items()
        if name in given and given[name] != default and name not in HIDDEN_SETTINGS
    }


def bytes_of_files(path):
    """Size of a file, or of all files in a folder, in bytes."""
    path = Path(path)
    return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))


def describe_checkpoint(content, path):
    """{property: value} of a checkpoint: size, shape, tokenizer, training progress, training data.

    content: the checkpoint's dict with its weights.
    """
    model, progress, given = load_model(content)[0], content["progress"], content["settings"]
    folder, base = given.get("data_dir", ""), given.get("init_from", "scratch")
    about = {
        "checkpoint": public_path(path), "stage": content["stage"], "step": progress["step"],
        "planned_steps": progress.get("max_iters"), "epochs": None, "tokens": progress.get("tokens"),
        "seconds": progress.get("seconds"), "parameters": model.num_params(),
        "table": content["tokenizer"]["name"], "megabytes": round(bytes_of_files(path) / 1e6, 1),
        "data_dir": public_path(folder), "init_from": base if base in ("scratch", "resume") else public_path(base),
        "seed": given.get("seed"), **{key: getattr(model.config, key) for key in MODEL_SHAPE},
    }  # fmt: skip
    batches = progress.get("epoch_batches")
    if "epoch" in progress:
        about["epochs"] = progress["epoch"] + (progress["batch"] / batches if batches and progress.get("batch") else 0)
    try:
        meta = read_meta(folder)
        check_tokenizer(folder, meta, content["tokenizer"], "the checkpoint's")
        about["trained_on"] = {**meta["parts"]["train"], "sources": list(map(public_path, meta.get("sources") or []))}
    except (UserError, KeyError):
        about["trained_on"] = None
    return about


def pretrained_base(content):
    """(path, checkpoint's dict) of the pretrained checkpoint that a run started from. Raises UserError without one."""
    seen = set()
    while content["settings"].get("init_from", "scratch") != "scratch":
        base = content["settings"]["init_from"]
        if base == "resume":
            raise UserError("the run was resumed, and its checkpoint does not record what it started from")
        if base in seen:
            raise UserError(f"{public_path(base)} is recorded as its own starting point")
        seen.add(base)
        content = load_checkpoint(base)
        if content["stage"] == "pretrain":
            return Path(base), content
    raise UserError("the run began from scratch")


def measure_before_and_after(base, base_path, content, name, settings, progress):
    """([row, row], [low, high]): perplexity of a run's pretrained base and of the run, on the base's validation part.

    base, base_path: the base's dict and path; content, name: the run's. The interval (95%, over pairs of rows; None for
    too few rows) is of the run's perplexity divided by the base's. Raises UserError.
    """
    given = base["settings"]
    where = given["data_dir"], "val", settings, progress, given.get("train_on_eot", True)
    before, rows_before = measure_part(base, model_names([base_path])[0], *where)
    after, rows_after = measure_part(content, name, *where, any_stage=True)
    difference = rows_after.nats - rows_before.nats
    edges = interval(difference, rows_before.tokens, settings.resamples, settings.seed)
    rows = [{**before, "chain": "before"}, {**after, "chain": "after"}]
    return rows, edges and [math.exp(edge) for edge in edges]


def measure_part(content, name, folder, part, settings, progress, train_on_eot=True, any_stage=False):
    """(row of the report, `RowFigures`): a checkpoint's perplexity on a part of a data folder.

    progress(n, total): n more of `total` rows are done. any_stage: as in `check_rows_fit`. Raises UserError.
    """
    meta = read_meta(folder)
    check_rows_fit(content, name, folder, meta, any_stage)
    all_rows, _ = open_rows(folder, part)
    rows = all_rows
    if len(all_rows) > MAX_PERPLEXITY_ROWS:
        rows = all_rows[np.linspace(0, len(all_rows) - 1, MAX_PERPLEXITY_ROWS).astype(int)]
    model, tokenizer = load_model(content, pick_device(settings.device))
    found = likelihood_of_rows(
        model, rows, meta, 0, tokenizer, train_on_eot=train_on_eot, progress=lambda n: progress(n, len(rows))
    )
    if not found.total().tokens:
        raise UserError(f"the {part} part of {public_path(folder)} has no token that counts")
    about = {"model": name, "data_dir": public_path(folder), "stage": meta["stage"], "part": part}
    figures = perplexity_figures(found, settings.resamples, settings.seed)
    return {**about, "all_rows": len(all_rows), **figures}, found


def parts_to_measure(folder, settings):
    """The parts for perplexity: the setting `split`, else test and val if they have rows. Raises UserError."""
    parts = read_meta(folder)["parts"]
    wanted = [settings.split] if settings.split else ["test", "val"]
    found = [part for part in wanted if settings.split or parts.get(part, {}).get("rows")]
    if not found:
        raise UserError(f"{public_path(folder)} has no {' or '.join(wanted)} part")
    return found


def measure_corrections(answers, pairs, settings):
    """`correction_figures` if the pairs are sentences and their corrections, else None."""
    if answers.model.stage == "pretrain":
        return None
    if statistics.median(rouge_l(last_question(p), answer)[2] for p, answer in pairs) < MIN_CORRECTION_ROUGE:
        return None
    sources = [settings.questions] if settings.questions else read_meta(settings.data_dir).get("sources") or []
    cases = to_cases(pairs, read_details(sources, settings))
    return correction_figures(cases, answers.predictions, settings.resamples, settings.seed)


def measure_sweep(opened, pairs, settings, progress):
    """Rows of `run_sweep` over at most MAX_SWEEP_PAIRS of the pairs."""
    if len(pairs) > MAX_SWEEP_PAIRS:
        pairs = random.Random(settings.seed).sample(pairs, MAX_SWEEP_PAIRS)
    params = SamplingParams.from_settings(settings)
    total = sweep_size(params, settings.sweep) * len(pairs)
    return run_sweep(
        opened, pairs, params, settings.sweep, lambda n: progress(n, total), settings.resamples, settings.seed
    )


def measure_grammar(path, name, settings, progress):
    """[entry] as `grammar_figures` has it, with "name" and "step", of the checkpoints that a run kept, by step.

    path, name: those of the checkpoint of the report, whose entry is marked with "is_own". Of many kept checkpoints
    MAX_CURVE_CHECKPOINTS are measured. progress(n, total): n more of `total` sentences are done. Raises UserError.
    """
    pairs = read_minimal_pairs(settings.grammar_files)
    kept = [] if path.is_dir() else [other for other in checkpoints_of(path.parent) if other.stem.startswith("step_")]
    places = np.linspace(0, len(kept) - 1, min(MAX_CURVE_CHECKPOINTS, len(kept))).astype(int)
    chosen = list(dict.fromkeys([*(kept[place] for place in places), path]))
    entries = []
    for one in chosen:
        content = load_checkpoint(one)
        model, tokenizer = load_model(content, pick_device(settings.device), settings.base)
        scores = score_pairs_of(model, tokenizer, pairs, progress=lambda n: progress(n, 2 * len(pairs) * len(chosen)))
        about = {"name": name if one == path else one.stem, "step": content["progress"]["step"], "is_own": one == path}
        entries.append({**about, **grammar_figures(pairs, scores, settings.resamples, settings.seed)})
    if entries[-1]["grammar"] is None:
        raise UserError("no sentence fits the model's block")
    return sorted(entries, key=lambda entry: (entry["step"], entry["is_own"]))


def log_of_checkpoint(path):
    """The `RunLog` in a checkpoint's folder. Raises UserError if it is missing or empty."""
    log = RunLog(Path(path).parent / LOG)
    log.read()
    if not len(log):
        raise UserError(f"{public_path(log.path)} is not there, or has no line")
    return log
