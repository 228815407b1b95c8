"""Reference solutions of chapter 13, and the checks of answers."""

import math
from fractions import Fraction

import numpy as np

PARAMETERS, BYTES_PER_PARAMETER, BYTES_PER_GPU = 6_600_000_000, 16, 10_000_000_000
LEVELS = 7


def exercise_1():
    return math.ceil(6.6e9 * 16 / 10e9)


def exercise_2(block):
    scale = np.abs(block).max() / 7
    return np.round(block / scale) * scale


def exercise_3(sums, counts):
    loss = sum(sums) / sum(counts)
    means = [total / count for total, count in zip(sums, counts, strict=True)]
    return loss, sum(means) / len(means) - loss


def check_1(exercise):
    answer = exercise()
    # The fewest GPUs that hold everything.
    enough = lambda gpus: gpus * BYTES_PER_GPU >= PARAMETERS * BYTES_PER_PARAMETER  # noqa: E731
    if not isinstance(answer, int) or not enough(answer) or enough(answer - 1):
        return (
            "all bytes of the weights, gradients and averages, divided among the GPUs; a part of a GPU is a GPU",
            "把权重、梯度和平均值的全部字节分给各张显卡；不足一张也要算一张",
        )
    return None


def check_2(exercise):
    random = np.random.default_rng(13)
    for _ in range(20):
        block = random.normal(0, 0.1, 32).astype(np.float32)
        answer = exercise(block.copy())
        if answer is None or np.shape(answer) != (32,):
            return "return an array of 32 numbers", "返回 32 个数的数组"
        scale = np.abs(block).max() / LEVELS
        multiples = np.asarray(answer, np.float64) / scale
        if np.abs(multiples - np.round(multiples)).max() > 1e-3:
            return "not every value is a whole number of scales", "有的值不是比例系数的整数倍"
        if np.abs(answer - block).max() > scale * 0.501:
            return "a weight has moved by more than half a scale", "有的权重移动超过了比例系数的一半"
    return None


def check_3(exercise):
    for sums, counts in (([10.0, 2.0], [5, 4]), ([6.0, 0.5, 9.0], [2, 1, 9]), ([3.0, 3.0], [4, 4])):
        loss = Fraction(sum(map(Fraction, sums)), sum(counts))
        wrong = sum(Fraction(total) / count for total, count in zip(sums, counts, strict=True)) / len(sums) - loss
        answer = exercise(list(sums), list(counts))
        if answer is None or len(answer) != 2:
            return "return two numbers", "返回两个数"
        if abs(answer[0] - loss) > 1e-9:
            return (
                f"the loss of {sums} over {counts} tokens is not {answer[0]}: each token counts once",
                f"损失之和为 {sums}、token 数为 {counts} 时，损失不是 {answer[0]}：每个 token 只算一次",
            )
        if abs(answer[1] - wrong) > 1e-9:
            return "the second number is the mean of the means, minus the loss", "第二个数是平均值的平均值减去损失"
    return None
