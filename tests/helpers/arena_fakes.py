"""An arena with fake generators. Run as a script, it serves the page with them.

Checkpoints are real files of a tiny model. The answers come from serving_fakes.FakeGenerator, which repeats the prompt.
"""

import time
from pathlib import Path
from types import SimpleNamespace

from serving_fakes import make_fake

from minigpt.arena.votes import Votes
from minigpt.checkpoint import load_checkpoint, load_model, save_checkpoint
from minigpt.settings.stages import ArenaSettings, TrainSettings

STAGES = {"alpha": "sft", "beta": "sft", "base": "pretrain"}
TASKS = ("classify", "pair", "tag")


def write_checkpoints(root, names=tuple(STAGES), step=7):
    """Write <root>/<name>/ckpt.pt of a tiny model for each name. Returns the root."""
    from tiny import tiny_model, tiny_tokenizer

    model = tiny_model()
    for name in names:
        write_checkpoint(Path(root) / name / "ckpt.pt", model, tiny_tokenizer(), STAGES.get(name, "sft"), step)
    return root


def write_task_checkpoints(root, kinds=TASKS):
    """Write <root>/<kind>/ckpt.pt of a tiny model with a head for each kind of task."""
    from tiny import tiny_classifier

    for kind in kinds:
        head = tiny_classifier(kind)
        task = {"kind": kind, "labels": head.labels}
        write_checkpoint(Path(root) / kind / "ckpt.pt", head.model, head.tokenizer, "task", task=task)


def write_checkpoint(path, model, tokenizer, stage="sft", step=7, loss=1.5, settings=None, **more):
    """Write one checkpoint, as train.py does. settings: a TrainSettings; more: further entries. Returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    progress = {"step": step, "best_val_loss": loss, "last_losses": (1.0, loss + 1)}
    settings = settings or TrainSettings()
    save_checkpoint(path, model.state_dict(), model.config, settings, stage, tokenizer, progress, **more)
    return path


def write_votes(folder, prompts, model="alpha (step 7)"):
    """Add votes for the left one of two answers of a model, a vote for each prompt, to an arena's votes."""
    vote = {"left": model, "right": model, "result": "left", "left_answer": "短", "right_answer": "长长"}
    Votes(Path(folder) / "votes.jsonl").add([{**vote, "prompt": prompt} for prompt in prompts])


def open_fake(ckpt, settings):
    """As inference.classify.open_labeller_or_generator, with the fakes of `serving_fakes.make_fake`.

    A checkpoint in a folder whose name has "gated" in it is loaded only once that folder has a file named "open".
    """
    folder = Path(ckpt).parent
    while "gated" in folder.name and not (folder / "open").exists():
        time.sleep(0.01)
    made = make_fake(ckpt, settings)
    content = load_checkpoint(ckpt)
    if content["stage"] in ("pretrain", "sft"):  # what is inside is the file's
        made.model, made.tokenizer = load_model(content)
        made.member = SimpleNamespace(forbidden=[made.tokenizer.pad_id])
    return ckpt, {}, made


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
