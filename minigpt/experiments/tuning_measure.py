"""Measures a run of the comparison of tuning methods: what it can do, what it costs, and what it has forgotten."""

import random

import numpy as np
import torch

from data_utils import open_rows, row_lengths
from minigpt.checkpoint import BEST, load_checkpoint, load_model
from minigpt.corpus.tasks import CLASSIFY
from minigpt.evaluation.prompts import pairs_of_rows
from minigpt.evaluation.task_predictors import LikelihoodPredictor
from minigpt.evaluation.task_prompts import TaskPrompter, TaskShots, word_task
from minigpt.evaluation.tasks import head_predictor, load_task
from minigpt.formats.weights import to_huggingface
from minigpt.inference.classify import Classifier
from minigpt.inference.engine import TextGenerator
from minigpt.inference.likelihood import likelihood
from minigpt.inference.params import SamplingParams
from minigpt.metrics import label_accuracy, score_pairs
from model import GPTConfig

TUNED_GREEDY = SamplingParams(temperature=0.0, max_new_tokens=48)
SHOTS_OF_TEXT, SHOTS_OF_LABELS = 4, 8  # examples in a prompt; of labels more, since an answer is a word
VIRTUAL_ROOM = 20  # positions that virtual tokens take; pretraining rows that leave fewer are not measured
MEASURED_BATCH = 64
ENERGY_SHARE = 0.9


def measure_tuning(plan, run, seed, cost, threads):
    """Figures, a dict, of a finished run. cost: its `Cost`, or None for one that trained nothing: few-shot."""
    torch.set_num_threads(threads)
    if not run.task:
        return measure_base(plan, cost)
    if cost is None:
        return measure_few_shot(plan, run, seed)
    path = plan.place(run.name, seed) / BEST
    content = load_checkpoint(path)
    figures = {
        "parameters": sum(tensor.numel() for name, tensor in content["model"].items() if not is_tied(name, content)),
        "file_kb": path.stat().st_size / 1000, "cpu_seconds": cost.cpu_seconds, "peak_mb": cost.peak_bytes / 1e6,
    }  # fmt: skip
    if run.method.startswith("full") and run.task == "questions":
        base = load_checkpoint(plan.base_path(run.base_share))
        figures["singular"] = measure_changes(base["model"], content["model"], GPTConfig(**base["model_args"]))
    model, tokenizer = load_model(content)
    if run.task == "field":
        predict = head_predictor(Classifier(model, tokenizer, content["task"]))
        return figures | measure_labels(plan, run, predict)
    figures |= measure_answers(plan, run, TextGenerator(model, tokenizer, "sft", MEASURED_BATCH))
    return figures | {"perplexity": article_perplexity(plan, model)}


def is_tied(name, content):
    """Whether a tensor of a checkpoint's dict is there under another name, too."""
    return name == "lm_head.weight" and content["model_args"]["tied"] and "wte.weight" in content["model"]


def measure_base(plan, cost):
    """Figures of the base: its cost, and the perplexity of its checkpoints on articles, by their share of training."""
    perplexities = {}
    for share in sorted({run.base_share for run in plan.runs.values()}):
        model, _ = load_model(load_checkpoint(plan.base_path(share)))
        perplexities[str(share)] = article_perplexity(plan, model)
    return {
        "cpu_seconds": cost.cpu_seconds,
        "parameters": model.num_params(),
        "perplexity": perplexities["1.0"],
        "perplexities": perplexities,
    }


def article_perplexity(plan, model):
    """Perplexity on pretraining's validation part. Rows that leave no room for virtual tokens are left out, for every
    model alike."""
    rows, meta = open_rows(plan.rows_folder("articles"), "val")
    fits = row_lengths(rows, meta["special_ids"]["pad"]) + VIRTUAL_ROOM <= meta["block_size"]
    return likelihood(model, rows[fits], meta, MEASURED_BATCH).perplexity


# What it can do


def sampled_pairs(folder, part, count, tokenizer):
    """[(question, answer)] of a part of a folder of rows, at most `count`, the same ones at each call."""
    rows, meta = open_rows(folder, part)
    places = sorted(random.Random(0).sample(range(len(rows)), min(count, len(rows))))
    return pairs_of_rows(rows[places], meta, tokenizer)


def measure_answers(plan, run, generator):
    """Figures of the greedy answers to held-out questions, and to some of those that were trained on."""
    figures, folder = {}, plan.rows_folder(run.rows)
    for part, key in (("test", "heldout"), ("train", "trained")):
        pairs = sampled_pairs(folder, part, plan.settings.max_samples, generator.tokenizer)
        answers = generator.generate([question for question, _ in pairs], TUNED_GREEDY)
        figures[key] = score_answers(pairs, answers)
    rows, meta = open_rows(folder, "test")
    figures["test_loss"] = likelihood(generator.model, rows, meta, MEASURED_BATCH).loss
    return with_gap(figures, "exact_match")


def score_answers(pairs, answers):
    """Scores of answers to [(question, reference)]; for corrections also of sentences to change and to keep."""
    references = [reference for _, reference in pairs]
    scores = score_pairs(answers, references)
    for key, changes in (("to_change", True), ("to_keep", False)):
        chosen = [
            (answer, reference)
            for (question, reference), answer in zip(pairs, answers, strict=True)
            if (question.strip() != reference.strip()) is changes
        ]
        scores[key] = score_pairs(*zip(*chosen, strict=True))["exact_match"] if chosen else None
    return scores


def measure_labels(plan, run, predict):
    """Figures of predicted labels: of the test part, and of some training texts."""
    figures = {}
    for part, key in (("test", "heldout"), ("train", "trained")):
        count = 0 if part == "test" else plan.settings.max_samples
        task = load_task(str(plan.rows_folder(run.rows)), part, count)
        labels = [each.label for each in predict(task.examples)]
        figures[key] = {"accuracy": label_accuracy(labels, [example.label for example in task.examples])}
    return with_gap(figures, "accuracy")


def with_gap(figures, name):
    """Figures with `quality`, that of held-out examples; `trained_quality`; and how much better the latter is."""
    quality, trained = figures["heldout"][name], figures["trained"][name]
    return figures | {"quality": quality, "trained_quality": trained, "gap": trained - quality}


# The base, asked with examples


def measure_few_shot(plan, run, seed):
    """Figures of the base, asked with examples of the training part that the seed draws. Nothing is trained."""
    content = load_checkpoint(plan.base_path(run.base_share))
    model, tokenizer = load_model(content)
    generator = TextGenerator(model, tokenizer, "pretrain", MEASURED_BATCH)
    folder, figures = plan.rows_folder(run.rows), {"parameters": 0}
    if run.task == "field":
        task = load_task(str(folder), "test")
        told = word_task(run.task, CLASSIFY, task.labels)
        shots = TaskShots(task.training, seed)
        prompter = TaskPrompter(told, shots, SHOTS_OF_LABELS, stage="pretrain")
        labels = [each.label for each in LikelihoodPredictor(generator, prompter, "auto")(task.examples)]
        figures["heldout"] = {"accuracy": label_accuracy(labels, [example.label for example in task.examples])}
        return figures | {"quality": figures["heldout"]["accuracy"]}
    pairs = sampled_pairs(folder, "test", plan.settings.max_samples, tokenizer)
    examples = sampled_pairs(folder, "train", 1 << 30, tokenizer)
    rng, prompts = random.Random(seed), []
    for question, _ in pairs:
        texts = [text for pair in rng.sample(examples, min(SHOTS_OF_TEXT, len(examples))) for text in pair]
        prompts.append([{"role": "user", "content": text} for text in (*texts, question, "")])
    answers = generator.generate([generator.prompt_ids(prompt) for prompt in prompts], TUNED_GREEDY)
    # It goes on after its answer: the first line counts.
    answers = [(text.strip().splitlines() or [""])[0] for text in answers]
    figures["heldout"] = score_answers(pairs, answers)
    return figures | {"quality": figures["heldout"]["exact_match"]}


# How much the matrices change


def measure_changes(before, after, config):
    """{matrix: figures of `change_figures`} of the blocks' matrices and the embedding, by Hugging Face's names."""
    before, after = (dict(to_huggingface(weights, config)) for weights in (before, after))
    return {
        name: change_figures(after[name].double() - before[name].double(), before[name].double())
        for name in before
        if before[name].ndim == 2 and name != "lm_head.weight"
    }


def change_figures(change, weight):
    """Figures of the change (out, in) of a matrix `weight` by its singular values s, largest first.

    effective_rank: exp of the entropy of p = s / sum(s) (Roy and Vetterli 2007, "The effective rank", definition 1);
    stable_rank: sum(s²) / max(s)²; energy_rank: the fewest singular values that have ENERGY_SHARE of sum(s²);
    relative: Frobenius norm of the change over that of the matrix; values: s / max(s).
    """
    s = torch.linalg.svdvals(change).numpy()
    if not s[0]:
        return {"rank": len(s), "effective_rank": 0.0, "stable_rank": 0.0, "energy_rank": 0, "relative": 0.0}
    p = s[s > 0] / s.sum()
    energy = np.cumsum(s**2) / (s**2).sum()
    return {
        "rank": len(s),
        "effective_rank": float(np.exp(-(p * np.log(p)).sum())),
        "stable_rank": float((s**2).sum() / s[0] ** 2),
        "energy_rank": int(np.searchsorted(energy, ENERGY_SHARE) + 1),
        "relative": float(change.norm() / weight.norm()),
        "values": [round(float(each), 4) for each in s / s[0]],
    }
