"""Solutions of the exercises of chapter 10, and their checks."""

import re

import numpy as np

from minigpt.metrics import compare, interval, rouge_l

REFERENCE, SYMBOL = "铁的元素符号是Fe。", "Fe"
TOLERANCE = 0.006  # between two bootstraps with other random numbers


def exercise_1():
    return 100 * (0.2 / 0.05) ** 2  # the width falls with the square root of the number


def exercise_2(a, b):
    rng, difference = np.random.default_rng(0), np.asarray(a) - np.asarray(b)
    drawn = rng.integers(len(difference), size=(2000, len(difference)))
    low, high = np.quantile(difference[drawn].mean(axis=1), [0.025, 0.975])
    return low, high


def exercise_3():
    return "铁的元素符号是Au。", "Fe"


def check_1(exercise):
    found = exercise()
    if not isinstance(found, int | float):
        return "return a number", "请返回一个数"
    # Try it: over 100 scores of which half are 1, the interval is about 0.2 wide.
    scores = np.arange(max(100, min(int(found), 10**6))) % 2
    low, high = interval(scores, resamples=500)
    if abs(high - low - 0.05) < 0.006:
        return None
    return (
        "look at the table of `10_bootstrap.py interval`: how many times the questions halve the width?",
        "请看 `10_bootstrap.py interval` 的表：问题数变为几倍，宽度才减半？",
    )


def check_2(exercise):
    rng = np.random.default_rng(1)
    a = (rng.random(600) < 0.8).astype(float)
    b = np.where(rng.random(600) < 0.9, a, 0.0)  # the same questions: mostly right and wrong together
    found, right = exercise(a.copy(), b.copy()), compare(a, b, resamples=4000)
    if not isinstance(found, tuple | list | np.ndarray) or len(found) != 2:
        return "return two numbers, (low, high)", "请返回两个数 (low, high)"
    low, high = found
    if abs(low - right["low"]) < TOLERANCE and abs(high - right["high"]) < TOLERANCE:
        return None
    if high - low > 1.3 * (right["high"] - right["low"]):
        return (
            "too wide: the same drawn questions have to be used for both models",
            "区间太宽：两个模型要用同一批抽出的问题",
        )
    return (
        "draw as many questions as there are, with replacement; the edges are the quantiles 0.025 and 0.975",
        "抽取的问题数与原来相同，可重复；两端是 0.025 与 0.975 分位数",
    )


def check_3(exercise):
    wrong, right = exercise()
    if not (isinstance(wrong, str) and isinstance(right, str)):
        return "return two texts", "请返回两段文本"
    if SYMBOL in wrong or not re.search("[A-Za-z]", wrong) or rouge_l(wrong, REFERENCE)[2] < 0.8:
        f = rouge_l(wrong, REFERENCE)[2]
        return (
            f"the first text has an F of {f:.2f}; it must name another symbol than Fe, and should keep the "
            "form of the right answer",
            f"第一段的 F 是 {f:.2f}；它要写出 Fe 以外的符号，并保持正确答案的形式",
        )
    if SYMBOL not in right or rouge_l(right, REFERENCE)[2] >= 0.5:
        f = rouge_l(right, REFERENCE)[2]
        return (
            f"the second text has an F of {f:.2f}; it has to name Fe, in quite other words, or in very few",
            f"第二段的 F 是 {f:.2f}；它要写出 Fe，但用很不同的说法，或者很短",
        )
    return None
