"""Texts on which tokenizers are compared, and a tokenizer that is trained on the sample corpus."""

import json
import random
import unicodedata
from functools import cache

from corpora import ROOT
from evaluation_fakes import load_script

from minigpt.tokenizer import QWEN2_PATTERN, Tokenizer, format_vocabulary

TRAINING_PARAGRAPHS, TRAINED_RANKS, MAX_TOKEN_CHARS = 3000, 2000, 8
# What splitting patterns and Unicode's classes differ on.
ODD_PARTS = [
    *"东河的，。！？”’「」、a1sStTlLdDreVEmM '\"\n\r\t.!?…-_=*/\\",
    "\r\n", " \n", "  ", "   ", "\t\t", "\n\n", "#", "##", "###", "#####", " ##", "=====", "\u3000", "\xa0",
    "\x85", "\u2028", "\u200b", "\ufeff", "\x00", "\x1f", "\ue000", "ſ", "'ſ", "'S", "’s", "ı", "İ", "ß", "e\u0301",
    "\u0301", "नमस्ते", "שלום", "مرحبا", "カタカナ", "ひら", "한국", "ไทย", "где", " word", " слово",
    "😀", "👨‍👩‍👧", "👍🏽", "🇨🇳", "〇", "々", "⺀", "㐂", "𠀀",
    "𪚥", "𰻝", "䶮", "Ⅳ", "½", "²", "٣", "１２", "2024", "10000000",
]  # fmt: skip
# Of newer characters not all programs know whether they are letters.
OLD_CHARACTERS = [chr(i) for i in range(0x30000) if unicodedata.ucd_3_2_0.category(chr(i)) not in ("Cn", "Cs")]


@cache
def sample_paragraphs():
    """The paragraphs of the sample corpus, shuffled."""
    paths = sorted((ROOT / "data/wiki_sample").glob("*.jsonl"))
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    paragraphs = [part for line in lines for part in json.loads(line)["text"].split("\n") if part]
    random.Random(1).shuffle(paragraphs)
    return paragraphs


def odd_strings(count, seed):
    """Random valid texts: a third of parts that are split oddly, a third of any characters, the others of both."""
    rng = random.Random(seed)
    kinds = [(ODD_PARTS,), (OLD_CHARACTERS,), (ODD_PARTS, OLD_CHARACTERS)]
    return ["".join(rng.choice(rng.choice(kinds[i % 3])) for _ in range(rng.randrange(1, 40))) for i in range(count)]


@cache
def train_on_sample():
    """A tokenizer of 2,003 ids as data/train_tokenizer.py trains it."""
    train_ranks = load_script("data/train_tokenizer.py").train_ranks
    ranks = train_ranks(sample_paragraphs()[-TRAINING_PARAGRAPHS:], TRAINED_RANKS, MAX_TOKEN_CHARS)
    specials = {special: len(ranks) + i for i, special in enumerate(("eot", "pad", "answer"))}
    return Tokenizer("trained.tiktoken", format_vocabulary(ranks, specials, QWEN2_PATTERN))
