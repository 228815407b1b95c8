"""Virtual tokens in peft's format, in both directions: prompt tuning, P-tuning and prefix tuning.

peft stores what its encoders compute, not the encoders: one tensor "prompt_embeddings", in adapter_model.safetensors,
with embeddings (n, C) or a prefix (n, 2 n_layer n_kv_head D), in which a layer's keys come before its values, as in
`Prefix`. So what had an encoder comes back from there without one.
"""

from minigpt.adapters.prompts import Prefix
from minigpt.common.errors import UserError

PROMPT_TENSOR = "prompt_embeddings"
# peft's types, and the method that each is here.
VIRTUAL_TYPES = {"PROMPT_TUNING": "prompt", "P_TUNING": "prompt", "PREFIX_TUNING": "prefix"}


def virtual_to_peft(model):
    """({name: tensor}, fields of adapter_config.json) of a GPT's virtual tokens.

    Those of P-tuning are written as prompt tuning's, since without its encoder they are the same thing.
    """
    config, finished = model.config, model.virtual.finished().detach()
    kind, width, heads = "PROMPT_TUNING", config.n_embd, config.n_head
    if isinstance(model.virtual, Prefix):  # peft splits token_dim among these heads
        kind, width, heads = "PREFIX_TUNING", config.n_kv_head * config.head_dim, config.n_kv_head
    return {PROMPT_TENSOR: finished}, {
        "peft_type": kind,
        "num_virtual_tokens": len(finished),
        "num_layers": config.n_layer,
        "num_attention_heads": heads,
        "token_dim": width,
        "num_transformer_submodules": 1,
    }


def virtual_from_peft(tensors, peft_fields, config):
    """(fields of `Adapting`, {name in the GPT: tensor}) of a folder of peft's that has one of VIRTUAL_TYPES.

    tensors: of adapter_model.safetensors; peft_fields: of adapter_config.json; config: the model's GPTConfig.
    Raises UserError where they are for a model of another shape.
    """
    kind = peft_fields["peft_type"]
    method, finished = VIRTUAL_TYPES[kind], tensors.get(PROMPT_TENSOR)
    width = 2 * config.n_layer * config.n_kv_head * config.head_dim if method == "prefix" else config.n_embd
    if finished is None or finished.dim() != 2 or finished.shape[1] != width:
        shape = "none" if finished is None else list(finished.shape)
        raise UserError(
            f"the adapter's {PROMPT_TENSOR} ({kind}) is {shape}, and this model needs [virtual tokens, {width}]; "
            "take the model that it was trained on"
        )
    return {"method": method, "virtual_tokens": len(finished)}, {"virtual.embeddings": finished.float()}
