"""Dropping the title line, cleaning, and cutting at sentences: by hand, and against slow reference code."""

import itertools
import random
import re

import numpy as np
import pytest
from corpora import byte_tokenizer
from tokenizing import train_on_sample

from minigpt.corpus.cleaning import drop_litter, drop_title
from minigpt.corpus.cutting import cut_all, cut_text, end_of_text, last_sentence_end
from minigpt.tokenizer import load_tokenizer

# Cleaning


@pytest.mark.parametrize(
    ("text", "title", "rest"),
    [
        ("桥\n\n桥在河上。", "桥", "桥在河上。"),
        ("桥\r\n\r\n桥在河上。", "桥", "桥在河上。"),
        ("桥 \n \t\n桥在河上。", "桥", "桥在河上。"),
        ("桥（建筑）\n\n桥在河上。", "桥", "桥在河上。"),  # short, no sentence end
        ("你在哪里？\n\n歌名。", "你在哪里？", "歌名。"),  # the title itself, though it ends a sentence
        ("桥\n\n第一段。\n\n第二段。", "桥", "第一段。\n\n第二段。"),  # only up to the first blank line
        ("桥在河上。\n\n河在桥下。", "桥", "桥在河上。\n\n河在桥下。"),  # no title line: a paragraph stays
        ("桥" * 41 + "\n\n河。", "桥", "桥" * 41 + "\n\n河。"),  # long, so a paragraph
        ("桥" * 41 + "\n\n河。", "桥" * 41, "河。"),
        ("一\n二\n\n三。", "", "一\n二\n\n三。"),  # two lines are no title
        ("桥\n桥在河上。", "桥", "桥\n桥在河上。"),  # no blank line
        ("桥在河上。", "", "桥在河上。"),
    ],
)
def test_the_title_line_is_dropped_and_a_first_paragraph_is_not(text, title, rest):
    assert drop_title(text, title) == rest


@pytest.mark.parametrize(
    "litter",
    [
        *("（）", "()", "「」", "（；）", "（，）", "《》", "“”", "-{}-", "<div>", "\n", "\r\n", "（ ，；）", "( , )"),
        *('<div class="a">', "</div>", "（《》）", "《（“”）》", "(-{}-)", "「-{（）}-」", "（\n）", "-{<div>}-"),
    ],
)
def test_litter_goes_whole_also_when_nested(litter):
    assert drop_litter(f"桥{litter}在{litter}{litter}河上。{litter}") == "桥在河上。"


@pytest.mark.parametrize(
    "text",
    ["（一）", "(a)", "「桥」", "《河》", "“上”", "-{桥}-", "<b>", "<divide>", "a - b", "他（，她）", "（", "）（"],
)
def test_what_has_content_stays(text):
    assert drop_litter(f"桥{text}。") == f"桥{text}。"


# Cutting


def sentence_ends(text):
    """Positions behind every sentence, a character at a time."""
    ends, i = [], 0
    while i < len(text):
        i += 1
        if text[i - 1] in "。！？":
            while i < len(text) and text[i] in "。！？":
                i += 1
            while i < len(text) and text[i] in "”’」』\"'":
                i += 1
            ends.append(i)
    return ends


@pytest.mark.parametrize(
    ("text", "tail"),
    [
        ("一。二！三？四", "四"),
        ("他说：“走。”她走了。", ""),
        ("「真的？！」『真的。』好", "好"),
        ("一，二；三.四", "一，二；三.四"),
        ("", ""),
    ],
)
def test_a_text_ends_behind_its_last_sentence_and_the_closing_quotes(text, tail):
    assert text[last_sentence_end(text) :] == tail
    assert last_sentence_end(text) == max([0, *sentence_ends(text)])


class PerCharacter:
    """A tokenizer with a token for every character."""

    token_lengths = np.array([len(chr(i).encode(errors="replace")) for i in range(0x20001)])

    @staticmethod
    def encode_array(text):
        return np.array([ord(c) for c in text], dtype=np.uint32)

    encode = staticmethod(lambda text: [ord(c) for c in text])


def cut(text, tokenizer, limit, overflow):
    """The result of `cut_text`, with ids as lists."""
    rows, tail = cut_text(text, tokenizer, limit, overflow)
    return [(ids.tolist(), n_chars) for ids, n_chars in rows], tail


def characters(rows):
    return [([ord(c) for c in row], len(row)) for row in rows]


@pytest.mark.parametrize(
    ("limit", "kept", "lost"), [(7, "一二。三四。", 1), (6, "一二。三四。", 1), (5, "一二。", 4), (3, "一二。", 4)]
)
def test_truncate_keeps_the_full_sentences_that_fit_to_the_last_token(limit, kept, lost):
    assert cut("一二。三四。五", PerCharacter, limit, "truncate") == (characters([kept]), lost)


@pytest.mark.parametrize(("text", "limit"), [("一二。三。", 2), ("没有句号", 9), ("", 9)])
def test_truncate_gives_no_row_where_no_full_sentence_fits(text, limit):
    assert cut_text(text, PerCharacter, limit, "truncate") == ([], len(text))


@pytest.mark.parametrize(
    ("text", "limit", "rows", "tail"),
    [
        ("一二。三四。五六。尾", 6, ["一二。三四。", "五六。"], 1),
        ("一二。三四。五六。", 5, ["一二。", "三四。", "五六。"], 0),
        ("一，二三四，五六。七。", 5, ["一，", "二三四，", "五六。七。"], 0),  # at clauses
        ("一二三四五六。七。", 3, ["一二三", "四五六", "。七。"], 0),  # at characters
        ("没有句号", 3, ["没有句", "号"], 0),  # a text without any end is kept whole
    ],
)
def test_split_loses_nothing_but_the_tail(text, limit, rows, tail):
    assert cut(text, PerCharacter, limit, "split") == (characters(rows), tail)


@pytest.mark.parametrize(
    ("text", "overflow", "end"),
    [
        ("The bridge. It is old", "truncate", "The bridge."),  # English
        ("The bridge. It is old", "split", "The bridge. It is old"),
        ("床前\n明月\n光", "truncate", "床前\n明月\n光"),  # lines
        ("床前明月光 ", "truncate", ""),
        ("床前明月光 ", "split", "床前明月光"),
        ("桥。尾巴", "truncate", "桥。"),
        ("桥。尾巴", "split", "桥。"),  # a short rest is a fragment
        ("桥。" + "长" * 101, "split", "桥。" + "长" * 101),
        ("桥。" + "长" * 100, "split", "桥。"),
        ("桥" * 2000 + "。" + "长" * 200, "split", "桥" * 2000 + "。"),
        ("桥。" + "长" * 101, "truncate", "桥。"),
        ("桥。尾巴\n", "whole", "桥。尾巴"),
        (" \n", "whole", ""),
        (" \n", "split", ""),
    ],
)
def test_a_text_without_chinese_sentence_ends_or_with_a_long_rest_is_not_lost(text, overflow, end):
    assert text[: end_of_text(text, overflow)] == end
    rows, lost = cut(text, PerCharacter, 50, overflow)
    assert lost == len(text) - sum(n for _, n in rows) and (overflow == "truncate" or lost == len(text) - len(end))


def test_english_is_cut_at_sentences_then_words_and_lines_before_clauses():
    text = "One bridge is old. The other one is a new bridge of steel and stone"
    rows, _ = cut(text, PerCharacter, 20, "split")
    assert ["".join(map(chr, ids)) for ids, _ in rows] == [
        "One bridge is old.", " The other one is a", " new bridge of steel", " and stone",
    ]  # fmt: skip
    rows, _ = cut("第一行，还有\n第二行，也有\n第三行", PerCharacter, 8, "split")
    assert ["".join(map(chr, ids)) for ids, _ in rows] == ["第一行，还有\n", "第二行，也有\n", "第三行"]


def random_texts(n, seed):
    """Texts full of ends, quotes, commas, double hashes and characters of one to four bytes, each with an end."""
    rng = random.Random(seed)
    alphabet = '东西南北河桥镇的是在12ab  ，；，。。！？”」"《#😀𠀀'
    texts = [("".join(rng.choices(alphabet, k=rng.randrange(70))), rng.randrange(7, 40)) for _ in range(n)]
    return [(text, limit) for text, limit in texts if sentence_ends(text)]


TOKENIZERS = {
    "bytes": byte_tokenizer(), "gpt2": load_tokenizer(), "characters": PerCharacter, "trained": train_on_sample(),
}  # fmt: skip
ENCODERS = ["bytes", "gpt2", "trained"]


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_truncate_agrees_with_trying_every_sentence_end(tokenizer):
    encode = tokenizer.encode
    for text, limit in random_texts(600, seed=1):
        best = max(end for end in [0, *sentence_ends(text)] if len(encode(text[:end])) <= limit)
        expected = [(encode(text[:best]), best)] if best else []
        assert cut(text, tokenizer, limit, "truncate") == (expected, len(text) - best)


def by_trial(text, encode, limit):
    """The rows of a text, each filled by trying; None where a clause is longer than a row."""
    rows = []
    for sentence in (text[a:b] for a, b in itertools.pairwise([0, *sentence_ends(text)])):
        short = len(encode(sentence)) <= limit
        for unit in [sentence] if short else re.findall("[^，；]*[，；]|[^，；]+", sentence):
            if len(encode(unit)) > limit:
                return None
            if rows and len(encode(rows[-1] + unit)) <= limit:
                rows[-1] += unit
            else:
                rows.append(unit)
    return rows


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_split_agrees_with_filling_row_after_row_by_trial(tokenizer):
    encode, compared, finer = tokenizer.encode, 0, 0
    for text, limit in random_texts(900, seed=2):
        rows, tail = cut(text, tokenizer, limit, "split")
        end, place = max([0, *sentence_ends(text)]), 0
        expected = by_trial(text, encode, limit)
        if expected is None:  # between characters: nothing is lost, and each row has its text's ids
            for ids, n_chars in rows:
                assert ids == encode(text[place : place + n_chars]) and len(ids) <= limit
                place += n_chars
            assert (place, tail) == (end, len(text) - end)
            finer += 1
        else:
            assert (rows, tail) == ([(encode(row), len(row)) for row in expected], len(text) - end)
            compared += len(rows) > 1
    assert compared > 100 and finer > 50


def test_a_run_of_spaces_longer_than_a_row_is_cut_too():
    rows, tail = cut_text("河" + " " * 50 + "。", byte_tokenizer(), 16, "split")
    assert sum(n_chars for _, n_chars in rows) == 52 and max(len(ids) for ids, _ in rows) <= 16 and tail == 0


@pytest.mark.parametrize("overflow", ["truncate", "split", "whole"])
@pytest.mark.parametrize("tokenizer", [TOKENIZERS[name] for name in ENCODERS], ids=ENCODERS)
def test_texts_cut_together_are_those_cut_one_by_one(tokenizer, overflow):
    texts = [text for text, _ in random_texts(400, seed=4)]
    for limit, some in itertools.product((16, 60, 500), (texts, [text for text in texts if text.endswith("。")], [])):
        cuts = cut_all(some, tokenizer, limit, [overflow] * len(some))
        expected = [cut_text(text, tokenizer, limit, overflow) for text in some]
        rows = [(ids.tolist(), n_chars) for of_text, _ in expected for ids, n_chars in of_text]
        assert cuts.rows.tolist() == [len(of_text) for of_text, _ in expected]
        assert cuts.lost.tolist() == [lost for _, lost in expected]
        assert cuts.ids.tolist() == [i for ids, _ in rows for i in ids]
        assert (cuts.lengths.tolist(), cuts.characters.tolist()) == (
            [len(ids) for ids, _ in rows],
            [n for _, n in rows],
        )
