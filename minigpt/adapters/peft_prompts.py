"""Virtual tokens in peft's format, in both directions: prompt tuning, P-tuning and prefix tuning.

peft stores what its encoders compute, not the encoders: one tensor "prompt_embeddings", in adapter_model.safetensors,
with embeddings (n, C) or a prefix (n, 2 n_layer n_kv_head D), in which a layer's keys come before its values, as in
`Prefix`. So what had an encoder comes back from there without one.
"""

from minigpt.adapters.prompts import Prefix, PromptTokens
from minigpt.common.errors import UserError

PROMPT_TENSOR = "prompt_embeddings"
VIRTUAL_TYPES = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")  # of peft


def virtual_to_peft(model, config):
    """(fields of adapter_config.json, {their name: tensor}) of a GPT's virtual tokens.

    Those of P-tuning are written as prompt tuning's, since without its encoder they are the same thing.
    """
    shape, finished = model.config, model.virtual.finished()
    kind, width, heads = "PROMPT_TUNING", shape.n_embd, shape.n_head
    if isinstance(model.virtual, Prefix):  # peft splits token_dim among these heads
        kind, width, heads = "PREFIX_TUNING", shape.n_kv_head * shape.head_dim, shape.n_kv_head
    fields = {
        "peft_type": kind,
        "num_virtual_tokens": len(finished),
        "num_layers": shape.n_layer,
        "num_attention_heads": heads,
        "token_dim": width,
        "num_transformer_submodules": 1,
    }
    return fields, {PROMPT_TENSOR: finished}


def virtual_from_peft(folder, model, defaults, values, tensors):
    """Attach peft's virtual tokens to a GPT; returns its `Adapting`, which is `defaults` for what peft does not tell.

    values: the fields of adapter_config.json; tensors: those of adapter_model.safetensors. Raises UserError where they
    are for a model of another shape.
    """
    kind, shape, finished = values["peft_type"], model.config, tensors.get(PROMPT_TENSOR)
    is_prefix = kind == "PREFIX_TUNING"
    width = 2 * shape.n_layer * shape.n_kv_head * shape.head_dim if is_prefix else shape.n_embd
    if finished is None or finished.dim() != 2 or finished.shape[1] != width:
        found = "missing" if finished is None else f"of shape {tuple(finished.shape)}"
        raise UserError(
            f"{folder}: {PROMPT_TENSOR} is {found}, and this model needs (virtual tokens, {width}); take the model "
            "that it was trained on"
        )
    model.virtual = (Prefix if is_prefix else PromptTokens)(finished)
    changes = {"method": "prefix" if is_prefix else "prompt", "virtual_tokens": len(finished), "prefix_width": 0}
    return type(defaults)(**{**vars(defaults), **changes})
