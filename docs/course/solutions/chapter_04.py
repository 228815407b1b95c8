"""Solutions of the exercises of chapter 4, and the checks of the reader's answers."""

import torch

from data_utils import make_batch, open_rows
from minigpt.checkpoint import open_model
from model import GPT, GPTConfig

PARTS = ("attention 1", "注意力 1"), ("MLP 1", "MLP 1"), ("attention 2", "注意力 2"), ("MLP 2", "MLP 2")


def exercise_1():
    layer = 256 + 3 * 256 * 256 + 2 * 64 + 256 * 256 + 256 + 2 * 704 * 256 + 256 * 704
    return 4 * layer + 4096 * 256 + 256


def exercise_2(x, norm_1, attention, norm_2, mlp):
    x = x + attention(norm_1(x))
    return x + mlp(norm_2(x))


@torch.no_grad()
def exercise_3():
    # Attention 1 is missed most, although the preview has F only after attention 2: each part reads what the parts
    # before it have added, and without attention 1 all three behind it read a stream that training never showed them.
    _, _, model, _ = open_model("out/demo_sft/ckpt.pt", "out", "cpu")
    rows, meta = open_rows("data/processed_demo_sft", "val")
    x, y, mask = make_batch(rows[:64], meta)
    losses = []
    for block in model.h:
        for part in (block.attn, block.mlp):
            hook = part.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
            losses.append(model.token_losses(x, y, mask).mean().item())
            hook.remove()
    return losses


def check_1(exercise):
    with torch.device("meta"):
        model = GPT(GPTConfig(n_layer=4, n_head=4, n_embd=256, vocab_size=4096, n_inner=704, architecture="qwen3"))
    answer, right = exercise(), model.num_params()
    if answer == right:
        return None
    if isinstance(answer, int) and abs(answer - right) < 3000:
        return "Nearly: a norm is missing, or is counted twice.", "差一点：漏了一个归一化，或者多算了一个。"
    if answer == right + 4096 * 256:
        return "The output layer is the embedding's table: count it once.", "输出层就是嵌入那张表，只算一次。"
    return (
        "Put the numbers into the table of 04_parameters.py, line by line. All layers have as many.",
        "把数代进 04_parameters.py 打印的表，一行一行来。每一层的参数一样多。",
    )


def check_2(exercise):
    generator = torch.Generator().manual_seed(4)
    x, *weights = torch.randn(5, 6, 6, generator=generator)
    parts = [lambda x, w=w: torch.tanh(x @ w) for w in weights]
    answer, right = exercise(x.clone(), *parts), exercise_2(x, *parts)
    if not isinstance(answer, torch.Tensor) or answer.shape != right.shape:
        return "Return a tensor of the shape of x.", "请返回与 x 形状相同的张量。"
    if torch.allclose(answer, right, atol=1e-5):
        return None
    norm_1, attention, norm_2, mlp = parts
    if torch.allclose(answer, mlp(norm_2(attention(norm_1(x)))), atol=1e-5):
        return "Each part adds to the stream; yours replace it.", "每个部件都是往主干上加；你的写法把主干换掉了。"
    if torch.allclose(answer, x + attention(norm_1(x)) + mlp(norm_2(x)), atol=1e-5):
        return "The MLP reads the stream to which attention has added.", "MLP 读到的主干，应该已经加上了注意力的输出。"
    return "Compare with the two lines under 'Layer'.", "对照正文“层”下面的两行。"


def check_3(exercise):
    answer, right = exercise(), exercise_3()
    if not isinstance(answer, (list, tuple)) or len(answer) != 4 or None in answer:
        return "Return a list of four losses.", "请返回四个损失的列表。"
    for value, expected, (english, chinese) in zip(answer, right, PARTS, strict=True):
        if abs(value - expected) > 0.005 * max(1, expected):
            return (
                f"Without {english} the loss is another. Is each hook removed before the next is set, and is the mask "
                "that of make_batch?",
                f"去掉“{chinese}”时的损失不对。设下一个钩子之前，前一个去掉了吗？掩码用的是 make_batch 给的吗？",
            )
    return None
