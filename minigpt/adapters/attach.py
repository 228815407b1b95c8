"""Attaches an adapter to a GPT: the model's own parameters are frozen, and those of a method are added.

An adapter's state is the parameters that train, by their names in the GPT. A task's output layer, which is new, is
part of it.
"""

from dataclasses import fields

from minigpt.adapters.bottleneck import add_bottlenecks
from minigpt.adapters.lora import add_lora, merge_lora
from minigpt.adapters.nf4 import dequantize_base, quantize_base
from minigpt.adapters.prompts import METHODS, make_virtual_tokens
from minigpt.common.errors import UserError
from minigpt.settings.stages import Adapting


def adapting_of(settings):
    """The `Adapting` part of the settings of train.py."""
    return Adapting(**{f.name: getattr(settings, f.name) for f in fields(Adapting)})


def attach_adapter(model, config, tokenizer):
    """Freeze a GPT and add what the method of `config`, an `Adapting`, trains, in place. The model remembers it as
    `adapter`. Raises UserError for settings that do not go with the model."""
    model.requires_grad_(False)
    if config.quantize == "nf4":
        quantize_base(model)
    if config.method == "lora":
        add_lora(model, config)
    elif config.method == "adapter":
        add_bottlenecks(model, config)
    elif config.method in METHODS:
        model.virtual = make_virtual_tokens(model, config, tokenizer)
    if model.config.n_labels:
        model.lm_head.requires_grad_(True)
    model.adapter = config


def trained_parameters(model):
    """{name: parameter} of those that train: an adapter's state."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def put_adapter_state(model, state, path="the adapter"):
    """Copy an adapter's state, {name: tensor}, into a GPT to which such an adapter is attached. Raises UserError."""
    own = trained_parameters(model)
    wrong = [name for name in {*own, *state} if name not in own or name not in state]
    wrong += [name for name in own if name in state and own[name].shape != state[name].shape]
    if wrong:
        raise UserError(f"{path} does not fit its base: {sorted(wrong)[0]} is missing, or of another shape")
    for name, p in own.items():
        p.data.copy_(state[name])


def merge_adapter(model):
    """Make a GPT with an adapter a plain one of the same outputs, in place. Raises UserError where no plain one has
    them."""
    method = model.adapter.method
    if method == "adapter":
        raise UserError("bottlenecks (method adapter) are layers of their own, which only programs of MiniGPT know")
    if method in METHODS:
        raise UserError(f"virtual tokens (method {method}) are no part of the weights; take --format=peft")
    merge_lora(model)
    dequantize_base(model)
    model.adapter = None
