"""Names and shapes of a GPT's weights in Hugging Face's transformers, in both directions."""

from typing import NamedTuple

import torch

# Hugging Face's class of each architecture.
CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "qwen3": "Qwen3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
}


class Weight(NamedTuple):
    """A tensor of a GPT and the tensors that it is there.

    theirs: their names; rows: how many rows of ours each is; transposed: whether theirs is (in, out), as GPT-2's.
    """

    name: str
    theirs: list
    rows: list
    transposed: bool = False


def weight_table(config):
    """[`Weight`] of a `GPTConfig`, all of the state dict; of a tied model without lm_head.weight.

    gpt2 has biases there: they are in the table, and zero where ours has none.
    """
    return gpt2_table(config) if config.is_gpt2 else qwen3_table(config)


def gpt2_table(config):
    """The `weight_table` of architecture gpt2."""
    table = [Weight(f"{name}.weight", [f"transformer.{name}.weight"], [rows]) for name, rows in (
        ("wte", config.vocab_size), ("wpe", config.block_size),
    )]  # fmt: skip
    norms = ["ln_f"]
    for layer in range(config.n_layer):
        norms += [f"h.{layer}.ln_1", f"h.{layer}.ln_2"]
        for part, rows in (
            ("attn.c_attn", 3 * config.n_embd), ("attn.c_proj", config.n_embd),
            ("mlp.c_fc", config.n_inner), ("mlp.c_proj", config.n_embd),
        ):  # fmt: skip
            name = f"h.{layer}.{part}"
            table.append(Weight(f"{name}.weight", [f"transformer.{name}.weight"], [rows], transposed=True))
            table.append(Weight(f"{name}.bias", [f"transformer.{name}.bias"], [rows]))
    for name in norms:
        for kind in ("weight", "bias"):
            table.append(Weight(f"{name}.{kind}", [f"transformer.{name}.{kind}"], [config.n_embd]))
    return table if config.tied else [*table, Weight("lm_head.weight", ["lm_head.weight"], [config.vocab_size])]


def qwen3_table(config):
    """The `weight_table` of the other architectures, which share their names."""
    heads = [config.n_head * config.head_dim] + [config.n_kv_head * config.head_dim] * 2
    table = [
        Weight("wte.weight", ["model.embed_tokens.weight"], [config.vocab_size]),
        Weight("ln_f.weight", ["model.norm.weight"], [config.n_embd]),
    ]
    for layer in range(config.n_layer):
        ours, theirs = f"h.{layer}", f"model.layers.{layer}"
        projections = [f"{theirs}.self_attn.{part}_proj" for part in "qkv"]
        table += [
            Weight(f"{ours}.ln_1.weight", [f"{theirs}.input_layernorm.weight"], [config.n_embd]),
            Weight(f"{ours}.attn.c_attn.weight", [f"{name}.weight" for name in projections], heads),
            Weight(f"{ours}.attn.c_proj.weight", [f"{theirs}.self_attn.o_proj.weight"], [config.n_embd]),
            Weight(f"{ours}.ln_2.weight", [f"{theirs}.post_attention_layernorm.weight"], [config.n_embd]),
            Weight(
                f"{ours}.mlp.c_fc.weight",
                [f"{theirs}.mlp.gate_proj.weight", f"{theirs}.mlp.up_proj.weight"],
                [config.n_inner] * 2,
            ),
            Weight(f"{ours}.mlp.c_proj.weight", [f"{theirs}.mlp.down_proj.weight"], [config.n_embd]),
        ]
        if config.architecture == "qwen2":
            table.append(Weight(f"{ours}.attn.c_attn.bias", [f"{name}.bias" for name in projections], heads))
        if config.architecture == "qwen3":
            for part in ("q_norm", "k_norm"):
                name = f"{theirs}.self_attn.{part}.weight"
                table.append(Weight(f"{ours}.attn.{part}.weight", [name], [config.head_dim]))
    return table if config.tied else [*table, Weight("lm_head.weight", ["lm_head.weight"], [config.vocab_size])]


def to_huggingface(weights, config):
    """{their name: tensor} of a GPT's state dict. A tied output layer is left out."""
    result = {}
    for name, theirs, rows, transposed in weight_table(config):
        tensor = weights.get(name)
        if tensor is None:  # a bias that GPT-2 has there and ours has not
            tensor = torch.zeros(rows[0], dtype=weights["wte.weight"].dtype)
        for their_name, part in zip(theirs, tensor.split(rows), strict=True):
            result[their_name] = part.T.contiguous() if transposed else part
    return result


def from_huggingface(read, config):
    """A GPT's state dict of their tensors; read(name): the tensor of that name, which may raise an error."""
    weights = {}
    for name, theirs, _, transposed in weight_table(config):
        if config.is_gpt2 and not config.bias and name.endswith(".bias"):
            continue
        parts = [read(their_name) for their_name in theirs]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        weights[name] = tensor.T.contiguous() if transposed else tensor
    if config.tied:
        weights["lm_head.weight"] = weights["wte.weight"]
    return weights
