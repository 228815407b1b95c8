"""Reference solutions of chapter 8, and the checks of answers."""

import torch

from minigpt.adapters.attach import attach_adapter, trained_parameters
from minigpt.settings.stages import Adapting
from model import GPT, GPTConfig


def exercise_1():
    square, wide = 8 * (256 + 256), 8 * (256 + 704)
    return 4 * (4 * square + 3 * wide)


def exercise_2(w, a, b, alpha, r):
    return w + alpha / r * (b @ a)


def exercise_3(before, after):
    squares = torch.linalg.svdvals(after - before) ** 2
    shares = squares.cumsum(0) / squares.sum()
    return int((shares < 0.9).sum()) + 1


def check_1(exercise):
    with torch.device("meta"):  # shapes only: no weights are made
        model = GPT(GPTConfig(architecture="qwen3", block_size=256, vocab_size=4096, n_layer=4, n_head=4, n_embd=256))
    attach_adapter(model, Adapting(method="lora", rank=8), None)
    count = sum(p.numel() for p in trained_parameters(model).values())
    if exercise() != count:
        return (
            "A has r rows and as many columns as its matrix; B has as many rows as its matrix and r columns",
            "对每个矩阵，A 有 r 行、列数与矩阵相同，B 行数与矩阵相同、有 r 列",
        )
    return None


def check_2(exercise):
    random = torch.Generator().manual_seed(8)
    for rows, columns, r, alpha in ((5, 7, 2, 2.0), (6, 4, 3, 12.0)):
        w, a, b, x = (
            torch.randn(*shape, generator=random) for shape in ((rows, columns), (r, columns), (rows, r), (columns,))
        )
        merged = exercise(w.clone(), a.clone(), b.clone(), alpha, r)
        if merged is None or tuple(merged.shape) != (rows, columns):
            return f"return a matrix of {rows} x {columns}", f"返回 {rows} x {columns} 的矩阵"
        if not torch.allclose(merged @ x, w @ x + alpha / r * (b @ (a @ x)), atol=1e-4):
            return (
                "for some x it gives another result: mind the order of B and A, and the scale",
                "对某些 x 结果不同：注意 B 和 A 的顺序，以及比例",
            )
    return None


def check_3(exercise):
    random = torch.Generator().manual_seed(8)
    for values in ([3.0, 1.0], [1.0] * 10, [5.0, 4.0, 3.0, 0.1], [9.0, 3.0, 0.0, 0.0]):
        left, right = (torch.linalg.qr(torch.randn(16, 16, generator=random))[0] for _ in range(2))
        change = left[:, : len(values)] @ torch.diag(torch.tensor(values)) @ right[: len(values)]
        before = torch.randn(16, 16, generator=random)
        # Counted with whole numbers, from the values that were put in.
        total, found, needed = sum(v * v for v in values), 0.0, 0
        while found < 0.9 * total - 1e-4:
            found += sorted(values, reverse=True)[needed] ** 2
            needed += 1
        if (answer := exercise(before, before + change)) != needed:
            return (
                f"a difference with the singular values {values} needs another number than {answer}",
                f"差值的奇异值是 {values} 时，答案不是 {answer}",
            )
    return None
