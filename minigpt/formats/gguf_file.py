"""Writes a model as a GGUF file, which llama.cpp, LM Studio and Ollama run, and Ollama's Modelfile."""

import logging
from dataclasses import replace
from pathlib import Path

import gguf
import torch
from gguf import GGMLQuantizationType

from minigpt.common.errors import UserError
from minigpt.common.files import write_atomic
from minigpt.formats.exported_tokenizer import describe_for_export, list_gguf_tokens
from minigpt.formats.vocabulary import MARK_NAME
from minigpt.formats.weights import to_huggingface
from minigpt.settings.stages import AnswerSampling
from model import rotary_angles

GGUF_TYPES = {
    "float32": (GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "bfloat16": (GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "float16": (GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
STAGE_KEY = "minigpt.stage"  # the key of our own by which an earlier export is recognized


def write_gguf(path, model, tokenizer, stage, dtype, name):
    """Write a model of a stage ("pretrain" or "sft") to `path`, atomically.

    dtype: one of GGUF_TYPES; name: what the model is called there. Returns the names of the tensors that are float16
    because their rows do not divide into the blocks of a quantized type. Raises OSError; UserError for a model that
    llama.cpp does not have.
    """
    config = model.config
    if config.rope_scaling and config.architecture != "llama":
        raise UserError(f"llama.cpp has no scaled rotary positions in {config.architecture}; --format=hf writes them")
    logging.getLogger("gguf").setLevel(logging.WARNING)
    writer = gguf.GGUFWriter(None, config.architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_string(STAGE_KEY, stage)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(GGUF_TYPES[dtype][1])
    add_shape(writer, config)
    add_sampling(writer)
    add_vocabulary(writer, tokenizer, stage, config.vocab_size)
    unquantized = []
    for tensor_name, tensor in gguf_weights(model).items():
        kind = tensor_type(tensor_name, tensor, GGUF_TYPES[dtype][0])
        if kind == GGMLQuantizationType.F16 and dtype != "float16":
            unquantized.append(tensor_name)
        writer.add_tensor(tensor_name, gguf.quantize(tensor.float().numpy(), kind), raw_dtype=kind)

    def write(file):
        writer.write_header_to_file(Path(file.name))  # it opens the file by its name
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()

    try:
        write_atomic(path, write)
    finally:
        writer.close()
    return unquantized


def add_shape(writer, config):
    """Add what llama.cpp needs to know of a `GPTConfig`."""
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_inner)
    writer.add_head_count(config.n_head)
    writer.add_vocab_size(config.vocab_size)
    if config.is_gpt2:
        writer.add_layer_norm_eps(config.norm_eps)
        return
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_head_count_kv(config.n_kv_head)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)


def add_sampling(writer):
    """Add how our own engine samples by default."""
    defaults = AnswerSampling()
    writer.add_sampling_temp(defaults.temperature)
    writer.add_sampling_top_k(defaults.top_k)
    writer.add_sampling_top_p(defaults.top_p)
    writer.add_sampling_min_p(0.0)
    writer.add_sampling_penalty_repeat(defaults.repetition_penalty)


def add_vocabulary(writer, tokenizer, stage, n_rows):
    """Add the tokenizer, with a token for each of the n_rows rows of the embedding, and the chat template."""
    tokens, types, merges, splitting = list_gguf_tokens(tokenizer, n_rows)
    exported = describe_for_export(tokenizer, stage)
    writer.add_tokenizer_model("gpt2")  # byte-pair encoding
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    if exported.bos_id is not None:
        writer.add_bos_token_id(exported.bos_id)
    writer.add_eos_token_id(exported.stop_ids[0])
    if len(exported.stop_ids) > 1:
        writer.add_eot_token_id(exported.stop_ids[1])
    if exported.pad_id < n_rows:
        writer.add_pad_token_id(exported.pad_id)
    writer.add_add_bos_token(exported.adds_bos)
    writer.add_add_eos_token(False)
    if exported.chat_template:
        writer.add_chat_template(exported.chat_template)


def gguf_weights(model):
    """{llama.cpp's name: tensor} of a GPT, each matrix (out, in). A tied output layer is left out."""
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[config.architecture.upper()], config.n_layer)
    weights = {}
    for name, tensor in to_huggingface(model.state_dict(), config).items():
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            tensor = tensor.T.contiguous()
        elif config.architecture == "llama" and ".q_proj." in name:
            tensor = interleave_pairs(tensor, config.n_head)
        elif config.architecture == "llama" and ".k_proj." in name:
            tensor = interleave_pairs(tensor, config.n_kv_head)
        weights[names.get_name(name, try_suffixes=(".weight", ".bias"))] = tensor
    if config.rope_scaling:
        weights["rope_freqs.weight"] = rope_divisors(config)
    return weights


def interleave_pairs(weight, n_head):
    """Rows of a query or key projection (n_head D, C) in the order of llama.cpp's llama.

    There the elements 2i and 2i + 1 of a head are rotated together; here, and in transformers, i and i + D / 2.
    """
    return weight.unflatten(0, (n_head, 2, -1)).transpose(1, 2).flatten(0, 2)


def rope_divisors(config):
    """(D / 2,) what `rope_scaling` divides each rotary frequency by, float32."""
    plain, scaled = (rotary_angles(torch.ones(()), c) for c in (replace(config, rope_scaling=None), config))
    # At position 1 the angles are the frequencies. They stand there twice, first with -sin.
    frequencies = [torch.atan2(sin, cos).flatten()[config.head_dim // 2 :] for cos, sin in (plain, scaled)]
    return frequencies[0] / frequencies[1]


def tensor_type(name, tensor, wanted):
    """The type that a tensor is stored in, where the setting says `wanted`."""
    if tensor.dim() == 1 or name == "position_embd.weight":  # llama.cpp adds these, it multiplies by the others
        return GGMLQuantizationType.F32
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if tensor.shape[1] % block == 0 else GGMLQuantizationType.F16


OLLAMA_CONTEXT_TOKENS = 4096  # its default; more takes memory
MODELFILE_MARK = "# Written by MiniGPT's export.py"
# The chat template in Go's language of templates. Ollama joins messages of one role itself.
CHAT_TEMPLATE_GO = (
    '{{- range $i, $_ := .Messages }}{{ .Content }}{{ if eq .Role "system" }}{{ "\\n" }}'
    '{{ else if ne .Role "assistant" }}' + MARK_NAME + "{{ else if gt (len (slice $.Messages $i)) 1 }}<|endoftext|>"
    "{{ end }}{{ end }}"
)


def modelfile(gguf_name, tokenizer, stage, config):
    """Ollama's Modelfile for a GGUF file beside it: our template and sampling defaults, in place of Ollama's own.

    Of an adopted model it names no template: Ollama knows those in use by the one in the GGUF file.
    """
    exported, defaults = describe_for_export(tokenizer, stage), AnswerSampling()
    lines = [MODELFILE_MARK, f"FROM ./{gguf_name}"]
    if exported.is_ours:
        template = CHAT_TEMPLATE_GO if exported.chat_template else "{{ .Prompt }}"
        lines.append(f'TEMPLATE """{template}"""')
    parameters = {
        "temperature": defaults.temperature,
        "top_k": defaults.top_k,
        "top_p": defaults.top_p,
        "min_p": 0.0,
        "repeat_penalty": defaults.repetition_penalty,
        "num_predict": defaults.max_new_tokens,
        "num_ctx": min(config.block_size, OLLAMA_CONTEXT_TOKENS),
        "stop": f'"{exported.names["eos_token"]}"',
    }
    return "\n".join([*lines, *(f"PARAMETER {name} {value}" for name, value in parameters.items())]) + "\n"
