"""Generation compared with a plain loop: one full forward pass per token, without cache or batch."""

import threading
import time

import pytest
import torch
from plain_generation import FORBIDDEN, TOKENIZER, plain_greedy, text_of
from tiny import EOT, MARK, PAD, VOCAB, random_ids, tiny_model

from minigpt.common.errors import UserError
from minigpt.inference.engine import StopStringFilter, TextGenerator
from minigpt.inference.params import SamplingParams
from model import GPTConfig, PromptPass

pytestmark = pytest.mark.numeric

QUESTIONS = ["河的桥", "东河有几座桥？", "a", "第三镇的河", "它位于哪里", "有河的镇？", "b"]
GREEDY = SamplingParams(temperature=0, max_new_tokens=12)


def generator(model=None, stage="pretrain", **options):
    return TextGenerator(model or tiny_model(), TOKENIZER, stage, **options)


class Scripted:
    """A fake model: in step t, row r gives the highest logit to script[r][t] and the next to `second`."""

    def __init__(self, script, second=65):
        self.script, self.second, self.steps, self.virtual, self.n_virtual = script, second, -1, None, 0
        self.config, self.wte = GPTConfig(32, VOCAB, 1, 1, 8), torch.nn.Embedding(1, 1)
        self.lm_head, self.row_positions = torch.nn.Linear(1, 1), self.config.block_size

    def __call__(self, idx, kv_pass):
        self.steps += 1
        if isinstance(kv_pass, PromptPass):
            kv_pass.keys, kv_pass.values = ([torch.zeros(len(idx), 1, idx.shape[1], 8)] for _ in range(2))
        logits = torch.zeros(len(idx), VOCAB)
        logits[:, self.second] = 10.0
        for row, ids in enumerate(self.script[: len(idx)]):
            logits[row, ids[self.steps]] = 20.0
        return logits


def run(model, params=GREEDY, prompt=(1,), forbidden=(), **options):
    """Generate from one prompt of ids; returns (text, stream)."""
    made = generator(model, **options)
    made.member.forbidden = [token_id for token_id in forbidden if token_id < 263]
    stream = made.new_stream(list(prompt), params)
    made.engine.waiting.append(stream)
    while made.engine.busy:
        made.engine.step()
    return "".join(stream), stream


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_greedy_text_is_that_of_a_plain_loop_alone_and_in_any_batch(stage, architecture):
    forbidden = [*FORBIDDEN, MARK] if stage == "sft" else FORBIDDEN
    texts = set()
    for seed in range(3):
        model = tiny_model(seed, architecture=architecture)
        expected = []
        for question in QUESTIONS:
            prompt = TOKENIZER.encode(question) + ([MARK] if stage == "sft" else [])
            expected.append(text_of(plain_greedy(model, prompt, 12, forbidden)))
        for max_batch in (1, 2, 3, 32):  # with fewer places than prompts, some join as others leave
            done = []
            made = generator(model, stage, max_batch=max_batch)
            assert made.generate(QUESTIONS, GREEDY, progress=done.append) == expected
            assert sum(done) == len(QUESTIONS)
        texts.update(expected)
    assert len(texts) > 5
    assert generator().generate([], GREEDY) == []


def test_requests_join_and_leave_a_running_batch_without_changing_other_texts(architecture):
    model = tiny_model(architecture=architecture)
    prompts = [random_ids(1 + i % 9, seed=i).tolist() for i in range(24)]
    lengths = [1 + (i * 7) % 20 for i in range(24)]
    made, streams = generator(model, max_batch=5), []
    engine = made.engine
    for i, (prompt, n_new) in enumerate(zip(prompts, lengths, strict=True)):
        streams.append(made.new_stream(prompt, SamplingParams(temperature=0, max_new_tokens=n_new)))
        engine.waiting.append(streams[-1])
        if i % 3 == 0:
            engine.step()
        if i == 10:
            engine.rows[1].cancel()
    while engine.busy:
        engine.step()
    reasons = [stream.finish_reason for stream in streams]
    assert reasons.count("cancelled") == 1
    for prompt, n_new, stream in zip(prompts, lengths, streams, strict=True):
        if stream.finish_reason != "cancelled":
            ids = plain_greedy(model, prompt, n_new)
            assert ("".join(stream), stream.completion_tokens) == (text_of(ids), len(ids))
            assert stream.finish_reason == ("length" if len(ids) == min(n_new, 32 - len(prompt)) else "stop")


def test_a_seed_gives_the_same_text_alone_and_among_others():
    def params(seed):
        return SamplingParams(temperature=2.0, top_k=0, top_p=0.9, max_new_tokens=10, seed=seed)

    made = generator(max_batch=4)
    alone = [made.generate([question], params(i))[0] for i, question in enumerate(QUESTIONS)]
    assert len(set(alone)) == len(QUESTIONS)
    torch.rand(7)  # the global generator must not matter
    streams = [made.submit(question, params(i)) for i, question in enumerate(QUESTIONS)]
    assert ["".join(stream) for stream in streams] == alone
    assert made.generate(["河"], params(1)) != made.generate(["河"], params(2))
    assert made.generate(["河"] * 3, params(None)) != made.generate(["河"] * 3, params(None))
    made.close()


def test_streamed_pieces_make_the_generated_text():
    made = generator()
    for seed in range(5):  # random bytes, most of which are no complete characters
        params = SamplingParams(temperature=5.0, top_k=0, max_new_tokens=20, seed=seed)
        pieces = list(made.submit("河的", params))
        assert "".join(pieces) == made.generate(["河的"], params)[0]
        assert all(pieces)
        assert not any("\ufffd" in piece for piece in pieces)
    made.close()


@pytest.mark.parametrize(("frequency", "repetition"), [(0.5, 1.0), (0.0, 1.3), (0.3, 1.2), (-0.2, 0.8)])
def test_penalties_count_the_tokens_of_prompt_and_answer(frequency, repetition):
    model, made = tiny_model(), generator()
    params = SamplingParams(
        temperature=0, max_new_tokens=20, frequency_penalty=frequency, repetition_penalty=repetition
    )
    prompts = random_ids(3, 10, below=5).tolist()
    expected = [text_of(plain_greedy(model, p, 20, FORBIDDEN, frequency, repetition)) for p in prompts]
    assert made.generate(prompts, params) == expected
    assert expected != made.generate(prompts, SamplingParams(temperature=0, max_new_tokens=20))


def test_a_text_ends_at_its_eot_and_others_continue():
    script = [[66, 67, 68, EOT], [69, EOT, 70, 71], [71, 72, 73, 74]]
    made = generator(Scripted(script))
    streams = [made.new_stream([1], SamplingParams(temperature=0, max_new_tokens=3)) for _ in script]
    made.engine.waiting.extend(streams)
    made.engine.step()
    assert [s.finish_reason for s in streams] == [None, "stop", None]
    assert [s.completion_tokens for s in streams] == [2, 1, 2]
    # The last stream has moved to the free row, whose script continues with 70.
    made.engine.step()
    assert ["".join(s) for s in streams] == ["BCD", "E", "GHF"]
    assert [s.finish_reason for s in streams] == ["length", "stop", "length"]


@pytest.mark.parametrize("first", [EOT, 66])
def test_an_answer_may_be_empty(first):
    text, stream = run(Scripted([[first, EOT]]))
    assert (text, stream.finish_reason) == ("" if first == EOT else "B", "stop")
    text, stream = run(Scripted([[first]]), SamplingParams(max_new_tokens=0))
    assert (text, stream.finish_reason, stream.completion_tokens) == ("", "length", 0)


def test_generation_stops_at_max_new_tokens_and_at_the_blocks_end():
    model = tiny_model()
    for prompt_length, max_new_tokens, expected in ((10, 7, 7), (10, 1, 1), (10, 1000, 22), (24, 1000, 8), (31, 1, 1)):
        params = SamplingParams(max_new_tokens=max_new_tokens, seed=1)
        _, stream = run(model, params, random_ids(prompt_length).tolist(), forbidden=[*FORBIDDEN, EOT])
        assert (stream.completion_tokens, stream.finish_reason) == (expected, "length")
        assert not stream.prompt_cut


@pytest.mark.parametrize(("max_new_tokens", "kept"), [(12, 24), (1000, 24), (3, 29), (1, 31)])
def test_a_prompt_longer_than_the_block_keeps_its_end_and_says_so(max_new_tokens, kept):
    made = generator(stage="sft")
    params = SamplingParams(temperature=0, max_new_tokens=max_new_tokens)
    long = "abc" * 30 + "河的桥"
    stream = made.new_stream(long, params)
    whole = [*TOKENIZER.encode(long), MARK]
    assert (stream.prompt, stream.prompt_cut) == (whole[-kept:], True)
    expected = plain_greedy(made.model, whole[-kept:], max_new_tokens, [*FORBIDDEN, MARK])
    assert made.generate([long], params) == [text_of(expected)]
    stream = made.new_stream("河的桥", params)
    assert (stream.prompt, stream.prompt_cut) == ([*TOKENIZER.encode("河的桥"), MARK], False)


def test_stop_strings_end_a_text_however_it_is_split_into_pieces():
    ids = [*b"one two three four"]
    for stops, expected in (
        ((" two",), "one"),
        (("e",), "on"),
        (("three", "two"), "one "),
        (("twice", "thr"), "one two "),
        (("four!", "x"), "one two three four"),
        (("",), "one two three four"),
    ):
        params = SamplingParams(temperature=0, max_new_tokens=18, stop=stops)
        text, stream = run(Scripted([[*ids, EOT]], second=0), params)
        assert (text, stream.finish_reason) == (expected, "stop" if len(expected) < 18 else "length")
    held = StopStringFilter(("abab", "河的"))
    assert [held.feed(t) for t in ("xa", "b", "aa", "河")] == ["x", "", "aba", "a"]
    assert not held.found
    assert (held.feed("的镇"), held.found) == ("", True)


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(temperature=4.0, top_k=0), SamplingParams(top_k=2)])
@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_pad_and_ids_without_text_are_never_sampled(params, stage, monkeypatch):
    for unwanted in (PAD, 263, VOCAB - 1, *([MARK] if stage == "sft" else [])):
        made = generator(Scripted([[unwanted] * 40]), stage)
        drawn = []
        monkeypatch.setattr(
            "minigpt.inference.engine.Stream.add_token", lambda s, i, *rest, d=drawn: (d.append(i), s.finish("stop"))
        )
        made.generate([[1]] * 20, params)
        assert len(drawn) == 20
        assert not set(drawn) & {*FORBIDDEN, *([MARK] if stage == "sft" else [])}


def test_an_empty_prompt_starts_a_text():
    made = generator()
    assert made.new_stream("", GREEDY).prompt == [EOT]
    assert made.generate([""], GREEDY) == [text_of(plain_greedy(made.model, [EOT], 12))]


def test_the_last_question_of_a_chat_looks_as_in_training_and_earlier_turns_end_with_eot():
    made, encode = generator(stage="sft"), TOKENIZER.encode

    def said(*turns):
        return made.prompt_ids([{"role": role, "content": content} for role, content in turns])

    assert said(("user", "河的桥？")) == made.prompt_ids("河的桥？") == [*encode("河的桥？"), MARK]
    turns = [("system", "要短。"), ("user", "甲？"), ("assistant", "乙。"), ("user", "丙？")]
    expected = [*encode("要短。\n甲？"), MARK, *encode("乙。"), EOT, *encode("丙？"), MARK]
    assert said(*turns) == expected
    assert said(("user", "用##吗")) == [*encode("用"), 35, 35, *encode("吗"), MARK]
    assert said(("user", "甲？"), ("assistant", "乙")) == [*encode("甲？"), MARK, *encode("乙")]
    pretrained = generator(stage="pretrain")
    assert pretrained.prompt_ids([{"role": "user", "content": "河的"}]) == encode("河的")


def test_a_cancelled_request_ends_before_the_next_step_and_the_others_continue():
    made = generator(max_batch=2)
    made.engine.stop_ids = set()
    release, step = threading.Event(), made.engine.runner.step
    made.engine.runner.step = lambda *values: (release.wait(10), time.sleep(0.01), step(*values))[-1]
    params = SamplingParams(temperature=1.0, max_new_tokens=25, seed=3)
    streams = [made.submit("河", params) for _ in range(4)]
    streams[0].cancel()
    streams[3].cancel()  # it waits for a place
    release.set()
    texts = ["".join(stream) for stream in streams]
    assert [s.finish_reason for s in streams] == ["cancelled", "length", "length", "cancelled"]
    assert texts[1] == texts[2] != texts[0]
    assert texts[3] == ""
    made.close()
    assert (made.running, made.waiting) == (0, 0)
    with pytest.raises(RuntimeError, match="closed"):
        made.submit("河", params)


def test_closing_finishes_what_runs_within_the_grace_and_cancels_the_rest():
    for grace, reason in ((10, "length"), (0.05, "cancelled")):
        made = generator()
        made.engine.stop_ids = set()
        step = made.engine.runner.step
        made.engine.runner.step = lambda *values, step=step: (time.sleep(0.02), step(*values))[-1]
        stream = made.submit("河", SamplingParams(max_new_tokens=20))
        assert next(iter(stream))
        made.close(grace)
        assert stream.finish_reason == reason


def test_a_failing_step_raises_in_its_readers_and_the_next_request_is_served():
    made = generator()
    expected = made.generate(["河"], GREEDY)
    step = made.engine.runner.step
    made.engine.runner.step = lambda *values: 1 / 0
    with pytest.raises(RuntimeError, match="division by zero"):
        list(made.submit("河", GREEDY))
    made.engine.runner.step = step
    assert ["".join(made.submit("河", GREEDY))] == expected
    made.close()


def test_running_requests_get_a_token_between_the_prefill_passes_of_a_burst(monkeypatch):
    monkeypatch.setattr("minigpt.inference.engine.MAX_PREFILL_TOKENS", 20)
    made = generator(max_batch=8)
    made.engine.stop_ids = set()
    params = SamplingParams(temperature=0, max_new_tokens=20)
    first = made.new_stream([1] * 5, params)
    made.engine.waiting.append(first)
    made.engine.step()
    burst = [made.new_stream([2] * 10, params) for _ in range(6)]
    made.engine.waiting.extend(burst)
    for n in (2, 4, 6):  # two prompts of ten tokens per pass
        made.engine.step()
        assert sum(stream.completion_tokens > 0 for stream in burst) == n
        assert first.completion_tokens == 2 + n // 2


def test_cancelling_a_finished_request_has_no_effect():
    made = generator()
    stream = made.submit("河", GREEDY)
    "".join(stream)
    stream.cancel()
    made.engine.cancellations.append(stream)  # as if it had finished while cancel() ran
    assert ["".join(made.submit("a", GREEDY))] == generator().generate(["a"], GREEDY)
    made.close()
    assert stream.finish_reason in ("stop", "length")
    assert not made.worker.thread.is_alive()


def test_an_error_while_generating_leaves_no_request_behind():
    made = generator()
    expected = made.generate(QUESTIONS, GREEDY)
    step = made.engine.runner.step
    made.engine.runner.step = lambda *values: 1 / 0
    with pytest.raises(ZeroDivisionError):
        made.generate(QUESTIONS, GREEDY)
    made.engine.runner.step = step
    assert made.generate(QUESTIONS, GREEDY) == expected


def test_ids_outside_the_vocabulary_are_refused_and_affect_no_other_request():
    made = generator()
    running = made.submit("河", GREEDY)
    for ids in ([10**6], [-1], [263]):
        with pytest.raises(UserError, match="0 to 262"):
            made.submit(ids, GREEDY)
    assert "".join(running) == generator().generate(["河"], GREEDY)[0]
    made.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("temperature", -1.0), ("top_k", -1), ("top_p", 1.5), ("max_new_tokens", -1), ("repetition_penalty", 0.0)],
        *[("min_p", -0.1), ("min_p", 1.1), ("logprobs", -1), ("logprobs", 21), ("prompt_logprobs", 21)],
    ],
)
def test_a_parameter_out_of_range_is_named(name, value):
    with pytest.raises(UserError, match=name):
        SamplingParams(**{name: value})


def test_reading_a_stream_can_time_out():
    made = generator()
    stream = made.new_stream("河", GREEDY)
    with pytest.raises(TimeoutError):
        stream.next_piece(timeout=0.01)
    stream.finish("stop")
    assert stream.next_piece(timeout=1) is None
    assert stream.next_piece() is None
