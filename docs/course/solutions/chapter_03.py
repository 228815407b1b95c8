"""Solutions of the exercises of chapter 3, and the checks of the reader's answers."""

import math

import torch

from minigpt.checkpoint import open_model
from model import attention, normalize_and_rotate

TEXT = "铜的元素符号是什么？##铜的元素符号是"
SUBJECT = "铜"


def exercise_1():
    # Position t (from 0) may look at t + 1 positions; the 191 - t behind it are hidden: 191 + 190 + … + 0.
    return 192 * 191 // 2


def exercise_2(q, k, v):
    scores = q @ k.T / math.sqrt(q.shape[1])
    later = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
    return torch.softmax(scores.masked_fill(later, -math.inf), dim=1) @ v


@torch.no_grad()
def exercise_3():
    # What `03_attention.py --overview --text=…` prints for layer 2, the two columns of the subject added.
    _, _, model, tokenizer = open_model("out/demo_sft/ckpt.pt", "out", "cpu")
    ids, attn, seen = tokenizer.encode_marked(TEXT), model.h[1].attn, []
    attn.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[:2]))
    model(torch.tensor([ids]))
    ((x, angles),) = seen
    n_head, D = model.config.n_head, model.config.head_dim
    q, k, _ = attn.c_attn(x).view(1, len(ids), 3 * n_head, D).split(n_head, dim=2)
    q = normalize_and_rotate(q, attn.q_norm.weight.expand(n_head, -1), *angles, attn.q_norm.eps)
    k = normalize_and_rotate(k, attn.k_norm.weight.expand(n_head, -1), *angles, attn.k_norm.eps)
    weights = torch.softmax(torch.einsum("hd,thd->ht", q[0, -1], k[0]) / math.sqrt(D), dim=1)
    is_subject = torch.tensor([tokenizer.decode([token_id]) == SUBJECT for token_id in ids])
    return [round(share, 2) for share in weights[:, is_subject].sum(dim=1).tolist()]


def check_1(exercise):
    answer, right = exercise(), int(torch.ones(192, 192).triu(1).sum())
    if answer == right:
        return None
    if answer == 192 * 193 // 2:
        return (
            "May a position look at itself? Then its own score is not hidden.",
            "一个位置可以看自己吗？那么它自己的分数就没有被挡住。",
        )
    return (
        "Count for 7 positions first, in the map of the figure: how many squares are grey?",
        "先数 7 个位置的情形，就在那张图上：有几个灰格？",
    )


def check_2(exercise):
    generator = torch.Generator().manual_seed(3)
    for T, D in ((5, 4), (7, 64)):
        q, k, v = torch.randn(3, T, D, generator=generator)
        answer = exercise(q.clone(), k.clone(), v.clone())
        right = attention(q[None, None], k[None, None], v[None, None], is_causal=True)[0, 0]
        if not isinstance(answer, torch.Tensor) or answer.shape != right.shape:
            return f"Return a tensor of shape ({T}, {D}).", f"请返回形状为 ({T}, {D}) 的张量。"
        if torch.allclose(answer, right, atol=1e-5):
            continue
        if torch.allclose(answer, attention(q[None, None], k[None, None], v[None, None])[0, 0], atol=1e-5):
            return "Each position looks at all others, the future among them.", "每个位置都看了所有位置，未来也在内。"
        if not torch.allclose(answer[0], v[0], atol=1e-5):
            return (
                "The first position may look at itself only, so it must get v[0] exactly. Are the weights of each row "
                "1 in all, after the mask?",
                "第一个位置只能看自己，所以应该恰好得到 v[0]。加了掩码之后，每行的份额加起来是 1 吗？",
            )
        return "Are the scores divided by the root of D?", "分数除以 D 的平方根了吗？"
    return None


def check_3(exercise):
    answer, right = exercise(), exercise_3()
    if not isinstance(answer, (list, tuple)) or len(answer) != 3 or None in answer:
        return "Return a list of three shares, for the heads 1, 2 and 3.", "请返回三个份额的列表，对应第 1、2、3 个头。"
    for head, (value, expected) in enumerate(zip(answer, right, strict=True), start=1):
        if abs(value - expected) > 0.015:  # two rounded shares were added
            return (
                f"Head {head} takes another share. Add both columns of 铜 in the line of layer 2, head {head}.",
                f"第 {head} 个头的份额不对。在第 2 层第 {head} 个头那一行里，把两个“铜”的数加起来。",
            )
    return None
