"""GPT-2's tokenizer and trained ones: round trips, special ids, prompts, damaged files, streaming."""

import base64
import hashlib
import random
import socket
import subprocess
import sys

import numpy as np
import pytest
from corpora import ROOT, byte_tokenizer, made_up_articles, write_jsonl
from tokenizing import train_on_sample

from minigpt.common.errors import UserError
from minigpt.tokenizer import (
    GPT2_PATH,
    GPT2_PATTERN,
    StreamDecoder,
    Tokenizer,
    format_vocabulary,
    load_tokenizer,
    load_vocabulary,
    parse_vocabulary,
)

VOCAB, MAX_TOKEN_CHARS = 600, 3
SPECIALS = {"eot": 256, "pad": 257, "answer": 258}

TEXTS = [
    "",
    "第3镇位于东河边。",
    "笑😀，一家人👨‍👩‍👧‍👦，旗🇨🇳，肤色👍🏽。",
    "𠀀𪚥䶮龘〇㐂",
    "e\u0301 é ﷽ नमस्ते שלום",
    "零宽\u200b字符\ufeff，专用区\ue000，控制\x00符\x7f",
    "空白\n\n\t  三  个 \r\n",
    "1234567890，３．１４，Ⅳ½",
    "a##b ##c ### #### ##",
    "########",
    "<|endoftext|><|pad|><|answer|>",
]
# The smallest vocabulary: every byte on its own.
BYTES = {bytes([b]): b for b in range(256)}


@pytest.fixture(scope="module")
def trained_path(tmp_path_factory):
    """A small tokenizer trained by the project's script."""
    folder = tmp_path_factory.mktemp("tokenizer")
    rows = [*made_up_articles(), {"text": "#### 标题：2024年的长江大桥##。" * 9}, {"text": "长江大桥在南方。" * 50}]
    write_jsonl(folder / "wiki" / "a.jsonl", rows)
    flags = ["--input_dir=wiki", "--tokenizer_path=mine.tiktoken", f"--tokenizer_vocab={VOCAB}"]
    command = [sys.executable, str(ROOT / "data/train_tokenizer.py"), *flags, f"--max_token_chars={MAX_TOKEN_CHARS}"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "mine.tiktoken"


@pytest.fixture(scope="module", params=["gpt2", "trained"])
def tokenizer(request, trained_path):
    return load_tokenizer("gpt2" if request.param == "gpt2" else str(trained_path))


def bytes_by_id(tokenizer):
    """{id: bytes} read directly from the file's lines; EOT and PAD are empty, the answer mark is `##`."""
    lines = [line.split(b" ") for line in tokenizer.vocabulary.splitlines() if not line.startswith(b"#")]
    vocabulary = {int(rank): base64.b64decode(token) for token, rank in lines}
    return {**vocabulary, tokenizer.eot_id: b"", tokenizer.pad_id: b"", tokenizer.answer_id: b"##"}


def stream(tokenizer, ids):
    """What the streaming decoder gives for each id."""
    decoder = StreamDecoder(tokenizer)
    return [decoder.feed(i) for i in ids]


# The vocabularies


def test_gpt2s_vocabulary_is_the_vendored_one_with_its_special_ids():
    gpt2 = load_tokenizer()
    assert gpt2.name == "gpt2" and gpt2.sha256 == hashlib.sha256(GPT2_PATH.read_bytes()).hexdigest()
    assert gpt2.special_ids() == {"eot": 50256, "pad": 50257, "answer": 2235}
    assert gpt2.n_vocab == 50258
    # Known from GPT-2 itself.
    assert gpt2.encode("Hello world") == [15496, 995] and gpt2.encode("#") == [2]


def test_a_tokenizer_is_loaded_without_the_network(monkeypatch, trained_path):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert load_tokenizer().encode("a") and load_tokenizer(str(trained_path)).encode("a")


def test_a_copy_of_gpt2s_vocabulary_under_another_name_keeps_its_special_ids(tmp_path):
    copy = tmp_path / "copy.tiktoken"
    copy.write_bytes(GPT2_PATH.read_bytes())
    assert load_tokenizer(str(copy)).special_ids() == load_tokenizer().special_ids()


def test_a_trained_tokenizer_has_three_special_ids_within_the_size_that_was_set(trained_path):
    trained = load_tokenizer(str(trained_path))
    specials = list(trained.special_ids().values())
    ordinary = set(bytes_by_id(trained)) - set(specials)
    assert len(set(specials)) == 3 and not ordinary & set(specials)
    assert trained.n_vocab == len(ordinary) + 3 <= VOCAB
    assert trained.name == "mine.tiktoken"


def test_a_trained_tokenizer_learned_its_corpus_but_no_token_over_the_limit(trained_path):
    trained = load_tokenizer(str(trained_path))
    text = "长江大桥在南方。"
    assert len(trained.encode(text)) < len(text)
    lengths = [len(token.decode("utf-8", "ignore")) for token in bytes_by_id(trained).values() if token[:1] > b"\x7f"]
    assert 1 < max(lengths) <= MAX_TOKEN_CHARS
    assert len(trained.encode("2024")) == 4  # digits stay single


def test_format_vocabulary_is_the_inverse_of_parse_vocabulary():
    ranks = {**BYTES, "中".encode(): 259}
    assert parse_vocabulary(format_vocabulary(ranks, SPECIALS, GPT2_PATTERN), "x") == (ranks, SPECIALS, GPT2_PATTERN)


# Text in


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_unchanged(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_plain_text_never_holds_a_special_id(tokenizer, text):
    assert not set(tokenizer.encode(text)) & set(tokenizer.special_ids().values())


def test_a_double_hash_of_the_text_is_two_hashes(tokenizer):
    hash_id = tokenizer.encode("#")[0]
    assert tokenizer.encode("##") == [hash_id, hash_id]
    assert tokenizer.encode("甲##乙") == [*tokenizer.encode("甲"), hash_id, hash_id, *tokenizer.encode("乙")]


def test_text_gives_no_token_of_gpt2_that_merges_reach_only_through_a_double_hash():
    gpt2 = load_tokenizer()
    unused = {"##": 2235, "###": 21017, "####": 4242, " #####": 46424}
    unused |= {"#" * 8: 7804, "#" * 16: 14468, "#" * 32: 29113}
    assert {*bytes_by_id(gpt2)} - {*gpt2.ranks.values()} == {*unused.values(), gpt2.eot_id, gpt2.pad_id}
    for text, token_id in unused.items():
        assert token_id not in gpt2.encode(text) and gpt2.decode([token_id]) == text
    assert gpt2.encode("####") == [2] * 4
    # Their merges begin with a space and #.
    assert gpt2.encode(" ##") == [22492] and gpt2.encode(" ###") == [44386]


def test_half_a_surrogate_pair_does_not_stop_encoding(tokenizer):
    text = tokenizer.decode(tokenizer.encode("前\ud83d后"))
    assert (text[0], text[-1]) == ("前", "后")


@pytest.mark.parametrize(
    ("prompt", "answer", "kept", "marked"),
    [
        ("第1镇在哪里？##", False, "第1镇在哪里？", True),
        ("第1镇在哪里？ ##", False, "第1镇在哪里？", True),
        ("第1镇在哪里？  ## \n", False, "第1镇在哪里？", True),
        ("第1镇在哪里？##", True, "第1镇在哪里？", True),
        ("第1镇在哪里？", True, "第1镇在哪里？", True),
        ("第1镇在哪里？\n", True, "第1镇在哪里？", True),
        ("第1镇在哪里？", False, "第1镇在哪里？", False),
        ("甲##乙", False, "甲##乙", False),
        ("甲##乙##", False, "甲##乙", True),
        ("甲###", False, "甲#", True),
        ("甲####", False, "甲##", True),
        ("##", False, "", True),
        ("", True, "", True),
        ("", False, "", False),
    ],
)
def test_only_a_double_hash_at_the_end_of_a_prompt_is_the_mark(tokenizer, prompt, answer, kept, marked):
    expected = tokenizer.encode(kept) + [tokenizer.answer_id] * marked
    assert tokenizer.encode_prompt(prompt, answer=answer) == expected


# Text out, an id at a time


@pytest.mark.parametrize("seed", range(8))
def test_random_ids_stream_as_their_whole_characters_and_nothing_else(tokenizer, seed):
    rng = random.Random(seed)
    # Mostly single bytes, which make the most incomplete characters; some ids are not in the vocabulary.
    vocabulary = bytes_by_id(tokenizer)
    single = [i for i, token in vocabulary.items() if len(token) == 1]
    ids = [rng.choice(single) if rng.random() < 0.6 else rng.randrange(tokenizer.n_vocab + 99) for _ in range(400)]
    decoder, raw, shown = StreamDecoder(tokenizer), b"", ""
    for i in ids:
        raw += vocabulary.get(i, b"")
        shown += decoder.feed(i)
        # All complete characters so far are decoded; incomplete ones are held back or dropped.
        assert shown == raw.decode("utf-8", "ignore").replace("\ufffd", "")


@pytest.mark.parametrize("character", ["é", "中", "😀", "𠀀"])
def test_a_character_is_emitted_with_the_id_that_completes_it(tokenizer, character):
    single = {token: i for i, token in bytes_by_id(tokenizer).items() if len(token) == 1}
    ids = [single[bytes([b])] for b in character.encode()]
    assert stream(tokenizer, ids) == [""] * (len(ids) - 1) + [character]
    # An incomplete character is dropped, and the next one is complete.
    after = single[b"a"]
    assert stream(tokenizer, [*ids[:-1], after, *ids]) == [""] * (len(ids) - 1) + ["a"] + [""] * (len(ids) - 1) + [
        character
    ]


def test_bytes_that_no_character_has_are_dropped(tokenizer):
    single = {token: i for i, token in bytes_by_id(tokenizer).items() if len(token) == 1}
    raw = b"a\xff\xfe\xc0\x80\xed\xa0\x80\xf8\x88b\x80\xbfc"
    assert "".join(stream(tokenizer, [single[bytes([b])] for b in raw])) == "abc"


def test_a_replacement_character_in_the_text_is_not_shown(tokenizer):
    assert tokenizer.decode(tokenizer.encode("前\ufffd后")) == "前后"


def test_end_and_padding_show_as_nothing_and_the_mark_as_two_hashes(tokenizer):
    ids = [*tokenizer.encode("问"), tokenizer.answer_id, *tokenizer.encode("答"), tokenizer.eot_id, tokenizer.pad_id]
    assert tokenizer.decode(ids) == "问##答"


@pytest.mark.parametrize("token_id", [50303, 65535, 2**31, 2**40, -1])
def test_an_id_that_no_vocabulary_has_is_decoded_to_nothing(tokenizer, token_id):
    before, after = tokenizer.encode("前"), tokenizer.encode("后")
    assert "".join(stream(tokenizer, [*before, token_id, *after])) == "前后"


def test_a_stream_takes_the_ids_of_a_row(tokenizer):
    assert "".join(stream(tokenizer, np.array(tokenizer.encode("桥😀"), dtype=np.uint16))) == "桥😀"


# Files that are not what they should be

GOOD = format_vocabulary(BYTES, SPECIALS, GPT2_PATTERN).splitlines(keepends=True)


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (b"", "not a .tiktoken file"),
        (b"".join(GOOD[:200]), "not a .tiktoken file"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "line 1"),
        (b"".join([*GOOD[:9], b"hello\n", *GOOD[9:]]), "line 10"),
        (b"".join([*GOOD[:9], b"%%%% 9\n", *GOOD[9:]]), "line 10"),
        (b"".join([*GOOD[:9], b"YQ== x\n", *GOOD[9:]]), "line 10"),
        (b"".join([*GOOD[:256], b"#special eot\n"]), "line 257"),
        (b"".join(GOOD[:256]), "eot, pad, answer"),
        (b"".join(GOOD[:258]), "answer"),
        (b"".join(GOOD[:259]), "pattern"),
        # Cut off within the pattern, as a full disk leaves it.
        (b"".join(GOOD[:259]) + b"#pattern '(?:[sdmt]|ll", "pattern"),
    ],
)
def test_a_damaged_vocabulary_is_refused_with_its_name(tmp_path, vocabulary, message):
    path = tmp_path / "broken.tiktoken"
    path.write_bytes(vocabulary)
    with pytest.raises(UserError, match=r"broken\.tiktoken") as caught:
        load_tokenizer(str(path))
    assert message in str(caught.value)


def test_a_small_vocabulary_is_accepted(tmp_path):
    path = tmp_path / "small.tiktoken"
    path.write_bytes(b"".join(GOOD))
    assert load_tokenizer(str(path)).encode("中") == list("中".encode())


def test_a_tokenizer_that_does_not_exist_names_the_command_to_train_one(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.tiktoken is not there.*python data/train_tokenizer\.py"):
        load_tokenizer(str(tmp_path / "nowhere.tiktoken"))


def test_a_damaged_gpt2_vocabulary_is_not_used_and_the_command_restores_it(tmp_path, monkeypatch):
    path = tmp_path / "data" / "gpt2.tiktoken"
    path.parent.mkdir()
    path.write_bytes(GPT2_PATH.read_bytes()[:-9])
    monkeypatch.setattr("minigpt.tokenizer.GPT2_PATH", path)
    with pytest.raises(UserError, match="damaged") as caught:
        load_tokenizer()
    assert str(caught.value).endswith("data/gpt2.tiktoken")  # as git, run in the root, knows the file


def test_texts_encoded_by_one_call_are_those_encoded_one_by_one():
    compared, rng, alphabet = 0, random.Random(3), "东河的ab1 '\n\r。，“”##😀\u200b"
    for tokenizer in (load_tokenizer(), byte_tokenizer(), train_on_sample()):
        for _ in range(200):
            texts = ["".join(rng.choices(alphabet, k=rng.randrange(1, 12))) for _ in range(rng.randrange(1, 5))]
            joined = tokenizer.encode_joined(texts)
            if joined is None:
                assert any("\n" in text or text != text.strip() for text in texts)
                continue
            ids, lengths = joined
            got = [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]
            assert got == [tokenizer.encode(text) for text in texts]
            assert got == [tokenizer.encode_array(text).tolist() for text in texts]
            compared += 1
    assert compared > 50


def test_a_million_spaces_are_encoded_like_one():
    for tokenizer in (load_tokenizer(), byte_tokenizer()):
        assert tokenizer.encode("桥" + " " * 10**6 + "河") == tokenizer.encode("桥 河")


def test_after_many_characters_arrays_are_encoded_by_compiled_code_with_the_same_ids(monkeypatch):
    monkeypatch.setattr("minigpt.tokenizer.COMPILE_CHARS", 20)
    texts = ["第3镇位于东河边。", "他们's 去了<|endoftext|>", "\U000f0000 é " + "-" * 300]
    for tokenizer in (load_tokenizer(), load_vocabulary("trained", train_on_sample().vocabulary)):
        before = [tokenizer.encode_array(texts[0]).tolist(), *map(tokenizer.encode, texts)]
        for _ in range(3):
            after = [tokenizer.encode_array(text).tolist() for text in texts]
        assert [before[0], *after] == before and tokenizer._compiled


def test_a_tokenizer_of_another_pattern_is_not_compiled(monkeypatch):
    monkeypatch.setattr("minigpt.tokenizer.COMPILE_CHARS", 1)
    tokenizer = Tokenizer(
        "other", format_vocabulary({bytes([b]): b for b in range(256)}, SPECIALS, r"\p{L}+|[^\p{L}]+")
    )
    assert tokenizer.encode_array("桥 1").tolist() == tokenizer.encode("桥 1") and not tokenizer._compiled
