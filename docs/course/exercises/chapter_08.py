"""Exercises of chapter 8. Fill in the three functions; `python docs/course/check.py 8` checks them.

第 8 章的练习。填写三个函数，用 `python docs/course/check.py 8` 检查。
"""


def exercise_1():
    """How many numbers does LoRA of rank 8 train in the model of config/laptop.py: 4 layers; in each, the matrices q,
    k, v and o of 256 x 256, gate and up of 704 x 256, and down of 256 x 704? Return an int.

    在 config/laptop.py 的模型里，秩为 8 的 LoRA 训练多少个数：4 层；每层的 q、k、v、o 是 256 x 256，
    gate 和 up 是 704 x 256，down 是 256 x 704？返回整数。
    """
    return None


def exercise_2(w, a, b, alpha, r):
    """w (out, in), a (r, in), b (out, r): float32 tensors; alpha: a number. Return the one matrix (out, in) that does
    the same to every x as w with its change beside it: w x + (alpha / r) b a x.

    w (out, in)、a (r, in)、b (out, r)：float32 张量；alpha：一个数。返回一个 (out, in) 的矩阵，它对任何 x 的作用都和
    w 加上旁边的改动相同：w x + (alpha / r) b a x。
    """
    return None


def exercise_3(before, after):
    """before, after: a matrix before and after tuning, float32 tensors of one shape. Return the smallest number of
    singular values of the difference whose squares make up at least 90% of all squares, an int.

    before、after：微调前后的矩阵，形状相同的 float32 张量。返回差值的奇异值中，最少取几个，其平方和至少占全部平方和的
    90%（整数）。
    """
    return None
