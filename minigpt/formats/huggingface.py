"""Writes a model as a Hugging Face folder, which transformers and vLLM load without code of ours."""

import shutil

import torch
from safetensors.torch import save_file

from minigpt.common.files import write_json
from minigpt.formats.exported_tokenizer import describe_for_export
from minigpt.formats.weights import CLASSES, to_huggingface
from minigpt.settings.stages import AnswerSampling

# The files of such a folder. One with other files is not replaced.
MODEL_CARD = "README.md"
HUGGINGFACE_FILES = {
    "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", MODEL_CARD,
}  # fmt: skip


def write_huggingface(folder, model, tokenizer, stage, dtype, card):
    """Write the files of a model of a stage ("pretrain" or "sft") into an existing folder.

    dtype: the weights' type, a name of torch's; card: the text of the model card. Raises OSError or SafetensorError.
    """
    exported = describe_for_export(tokenizer, stage)
    weights = to_huggingface(model.state_dict(), model.config)
    weights = {name: tensor.to(getattr(torch, dtype)).contiguous() for name, tensor in weights.items()}
    write_json(folder / "config.json", model_json(model.config, exported, dtype))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # safetensors lets only its owner read it
    write_json(folder / "generation_config.json", generation_json(model.config, exported))
    write_json(folder / "tokenizer.json", exported.content)
    write_json(folder / "tokenizer_config.json", tokenizer_config_json(model.config, exported))
    if exported.chat_template:
        (folder / "chat_template.jinja").write_text(exported.chat_template, encoding="utf-8")
    (folder / MODEL_CARD).write_text(card, encoding="utf-8")


def special_ids_json(exported):
    """The fields of special ids that config.json and generation_config.json have."""
    stops = exported.stop_ids
    return {
        "bos_token_id": exported.bos_id,
        "eos_token_id": stops if len(stops) > 1 else stops[0],
        "pad_token_id": exported.pad_id,
    }


def model_json(config, exported, dtype):
    """The content of config.json, from which transformers builds the model that a `GPTConfig` describes."""
    general = {
        "architectures": [CLASSES[config.architecture]],
        "model_type": config.architecture,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied,
        **special_ids_json(exported),
        "dtype": dtype,
    }
    if config.is_gpt2:
        return general | {
            "activation_function": "gelu_new" if config.tanh_gelu else "gelu",
            "layer_norm_epsilon": config.norm_eps,
            "n_positions": config.block_size,
            "n_ctx": config.block_size,
            "n_embd": config.n_embd,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_inner": config.n_inner,
            "attn_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "resid_pdrop": config.dropout,
        }
    biases = {} if config.architecture == "qwen2" else {"attention_bias": False}  # qwen2 always has them
    return general | biases | {
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.block_size,
        "hidden_size": config.n_embd,
        "intermediate_size": config.n_inner,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.head_dim,
        "attention_dropout": config.dropout,
        **rope_json(config),
    }  # fmt: skip


def rope_json(config):
    """The fields of config.json about rotary positions: those of transformers 5, and those of earlier versions."""
    rope = {"rope_type": "default"}
    if config.rope_scaling:
        scaling = dict(config.rope_scaling)
        rope = {"rope_type": "llama3", "original_max_position_embeddings": scaling.pop("original_positions"), **scaling}
    earlier = {"rope_theta": config.rope_theta, "rope_scaling": rope if config.rope_scaling else None}
    return earlier | {"rope_parameters": {"rope_theta": config.rope_theta, **rope}}


def generation_json(config, exported):
    """The content of generation_config.json: how our own engine samples by default, and what it never samples."""
    defaults = AnswerSampling()
    return {
        "do_sample": True,
        "temperature": defaults.temperature,
        "top_k": defaults.top_k,
        "max_new_tokens": defaults.max_new_tokens,
        **special_ids_json(exported),
        "suppress_tokens": sorted({*exported.forbidden, *range(exported.n_vocab, config.vocab_size)}),
    }


def tokenizer_config_json(config, exported):
    """The content of tokenizer_config.json, the chat template excepted, which is a file of its own."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",  # whatever the architecture: tokenizer.json says it all
        **exported.names,
        "padding_side": "left",  # of a batch of prompts
        "model_max_length": config.block_size,
        "clean_up_tokenization_spaces": False,
    }
