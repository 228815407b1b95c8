"""Exercises of chapter 2, rows and masks. Fill in the three functions; `python docs/course/check.py 2` checks them.

第 2 章“行与掩码”的练习。填好三个函数，用 `python docs/course/check.py 2` 检查。
"""


def exercise_1():
    """An article of 50 tokens stands in a row of 192: its tokens, EOT, and PAD. How many of the row's 191 targets have
    a loss in pretraining? Return an int.

    一篇 50 个 token 的文章放在宽 192 的行里：各个 token、EOT、PAD。预训练时，191 个目标中
    有多少个计入损失？返回一个 int。
    """
    return None


def exercise_2(row, mark, eot, pad):
    """The loss mask of fine-tuning. row: a list of ids, `question, mark, answer, eot, pad, pad, …`; mark, eot, pad: the
    special ids. Return a list of bools, one for each of the targets row[1:]: whether it has a loss.

    微调的损失掩码。row：id 的列表，依次是问题、mark、答案、eot、pad、pad……；mark、eot、pad 是特殊 id。
    返回 bool 的列表，目标 row[1:] 中的每一个对应一项：它是否计入损失。
    """
    return None


def exercise_3():
    """The padding of the training rows in data/processed_demo_sft, in batches of 32 rows. Return two shares between 0
    and 1: (in the order of the file, with rows of similar length together).

    data/processed_demo_sft 的训练行，每批 32 行，填充占多少？返回两个 0 到 1 之间的份额：
    （按文件的次序，让长度相近的行在一起）。
    """
    return None
