"""Adapters in peft's form: peft computes our logits on the exported model, we compute peft's, and what is refused."""

import copy
import dataclasses
import json

import pytest
import torch
from adapting import assert_equal_logits, randomize, with_lora
from safetensors.torch import load_file, save_file
from tiny import random_ids, tiny_model, tiny_tokenizer

from minigpt.adapters.attach import attach_adapter, put_adapter_state
from minigpt.adapters.peft_format import read_peft, write_peft
from minigpt.common.errors import UserError
from minigpt.formats.huggingface import write_huggingface
from minigpt.settings.stages import Adapting

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

IDS = random_ids(2, 20)
QV = ["q", "v"]
OURS = {
    "gpt2": {}, "gpt2 with biases, DoRA": {"bias": True, "dora": True}, "gpt2, AdaLoRA": {"adalora_rank": 2},
    "qwen3": {}, "qwen3, DoRA": {"dora": True}, "qwen3, q and v": {"matrices": QV},
    "qwen3, q and v, DoRA": {"matrices": QV, "dora": True},
}  # fmt: skip
GPT2_MODULES = ["c_attn", "c_proj", "c_fc"]
QWEN3_MODULES = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
PATTERNS = {"rank_pattern": {"layers.0.*up_proj": 2, "v_proj": 6}, "alpha_pattern": {"q_proj": 5, "down_proj": 1}}
THEIRS = {
    "gpt2": {"target_modules": GPT2_MODULES}, "gpt2, DoRA": {"target_modules": GPT2_MODULES, "use_dora": True},
    "gpt2, part of it": {"target_modules": ["mlp.c_proj"]},
    "qwen3": {"target_modules": QWEN3_MODULES}, "qwen3, DoRA": {"target_modules": QWEN3_MODULES, "use_dora": True},
    "qwen3, q and v": {"target_modules": ["q_proj", "v_proj"]},
    "qwen3, rsLoRA": {"target_modules": "all-linear", "use_rslora": True},
    "qwen3, one layer, DoRA": {"target_modules": QWEN3_MODULES, "layers_to_transform": [1], "use_dora": True},
    "qwen3, patterns": {"target_modules": QWEN3_MODULES, **PATTERNS},
    "qwen3, patterns, DoRA": {"target_modules": QWEN3_MODULES, **PATTERNS, "use_dora": True},
}  # fmt: skip


def exported_base(folder, architecture, bias=False):
    """(our base, peft's base, from the folder that ours was exported to)."""
    folder.mkdir()
    model = tiny_model(architecture=architecture, bias=bias)
    write_huggingface(folder, model, tiny_tokenizer(), "pretrain", "float32", "a card")
    return model, transformers.AutoModelForCausalLM.from_pretrained(folder)


def logits_of(model):
    """Logits of a model of ours or of theirs for IDS."""
    with torch.no_grad():
        out = model(IDS)
    return getattr(out, "logits", out)


@pytest.mark.numeric
@pytest.mark.parametrize("kind", OURS)
def test_peft_computes_our_logits(kind, tmp_path):
    architecture, changed = kind.replace(",", "").split()[0], dict(OURS[kind])
    bias = changed.pop("bias", False)
    base, theirs = exported_base(tmp_path / "base", architecture, bias)
    model = with_lora(architecture, bias=bias, **changed)
    (tmp_path / "adapter").mkdir()
    write_peft(tmp_path / "adapter", model, tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")
    assert_equal_logits(logits_of(model), logits_of(theirs))
    assert (logits_of(model) - logits_of(base)).abs().max() > 0.1


def load_peft(folder, model):
    """Attach an adapter in a folder of peft's to a model, as checkpoints are loaded."""
    config, state = read_peft(folder, copy.deepcopy(model))
    attach_adapter(model, config, tokenizer=tiny_tokenizer())
    put_adapter_state(model, state)
    model.eval()


def trained_by_peft(folder, theirs, **fields):
    """Write an adapter of peft's with random weights; returns peft's model."""
    about = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=6, fan_in_fan_out=theirs.config.model_type == "gpt2", **fields
    )
    model = peft.get_peft_model(theirs, about)
    randomize(model)
    model.save_pretrained(folder)
    return model


@pytest.mark.numeric
@pytest.mark.parametrize("kind", THEIRS)
def test_we_compute_pefts_logits(kind, tmp_path):
    model, theirs = exported_base(tmp_path / "base", kind.replace(",", "").split()[0])
    base_logits = logits_of(model)
    theirs = trained_by_peft(tmp_path / "adapter", theirs, **THEIRS[kind])
    load_peft(tmp_path / "adapter", model)
    assert_equal_logits(logits_of(model), logits_of(theirs))
    assert (logits_of(model) - base_logits).abs().max() > 0.1


def test_what_is_written_is_read_back(tmp_path):
    model, again = with_lora("qwen3", dora=True), tiny_model(architecture="qwen3")
    write_peft(tmp_path, model, "base")
    load_peft(tmp_path, again)
    ours, theirs = dataclasses.asdict(model.adapter), dataclasses.asdict(again.adapter)
    assert {**ours, "matrices": sorted(ours["matrices"])} == theirs
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_virtual_tokens_are_read_back(tmp_path):
    model, again = tiny_model(), tiny_model()
    attach_adapter(model, Adapting(method="prefix", virtual_tokens=3), tiny_tokenizer())
    randomize(model)
    write_peft(tmp_path, model, "base")
    load_peft(tmp_path, again)
    assert (again.adapter.method, again.adapter.virtual_tokens) == ("prefix", 3)
    assert torch.equal(logits_of(again), logits_of(model))


def drop_tensor(tensors):
    del tensors[sorted(tensors)[0]]


def drop_all(tensors):
    tensors.clear()


def shorten_tensor(tensors):
    name = next(name for name in tensors if name.endswith("lora_B.weight"))
    tensors[name] = tensors[name][:-1].contiguous()


def add_embedding(tensors):
    tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.zeros(4, 320)


MISTAKES = {
    "another method": ({"peft_type": "VERA"}, None, ["VERA", "LORA"]),
    "trained biases": ({"bias": "all"}, None, ["bias 'all'"]),
    "whole modules": ({"modules_to_save": ["lm_head"]}, None, ["modules_to_save"]),
    "a tensor is missing": ({}, drop_tensor, ["h.0", "lora_B"]),
    "no tensor": ({}, drop_all, ["no update"]),
    "another shape": ({}, shorten_tensor, ["shape", "[96, 4]", "[95, 4]"]),
    "an embedding's update": ({}, add_embedding, ["embed_tokens"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_not_computed_here_is_refused_in_one_line(mistake, tmp_path):
    fields, change, said = MISTAKES[mistake]
    write_peft(tmp_path, with_lora("gpt2"), "base")
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **fields}), encoding="utf-8")
    if change is not None:
        tensors = load_file(tmp_path / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError) as error:
        read_peft(tmp_path, tiny_model())
    assert len(str(error.value).splitlines()) == 1 and all(words in str(error.value) for words in said)


def test_an_adapter_of_another_architecture_is_refused(tmp_path):
    write_peft(tmp_path, with_lora("qwen3"), "base")
    with pytest.raises(UserError, match="unknown in gpt2"):
        read_peft(tmp_path, tiny_model())


def test_a_method_that_peft_has_not_is_refused(tmp_path):
    model = tiny_model()
    attach_adapter(model, Adapting(method="adapter"), tiny_tokenizer())
    with pytest.raises(UserError, match="no form for method adapter"):
        write_peft(tmp_path, model, "base")
