"""Exercises of chapter 5. Fill in the three functions; `python docs/course/check.py 5` checks them.

第 5 章练习：填写下面三个函数，再运行 `python docs/course/check.py 5` 检查。
"""


def exercise_1():
    """A model with GPT-2's tokenizer knows nothing yet. What is its loss, in nats a token? Return a float.

    The number of its ids is `load_tokenizer().n_vocab` (minigpt/tokenizer.py).

    一个使用 GPT-2 分词器的模型，还什么都没学。它的损失约为每 token 多少奈特？返回一个浮点数。
    id 的个数是 `load_tokenizer().n_vocab`（在 minigpt/tokenizer.py 里）。
    """
    return None


def exercise_2(logits, targets):
    """Cross-entropy by hand, without torch's cross_entropy.

    logits: (T, V) float32 tensor, a score for each token at each position; targets: (T,) int64 tensor, the right
    tokens. Return the mean of -ln(probability of the right token), a float. Scores may be as large as 1000.

    不用 torch 的 cross_entropy，自己算交叉熵。logits：(T, V) 的 float32 张量，每个位置对每个 token 的分数；
    targets：(T,) 的 int64 张量，正确的 token。返回 -ln（正确 token 的概率）的平均值，浮点数。分数可能大到 1000。
    """
    return None


def exercise_3(path):
    """When should this run have stopped? Return (step, percent).

    path: of a log.jsonl, a JSON object a line with "step" and "val_loss" (None where nothing was validated).
    step: where the validation loss was lowest; percent: by how much the last validation loss is higher than that one.

    这次训练应当停在哪里？返回 (步, 百分比)。path：一个 log.jsonl，每行一个 JSON 对象，有 "step" 和 "val_loss"
    （没有验证的行为 None）。步：验证损失最低处；百分比：最后一次验证损失比它高百分之几。
    """
    return None
