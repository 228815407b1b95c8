"""Solutions of the exercises of chapter 5, and their checks."""

import json
import math
import tempfile
from pathlib import Path

import torch

from minigpt.run_log import log_lines
from minigpt.tokenizer import load_tokenizer


def exercise_1():
    return math.log(load_tokenizer().n_vocab)


def check_1(exercise):
    value = exercise()
    right = math.log(load_tokenizer().n_vocab)
    if not isinstance(value, (int, float)):
        return "return a number", "请返回一个数"
    if abs(value - right / math.log(2)) < 0.01:
        return "that is in bits; the exercise asks for nats", "这是比特，题目要的是奈特"
    if abs(value - right) > 0.01:
        return (
            "all ids are equally likely: what is the probability of one, and what is its surprise?",
            "所有 id 的概率相等：每个是多少？对应的意外程度是多少？",
        )
    return None


def exercise_2(logits, targets):
    logits = logits - logits.max(dim=1, keepdim=True).values  # the same for every token: no probability changes
    log_sums = logits.exp().sum(dim=1).log()
    return (log_sums - logits[torch.arange(len(targets)), targets]).mean().item()


def check_2(exercise):
    generator = torch.Generator().manual_seed(0)
    for scale in (1.0, 1000.0):
        logits = scale * torch.randn(7, 11, generator=generator)
        targets = torch.randint(11, (7,), generator=generator)
        value = exercise(logits.clone(), targets.clone())
        if value is None:
            return "return the mean", "请返回平均值"
        right = torch.nn.functional.cross_entropy(logits, targets).item()
        if not abs(float(value) - right) <= 1e-4 * max(1.0, right):
            if scale == 1.0:
                return (
                    "on small scores it is not torch's value: exp and divide by the sum for the probabilities, "
                    "take the right one of each row, -ln of it, the mean",
                    "分数不大时就与 torch 不同：取 exp 并除以总和得到概率，每行取正确的那个，取 -ln，再平均",
                )
            return (
                "it is right on small scores, but exp(1000) is infinite: what may you subtract from all scores of a "
                "position without changing a probability?",
                "分数不大时对了，但 exp(1000) 是无穷大：从一个位置的所有分数里减去什么，概率不变？",
            )
    return None


def exercise_3(path):
    losses = [(line["val_loss"], line["step"]) for line in log_lines(path) if line["val_loss"] is not None]
    best, step = min(losses)
    return step, 100 * (losses[-1][0] / best - 1)


def check_3(exercise):
    made_up = [(10, None), (20, 4.0), (30, None), (40, 2.5), (50, None), (60, 2.75), (70, 3.0)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        path.write_text("".join(json.dumps({"step": s, "val_loss": v}) + "\n" for s, v in made_up), encoding="utf-8")
        for log in (path, Path("out/demo/log.jsonl")):
            value, (step, percent) = exercise(str(log)), exercise_3(log)
            if not isinstance(value, (tuple, list)) or len(value) != 2:
                return "return two numbers: step, percent", "请返回两个数：步，百分比"
            if value[0] != step:
                return f"{log.name}: at step {value[0]} the validation loss is not the lowest", (
                    f"{log.name}：第 {value[0]} 步的验证损失不是最低的"
                )
            if abs(100 * value[1] - percent) < 0.1 < abs(value[1] - percent):
                return "the step is right; that is a fraction: for percent, times 100", (
                    "步对了；这是小数，百分数要乘以 100"
                )
            if abs(value[1] - percent) > 0.1:
                return "the step is right; percent: of the lowest loss, not of the last one", (
                    "步对了；百分比以最低的损失为基数，不是以最后的"
                )
    return None
