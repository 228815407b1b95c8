"""Exercises of chapter 12. Fill in the three functions; `python docs/course/check.py 12` checks them.

第 12 章的练习。填写三个函数，用 `python docs/course/check.py 12` 检查。
"""


def exercise_1():
    """A model wins 3 games of 4 against another, without ties. By how many points do their scores differ under Bradley
    and Terry's formula, if these are the only votes? (400 points are ten to one.) Return a float.

    一个模型对另一个四局胜三局，没有平局。如果只有这些票，按 Bradley-Terry 公式，它们的分数相差多少？
    （400 分是十比一。）返回浮点数。
    """
    return None


def exercise_2(lines):
    """lines: the lines (list of str) of a streamed answer of /v1/completions. A line that matters begins with "data: ";
    what follows is JSON, whose text is at ["choices"][0]["text"], or [DONE] at the end. Return the whole answer, a str.

    lines：/v1/completions 流式回答的各行（字符串列表）。有用的行以 "data: " 开头，后面是 JSON，文本在
    ["choices"][0]["text"]；最后一行是 [DONE]。返回完整的回答（字符串）。
    """
    return None


def exercise_3(lengths, places):
    """lengths: the steps (list of int, at least 1) that each request needs, in the order in which they wait; places:
    how many requests can run at the same time. A place that becomes free is filled in the next step. Return the number
    of steps until all are done, an int.

    lengths：各请求需要的步数（整数列表，至少为 1），按等待的顺序；places：同时能运行的请求数。
    空出来的位置在下一步补上。返回全部完成所需的步数（整数）。
    """
    return None
