"""A Hugging Face folder of an exported model, as transformers loads it: its logits, tokens, chats and defaults."""

import pytest
import torch
from tiny import MARK, PAD, confident_model, random_ids, tiny_tokenizer

from minigpt.formats.huggingface import write_huggingface
from minigpt.inference.engine import TextGenerator
from minigpt.inference.params import SamplingParams

transformers = pytest.importorskip("transformers")

SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_positions": 32}
MODELS = {
    "gpt2": {}, "gpt2 of OpenAI, untied": {"bias": True, "tied": False, "tanh_gelu": True},
    "qwen3": {}, "qwen3 with shared keys, untied": {"n_kv_head": 2, "head_dim": 32, "tied": False},
    "qwen2": {"n_kv_head": 1}, "llama 3.1": {"rope_scaling": SCALING, "rope_theta": 500_000.0},
}  # fmt: skip


def written(folder, name, stage="sft", dtype="float32"):
    """(our model, its folder) of one of MODELS."""
    model = confident_model(name.split()[0], **MODELS[name])
    write_huggingface(folder, model, tiny_tokenizer(), stage, dtype, "a card")
    return model, folder


@pytest.mark.numeric
@pytest.mark.parametrize("name", MODELS)
def test_a_batch_of_unequal_prompts_has_our_logits(name, tmp_path):
    """Padded on the left there, each alone here."""
    ours, folder = written(tmp_path, name)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert type(theirs).__name__ == theirs.config.architectures[0] and theirs.dtype == torch.float32
    prompts = [random_ids(n, seed=n).tolist() for n in (3, 17, 60)]
    batch = transformers.AutoTokenizer.from_pretrained(folder).pad({"input_ids": prompts}, return_tensors="pt")
    is_token = batch["attention_mask"].bool()
    with torch.no_grad():
        logits = theirs(**batch, position_ids=(is_token.cumsum(1) - 1).clamp(min=0)).logits
        for prompt, row, kept in zip(prompts, logits, is_token, strict=True):
            assert not kept[: -len(prompt)].any()
            expected = ours(torch.tensor([prompt]))[0]
            assert (row[kept] - expected).abs().max() <= 1e-4


@pytest.mark.numeric
@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_a_chat_is_answered_with_our_tokens(name, tmp_path):
    ours, folder = written(tmp_path, name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    generator = TextGenerator(ours, tiny_tokenizer(), "sft")
    chat = [
        {"role": "user", "content": "河的"},
        {"role": "assistant", "content": "的"},
        {"role": "user", "content": "?"},
    ]
    for messages in (chat[:1], chat):
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        ids = generator.prompt_ids(messages)
        assert prompt["input_ids"].tolist() == [ids]
        found = theirs.generate(**prompt, do_sample=False, max_new_tokens=12)[0, len(ids) :].tolist()
        stream = generator.submit(ids, SamplingParams(temperature=0, max_new_tokens=12, logprobs=0))
        list(stream)
        assert found == [token.token_id for token in stream.logprobs]
    generator.close(0)


def test_what_our_engine_never_samples_is_suppressed_there(tmp_path):
    folders = {stage: tmp_path / stage for stage in ("sft", "pretrain")}
    for stage, folder in folders.items():
        folder.mkdir()
        model, _ = written(folder, "gpt2", stage)
    defaults = transformers.GenerationConfig.from_pretrained(folders["sft"])
    assert (defaults.temperature, defaults.top_k, defaults.max_new_tokens) == (0.1, 20, 225)
    assert defaults.suppress_tokens == [PAD, MARK, *range(MARK + 1, model.config.vocab_size)]
    assert MARK not in transformers.GenerationConfig.from_pretrained(folders["pretrain"]).suppress_tokens
    has_template = {s: transformers.AutoTokenizer.from_pretrained(f).chat_template for s, f in folders.items()}
    assert has_template["sft"] and not has_template["pretrain"]


def test_weights_are_stored_in_the_type_that_is_asked_for(tmp_path):
    ours, folder = written(tmp_path, "qwen3", dtype="bfloat16")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert theirs.dtype == torch.bfloat16
    assert torch.equal(theirs.model.embed_tokens.weight, ours.wte.weight.bfloat16())
