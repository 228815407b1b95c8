"""What a report card tells of a checkpoint, measured. Each part stands alone, so that one whose data is not there costs
the others nothing."""

import math
import random
import statistics
from pathlib import Path

import numpy as np

from data_utils import check_rows, check_tokenizer, open_rows, read_meta
from minigpt.checkpoint import load_checkpoint, load_model, model_names
from minigpt.common.errors import UserError
from minigpt.device import pick_device
from minigpt.evaluation.asking import ask
from minigpt.evaluation.correction import cases_of, figures, kinds_of
from minigpt.evaluation.decoding_sweep import sweep, sweep_size
from minigpt.inference.likelihood import likelihood_of_rows
from minigpt.inference.params import SamplingParams
from minigpt.metrics import interval, rouge_l
from minigpt.run_log import LOG, RunLog
from minigpt.settings.parse import FIELDS
from minigpt.settings.record import Settings

SHAPE = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
MOST_ROWS = 2000  # of a part whose perplexity is measured, spread over it
SWEPT_PAIRS = 100
LIKE = 0.8  # median Rouge-L F of questions and references from which they are sentences and their corrections
# Of a run, but not of how it learns; or told elsewhere on the card.
UNTOLD = {"data_dir", "out_dir", "init_from", "tensorboard", "wandb", "sample_prompt", "vocab_size", "device", "seed"}


def shown_path(path):
    """A path as it can be shown to others: as it is below the current folder, else its last two parts."""
    path = Path(path)
    try:
        return (path.resolve().relative_to(Path.cwd()) if path.is_absolute() else path).as_posix()
    except ValueError:
        return "/".join(path.parts[-2:])


def folder_of(settings, content):
    """The folder whose rows are measured: the one given, or the one that was trained on."""
    own = content["settings"].get("data_dir")
    return settings.data_dir or own or Settings().data_dir


def changed_settings(content):
    """{setting: value} of the training settings that are not the defaults."""
    plain, given = Settings(), content["settings"]
    names = [name for name, field in FIELDS.items() if "train" in field.metadata["used_by"] and name not in UNTOLD]
    return {name: given[name] for name in names if name in given and given[name] != getattr(plain, name)}


def about(content, path):
    """{what: value} of a checkpoint's dict with its weights: size, shape, table, how far it was trained, on what."""
    shape, progress, given = content["model_args"], content["progress"], content["settings"]
    folder, began = given.get("data_dir", ""), given.get("init_from", "scratch")
    found = {
        "checkpoint": shown_path(path), "stage": content["stage"], "step": progress["step"],
        "planned_steps": progress.get("max_iters"), "epochs": None, "tokens": progress.get("tokens"),
        "seconds": progress.get("seconds"), "parameters": load_model(content)[0].num_params(),
        "table": content["tokenizer"]["name"], "megabytes": round(Path(path).stat().st_size / 1e6, 1),
        "data_dir": shown_path(folder), "init_from": began if began in ("scratch", "resume") else shown_path(began),
        "seed": given.get("seed"), **{key: shape[key] for key in SHAPE},
    }  # fmt: skip
    batches = progress.get("epoch_batches")
    if "epoch" in progress:
        found["epochs"] = progress["epoch"] + (progress["batch"] / batches if batches and progress.get("batch") else 0)
    try:
        meta = read_meta(folder)
        check_tokenizer(folder, meta, content["tokenizer"], "the checkpoint's")
        found["trained_on"] = {**meta["parts"]["train"], "sources": list(map(shown_path, meta.get("sources") or []))}
    except (UserError, KeyError):
        found["trained_on"] = None
    return found


def chain_of(content):
    """(path, checkpoint's dict) of the pretrained checkpoint that a run began from. Raises UserError without one."""
    seen, path = set(), None
    while content["settings"].get("init_from", "scratch") != "scratch":
        began = content["settings"]["init_from"]
        if began == "resume":
            raise UserError("the run was resumed, and its checkpoint no longer tells where it began")
        if began in seen:
            raise UserError(f"{shown_path(began)} is named as its own beginning")
        seen.add(began)
        path, content = Path(began), load_checkpoint(began)
        if content["stage"] == "pretrain":
            return path, content
    raise UserError("the run began from scratch")


def before_and_after(before, path, content, name, settings, progress):
    """([row, row], (low, high)): the perplexity of the pretrained checkpoint that a run began from (`before`, at path),
    and of the run's on the same articles; the 95% interval, by pairs of rows, of the second divided by the first.
    Raises UserError."""
    given = before["settings"]
    where = given["data_dir"], "val", settings, progress, given.get("train_on_eot", True)
    row, sums = measured(before, model_names([path])[0], *where)
    after, sums_after = measured(content, name, *where, foreign=True)
    edges = interval(sums_after.nats - sums.nats, sums.tokens, settings.resamples, settings.seed)
    return [{**row, "chain": "before"}, {**after, "chain": "after"}], edges and [math.exp(edge) for edge in edges]


def measured(content, name, folder, part, settings, progress, on_eot=True, foreign=False):
    """({"model", "data_dir", "stage", "part", "rows", "perplexity", …}, `RowFigures`) of a checkpoint on a part.

    progress(n, of): n more of so many rows are done; on_eot: whether EOT counts; foreign: whether the rows may be of
    the other stage, such as articles for a fine-tuned checkpoint. Raises UserError.
    """
    meta = read_meta(folder)
    if foreign:
        check_tokenizer(folder, meta, content["tokenizer"], f"the tokenizer of {name}")
    else:
        check_rows(folder, meta, content)
    rows, _ = open_rows(folder, part)
    if meta["block_size"] > content["model_args"]["block_size"]:
        raise UserError(f"rows of {meta['block_size']} do not fit the block_size of {name}")
    chosen = rows if len(rows) <= MOST_ROWS else rows[np.linspace(0, len(rows) - 1, MOST_ROWS).astype(int)]
    model, tokenizer = load_model(content, pick_device(settings.device))
    found = likelihood_of_rows(
        model, chosen, meta, 0, tokenizer, train_on_eot=on_eot, progress=lambda n: progress(n, len(chosen))
    )
    total, bits = found.total(), found.text_nats / math.log(2)
    edges = {
        "perplexity": interval(found.nats, found.tokens, settings.resamples, settings.seed),
        "bits_per_char": interval(bits, found.characters, settings.resamples, settings.seed),
    }
    edges["bits_per_token"] = edges["perplexity"] and [edge / math.log(2) for edge in edges["perplexity"]]
    edges["perplexity"] = edges["perplexity"] and [math.exp(min(700.0, edge)) for edge in edges["perplexity"]]
    if not total.tokens:
        raise UserError(f"the {part} part of {shown_path(folder)} has no token that counts")
    row = {
        "model": name, "data_dir": shown_path(folder), "stage": meta["stage"], "part": part, "rows": len(chosen),
        "all_rows": len(rows), "tokens": total.tokens, "characters": total.characters, "perplexity": total.perplexity,
        "bits_per_token": total.bits_per_token, "bits_per_char": total.bits_per_char,
        "intervals": {key: edge and list(edge) for key, edge in edges.items()},
    }  # fmt: skip
    return row, found


def parts_of(folder, settings):
    """The parts whose perplexity is measured: the one that the settings name, or test and val, those that there are."""
    parts = read_meta(folder)["parts"]
    wanted = [settings.split] if settings.split else ["test", "val"]
    found = [part for part in wanted if settings.split or parts.get(part, {}).get("rows")]
    if not found:
        raise UserError(f"{shown_path(folder)} has no {' or '.join(wanted)} part")
    return found


def answers(entrant, model, pairs, settings, progress):
    """`Asked`: what a model answers to pairs [(prompt, reference)]. Raises UserError."""
    params = SamplingParams.from_settings(settings)
    return ask(entrant, model, pairs, params, progress=lambda n: progress(n, len(pairs)))


def corrected(asked, pairs, settings):
    """Figures as `corrections.figures`, where the pairs are sentences and their corrections; else None."""
    if asked.entrant.stage == "pretrain" or statistics.median(rouge_l(*pair)[2] for pair in pairs) < LIKE:
        return None
    sources = [settings.questions] if settings.questions else read_meta(settings.data_dir).get("sources") or []
    cases = cases_of(pairs, kinds_of(sources))
    return figures(cases, asked.predictions, settings.resamples, settings.seed)


def swept(model, pairs, settings, progress):
    """Rows of `decoding_figures.sweep`, over at most SWEPT_PAIRS of the pairs."""
    few = pairs
    if len(pairs) > SWEPT_PAIRS:
        few = random.Random(settings.seed).sample(pairs, SWEPT_PAIRS)
    params = SamplingParams.from_settings(settings)
    count = sweep_size(params, settings.sweep) * len(few)
    return sweep(model, few, params, settings.sweep, lambda n: progress(n, count), settings.resamples, settings.seed)


def run_of(path):
    """The `RunLog` of a checkpoint's folder. Raises UserError where there is none."""
    log = RunLog(Path(path).parent / LOG)
    log.read()
    if not len(log):
        raise UserError(f"{shown_path(log.path)} is not there, or has no line")
    return log
