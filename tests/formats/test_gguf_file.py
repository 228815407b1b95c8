"""A GGUF file of an exported model in real llama.cpp: the same greedy tokens and log probabilities as ours."""

import gguf
import pytest
import torch
from llama_file import ask_llama_cpp, reply_tokens
from tiny import confident_model, random_ids, tiny_tokenizer

from minigpt.common.errors import UserError
from minigpt.formats.gguf_file import GGUF_TYPES, write_gguf
from minigpt.inference.engine import TextGenerator
from minigpt.inference.params import SamplingParams

pytest.importorskip("xllamacpp")

SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_positions": 32}
DEMO = {"block_size": 192, "n_head": 3, "n_embd": 192}  # the shape of the demo's model
MODELS = {
    "gpt2": DEMO, "gpt2 of OpenAI, untied": {"bias": True, "tied": False, "tanh_gelu": True}, "qwen3": DEMO,
    "qwen3 with shared keys, untied": {"n_kv_head": 2, "head_dim": 32, "tied": False},
    "qwen2": {"n_kv_head": 1}, "llama 3.1": {"n_kv_head": 2, "rope_scaling": SCALING, "rope_theta": 500_000.0},
}  # fmt: skip


def compare(model, prompts, replies):
    """(differences of log probabilities, as a tensor, over the tokens of llama.cpp's replies and the 20 likeliest at
    their places; whether each token is the likeliest here)."""
    differences, agree = [], True
    for prompt, reply in zip(prompts, replies, strict=True):
        tokens = reply_tokens(reply)
        ids = [*prompt, *(token_id for token_id, _ in tokens)]
        with torch.no_grad():
            expected = model(torch.tensor([ids]))[0, len(prompt) - 1 : -1].log_softmax(dim=1)
        for (token_id, top), row in zip(tokens, expected, strict=True):
            agree &= token_id == row.argmax().item()
            differences.append((row[list(top)] - torch.tensor(list(top.values()))).abs())
    return torch.cat(differences), agree


def asked(name, dtype, path):
    """(model, prompts, llama.cpp's replies) of one of MODELS; one of the prompts nearly fills the block."""
    model = confident_model(name.split()[0], **MODELS[name])
    write_gguf(path, model, tiny_tokenizer(), "sft", dtype, "tiny")
    prompts = [random_ids(n, seed=n).tolist() for n in (3, 17, model.config.block_size - 9)]
    return model, prompts, ask_llama_cpp(path, [{"prompt": prompt, "max_tokens": 8} for prompt in prompts])


@pytest.mark.numeric
@pytest.mark.parametrize("name", MODELS)
def test_float32_gives_our_tokens_and_log_probabilities(name, tmp_path):
    """2e-5 was measured; for gpt2 2e-3, since llama.cpp computes GELU by tanh, in float16."""
    differences, agree = compare(*asked(name, "float32", tmp_path / "tiny.gguf"))
    assert len(differences) == 3 * 8 * 20 and agree
    assert differences.max() <= (5e-3 if name.startswith("gpt2") else 1e-4)


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("name", "dtype", "rounding"),
    [("qwen3", "bfloat16", 5e-2), ("qwen3", "float16", 5e-2), ("qwen3", "q8_0", 5e-2), ("qwen3", "q4_0", 1.0),
     ("gpt2", "q8_0", 5e-2)],
)  # fmt: skip
def test_other_types_give_the_log_probabilities_of_our_rounded_weights(name, dtype, rounding, tmp_path):
    """In the mean, since llama.cpp also rounds what it multiplies with them. rounding: what the weights' own may do."""
    path = tmp_path / "tiny.gguf"
    model, prompts, replies = asked(name, dtype, path)
    assert compare(model, prompts, replies)[0].mean() <= rounding
    kind = GGUF_TYPES[dtype][0]
    with torch.no_grad():
        for parameter_name, weight in model.named_parameters():
            if weight.dim() == 2 and parameter_name != "wpe.weight":
                rounded = gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind)
                weight.copy_(torch.from_numpy(rounded).reshape(weight.shape))
    assert compare(model, prompts, replies)[0].mean() <= 5e-2


@pytest.mark.numeric
@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_a_chat_is_answered_with_our_tokens(name, tmp_path):
    path, model = tmp_path / "tiny.gguf", confident_model(name)
    write_gguf(path, model, tiny_tokenizer(), "sft", "float32", "tiny")
    generator = TextGenerator(model, tiny_tokenizer(), "sft")
    question, answer = {"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}
    chats = [[question], [question, answer, question], [{"role": "system", "content": "c"}, question]]
    replies = ask_llama_cpp(path, [{"messages": chat, "max_tokens": 12} for chat in chats])
    for chat, reply in zip(chats, replies, strict=True):
        ids = generator.prompt_ids(chat)
        assert reply["usage"]["prompt_tokens"] == len(ids)
        stream = generator.submit(ids, SamplingParams(temperature=0, max_new_tokens=12, logprobs=0))
        list(stream)
        assert [token_id for token_id, _ in reply_tokens(reply)] == [token.token_id for token in stream.logprobs]
    generator.close(0)


def test_scaled_rotary_positions_that_llama_cpp_lacks_are_refused(tmp_path):
    model = confident_model("qwen3", rope_scaling=SCALING)
    with pytest.raises(UserError, match="--format=hf"):
        write_gguf(tmp_path / "tiny.gguf", model, tiny_tokenizer(), "sft", "float32", "tiny")
    assert not any(tmp_path.iterdir())
