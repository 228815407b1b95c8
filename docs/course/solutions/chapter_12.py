"""Reference solutions of chapter 12, and the checks of answers."""

import heapq
import json
import math
import random

import numpy as np

from minigpt.arena.leaderboard import ELO_PER_NAT, fit_strengths


def exercise_1():
    # The odds are 3 to 1, and 400 points are odds of 10 to 1.
    return 400 * math.log10(3 / 1)


def exercise_2(lines):
    text = ""
    for line in lines:
        content = line.removeprefix("data: ")
        if content != line and content != "[DONE]":
            text += json.loads(content)["choices"][0]["text"]
    return text


def exercise_3(lengths, places):
    running, waiting, steps = [], list(lengths), 0
    while running or waiting:
        while waiting and len(running) < places:
            running.append(waiting.pop(0))
        steps += 1
        running = [left - 1 for left in running if left > 1]
    return steps


def check_1(exercise):
    # Many votes, so that the leaderboard's weak prior does not matter.
    strengths = fit_strengths(np.array([[0.0, 3e6], [1e6, 0.0]]))
    points = ELO_PER_NAT * (strengths[0] - strengths[1])
    answer = exercise()
    if answer is None or abs(answer - points) > 1:
        return (
            "set the formula's probability to 3/4, solve for the difference of the strengths, turn it into points",
            "令公式中的概率等于 3/4，解出强度之差，再换算成分数",
        )
    return None


def check_2(exercise):
    for text in ("铁的元素符号是Fe。", 'He said "data: [DONE]".\nThen it ended.'):
        pieces = [text[start : start + 3] for start in range(0, len(text), 3)]
        lines = []
        for piece in [*pieces, ""]:
            lines += ["data: " + json.dumps({"id": "cmpl-1", "choices": [{"index": 0, "text": piece}]}), ""]
        lines += ["data: [DONE]", ""]
        if (answer := exercise(lines)) != text:
            return f"from the stream of {text!r} it made {answer!r}", f"从 {text!r} 的流得到的是 {answer!r}"
    return None


def check_3(exercise):
    draw = random.Random(12)
    for _ in range(50):
        lengths, places = [draw.randint(1, 9) for _ in range(draw.randint(1, 12))], draw.randint(1, 5)
        # Each request goes into the place that is free first: another way to the same count.
        free_from = [0] * places
        for length in lengths:
            heapq.heappush(free_from, heapq.heappop(free_from) + length)
        if (answer := exercise(list(lengths), places)) != max(free_from):
            return (
                f"not {answer} for requests of {lengths} steps and {places} places; draw the bars on paper",
                f"请求为 {lengths} 步、位置数为 {places} 时，{answer} 不对；在纸上把横杠画出来看看",
            )
    return None
