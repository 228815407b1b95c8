"""A GPT's logits are those of Hugging Face's model with the same weights."""

import pytest
import torch

from minigpt.formats.weights import from_huggingface, to_huggingface
from model import GPT, GPTConfig

transformers = pytest.importorskip("transformers")


def their_model(config):
    """Hugging Face's model of a `GPTConfig`, with random weights."""
    shape = {"vocab_size": config.vocab_size, "max_position_embeddings": config.block_size}
    if config.is_gpt2:
        about = transformers.GPT2Config(
            **shape, n_embd=config.n_embd, n_layer=config.n_layer, n_head=config.n_head, n_inner=config.n_inner,
            activation_function="gelu_new" if config.tanh_gelu else "gelu", tie_word_embeddings=config.tied,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(about).eval()
    name = {"qwen3": "Qwen3", "qwen2": "Qwen2", "llama": "Llama"}[config.architecture]
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling:
        scaling = dict(config.rope_scaling)
        original = scaling.pop("original_positions")
        rope = {**rope, **scaling, "rope_type": "llama3", "original_max_position_embeddings": original}
    about = getattr(transformers, f"{name}Config")(
        **shape, hidden_size=config.n_embd, intermediate_size=config.n_inner, num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head, num_key_value_heads=config.n_kv_head, head_dim=config.head_dim,
        rms_norm_eps=config.norm_eps, tie_word_embeddings=config.tied, rope_parameters=rope,
    )  # fmt: skip
    return getattr(transformers, f"{name}ForCausalLM")(about).eval()


SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_positions": 32}
SHAPES = {
    "gpt2": {}, "gpt2 with biases": {"bias": True}, "gpt2 untied": {"tied": False},
    "OpenAI's": {"bias": True, "tanh_gelu": True},
    "qwen3": {"architecture": "qwen3"}, "qwen3 untied": {"architecture": "qwen3", "tied": False},
    "qwen3 wide heads": {"architecture": "qwen3", "n_kv_head": 2, "head_dim": 32, "n_inner": 80},
    "qwen2": {"architecture": "qwen2", "n_kv_head": 1}, "llama": {"architecture": "llama"},
    "llama 3.1": {"architecture": "llama", "rope_scaling": SCALING, "rope_theta": 500_000.0},
}  # fmt: skip


@pytest.mark.numeric
@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_transformers(name):
    """In both directions, with weights so large that logits are confident (float32, 1e-4 of the largest)."""
    config = GPTConfig(block_size=48, vocab_size=320, n_layer=3, n_head=4, n_embd=96, **SHAPES[name])
    torch.manual_seed(0)
    model, other = GPT(config).eval(), their_model(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    loaded = other.load_state_dict(to_huggingface(model.state_dict(), config), strict=False)
    assert not loaded.unexpected_keys and set(loaded.missing_keys) <= {"lm_head.weight"}
    other.tie_weights()
    ids = torch.randint(0, config.vocab_size, (2, config.block_size))
    with torch.no_grad():
        ours, theirs = model(ids), other(ids).logits
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()

    back = from_huggingface(other.state_dict().__getitem__, config)
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in model.state_dict().items())
