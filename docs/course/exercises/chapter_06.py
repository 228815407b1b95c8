"""Exercises of chapter 6. Fill in the three functions; `python docs/course/check.py 6` checks them.

第 6 章练习：填写下面三个函数，再运行 `python docs/course/check.py 6` 检查。
"""


def exercise_1():
    """How many of the demo tokenizer's ids never occur in the demo's training articles? Return an int.

    The tokenizer is out/demo.tiktoken; `open_rows("data/processed_demo", "train")` (data_utils.py) gives the rows.
    Count all ids from 0 to n_vocab - 1, the special ones too.

    演示的分词器有多少个 id 在演示的训练文章里从未出现？返回整数。分词器是 out/demo.tiktoken；
    `open_rows("data/processed_demo", "train")`（在 data_utils.py 里）给出各行。
    从 0 到 n_vocab - 1 的 id 都算，特殊的也算。
    """
    return None


def exercise_2(words):
    """The next merge of byte-pair encoding. Return the pair as a tuple of two tokens.

    words: {tuple of tokens: how often this word occurs}, such as {("国", "家"): 3, ("国", "王"): 1}.
    The pair is the most frequent one of neighbours; no two pairs are equally frequent here.

    字节对编码的下一次合并：返回由两个 token 组成的元组。words：{token 的元组: 这个词出现的次数}。
    取最常见的相邻一对；这里不会有两对次数相同。
    """
    return None


def exercise_3(nats_a_token, tokens, characters):
    """Bits a character of a text, from the mean loss in nats a token, its tokens and its characters. Return a float.

    由每 token 的平均损失（奈特）、token 数和字符数，求一段文本的每字符比特数。返回浮点数。
    """
    return None
