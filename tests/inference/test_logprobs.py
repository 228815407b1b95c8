"""Log probabilities and embeddings of the generator compared with one plain forward pass of the model."""

from dataclasses import replace

import pytest
import torch
from tiny import EOT, MARK, PAD, padded_rows, random_ids, tiny_meta, tiny_model, tiny_tokenizer

from minigpt.common.errors import UserError
from minigpt.inference.engine import TextGenerator
from minigpt.inference.likelihood import likelihood_of_rows
from minigpt.inference.params import SamplingParams
from minigpt.inference.quantize import convert_weights

pytestmark = pytest.mark.numeric

TOKENIZER = tiny_tokenizer()
N_VOCAB = TOKENIZER.n_vocab
ASKED = SamplingParams(temperature=1.5, top_k=0, max_new_tokens=12, seed=4, logprobs=3, prompt_logprobs=2)
# Largest difference from float32, in nats: measured 0.04 for bfloat16, 0.18 for int8 (0.09 where sums do not saturate).
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "int8": 0.4}


def confident_model(scale=4.0, **options):
    """A model whose logits are far apart: most of the probability is on one or two tokens."""
    model = tiny_model(**options)
    with torch.no_grad():
        model.lm_head.weight *= scale
    return model


def run(model, prompts, params, stage="pretrain", **options):
    """The finished streams of prompts (lists of ids); params: one for all, or a list."""
    made = TextGenerator(model, TOKENIZER, stage, **options)
    each = params if isinstance(params, list) else [params] * len(prompts)
    streams = [made.new_stream(*request) for request in zip(prompts, each, strict=True)]
    made.engine.waiting.extend(streams)
    while made.engine.busy:
        made.engine.step()
    return streams


@torch.inference_mode()
def plain_log_probs(model, ids):
    """Log probabilities (len(ids), V) after each id, by one forward pass without a cache."""
    return model(torch.tensor([ids]))[0].float().log_softmax(dim=-1)


def check_tokens(found, ids, log_probs, count, tolerance):
    """Check the entries of tokens `ids` against log_probs (len(ids), V), the distributions before each."""
    assert [token.token_id for token in found] == ids
    for token, row in zip(found, log_probs, strict=True):
        assert token.logprob == pytest.approx(row[token.token_id].item(), abs=tolerance)
        best = row[:N_VOCAB].topk(count).values.tolist()
        assert [value for _, value in token.top] == pytest.approx(best, abs=tolerance)
        assert all(row[i].item() == pytest.approx(value, abs=tolerance) for i, value in token.top)
        assert all(value == token.logprob for i, value in token.top if i == token.token_id)  # exactly


@pytest.mark.parametrize(
    "model",
    [tiny_model(), confident_model(), confident_model(architecture="qwen3")],
    ids=["flat", "confident", "qwen3"],
)
@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_logprobs_are_those_of_a_plain_pass_whatever_the_sampling(stage, model):
    """Penalties, temperature, candidates, forbidden tokens and other requests of the batch do not change them."""
    prompts = [random_ids(n, seed=n).tolist() for n in (1, 5, 9, 20, 2)]
    changed = {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.3, "min_p": 0.1}
    cases = [ASKED, replace(ASKED, **changed), replace(ASKED, temperature=0), replace(ASKED, top_k=1, logprobs=0)]
    cases.append(SamplingParams(max_new_tokens=12, seed=1))  # asks for none
    for max_batch in (1, 3, 8):
        streams = run(model, prompts, cases, stage, max_batch=max_batch)
        assert streams[-1].logprobs == streams[-1].prompt_logprobs == []
        for stream in streams[:-1]:
            answer = [token.token_id for token in stream.logprobs]
            before = plain_log_probs(model, [*stream.prompt, *answer])
            first, *others = stream.prompt_logprobs
            assert (first.token_id, first.logprob, first.top) == (stream.prompt[0], None, [])
            n = stream.prompt_tokens
            check_tokens(others, stream.prompt[1:], before[: n - 1], 2, 1e-4)
            check_tokens(stream.logprobs, answer, before[n - 1 : -1], stream.params.logprobs, 1e-4)
            assert len(answer) == stream.completion_tokens + (answer[-1] == EOT)


def test_a_long_prompt_is_computed_in_parts_and_fills_the_block():
    model, ids = confident_model(block_size=1200), random_ids(1200).tolist()
    (stream,) = run(model, [ids], replace(ASKED, max_new_tokens=0))
    check_tokens(stream.prompt_logprobs[1:], ids[1:], plain_log_probs(model, ids)[:-1], 2, 1e-4)
    assert (stream.finish_reason, stream.completion_tokens, stream.logprobs) == ("length", 0, [])


@pytest.mark.parametrize("name", TOLERANCE)
def test_logprobs_of_every_weight_type_are_close_to_float32s(name, architecture):
    model, ids = convert_weights(tiny_model(architecture=architecture), name), random_ids(30).tolist()
    (stream,) = run(model, [ids], ASKED)
    answer = [token.token_id for token in stream.logprobs]
    for compared, tolerance in ((tiny_model(architecture=architecture), TOLERANCE[name]), (model, 1e-3)):
        expected = plain_log_probs(compared, ids)
        check_tokens(stream.prompt_logprobs[1:], ids[1:], expected[:29], 2, tolerance)
        check_tokens(stream.logprobs[:1], answer[:1], expected[29:], 3, tolerance)


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_the_sum_over_a_rows_targets_is_the_likelihood_of_the_row(stage, architecture):
    model = confident_model(architecture=architecture)
    rows = [random_ids(n, seed=n).tolist() for n in (6, 31, 14)]
    if stage == "sft":
        rows = [[*ids[:3], MARK, *ids[4:]] for ids in rows]
    expected = likelihood_of_rows(model, padded_rows([[*ids, EOT] for ids in rows], 32), tiny_meta(stage), 2)
    streams = run(model, [[*ids, EOT] for ids in rows], replace(ASKED, max_new_tokens=0), stage)
    for i, (ids, stream) in enumerate(zip(rows, streams, strict=True)):
        targets = stream.prompt_logprobs[ids.index(MARK) + 1 if stage == "sft" else 1 :]
        assert len(targets) == expected.tokens[i]
        assert -sum(token.logprob for token in targets) == pytest.approx(expected.nats[i], rel=1e-5)


def test_asking_for_logprobs_changes_no_text():
    model, prompts = confident_model(scale=1.5), [random_ids(n, seed=n).tolist() for n in (3, 8, 15)]
    params = [SamplingParams(temperature=2.0, top_k=0, max_new_tokens=9, seed=i) for i in range(3)]
    plain = ["".join(stream) for stream in run(model, prompts, params)]
    asked = [replace(case, logprobs=5, prompt_logprobs=0) for case in params]
    mixed = [asked[0], params[1], asked[2]]
    assert ["".join(s) for s in run(model, prompts, asked)] == ["".join(s) for s in run(model, prompts, mixed)] == plain


@pytest.mark.parametrize(
    ("ids", "stop", "text", "kept", "starts"),
    [
        ([*b"one two", EOT], (), "one two", 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        ([*b"one two", EOT], (" tw",), "one", 3, [0, 1, 2]),
        ([*b"ab", 257, *"桥".encode(), 65, EOT], ("A",), "ab的桥", 6, [0, 1, 2, 3, 3, 3]),
        ([*"桥".encode(), *"桥".encode()[:2], EOT], (), "桥", 6, [0, 0, 0, 1, 1, 1]),  # ends within a character
        ([*b"one", EOT], ("one",), "", 0, []),
    ],
)
def test_logprobs_say_where_in_the_text_each_token_starts(ids, stop, text, kept, starts):
    made = TextGenerator(tiny_model(), TOKENIZER, "pretrain")
    script = iter(ids)
    made.engine.choose = lambda logits, samplers: [next(script)]
    stream = made.new_stream([1], SamplingParams(max_new_tokens=20, stop=stop, logprobs=0))
    made.engine.waiting.append(stream)
    while made.engine.busy:
        made.engine.step()
    assert "".join(stream) == text
    assert [token.token_id for token in stream.logprobs] == ids[:kept]
    assert [token.start for token in stream.logprobs] == starts


def test_a_prompt_whose_every_token_is_asked_about_is_not_cut():
    made = TextGenerator(tiny_model(), TOKENIZER, "pretrain")
    embedding = SamplingParams(max_new_tokens=0, embedding=True)
    for params in (ASKED, replace(ASKED, max_new_tokens=0), replace(ASKED, max_new_tokens=1), embedding):
        assert not made.new_stream([1] * 32, params).prompt_cut
        with pytest.raises(UserError, match="33 tokens does not fit into the model's 32;"):
            made.new_stream([1] * 33, params)
        assert made.new_stream([1] * 33, replace(params, prompt_logprobs=None, embedding=False)).prompt_cut
    (stream,) = run(made.model, [random_ids(32).tolist()], replace(ASKED, top_k=1))
    assert (stream.completion_tokens, len(stream.logprobs), stream.finish_reason) == (1, 1, "length")


def test_an_embedding_is_the_normalised_mean_of_the_last_states_alone_and_in_a_batch(architecture):
    model, params = tiny_model(architecture=architecture), SamplingParams(max_new_tokens=0, embedding=True)
    prompts = [random_ids(n, seed=n).tolist() for n in (1, 32, 7, 15, 7)]
    together = run(model, prompts, params)
    beside_others = run(model, prompts, [params, ASKED, params, replace(ASKED, max_new_tokens=0), params])
    for i, ids in enumerate(prompts):
        with torch.inference_mode():
            mean = model.hidden(torch.tensor([ids]))[0].double().mean(dim=0)
        expected = (mean / mean.norm()).tolist()
        (alone,) = run(model, [ids], params)
        for stream in (alone, together[i], *([beside_others[i]] if i % 2 == 0 else [])):
            assert stream.embedding == pytest.approx(expected, abs=1e-5)
            assert (stream.finish_reason, stream.completion_tokens) == ("length", 0)
    assert PAD not in prompts[1] and together[0].embedding != together[1].embedding


def test_running_requests_wait_for_one_pass_of_a_burst_of_embeddings(monkeypatch):
    monkeypatch.setattr("minigpt.inference.engine.MAX_PREFILL_TOKENS", 20)
    made = TextGenerator(tiny_model(), TOKENIZER, "pretrain", max_batch=4)
    made.engine.stop_ids = set()
    running = made.new_stream([1] * 5, SamplingParams(temperature=0, max_new_tokens=20))
    made.engine.waiting.append(running)
    made.engine.step()
    burst = [made.new_stream([2] * 10, SamplingParams(max_new_tokens=0, embedding=True)) for _ in range(6)]
    made.engine.waiting.extend(burst)
    for n in (2, 4, 6):  # two prompts of ten tokens per pass
        made.engine.step()
        assert sum(stream.embedding is not None for stream in burst) == n
        assert running.completion_tokens == 2 + n // 2
