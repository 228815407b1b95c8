"""Whole runs of train.py as processes of their own, small enough for a test."""

import json
import os
import subprocess
import sys
from pathlib import Path

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None

import torch
from corpora import ROOT, byte_tokenizer, made_up_articles, made_up_questions

import train
from minigpt.corpus.row_files import RowWriter
from minigpt.settings.stages import TrainSettings
from minigpt.training.setup import TrainingRun

TINY = {
    "block_size": 96,
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 32,
    "batch_size": 8,
    "max_iters": 12,
    "eval_interval": 4,
    "log_interval": 1,
    "warmup_iters": 2,
    "dtype": "float32",
    "compile": "off",
    "device": "cpu",
    "dropout": 0.1,
    "optimizer": "adamw",
    "learning_rate": 6e-4,
}


def write_stages(folder):
    """Prepared rows of both stages under a folder: {"pretrain": folder, "sft": folder}."""
    tokenizer = byte_tokenizer()
    articles = [tokenizer.encode(row["text"])[:90] for row in made_up_articles(16)]
    questions = [
        [*tokenizer.encode(qa["question"])[:40], tokenizer.answer_id, *tokenizer.encode(qa["answer"])[:40]]
        for qa in made_up_questions(16)
    ]
    for stage, rows in (("pretrain", articles), ("sft", questions)):
        with RowWriter(folder / stage, ["train", "val"], TINY["block_size"], tokenizer) as writer:
            for i, ids in enumerate(rows):
                writer.add("val" if i % 6 == 0 else "train", ids, len(ids))
            writer.finish({"stage": stage})
    return {stage: str(folder / stage) for stage in ("pretrain", "sft")}


def arguments(**settings):
    """TINY and other settings as flags."""
    return [f"--{key}={value}" for key, value in {**TINY, **settings}.items()]


def start(*flags, processes=1, largest_file=None, script=ROOT / "train.py", torchrun=("--standalone",)):
    """A running train.py, under torchrun where it has several processes; one thread each.

    script: one to run in its place; torchrun: flags of torchrun's own; largest_file: bytes that a file may have, which
    is how a full disk is played (not on Windows).
    """
    limit = largest_file and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file)))
    launcher = ["-m", "torch.distributed.run", *torchrun, f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), str(script), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.Popen(
        command, stdout=-1, stderr=subprocess.STDOUT, encoding="utf-8", env=environment, preexec_fn=limit
    )


def run_here(**settings):
    """Train in this process, with one thread, by TINY and other settings; returns what it printed."""
    threads, lines = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        train.train(TrainingRun(TrainSettings(**{**TINY, **settings}), say=lines.append))
    finally:
        torch.set_num_threads(threads)
    return "\n".join(lines)


def finish(process, timeout=240):
    """What a process wrote, once it has ended well."""
    out, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, out
    return out


def log_of(folder):
    """Lines of a run's log without the clock times."""
    lines = map(json.loads, Path(folder, "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def finish_run(**settings):
    """A `TrainingRun` of these settings, trained to its end in this process without a word."""
    run = TrainingRun(TrainSettings(**settings), say=lambda line: None)
    train.train(run)
    return run
