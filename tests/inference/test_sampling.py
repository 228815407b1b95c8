"""Sampling of tokens, compared with probabilities computed in plain Python."""

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from minigpt.inference.params import SamplingParams
from minigpt.inference.sampling import Sampler, largest_logits, sample_rows, sample_tokens, sampling_method

pytestmark = pytest.mark.numeric

V = 12


def plain_probs(logits, params):
    """Probabilities (V,) by temperature, then top_k, then top_p, then min_p, in plain Python."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    kept = order[: params.top_k or len(logits)]
    weights = {i: 2.718281828459045 ** ((logits[i] - max(logits)) / params.temperature) for i in kept}
    total, before, shares = sum(weights.values()), 0.0, [0.0] * len(logits)
    for i in kept:
        if before >= params.top_p and before > 0:
            break
        shares[i] = weights[i] / total
        before += shares[i]
    shares = [share if share >= params.min_p * max(shares) else 0.0 for share in shares]
    return torch.tensor(shares) / sum(shares)


@pytest.mark.parametrize("top_k", [0, 1, 3, 99])
@pytest.mark.parametrize("top_p", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_sampled_frequencies_equal_plain_probabilities(top_k, top_p, temperature):
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    logits = torch.randn(V, generator=torch.Generator().manual_seed(top_k))
    sampler, n = Sampler(params, []), 10000
    sampler.random = random.Random(1)
    ids = torch.tensor(sample_tokens(logits.repeat(n, 1), [sampler] * n))
    expected = plain_probs(logits.tolist(), params)
    drawn = torch.bincount(ids, minlength=V) / n
    torch.testing.assert_close(drawn, expected.float(), atol=0.02, rtol=0)
    assert not drawn[expected == 0].any()


@pytest.mark.parametrize("scale", [1, 30], ids=["flat", "confident"])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.8), (5, 0.8)])
def test_the_candidates_by_min_p_are_those_of_plain_probabilities(top_k, top_p, min_p, scale):
    """Every candidate is drawn by a random number within its share of the cumulative probabilities."""
    params = SamplingParams(temperature=1.5, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = torch.randn(V, generator=torch.Generator().manual_seed(5)) * scale
    expected = plain_probs(logits.tolist(), params)
    order = expected.argsort(descending=True) if top_k or top_p < 1 else torch.arange(V)
    before = expected[order].cumsum(0) - expected[order]
    for token, start in zip(order.tolist(), before.tolist(), strict=True):
        if expected[token] > 1e-5:
            sampler = Sampler(params, [])
            sampler.random = SimpleNamespace(random=lambda u=start + float(expected[token]) / 2: u)
            assert sample_tokens(logits[None].clone(), [sampler]) == [token]
    drawn = sample_tokens(logits.repeat(2000, 1), [Sampler(params, [])] * 2000)
    assert {*drawn} <= {*expected.nonzero().flatten().tolist()}


def test_penalties_are_those_of_a_plain_loop_in_float64():
    prompt = [1, 1, 1, 2, 3, 3, 9]
    logits = torch.randn(V, generator=torch.Generator().manual_seed(2)) * 20
    for frequency, presence, repetition in [(0, 1.5, 1), (0.7, 0.6, 1), (-0.3, -2, 1.3), (0, 0.5, 0.8)]:
        params = SamplingParams(frequency_penalty=frequency, presence_penalty=presence, repetition_penalty=repetition)
        sampler, row = Sampler(params, prompt), logits.clone()
        sampler.count(5)
        sampler.penalize(row)
        for token, (before, after) in enumerate(zip(logits.double().tolist(), row.tolist(), strict=True)):
            count = [*prompt, 5].count(token)
            if count:
                before = before / repetition if before > 0 else before * repetition
                before -= frequency * count + presence
            assert after == pytest.approx(before, abs=1e-5)


def test_requests_with_different_parameters_are_sampled_as_if_alone():
    drawn = [
        (0, 20, 1, 0, 1),
        (1, 2, 1, 0, 1),
        (1, 0, 0.5, 0.3, 1),
        (3, 0, 1, 0, 1.5),
        (0, 0, 1, 1, 1),
        (2, 7, 0.8, 0, 1),
    ]
    cases = [
        SamplingParams(t, k, p, frequency_penalty=f, repetition_penalty=r, seed=seed)
        for seed, (t, k, p, f, r) in enumerate(drawn)
    ]
    cases += [replace(case, min_p=0.2) for case in cases[1:4]]  # methods top_k, nucleus and all, with and without
    cases += [replace(case, presence_penalty=0.9) for case in cases[:2]]
    prompts = [[1, 1, 2], [3], [4, 4, 4, 4], [5, 6], [7, 7], [8], [3], [4], [5, 6], [1, 1, 2], [3]]
    logits = torch.randn(30, len(cases), V, generator=torch.Generator().manual_seed(1))
    together, alone = ([Sampler(*case) for case in zip(cases, prompts, strict=True)] for _ in range(2))
    for step in logits:
        expected = [sample_tokens(row[None].clone(), [sampler])[0] for row, sampler in zip(step, alone, strict=True)]
        assert sample_tokens(step.clone(), together) == expected


def test_extreme_parameters_sample_no_impossible_token():
    forbidden = torch.full((1, V), -torch.inf)
    forbidden[0, 4] = -3.0
    flat = torch.zeros(1, V)
    for temperature in (1e-300, 1e-30, 1e-5, 1.0, 1e6):
        for top_k, top_p in ((0, 1.0), (5, 1.0), (0, 1e-9), (5, 0.5)):
            sampler = Sampler(SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p), [])
            assert sample_tokens(forbidden.clone(), [sampler]) == [4]
            method = sampling_method(sampler.params, V)
            for u in (0.0, 0.5, 1 - 2**-53) if method != "greedy" else ():
                sampler.random = type("Fixed", (), {"random": staticmethod(lambda u=u: u)})
                assert sample_rows(forbidden, [sampler], method).tolist() == [4]
                assert 0 <= sample_rows(flat, [sampler], method).item() < V


@pytest.mark.parametrize("size, k", [(V, 5), (2048, 8), (2048 + 31, 8), (2048 + 31, 9), (4000, 1)])
def test_the_largest_logits_are_those_of_topk(size, k):
    logits = torch.randn(3, size + 50, generator=torch.Generator().manual_seed(k))[:, :size]  # a part of wider rows
    logits[0, -3:] = 9.0  # equal ones, after the last whole block
    logits[1, 1:] = -torch.inf
    values, ids = largest_logits(logits, k)
    assert torch.equal(values, logits.topk(k).values) and torch.equal(values, logits.gather(1, ids))
    assert all(len(set(row)) == k for row in ids.tolist())


def test_greedy_decoding_takes_the_first_of_equal_logits():
    logits = torch.zeros(2, V)
    logits[1, [3, 7]] = 1.0
    assert sample_tokens(logits, [Sampler(SamplingParams(temperature=0), [])] * 2) == [0, 3]
