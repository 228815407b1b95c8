"""The compiled encoding gives tiktoken's ids for any text, by both patterns."""

import random

import numpy as np
import pytest
import tiktoken
from tokenizing import train_on_sample

from minigpt.compiled_encoding import MAX_RUN_BYTES, CompiledEncoder
from minigpt.tokenizer import GPT2_PATTERN, QWEN2_PATTERN, load_tokenizer

# Characters that the patterns and the encodings treat differently, several of each kind.
ALPHABETS = [
    "的一是河。，、“”《》中国年人大",
    "the and ing ' s t ll ve re 'S 'LL 'vE 1 2 3 . , - ",
    " \t\n\r\x0b\x0c\x1c\x85\xa0\u2003\u2028\u3000",
    "éßſñжшעעمن๑ทकि한국日本のン龍喚醒裏覚醒",
    "0123456789٣五½²Ⅷ㊿",
    "\0\x01\x7f\u200b\u200d\ufeff\ue000\ufffd\ufffe\u0301\u20dd\ufe0f",
    "😀👨‍👩‍👧𠀀𪚥𝒜🄰\U0002ffff\U0003ffff",
    "##<|endoftext|>\"“'’-—…{}[]()_=+*/\\@#$%^&~`|<>?!;:",
]


def texts_of_all_kinds(seed, n, longest):
    """n texts: of one alphabet, of two or of all, of any code points, with long runs of one character."""
    rng = random.Random(seed)
    for _ in range(n):
        alphabet = "".join(rng.sample(ALPHABETS, rng.choice([1, 2, 2, len(ALPHABETS)])))
        length = rng.randrange(longest)
        text = "".join(rng.choices(alphabet, k=length))
        if rng.random() < 0.3:
            text += "".join(chr(c) for c in rng.choices(range(0x40000), k=length) if not 0xD800 <= c < 0xE000)
        if rng.random() < 0.3:
            text += rng.choice(text or " ") * rng.randrange(2 * longest) + "".join(rng.choices(alphabet, k=5))
        yield text


@pytest.fixture(scope="module")
def encoders():
    """[(`CompiledEncoder`, tiktoken's encoding)]: GPT-2's tokens and those of a small tokenizer, by both patterns."""
    made = []
    for ranks in (load_tokenizer().ranks, train_on_sample().ranks):
        for pattern in (GPT2_PATTERN, QWEN2_PATTERN):
            encoding = tiktoken.Encoding("expected", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
            made.append((CompiledEncoder(ranks, pattern == QWEN2_PATTERN), encoding))
    return made


def test_the_ids_of_texts_of_all_kinds_are_those_of_tiktoken(encoders):
    for encoder, encoding in encoders:
        n_left = 0
        for text in texts_of_all_kinds(seed=0, n=600, longest=60):
            ids = encoder.encode(text)
            n_left += ids is None
            assert ids is None or ids.tolist() == encoding.encode_ordinary(text), text
        assert n_left < 50  # runs of one character that tokens join


def test_every_character_in_spaces_letters_and_digits_is_encoded_as_by_tiktoken(encoders):
    characters = [chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000]
    for encoder, encoding in encoders:
        text = "".join(f"a{c} {c}1{c}{c}." for c in characters)
        np.testing.assert_array_equal(encoder.encode(text), encoding.encode_to_numpy(text))


def test_what_is_not_compiled_is_left_to_tiktoken(encoders):
    for encoder, encoding in encoders:
        for text in ("桥" + "  " * MAX_RUN_BYTES + "河", "a\U00040000", "a\U0010ffff", "a\ud800"):
            ids = encoder.encode(text)
            assert ids is None or ids.tolist() == encoding.encode_ordinary(text)
        assert all(encoder.encode(text) is None for text in ("a\U00040000", "a\ud800"))
        assert encoder.encode("").tolist() == []
    of_gpt2, _ = encoders[0]
    assert of_gpt2.encode("-" * MAX_RUN_BYTES) is not None and of_gpt2.encode("-" * (MAX_RUN_BYTES + 1)) is None


def test_tokens_that_merges_do_not_reach_are_noticed(encoders):
    assert all(encoder.is_exact for encoder, _ in encoders)
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"abc": 256}
    assert not CompiledEncoder(ranks, is_qwen2=False).is_exact
