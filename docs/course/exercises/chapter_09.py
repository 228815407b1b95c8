"""Exercises of chapter 9, preferences and rewards. Fill in the three functions; `python docs/course/check.py 9` checks
them.

第 9 章的练习：偏好与奖励。填写三个函数，然后运行 `python docs/course/check.py 9` 检查。
"""


def exercise_1():
    """DPO's loss of one pair, a float.

    log p under the reference: chosen -2.0, rejected -3.0; under the model: chosen -1.5, rejected -5.0; beta = 0.2.

    一对答案的 DPO 损失，返回浮点数。参考模型下的 log p：较好的 -2.0，较差的 -3.0；
    模型下的 log p：较好的 -1.5，较差的 -5.0；beta = 0.2。
    """
    return None


def exercise_2(rewards):
    """GRPO's advantages. rewards: float tensor (questions, answers). Return a tensor of the same shape.

    An answer's advantage is its reward less the mean of its question's rewards, divided by their standard deviation
    (that of all values: correction=0). A question whose answers all earn the same gets zeros, not nan.

    GRPO 的优势值。rewards 是浮点张量（问题数，回答数），返回形状相同的张量。
    一个回答的优势值等于它的奖励减去同题奖励的均值，再除以同题奖励的标准差（总体标准差：correction=0）。
    同题奖励都相等时全部为零，不能出现 nan。
    """
    return None


def exercise_3(lines):
    """A watchman. lines: a run's log, dicts with "step", "reward", "exact" (share of right answers), "kl".

    Return the first "step" at which the reward is being tricked, or None where it never is. It is being tricked where
    the reward is higher than in the first line, and the share of right answers lower by 0.1 or more.

    监视员。lines 是一次训练的日志，每行是字典，含 "step"、"reward"、"exact"（答对的比例）、"kl"。
    返回奖励第一次被钻空子的 "step"；从未发生则返回 None。
    判定：奖励高于第一行，而答对的比例比第一行低 0.1 或更多。
    """
    return None
