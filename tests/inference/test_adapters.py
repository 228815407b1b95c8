"""Generation with adapters: the texts of plain forward passes, and of each adapter alone."""

import pytest
import torch
from adapter_files import write_adapter, write_base
from adapting import adapting, freeze, randomize
from plain_generation import FORBIDDEN, TOKENIZER, plain_greedy, text_of
from tiny import MARK, random_ids, tiny_model

from minigpt.adapters.attach import trained_parameters
from minigpt.adapters.bottleneck import add_bottlenecks
from minigpt.adapters.lora import add_lora
from minigpt.adapters.mixing import share_layers
from minigpt.adapters.prompts import EncodedPrompt, Prefix, PromptTokens, flatten_virtual, run_embeddings
from minigpt.inference.engine import Engine, EngineWorker, TextGenerator, open_generator, open_generators
from minigpt.inference.params import SamplingParams
from minigpt.settings.stages import ServerSettings

pytestmark = pytest.mark.numeric

QUESTIONS = ["河的桥", "东河有几座桥？", "a", "第三镇的河", "它位于哪里", "有河的镇？", "b"]
GREEDY = SamplingParams(temperature=0, max_new_tokens=12)
N_VIRTUAL = 5


def virtual_module(method, model):
    """Virtual tokens of a method, for a GPT."""
    torch.manual_seed(5)
    start = torch.randn(N_VIRTUAL, model.config.n_embd)
    if method == "prompt":
        return PromptTokens(start)
    if method == "p-tuning":
        return EncodedPrompt(start, 8)
    return Prefix(flatten_virtual(run_embeddings(model, start)), 8)


def plain_texts(model, stage, prompts, n_new):
    """The text after each prompt, by plain greedy decoding."""
    mark = [MARK] if stage == "sft" else []
    return [text_of(plain_greedy(model, TOKENIZER.encode(p) + mark, n_new, FORBIDDEN + mark)) for p in prompts]


@pytest.mark.parametrize("method", ["prompt", "p-tuning", "prefix"])
def test_texts_behind_virtual_tokens_are_those_of_plain_passes(method, architecture):
    model, params = tiny_model(architecture=architecture), SamplingParams(temperature=0, max_new_tokens=30)
    bare = plain_texts(model, "sft", QUESTIONS, 30)
    with torch.no_grad():
        model.virtual = virtual_module(method, model)
    expected = plain_texts(model, "sft", QUESTIONS, 30)
    assert expected != bare and len(set(expected)) > 5
    for max_batch in (1, 3, 32):
        assert TextGenerator(model, TOKENIZER, "sft", max_batch).generate(QUESTIONS, params) == expected


def test_virtual_tokens_take_positions_of_the_block():
    model = tiny_model()
    with torch.no_grad():
        model.virtual = virtual_module("prefix", model)
    made = TextGenerator(model, TOKENIZER, "pretrain")
    made.engine.stop_ids = set()
    assert made.block_size == 32 - N_VIRTUAL
    long = made.new_stream([1] * 40, SamplingParams(temperature=0, max_new_tokens=4))
    assert (long.prompt_cut, long.prompt_tokens) == (True, 32 - N_VIRTUAL - 4)
    asked = SamplingParams(temperature=0, max_new_tokens=50, prompt_logprobs=0, embedding=True)
    stream = made.new_stream([7] * 20, asked)
    made.worker.run(made, [stream, long])
    assert (stream.finish_reason, stream.completion_tokens) == ("length", 32 - N_VIRTUAL - 20)
    assert (long.finish_reason, long.completion_tokens) == ("length", 4)

    # What is asked about the prompt is that of a plain pass.
    with torch.no_grad():
        states = model.hidden(torch.tensor([[7] * 20]))
        log_p = model.lm_head(states)[0].log_softmax(dim=1)[:-1, 7]
    torch.testing.assert_close(torch.tensor([t.logprob for t in stream.prompt_logprobs[1:]]), log_p, atol=1e-5, rtol=0)
    mean = torch.nn.functional.normalize(states[0].mean(dim=0), dim=0)
    torch.testing.assert_close(torch.tensor(stream.embedding), mean, atol=1e-5, rtol=0)


def adapted(base):
    """GPTs with the layers of `base`: itself, and eight with adapters of different kinds and ranks."""
    models = [freeze(base)]
    kinds = [
        {"rank": 4},
        {"rank": 2, "dora": True},
        {"rank": 8, "matrices": ["q", "k", "v", "down"]},
        {"adalora_rank": 1},
    ]
    for seed, fields in enumerate(kinds, start=1):
        models.append(share_layers(base))
        add_lora(models[-1], adapting(**fields))
        randomize(models[-1], seed)
    for width in (8, 3):
        models.append(share_layers(base))
        add_bottlenecks(models[-1], adapting(bottleneck=width))
        randomize(models[-1], width)
    for method in ("prompt", "prefix"):
        models.append(share_layers(base))
        with torch.no_grad():
            models[-1].virtual = virtual_module(method, models[-1])
    return models


@pytest.mark.parametrize("bias", [False, True])
def test_adapters_mixed_in_one_batch_give_the_texts_of_each_alone(architecture, bias):
    models = adapted(tiny_model(architecture=architecture, bias=bias))
    prompts = [random_ids(1 + i % 9, seed=i).tolist() for i in range(24)]
    lengths = [1 + (i * 7) % 20 for i in range(24)]
    worker = EngineWorker(Engine(models, TOKENIZER, 5))
    made = [TextGenerator(model, TOKENIZER, "pretrain", worker=worker) for model in models]
    engine, streams = worker.engine, []
    for i, (prompt, n_new) in enumerate(zip(prompts, lengths, strict=True)):
        params = SamplingParams(temperature=0, max_new_tokens=n_new)
        streams.append(made[i % len(made)].new_stream(prompt, params))
        engine.waiting.append(streams[-1])
        if i % 3 == 0:
            engine.step()
    while engine.busy:
        engine.step()
    texts = set()
    for i, stream in enumerate(streams):
        expected = text_of(plain_greedy(models[i % len(models)], prompts[i], lengths[i]))
        assert "".join(stream) == expected
        texts.add(expected)
    assert len(texts) > 12


ADAPTERS = {
    "lora": {"method": "lora", "rank": 4},
    "dora": {"method": "lora", "rank": 2, "dora": True},
    "prefix": {"method": "prefix", "virtual_tokens": N_VIRTUAL},
}


@pytest.fixture
def paths(tmp_path, architecture):
    """Checkpoints: a base, and adapters on it."""
    base = write_base(tmp_path / "base" / "ckpt.pt", tiny_model(architecture=architecture))
    written = [write_adapter(tmp_path / name / "ckpt.pt", base, **fields) for name, fields in ADAPTERS.items()]
    return [base, *written]


def settings_of(**changed):
    return ServerSettings(**{"device": "cpu", "dtype": "float32", "max_batch": 4, **changed})


def test_checkpoints_of_adapters_share_their_base_and_answer_as_alone(paths):
    opened = [generator for _, _, generator in open_generators(paths, settings_of())]
    assert len({id(generator.worker) for generator in opened}) == 1
    assert len({id(generator.model.wte.weight) for generator in opened}) == 1
    assert (
        f"lora with {sum(p.numel() for p in trained_parameters(opened[1].model).values()):,} parameters on {paths[0]}"
        in opened[1].about
    )
    assert f", {N_VIRTUAL} virtual tokens of 32 positions" in opened[3].about
    alone = [open_generator(path, settings_of())[2] for path in paths]
    expected = [generator.generate(QUESTIONS, GREEDY) for generator in alone]
    assert len({tuple(texts) for texts in expected}) == len(paths)
    streams = [[generator.submit(question, GREEDY) for question in QUESTIONS] for generator in opened]
    assert [["".join(stream) for stream in each] for each in streams] == expected

    # Without the base among them, adapters share it too.
    fewer = [generator for _, _, generator in open_generators(paths[1:3], settings_of())]
    assert fewer[0].worker is fewer[1].worker
    assert [generator.generate(QUESTIONS, GREEDY) for generator in fewer] == expected[1:3]

    # One that is closed lets the others run on.
    running = opened[1].submit("河", GREEDY)
    opened[0].close(0)
    with pytest.raises(RuntimeError, match="closed"):
        opened[0].submit("河", GREEDY)
    assert "".join(running) == opened[1].generate(["河"], GREEDY)[0]
    assert opened[1].worker.thread.is_alive()
    for generator in opened[1:]:
        generator.close(1)
    assert not opened[1].worker.thread.is_alive()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_base_of_fewer_bits_is_shared(paths, dtype):
    opened = [generator for _, _, generator in open_generators(paths, settings_of(dtype=dtype))]
    layers = {id(getattr(g.model.h[0].mlp.c_fc, "base", g.model.h[0].mlp.c_fc)) for g in opened}
    assert len(layers) == 1
    streams = [
        generator.submit("河", SamplingParams(temperature=0, max_new_tokens=6, logprobs=0)) for generator in opened
    ]
    # The log probabilities of the texts, mixed, are those of a plain pass of each model.
    for stream, generator in zip(streams, opened, strict=True):
        "".join(stream)
        ids = [token.token_id for token in stream.logprobs]
        with torch.no_grad():
            logits = generator.model(torch.tensor([stream.prompt + ids[:-1]]))[0, -len(ids) :]
        expected = logits.float().log_softmax(dim=1)[torch.arange(len(ids)), ids]
        torch.testing.assert_close(torch.tensor([t.logprob for t in stream.logprobs]), expected, atol=0.15, rtol=0)
        generator.close()
