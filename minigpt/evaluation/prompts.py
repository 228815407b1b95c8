"""Prompts of an evaluation, with their reference answers."""

import random
import re

import numpy as np

from data_utils import check_rows, load_row_tokenizer, open_rows, read_meta, row_prompts, split_row
from minigpt.common.errors import UserError
from minigpt.corpus.questions import check_question_files, read_questions
from minigpt.corpus.records import Problems

PROMPT_END = re.compile(r"[，。；：！？]")  # an article's first clause is the prompt


class RowQuestion(str):
    """A question of a row that a chat template of others wrote. ids: all that stands before its answer in the row."""

    def __new__(cls, text, ids):
        question = super().__new__(cls, text)
        question.ids = ids
        return question


def pairs_of_rows(rows, meta, tokenizer):
    """[(prompt, reference)] of prepared rows: question and answer, or an article's first clause and the rest.

    A row of several turns gives a pair for each. The prompt of a turn behind others is a chat [{"role", "content"}].
    Of rows that a chat template of others wrote, a prompt is a `RowQuestion`, since a template is not undone.
    Articles without a clause that ends are left out.
    """
    pairs, special = [], meta["special_ids"]
    for row in rows:
        if "question" in special:
            turns = zip(split_row(row, special), row_prompts(row, special), strict=True)
            pairs += [
                (RowQuestion(tokenizer.decode(question), ids), tokenizer.decode(answer))
                for (question, answer), (ids, _) in turns
            ]
            continue
        if meta["stage"] == "sft":
            pairs += pairs_of_turns([tuple(map(tokenizer.decode, turn)) for turn in split_row(row, special)])
            continue
        ends = np.flatnonzero((row == special["eot"]) | (row == special["pad"]))
        text = tokenizer.decode(row[: ends[0]] if len(ends) else row)
        clause = PROMPT_END.search(text)
        if clause and text[clause.end() :]:
            pairs.append((text[: clause.end()], text[clause.end() :]))
    return pairs


def pairs_of_turns(turns):
    """[(prompt, answer)] of a chat's turns [(question, answer)]: a text, or a chat with the turns before it."""
    pairs, messages = [], []
    for question, answer in turns:
        asked = {"role": "user", "content": question}
        pairs.append(([*messages, asked] if messages else question, answer))
        messages += [asked, {"role": "assistant", "content": answer}]
    return pairs


def prompt_text(prompt):
    """A prompt, which may be a chat, as one text to show: a line for each message."""
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def last_question(prompt):
    """The question that a prompt ends with, without the turns before it."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def pairs_of_file(path, form):
    """[(question, answer)] of a file of questions. Rows that cannot be used are skipped and printed.

    form: the settings, whose fields of `QuestionForm` say how rows are read.
    """
    check_question_files([path], "questions")
    problems = Problems()
    pairs = [(qa.question, qa.answer) for _, qa in read_questions([path], problems, form=form)]
    for place in problems.places:
        print(f"  skipped: {place}")
    return pairs


def evaluated_part(settings, model):
    """The part of data_dir whose rows a model is asked: the setting `split`, else "test" or (articles) "val"."""
    return settings.split or ("test" if model.stage == "sft" else "val")


def prompt_source(settings, model):
    """(data_dir, part) that a model's prompts come from; None if --questions are asked."""
    return None if settings.questions else (settings.data_dir, evaluated_part(settings, model))


def check_fit(settings, model):
    """Raise UserError unless data_dir's rows fit a model. Returns their meta, or None if --questions are asked."""
    if settings.questions:
        return None
    meta = read_meta(settings.data_dir)
    if model.content:
        check_rows(settings.data_dir, meta, model.content)
    elif meta["stage"] != model.stage:
        raise UserError(f"{settings.data_dir} holds no questions; name others, or --questions=…")
    return meta


def load_pairs(settings, model):
    """[(prompt, reference)] by the settings, at most max_samples of them, drawn by the seed.

    model: the model under evaluation that prepared rows must fit. A model behind an API takes the questions of any
    folder. Raises UserError.
    """
    meta = check_fit(settings, model)
    if meta is None:
        pairs = pairs_of_file(settings.questions, settings)
    else:
        rows, _ = open_rows(settings.data_dir, evaluated_part(settings, model))
        pairs = pairs_of_rows(rows, meta, load_row_tokenizer(settings.data_dir, meta))
        if len(pairs) < len(rows):
            print(f"note: {len(rows) - len(pairs)} of {len(rows)} rows have no clause that ends, and are left out")
    return draw_samples(pairs, settings, "question")


def draw_samples(samples, settings, what):
    """At most max_samples of the samples, drawn by the seed. Raises UserError if there is none."""
    if not samples:
        raise UserError(f"no {what} could be read")
    most = min(len(samples), settings.max_samples or len(samples))
    return random.Random(settings.seed).sample(samples, most) if most < len(samples) else samples
