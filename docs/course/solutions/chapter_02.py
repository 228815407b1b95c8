"""Solutions of the exercises of chapter 2, and the checks of the reader's answers."""

import numpy as np

from data_utils import BatchOrder, loss_mask, make_batch, open_rows, row_lengths

SPECIAL_IDS = {"eot": 4093, "pad": 4094, "answer": 4095}


def exercise_1():
    # The targets are the tokens 2 to 50, which are 49, and the EOT. The first token is predicted from nothing.
    return 50


def exercise_2(row, mark, eot, pad):
    place = row.index(mark)
    return [i > place and row[i] != pad for i in range(1, len(row))]


def exercise_3():
    rows, meta = open_rows("data/processed_demo_sft", "train")
    lengths = row_lengths(rows, meta["special_ids"]["pad"])
    # A question with its answer has 13 tokens on average, so filling up to a multiple of 8 weighs more.
    return BatchOrder(lengths, "traverse", batch_size=32).padding(), BatchOrder(lengths, batch_size=32).padding()


def check_1(exercise):
    row = np.full((1, 192), SPECIAL_IDS["pad"], dtype=np.uint16)
    row[0, :50], row[0, 50] = 7, SPECIAL_IDS["eot"]
    _, _, mask = make_batch(row, {"stage": "pretrain", "special_ids": SPECIAL_IDS})
    answer, right = exercise(), int(mask.sum())
    if answer == right:
        return None
    return (
        "Count in the table of row 1726: it has 17 tokens and EOT. How many lines say yes?",
        "在第 1726 行的表里数一数：它有 17 个 token 和 EOT，有几行写着 yes？",
    )


def check_2(exercise):
    rows, meta = open_rows("data/processed_demo_sft", "train")
    ids = meta["special_ids"]
    full = [7, 8, ids["answer"], 9, 10, 11, ids["eot"]]  # a row without PAD
    for row in [*rows[:200].tolist(), full]:
        right = loss_mask(np.array([row]), ids, "sft")[0].tolist()
        answer = exercise(list(row), ids["answer"], ids["eot"], ids["pad"])
        if not isinstance(answer, (list, tuple)) or len(answer) != len(row) - 1:
            return (
                f"A row of {len(row)} ids has {len(row) - 1} targets; return a list with a bool for each.",
                f"{len(row)} 个 id 的行有 {len(row) - 1} 个目标；请返回一个列表，每个目标一个 bool。",
            )
        if [bool(value) for value in answer] != right:
            place = next(i for i in range(len(right)) if bool(answer[i]) != right[i])
            name = {token_id: f" ({name})" for name, token_id in ids.items()}.get(row[place + 1], "")
            return (
                f"In the row {row[:10]}…, the target {row[place + 1]}{name} is wrong: it is row[{place + 1}] and "
                f"mask[{place}]. Compare with the table of row 1321 in the chapter: which targets y have a yes?",
                f"在行 {row[:10]}…… 里，目标 {row[place + 1]}{name} 不对：它是 row[{place + 1}]，对应 mask[{place}]。"
                "与本章第 1321 行的表对照：哪些目标 y 写着 yes？",
            )
    return None


def check_3(exercise):
    answer, right = exercise(), exercise_3()
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        return (
            "Return two numbers: (order of the file, similar lengths together).",
            "请返回两个数：（文件次序，长度相近的在一起）。",
        )
    if any(isinstance(value, (int, float)) and value > 1 for value in answer):
        return "Shares lie between 0 and 1, not between 0 and 100.", "份额在 0 到 1 之间，不是 0 到 100。"
    names = ("in the order of the file", "按文件的次序"), ("with similar lengths together", "让长度相近的行在一起")
    for value, expected, (english, chinese) in zip(answer, right, names, strict=True):
        if value is None or abs(value - expected) > 0.005:
            return (
                f"The share {english} is another. Take the rows of data/processed_demo_sft as they are, batch_size=32.",
                f"{chinese}的份额不对。直接用 data/processed_demo_sft 的行，batch_size=32。",
            )
    return None
