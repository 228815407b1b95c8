"""Exercises of chapter 10, measuring honestly. Fill in the three functions; `python docs/course/check.py 10` checks
them.

第 10 章的练习：诚实地测量。填写三个函数，然后运行 `python docs/course/check.py 10` 检查。
"""


def exercise_1():
    """Exact match on 100 questions has an interval 0.2 wide. About how many questions make it 0.05 wide? An int.

    用 100 个问题测得的 exact match，区间宽 0.2。大约要多少个问题，区间才宽 0.05？返回整数。
    """
    return None


def exercise_2(a, b):
    """The paired bootstrap. a, b: float arrays (n,), the scores of two models on the same n questions, in one order.

    Return (low, high), the 95% interval of mean(a) - mean(b), from 2,000 resamples of the questions.

    配对自助法。a、b 是形状为 (n,) 的浮点数组，是两个模型在同样 n 个问题上的得分，顺序相同。
    对问题重采样 2000 次，返回 mean(a) - mean(b) 的 95% 区间 (low, high)。
    """
    return None


def exercise_3():
    """Where Rouge-L is blind. The right answer is 铁的元素符号是Fe。 Return two texts.

    The first names another symbol (it is wrong) and has a Rouge-L F of 0.8 or more; the second a person would call
    right, and its F is below 0.5.

    Rouge-L 的盲点。正确答案是“铁的元素符号是Fe。”，返回两段文本：
    第一段写的是别的符号（是错的），Rouge-L F 却不低于 0.8；第二段人会认为正确，F 却低于 0.5。
    """
    return None, None
