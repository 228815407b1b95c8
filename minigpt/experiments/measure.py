"""Measures a run: likelihood of articles or answers, answers to three sets of questions, corrections, and what a run's
probes say: repetition, temperature, the same texts under several models, kinds of characters."""

import random
import re
from itertools import product

import numpy as np
import torch

from data_utils import make_batch, open_rows
from minigpt.checkpoint import BEST, LAST, load_checkpoint, load_model
from minigpt.evaluation.correction import (
    NO_SYSTEM_PROMPT,
    SYSTEM_PROMPT,
    ExampleSampler,
    build_chat,
    correction_figures,
    to_cases,
)
from minigpt.evaluation.models import checkpoints_of
from minigpt.evaluation.prompts import pairs_of_rows
from minigpt.experiments.curves import (
    CHARACTER_CLASSES,
    bits_by_class,
    classes_of_tokens,
    curve_figures,
    learned_at,
)
from minigpt.experiments.data import QUESTION_SETS, questions_of_set
from minigpt.inference.engine import TextGenerator
from minigpt.inference.likelihood import likelihood
from minigpt.inference.params import SamplingParams
from minigpt.metrics import exact_match, repetition, rouge_l, score_pairs
from minigpt.run_log import LOG, log_lines
from model import GPT, GPTConfig

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=48)
HOT = SamplingParams(temperature=1.5, top_k=20, max_new_tokens=48, seed=0)
WARM = SamplingParams(temperature=0.8, top_k=0, max_new_tokens=64, seed=0)
MAX_CONTINUATIONS = 300  # articles that a pretrained model continues
PROBED_TEMPERATURES = (0.1, 0.4)  # of continuations that are searched for repetitions
PROBED_CONTINUATIONS = 100
PROBED_ROWS = 200  # of each part, whose characters are measured
HEAT = (0.1, 1.5)  # temperatures of answers
MAX_CORRECTIONS, MAX_PROMPTED = 300, 100  # sentences; those that are asked for with every prompt
CORRECTION_SHOTS = (0, 1, 2)
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
    figures["losses"] = curve_figures(figures["curve"])
    if not run.asked:
        return figures
    if run.corrects:
        return figures | measure_correcting(plan, run, place / LAST)
    figures |= measure_checkpoint(plan, run, place / LAST)
    for probe in run.probes:
        figures[probe] = PROBES[probe](plan, run, place)
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
        figures[name] = score_pairs(answers, references) | score_wrong(answers, references)
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


def score_wrong(answers, references):
    """Figures of the answers that are not the reference. wrong: their share; wrong_rouge_l: their mean Rouge-L F;
    other_rouge_l: the same of an answer to another question, drawn at random, in the place of each."""
    wrong = [pair for pair in zip(answers, references, strict=True) if not exact_match(*pair)]
    others = random.Random(0).choices(references, k=len(wrong))
    figures = {"wrong": len(wrong) / len(references), "wrong_rouge_l": None, "other_rouge_l": None}
    if wrong:
        figures["wrong_rouge_l"] = float(np.mean([rouge_l(*pair)[2] for pair in wrong]))
        drawn = [rouge_l(other, reference)[2] for other, (_, reference) in zip(others, wrong, strict=True)]
        figures["other_rouge_l"] = float(np.mean(drawn))
    return figures


# Probes: (plan, run, its folder) -> figures


def load_generator(path):
    """(generator, tokenizer) of a checkpoint."""
    content = load_checkpoint(path)
    model, tokenizer = load_model(content)
    return TextGenerator(model, tokenizer, content["stage"], BATCH_SIZE), tokenizer


def temperature_key(temperature):
    """0.1 -> "t01": names of figures have no dot."""
    return f"t{temperature:.1f}".replace(".", "")


def probe_repetition(plan, run, place, name=LAST):
    """Of continuations of articles at PROBED_TEMPERATURES, and of the articles: mean `repetition`, and Rouge-L F."""
    generator, tokenizer = load_generator(place / name)
    rows, meta = open_rows(plan.folder / "rows" / run.rows, "val")
    pairs = pairs_of_rows(rows, meta, tokenizer)
    drawn = random.Random(0).sample(pairs, min(PROBED_CONTINUATIONS, len(pairs)))
    prompts, references = zip(*drawn, strict=True)
    figures = {"articles": {"repeated": float(np.mean([repetition(text) for text in references]))}}
    for temperature in PROBED_TEMPERATURES:
        params = SamplingParams(temperature=temperature, top_k=20, max_new_tokens=plan.settings.block_size, seed=0)
        texts = generator.generate(prompts, params)
        # A longer text repeats more: what goes on beyond its article is left out.
        cut = [text[: len(reference)] for text, reference in zip(texts, references, strict=True)]
        figures[temperature_key(temperature)] = {
            "repeated": float(np.mean([repetition(text) for text in cut])),
            "rouge_l": float(np.mean([rouge_l(*pair)[2] for pair in zip(texts, references, strict=True)])),
        }
    return figures


def probe_heat(plan, run, place):
    """Of answers to trained questions at the temperatures HEAT: exact match and number accuracy; the share of answers
    that the two give alike."""
    generator, _ = load_generator(place / LAST)
    questions, references = zip(*questions_of_set(plan, "trained"), strict=True)
    figures, given = {}, []
    for temperature in HEAT:
        params = SamplingParams(temperature=temperature, top_k=20, max_new_tokens=48, seed=0)
        given.append(generator.generate(questions, params))
        scores = score_pairs(given[-1], references)
        figures[temperature_key(temperature)] = {key: scores[key] for key in ("exact_match", "numbers")}
    return figures | {"alike": float(np.mean([a == b for a, b in zip(*given, strict=True)]))}


def probe_texts(plan, run, place):
    """The loss, in nats a token, of the same texts under each model: articles about subjects never seen, their first
    tokens, as many as an answer has, and answers about subjects never asked about."""
    generator, _ = load_generator(place / LAST)
    articles, of_articles = open_rows(plan.folder / "rows" / "plain", "val")
    answers, of_answers = open_rows(plan.folder / "rows" / "questions_1.0", "test")

    def loss(rows, meta):
        return likelihood(generator.model, rows, meta, BATCH_SIZE)

    measured = loss(answers, of_answers)
    starts = np.array(articles)
    starts[:, 1 + round(measured.tokens / len(answers)) :] = of_articles["special_ids"]["pad"]
    return {
        "articles": loss(articles, of_articles).loss, "starts": loss(starts, of_articles).loss,
        "answers": measured.loss, "answer_tokens": measured.tokens / len(answers),
    }  # fmt: skip


def probe_characters(plan, run, place):
    """Bits a character of digits, Han characters, punctuation and others, in each checkpoint and before training.

    {"val", "train": [{"step", class: bits}, …]} of articles about subjects never seen and of some that are trained on;
    "learned": {part: {class: `learned_at`}}.
    """
    paths = [path for path in checkpoints_of(place) if path.name.startswith("step_")]
    content = load_checkpoint(paths[0])
    tokenizer = load_model(content)[1]
    torch.manual_seed(0)
    untrained = GPT(GPTConfig(**content["model_args"])).eval()
    folder, figures = plan.folder / "rows" / run.rows, {"learned": {}}
    parts = {}
    for part in ("val", "train"):
        rows, meta = open_rows(folder, part)
        drawn = sorted(random.Random(0).sample(range(len(rows)), min(PROBED_ROWS, len(rows))))
        batches = [make_batch(rows[drawn[i : i + BATCH_SIZE]], meta) for i in range(0, len(drawn), BATCH_SIZE)]
        parts[part] = batches, [known for batch in batches for known in classes_of_batch(*batch, tokenizer)]
        figures[part] = []
    for step, model in [(0, untrained), *((None, path) for path in paths)]:
        if step is None:
            content = load_checkpoint(model)
            step, model = content["progress"]["step"], load_model(content)[0]
        for part, (batches, classes) in parts.items():
            with torch.no_grad():
                nats = torch.cat([model.token_losses(*batch) for batch in batches]).double().numpy()
            figures[part].append({"step": step, **bits_by_class(classes, nats)})
    for part in parts:
        steps = [line["step"] for line in figures[part]]
        figures["learned"][part] = {
            name: learned_at(steps, [line[name] for line in figures[part]])
            for name in CHARACTER_CLASSES
            if name in figures[part][0]
        }
    return figures


def classes_of_batch(x, y, mask, tokenizer):
    """`classes_of_tokens` of the targets with a loss of a batch, row by row. x, y, mask: (B, T)."""
    for row, kept in zip(y, mask, strict=True):
        yield from classes_of_tokens([tokenizer.token_bytes(token_id) for token_id in row[kept].tolist()])


def probe_early(plan, run, place):
    """`probe_repetition`, and the step and the perplexity, of the checkpoint with the lowest validation loss."""
    content = load_checkpoint(place / BEST)
    model, _ = load_model(content)
    rows, meta = open_rows(plan.folder / "rows" / run.rows, "val")
    perplexity = likelihood(model, rows, meta, BATCH_SIZE).perplexity
    return {"step": content["progress"]["step"], "perplexity": perplexity, **probe_repetition(plan, run, place, BEST)}


PROBES = {
    "repetition": probe_repetition, "heat": probe_heat, "texts": probe_texts, "characters": probe_characters,
    "early": probe_early,
}  # fmt: skip


# Corrections


def measure_correcting(plan, run, path):
    """Figures of the corrections of sentences about subjects that nothing was pretrained on. "prompts", of runs with
    that probe: the same with system prompts and examples, of fewer sentences."""
    content = load_checkpoint(path)
    model, tokenizer = load_model(content)
    generator = TextGenerator(model, tokenizer, content["stage"], BATCH_SIZE)
    folder, drawn = plan.folder / "rows" / run.rows, random.Random(0)
    rows, meta = open_rows(folder, "test")
    pairs = pairs_of_rows(rows, meta, tokenizer)
    cases = to_cases(drawn.sample(pairs, min(MAX_CORRECTIONS, len(pairs))), {})
    figures = {"test_loss": likelihood(model, rows, meta, BATCH_SIZE).loss}
    figures["corrections"] = ask_corrections(generator, cases, "", lambda case: ())
    if "prompts" in run.probes:
        pool, _ = open_rows(folder, "train")
        sampler = ExampleSampler(to_cases(pairs_of_rows(pool[:: max(1, len(pool) // 1000)], meta, tokenizer), {}), 0)
        figures["prompts"] = []
        asked = drawn.sample(cases, min(MAX_PROMPTED, len(cases)))
        for system, shots in product(("", SYSTEM_PROMPT), CORRECTION_SHOTS):
            measured = ask_corrections(generator, asked, system, lambda case, shots=shots: sampler.draw(case, shots))
            figures["prompts"].append({"system": system or NO_SYSTEM_PROMPT, "shots": shots, **measured})
    return figures


def ask_corrections(generator, cases, system, examples):
    """Exact match on sentences to change and to keep, F0.5 of the edits, the share of answers that change nothing, and
    the share of prompts that are too long for the block. examples(case): those of a prompt."""
    prompts = [generator.prompt_ids(build_chat(case, system, examples(case))) for case in cases]
    streams = generator.generate_streams(prompts, GREEDY)
    measured = correction_figures(cases, ["".join(stream) for stream in streams], resamples=1)
    return {
        "to_change": measured["to_change"], "to_keep": measured["to_keep"], "unchanged": measured["unchanged"],
        "edit_f": measured["edits"]["f0_5"], "cut": float(np.mean([stream.prompt_cut for stream in streams])),
    }  # fmt: skip
