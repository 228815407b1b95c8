"""Exercises of chapter 4, the model. Fill in the three functions; `python docs/course/check.py 4` checks them.

第 4 章“模型”的练习。填好三个函数，用 `python docs/course/check.py 4` 检查。
"""


def exercise_1():
    """The parameters of a model with the demo's parts: 4 layers, width 256, 4 heads of 64, MLP 704 wide, 4096 ids; the
    embedding is also the output layer. Return an int.

    与演示部件相同的模型有多少参数？4 层，宽 256，4 个头各 64，MLP 宽 704，4096 个 id；嵌入兼作输出层。返回一个 int。
    """
    return None


def exercise_2(x, norm_1, attention, norm_2, mlp):
    """A layer. x: the stream, a tensor (T, C); the other four: functions that take and return such a tensor. Return the
    stream after the layer.

    一层。x：主干，形状 (T, C) 的张量；另外四个是函数，接受并返回这样的张量。返回经过这一层之后的主干。
    """
    return None


def exercise_3():
    """The mean loss of out/demo_sft/ckpt.pt on the first 64 rows of the part "val" of data/processed_demo_sft, with one
    part of the model taken out. Return a list of four floats: without attention 1, MLP 1, attention 2, MLP 2.

    去掉模型的一个部件之后，out/demo_sft/ckpt.pt 在 data/processed_demo_sft 的 "val" 部分前 64 行上的平均损失。
    返回四个 float 的列表：分别去掉注意力 1、MLP 1、注意力 2、MLP 2。
    """
    return None
