"""From logits to the next tokens: what a request asks of sampling, and drawing for many requests at once."""

import random
from collections import Counter
from dataclasses import dataclass

import torch

from minigpt.common.errors import UserError

GREEDY_BELOW = 1e-6  # a temperature that leaves nothing but the likeliest, and whose quotients would not be finite


@dataclass
class SamplingParams:
    """What may differ between requests.

    temperature: sharpness, 0 is greedy; top_k: draw among the k likeliest, 0 is all; top_p: among the likeliest that
    together have this probability (nucleus sampling, Holtzman et al. 2020); frequency_penalty: taken off a token's
    logit for each time it stands in prompt or answer (OpenAI's, who count the answer only); repetition_penalty: what
    the logits of tokens in prompt or answer are divided by, or multiplied with where negative (CTRL, Keskar et al.
    2019), 1 is none; stop: strings that end a text and are not part of it; seed: None is unseeded. With
    a seed a request has the same text alone or among others, in float32; rounder types have more near-ties.
    """

    temperature: float = 0.1
    top_k: int = 20
    top_p: float = 1.0
    max_new_tokens: int = 225
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self):
        for name, right, wanted in (
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 <= self.top_p <= 1, "a share from 0 to 1"),
            ("max_new_tokens", self.max_new_tokens >= 0, "at least 0"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
        ):
            if not right:
                raise UserError(f"{name} is {getattr(self, name)}; it must be {wanted}")

    @classmethod
    def from_settings(cls, settings):
        """The parameters that the settings give."""
        names = ("temperature", "top_k", "top_p", "max_new_tokens", "frequency_penalty", "repetition_penalty", "seed")
        return cls(**{name: getattr(settings, name) for name in names}, stop=tuple(settings.stop))


class Sampler:
    """One request's draws: its own random numbers, so that no other request has a part in them, and its counts."""

    def __init__(self, params, prompt):
        self.params = params
        self.random = random.Random(params.seed)
        self.penalizes = params.frequency_penalty != 0 or params.repetition_penalty != 1
        self.counts = Counter(prompt) if self.penalizes else None

    def penalize(self, logits):
        """Take the penalties off logits (V,), in place."""
        ids = torch.tensor(list(self.counts), device=logits.device)
        seen, penalty = logits[ids], self.params.repetition_penalty
        seen = torch.where(seen > 0, seen / penalty, seen * penalty)
        times = torch.tensor(list(self.counts.values()), device=logits.device)
        logits[ids] = seen - self.params.frequency_penalty * times

    def count(self, token_id):
        if self.penalizes:
            self.counts[token_id] += 1


def sample_tokens(logits, samplers):
    """List of next ids, one a row of logits (n, V), float32; the logits may be changed."""
    for row, sampler in zip(logits, samplers, strict=True):
        if sampler.penalizes:
            sampler.penalize(row)
    V = logits.shape[1]
    kinds = [kind_of(sampler.params, V) for sampler in samplers]
    chosen = [None] * len(samplers)
    for kind in set(kinds):
        rows = [i for i, other in enumerate(kinds) if other == kind]
        part = logits if len(rows) == len(samplers) else logits[rows]
        ids = part.argmax(dim=1) if kind == "greedy" else draw(part, [samplers[i] for i in rows], kind)
        for i, token_id in zip(rows, ids.tolist(), strict=True):
            chosen[i] = token_id
    for sampler, token_id in zip(samplers, chosen, strict=True):
        sampler.count(token_id)
    return chosen


def kind_of(params, V):
    """How a request's tokens are found, which the others in its batch must not change: "greedy", or drawn among the
    "few" likeliest, a "nucleus" of the sorted vocabulary, or "all" of it as it stands."""
    if params.temperature < GREEDY_BELOW:
        return "greedy"
    if 0 < params.top_k < V:
        return "few"
    return "nucleus" if params.top_p < 1 else "all"


def draw(logits, samplers, kind):
    """Ids (n,) drawn from logits (n, V), each row by its sampler; all of one kind, which is not greedy."""

    def column(name):
        values = [float(getattr(sampler.params, name)) for sampler in samplers]
        return torch.tensor(values, dtype=torch.float32, device=logits.device)[:, None]

    ids = None
    if kind == "few":
        k = column("top_k")
        logits, ids = logits.topk(int(k.max()))
        logits = logits.masked_fill(torch.arange(logits.shape[1], device=logits.device) >= k, -torch.inf)
    elif kind == "nucleus":
        logits, ids = logits.sort(descending=True)
    # The likeliest's logit taken off first: a small temperature must not make infinities.
    logits = (logits - logits.amax(dim=1, keepdim=True)) / column("temperature")
    # In double precision where the device has it: a sum of 50,000 shares in float32 loses the rare ones.
    shares = logits.softmax(dim=1, dtype=torch.float32 if logits.device.type == "mps" else torch.float64)
    if ids is not None:
        before = shares.cumsum(dim=1) - shares
        before[:, 0] = -1.0  # the likeliest is always among them
        shares = shares.masked_fill(before >= column("top_p"), 0)
    sums = shares.cumsum(dim=1)
    target = torch.tensor([sampler.random.random() for sampler in samplers], dtype=sums.dtype, device=sums.device)
    target = target[:, None] * sums[:, -1:]
    # Rounding may put the target on the very end, behind which there is nothing to draw.
    place = torch.searchsorted(sums, target, right=True)
    last = shares.shape[1] - 1 - (shares > 0).flip(1).int().argmax(dim=1, keepdim=True)
    place = torch.minimum(place, last)
    return (place if ids is None else ids.gather(1, place)).squeeze(1)
