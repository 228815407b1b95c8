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

from minigpt.adapters.attach import attach_adapter, trained_parameters
from minigpt.adapters.lora import LoRALinear, block_matrices, matrix_names
from minigpt.adapters.peft_prompts import VIRTUAL_TYPES, virtual_from_peft, virtual_to_peft
from minigpt.adapters.prompts import METHODS
from minigpt.common.errors import UserError, first_line
from minigpt.common.files import write_json
from minigpt.formats.adoption import PEFT_CONFIG
from minigpt.huggingface_tokenizer import read_json_object
from minigpt.settings.stages import Adapting

PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."  # before the names of a model's modules
A_ENDING, B_ENDING, MAGNITUDE_ENDING = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
# Fields of adapter_config.json that change what is computed, and that are not computed here.
UNSUPPORTED_FIELDS = (
    "modules_to_save", "trainable_token_indices", "alora_invocation_tokens", "layer_replication", "use_qalora",
    "use_bdlora", "lora_bias", "target_parameters", "arrow_config", "kasa_config", "velora_config", "monteclora_config",
)  # fmt: skip


def write_peft(folder, model, base):
    """Write the adapter of a GPT into an existing folder, as peft's `save_pretrained` does.

    base: the Hugging Face folder of the base. Raises UserError for a method that peft has not, OSError or
    SafetensorError.
    """
    method = model.adapter.method
    if method not in PEFT_WRITERS:
        raise UserError(f"peft has no form for method {method}; it has one for {', '.join(PEFT_WRITERS)}")
    tensors, fields = PEFT_WRITERS[method](model)
    about = {"base_model_name_or_path": str(base), "task_type": "CAUSAL_LM", "inference_mode": True}
    write_json(Path(folder) / PEFT_CONFIG, about | fields)
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, Path(folder) / PEFT_WEIGHTS, metadata={"format": "pt"})


def read_peft_config(folder):
    """The fields of a folder's adapter_config.json. Raises UserError where they ask for what is not computed here."""
    path = Path(folder) / PEFT_CONFIG
    values = read_json_object(path)
    kind = values.get("peft_type")
    if kind not in PEFT_READERS:
        raise UserError(f"{path}: peft_type {kind} is not supported; {', '.join(PEFT_READERS)} are")
    for name in UNSUPPORTED_FIELDS:
        if values.get(name):
            raise UserError(f"{path}: {name} is not supported")
    if values.get("bias", "none") != "none":
        raise UserError(f"{path}: bias {values['bias']!r} is not supported")
    return values


def read_peft(folder, model):
    """(`Adapting`, {name: tensor}) of the adapter in a folder of peft's, as `attach_adapter` and `put_adapter_state`
    take them.

    model: a GPT, the base, which is changed. Raises UserError where a file is missing or damaged, and where the adapter
    does not fit the model.
    """
    path, values = Path(folder) / PEFT_WEIGHTS, read_peft_config(folder)
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)})") from None
    try:
        return PEFT_READERS[values["peft_type"]](tensors, values, model)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


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


def lora_to_peft(model):
    """({their name: tensor}, fields of adapter_config.json) of LoRA. AdaLoRA's values are multiplied into A."""
    tensors, modules, config = {}, set(), model.adapter
    for module, layer, rows_of_a, rows_of_b in lora_parts(model):
        modules.add(".".join(module.split(".")[-2:]))
        tensors[f"{PEFT_PREFIX}{module}{A_ENDING}"] = layer.factors()[0][rows_of_a]
        tensors[f"{PEFT_PREFIX}{module}{B_ENDING}"] = layer.lora_b[rows_of_b]
        if layer.magnitude is not None:
            tensors[f"{PEFT_PREFIX}{module}{MAGNITUDE_ENDING}"] = layer.magnitude[rows_of_b]
    return tensors, {
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


def lora_from_peft(tensors, values, model):
    """As `read_peft`, of LoRA and DoRA. The matrices may differ in rank and in scale, and some layers may have none.

    tensors: {their name: tensor}; values: the fields of adapter_config.json.
    """
    # What is there: the matrices by their names, the rank and the scale of each.
    endings = (A_ENDING, B_ENDING, *([MAGNITUDE_ENDING] if values.get("use_dora") else []))
    modules = {n.removeprefix(PEFT_PREFIX).removesuffix(A_ENDING) for n in tensors if n.endswith(A_ENDING)}
    if not modules:
        raise UserError("there is no update of a matrix")
    expected = {f"{PEFT_PREFIX}{module}{ending}" for module in modules for ending in endings}
    known = {name.removesuffix(".weight") for weight in block_matrices(model.config) for name in weight.theirs}
    if unknown := sorted(tensors.keys() ^ expected) or sorted(modules - known):
        raise UserError(f"{unknown[0]} is missing, or unknown in {model.config.architecture}")
    ranks = {module: len(tensors[f"{PEFT_PREFIX}{module}{A_ENDING}"]) for module in modules}
    scales = {module: scale_of(module, ranks[module], values) for module in modules}

    # One rank and one scale for all: the largest rank, and the scale that most have. Other scales go into B.
    rank, scale = max(ranks.values()), Counter(scales.values()).most_common(1)[0][0]
    config = Adapting(
        method="lora",
        rank=rank,
        alpha=scale * rank,
        lora_dropout=values.get("lora_dropout", 0.0),
        matrices=sorted({letter for module in modules for letter in matrix_names(f"{module}.weight")}),
        dora=bool(values.get("use_dora")),
    )
    attach_adapter(model, config, tokenizer=None)
    for module, layer, rows_of_a, rows_of_b in lora_parts(model):
        if module in modules:
            a, b, *magnitude = (tensors[f"{PEFT_PREFIX}{module}{ending}"] for ending in endings)
            fill(layer.lora_a[rows_of_a][: len(a)], a, module)
            fill(layer.lora_b[rows_of_b][:, : len(a)], b * (scales[module] / scale), module)
            if magnitude:
                fill(layer.magnitude[rows_of_b], *magnitude, module)
    return config, trained_parameters(model)


@torch.no_grad()
def fill(target, source, module):
    """Copy a tensor into a part of a parameter. Raises UserError where their shapes differ; module: whose they are."""
    if target.shape != source.shape:
        raise UserError(
            f"{module} has a tensor of shape {list(source.shape)}, and the model needs {list(target.shape)}"
        )
    target.copy_(source)


def scale_of(module, rank, values):
    """The scale of the update of a matrix, by its name, its rank and the fields of adapter_config.json."""
    patterns = (values.get("alpha_pattern") or {}).items()
    alphas = [alpha for pattern, alpha in patterns if re.match(rf"(.*\.)?({pattern})$", module)]
    alpha = alphas[0] if alphas else values.get("lora_alpha", 8)
    return alpha / (math.sqrt(rank) if values.get("use_rslora") else rank)


# Virtual tokens


def tokens_from_peft(tensors, values, model):
    """As `read_peft`, of virtual tokens."""
    fields, state = virtual_from_peft(tensors, values, model.config)
    return Adapting(**fields), state


# By method, and by peft_type.
PEFT_WRITERS = {"lora": lora_to_peft, **dict.fromkeys(METHODS, virtual_to_peft)}
PEFT_READERS = {"LORA": lora_from_peft, **dict.fromkeys(VIRTUAL_TYPES, tokens_from_peft)}
