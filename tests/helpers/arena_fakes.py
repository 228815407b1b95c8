"""The arena over generators without a model, and what its tests need: run as a script it is that arena.

Checkpoints are real files of a tiny model; what answers is serving_fakes.FakeGenerator, which says the prompt back.
"""

import os
import time
from pathlib import Path

from serving_fakes import FakeGenerator

from minigpt.checkpoint import save_checkpoint
from minigpt.settings.parse import defaults

STAGES = {"alpha": "sft", "beta": "sft", "base": "pretrain"}


def write_checkpoints(root, names=tuple(STAGES), step=7):
    """Checkpoints of a tiny model: <root>/<name>/ckpt.pt; returns the root."""
    from tiny import tiny_model, tiny_tokenizer

    model = tiny_model()
    for name in names:
        write_checkpoint(Path(root) / name / "ckpt.pt", model, tiny_tokenizer(), STAGES.get(name, "sft"), step)
    return root


def write_checkpoint(path, model, tokenizer, stage="sft", step=7, loss=1.5):
    """One checkpoint, as train.py writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    progress = {"step": step, "best_val_loss": loss, "last_losses": (1.0, loss + 1)}
    save_checkpoint(path, model.state_dict(), model.config, defaults("train"), stage, tokenizer, progress)
    return path


def open_fake(ckpt, settings):
    """As generation.open_generator, of a fake; it takes the environment's FAKE_LOADING seconds."""
    time.sleep(float(os.environ.get("FAKE_LOADING", 0)))
    return ckpt, {}, FakeGenerator("pretrain" if "base" in ckpt else "sft", settings.max_batch)


def arena_settings(folder, **more):
    """The arena's settings, everything under a folder."""
    made = defaults("arena")
    made.out_root, made.arena_dir, made.peers = (str(folder / name) for name in ("out", "arena", "peers.json"))
    for name, value in more.items():
        setattr(made, name, value)
    return made


if __name__ == "__main__":
    import sample_gradio
    from minigpt.common.cli import run_script

    run_script(lambda: sample_gradio.main(open_fake))
