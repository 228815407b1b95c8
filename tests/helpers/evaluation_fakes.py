"""Fakes for tests of the evaluation scripts: untrained checkpoints with rows; scripts run in this process."""

import importlib.util
import sys

import peer_fakes
from corpora import ROOT, write_jsonl
from tiny import EOT, MARK, tiny_model, tiny_tokenizer, write_rows

from minigpt.checkpoint import save_checkpoint
from minigpt.settings.stages import TrainSettings

BLOCK = 96
QUESTIONS = [("第1镇位于哪里？", "东河。"), ("第2镇有几座桥？", "12座桥。"), ("3?", "3?"), ("河的名字？", "河的名字？")]


def save_tiny(path, stage="sft", seed=0, step=1, data_dir="data/tuned", architecture="gpt2"):
    """A checkpoint of an untrained model, whose answers are reproducible noise."""
    model = tiny_model(seed, block_size=BLOCK, architecture=architecture)
    settings = TrainSettings(data_dir=data_dir, architecture=architecture)
    path.parent.mkdir(parents=True, exist_ok=True)
    progress = {"step": step, "epoch": 0, "batch": 0, "tokens": 0, "best_val_loss": 1.0}
    save_checkpoint(path, model.state_dict(), model.config, settings, stage, tiny_tokenizer(), progress)
    return path


def make_project(folder):
    """out/base (pretrained), out/tuned (fine-tuned, of two steps), data/base, data/tuned and mine.jsonl in a folder."""
    encode = tiny_tokenizer().encode
    save_tiny(folder / "out/base/ckpt.pt", "pretrain", data_dir="data/base")
    save_tiny(folder / "out/tuned/step_10.pt", seed=1, step=10)
    save_tiny(folder / "out/tuned/ckpt.pt", seed=2, step=20)
    articles = [[*encode(f"第{i}镇，位于东河边。"), EOT] for i in range(9)]
    write_rows(folder / "data/base", {"train": articles, "val": articles[:5]}, BLOCK, "pretrain")
    rows = [[*encode(question), MARK, *encode(answer), EOT] for question, answer in QUESTIONS * 6]
    write_rows(folder / "data/tuned", {"train": rows, "val": rows[:4], "test": rows}, BLOCK, "sft")
    write_jsonl(folder / "mine.jsonl", [{"question": q, "answer": a} for q, a in QUESTIONS])
    return folder


def load_script(name):
    """A script as a module, though its name has a hyphen."""
    spec = importlib.util.spec_from_file_location(name.replace("-", "_").removesuffix(".py"), ROOT / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_here(monkeypatch, folder, module, *flags):
    """Call a script's main() in a folder, with flags."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [module.__name__, "--device=cpu", *flags])
    module.main()


def add_picky(monkeypatch):
    """Add a model "picky" to peers: it echoes a prompt, and breaks off if the prompt contains 桥."""

    def as_picky(self, prompt, body):
        (self.as_dies if "桥" in prompt else self.as_echo)(prompt, body)

    monkeypatch.setattr(peer_fakes.Handler, "as_picky", as_picky, raising=False)
