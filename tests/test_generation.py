"""Generation against plain loops: one full forward a token, no cache, no batch."""

import pytest
import torch
from tiny import EOT, MARK, PAD, VOCAB, random_ids, tiny_model, tiny_tokenizer

from generation import SamplingParams, TextGenerator, generate_ids, sample_token
from model import GPTConfig

TOKENIZER = tiny_tokenizer()
FORBIDDEN = [PAD, *range(263, VOCAB)]
QUESTIONS = ["河的桥", "东河有几座桥？", "a", "第三镇的河", "它位于哪里", "有河的镇？", "b"]
GREEDY = SamplingParams(temperature=0, max_new_tokens=12)


@torch.inference_mode()
def plain_greedy(model, prompt, n_new, forbidden, penalty=0.0, counted=None):
    """Ids that a prompt goes on with; `counted(prompt, answer)`: the ids that the penalty counts."""
    ids = list(prompt)
    for _ in range(n_new):
        if len(ids) == model.config.block_size:
            break
        logits = model(torch.tensor([ids]))[0, -1]
        logits[forbidden] = -torch.inf
        for token in counted(prompt, ids[len(prompt) :]) if counted else []:
            logits[token] -= penalty
        token = logits.argmax().item()
        if token == EOT:
            break
        ids.append(token)
    return ids[len(prompt) :]


class Scripted:
    """Stands for a model: at step t the ids of script[t] are likeliest for their rows, then `second`, then the rest."""

    def __init__(self, script, second=65):
        self.script, self.second, self.step = script, second, -1
        self.config, self.wte = GPTConfig(32, VOCAB, 1, 1, 8), torch.nn.Embedding(1, 1)

    def __call__(self, idx, cache):
        self.step += 1
        logits = torch.zeros(len(idx), 1, VOCAB)
        for row, likeliest in enumerate(self.script[self.step]):
            logits[row, 0, self.second] = 10.0
            logits[row, 0, likeliest] = 20.0
        return logits


def run(model, prompts, params, **options):
    return list(generate_ids(model, prompts, params, **{"eot_id": EOT, **options}))


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_greedy_text_is_that_of_a_plain_loop(stage):
    forbidden = [*FORBIDDEN, MARK] if stage == "sft" else FORBIDDEN
    texts = set()
    for seed in range(3):
        model = tiny_model(seed)
        generator = TextGenerator(model, TOKENIZER, stage)
        for question in QUESTIONS:
            prompt = TOKENIZER.encode(question) + ([MARK] if stage == "sft" else [])
            ids = plain_greedy(model, prompt, 12, forbidden)
            steps = run(model, [prompt], GREEDY, forbidden=forbidden)
            assert [token for (token,) in steps] == ids
            text = b"".join(map(TOKENIZER.token_bytes, ids)).decode("utf-8", errors="ignore")
            assert generator.generate([question], GREEDY) == [text]
            texts.add(text)
    assert len(texts) > 5


def test_prompts_of_any_length_in_one_batch_are_answered_as_each_alone():
    generator = TextGenerator(tiny_model(), TOKENIZER, "sft")
    prompts = QUESTIONS * 2
    alone = ["".join(generator.stream(p, GREEDY)) for p in prompts]
    assert len(set(alone)) > 3
    for batch_size in (1, 2, 64):
        done = []
        assert generator.generate(prompts, GREEDY, batch_size, progress=done.append) == alone
        assert sum(done) == len(prompts)
    assert generator.generate([], GREEDY) == []


def test_streamed_pieces_make_the_generated_text():
    generator = TextGenerator(tiny_model(), TOKENIZER, "pretrain")
    for seed in range(5):  # any bytes: most are no whole characters
        params = SamplingParams(temperature=5.0, top_k=0, max_new_tokens=20, seed=seed)
        pieces = list(generator.stream("河的", params))
        assert "".join(pieces) == generator.generate(["河的"], params)[0]
        assert all(pieces)
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_seed_gives_the_same_text_and_another_seed_another():
    generator = TextGenerator(tiny_model(), TOKENIZER, "pretrain")

    def texts(seed):
        return generator.generate(QUESTIONS, SamplingParams(temperature=2.0, top_k=0, max_new_tokens=10, seed=seed))

    first = texts(1)
    torch.rand(7)  # the global generator has no part in it
    assert texts(1) == first
    assert texts(2) != first
    assert texts(None) != texts(None)


def test_frequency_penalty_counts_the_tokens_of_prompt_and_answer():
    model, params = tiny_model(), SamplingParams(temperature=0, max_new_tokens=20, frequency_penalty=0.5)
    prompts = random_ids(3, 10, below=5).tolist()

    def plain(counted):
        return [plain_greedy(model, p, 20, FORBIDDEN, 0.5, counted) for p in prompts]

    both, answer_only = plain(lambda prompt, answer: prompt + answer), plain(lambda prompt, answer: answer)
    prompt_only, once = plain(lambda prompt, answer: prompt), plain(lambda prompt, answer: {*prompt, *answer})
    assert all(both != other for other in (answer_only, prompt_only, once, plain(None)))
    steps = run(model, prompts, params, forbidden=FORBIDDEN)
    assert [[i for i in row if i is not None] for row in zip(*steps, strict=True)] == both


def test_top_k_draws_among_the_k_likeliest_only_and_each_of_them():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.9, 2.8], [5.0, 5.1, 0.0, 4.9, 0.0]]).repeat(300, 1)
    generator = torch.Generator().manual_seed(0)
    for k, expected in (
        (1, [{1}, {1}]),
        (3, [{1, 3, 4}, {0, 1, 3}]),
        (0, [set(range(5))] * 2),
        (9, [set(range(5))] * 2),
    ):
        ids = sample_token(logits, SamplingParams(temperature=2.0, top_k=k), generator=generator)
        assert [set(ids[0::2].tolist()), set(ids[1::2].tolist())] == expected


def test_temperature_divides_the_logits():
    logits, generator = torch.tensor([[2.0, 1.0, 0.0]]), torch.Generator().manual_seed(0)
    for temperature in (0.5, 1.0, 4.0):
        params = SamplingParams(temperature=temperature, top_k=0)
        ids = sample_token(logits.repeat(20000, 1), params, generator=generator)
        shares = torch.bincount(ids, minlength=3) / len(ids)
        torch.testing.assert_close(shares, (logits[0] / temperature).softmax(dim=0), atol=0.015, rtol=0)


def test_a_row_ends_at_its_eot_and_the_batch_when_all_have_ended():
    script = [[66, 67, 68], [EOT, 69, 70], [71, 72, EOT], [73, EOT, 74], [75, 76, 77]]
    steps = run(Scripted(script), [[1], [2], [3]], SamplingParams(temperature=0, max_new_tokens=5))
    assert steps == [[66, 67, 68], [None, 69, 70], [None, 72, None]]


@pytest.mark.parametrize("first", [EOT, 66])
def test_an_answer_may_be_empty(first):
    assert run(Scripted([[first], [EOT]]), [[1]], GREEDY) == ([] if first == EOT else [[66]])
    assert run(Scripted([[first]]), [[1]], SamplingParams(max_new_tokens=0)) == []


def test_generation_stops_at_max_new_tokens_and_at_the_blocks_end():
    model = tiny_model()
    for prompt_length, max_new_tokens, expected in ((10, 7, 7), (10, 1, 1), (10, 1000, 22), (31, 9, 1), (32, 9, 0)):
        prompt, params = random_ids(prompt_length).tolist(), SamplingParams(max_new_tokens=max_new_tokens)
        assert len(run(model, [prompt], params, eot_id=-1)) == expected


def test_a_prompt_longer_than_the_block_keeps_its_end_and_gets_an_answer():
    generator = TextGenerator(tiny_model(), TOKENIZER, "sft")
    long = "abc" * 30 + "河的桥"
    ids, cut = generator.prompt_ids(long)
    whole = [*TOKENIZER.encode(long), MARK]
    assert cut
    assert ids == whole[-len(ids) :]
    assert len(ids) < 32
    assert len(run(generator.model, [ids], GREEDY, eot_id=-1)) == min(12, 32 - len(ids))
    assert generator.prompt_ids("河的桥") == ([*TOKENIZER.encode("河的桥"), MARK], False)


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(temperature=4.0, top_k=0), SamplingParams(top_k=2)])
@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_pad_and_ids_without_text_are_never_drawn(params, stage):
    for unwanted in (PAD, 263, VOCAB - 1, *([MARK] if stage == "sft" else [])):
        model = Scripted([[unwanted]] * 31)
        forbidden = TextGenerator(model, TOKENIZER, stage).forbidden
        drawn = {token for (token,) in run(model, [[1]], params, forbidden=forbidden, eot_id=-1)}
        assert drawn
        assert not drawn & {*FORBIDDEN, *([MARK] if stage == "sft" else [])}


def test_an_empty_prompt_starts_a_text():
    generator = TextGenerator(tiny_model(), TOKENIZER, "pretrain")
    assert generator.prompt_ids("") == ([EOT], False)
    assert generator.generate([""], GREEDY) == ["".join(generator.stream("", GREEDY))]
