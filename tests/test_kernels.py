"""The compiled passes over rows against torch's operators in float64."""

import os

import pytest
import torch
from torch.nn import functional as F

from minigpt import keep_compiled_code
from minigpt.kernels import causal_softmax, loss_gradients, run_on_rows
from model import SwiGLUOnCPU, swiglu

pytestmark = pytest.mark.numeric

TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2**-8}  # of numbers of size 1; bfloat16 has 8 bits


# Rows, ids, the size of logits: one row, one id, rows that no vector fits, confident logits.
@pytest.mark.parametrize(("rows", "ids", "size"), [(1, 1, 1), (1, 4099, 3), (5, 37, 1), (4, 200, 30), (3, 64, 1000)])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_losses_and_gradients_of_logits_equal_those_of_cross_entropy(threads, rows, ids, size, dtype):
    torch.manual_seed(0)
    logits, targets = (size * torch.randn(rows, ids)).to(dtype), torch.randint(ids, (rows,))
    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(exact, targets, reduction="none")
    expected.sum().backward()
    losses = torch.empty(rows)
    run_on_rows(loss_gradients, (logits, targets, losses))
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(logits.double(), exact.grad, rtol=TOLERANCES[dtype], atol=2e-6)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_logit_that_is_not_a_finite_number_makes_the_gradients_nan(wrong):
    logits, losses = torch.zeros(2, 40), torch.empty(2)
    logits[0, 7] = wrong
    run_on_rows(loss_gradients, (logits, torch.tensor([3, 3]), losses))
    assert logits[0].isnan().all()
    assert logits[1].isfinite().all()
    assert losses.isfinite().tolist() == [False, True]


@pytest.mark.parametrize(("queries", "first"), [(1, 0), (9, 0), (7, 70)])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", [1, 100])
def test_causal_softmax_equals_torchs_and_is_zero_behind_each_query(threads, queries, first, dtype, size):
    torch.manual_seed(0)
    scores = (size * torch.randn(3, queries, first + queries)).to(dtype)
    later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(first + 1)
    expected = (scores.double() * 0.25).masked_fill(later, -torch.inf).softmax(-1)
    run_on_rows(causal_softmax, (scores,), 0.25, first)
    torch.testing.assert_close(scores.double(), expected, rtol=TOLERANCES[dtype] * (20 if size > 1 else 1), atol=1e-7)
    assert not scores[:, later].any()


@pytest.mark.parametrize("shape", [(1, 2), (2, 3, 70), (1, 1, 64)])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", [1, 50])
def test_swiglu_and_its_gradient_equal_the_plain_ones(threads, shape, dtype, size):
    torch.manual_seed(0)
    x = (size * torch.randn(shape)).to(dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()
    y, expected = SwiGLUOnCPU.apply(x), swiglu(exact)
    grad = torch.randn(expected.shape).to(dtype)
    y.backward(grad)
    expected.backward(grad.double())
    for ours, theirs in ((y, expected), (x.grad, exact.grad)):
        torch.testing.assert_close(ours.double(), theirs, rtol=TOLERANCES[dtype], atol=2e-6 * size)


def test_compiled_code_has_a_folder_where_numba_could_write_to_none(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", "restored at the end")
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    keep_compiled_code([tmp_path / "missing", tmp_path])
    assert "NUMBA_CACHE_DIR" not in os.environ
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    keep_compiled_code([tmp_path / "missing"])
    assert os.access(os.environ["NUMBA_CACHE_DIR"], os.W_OK)
