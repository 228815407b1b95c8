"""What happens inside a model, held to plain passes, to the likelihood module and to the sampler."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from adapting import adapting, randomize
from tiny import EOT, MARK, padded_rows, tiny_classifier, tiny_meta, tiny_model, tiny_tokenizer

from minigpt.adapters.attach import attach_adapter
from minigpt.common.errors import UserError
from minigpt.inference.inspect import (
    attention_weights,
    candidate_label,
    check_same_tokenizer,
    compare_texts,
    field_agreement,
    logit_lens,
    nearest_subjects,
    nearest_tokens,
    next_tokens,
    read_text,
    subject_vectors,
    subjects_of_fields,
    surprise_bits,
    token_labels,
)
from minigpt.inference.likelihood import likelihood_of_rows
from minigpt.inference.params import SamplingParams
from minigpt.inference.quantize import convert_weights
from minigpt.inference.sampling import Sampler, sample_rows, sampling_distribution, sampling_method
from minigpt.tokenizer import load_tokenizer
from model import ARCHITECTURES, RowsPass

pytestmark = pytest.mark.numeric
TOKENIZER = tiny_tokenizer()
TEXT = "东河的桥##河的 a<|endoftext|>"
METHODS = ["none", "lora", "adapter", "prompt", "p-tuning", "prefix"]


def tuned_model(method, architecture="qwen3"):
    """A tiny GPT with an adapter of a method, whose parameters are random; "none": without one."""
    model = tiny_model(architecture=architecture)
    if method != "none":
        attach_adapter(model, adapting(method=method, virtual_tokens=5), TOKENIZER)
        randomize(model)
    return model


@pytest.fixture(params=[*((name, "none") for name in ARCHITECTURES), *(("qwen3", method) for method in METHODS[1:])])
def model(request):
    architecture, method = request.param
    return tuned_model(method, architecture)


def test_surprise_is_that_of_the_likelihood_module(model):
    reading = read_text(model, TOKENIZER, TEXT)
    assert MARK in reading.ids and reading.ids[-1] == EOT and not reading.left_out
    first, *bits = surprise_bits(model, reading)
    assert first is None and len(bits) == len(reading.ids) - 1
    figures = likelihood_of_rows(model, padded_rows([reading.ids], 32), tiny_meta("pretrain"), 1)
    assert sum(bits) * math.log(2) == pytest.approx(figures.nats[0], rel=1e-5)
    # One by one: a row that ends with a token has its surprise more than the row before.
    rows = padded_rows([reading.ids[:n] for n in range(1, len(reading.ids) + 1)], 32)
    nats = np.diff(likelihood_of_rows(model, rows, tiny_meta("pretrain"), 0).nats)
    assert np.abs(nats - np.array(bits) * math.log(2)).max() < 1e-5 * max(1, nats.max())


class GivenWeights(RowsPass):
    """A pass whose attention weights are given."""

    def attend(self, layer, q, k, v):
        if self.virtual:
            _, v = self.virtual.before(layer, k, v)
        return self.given[layer] @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)


@torch.no_grad()
def test_attention_rows_sum_to_one_are_causal_and_make_the_models_own_pass(model):
    reading = read_text(model, TOKENIZER, TEXT)
    idx, n = torch.tensor([reading.ids]), model.n_virtual
    weights = [attention_weights(model, reading, layer) for layer in range(model.config.n_layer)]
    for each in weights:
        assert each.shape == (model.config.n_head, idx.shape[1], n + idx.shape[1])
        assert (each.sum(dim=2) - 1).abs().max() < 1e-5 and not each.triu(n + 1).any() and (each >= 0).all()
    assert not torch.allclose(weights[0], weights[1], atol=0.01)
    rows_pass = GivenWeights(idx, None if model.virtual is None else model.virtual(model))
    rows_pass.given = weights
    expected = model(idx)
    assert (model.lm_head(model.hidden(idx, rows_pass)) - expected).abs().max() < 1e-5 * expected.abs().max()


@torch.no_grad()
def test_the_lens_last_layer_and_the_next_tokens_are_the_models(model):
    reading = read_text(model, TOKENIZER, TEXT)
    expected = model(torch.tensor([reading.ids]))[0].softmax(dim=1)
    for position in (0, 7, len(reading.ids) - 1):
        rows = logit_lens(model, TOKENIZER, reading, position, 4)
        values, ids = expected[position, : TOKENIZER.n_vocab].topk(4)
        assert [row.layer for row in rows] == list(range(model.config.n_layer + 1))
        assert [value for _, value in rows[-1].top] == pytest.approx(values.tolist(), rel=1e-4)
        found = next_tokens(model, TOKENIZER, reading, position, SamplingParams(), 4)
        assert [token.token_id for token in found] == ids.tolist()
        assert [token.probability for token in found] == pytest.approx(values.tolist(), rel=1e-4)
        assert [token.label for token in found] == [label for label, _ in rows[-1].top]
    assert rows[-1].next_rank is rows[-1].next_probability is None  # nothing follows the last token
    first = logit_lens(model, TOKENIZER, reading, 0)[-1]
    p = expected[0, reading.ids[1]]
    assert (
        first.next_probability == pytest.approx(p.item(), rel=1e-4) and first.next_rank == (expected[0] > p).sum() + 1
    )
    embedded = (model.wte if model.wpe is None else lambda ids: model.wte(ids) + model.wpe(torch.arange(1) + 7))(
        torch.tensor(reading.ids[7:8])
    )
    plain = model.lm_head(model.ln_f(embedded)).softmax(dim=1)[0, : TOKENIZER.n_vocab].max()
    if not model.n_virtual:
        assert logit_lens(model, TOKENIZER, reading, 7)[0].top[0][1] == pytest.approx(plain.item(), rel=1e-4)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0),
        SamplingParams(temperature=0.7, top_k=0),
        SamplingParams(temperature=1.3, top_k=6),
        SamplingParams(temperature=1.0, top_k=0, top_p=0.6),
        SamplingParams(temperature=0.9, top_k=9, top_p=0.8, min_p=0.1),
    ],
)
def test_what_sampling_keeps_is_what_the_sampler_draws(params):
    model, count = tiny_model(), 1000
    reading = read_text(model, TOKENIZER, TEXT)
    forbidden = next_tokens(model, TOKENIZER, reading, 3, params, 1)[0].token_id
    found = next_tokens(model, TOKENIZER, reading, 3, params, 40, [forbidden])
    logits = model(torch.tensor([reading.ids]))[0, 3, : TOKENIZER.n_vocab].detach()
    logits[forbidden] = -torch.inf
    drawn = torch.zeros(len(logits))
    method = sampling_method(params, len(logits))
    for i in range(count):  # the sampler's own draws, at evenly spaced random numbers
        sampler = Sampler(params, [])
        sampler.random = SimpleNamespace(random=lambda i=i: (i + 0.5) / count)
        drawn[logits.argmax() if method == "greedy" else sample_rows(logits[None], [sampler], method)] += 1 / count
    assert torch.allclose(sampling_distribution(logits, params).float(), drawn, atol=1.5 / count)
    assert {token.token_id: token.kept for token in found}[forbidden] == 0
    assert [token.kept for token in found] == pytest.approx(
        drawn[[t.token_id for t in found]].tolist(), abs=1.5 / count
    )
    if params.top_k == 6:
        assert sum(token.kept > 0 for token in found) == 6


def test_two_checkpoints_side_by_side():
    first, second = tiny_model(0), tiny_model(1, architecture="qwen3")
    rows = compare_texts((first, TOKENIZER), (second, tiny_tokenizer("other name")), TEXT)
    alone = [surprise_bits(model, read_text(model, TOKENIZER, TEXT)) for model in (first, second)]
    assert [row.bits for row in rows] == list(zip(*alone, strict=True))
    assert rows[0].difference is None and rows[5].difference == rows[5].bits[1] - rows[5].bits[0] != 0
    same = compare_texts((first, TOKENIZER), (tiny_model(0), TOKENIZER), TEXT)
    assert {row.difference for row in same[1:]} == {0.0}
    short = compare_texts((first, TOKENIZER), (tiny_model(1, block_size=9), TOKENIZER), TEXT)
    assert len(short) == 9 and short[8].bits[0] == pytest.approx(alone[0][8], rel=1e-5)
    with pytest.raises(UserError, match="different tokenizers"):
        check_same_tokenizer(TOKENIZER, load_tokenizer())


def test_long_short_and_empty_texts_and_models_without_a_next_token():
    model = tuned_model("prefix")
    reading = read_text(model, TOKENIZER, "a" * 40)
    assert len(reading.ids) == 27 and reading.left_out == 13  # 5 of 32 positions are virtual tokens
    assert len(surprise_bits(model, reading)) == 27
    assert len(read_text(model, TOKENIZER, "a" * 40, max_tokens=8).ids) == 8
    one = read_text(model, TOKENIZER, "a")
    assert surprise_bits(model, one) == [None] and attention_weights(model, one, 1).shape == (4, 1, 6)
    assert logit_lens(model, TOKENIZER, one, 0)[0].next_rank is None
    for wrong in (lambda: logit_lens(model, TOKENIZER, one, 1), lambda: attention_weights(model, one, 2)):
        with pytest.raises(UserError, match=r"not in the (text|model)"):
            wrong()
    with pytest.raises(UserError, match="empty"):
        read_text(model, TOKENIZER, "")
    with pytest.raises(UserError, match="task's head"):
        read_text(tiny_classifier().model, TOKENIZER, "a")
    with pytest.raises(UserError, match="both directions"):
        read_text(tiny_model(architecture="qwen3", causal=False), TOKENIZER, "a")


def test_a_model_in_int8_can_be_looked_into():
    model = convert_weights(tiny_model(architecture="qwen3", n_embd=64), "int8")
    reading = read_text(model, TOKENIZER, TEXT)
    exact = tiny_model(architecture="qwen3", n_embd=64)
    expected = surprise_bits(exact, read_text(exact, TOKENIZER, TEXT))
    assert surprise_bits(model, reading)[1:] == pytest.approx(expected[1:], rel=0.1, abs=0.3)
    assert (attention_weights(model, reading, 1).sum(dim=2) - 1).abs().max() < 1e-5
    assert len(nearest_tokens(model, TOKENIZER, 258)) == len(logit_lens(model, TOKENIZER, reading, 0)[0].top) * 2


def test_tokens_are_shown_readably():
    ids = [*TOKENIZER.encode("的x 东\n"), EOT, 0xE6, 0xB2, EOT, 0x80, MARK, 0x07, 300]
    labels = ["的", "x", "␣", "东…", "…东…", "…东", "↵", "<|endoftext|>", "‹E6›", "‹B2›", "<|endoftext|>", "‹80›"]
    assert token_labels(TOKENIZER, ids) == [*labels, "##", "‹U+0007›", "‹300›"]
    before = TOKENIZER.encode("东")[:2]
    assert candidate_label(TOKENIZER, before, TOKENIZER.encode("东")[2]) == "…东"
    assert candidate_label(TOKENIZER, before, ord("a")) == "a"
    gpt2 = load_tokenizer()
    text = "龘是 a rare 字。\u202e"
    labels = token_labels(gpt2, gpt2.encode(text))
    assert all(labels) and "␣rare" in labels and any("龘" in label and "…" in label for label in labels)
    rng = np.random.default_rng(0)
    for _ in range(50):  # whatever ids come
        ids = rng.integers(0, 330, 30).tolist()
        assert len(token_labels(TOKENIZER, ids)) == 30 and all(
            label.isprintable() for label in token_labels(TOKENIZER, ids)
        )


def test_neighbours_of_tokens_are_those_of_a_plain_loop():
    model = tiny_model()
    weight = model.wte.weight.detach()
    expected = sorted(
        (i for i in range(263) if i != 258 and TOKENIZER.token_bytes(i)),
        key=lambda i: -torch.cosine_similarity(weight[258], weight[i], dim=0).item(),
    )
    found = nearest_tokens(model, TOKENIZER, 258, 5)
    assert [token_id for token_id, _, _ in found] == expected[:5]
    assert found[0][2] == pytest.approx(
        torch.cosine_similarity(weight[258], weight[expected[0]], dim=0).item(), rel=1e-4
    )
    with pytest.raises(UserError, match="not in the vocabulary"):
        nearest_tokens(model, TOKENIZER, 320)


def test_subjects_vectors_are_of_the_names_tokens(model):
    names = ["河", "东", "的的"] + [f"subject {i}" for i in range(70)]  # more than one pass takes
    vectors = subject_vectors(model, TOKENIZER, names)
    assert vectors.shape == (model.config.n_layer + 1, len(names), model.config.n_embd)
    reading = read_text(model, TOKENIZER, "东是")
    states = [model.wte(torch.tensor(reading.ids)), *reading.states[1:]]
    for layer, of_text in enumerate(states):
        own = of_text[:3].mean(dim=0)
        assert (vectors[layer, 1] - own / own.norm()).abs().max() < 1e-5


def test_field_agreement_counts_neighbours_of_the_own_field():
    angles = torch.tensor([0.0, 0.1, 0.25, 2.0, 2.1, 2.3, 0.26])
    vectors = torch.stack((angles.cos(), angles.sin()), dim=1)
    found = field_agreement(vectors, ["a", "a", "a", "b", "b", "b", "b"])
    # The nearest of 0.25 is 0.26, of another field, and the other way round.
    assert found.share == pytest.approx(5 / 7) and found.chance == pytest.approx((3 * 2 + 4 * 3) / 42)
    assert found.low is None and found.subjects == 7
    assert [place for place, _ in nearest_subjects(vectors, vectors[0], 2, [0])] == [1, 2]
    many = field_agreement(vectors.repeat(20, 1), list("aaabbbb") * 20)
    assert many.low <= many.share <= many.high


def test_subjects_of_the_embedded_corpus_have_fields(tmp_path):
    for name, subjects in {"metals": "铁铜", "rivers": "黄河 长江 铁"}.items():
        rows = "".join(
            f'{{"title": "{subject}", "text": "x"}}\n' * 2
            for subject in (subjects.split() if " " in subjects else subjects)
        )
        (tmp_path / f"{name}.jsonl").write_text(rows, encoding="utf-8")
    found = subjects_of_fields(sorted(tmp_path.glob("*.jsonl")))
    assert [tuple(subject) for subject in found] == [("铜", "metals"), ("黄河", "rivers"), ("长江", "rivers")]
