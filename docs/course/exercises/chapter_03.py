"""Exercises of chapter 3, attention. Fill in the three functions; `python docs/course/check.py 3` checks them.

第 3 章“手算注意力”的练习。填好三个函数，用 `python docs/course/check.py 3` 检查。
"""


def exercise_1():
    """A row has 192 positions. How many of the 192 x 192 scores of a head does the causal mask hide? Return an int.

    一行有 192 个位置。一个头的 192 x 192 个分数，因果掩码挡住多少个？返回一个 int。
    """
    return None


def exercise_2(q, k, v):
    """Causal attention of one head. q, k, v: float32 tensors (T, D), already normalized and rotated. Return what each
    position takes, (T, D). Begin with `import torch`.

    一个头的因果注意力。q、k、v：float32 张量 (T, D)，已经归一化、旋转过。返回每个位置取到的东西，(T, D)。
    先写 `import torch`。
    """
    return None


def exercise_3():
    """In the text 铜的元素符号是什么？##铜的元素符号是, how much does the last token take from the two 铜 together, in
    the heads 1, 2 and 3 of layer 2? Return a list of three shares, to two decimals.

    在上面这段文字里，最后一个 token 从两个“铜”一共取多少？对第 2 层的第 1、2、3 个头，
    返回三个份额的列表，保留两位小数。
    """
    return None
