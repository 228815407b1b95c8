"""Virtual tokens have the outputs that peft computes on the exported model, and go there and come back."""

import pytest
import torch
from adapting import assert_equal_logits
from tiny import confident_model, random_ids, tiny_tokenizer

from minigpt.adapters.attach import attach_adapter, put_adapter_state
from minigpt.adapters.peft_format import read_peft, write_peft
from minigpt.adapters.peft_prompts import virtual_from_peft
from minigpt.adapters.prompts import EncodedPrompt, Prefix, PromptTokens, flatten_virtual, run_embeddings
from minigpt.common.errors import UserError
from minigpt.formats.huggingface import write_huggingface
from minigpt.settings.stages import Adapting

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

N = 5
# peft's configuration of each type, where it has an encoder and where it has none.
KINDS = {
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=N, task_type="CAUSAL_LM"),
    "p-tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=N, encoder_hidden_size=24, task_type="CAUSAL_LM"),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=N, task_type="CAUSAL_LM"),
    "encoded prefix": lambda: peft.PrefixTuningConfig(
        num_virtual_tokens=N, prefix_projection=True, encoder_hidden_size=24, task_type="CAUSAL_LM"
    ),
}  # fmt: skip


def exported(folder, architecture):
    """(a tiny model, the same model as transformers loads it)."""
    shape = {"n_kv_head": 2, "tied": False} if architecture == "qwen3" else {}
    model = confident_model(architecture, **shape)
    write_huggingface(folder, model, tiny_tokenizer(), "sft", "float32", "a card")
    return model, transformers.AutoModelForCausalLM.from_pretrained(folder)


def make_virtual(name, model):
    """The virtual tokens of a method, away from where they begin."""
    torch.manual_seed(1)
    start = 0.3 * torch.randn(N, model.config.n_embd)
    keys_values = flatten_virtual(run_embeddings(model, start))
    virtual = {
        "prompt": lambda: PromptTokens(start),
        "p-tuning": lambda: EncodedPrompt(start, 24),
        "prefix": lambda: Prefix(keys_values),
        "encoded prefix": lambda: Prefix(keys_values, 24),
    }[name]()
    with torch.no_grad():
        for p in virtual.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return virtual


@pytest.mark.numeric
@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_peft_computes_our_outputs_from_what_we_write(name, architecture, tmp_path):
    model, theirs = exported(tmp_path / "model", architecture)
    model.virtual = make_virtual(name, model)
    (tmp_path / "adapter").mkdir()
    model.adapter = Adapting(method=name.removeprefix("encoded "))
    write_peft(tmp_path / "adapter", model, tmp_path / "model")
    adapted, ids = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval(), random_ids(3, 12)
    assert_equal_logits(model(ids), adapted(ids).logits[:, -12:])


@pytest.mark.numeric
@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_we_compute_the_outputs_of_what_peft_writes(name, architecture, tmp_path):
    model, theirs = exported(tmp_path / "model", architecture)
    torch.manual_seed(2)
    adapted = peft.get_peft_model(theirs, KINDS[name]()).eval()
    ids = random_ids(3, 12)
    expected = adapted(ids).logits[:, -12:]
    adapted.save_pretrained(tmp_path / "adapter")
    config, state = read_peft(tmp_path / "adapter", model)
    attach_adapter(model, config, tiny_tokenizer())
    put_adapter_state(model, state)
    assert config == Adapting(method="prefix" if "prefix" in name else "prompt", virtual_tokens=N)
    assert_equal_logits(model(ids), expected)


def test_virtual_tokens_of_another_shape_are_refused():
    model = confident_model("gpt2")
    for tensors in ({}, {"prompt_embeddings": torch.zeros(N, 32)}, {"prompt_embeddings": torch.zeros(32)}):
        for kind, width in (("P_TUNING", 64), ("PREFIX_TUNING", 2 * 2 * 64)):
            with pytest.raises(UserError, match=rf"this model needs \[virtual tokens, {width}\]"):
                virtual_from_peft(tensors, {"peft_type": kind}, model.config)
