"""Solutions of the exercises of chapter 9, and their checks."""

import json
import math
from pathlib import Path

import torch

from minigpt.tuning.grpo import group_advantages

LOGS = [Path("out/course") / run / "log.jsonl" for run in ("grpo_exact", "grpo_long", "grpo_held")]


def exercise_1():
    chosen_gain, rejected_gain = -1.5 - -2.0, -5.0 - -3.0
    margin = 0.2 * (chosen_gain - rejected_gain)
    return -math.log(1 / (1 + math.exp(-margin)))


def exercise_2(rewards):
    centered = rewards - rewards.mean(dim=1, keepdim=True)
    deviation = rewards.std(dim=1, correction=0, keepdim=True)
    return torch.where(deviation > 0, centered / deviation.clamp(min=1e-8), 0.0)


def exercise_3(lines):
    for line in lines:
        if line["reward"] > lines[0]["reward"] and line["exact"] <= lines[0]["exact"] - 0.1:
            return line["step"]
    return None


def check_1(exercise):
    found, right = exercise(), torch.nn.functional.softplus(torch.tensor(-0.2 * ((-1.5 + 2.0) - (-5.0 + 3.0))))
    if not isinstance(found, int | float):
        return "return a number", "请返回一个数"
    if abs(found - float(right)) < 0.002:
        return None
    if found > math.log(2):
        return (
            "the chosen answer has gained and the rejected one has lost, so the loss is below log 2; mind the signs",
            "较好的答案概率上升、较差的下降，损失应当小于 log 2；请注意正负号",
        )
    return (
        "two gains, their difference times beta, the sigmoid of it, its natural logarithm, a minus",
        "先算两个增益，再求差并乘以 beta，取 sigmoid，取自然对数，最后加负号",
    )


def check_2(exercise):
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5], [0.2, 0.9, 0.4, 0.4]])
    found = exercise(rewards.clone())
    if not isinstance(found, torch.Tensor) or found.shape != rewards.shape:
        return "return a tensor of the shape of rewards", "请返回与 rewards 形状相同的张量"
    if found.isnan().any() or found[1].any():
        return (
            "look at a question whose answers all earn the same: its standard deviation is 0",
            "请看同题奖励都相等的情形：此时标准差为 0",
        )
    if not torch.allclose(found, group_advantages(rewards), atol=1e-3):
        return (
            "mean and standard deviation are those of one question (a row), and the latter is with correction=0",
            "均值与标准差都按同一问题（一行）计算，标准差用 correction=0",
        )
    return None


def check_3(exercise):
    made_up = [
        {"step": 1, "reward": 0.3, "exact": 0.8, "kl": 0.0},
        {"step": 2, "reward": 0.2, "exact": 0.5, "kl": 0.1},  # worse in both: no trick
        {"step": 3, "reward": 0.4, "exact": 0.75, "kl": 0.1},  # a small loss
        {"step": 4, "reward": 0.5, "exact": 0.6, "kl": 0.3},
        {"step": 5, "reward": 0.6, "exact": 0.1, "kl": 0.9},
    ]
    logs = [made_up, made_up[:3]]
    logs += [[json.loads(line) for line in path.read_text("utf-8").splitlines()] for path in LOGS if path.exists()]
    for lines in logs:
        if exercise([dict(line) for line in lines]) != exercise_3(lines):
            return (
                "both conditions have to hold in the same line, each against the first line; and the first such counts",
                "两个条件要在同一行同时成立，都与第一行相比，并且取最早的一行",
            )
    return None
