"""Exercises of chapter 13. Fill in the three functions; `python docs/course/check.py 13` checks them.

第 13 章的练习。填写三个函数，用 `python docs/course/check.py 13` 检查。
"""


def exercise_1():
    """How many GPUs does a model of 6.6 billion parameters need under FSDP, if 10 GB (10 billion bytes) of each can be
    used for the 16 bytes a parameter? Return an int.

    66 亿参数的模型用 FSDP 训练，如果每张显卡有 10 GB（100 亿字节）可以用来放“每个参数 16 字节”，需要几张显卡？
    返回整数。
    """
    return None


def exercise_2(block):
    """block: float32 array of 32 weights. Return them rounded, a float array: the scale is the largest absolute value
    divided by 7, each weight becomes the nearest whole number of scales, times the scale. (The scale stays float32.)

    block：32 个权重的 float32 数组。返回舍入后的浮点数组：比例系数是最大绝对值除以 7，每个权重取最接近的整数倍。
    （比例系数保持 float32。）
    """
    return None


def exercise_3(sums, counts):
    """sums: for each process the sum of the losses of its tokens; counts: the number of its tokens (lists of equal
    length). Return (the loss of the step, by how much the mean of the processes' means is larger than it).

    sums：各进程的 token 损失之和；counts：各进程的 token 数（等长的列表）。
    返回（这一步的损失，各进程平均值的平均值比它大多少）。
    """
    return None
