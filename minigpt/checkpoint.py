"""Self-contained checkpoints: written whole or not at all, loaded without running code, found by age.

A checkpoint is a dict of plain values and tensors:
  model          state dict            model_args   GPTConfig's fields
  settings       those of train.py     stage        "pretrain" or "sft"
  tokenizer      {"name", "sha256", "table": bytes, or None for GPT-2's}
  progress       {"step", "epoch", "batch", "tokens", "best_val_loss", …}
  optimizers, scaler, random, precision   (last.pt only) what a resumed run needs
"""

import errno
from dataclasses import asdict
from pathlib import Path

import torch

from minigpt.common.errors import UserError
from minigpt.common.files import write_atomic
from minigpt.tokenizer import Tokenizer, load_tokenizer
from model import GPT, GPTConfig

BEST, LAST, PREVIOUS = "ckpt.pt", "last.pt", "last.prev.pt"


def save_checkpoint(path, weights, config, settings, stage, tokenizer, progress, previous=None, **state):
    """Write a checkpoint to `path`, atomically: a crash or a full disk leaves the older file as it was.

    weights: a GPT's state dict; config: its GPTConfig;
    previous: the name that the older file gets once the new one is written. `state`: what resuming
    needs besides (optimizers, random, …). Raises UserError where it cannot be written.
    """
    content = {
        "model": weights,
        "model_args": asdict(config),
        "settings": settings.to_dict(),  # no others: a settings file may also bear a key or a password
        "stage": stage,
        "tokenizer": {
            "name": tokenizer.name,
            "sha256": tokenizer.sha256,
            "table": None if tokenizer.is_gpt2 else tokenizer.vocabulary,
        },
        "progress": progress,
        **state,
    }
    path = Path(path)
    try:
        write_atomic(path, lambda file: torch.save(content, file), keep=previous)
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as RuntimeError
        raise UserError(f"{path} could not be written ({error}); the older file is as it was") from None


class LostCheckpoint(UserError):
    """A checkpoint that is not there, or whose bytes are none: another may take its place."""


def withheld_by(error):
    """Why the system does not let a file be read, where that is what an error of torch.load says; else None."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch's own is a RuntimeError
        return "not enough memory"
    # EINVAL is what seeking by a truncated file's offsets ends with.
    return error.strerror if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL) else None


def load_checkpoint(path, mmap=False):
    """The checkpoint's dict, on the CPU; mmap: its weights are mapped, not read.

    Raises LostCheckpoint where it is not there, truncated or not one of ours, and another UserError where the system
    does not let it be read, which says nothing about the file.
    """
    try:
        if not Path(path).is_file():
            raise LostCheckpoint(f"checkpoint {path} is not there; train one first, or name another")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except UserError:
        raise
    except Exception as error:  # the unpickler meets foreign bytes with errors of any type
        if reason := withheld_by(error):
            raise UserError(f"checkpoint {path} cannot be read ({reason})") from None
        raise LostCheckpoint(
            f"checkpoint {path} is truncated, or is no checkpoint; take another, such as {PREVIOUS}"
        ) from None
    missing = {"model", "model_args", "tokenizer", "stage", "progress"} - set(
        content if isinstance(content, dict) else ()
    )
    if missing:
        raise LostCheckpoint(f"{path} is not a MiniGPT checkpoint: it has no {', '.join(sorted(missing))}")
    return content


def load_model(content, device="cpu"):
    """(GPT in eval mode on `device`, Tokenizer) of a checkpoint's dict; needs nothing but the dict."""
    model = GPT(GPTConfig(**content["model_args"]))
    model.load_state_dict(content["model"])
    about = content["tokenizer"]
    tokenizer = load_tokenizer() if about["table"] is None else Tokenizer(about["name"], about["table"])
    return model.to(device).eval(), tokenizer


def newest_checkpoint(root="out"):
    """Path of the best checkpoint of the run under `root` that was saved last. Raises UserError without one.

    A run that has no best one yet comes after all those that have: it may have been started by mistake, and then the
    good one lies in old/ within its folder.
    """
    runs = {}  # folder: {name: when it was saved}
    for path in Path(root).rglob("*.pt"):
        if path.name in (BEST, LAST):
            runs.setdefault(path.parent, {})[path.name] = path.stat().st_mtime
    if not runs:
        raise UserError(f"no checkpoint under {root}; train one first: python train.py config/train_config.py")
    run = max(runs, key=lambda run: (BEST in runs[run], max(runs[run].values())))
    return run / (BEST if BEST in runs[run] else LAST)


def model_names(paths):
    """A name for each checkpoint: its run's folder, and, unless it is the run's best, its own; made unique."""
    pairs = [(path.absolute().parent.name, "" if path.stem == "ckpt" else path.stem) for path in map(Path, paths)]
    return number_equal_names(["/".join(filter(None, pair)) for pair in pairs])


def number_equal_names(names):
    """The names, made unique: -2, -3 … is appended to one that is taken."""
    unique = []
    for wanted in names:
        name, count = wanted, 1
        while name in unique:
            count += 1
            name = f"{wanted}-{count}"
        unique.append(name)
    return unique


def open_model(ckpt, out_root, device):
    """(path, checkpoint's dict, model, tokenizer) of the checkpoint `ckpt`, or of the newest under out_root for ""."""
    path = ckpt or newest_checkpoint(out_root)
    content = load_checkpoint(path)
    return path, content, *load_model(content, device)


def newest_intact(run):
    """The dict of last.pt, or, where that is damaged or missing, of last.prev.pt. Raises UserError.

    A last.pt that the system does not let be read may be whole, so the older one does not take its place.
    """
    last, previous = Path(run) / LAST, Path(run) / PREVIOUS
    try:
        return load_checkpoint(last)
    except LostCheckpoint as error:
        if not previous.exists():
            raise
        print(f"{error}\ngoing on from {previous}")
        return load_checkpoint(previous)
