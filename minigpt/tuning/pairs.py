"""Pairs of answers: files of {"prompt", "chosen", "rejected"} as rows, and the batches that a model is tuned on.

A file may have any format and form that questions have (`minigpt/corpus/questions.py`): "chosen" is then the answer,
and "rejected" stands for another one. So these are read, too:
    {"prompt": [{"role", "content"}, …], "chosen": [message], "rejected": [message]}     TRL
    {"conversations": [{"from", "value"}, …], "chosen": {"from", "value"}, "rejected"}   LLaMA-Factory, ShareGPT's form
    {"instruction", "input", "chosen", "rejected"}                                       LLaMA-Factory, Alpaca's form
    {"prompt", "chosen": [the whole talk], "rejected": [the whole talk]}                 UltraFeedback
    {"chosen": "Human: … Assistant: …", "rejected": …}                                   HH-RLHF

The two rows of a pair are `prompt MARK answer EOT PAD …`, as in fine-tuning, and have the same prompt.
"""

import os
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from data_utils import BatchOrder, TrainingData, answer_mark, fill_batches, input_width, make_batch, mark_ends
from minigpt.checkpoint import check_generates, load_base, load_checkpoint, load_own_tokenizer, newest_intact
from minigpt.common.errors import UserError
from minigpt.corpus.chat import turn_ids, turn_messages
from minigpt.corpus.questions import ANSWER_NAMES, FORMS, QuestionCounts, RowParser, load_json, lower_names
from minigpt.corpus.records import Problems, dropped_text, read_rows
from minigpt.corpus.row_files import padded_rows
from minigpt.corpus.splits import hash_share
from minigpt.settings.stages import QuestionForm

ANSWERS = ("chosen", "rejected")
REWARD_TASK = {"kind": "reward", "labels": ["reward"]}
EQUAL, OTHER_PROMPTS = '"chosen" and "rejected" are equal', '"chosen" and "rejected" answer different prompts'
NO_ROOM = "the answer leaves no room in the block for its prompt"


class AnswerPair(NamedTuple):
    """A prompt with two answers. prompt: [`ChatTurn`], of which the last has no answer."""

    prompt: list
    chosen: str
    rejected: str

    @property
    def prompt_text(self):
        """The prompt as one text: a line for each message."""
        return "\n".join(message["content"] for message in turn_messages(self.prompt))


# Files


def read_pairs(files, problems):
    """Yields (file, line, `AnswerPair`) of every row of some files; other rows are added to `problems`.

    Raises UserError where a file is not there.
    """
    for path in files:
        if not os.path.isfile(path):
            raise UserError(f"{path} is not there; name your pairs of answers with --preferences=…")
        for line, row in read_rows(path, problems, one_per_line=True):
            pair, reason = parse_pair(row)
            if reason:
                problems.add(reason, path, line)
            else:
                yield path, line, pair


def parse_pair(row):
    """(`AnswerPair`, None) of a row (a dict), or (None, reason)."""
    row = lower_names(row)
    turns = []
    for name in ANSWERS:
        if name not in row:
            return None, f'no "{name}"'
        parser = RowParser(QuestionForm(), QuestionCounts(), keep_system=True)
        found, reasons = parser.parse(question_row(row, name))
        if reasons or not found:
            return None, f"{name}: {reasons[0]}" if reasons else f'"{name}" is empty'
        turns.append(found)
    prompts = [[*found[:-1], replace(found[-1], answer="")] for found in turns]
    chosen, rejected = (found[-1].answer for found in turns)
    if prompts[0] != prompts[1]:
        return None, OTHER_PROMPTS
    return (None, EQUAL) if chosen == rejected else (AnswerPair(prompts[0], chosen, rejected), None)


def question_row(row, name):
    """A row of a pair as that of a question, whose answer, in the field "chosen", is the pair's answer `name`."""
    answer = load_json(row[name])
    if isinstance(answer, list) and len(answer) > 1:  # the whole talk
        return {"chosen": answer}
    asked = {key: value for key, value in row.items() if key not in (*ANSWER_NAMES, "rejected")}
    if isinstance(answer, str) and any(form.question in asked for form in FORMS):
        answer = {"role": "assistant", "content": answer}  # no talk, whatever marks are in it
    return {**asked, "chosen": answer}


# Rows


def make_pair_rows(pair, tokenizer, block_size):
    """((2, block_size) rows of the chosen and the rejected answer, tokens that the prompt lost), or (None, reason).

    A prompt that is too long loses its beginning, as in generation, in both rows the same.
    """
    prompt = turn_ids(tokenizer, pair.prompt)
    before, last = pair.prompt[:-1], pair.prompt[-1]
    answers = [turn_ids(tokenizer, [*before, replace(last, answer=text)])[len(prompt) :] for text in pair[1:]]
    room = block_size - 1 - max(map(len, answers))
    if room <= len(answer_mark(tokenizer.special_ids())):
        return None, NO_ROOM
    rows = [[*prompt[-room:], *answer] for answer in answers]
    lengths = np.array(list(map(len, rows)))
    return padded_rows(np.concatenate(rows), lengths, block_size, tokenizer), max(0, len(prompt) - room)


def answer_targets(rows, special_ids):
    """bool (B, T-1): which of the targets `rows[:, 1:]` are those of the last answer and its EOT, for rows (B, T)."""
    places = np.arange(rows.shape[1])
    answer = np.where(mark_ends(rows, special_ids), places, -1).max(axis=1, keepdims=True)
    return (places[:-1] >= answer) & (rows[:, 1:] != special_ids["pad"])


def split_prompts(prompts, val_share):
    """bool (n,): which of n prompts (texts) are for validation, by their hashes; equal prompts are in one part.

    At least one prompt is in each part. Raises UserError where all are equal.
    """
    shares = np.array([hash_share(f"preferences:{prompt}") for prompt in prompts])
    known = np.unique(shares)
    if len(known) < 2:
        raise UserError(
            "all pairs have the same prompt, and those of a prompt go into one part, training or validation; give "
            "pairs of other prompts"
        )
    return shares < max(np.nextafter(known[0], 1), min(val_share, known[-1]))


# Training


class PreferenceData(TrainingData):
    """The pairs of the setting `preferences`, in two parts, and the batches of each step (see `TrainingData`).

    train, val: (n, 2, block_size), rows of the chosen and the rejected answer. A batch of B pairs is
    (x, y, loss_mask, numbers) with 2B rows: row 2i is chosen, row 2i + 1 rejected, of the same pair. loss_mask: the
    answers with their EOT. numbers (2B,): of each row among all 2n rows, those of train first, then those of val.
    Objective reward: x has the EOT, PAD is -1 in it, loss_mask is where the EOT is, and y is 0.

    settings: `TrainSettings`; rank, count, pinned: as in `TrainingData`. The tokenizer is that of the checkpoint that
    training begins with. Where they are not given, data_dir is the checkpoint's, too, and block_size is no larger than
    the checkpoint's. Raises UserError where no pair can be used, naming the first that could not.
    """

    def __init__(self, settings, rank=0, count=1, pinned=False):
        content = load_starting_point(settings)
        if "data_dir" not in settings.given:  # evaluations of the tuned model find its questions there
            settings.data_dir = content["settings"]["data_dir"]
        if "block_size" not in settings.given:
            settings.block_size = min(settings.block_size, content["model_args"]["block_size"])
        self.tokenizer = load_own_tokenizer(load_base(content["base"], settings.base) if "base" in content else content)
        self.meta = {
            "stage": "task" if settings.objective == "reward" else "sft",
            "block_size": settings.block_size,
            "special_ids": self.tokenizer.special_ids(),
            "tokenizer": {name: getattr(self.tokenizer, name) for name in ("name", "sha256", "n_vocab")},
            **({"task": REWARD_TASK} if settings.objective == "reward" else {}),
        }
        rows, in_val = self.read_rows(settings, say=print if rank == 0 else lambda text: None)
        self.train, self.val = rows[~in_val], rows[in_val]
        if settings.eval_iters:
            n_pairs = min(len(self.val), settings.eval_iters * settings.batch_size)
            self.val = self.val[np.linspace(0, len(self.val) - 1, n_pairs).astype(int)]
        self.lengths, self.replay = self.token_counts(self.train), None
        longest, batch_tokens = self.lengths.max(axis=1), settings.batch_tokens // 2
        self.order = BatchOrder(longest, settings.sampling, settings.seed, settings.batch_size, batch_tokens)
        self.prepare_steps(settings, rank, count, pinned)

    def read_rows(self, settings, say):
        """(rows (n, 2, block_size), bool (n,): which are for validation) of the files, whose problems are said."""
        problems, rows, prompts, cut = Problems(), [], [], 0
        for path, line, pair in read_pairs(settings.preferences, problems):
            made, lost = make_pair_rows(pair, self.tokenizer, settings.block_size)
            if made is None:
                problems.add(lost, path, line)
                continue
            rows.append(made)
            prompts.append(pair.prompt_text)
            cut += lost > 0
        self.meta |= problems.about()
        if problems.counts:
            say(dropped_text(self.meta))
        if not rows:
            files = ", ".join(settings.preferences)
            raise UserError(f"no pair of answers could be read from {files}: {'; '.join(problems.places) or 'no rows'}")
        if cut:
            say(f"note: {cut} of {len(rows)} prompts are too long for the block, and lost their beginning")
        return np.stack(rows), split_prompts(prompts, settings.val_share)

    def token_counts(self, rows):
        """(n, 2) tokens without PAD of rows (n, 2, block_size)."""
        return (rows != self.meta["special_ids"]["pad"]).sum(axis=2)

    def longest_input(self):
        """T of the batch that has the longest row, of training or validation."""
        longest, width = max(self.token_counts(part).max() for part in (self.train, self.val)), self.meta["block_size"]
        is_reward = self.meta["stage"] == "task"  # whose last token is an input, too
        return input_width(int(longest) + is_reward, width + is_reward)

    def make_pairs_batch(self, rows, numbers):
        """The batch of pairs, rows (B, 2, block_size) with their numbers (B,) among all pairs."""
        rows = rows.reshape(-1, rows.shape[-1])
        row_numbers = torch.from_numpy(np.repeat(numbers, 2) * 2 + np.tile([0, 1], len(numbers)))
        special_ids = self.meta["special_ids"]
        if self.meta["stage"] == "task":
            is_pad = rows == special_ids["pad"]
            width = input_width(int((~is_pad).sum(axis=1).max()) + 1, rows.shape[1] + 1)
            x = torch.from_numpy(np.where(is_pad, -1, rows.astype(np.int64))[:, :width])
            last = np.arange(width) == (~is_pad).sum(axis=1, keepdims=True) - 1
            return x, torch.zeros_like(x), torch.from_numpy(last), row_numbers
        x, y, _ = make_batch(rows, self.meta)
        return x, y, torch.from_numpy(answer_targets(rows[:, : 1 + x.shape[1]], special_ids)), row_numbers

    def batches_of(self, part, rank=0, count=1):
        """Yields the batches of a part, "train" or "val", the longest first; of each, the pairs rank::count."""
        rows, first = (self.train, 0) if part == "train" else (self.val, len(self.train))
        longest = self.token_counts(rows).max(axis=1)
        order = np.argsort(-longest, kind="stable")
        for batch in fill_batches(longest[order], self.order.batch_size, self.order.batch_tokens):
            mine = order[batch][rank::count]
            if len(mine):
                yield self.make_pairs_batch(rows[mine], first + mine)

    def rows_batch(self, data, meta, rows, draw):
        return self.make_pairs_batch(data[rows], rows)


def load_starting_point(settings):
    """The dict of the checkpoint that a training begins with, or is resumed from. Raises UserError."""
    if settings.init_from == "resume":
        return newest_intact(settings.out_dir)
    content = load_checkpoint(settings.init_from, mmap=True)
    if settings.objective == "dpo":
        check_generates(content["stage"], settings.init_from)
        if content["stage"] != "sft":
            raise UserError(f"{settings.init_from} is a base model, which answers no questions; fine-tune it first")
    return content
