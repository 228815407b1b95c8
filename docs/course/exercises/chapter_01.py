"""Exercises of chapter 1, text to tokens. Fill in the three functions; `python docs/course/check.py 1` checks them.

第 1 章“从文本到 token”的练习。填好三个函数，用 `python docs/course/check.py 1` 检查。
"""


def exercise_1():
    """How many tokens does GPT-2's tokenizer make of 黄河发源于青海省。 (with its full stop)? Return an int.

    GPT-2 的分词器把“黄河发源于青海省。”（含句号）切成几个 token？返回一个 int。
    """
    return None


def exercise_2(chunks):
    """A decoder for a stream. chunks: a list with the bytes of each token of a text, for example
    [b"\\xe4\\xb8\\xad", b"\\xe5\\x9b", b"\\xbd"]. Return a list of as many texts: for each token, the characters that
    are complete now and were not before; for the example ["中", "", "国"].

    流式解码器。chunks：一段文字各个 token 的字节组成的列表，例如上面的例子。返回同样多项的列表：对每个 token，
    给出现在刚补全、而之前还不完整的字符；上例应得 ["中", "", "国"]。
    """
    return None


def exercise_3():
    """Return a text of at least 20 characters of which the demo's tokenizer makes more tokens than GPT-2's.

    返回一段至少 20 个字符的文字，使演示的分词器用的 token 多于 GPT-2 的分词器。
    """
    return None
