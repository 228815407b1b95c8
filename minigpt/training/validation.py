"""What a run is judged by while it trains: validation loss, a sample, and how many training questions it answers."""

import contextlib
import math

import numpy as np

from data_utils import row_prompts, split_row
from minigpt.corpus.chat import forbidden_ids
from minigpt.corpus.tasks import PAIR
from minigpt.device import explain_out_of_memory
from minigpt.huggingface_tokenizer import HuggingFaceTokenizer
from minigpt.inference.classify import Classifier, label_line
from minigpt.inference.engine import TextGenerator
from minigpt.inference.masks import MASK, MaskFiller, filled_line
from minigpt.inference.params import SamplingParams
from minigpt.metrics import exact_match
from minigpt.tokenizer import ANSWER_TEXT

QUESTIONS_ASKED = 200  # 95% of such samples are within 0.04 of a share of 0.90
SAMPLE_PARAMS = SamplingParams(temperature=0.0, max_new_tokens=40)
SAMPLE_PROMPT_TOKENS = 8
WATCHED_PARAMS = SamplingParams(temperature=0.0, max_new_tokens=24)
SHOWN_CHARS = 60  # of a line of watched_lines, and of the text whose label is the sample
MASKED_SAMPLE_TOKENS, MASKED_EVERY = 24, 6  # of the sample of masked language modelling: length, and distance of masks


def validate(run):
    """Validation loss of a `TrainingRun`'s model, by its objective."""
    run.model.eval()
    with explain_out_of_memory(run.device):
        loss = run.divided.validation_loss() if run.divided else run.objective.validate(run)
    run.model.train()
    return loss


@contextlib.contextmanager
def generator_of(run, max_batch=32):
    """Context manager: a `TextGenerator` of the model as it is now. The model is in eval mode meanwhile."""
    run.model.eval()
    generator = TextGenerator(run.model, run.data.tokenizer, run.data.meta["stage"], max_batch)
    if run.sharded:  # all processes must ask for the same forward passes, though GPUs may round differently
        choose = generator.engine.choose
        generator.engine.choose = lambda *drawn: run.processes.from_main(choose(*drawn))
    try:
        yield generator
    finally:
        generator.close()
        run.model.train()


def sample_line(run):
    """A line of text that the model generates now, from sample_prompt or the start of a validation row."""
    data, prompt = run.data, run.settings.sample_prompt
    if (line := run.objective.sample_line(run)) is not None:
        return line.replace("\n", " ")
    if prompt or data.meta["stage"] in SAMPLES:
        (line,) = prompt_lines(run, [prompt], SAMPLE_PARAMS)
        return line
    row = first_rows(data.val)[0]
    prompt = shown = data.tokenizer.decode(row[:SAMPLE_PROMPT_TOKENS])
    if data.meta["stage"] == "sft":
        prompt, _ = row_prompts(row, data.meta["special_ids"])[0]
        shown = data.tokenizer.decode(split_row(row, data.meta["special_ids"])[0][0])
    (text,) = generated_texts(run, [prompt], SAMPLE_PARAMS)
    return f"{shown} → {text}".replace("\n", " ")


def watched_lines(run):
    """What the model generates now for the prompts of the setting watch_prompts, as lines."""
    p = run.progress
    lines = prompt_lines(run, run.settings.watch_prompts, WATCHED_PARAMS)
    lines = [line if len(line) <= SHOWN_CHARS else f"{line[:SHOWN_CHARS]}…" for line in lines]
    return [f"{p.step / p.max_iters:4.0%}  {line}" for line in lines]


def prompt_lines(run, prompts, params):
    """["prompt → what the model makes of it", …] for texts: generated text, a label, or what is behind the masks."""
    stage = run.data.meta["stage"]
    if stage in SAMPLES:
        run.model.eval()
        lines = [SAMPLES[stage](run, prompt) for prompt in prompts]
        run.model.train()
    else:
        texts = generated_texts(run, prompts, params)
        lines = [f"{prompt} → {text}" for prompt, text in zip(prompts, texts, strict=True)]
    return [line.replace("\n", " ") for line in lines]


def generated_texts(run, prompts, params):
    """The greedy text after each prompt (text, or a list of ids), by the model as it is now."""
    if run.divided:
        return [greedy_text(run, prompt, params.max_new_tokens) for prompt in prompts]
    with generator_of(run, max_batch=len(prompts)) as generator:
        return generator.generate(prompts, params)


def greedy_text(run, prompt, n):
    """The n likeliest tokens after a prompt (text, or a list of ids), as text, by a divided model. It has no KV cache:
    each token takes a pass over all before it."""
    tokenizer, stage = run.data.tokenizer, run.data.meta["stage"]
    stops = tokenizer.stop_ids if isinstance(tokenizer, HuggingFaceTokenizer) else [tokenizer.eot_id]
    never = [token_id for token_id in forbidden_ids(tokenizer, stage) if token_id < tokenizer.n_vocab]
    ids = tokenizer.encode_prompt(prompt, answer=stage == "sft") if isinstance(prompt, str) else list(prompt)
    ids = ids or [tokenizer.eot_id]
    ids = ids[-max(1, run.model.config.block_size - n) :]
    begin = len(ids)
    run.model.eval()
    while len(ids) < begin + n:
        logits = run.divided.last_logits(ids)[: tokenizer.n_vocab]
        logits[never] = -math.inf
        ids.append(run.processes.from_main(int(logits.argmax())))  # GPUs may round differently
        if ids[-1] in stops:
            break
    run.model.train()
    return tokenizer.decode([token_id for token_id in ids[begin:] if token_id not in stops])


def first_rows(rows):
    """Rows (n, block_size) of a part; of pairs (n, 2, block_size) those of the chosen answers."""
    return rows[:, 0] if rows.ndim == 3 else rows


def label_sample(run, text):
    """A line with a text and the label or entities that the model gives it now; "": that of a validation row."""
    data = run.data
    classifier = Classifier(run.model, data.tokenizer, data.meta["task"])
    if not text:
        ids, is_pair = data.val[0][0], classifier.kind == PAIR
        texts = np.split(ids, np.flatnonzero(ids == data.tokenizer.eot_id))[: 1 + is_pair]
        text = tuple(map(data.tokenizer.decode, texts)) if is_pair else data.tokenizer.decode(texts[0])
    shown = text if isinstance(text, str) else f" {ANSWER_TEXT} ".join(text)
    shown = shown if len(shown) <= SHOWN_CHARS else shown[:SHOWN_CHARS] + "…"
    return f"{shown} → {label_line(classifier, text)}"


def fill_sample(run, text):
    """A line with a text and what the model finds for its masks now; "": the start of a validation row is masked."""
    filler = MaskFiller(run.model, run.data.tokenizer)
    if text:
        return f"{text} → {filled_line(filler.fill(text))}"
    ids = run.data.val[0][:MASKED_SAMPLE_TOKENS].tolist()
    special = run.data.meta["special_ids"]
    ids = [token_id for token_id in ids if token_id not in (special["eot"], special["pad"])]
    ids[MASKED_EVERY - 1 :: MASKED_EVERY] = [special["answer"]] * (len(ids) // MASKED_EVERY)
    shown = run.data.tokenizer.decode(ids).replace(ANSWER_TEXT, MASK)
    return f"{shown} → {filled_line(filler.fill_ids(ids))}"


# By the stage of the rows: what makes the sample of a model that generates no text, as (run, sample_prompt) -> line.
SAMPLES = {"task": label_sample, "mlm": fill_sample}


def answered_share_of(run):
    """Share of training questions that the model answers now; None unless the setting stop_at_answered needs it."""
    if not run.settings.stop_at_answered:
        return None
    with explain_out_of_memory(run.device), generator_of(run) as generator:
        share = answered_share(generator, first_rows(run.data.train), run.data.meta)
    return run.processes.from_main(share)


def answered_share(generator, rows, meta, n=QUESTIONS_ASKED):
    """Share, 0 to 1, of n fine-tuning rows (rows, block_size) that a greedy answer repeats word for word.

    generator: a `TextGenerator`. The n rows (all, where there are fewer) are spread evenly over the file. Of a row of
    several turns, the last question is asked, behind the turns before it.
    """
    tokenizer = generator.tokenizer
    places = np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(int)
    pairs = [row_prompts(row, meta["special_ids"])[-1] for row in rows[places]]
    prompts = [prompt for prompt, _ in pairs]
    # One token more than the answer shows whether the model stops where the answer ends.
    params = [SamplingParams(temperature=0.0, max_new_tokens=len(answer) + 1) for _, answer in pairs]
    texts = generator.generate(prompts, params)
    right = [exact_match(text, tokenizer.decode(answer)) for text, (_, answer) in zip(texts, pairs, strict=True)]
    return sum(right) / len(right)
