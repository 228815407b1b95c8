"""Solutions of the exercises of chapter 6, and their checks."""

import itertools
import math
from collections import Counter

import numpy as np

from data_utils import open_rows
from minigpt.checkpoint import load_checkpoint, load_model
from minigpt.inference.likelihood import likelihood
from minigpt.tokenizer import load_tokenizer


def exercise_1():
    rows, _ = open_rows("data/processed_demo", "train")
    return load_tokenizer("out/demo.tiktoken").n_vocab - len(np.unique(rows))


def check_1(exercise):
    value, right = exercise(), exercise_1()
    if not isinstance(value, (int, np.integer)):
        return "return a whole number", "请返回一个整数"
    if value == load_tokenizer("out/demo.tiktoken").n_vocab - right:
        return "that many do occur; how many do not?", "这是出现了的个数；没有出现的呢？"
    if value != right:
        return "np.unique gives the ids that occur", "np.unique 给出出现过的 id"
    return None


def exercise_2(words):
    pairs = Counter()
    for word, count in words.items():
        for pair in itertools.pairwise(word):
            pairs[pair] += count
    return max(pairs, key=pairs.get)


def check_2(exercise):
    cases = [
        {("国", "家"): 3, ("国", "王"): 1},
        {("a", "b", "c"): 2, ("b", "c"): 5, ("a", "b"): 4},
        {("首", "都"): 1, ("首", "都", "的"): 2, ("的", "国家"): 4},
        {("x", "y", "x", "y"): 3, ("y", "z"): 5},
    ]
    for words in cases:
        value = exercise(dict(words))
        if value is None:
            return "return a pair", "请返回一对 token"
        if tuple(value) != exercise_2(words):
            return (
                f"of {words} another pair is the most frequent: does each word count as often as it occurs, and each "
                "pair within a word as often as it stands there?",
                f"{words} 中最常见的是另一对：每个词是否按出现次数计？同一个词里出现几次的一对是否计了几次？",
            )
    return None


def exercise_3(nats_a_token, tokens, characters):
    return nats_a_token * tokens / math.log(2) / characters


def check_3(exercise):
    model, tokenizer = load_model(load_checkpoint("out/demo/last.pt"))
    rows, meta = open_rows("data/processed_demo", "val")
    found = likelihood(model, rows[:20], meta, 0, tokenizer, train_on_eot=False)
    for nats, tokens, characters in ((math.log(2), 100, 100), (found.loss, found.tokens, found.characters)):
        value, right = exercise(nats, tokens, characters), exercise_3(nats, tokens, characters)
        if not isinstance(value, (int, float)):
            return "return a number", "请返回一个数"
        if abs(value - right * math.log(2)) < 1e-6:
            return "that is nats a character", "这是每字符的奈特数"
        if abs(value - right) > 1e-6:
            return (
                "how many nats has the whole text? how many bits are that? share them out among the characters",
                "整段文本共多少奈特？合多少比特？再平均到每个字符",
            )
    return None
