"""An arena with fake generators. Run as a script, it serves the page with them.

Checkpoints are real files of a tiny model. The answers come from serving_fakes.FakeGenerator, which repeats the prompt.
"""

import time
from pathlib import Path

from serving_fakes import FakeGenerator

from minigpt.checkpoint import save_checkpoint
from minigpt.settings.stages import ArenaSettings, TrainSettings

STAGES = {"alpha": "sft", "beta": "sft", "base": "pretrain"}


def write_checkpoints(root, names=tuple(STAGES), step=7):
    """Write <root>/<name>/ckpt.pt of a tiny model for each name. Returns the root."""
    from tiny import tiny_model, tiny_tokenizer

    model = tiny_model()
    for name in names:
        write_checkpoint(Path(root) / name / "ckpt.pt", model, tiny_tokenizer(), STAGES.get(name, "sft"), step)
    return root


def write_checkpoint(path, model, tokenizer, stage="sft", step=7, loss=1.5):
    """Write one checkpoint, as train.py does. Returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    progress = {"step": step, "best_val_loss": loss, "last_losses": (1.0, loss + 1)}
    save_checkpoint(path, model.state_dict(), model.config, TrainSettings(), stage, tokenizer, progress)
    return path


def open_fake(ckpt, settings):
    """As inference.engine.open_generator, with a FakeGenerator.

    A checkpoint in a folder whose name has "gated" in it is loaded only once that folder has a file named "open".
    """
    folder = Path(ckpt).parent
    while "gated" in folder.name and not (folder / "open").exists():
        time.sleep(0.01)
    return ckpt, {}, FakeGenerator("pretrain" if "base" in ckpt else "sft", settings.max_batch)


def arena_settings(folder, **more):
    """Settings of an arena with all its files under a folder."""
    made = ArenaSettings()
    made.out_root, made.arena_dir, made.peers = (str(folder / name) for name in ("out", "arena", "peers.json"))
    for name, value in more.items():
        setattr(made, name, value)
    return made


if __name__ == "__main__":
    import sample_gradio
    from minigpt.common.cli import run_script

    run_script(lambda: sample_gradio.main(open_fake))
