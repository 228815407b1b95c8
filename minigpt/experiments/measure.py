"""What is measured of a run: likelihood of articles and answers, answers to three sets of questions, empty brackets."""

import re

import numpy as np
import torch

from data_utils import open_rows
from minigpt.checkpoint import load_checkpoint, load_model
from minigpt.evaluation.models import checkpoints_of
from minigpt.evaluation.prompts import pairs_of_rows
from minigpt.experiments.plan import SETS, questions_of
from minigpt.inference.engine import TextGenerator
from minigpt.inference.likelihood import likelihood
from minigpt.inference.params import SamplingParams
from minigpt.metrics import rouge_l, score_pairs
from minigpt.run_log import LOG, log_lines

VERSION = 1  # another number measures all runs anew
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=48)
HOT = SamplingParams(temperature=1.5, top_k=20, max_new_tokens=48, seed=0)
WARM = SamplingParams(temperature=0.8, top_k=0, max_new_tokens=64, seed=0)
CONTINUED = 300  # articles that a pretrained model writes
EMPTY = re.compile(r"[（(【「『《“]\s*[）)】」』》”]")
BATCH = 64


def measure(plan, run, place, threads):
    """Figures of a finished run."""
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
    """Figures of one checkpoint. hot: trained questions at temperature 1.5, too."""
    content = load_checkpoint(path)
    model, tokenizer = load_model(content)
    generator = TextGenerator(model, tokenizer, content["stage"], BATCH)
    rows, meta = open_rows(plan.folder / "rows" / run.rows, "test" if run.tunes else "val")
    told = likelihood(model, rows, meta, BATCH, tokenizer)
    figures = {
        "step": content["progress"]["step"], "epoch": content["progress"]["epoch"], "loss": told.loss,
        "perplexity": told.perplexity, "bits_per_char": told.bits_per_char,
    }  # fmt: skip
    if not run.tunes:
        return {**figures, **measure_continuations(generator, rows, meta)}
    for name in SETS:
        questions, references = zip(*questions_of(plan, name), strict=True)
        answers = generator.generate(questions, GREEDY)
        figures[name] = score_pairs(answers, references)
        if hot and name != "never_seen":
            heated = generator.generate(questions, HOT)
            figures[name]["changed_by_heat"] = float(np.mean([a != b for a, b in zip(answers, heated, strict=True)]))
            figures[name]["exact_match_hot"] = score_pairs(heated, references)["exact_match"]
    return figures


def measure_continuations(generator, rows, meta):
    """Articles of subjects never seen, gone on with: how many have empty brackets, and Rouge-L."""
    pairs = pairs_of_rows(rows, meta, generator.tokenizer)[:CONTINUED]
    prompts, references = zip(*pairs, strict=True)
    texts = generator.generate(prompts, WARM)
    return {
        "empty_brackets": float(np.mean([bool(EMPTY.search(text)) for text in texts])),
        "continuation_rouge_l": float(np.mean([rouge_l(*pair)[2] for pair in zip(texts, references, strict=True)])),
    }
