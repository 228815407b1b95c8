"""Exercises of chapter 11, prompting. Fill in the three functions; `python docs/course/check.py 11` checks them.

第 11 章的练习：提示。填写三个函数，然后运行 `python docs/course/check.py 11` 检查。
"""


def exercise_1():
    """At temperature 1 two tokens have the probabilities 0.8 and 0.2 (no others). That of the first at 0.5, a float?

    温度为 1 时，两个 token 的概率是 0.8 和 0.2（没有别的 token）。温度为 0.5 时，第一个的概率是多少？返回浮点数。
    """
    return None


def exercise_2(probabilities, top_p):
    """top_p. probabilities: float array (n,) with sum 1. Return an array (n,): those of the tokens that are left.

    Left are the likeliest tokens, as few as have the probability top_p together; the others get 0; the sum is 1 again.

    top_p。probabilities 是和为 1 的浮点数组 (n,)，返回数组 (n,)：留下的 token 的概率。
    留下最可能的若干个 token，个数尽量少，但概率之和要达到 top_p；其余为 0；结果之和仍为 1。
    """
    return None


def exercise_3(before, after):
    """What did teaching change? before, after: {prompt's name: [exact match, low, high]} of the two models.

    Return the set of the names whose intervals (low to high) do not overlap. Try it on out/course/prompts/demo_sft.json
    and taught.json.

    教学改变了什么？before、after 是两个模型的 {提示名称: [exact match, 区间下端, 区间上端]}。
    返回区间不重叠的名称的集合。可以用 out/course/prompts/demo_sft.json 与 taught.json 试一试。
    """
    return None
