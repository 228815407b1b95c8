"""Solutions of the exercises of chapter 11, and their checks."""

import json
from pathlib import Path

import numpy as np
import torch

RESULTS = [Path("out/course/prompts") / f"{model}.json" for model in ("demo_sft", "taught")]


def exercise_1():
    return 0.8**2 / (0.8**2 + 0.2**2)  # dividing log p by 0.5 squares p


def exercise_2(probabilities, top_p):
    order = np.argsort(-probabilities)
    before = np.cumsum(probabilities[order]) - probabilities[order]  # probability of the likelier ones
    left = np.zeros_like(probabilities)
    kept = order[before < top_p]
    left[kept] = probabilities[kept]
    return left / left.sum()


def exercise_3(before, after):
    return {name for name in before if before[name][2] < after[name][1] or after[name][2] < before[name][1]}


def check_1(exercise):
    found, right = exercise(), torch.softmax(torch.tensor([0.8, 0.2]).log() / 0.5, dim=0)[0]
    if not isinstance(found, int | float):
        return "return a number", "请返回一个数"
    if abs(found - float(right)) < 0.002:
        return None
    if found < 0.8:
        return "a temperature below 1 makes the likelier token likelier still", "温度低于 1，较可能的 token 会更可能"
    return (
        "the scores are log 0.8 and log 0.2: divide both by 0.5, then softmax",
        "两个得分是 log 0.8 和 log 0.2：都除以 0.5，再做 softmax",
    )


def check_2(exercise):
    for probabilities, top_p in (([0.1, 0.5, 0.3, 0.1], 0.7), ([0.05, 0.9, 0.05], 0.6), ([0.25, 0.4, 0.35], 1.0)):
        probabilities = np.array(probabilities)
        found, right = exercise(probabilities.copy(), top_p), exercise_2(probabilities, top_p)
        if not isinstance(found, np.ndarray) or found.shape != probabilities.shape:
            return "return a numpy array of the same shape", "请返回形状相同的 numpy 数组"
        if (found > 0).sum() != (right > 0).sum():
            return (
                f"of {probabilities.tolist()} at top_p {top_p} another number is left; the token with which the sum "
                "reaches top_p belongs to them",
                f"{probabilities.tolist()} 在 top_p 为 {top_p} 时，留下的个数不对；使总和达到 top_p 的那一个也要留下",
            )
        if not np.allclose(found, right):
            return "each token keeps its place, and the sum is 1 again", "每个 token 保持原来的位置，总和重新为 1"
    return None


def check_3(exercise):
    made_up = [
        {"a": [0.5, 0.4, 0.6], "b": [0.0, 0.0, 0.0], "c": [0.9, 0.85, 0.95]},
        {"a": [0.6, 0.5, 0.7], "b": [0.8, 0.7, 0.9], "c": [0.7, 0.6, 0.8]},
    ]
    pairs = [made_up]
    if all(path.exists() for path in RESULTS):
        pairs.append([json.loads(path.read_text(encoding="utf-8")) for path in RESULTS])
    for before, after in pairs:
        found = exercise(before, after)
        if not isinstance(found, set | list | tuple):
            return "return a set of names", "请返回名称的集合"
        if set(found) != exercise_3(before, after):
            return (
                "two intervals do not overlap if one ends before the other begins; either model may be the better one",
                "一个区间结束于另一个开始之前，才算不重叠；两个模型中哪一个更好都有可能",
            )
    return None
