"""Exercises of chapter 7. Fill in the three functions; `python docs/course/check.py 7` checks them.

第 7 章的练习。填写三个函数，用 `python docs/course/check.py 7` 检查。
"""


def exercise_1():
    """A model spoils each pair with probability 0.3, independently of the others. Its replies have three pairs, and a
    reply is accepted if none of them is spoiled. An article gets at most four replies. With what probability is one
    of them accepted? Return a number from 0 to 1.

    一个模型写坏每一对问答的概率是 0.3，各对相互独立。每个回复有三对，三对都没有写坏才算通过；每篇文章至多有四个回复。
    其中有一个通过的概率是多少？返回 0 到 1 之间的数。
    """
    return None


def exercise_2(answer, article):
    """answer, article: texts. Return whether each number of the answer stands in the article (True or False), compared
    by value: 二十六 stands in an article that has 26. Numbers are whole and written in digits (26), or in Chinese from
    十一 to 九千九百九十九 (十二, 二十六, 三百零五, 一千二百一十). A single one (一 in 一种) is no number here.

    answer、article：文本。返回回答里的每个数是否都在文章里（True 或 False），按数值比较：文章里有 26，就算有二十六。
    都是整数，写法有两种：阿拉伯数字（26），以及中文的十一到九千九百九十九（十二、二十六、三百零五、一千二百一十）。
    单独一个中文数字（“一种”的“一”）在这里不算数。
    """
    return None


def exercise_3(articles, make_pairs, share):
    """Run the stand-in at another share of faults, and count. For each (title, text) in articles,
    make_pairs(title, text, 6, draw, share) gives [(question, answer, kind)], where kind is "" for a good pair; draw is
    one random.Random(7) for all articles. `check_pair` of minigpt.synth.rules returns [] for a pair that passes. It
    needs an ArticleIndex(title, text, GenerateSettings()), a new one for each article. Return (how many pairs passed,
    how many of these are not good), two ints.

    换一个出错比例，再数一遍。对 articles 中的每个 (title, text)，make_pairs(title, text, 6, draw, share) 给出
    [(question, answer, kind)]，好的问答 kind 是 ""；draw 是所有文章共用的一个 random.Random(7)。问答通过时，
    minigpt.synth.rules 的 `check_pair` 返回 []；它需要 ArticleIndex(title, text, GenerateSettings())，
    每篇文章新建一个。返回（通过的对数，其中不好的对数），两个整数。
    """
    return None
