"""What happens inside a GPT while it reads a text.

All of it is computed by the model's own modules: `read_text` keeps what goes into each block and out of the last one,
and the other functions go on from there.

    surprise_bits       how unexpected each token is
    next_tokens         the likeliest next tokens, and what sampling leaves of them
    attention_weights   which tokens each head of a layer attends to
    logit_lens          which next tokens the model would give after each layer (nostalgebraist 2020)
    compare_texts       two checkpoints on one text
    nearest_tokens, subject_vectors, nearest_subjects, field_agreement    what lies close to what

Shapes: T tokens, L layers, C = n_embd, V = vocab_size, n virtual tokens.
"""

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional as F

from data_utils import pad_ids
from minigpt.common.errors import UserError
from minigpt.corpus.records import Problems, read_articles
from minigpt.device import to_device
from minigpt.inference.sampling import sampling_distribution
from minigpt.metrics import interval
from model import MAX_LOGIT_ROWS, RowsPass

BEHIND_SUBJECT = "是"  # what follows a subject's name in the sentence of `subject_vectors`
SUBJECTS_PER_PASS = 64
LONGEST_CHARACTER = 4  # bytes of UTF-8
SHOWN_SPACES = {" ": "␣", "\n": "↵", "\t": "⇥"}


@dataclass
class Reading:
    """A text that a model has read.

    ids: its T tokens; states (L + 1, T, C): what goes into each block, and at last what comes out of the last one;
    left_out: number of tokens at the text's end that were not read, because the text was too long; bits: what
    `surprise_bits` has computed, None before.
    """

    ids: list
    states: torch.Tensor
    left_out: int = 0
    bits: list | None = None


class NextToken(NamedTuple):
    """A candidate for the next token. label: as of `token_labels`; probability: in the model; kept: its probability in
    sampling, 0 if it is left out."""

    token_id: int
    label: str
    probability: float
    kept: float


class LensRow(NamedTuple):
    """The logit lens at one layer. layer: 0 is the embedding, L the model's output; top: [(label, probability)], the
    likeliest first; next_probability, next_rank: of the token that really follows (rank 1: the likeliest), None at the
    text's end."""

    layer: int
    top: list
    next_probability: float | None
    next_rank: int | None


class ComparedToken(NamedTuple):
    """A token under two models. bits: its surprise under each, None for the first token; difference: second - first."""

    token_id: int
    label: str
    bits: tuple
    difference: float | None


class FieldSubject(NamedTuple):
    """A subject of the corpus. field: the file that its articles are in, such as "elements"."""

    name: str
    field: str


class FieldAgreement(NamedTuple):
    """How often a subject's nearest neighbour is of its own field. share: of all subjects, 0 to 1; low, high: its 95%
    bootstrap interval over subjects, None for too few; chance: the share if neighbours were drawn at random."""

    share: float
    low: float | None
    high: float | None
    chance: float
    subjects: int


# Reading


@torch.no_grad()
def read_text(model, tokenizer, text, max_tokens=0):
    """The `Reading` of a text. As in the training rows, `##` is the answer mark and `<|endoftext|>` is EOT.

    A text longer than the model's block (or than max_tokens, if given) is cut at its end. Raises UserError for an empty
    text, and for a model that does not predict the next token.
    """
    check_predicts_next(model)
    ids = tokenizer.encode_marked(text)
    if not ids:
        raise UserError("the text is empty; write at least one character")
    longest = min(model.row_positions, max_tokens or model.row_positions)
    kept = ids[:longest]
    return Reading(kept, block_states(model, to_device([kept], model.wte.weight.device))[:, 0], len(ids) - len(kept))


def check_predicts_next(model):
    """Raise UserError for a model with a task's head, or one whose tokens attend to those after them."""
    if model.config.n_labels:
        raise UserError("this model has a task's head and gives no next token; take a pretrained or fine-tuned one")
    if not model.config.causal:
        raise UserError("this model reads in both directions and gives no next token; take a causal one")


def virtual_tokens_of(model):
    """The `VirtualTokens` before each row of a GPT, or None."""
    return None if model.virtual is None else model.virtual(model)


def block_states(model, idx):
    """States (L + 1, B, T, C) as in `Reading`, of ids idx (B, T), of which those below 0 are padding on the right.

    It goes the way of `GPT.states`. No hooks: the model may be running in another thread at the same time.
    """
    rows_pass = RowsPass(idx, virtual_tokens_of(model))
    at = rows_pass.positions(idx)
    x = model.wte(idx.clamp(min=0))
    x, angles = x if model.wpe is None else x + model.wpe(at), model.angles(at)
    states = [x]
    for layer, block in enumerate(model.h):
        states.append(block(states[-1], angles, rows_pass, layer))
    return torch.stack(states)


def logits_of(model, states):
    """Logits (N, V), float32, of states (N, C) of `Reading`: the final norm and the output layer."""
    return model.lm_head(model.ln_f(states)).float()


# Tokens


@torch.no_grad()
def surprise_bits(model, reading):
    """[bits] of the T tokens: -log2 of each token's probability after those before it.

    As in likelihood.py, the first token has none (None), and the probability is over the whole output layer.
    """
    if reading.bits is None:
        targets = to_device(reading.ids[1:], reading.states.device)
        bits = [None]
        for first in range(0, len(targets), MAX_LOGIT_ROWS):
            part = targets[first : first + MAX_LOGIT_ROWS]
            logits = logits_of(model, reading.states[-1, first : first + len(part)])
            bits += (F.cross_entropy(logits, part, reduction="none").double() / math.log(2)).tolist()
        reading.bits = bits
    return reading.bits


@torch.no_grad()
def next_tokens(model, tokenizer, reading, position, params, count=10, forbidden=()):
    """The `count` likeliest next tokens after the token at `position`, as `NextToken`s, the likeliest first.

    params: `SamplingParams`, whose temperature, top_k, top_p and min_p decide what is kept; forbidden: ids that are
    never sampled, such as a generator's `member.forbidden`.
    """
    logits = logits_of(model, reading.states[-1, check_position(reading, position), None])[0]
    probabilities = logits.softmax(dim=0)[: tokenizer.n_vocab]
    sampled = logits[: tokenizer.n_vocab].clone()
    sampled[list(forbidden)] = -torch.inf
    kept = sampling_distribution(sampled, params)
    values, ids = probabilities.topk(min(count, len(probabilities)))
    before = reading.ids[: position + 1]
    return [
        NextToken(token_id, candidate_label(tokenizer, before, token_id), value, kept[token_id].item())
        for value, token_id in zip(values.tolist(), ids.tolist(), strict=True)
    ]


def check_position(reading, position):
    """The position, if it is one of a reading's tokens. Raises UserError."""
    if not 0 <= position < len(reading.ids):
        raise UserError(f"position {position} is not in the text, whose positions are 0 to {len(reading.ids) - 1}")
    return position


class WeightsPass(RowsPass):
    """Attention that is computed in the open: `weights` (B, n_head, T, n + T) are kept."""

    def attend(self, layer, q, k, v):
        """As `RowsPass.attend`."""
        if self.virtual:
            k, v = self.virtual.before(layer, k, v)
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        scores = q.float() @ k.float().mT * q.shape[-1] ** -0.5
        self.weights = scores.masked_fill(~self.mask, -torch.inf).softmax(dim=-1)
        return self.weights.to(v.dtype) @ v


@torch.no_grad()
def attention_weights(model, reading, layer):
    """Attention weights (n_head, T, n + T), float32, of a layer (0 to L - 1): row i is what token i attends to, and
    sums to 1. The first n columns are the virtual tokens of prompt and prefix tuning; most models have none."""
    if not 0 <= layer < len(model.h):
        raise UserError(f"layer {layer} is not in the model, whose layers are 0 to {len(model.h) - 1}")
    block = model.h[layer]
    idx = to_device([reading.ids], reading.states.device)
    weights_pass = WeightsPass(idx, virtual_tokens_of(model))
    angles = model.angles(weights_pass.positions(idx))
    block.attn(block.ln_1(reading.states[layer][None]), angles, weights_pass, layer)
    return weights_pass.weights[0]


@torch.no_grad()
def logit_lens(model, tokenizer, reading, position, count=5):
    """`LensRow`s of the layers 0 to L: the final norm and the output layer, put on each layer's state at `position`
    (nostalgebraist 2020, "interpreting GPT: the logit lens"). The last row is the model's own prediction."""
    logits = logits_of(model, reading.states[:, check_position(reading, position)])
    probabilities = logits.softmax(dim=1)
    values, ids = probabilities[:, : tokenizer.n_vocab].topk(min(count, tokenizer.n_vocab), dim=1)
    before = reading.ids[: position + 1]
    follows = reading.ids[position + 1] if position + 1 < len(reading.ids) else None
    rows = []
    for layer, p in enumerate(probabilities):
        pairs = zip(ids[layer].tolist(), values[layer].tolist(), strict=True)
        top = [(candidate_label(tokenizer, before, token_id), value) for token_id, value in pairs]
        known = (None, None) if follows is None else (p[follows].item(), int((p > p[follows]).sum()) + 1)
        rows.append(LensRow(layer, top, *known))
    return rows


def check_same_tokenizer(first, second):
    """Raise UserError where two tokenizers differ, so that two models cannot be compared token by token."""
    if first.sha256 != second.sha256:
        raise UserError(
            f"the two models have different tokenizers ({first.name} and {second.name}), so their tokens cannot be "
            "compared; take two checkpoints of one run, or a model and what was tuned from it"
        )


def compare_texts(first, second, text, max_tokens=0):
    """[`ComparedToken`] of a text under two models, each given as (GPT, tokenizer). What one of them cannot read is
    left out. Raises UserError where their tokenizers differ, and as `read_text` does."""
    check_same_tokenizer(first[1], second[1])
    readings = [read_text(model, tokenizer, text, max_tokens) for model, tokenizer in (first, second)]
    return compare_readings((first[0], second[0]), readings, first[1])


def compare_readings(models, readings, tokenizer):
    """[`ComparedToken`] of two models' `Reading`s of one text, which may have been cut at different lengths."""
    ids = min((reading.ids for reading in readings), key=len)
    bits = zip(*(surprise_bits(*pair) for pair in zip(models, readings, strict=True)), strict=False)
    return [
        ComparedToken(token_id, label, both, None if None in both else both[1] - both[0])
        for token_id, label, both in zip(ids, token_labels(tokenizer, ids), bits, strict=False)
    ]


# How tokens are shown


def utf8_pieces(data):
    """[(first, end, text)] of bytes: its characters, and ‹hex› for each byte that is part of none."""
    pieces, i = [], 0
    while i < len(data):
        for size in range(1, LONGEST_CHARACTER + 1):
            try:
                text = data[i : i + size].decode()
                break
            except UnicodeDecodeError:
                continue
        else:
            text, size = f"‹{data[i]:02X}›", 1
        pieces.append((i, i + size, text))
        i += size
    return pieces


def visible_text(text):
    """A text in which spaces and characters that have no shape can be seen."""
    return "".join(SHOWN_SPACES.get(c) or (c if c.isprintable() else f"‹U+{ord(c):04X}›") for c in text)


def token_labels(tokenizer, ids):
    """A readable label of each token of a text, never empty.

    A token may be a part of a character: it is shown as the character with … where the rest of it is, as in 河… …河.
    Bytes that make no character are shown as ‹hex›, spaces as ␣, ↵ and ⇥, special tokens by their names.
    """
    data, spans = bytearray(), []
    for token_id in ids:
        own = tokenizer.token_bytes(token_id)
        spans.append((len(data), len(data) + len(own)))
        data += own or b"\xff"  # a special token: no character goes on through it
    pieces = utf8_pieces(bytes(data))
    labels, i = [], 0
    for token_id, (first, end) in zip(ids, spans, strict=True):
        if first == end:
            labels.append(tokenizer.special_texts.get(token_id, f"‹{token_id}›"))
            continue
        while pieces[i][1] <= first:
            i += 1
        own = [piece for piece in pieces[i : i + end - first] if piece[0] < end]
        text = re.sub("›‹", " ", "".join(visible_text(piece[2]) for piece in own))
        labels.append("…" * (own[0][0] < first) + text + "…" * (own[-1][1] > end))
    return labels


def candidate_label(tokenizer, before, token_id):
    """The label of a token that may follow the ids `before`, as `token_labels` gives it."""
    return token_labels(tokenizer, [*before[-LONGEST_CHARACTER:], token_id])[-1]


# What lies close to what


@torch.no_grad()
def nearest_tokens(model, tokenizer, token_id, count=10):
    """[(id, label, cosine)] of the tokens whose embeddings are nearest to a token's by cosine, the nearest first.
    Special tokens, and ids that stand for no text, are left out."""
    if not 0 <= token_id < tokenizer.n_vocab:
        raise UserError(f"token {token_id} is not in the vocabulary (0 to {tokenizer.n_vocab - 1})")
    weight = model.wte.weight[: tokenizer.n_vocab].float()
    norms = torch.linalg.vector_norm(weight, dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    cosines = weight @ (weight[token_id] / norms[token_id]) / norms
    others = [token_id, *(i for i, length in enumerate(tokenizer.token_lengths) if not length)]
    cosines[others] = -torch.inf
    values, ids = cosines.topk(min(count, tokenizer.n_vocab - len(set(others))))
    return [
        (other, token_labels(tokenizer, [other])[0], value)
        for other, value in zip(ids.tolist(), values.tolist(), strict=True)
    ]


def subjects_of_fields(files):
    """[`FieldSubject`] of files of articles, in their order; a subject that stands in several fields is left out."""
    fields = {}
    for path in files:
        for _, article in read_articles([path], Problems()):
            fields.setdefault(article.subject, {})[path.stem] = None
    return [FieldSubject(name, *found) for name, found in fields.items() if len(found) == 1]


@torch.no_grad()
def subject_vectors(model, tokenizer, names):
    """Vectors (L + 1, len(names), C), float32, of length 1, of subjects' names at the beginning of a sentence: the mean
    of the states of a name's tokens, as in `Reading`. Layer 0 is the mean of their embeddings.

    The sentence is the same for all, so what lies close does so for the name alone. (In the demo's own articles, whose
    other words give the field away, 98% of the base model's neighbours are of one field; by the names alone 91%.)
    """
    check_predicts_next(model)
    vectors = []
    for first in range(0, len(names), SUBJECTS_PER_PASS):
        part = names[first : first + SUBJECTS_PER_PASS]
        rows = [tokenizer.encode(name + BEHIND_SUBJECT)[: model.row_positions] for name in part]
        idx = pad_ids(rows).to(model.wte.weight.device)
        states = block_states(model, idx).float()
        states[0] = model.wte(idx.clamp(min=0))  # without positions
        for place, (ids, name) in enumerate(zip(rows, part, strict=True)):
            of_name = tokens_of_span(tokenizer, ids, 0, len(name.encode()))
            vectors.append(states[:, place, of_name].mean(dim=1))
    return F.normalize(torch.stack(vectors, dim=1), dim=2)


def tokens_of_span(tokenizer, ids, first, end):
    """Places of the tokens that contain bytes from `first` to before `end` of the text; the last token if none does."""
    places, at = [], 0
    for place, token_id in enumerate(ids):
        size = len(tokenizer.token_bytes(token_id))
        if at < end and at + size > first:
            places.append(place)
        at += size
    return places or [len(ids) - 1]


def nearest_subjects(vectors, vector, count=10, leave_out=()):
    """[(place, cosine)] of the subjects whose vectors (n, C), of one layer, are nearest to a vector (C,). leave_out:
    places that are not taken, such as the subject's own."""
    cosines = vectors @ vector
    cosines[list(leave_out)] = -torch.inf
    values, places = cosines.topk(min(count, len(vectors) - len(leave_out)))
    return list(zip(places.tolist(), values.tolist(), strict=True))


def field_agreement(vectors, fields):
    """The `FieldAgreement` of subjects' vectors (n, C), of one layer, and fields [n]."""
    cosines = vectors @ vectors.T
    cosines.fill_diagonal_(-torch.inf)
    nearest = cosines.argmax(dim=1).tolist()
    same = [float(fields[other] == field) for field, other in zip(fields, nearest, strict=True)]
    chance = sum(fields.count(field) - 1 for field in fields) / (len(fields) * (len(fields) - 1))
    low, high = interval(same) or (None, None)
    return FieldAgreement(sum(same) / len(same), low, high, chance, len(fields))
