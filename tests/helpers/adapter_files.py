"""Checkpoints of a base and of adapters on it, as train.py writes them."""

from dataclasses import asdict
from pathlib import Path

from adapting import randomize
from tiny import tiny_tokenizer

from minigpt.adapters.attach import attach_adapter, trained_parameters
from minigpt.checkpoint import load_checkpoint, load_model, save_checkpoint, weights_hash
from minigpt.settings.stages import Adapting, TrainSettings


def write_base(path, model, stage="sft"):
    """Write the checkpoint of a model, as train.py does; returns its path."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    progress = {"step": 3, "best_val_loss": 2.5}
    save_checkpoint(path, model.state_dict(), model.config, TrainSettings(), stage, tiny_tokenizer(), progress)
    return path


def write_adapter(path, base, seed=3, stage="sft", **fields):
    """Write the checkpoint of an adapter on the checkpoint `base`, whose parameters are random; fields: of `Adapting`.

    Returns its path.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    content = load_checkpoint(base)
    model, tokenizer = load_model(content)
    attach_adapter(model, Adapting(**fields), tokenizer)
    randomize(model, seed)
    about = {"path": str(base), "sha256": weights_hash(content)}
    save_checkpoint(
        path, trained_parameters(model), model.config, TrainSettings(), stage, tokenizer,
        {"step": 7, "tokens": 700, "seconds": 9.0, "best_val_loss": 1.5}, adapter=asdict(model.adapter), base=about,
    )  # fmt: skip
    return path
