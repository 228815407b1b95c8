"""Adopted models go out as they came: weights, tokenizer and chat template, as a folder and in llama.cpp."""

import json

import pytest
import torch
from hugging_folders import write_model, write_tokenizer
from llama_file import ask_llama_cpp, reply_tokens
from runs import run_here
from tiny import MARK, confident_model, tiny_tokenizer

from minigpt.checkpoint import load_checkpoint, load_model
from minigpt.common.errors import UserError
from minigpt.corpus.chat import ChatTurn, chat_ids, turn_ids
from minigpt.corpus.row_files import RowWriter
from minigpt.formats.exported_tokenizer import list_gguf_tokens, name_splitting
from minigpt.formats.gguf_file import write_gguf
from minigpt.formats.huggingface import HUGGINGFACE_FILES, write_huggingface
from minigpt.formats.vocabulary import tokenizer_json
from minigpt.tokenizer import load_tokenizer

pytest.importorskip("transformers")

CHAT = [{"role": "user", "content": "河北的省会是哪里？"}, {"role": "assistant", "content": "石家庄。"}]
CHATS = [[*CHAT * n, {"role": "user", "content": text}] for n, text in enumerate(["一", "What's 12?", "铁 Fe", "水"])]


def adopted(folder, architecture, kind):
    """(model, tokenizer, stage) of a folder of others."""
    longer = {} if architecture == "gpt2" else {"max_position_embeddings": 256}
    write_model(folder, architecture, kind, **longer)
    content = load_checkpoint(folder)
    return *load_model(content), content["stage"]


@pytest.mark.parametrize(
    ("architecture", "kind"), [("qwen3", "thinking"), ("qwen2", "chatml"), ("llama", "headers"), ("gpt2", "base")]
)
def test_a_folder_comes_back_as_it_was(architecture, kind, tmp_path):
    came, left = tmp_path / "came", tmp_path / "left"
    model, tokenizer, stage = adopted(came, architecture, kind)
    left.mkdir()
    write_huggingface(left, model, tokenizer, stage, "float32", "a card")
    assert json.loads((left / "tokenizer.json").read_text("utf-8")) == json.loads(
        (came / "tokenizer.json").read_text("utf-8")
    )
    again, their_tokenizer = load_model(load_checkpoint(left))
    assert again.config == model.config
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    for name in ("chat_template", "token_names", "stop_ids", "eot_id", "pad_id", "prefix_ids", "n_vocab"):
        assert getattr(their_tokenizer, name) == getattr(tokenizer, name)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_our_own_model_comes_back(architecture, tmp_path):
    """Its chats are then written by the chat template that it left with."""
    model, tokenizer = confident_model(architecture, tied=False), tiny_tokenizer()
    write_huggingface(tmp_path, model, tokenizer, "sft", "float32", "a card")
    content = load_checkpoint(tmp_path)
    again, its_tokenizer = load_model(content)
    assert again.config == model.config and content["stage"] == "sft"
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert (its_tokenizer.eot_id, its_tokenizer.pad_id) == (tokenizer.eot_id, tokenizer.pad_id)
    for chat in CHATS:
        assert chat_ids(its_tokenizer, chat) == chat_ids(tokenizer, chat)


def test_ten_steps_of_training_change_the_weights_and_nothing_else(tmp_path):
    """Export, adopt, train, export. An adopted model is free to sample the answer mark, which is one of its tokens."""
    first, second, rows = tmp_path / "first", tmp_path / "second", tmp_path / "rows"
    for folder in (first, second):
        folder.mkdir()
    model = confident_model("qwen3")
    write_huggingface(first, model, tiny_tokenizer(), "sft", "float32", "a card")
    tokenizer = load_tokenizer(first)
    with RowWriter(rows, ["train", "val"], 64, tokenizer) as writer:
        for part in ("train", "val"):
            writer.add(part, turn_ids(tokenizer, [ChatTurn("", "河", "的")]), 2)
        writer.finish({"stage": "sft"})
    length = {"max_iters": 10, "eval_interval": 10, "block_size": 64, "batch_size": 1, "dropout": 0.0}
    run_here(data_dir=str(rows), out_dir=str(tmp_path / "run"), init_from=str(first), **length)
    content = load_checkpoint(tmp_path / "run/last.pt")
    trained, tokenizer = load_model(content)
    write_huggingface(second, trained, tokenizer, content["stage"], "float32", "a card")
    generation = [json.loads((folder / "generation_config.json").read_text("utf-8")) for folder in (first, second)]
    generation[0]["suppress_tokens"].remove(MARK)
    assert generation[0] == generation[1]
    for name in HUGGINGFACE_FILES - {"model.safetensors", "generation_config.json"}:
        assert (first / name).read_text(encoding="utf-8") == (second / name).read_text(encoding="utf-8")
    again, _ = load_model(load_checkpoint(second))
    assert not torch.equal(again.h[0].attn.c_attn.weight, model.h[0].attn.c_attn.weight)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in trained.state_dict().items())


@pytest.mark.numeric
@pytest.mark.parametrize(("architecture", "kind"), [("qwen3", "chatml"), ("llama", "headers"), ("gpt2", "base")])
def test_llama_cpp_reads_its_chats_as_we_do(architecture, kind, tmp_path):
    path = tmp_path / "left.gguf"
    model, tokenizer, stage = adopted(tmp_path / "came", architecture, kind)
    write_gguf(path, model, tokenizer, stage, "float32", "left")
    if stage == "sft":
        prompts, requests = [chat_ids(tokenizer, chat) for chat in CHATS], [{"messages": chat} for chat in CHATS]
    else:
        texts = [chat[-1]["content"] for chat in CHATS]
        prompts, requests = [tokenizer.encode_prompt(text) for text in texts], [{"prompt": text} for text in texts]
    # A token that is no whole character would be left out of the reply. The bias changes no log probabilities.
    whole = {"max_tokens": 1, "logit_bias": [[tokenizer.encode("a")[0], 1000]]}
    replies = ask_llama_cpp(path, [request | whole for request in requests])
    for ids, reply in zip(prompts, replies, strict=True):
        assert reply["usage"]["prompt_tokens"] == len(ids)
        ((_, top),) = reply_tokens(reply)
        with torch.no_grad():
            expected = model(torch.tensor([ids]))[0, -1].log_softmax(dim=0)
        assert (expected[list(top)] - torch.tensor(list(top.values()))).abs().max() <= 5e-3


def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused(tmp_path):
    write_tokenizer(tmp_path / "came", "chatml")
    content = json.loads((tmp_path / "came/tokenizer.json").read_text(encoding="utf-8"))
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+|\P{L}+"
    (tmp_path / "came/tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="--format=hf"):
        list_gguf_tokens(load_tokenizer(tmp_path / "came"), 640)


def test_the_splitting_of_known_tokenizers_has_llama_cpps_name():
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    assert name_splitting(by_bytes) == name_splitting(tokenizer_json(load_tokenizer())["pre_tokenizer"]) == "gpt-2"
    for numbers, name in ((r"\p{N}", "qwen2"), (r"\p{N}{1,3}", "llama-bpe"), (r"\p{N}+", None)):
        pattern = (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + numbers + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        parts = [split, {**by_bytes, "use_regex": False}]
        assert name_splitting({"type": "Sequence", "pretokenizers": parts}) == name
    assert name_splitting({**by_bytes, "add_prefix_space": True}) is None
    assert name_splitting({"type": "Metaspace"}) is None
