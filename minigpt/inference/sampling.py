"""Samples the next tokens of many requests from their logits."""

import random
from collections import Counter

import torch

from minigpt.device import to_device

BLOCK_TOKENS = 32  # of which `largest_logits` reads the maximum first
MIN_TEMPERATURE = 1e-6  # below it sampling is greedy, since logits divided by it may not be finite

# Columns of the table that sampling copies to the device: a request's parameters and the random number of its token.
DRAWING_NUMBERS = ("temperature", "top_k", "top_p", "min_p", "random")


class Sampler:
    """The sampling state of one request: its random generator, and its token counts for the penalties.

    params: `SamplingParams`; prompt: token ids. Each request has its own generator, so that its text does not depend on
    the other requests of the batch.
    """

    def __init__(self, params, prompt):
        self.params = params
        self.random = random.Random(params.seed)
        self.penalizes = bool(params.frequency_penalty or params.presence_penalty or params.repetition_penalty != 1)
        self.counts = Counter(prompt) if self.penalizes else None

    def penalize(self, logits):
        """Apply the penalties to logits (V,), in place."""
        ids, counts = to_device([list(self.counts), list(self.counts.values())], logits.device)
        penalty = self.params.repetition_penalty
        seen = logits[ids]
        seen = torch.where(seen > 0, seen / penalty, seen * penalty)
        logits[ids] = seen - self.params.frequency_penalty * counts - self.params.presence_penalty

    def count(self, token_id):
        """Count a token that was sampled."""
        if self.penalizes:
            self.counts[token_id] += 1


def sample_tokens(logits, samplers):
    """The next token id of each of n requests, a list. logits (n, V): float32, may be overwritten.

    A GPU is waited for once, when the ids are read.
    """
    for row, sampler in zip(logits, samplers, strict=True):
        if sampler.penalizes:
            sampler.penalize(row)

    # Requests that use the same method are sampled together.
    methods = [sampling_method(sampler.params, logits.shape[1]) for sampler in samplers]
    order, parts = [], []  # rows, and the ids of each method's
    for method in sorted(set(methods)):
        rows = [i for i, other in enumerate(methods) if other == method]
        part = logits if len(rows) == len(samplers) else logits[to_device(rows, logits.device)]
        order += rows
        parts.append(
            likeliest_ids(part) if method == "greedy" else sample_rows(part, [samplers[i] for i in rows], method)
        )
    ids = (parts[0] if len(parts) == 1 else torch.cat(parts)).tolist()
    chosen = [token_id for _, token_id in sorted(zip(order, ids, strict=True))]
    for sampler, token_id in zip(samplers, chosen, strict=True):
        sampler.count(token_id)
    return chosen


def sampling_method(params, V):
    """How a request is sampled from V logits; it depends on nothing else, so other requests cannot change it.

    "greedy": the most likely token; "top_k": among the first of a partial sort; "nucleus": in the sorted vocabulary;
    "all": in the whole vocabulary, unsorted.
    """
    if params.temperature < MIN_TEMPERATURE:
        return "greedy"
    if 0 < params.top_k < V:
        return "top_k"
    return "nucleus" if params.top_p < 1 else "all"


def likeliest_ids(logits):
    """The token ids (n,) with the largest logits (n, V): the first of equals."""
    # On a CPU, NumPy's argmax takes a fifth to a thirtieth of the time of torch's.
    return torch.from_numpy(logits.numpy().argmax(axis=1)) if logits.device.type == "cpu" else logits.argmax(dim=1)


def largest_logits(logits, k):
    """The k largest of each row of logits (n, V) in descending order, and their token ids: tensors (n, k)."""
    V = logits.shape[1]
    blocks = V // BLOCK_TOKENS
    if logits.device.type != "cpu" or blocks < 8 * k:
        return logits.topk(k)

    # On a CPU, `topk` of the whole vocabulary is slow. The k largest are in the k blocks with the largest maxima, or in
    # the tokens after the last whole block.
    end = blocks * BLOCK_TOKENS
    maxima = logits[:, :end].unflatten(1, (blocks, BLOCK_TOKENS)).amax(dim=2)
    first = maxima.topk(k, sorted=False).indices[:, :, None] * BLOCK_TOKENS
    rest = torch.arange(end, V).expand(len(logits), -1)
    ids = torch.cat(((first + torch.arange(BLOCK_TOKENS)).flatten(1), rest), dim=1)
    values, places = logits.gather(1, ids).topk(k)
    return values, ids.gather(1, places)


def sample_rows(logits, samplers, method):
    """Token ids (n,) sampled from logits (n, V), each row with its own sampler; method: one for all, not "greedy"."""
    # The numbers of all requests go to the device in one copy.
    numbers = drawing_numbers([(s.params, s.random.random()) for s in samplers], logits.device)
    probs, ids = candidate_probabilities(logits, [sampler.params for sampler in samplers], numbers, method)

    # Invert the cumulative distribution at a random number of each request.
    sums = probs.cumsum(dim=1)
    target = drawing_column(numbers, "random") * sums[:, -1:]
    index = torch.searchsorted(sums, target, right=True)

    # By rounding, the target may equal the total; then take the candidate that the sum reaches the total with.
    last = (sums < sums[:, -1:]).sum(dim=1, keepdim=True)
    index = torch.minimum(index, last)
    return (index if ids is None else ids.gather(1, index)).squeeze(1)


def drawing_numbers(requests, device):
    """DRAWING_NUMBERS of requests [(`SamplingParams`, random number)], a tensor (n, 5) on a device."""
    # Double precision where the device has it, since a sum of 50,000 float32 probabilities loses the small ones.
    wide = torch.float32 if device.type == "mps" else torch.float64
    rows = [(p.temperature, p.top_k, p.top_p if p.top_p < 1 else torch.inf, p.min_p, random) for p, random in requests]
    return to_device(rows, device, wide)


def drawing_column(numbers, name):
    """One of DRAWING_NUMBERS of every request, (n, 1), of a tensor of `drawing_numbers`."""
    return numbers[:, DRAWING_NUMBERS.index(name), None]


def candidate_probabilities(logits, each, numbers, method):
    """(probs, ids): what temperature, top_k, top_p and min_p leave of logits (n, V), for the `SamplingParams` of each
    row. probs (n, candidates): not normalized, 0 for those that are left out; ids (n, candidates): their token ids, or
    None if they are the whole vocabulary in order.

    numbers: of `drawing_numbers`; method: of `sampling_method`, one for all, not "greedy".
    """

    def column(name):
        """One number of every request, as a float32 tensor (n, 1)."""
        return drawing_column(numbers, name).float()

    # Select the candidates.
    ids = None
    if method == "top_k":
        counts = [params.top_k for params in each]
        logits, ids = largest_logits(logits, max(counts))
        if min(counts) < max(counts):
            places = torch.arange(logits.shape[1], device=logits.device)
            logits = logits.masked_fill(places >= column("top_k"), -torch.inf)
    elif method == "nucleus":
        logits, ids = logits.sort(descending=True)

    # Probabilities. The largest logit is subtracted first, so that a small temperature causes no overflow.
    logits = (logits - logits.amax(dim=1, keepdim=True)) / column("temperature")
    probs = logits.softmax(dim=1, dtype=numbers.dtype)
    if any(params.top_p < 1 for params in each):
        before = probs.cumsum(dim=1) - probs
        before[:, 0] = -1.0  # the most likely token is always a candidate
        probs = probs.masked_fill(before >= column("top_p"), 0)
    if any(params.min_p for params in each):
        probs = probs.masked_fill(probs < column("min_p") * probs.amax(dim=1, keepdim=True), 0)
    return probs, ids


def sampling_distribution(logits, params):
    """Probabilities (V,), float64 on the CPU, with which `sample_tokens` draws each token from logits (V,), float32,
    with `SamplingParams`. Penalties are left out: they depend on the tokens before."""
    found = torch.zeros(len(logits), dtype=torch.float64)
    method = sampling_method(params, len(logits))
    if method == "greedy":
        found[likeliest_ids(logits[None])] = 1.0
        return found
    numbers = drawing_numbers([(params, 0.0)], logits.device)
    probs, ids = candidate_probabilities(logits[None], [params], numbers, method)
    probs = probs[0].double().cpu()
    places = slice(None) if ids is None else ids[0].cpu()
    found[places] = probs / probs.sum()
    return found
