"""Measures a run: likelihood of articles or answers, answers to three sets of questions, empty brackets."""

import re

import numpy as np
import torch

from data_utils import open_rows
from minigpt.checkpoint import load_checkpoint, load_model
from minigpt.evaluation.models import checkpoints_of
from minigpt.evaluation.prompts import pairs_of_rows
from minigpt.experiments.data import QUESTION_SETS, questions_of_set
from minigpt.inference.engine import TextGenerator
from minigpt.inference.likelihood import likelihood
from minigpt.inference.params import SamplingParams
from minigpt.metrics import rouge_l, score_pairs
from minigpt.run_log import LOG, log_lines

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=48)
HOT = SamplingParams(temperature=1.5, top_k=20, max_new_tokens=48, seed=0)
WARM = SamplingParams(temperature=0.8, top_k=0, max_new_tokens=64, seed=0)
MAX_CONTINUATIONS = 300  # articles that a pretrained model continues
EMPTY_BRACKETS = re.compile(r"[（(【「『《“]\s*[）)】」』》”]")
BATCH_SIZE = 64


def measure_run(plan, run, place, threads):
    """Figures, a dict, of a finished run in the folder `place`."""
    torch.set_num_threads(threads)
    lines = log_lines(place / LOG)
    figures = {"seconds": lines[-1]["seconds"], "steps": lines[-1]["step"], "tokens": lines[-1]["tokens"]}
    figures["curve"] = [
        {key: line[key] for key in ("step", "epoch", "train_loss", "val_loss")} for line in lines if line["val_loss"]
    ]
    figures |= measure_checkpoint(plan, run, place / "last.pt")
    if run.each_epoch and run.tunes:
        figures["epochs"] = []
        for path in checkpoints_of(place):
            at_epoch = measure_checkpoint(plan, run, path, hot=True)
            figures["epochs"].append(at_epoch)
    return figures


def measure_checkpoint(plan, run, path, hot=False):
    """Figures of one checkpoint. hot: answers at temperature 1.5 are measured, too."""
    content = load_checkpoint(path)
    model, tokenizer = load_model(content)
    generator = TextGenerator(model, tokenizer, content["stage"], BATCH_SIZE)
    rows, meta = open_rows(plan.folder / "rows" / run.rows, "test" if run.tunes else "val")
    measured = likelihood(model, rows, meta, BATCH_SIZE, tokenizer)
    figures = {
        "step": content["progress"]["step"], "epoch": content["progress"]["epoch"], "loss": measured.loss,
        "perplexity": measured.perplexity, "bits_per_char": measured.bits_per_char,
    }  # fmt: skip
    if not run.tunes:
        return {**figures, **measure_continuations(generator, rows, meta)}
    for name in QUESTION_SETS:
        questions, references = zip(*questions_of_set(plan, name), strict=True)
        answers = generator.generate(questions, GREEDY)
        figures[name] = score_pairs(answers, references)
        if hot and name != "never_seen":
            heated = generator.generate(questions, HOT)
            figures[name]["changed_by_heat"] = float(np.mean([a != b for a, b in zip(answers, heated, strict=True)]))
            figures[name]["exact_match_hot"] = score_pairs(heated, references)["exact_match"]
    return figures


def measure_continuations(generator, rows, meta):
    """Continuations of articles about subjects never seen: the share with empty brackets, and Rouge-L F."""
    pairs = pairs_of_rows(rows, meta, generator.tokenizer)[:MAX_CONTINUATIONS]
    prompts, references = zip(*pairs, strict=True)
    texts = generator.generate(prompts, WARM)
    return {
        "empty_brackets": float(np.mean([bool(EMPTY_BRACKETS.search(text)) for text in texts])),
        "continuation_rouge_l": float(np.mean([rouge_l(*pair)[2] for pair in zip(texts, references, strict=True)])),
    }
