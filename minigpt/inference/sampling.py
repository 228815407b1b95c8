"""From logits to the next tokens, for many requests at once."""

import random
from collections import Counter

import torch

GREEDY_BELOW = 1e-6  # a temperature that leaves nothing but the likeliest, and whose quotients would not be finite


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
