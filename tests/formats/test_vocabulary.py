"""Exported tokenizers: transformers and real llama.cpp give the ids of ours, for texts and for chats."""

import json

import jinja2
import pytest
from evaluation_fakes import load_script
from llama_tokens import ask_llama_tokens
from tokenizers import Tokenizer as FastTokenizer
from tokenizing import odd_strings, sample_paragraphs, train_on_sample

from minigpt.corpus.chat import chat_ids, prompt_turns, turn_ids
from minigpt.corpus.cleaning import SENTENCE_END
from minigpt.corpus.cutting import TextTokens, match_ends
from minigpt.formats.vocabulary import CHAT_TEMPLATE, gguf_vocabulary, inexact_outside, tokenizer_json
from minigpt.tokenizer import Tokenizer, format_vocabulary, load_tokenizer

OLD_PATTERN = r"\p{Han}+| ?[^\s\p{Han}\p{N}\p{P}\p{S}]+|\p{N}|[\p{P}\p{S}]|\s+"  # of tokenizers trained until 2026
PARAGRAPHS, ALL_PARAGRAPHS = 500, None
ODD_STRINGS, MANY_ODD_STRINGS = 2000, 100_000

system, ask, say = (lambda text, role=role: {"role": role, "content": text} for role in ("system", "user", "assistant"))
CHATS = [
    [ask(" 第1镇在哪里？\n")],
    [system("要短。"), ask("a ## b"), say(" 乙。 "), ask("丙？")],
    [ask("甲"), say("乙"), system("丁"), ask("丙")],
    [ask("甲"), ask("乙")],
    [system("甲")],
]


@pytest.fixture(scope="module", params=["trained", "gpt2"])
def tokenizer(request):
    return load_tokenizer() if request.param == "gpt2" else train_on_sample()


@pytest.fixture
def texts(rounds):
    paragraphs = sample_paragraphs()[: rounds(PARAGRAPHS, ALL_PARAGRAPHS)]
    return [*paragraphs, *odd_strings(rounds(ODD_STRINGS, MANY_ODD_STRINGS), seed=6)]


def find_differences(encode, tokenizer, texts):
    """The texts to which `encode` and a `Tokenizer` give other ids."""
    return [text for text in texts if encode(text) != tokenizer.encode(text)]


def open_in_transformers(tokenizer, folder):
    """A `Tokenizer` as transformers reads its tokenizer.json."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json(tokenizer)), encoding="utf-8")
    return pytest.importorskip("transformers").PreTrainedTokenizerFast(tokenizer_file=str(path))


@pytest.mark.soak
def test_transformers_give_our_ids_and_our_text(tokenizer, texts, tmp_path):
    theirs = open_in_transformers(tokenizer, tmp_path)
    assert find_differences(lambda text: theirs(text)["input_ids"], tokenizer, texts) == []
    assert all(theirs.decode(tokenizer.encode(text)) == text for text in texts)
    names = ["<|endoftext|>", "<|pad|>", "<|answer|>"]
    assert theirs.convert_tokens_to_ids(names) == list(tokenizer.special_ids().values())
    assert len(theirs) == tokenizer.n_vocab


@pytest.mark.soak
def test_llama_cpp_gives_our_ids(tokenizer, texts, tmp_path):
    ids, _ = ask_llama_tokens(tmp_path / "vocabulary.gguf", tokenizer, texts)
    assert [text for text, theirs in zip(texts, ids, strict=True) if theirs != tokenizer.encode(text)] == []


@pytest.mark.soak
def test_training_splits_finer_than_encoding_and_no_token_shows_it(texts):
    trained = train_on_sample()
    content = tokenizer_json(trained)
    finer = {"Regex": load_script("data/train_tokenizer.py").FINER_PATTERN}
    coarse, *others = content["pre_tokenizer"]["pretokenizers"]
    content["pre_tokenizer"]["pretokenizers"] = [coarse, coarse | {"pattern": finer}, *others]
    encode = FastTokenizer.from_str(json.dumps(content)).encode
    assert find_differences(lambda text: encode(text).ids, trained, texts) == []


@pytest.mark.soak
def test_merges_reach_every_token_and_each_sentence_ends_with_a_token(texts):
    trained, n_ends = train_on_sample(), 0
    assert len(trained.merges) == sum(len(token) > 1 for token in trained.ranks) > 1700
    for text in texts:
        ends = match_ends(SENTENCE_END, text)
        assert len(TextTokens(text, trained).cuts_at(ends)) == len(ends)
        n_ends += len(ends)
    assert n_ends > len(texts) / 2


def test_an_embedding_that_is_padded_has_unused_tokens(tokenizer):
    tokens, types, merges, _ = gguf_vocabulary(tokenizer, tokenizer.n_vocab + 5)
    assert len(set(tokens)) == len(types) == tokenizer.n_vocab + 5
    assert tokens[-5:] == [f"[PAD{tokenizer.n_vocab + i}]" for i in range(5)] and types[-5:] == [5] * 5
    controls = {tokens[i]: i for i, kind in enumerate(types) if kind == 3}
    assert controls == dict(
        zip(("<|endoftext|>", "<|pad|>", "<|answer|>"), tokenizer.special_ids().values(), strict=True)
    )
    assert {"".join(pair.split(" ")) for pair in merges} <= set(tokens)


# Older tokenizers


def test_an_older_tokenizer_is_exact_in_transformers_and_said_to_be_inexact_in_llama_cpp(texts):
    new = train_on_sample()
    assert inexact_outside(new) is inexact_outside(load_tokenizer()) is None
    specials = {name: token_id + 1 for name, token_id in new.special_ids().items()}
    # No merge reaches this token: it encodes only a piece that equals it.
    ranks = new.ranks | {"丙乙甲".encode(): len(new.ranks)}
    old = Tokenizer("old.tiktoken", format_vocabulary(ranks, specials, OLD_PATTERN))
    assert len(old.encode("丙乙甲")) == 1 < len(old.encode("丙乙甲丁"))
    encode = FastTokenizer.from_str(json.dumps(tokenizer_json(old))).encode
    assert find_differences(lambda text: encode(text).ids, old, [*texts, "丙乙甲", "丙乙甲丁"]) == []
    assert "old.tiktoken" in inexact_outside(old) and gguf_vocabulary(old, old.n_vocab)[3] == "qwen2"
    unreached = Tokenizer("unreached.tiktoken", format_vocabulary(ranks, specials, new.pattern))
    assert "unreached.tiktoken" in inexact_outside(unreached)


# Chats


def test_transformers_write_chats_as_they_are_trained(tokenizer, tmp_path):
    theirs = open_in_transformers(tokenizer, tmp_path)
    theirs.chat_template = CHAT_TEMPLATE

    def ids_of(chat, **options):
        return theirs.apply_chat_template(chat, return_dict=False, **options)

    for chat in CHATS:
        expected = chat_ids(tokenizer, chat)
        assert ids_of(chat) == ids_of(chat, add_generation_prompt=True) == expected
        whole = [*chat, say(" 好。 ")]
        assert ids_of(whole) == [*turn_ids(tokenizer, prompt_turns([*chat, say("好。")])), tokenizer.eot_id]
        assert ids_of([*chat, say("好。")], continue_final_message=True) == chat_ids(tokenizer, [*chat, say("好。")])


def test_llama_cpp_writes_chats_as_they_are_trained(tmp_path):
    trained = train_on_sample()
    _, written = ask_llama_tokens(tmp_path / "vocabulary.gguf", trained, [], CHATS)
    template = jinja2.Template(CHAT_TEMPLATE)
    assert written == [template.render(messages=chat) for chat in CHATS]
    assert written[0] == "第1镇在哪里？<|answer|>"
