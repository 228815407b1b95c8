"""Hugging Face folders as others have them: tiny random models, with tokenizers that are trained here."""

import functools
import json
from pathlib import Path

import tokenizers
from corpora import ROOT

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# A chat template of each kind in use: what stands around messages, and how an answer begins.
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Answers begin with their thoughts, which only the last answer keeps.
THINKING = """{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- set ns.last = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' %}
        {%- set thoughts = message.reasoning_content | default('', true) %}
        {%- generation %}
        {%- if loop.index0 > ns.last %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thoughts + '\\n</think>\\n\\n' + content + '<|im_end|>\\n' }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content + '<|im_end|>\\n' }}
        {%- endif %}
        {%- endgeneration %}
    {%- elif message.role in ['user', 'system'] %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- else %}
        {{- raise_exception('no such role: ' + (message.role | tojson)) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
HEADERS = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday: {{ strftime_now('%d %b %Y') }}\n\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% set messages = messages[1:] %}{% endif %}"
    "<|eot_id|>"
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{% continue %}{% endif %}"
    "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
HEADER_SPECIALS = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>",
]  # fmt: skip
# {kind: (template, special tokens, names of special tokens)}
KINDS = {
    "chatml": (CHATML, CHATML_SPECIALS, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
    "thinking": (THINKING, CHATML_SPECIALS, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
    "headers": (HEADERS, HEADER_SPECIALS, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}),
    "base": (None, ["<|endoftext|>"], {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
}


@functools.cache
def tokenizer_json(kind, vocabulary=600):
    """The tokenizer.json of a byte-level BPE that is trained on the embedded corpus."""
    _, specials, names = KINDS[kind]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(QWEN_PATTERN), "isolated")
    to_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    files = sorted((ROOT / "data" / "wiki_sample").glob("*.jsonl"))
    text = files[0].read_text(encoding="utf-8")
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([text[:50_000]], trainer)
    tokenizer.add_special_tokens(specials)
    if kind == "thinking":
        thoughts = [tokenizers.AddedToken(text, normalized=False) for text in ("<think>", "</think>")]
        tokenizer.add_tokens(thoughts)
    if kind == "headers":
        bos = names["bos_token"]
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer.to_str()


def write_tokenizer(folder, kind="thinking", text=None):
    """Write the files of a tokenizer into a folder, as transformers does. text: a tokenizer.json in place of ours."""
    template, _, names = KINDS[kind]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(text or tokenizer_json(kind), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def random_model(architecture, **changed):
    """A tiny model of transformers with random weights, large enough that every part affects the logits."""
    import torch
    import transformers

    torch.manual_seed(0)
    shape = {"vocab_size": 640, "tie_word_embeddings": True, **changed}
    if architecture == "gpt2":
        config = transformers.GPT2Config(n_positions=64, n_embd=32, n_layer=2, n_head=4, **shape)
        model = transformers.GPT2LMHeadModel(config)
    else:
        name = {"qwen3": "Qwen3", "qwen2": "Qwen2", "llama": "Llama"}[architecture]
        sizes = {
            "max_position_embeddings": 64, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2,
        }  # fmt: skip
        sizes |= {"head_dim": 16} if architecture != "qwen2" else {}
        model = getattr(transformers, f"{name}ForCausalLM")(
            getattr(transformers, f"{name}Config")(**{**sizes, **shape})
        )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return model.eval()


def write_model(folder, architecture="qwen3", kind="thinking", dtype=None, shard=None, **changed):
    """Write the folder of a `random_model` and of a tokenizer; returns (folder, model).

    dtype: of the weights on disk; shard: the most bytes of a file, such as "50KB".
    """
    model = random_model(architecture, **changed)
    model.to(dtype or model.dtype).save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    return write_tokenizer(folder, kind), model


def widen_tokenizer(kind, ids):
    """A tokenizer.json of a kind whose vocabulary has so many ids; most of them no text uses."""
    content = json.loads(tokenizer_json(kind))
    vocabulary, added = content["model"]["vocab"], content["added_tokens"]
    first_added = ids - len(added)
    vocabulary |= {f"unused {i}": i for i in range(len(vocabulary), first_added)}
    content["added_tokens"] = [{**token, "id": first_added + i} for i, token in enumerate(added)]
    return json.dumps(content)


def write_qwen3_of_600m(folder):
    """A folder of Qwen3-0.6B's shape with random weights in bfloat16 (1.2 GB), and as many ids."""
    import torch
    from safetensors.torch import save_file

    from minigpt.formats.adoption import read_config, their_shapes

    write_tokenizer(folder, text=widen_tokenizer("thinking", 151_669))
    config = {
        "architectures": ["Qwen3ForCausalLM"], "vocab_size": 151_936, "hidden_size": 1024, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072,
        "max_position_embeddings": 40_960, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }  # fmt: skip
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * 0.02
        for name, shape in their_shapes(read_config(path)).items()
    }
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, Path(folder) / "model.safetensors")
    return folder
