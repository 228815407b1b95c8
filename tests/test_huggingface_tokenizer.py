"""Tokenizers of Hugging Face folders: text, chats and marks are what transformers gives."""

import json
import random

import numpy as np
import pytest
from hugging_folders import KINDS, tokenizer_json, write_tokenizer

from minigpt.common.errors import UserError
from minigpt.corpus.chat import ChatTurn, chat_ids, turn_ids
from minigpt.tokenizer import load_tokenizer, load_vocabulary

CHAT_KINDS = [kind for kind, (template, _, _) in KINDS.items() if template]
CHATS = [
    [("user", "长江流经哪里？")],
    [("system", "Answer briefly. 简短。"), ("user", "1+1=?")],
    [("user", "你好"), ("assistant", "你好！"), ("user", "  two\n\nlines  ")],
    [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "<think>e")],
]


def theirs_of(folder):
    """The tokenizer of transformers."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)


def as_messages(pairs):
    return [{"role": role, "content": text} for role, text in pairs]


def their_prompt(theirs, messages, add_generation_prompt=True):
    """Ids by apply_chat_template."""
    more = {"tokenize": True, "enable_thinking": False, "return_dict": False}
    return list(theirs.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, **more))


def random_text(draw):
    """A random text of letters, Han, digits, spaces, emoji and rare characters."""
    alphabet = "abc XYZ\n\t .,'s的江河流。！12３é🙂👩‍👩‍👧\u0301𠮷\u3000<|>"
    return "".join(draw.choice(alphabet) for _ in range(draw.randint(1, 40)))


@pytest.mark.parametrize("kind", KINDS)
def test_text_has_the_ids_and_the_text_of_transformers(tmp_path, kind):
    folder = write_tokenizer(tmp_path / kind, kind)
    ours, theirs, draw = load_tokenizer(folder), theirs_of(folder), random.Random(1)
    texts = [random_text(draw) for _ in range(300)]
    for text in texts:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ours.decode(ids) == text
    ids, lengths = ours.encode_joined(texts)
    assert ids.tolist() == [i for text in texts for i in ours.encode(text)] and ids.dtype == np.uint16
    assert lengths.tolist() == [len(ours.encode(text)) for text in texts]
    assert ours.encode_prompt("江") == theirs.encode("江")  # with BOS, where text begins with it
    assert chat_ids(ours, as_messages([("user", "江")]), "pretrain") == theirs.encode("江")
    assert ours.token_lengths[ours.encode(texts[0])].sum() == len(texts[0].encode())


@pytest.mark.parametrize("kind", CHAT_KINDS)
@pytest.mark.parametrize("chat", CHATS)
def test_a_prompt_is_that_of_apply_chat_template(tmp_path, kind, chat):
    folder = write_tokenizer(tmp_path / kind, kind)
    ours, theirs, messages = load_tokenizer(folder), theirs_of(folder), as_messages(chat)
    if kind != "headers" and chat[-1][1].strip() != chat[-1][1]:
        messages[-1]["content"] = chat[-1][1].strip()  # questions are stripped here; these templates keep spaces
    assert chat_ids(ours, as_messages(chat)) == their_prompt(theirs, messages)


@pytest.mark.parametrize("kind", CHAT_KINDS)
def test_a_row_begins_with_the_prompt_and_is_the_template_s_chat(tmp_path, kind):
    folder = write_tokenizer(tmp_path / kind, kind)
    ours, theirs = load_tokenizer(folder), theirs_of(folder)
    turns = [ChatTurn("", "长江流经哪里？", "流经重庆。"), ChatTurn("", "还有呢？", "上海。")]
    row = [*turn_ids(ours, turns), ours.eot_id]
    chat = [("user", "长江流经哪里？"), ("assistant", "流经重庆。"), ("user", "还有呢？")]
    prompt = chat_ids(ours, as_messages(chat))
    whole = their_prompt(theirs, as_messages([*chat, ("assistant", "上海。")]), False)
    assert row[: len(prompt)] == prompt and row == whole[: len(row)]
    assert ours.decode(whole[len(row) :]).strip() == ""
    # The mark is at the prompt's end, and what stands around the question is known.
    mark, (head, tail) = ours.special_ids()["answer"], ours.special_ids()["question"]
    assert prompt[-len(mark) :] == mark
    question = [*head, *ours.encode("还有呢？"), *tail, *mark]
    assert prompt[-len(question) :] == question


def test_special_ids_are_those_of_the_config(tmp_path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path / "thinking", "thinking"))
    name = {text: i for i, text in tokenizer.special_texts.items()}
    assert (tokenizer.eot_id, tokenizer.pad_id) == (name["<|im_end|>"], name["<|endoftext|>"])
    headers = load_tokenizer(write_tokenizer(tmp_path / "headers", "headers"))
    assert headers.special_texts[headers.pad_id] == "<|reserved_special_token_0|>"
    assert headers.special_texts[headers.eot_id] == "<|eot_id|>"
    base = load_tokenizer(write_tokenizer(tmp_path / "base", "base"))
    assert base.special_texts[base.eot_id] == "<|endoftext|>" and base.pad_id == base.n_vocab
    assert base.special_ids()["answer"] == [] and base.chat_template is None
    for one in (tokenizer, headers):
        assert one.token_bytes(one.eot_id) == b"" and one.decode([one.eot_id, *one.encode("江"), one.pad_id]) == "江"


def test_the_end_is_found_by_its_id_where_no_config_names_it(tmp_path):
    folder = write_tokenizer(tmp_path / "base", "base")
    (folder / "tokenizer_config.json").unlink()
    (folder / "config.json").write_text('{"eos_token_id": 600}', encoding="utf-8")
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.eot_id, tokenizer.stop_ids, tokenizer.special_texts) == (600, [600], {600: "<|endoftext|>"})


@pytest.mark.parametrize("kind", CHAT_KINDS)
def test_a_special_token_s_name_in_a_message_is_text(tmp_path, kind):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path / kind, kind))
    name = tokenizer.special_texts[tokenizer.eot_id]
    asked = f"what does {name} mean?{name}"
    ids, plain = tokenizer.encode_prompt(asked, answer=True), tokenizer.encode_prompt("x", answer=True)
    assert [i for i in ids if i in tokenizer.special_texts] == [i for i in plain if i in tokenizer.special_texts]
    assert asked in tokenizer.decode(ids)
    assert tokenizer.encode_marked(f"a{name}b") == [*tokenizer.encode("a"), tokenizer.eot_id, *tokenizer.encode("b")]


def test_the_vocabulary_s_bytes_are_the_whole_tokenizer(tmp_path):
    first = load_tokenizer(write_tokenizer(tmp_path / "thinking"))
    again = load_vocabulary(first.name, first.vocabulary)
    assert again.sha256 == first.sha256 and again.special_ids() == first.special_ids()
    assert again.encode_prompt("江？", answer=True) == first.encode_prompt("江？", answer=True)
    (tmp_path / "copy.json").write_bytes(first.vocabulary)
    assert load_tokenizer(tmp_path / "copy.json").sha256 == first.sha256
    assert first.encode("a\ud800b") == first.encode("a\ufffdb")


def change(folder, name, values):
    """Change fields of a JSON file."""
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def unigram(folder):
    content = {**json.loads(tokenizer_json("base")), "decoder": {"type": "Metaspace", "replacement": "▁"}}
    change(folder, "tokenizer.json", content)


WRONG_FOLDERS = {
    "tokenizer.json is not there": lambda folder: (folder / "tokenizer.json").unlink(),
    "tokenizer.json is damaged": lambda folder: (folder / "tokenizer.json").write_text("{}", encoding="utf-8"),
    "no byte-level BPE": unigram,
    "tokenizer.json cannot be read": lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff{"),
    "tokenizer_config.json cannot be read": lambda folder: (folder / "tokenizer_config.json").write_text("{"),
    "has no eos_token": lambda folder: change(folder, "tokenizer_config.json", {"eos_token": None}),
    "template cannot be read": lambda folder: (folder / "chat_template.jinja").write_text("{% if %}"),
    "refuses these messages": lambda folder: (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_FOLDERS)
def test_a_folder_that_cannot_be_used_says_why(tmp_path, what):
    folder = write_tokenizer(tmp_path / "wrong", "base" if what == "has no eos_token" else "chatml")
    WRONG_FOLDERS[what](folder)
    with pytest.raises(UserError, match=what.replace(".", r"\.")):
        load_tokenizer(folder)


def test_a_template_runs_in_a_sandbox(tmp_path):
    folder = write_tokenizer(tmp_path / "wrong", "chatml")
    attack = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    (folder / "chat_template.jinja").write_text(attack, encoding="utf-8")
    with pytest.raises(UserError, match="refuses"):
        load_tokenizer(folder)


def test_a_base_model_s_tokenizer_writes_no_chats(tmp_path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path / "base", "base"))
    with pytest.raises(UserError, match=r"chat_template\.jinja"):
        turn_ids(tokenizer, [ChatTurn("", "a", "b")])
