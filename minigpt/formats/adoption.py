"""Models of others: a Hugging Face folder, read as a checkpoint's dict.

A folder has config.json, weights (model.safetensors, or several files with an index; else pytorch_model.bin),
tokenizer.json and, where it is a chat model, a chat template. What a GPT does not compute is refused, by name.
"""

import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from minigpt.common.errors import UserError, first_line
from minigpt.formats.weights import CLASSES, from_huggingface, weight_table
from minigpt.huggingface_tokenizer import read_json_object
from minigpt.tokenizer import load_tokenizer
from model import GPT, GPTConfig

CONFIG_FILE, PEFT_CONFIG = "config.json", "adapter_config.json"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read; large ones are in parts
# Tensors that old files hold and that are computed: masks of attention, and rotary frequencies.
COMPUTED_TENSORS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
# Fields of a config that change what is computed, and their only values that a GPT computes.
ONLY_VALUES = {
    "attention_bias": (False,), "mlp_bias": (False,), "quantization_config": (None,), "use_sliding_window": (False,),
    "hidden_act": ("silu",), "partial_rotary_factor": (1, None), "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,),
}  # fmt: skip
TANH_GELUS = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")  # names of one function


def is_model_folder(path):
    """Whether a path is a Hugging Face folder, of a model or of an adapter."""
    return has_file(path, CONFIG_FILE) or is_peft_folder(path)


def is_peft_folder(path):
    """Whether a path is a folder of Hugging Face's peft: of an adapter, without its base."""
    return has_file(path, PEFT_CONFIG) and not has_file(path, CONFIG_FILE)


def has_file(folder, name):
    """Whether a file is in a folder."""
    return os.path.isfile(os.path.join(folder, name))  # never raises, as Path.is_file does


def read_model_folder(folder, with_weights=True):
    """A Hugging Face folder as a checkpoint's dict (see minigpt/checkpoint.py), whose weights are float32.

    with_weights: False leaves the weights out: "model" is {}. Raises UserError where a file is missing or damaged, or
    where the model is none that a GPT computes.
    """
    folder = Path(folder)
    config = read_config(folder / CONFIG_FILE)
    tokenizer = load_tokenizer(folder)
    if tokenizer.n_vocab > config.vocab_size:
        raise UserError(
            f"{folder / CONFIG_FILE} has vocab_size {config.vocab_size}, but the tokenizer beside it has "
            f"{tokenizer.n_vocab} ids"
        )
    return {
        "model": read_weights(folder, config) if with_weights else {},
        "model_args": asdict(config),
        "settings": {"init_from": "scratch", "data_dir": ""},
        "stage": "sft" if tokenizer.chat_template else "pretrain",
        "tokenizer": {"name": tokenizer.name, "sha256": tokenizer.sha256, "table": tokenizer.vocabulary},
        "progress": {"step": 0},
    }


# The config


def read_config(path):
    """The `GPTConfig` of a config.json. Raises UserError."""
    values = read_json_object(path)
    classes = values.get("architectures") or ["none"]
    architecture = next((name for name, their_name in CLASSES.items() if their_name in classes), None)
    if architecture is None:
        raise UserError(f"{path}: {', '.join(classes)} is not supported; {', '.join(CLASSES.values())} are")
    for name, allowed in ONLY_VALUES.items():
        if name in values and values[name] not in allowed:
            raise UserError(f"{path}: {name} {values[name]!r} is not supported")
    if "sliding_attention" in (values.get("layer_types") or ()):
        raise UserError(f"{path}: layer_types with sliding_attention are not supported")
    read_shape = read_gpt2_shape if architecture == "gpt2" else read_rotary_shape
    try:
        return GPTConfig(architecture=architecture, **read_shape(values, path))
    except KeyError as error:
        raise UserError(f"{path} has no {error.args[0]}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None


def read_gpt2_shape(values, path):
    """Fields of a GPTConfig, of GPT-2's config."""
    activation = values.get("activation_function", "gelu_new")
    if activation not in ("gelu", *TANH_GELUS):
        known = ", ".join(("gelu", *TANH_GELUS))
        raise UserError(f"{path}: activation_function {activation!r} is not supported; {known} are")
    return {
        "block_size": values["n_positions"], "vocab_size": values["vocab_size"], "n_layer": values["n_layer"],
        "n_head": values["n_head"], "n_embd": values["n_embd"], "n_inner": values.get("n_inner") or 0,
        "norm_eps": values.get("layer_norm_epsilon", 1e-5), "tied": values.get("tie_word_embeddings", True),
        "bias": True, "tanh_gelu": activation in TANH_GELUS,
    }  # fmt: skip


def read_rotary_shape(values, path):
    """Fields of a GPTConfig, of the config of a model with rotary positions."""
    theta, scaling = read_rope(values, path)
    heads = values["num_attention_heads"]
    return {
        "block_size": values["max_position_embeddings"], "vocab_size": values["vocab_size"],
        "n_layer": values["num_hidden_layers"], "n_head": heads, "n_embd": values["hidden_size"],
        "n_kv_head": values.get("num_key_value_heads") or heads, "head_dim": values.get("head_dim") or 0,
        "n_inner": values["intermediate_size"], "norm_eps": values.get("rms_norm_eps", 1e-6),
        "tied": values.get("tie_word_embeddings", False), "rope_theta": theta, "rope_scaling": scaling,
    }  # fmt: skip


def read_rope(values, path):
    """(base of the rotary frequencies, their scaling as GPTConfig has it or None)."""
    rope = {**(values.get("rope_scaling") or {}), **(values.get("rope_parameters") or {})}
    theta = float(rope.get("rope_theta") or values.get("rope_theta") or 10_000.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(f"{path}: rotary positions of type {kind!r} are not supported; default and llama3 are")
    scaling = {name: float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor")}
    return theta, {**scaling, "original_positions": rope["original_max_position_embeddings"]}


# The weights


def read_weights(folder, config):
    """A GPT's state dict in float32. `config` gets bias False where all of GPT-2's biases are zero."""
    files = open_weights(folder)
    shapes, read = their_shapes(config), set()

    def read_tensor(name):
        names = (name, name.split(".", 1)[1])  # files of a model without its output layer lack the first part
        found = next((one for one in names if one in files), None)
        if found is None:
            raise UserError(f"{folder} has no tensor {name}")
        read.add(found)
        path, get = files[found]
        try:
            tensor = get(found)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise UserError(f"{path} is damaged ({first_line(error)}); download it again") from None
        if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:
            raise UserError(f"{path}: tensor {name} is of type {tensor.dtype}; quantized weights are not supported")
        if tensor.shape != shapes[name]:
            raise UserError(
                f"{path}: tensor {name} has the shape {tuple(tensor.shape)}, where {CONFIG_FILE} means {shapes[name]}"
            )
        return tensor.float()

    weights = from_huggingface(read_tensor, config)
    unread = set(files) - read - ({"lm_head.weight"} if config.tied else set())
    unread = sorted(name for name in unread if not name.endswith(COMPUTED_TENSORS))
    if unread:
        raise UserError(f"{files[unread[0]][0]} has tensors that {CLASSES[config.architecture]} has not: {unread[0]}")
    if config.is_gpt2 and not any(weights[name].any() for name in weights if name.endswith(".bias")):
        config.bias = False
        weights = {name: tensor for name, tensor in weights.items() if not name.endswith(".bias")}
    return weights


def open_weights(folder):
    """{name of a tensor: (path of its file, function of the name that reads it)}. Raises UserError."""
    for name in WEIGHT_FILES:
        index = read_json_object(folder / f"{name}.index.json").get("weight_map")
        parts = sorted(set(index.values())) if index else [name]
        if index or (folder / name).is_file():
            break
    else:
        raise UserError(f"{folder} has no weights: neither {' nor '.join(WEIGHT_FILES)} is there")
    files = {}
    for part in parts:
        path = folder / part
        try:
            if path.suffix == ".safetensors":
                opened = safe_open(path, framework="pt")
                files |= dict.fromkeys(opened.keys(), (path, opened.get_tensor))
            else:
                tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                files |= dict.fromkeys(tensors, (path, tensors.__getitem__))
        except FileNotFoundError:
            raise UserError(f"{path} is not there, though the index beside it names it; download it") from None
        except Exception as error:  # damaged bytes raise errors of any type
            raise UserError(f"{path} is damaged ({first_line(error)}); download it again") from None
    return files


def their_shapes(config):
    """{name of their tensor: shape} of a `GPTConfig`."""
    with torch.device("meta"):
        ours = GPT(config).state_dict()
    return {
        name: (*ours[weight.name].shape[1:], rows) if weight.transposed else (rows, *ours[weight.name].shape[1:])
        for weight in weight_table(config)
        for name, rows in zip(weight.theirs, weight.rows, strict=True)
    }
