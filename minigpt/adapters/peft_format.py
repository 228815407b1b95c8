"""Adapters to and from folders of Hugging Face's peft: adapter_config.json and adapter_model.safetensors.

Such a folder belongs to the base's Hugging Face folder (minigpt/formats/huggingface.py), in which matrices that are
one here, such as q, k and v, are several. peft computes from it what is computed here.
"""

import math
import re
from collections import Counter
from itertools import compress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from minigpt.adapters.lora import LoRALinear, add_lora, block_matrices, matrix_names
from minigpt.adapters.peft_prompts import VIRTUAL_TYPES, virtual_from_peft, virtual_to_peft
from minigpt.adapters.prompts import METHODS
from minigpt.common.errors import UserError, first_line
from minigpt.common.files import write_json
from minigpt.huggingface_tokenizer import read_json_object

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."  # before the names of a model's modules
A_ENDING, B_ENDING, MAGNITUDE_ENDING = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
# Fields of adapter_config.json that change what is computed, and that are not computed here.
UNSUPPORTED_FIELDS = (
    "modules_to_save", "trainable_token_indices", "alora_invocation_tokens", "layer_replication", "use_qalora",
    "use_bdlora", "lora_bias", "target_parameters", "arrow_config", "kasa_config", "velora_config", "monteclora_config",
)  # fmt: skip


def is_peft_folder(path):
    """Whether a path is a folder of peft's."""
    return (Path(path) / PEFT_CONFIG).is_file()


def write_peft(folder, model, config, base):
    """Write the adapter of a GPT into an existing folder, as peft's `save_pretrained` does.

    config: its `Adapting`; base: the Hugging Face folder of the base. Raises UserError for a method that peft has not,
    OSError or SafetensorError.
    """
    if config.method not in PEFT_WRITERS:
        raise UserError(f"peft has no form for method {config.method}; it has one for {', '.join(PEFT_WRITERS)}")
    fields, tensors = PEFT_WRITERS[config.method](model, config)
    about = {"base_model_name_or_path": str(base), "task_type": "CAUSAL_LM", "inference_mode": True}
    write_json(Path(folder) / PEFT_CONFIG, about | fields)
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, Path(folder) / PEFT_WEIGHTS, metadata={"format": "pt"})


def load_peft(folder, model, defaults):
    """Attach the adapter in a folder of peft's to a GPT, its base; returns its `Adapting`.

    defaults: an `Adapting`, for the fields that the folder does not tell. Raises UserError where a file is missing or
    damaged, where the adapter does not fit the model, and where it has what is not computed here.
    """
    folder = Path(folder)
    values = read_json_object(folder / PEFT_CONFIG)
    kind = values.get("peft_type")
    if kind not in PEFT_READERS:
        raise UserError(f"{folder / PEFT_CONFIG}: peft_type {kind} is not supported; {', '.join(PEFT_READERS)} are")
    for name in UNSUPPORTED_FIELDS:
        if values.get(name):
            raise UserError(f"{folder / PEFT_CONFIG}: {name} is not supported")
    try:
        tensors = load_file(folder / PEFT_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / PEFT_WEIGHTS} cannot be read ({first_line(error)})") from None
    return PEFT_READERS[kind](folder, model, defaults, values, {name: t.float() for name, t in tensors.items()})


# LoRA and DoRA


def lora_parts(model):
    """(their name of a matrix, its `LoRALinear`, its rows of lora_a, its rows of lora_b and magnitude) of a GPT."""
    for weight in block_matrices(model.config):
        layer = model.get_submodule(weight.name.removesuffix(".weight"))
        if not isinstance(layer, LoRALinear):
            continue
        done = 0
        for part, name in enumerate(compress(weight.theirs, layer.chosen)):
            first, done = done, done + layer.chosen_rows[part]
            rows_of_a = slice(part * layer.rank, (part + 1) * layer.rank)
            yield name.removesuffix(".weight"), layer, rows_of_a, slice(first, done)


def lora_to_peft(model, config):
    """(fields of adapter_config.json, {their name: tensor}) of LoRA. AdaLoRA's values are multiplied into A."""
    tensors, modules = {}, set()
    for module, layer, rows_of_a, rows_of_b in lora_parts(model):
        modules.add(".".join(module.split(".")[-2:]))
        tensors[f"{PEFT_PREFIX}{module}{A_ENDING}"] = layer.factors()[0][rows_of_a]
        tensors[f"{PEFT_PREFIX}{module}{B_ENDING}"] = layer.lora_b[rows_of_b]
        if layer.magnitude is not None:
            tensors[f"{PEFT_PREFIX}{module}{MAGNITUDE_ENDING}"] = layer.magnitude[rows_of_b]
    fields = {
        "peft_type": "LORA",
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": sorted(modules),
        "fan_in_fan_out": model.config.is_gpt2,  # GPT-2's Conv1D has its weight transposed
        "use_dora": config.dora,
        "use_rslora": False,
        "bias": "none",
    }
    return fields, tensors


def lora_from_peft(folder, model, defaults, values, tensors):
    """Attach peft's LoRA or DoRA. Its matrices may differ in rank and in scale, and some layers may have none."""
    if values.get("bias", "none") != "none":
        raise UserError(f"{folder / PEFT_CONFIG}: bias {values['bias']!r} is not supported")

    # What is in the folder: the matrices by their names, the rank and the scale of each.
    endings = (A_ENDING, B_ENDING, *([MAGNITUDE_ENDING] if values.get("use_dora") else []))
    modules = {name.removeprefix(PEFT_PREFIX).removesuffix(A_ENDING) for name in tensors if name.endswith(A_ENDING)}
    expected = {f"{PEFT_PREFIX}{module}{ending}" for module in modules for ending in endings}
    known = {name.removesuffix(".weight") for weight in block_matrices(model.config) for name in weight.theirs}
    if unknown := sorted(tensors.keys() ^ expected) or sorted(modules - known):
        raise UserError(f"{folder / PEFT_WEIGHTS} does not fit a model of {model.config.architecture}: {unknown[0]}")
    if not modules:
        raise UserError(f"{folder / PEFT_WEIGHTS} has no update of a matrix")
    ranks = {module: len(tensors[f"{PEFT_PREFIX}{module}{A_ENDING}"]) for module in modules}
    scales = {module: scale_of(module, ranks[module], values) for module in modules}

    # One rank and one scale for all: the largest rank, and the scale that most have. Other scales go into B.
    rank, scale = max(ranks.values()), Counter(scales.values()).most_common(1)[0][0]
    changes = {
        "method": "lora", "rank": rank, "alpha": scale * rank, "lora_dropout": values.get("lora_dropout", 0.0),
        "matrices": sorted({letter for module in modules for letter in matrix_names(f"{module}.weight")}),
        "dora": bool(values.get("use_dora")), "adalora_rank": 0,
    }  # fmt: skip
    config = type(defaults)(**{**vars(defaults), **changes})
    add_lora(model, config)
    for module, layer, rows_of_a, rows_of_b in lora_parts(model):
        if module in modules:
            a, b, *magnitude = (tensors[f"{PEFT_PREFIX}{module}{ending}"] for ending in endings)
            targets = [layer.lora_a[rows_of_a][: len(a)], layer.lora_b[rows_of_b][:, : b.shape[1]]]
            targets += [layer.magnitude[rows_of_b]] if magnitude else []
            for target, source in zip(targets, (a, b * (scales[module] / scale), *magnitude), strict=True):
                if target.shape != source.shape:
                    raise UserError(
                        f"{folder / PEFT_WEIGHTS}: {module} has a tensor of shape {tuple(source.shape)}, but the "
                        f"model needs {tuple(target.shape)}"
                    )
                with torch.no_grad():
                    target.copy_(source)
    model.train(model.training)  # DoRA's norms are of the loaded parameters
    return config


def scale_of(module, rank, values):
    """The scale of the update of a matrix, by its name, its rank and the fields of adapter_config.json."""
    patterns = values.get("alpha_pattern") or {}
    alpha = next(
        (a for key, a in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), values.get("lora_alpha", 8)
    )
    return alpha / (math.sqrt(rank) if values.get("use_rslora") else rank)


# By method, and by peft_type.
PEFT_WRITERS = {"lora": lora_to_peft, **dict.fromkeys(METHODS, virtual_to_peft)}
PEFT_READERS = {"LORA": lora_from_peft, **dict.fromkeys(VIRTUAL_TYPES, virtual_from_peft)}
