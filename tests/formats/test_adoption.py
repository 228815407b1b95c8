"""Hugging Face folders of others: logits are transformers', and what cannot be computed is refused by name."""

import json

import pytest
import torch
from hugging_folders import write_model
from safetensors.torch import load_file, save_file

from minigpt.checkpoint import load_checkpoint, load_model, model_names
from minigpt.common.errors import UserError

pytest.importorskip("transformers")

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
MODELS = {
    "gpt2": ("gpt2", "base", {}),  # whose GELU is the approximation by tanh
    "gpt2 with gelu": ("gpt2", "base", {"activation_function": "gelu"}),
    "qwen3": ("qwen3", "thinking", {}),
    "qwen3 untied": ("qwen3", "thinking", {"tie_word_embeddings": False}),
    "qwen3 in files": ("qwen3", "thinking", {"shard": "50KB"}),
    "qwen2": ("qwen2", "chatml", {}),
    "llama 3.1": ("llama", "headers", {"rope_parameters": LLAMA3, "tie_word_embeddings": False}),
}


def change_config(folder, **values):
    """Change fields of config.json; None removes one."""
    path = folder / "config.json"
    content = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


def logits_of(model, ids):
    """Logits (B, T, V) of a model of ours or of transformers."""
    with torch.no_grad():
        found = model(ids)
    return getattr(found, "logits", found)


@pytest.mark.numeric
@pytest.mark.parametrize("name", MODELS)
def test_an_adopted_model_has_the_logits_of_transformers(tmp_path, name):
    architecture, kind, changed = MODELS[name]
    folder, theirs = write_model(tmp_path / name, architecture, kind, **changed)
    content = load_checkpoint(folder)
    ours, tokenizer = load_model(content)
    ids = torch.randint(0, 640, (2, 48), generator=torch.Generator().manual_seed(0))
    expected = logits_of(theirs, ids)
    assert (logits_of(ours, ids) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert ours.config.tanh_gelu == (name == "gpt2")
    assert content["stage"] == ("sft" if tokenizer.chat_template else "pretrain") and tokenizer.name == name
    assert len(list(folder.glob("*.safetensors"))) == (1 if "shard" not in changed else pytest.approx(7, abs=6))
    assert ours.config.tied == (ours.wte.weight is ours.lm_head.weight) == changed.get("tie_word_embeddings", True)


def test_weights_of_16_bits_become_float32_and_the_files_stay(tmp_path):
    folder, theirs = write_model(tmp_path / "half", dtype=torch.bfloat16)
    before = (folder / "model.safetensors").read_bytes()
    model, _ = load_model(load_checkpoint(folder))
    assert {p.dtype for p in model.parameters()} == {torch.float32} and all(p.requires_grad for p in model.parameters())
    assert torch.equal(model.ln_f.weight, theirs.model.norm.weight.float())
    whole, _ = load_model(load_checkpoint(write_model(tmp_path / "whole")[0]))
    whole_before = (tmp_path / "whole" / "model.safetensors").read_bytes()
    with torch.no_grad():
        for p in [*model.parameters(), *whole.parameters()]:
            p.zero_()
    assert (folder / "model.safetensors").read_bytes() == before
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == whole_before


def test_a_folder_with_pytorch_s_own_file_and_one_of_the_trunk_alone_are_read(tmp_path):
    folder, theirs = write_model(tmp_path / "old", "gpt2", "base")
    (folder / "model.safetensors").unlink()
    trunk = {name: tensor.clone() for name, tensor in theirs.transformer.state_dict().items()}
    trunk["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)  # the causal mask, as old files have it
    torch.save(trunk, folder / "pytorch_model.bin")
    model, _ = load_model(load_checkpoint(folder))
    assert torch.equal(model.wte.weight, theirs.transformer.wte.weight)


def test_a_gpt2_without_biases_stays_one(tmp_path):
    folder, theirs = write_model(tmp_path / "zero", "gpt2", "base")
    for name, parameter in theirs.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.zeros_(parameter)
    theirs.save_pretrained(folder)
    model, _ = load_model(load_checkpoint(folder))
    assert not model.config.bias and not [name for name, _ in model.named_parameters() if name.endswith("bias")]
    ids = torch.arange(20)[None]
    assert torch.allclose(logits_of(model, ids), logits_of(theirs, ids), atol=1e-4)


def test_what_needs_no_weights_does_not_read_them(tmp_path):
    folder, _ = write_model(tmp_path / "qwen")
    (folder / "model.safetensors").write_bytes(b"")
    content = load_checkpoint(folder, mmap=True)
    assert content["model"] == {} and content["model_args"]["architecture"] == "qwen3"
    assert model_names([folder, tmp_path / "run" / "ckpt.pt"]) == ["qwen", "run"]


def change_tensor(folder, name, tensor):
    """Replace a tensor of model.safetensors, add one, or (None) take one out."""
    tensors = load_file(folder / "model.safetensors")
    tensors = {key: value for key, value in {**tensors, name: tensor}.items() if value is not None}
    save_file(tensors, folder / "model.safetensors")


RELU = {"activation_function": "relu"}
Q_NORM = "model.layers.0.self_attn.q_norm.weight"
WRONG_FOLDERS = {
    "MixtralForCausalLM is not supported": lambda f: change_config(f, architectures=["MixtralForCausalLM"]),
    "type 'yarn' are not supported": lambda f: change_config(f, rope_scaling={"type": "yarn"}, rope_parameters=None),
    "use_sliding_window True": lambda f: change_config(f, use_sliding_window=True),
    "sliding_attention": lambda f: change_config(f, layer_types=["full_attention", "sliding_attention"]),
    "attention_bias True": lambda f: change_config(f, attention_bias=True),
    "quantization_config": lambda f: change_config(f, quantization_config={"bits": 4}),
    "activation_function .relu": lambda f: change_config(f, architectures=["GPT2LMHeadModel"], **RELU),
    "has no hidden_size": lambda f: change_config(f, hidden_size=None),
    "vocab_size 300, but the tokenizer": lambda f: change_config(f, vocab_size=300),
    "model.safetensors.* has the shape": lambda f: change_tensor(f, Q_NORM, torch.ones(5)),
    f"has no tensor {Q_NORM}": lambda f: change_tensor(f, Q_NORM, None),
    "has tensors that .* has not: more.weight": lambda f: change_tensor(f, "more.weight", torch.ones(1)),
    "tokenizer.json is not there": lambda f: (f / "tokenizer.json").unlink(),
    "has no weights": lambda f: (f / "model.safetensors").unlink(),
    "model.safetensors is damaged": lambda f: (f / "model.safetensors").write_bytes(b"{}"),
    "config.json cannot be read": lambda f: (f / "config.json").write_text("{"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_FOLDERS)
def test_a_folder_that_cannot_be_adopted_says_why(tmp_path, what):
    folder, _ = write_model(tmp_path / "wrong")
    WRONG_FOLDERS[what](folder)
    with pytest.raises(UserError, match=what):
        load_checkpoint(folder)
