"""A GGUF file of an exported model in real llama.cpp: the same greedy tokens and log probabilities as ours."""

import pytest
import torch
from llama_file import ask_llama_cpp, reply_tokens
from tiny import confident_model, random_ids, tiny_tokenizer

from minigpt.formats.gguf_file import write_gguf

pytest.importorskip("xllamacpp")

SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_positions": 32}
DEMO = {"block_size": 192, "n_head": 3, "n_embd": 192}  # the shape of the demo's model
MODELS = {
    "gpt2": DEMO, "gpt2 with biases, untied": {"bias": True, "tied": False}, "qwen3": DEMO,
    "qwen3 with shared keys, untied": {"n_kv_head": 2, "head_dim": 32, "tied": False},
    "qwen2": {"n_kv_head": 1}, "llama 3.1": {"n_kv_head": 2, "rope_scaling": SCALING, "rope_theta": 500_000.0},
}  # fmt: skip


def largest_difference(model, prompts, replies):
    """(largest difference of log probabilities over the tokens of llama.cpp's replies and the likeliest at their
    places, whether each is the likeliest here)."""
    largest, agree = 0.0, True
    for prompt, reply in zip(prompts, replies, strict=True):
        tokens = reply_tokens(reply)
        assert len(tokens) > 1
        ids = [*prompt, *(token_id for token_id, _ in tokens)]
        with torch.no_grad():
            expected = model(torch.tensor([ids]))[0, len(prompt) - 1 : -1].log_softmax(dim=1)
        for (token_id, top), row in zip(tokens, expected, strict=True):
            agree &= token_id == row.argmax().item()
            largest = max(largest, (row[list(top)] - torch.tensor(list(top.values()))).abs().max().item())
    return largest, agree


def compared(name, dtype, path):
    """`largest_difference` of one of MODELS, over three prompts of which one nearly fills the block."""
    model = confident_model(name.split()[0], **MODELS[name])
    write_gguf(path, model, tiny_tokenizer(), "sft", dtype, "tiny")
    prompts = [random_ids(n, seed=n).tolist() for n in (3, 17, model.config.block_size - 9)]
    replies = ask_llama_cpp(path, [{"prompt": prompt, "max_tokens": 8} for prompt in prompts])
    return largest_difference(model, prompts, replies)


@pytest.mark.numeric
@pytest.mark.parametrize("name", MODELS)
def test_float32_gives_our_tokens_and_log_probabilities(name, tmp_path):
    difference, agree = compared(name, "float32", tmp_path / "tiny.gguf")
    assert difference <= 5e-3 and agree
