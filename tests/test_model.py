"""The GPT compared with plain computations: parameters, KV cache, masked loss, causality."""

import math

import pytest
import torch
from tiny import ARCHITECTURE_FIELDS, PAD, VOCAB, padded_rows, random_ids, tiny_meta, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from data_utils import make_batch
from minigpt.inference.model_runner import ModelRunner
from model import GPT, GPTConfig

pytestmark = pytest.mark.numeric


def test_the_default_model_has_123_59m_parameters():
    with torch.device("meta"):  # shapes without memory
        model = GPT(GPTConfig())
    assert f"{model.num_params() / 1e6:.2f}" == "123.59"
    everything = {id(p): p.numel() for p in model.parameters()}
    assert sum(everything.values()) == model.num_params() + 512 * 768
    assert not any(name.endswith("bias") for name, _ in model.named_parameters())


def test_embedding_and_output_layer_share_their_weight():
    model, untied = tiny_model(), tiny_model(architecture="qwen3")
    assert model.wte.weight is model.lm_head.weight
    assert model.wte.weight.shape == untied.lm_head.weight.shape == (VOCAB, 32)
    assert not torch.equal(untied.wte.weight, untied.lm_head.weight)
    assert untied.num_params() == sum(p.numel() for p in untied.parameters())


def test_an_untrained_model_has_the_loss_of_a_uniform_distribution(architecture):
    torch.manual_seed(0)
    model = GPT(GPTConfig(32, VOCAB, n_layer=2, n_embd=32, **{"n_head": 4, **ARCHITECTURE_FIELDS[architecture]}))
    x, y = random_ids(8, 31), random_ids(8, 31, seed=2)
    loss = model.token_losses(x, y, torch.ones_like(x, dtype=torch.bool)).mean().item()
    assert loss == pytest.approx(math.log(VOCAB), abs=0.1)


@pytest.mark.parametrize("shape", [{}, {"bias": True}, {"architecture": "qwen3"}], ids=str)
@pytest.mark.parametrize("prompt_length", [1, 5, 31])
@torch.inference_mode()
def test_logits_from_the_cache_equal_the_full_forward(shape, prompt_length):
    model, ids = tiny_model(**shape), random_ids(3, 32)
    full, runner = model(ids), ModelRunner(model, max_batch=3)
    logits = [runner.prefill(ids[:, :prompt_length].tolist())]
    logits += [runner.step(ids[:, t].tolist(), [t] * 3) for t in range(prompt_length, 32)]
    torch.testing.assert_close(torch.stack(logits, dim=1), full[:, prompt_length - 1 :], atol=1e-5, rtol=0)


def test_more_positions_than_block_size_are_refused():
    with pytest.raises(ValueError, match=r"33.*32"):
        tiny_model()(random_ids(1, 33))


def batch(lengths=(12, 3, 32, 7)):
    """x, y, mask of rows of different lengths, padded with PAD."""
    rows = [random_ids(n, seed=n).tolist() for n in lengths]
    return make_batch(padded_rows(rows, 32), tiny_meta("pretrain"))


def test_token_losses_equal_a_plain_loop_over_all_logits(architecture):
    x, y, mask = batch()
    mask &= random_ids(*mask.shape, below=3) > 0  # holes, so that a wrong order of the losses is noticed
    fast, plain = tiny_model(architecture=architecture), tiny_model(architecture=architecture)
    losses = fast.token_losses(x, y, mask)
    expected = []
    logits = plain(x)  # at every position, PAD included
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            if mask[b, t]:
                expected.append(torch.logsumexp(logits[b, t], dim=0) - logits[b, t, y[b, t]])
    torch.testing.assert_close(losses, torch.stack(expected), atol=1e-5, rtol=0)
    losses.mean().backward()
    torch.stack(expected).mean().backward()
    for (name, p), q in zip(fast.named_parameters(), plain.parameters(), strict=True):
        assert q.grad.abs().max() > 0, name
        torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


def test_a_batch_without_any_target_has_no_loss_and_no_gradient(architecture):
    model, (x, y, mask) = tiny_model(architecture=architecture), batch()
    losses = model.token_losses(x, y, torch.zeros_like(mask))
    assert losses.shape == (0,)
    losses.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_training_flops_are_those_that_torch_counts(architecture):
    """Without attention's scores, of which torch counts the masked half too."""
    model, x = tiny_model(architecture=architecture), random_ids(4, 32)  # as many targets as a multiple of the padding
    with FlopCounterMode(display=False) as counter:
        model.token_losses(x, x, torch.ones_like(x, dtype=torch.bool)).sum().backward()
    products = {op: n for op, n in counter.get_flop_counts()["Global"].items() if "attention" not in str(op)}
    assert sum(products.values()) == model.training_flops(x.numel(), x.numel(), squares=0)


def test_frozen_matrices_have_no_flops_for_their_own_gradients():
    model, x = tiny_model(architecture="qwen3"), random_ids(4, 32)
    model.requires_grad_(False)
    model.wte.weight.requires_grad_(True)  # untied: its gradient takes no product, and all blocks' inputs have one
    with FlopCounterMode(display=False) as counter:
        model.token_losses(x, x, torch.ones_like(x, dtype=torch.bool)).sum().backward()
    products = {op: n for op, n in counter.get_flop_counts()["Global"].items() if "attention" not in str(op)}
    assert sum(products.values()) == model.training_flops(x.numel(), x.numel(), squares=0)


@torch.inference_mode()
def test_a_later_token_changes_no_earlier_logit(architecture):
    model, ids = tiny_model(architecture=architecture), random_ids(2, 32)
    before = model(ids)
    for position in (1, 16, 31):
        changed = ids.clone()
        changed[:, position] = (ids[:, position] + 1) % 256
        after = model(changed)
        torch.testing.assert_close(after[:, :position], before[:, :position], atol=1e-5, rtol=0)
        for later in range(position, 32):
            assert (after[:, later] - before[:, later]).abs().max() > 1e-4


@torch.inference_mode()
def test_the_logits_depend_on_the_order_of_the_tokens(architecture):
    model, ids = tiny_model(architecture=architecture), random_ids(1, 32)
    model.h = model.h[:1]  # what one block attends to without positions has no order
    for position in (0, 9, 29):
        swapped = ids.clone()
        swapped[0, [position, position + 1]] = ids[0, [position + 1, position]]
        assert (model(swapped)[0, -1] - model(ids)[0, -1]).abs().max() > 1e-2


@torch.inference_mode()
def test_padding_after_a_row_changes_no_logit_and_no_loss(architecture):
    model, short = tiny_model(architecture=architecture), random_ids(1, 9)
    padded = torch.cat([short, torch.full((1, 20), PAD)], dim=1)
    torch.testing.assert_close(model(padded)[:, :9], model(short), atol=1e-5, rtol=0)
    x, y, mask = batch()
    together = model.token_losses(x, y, mask)
    alone = torch.cat([model.token_losses(*batch([n])) for n in (12, 3, 32, 7)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_dropout_acts_in_training_only(architecture):
    model, ids = tiny_model(dropout=0.5, architecture=architecture), random_ids(1, 8)
    assert torch.equal(model(ids), model(ids))
    assert torch.equal(model(ids), tiny_model(dropout=0.0, architecture=architecture)(ids))
    model.train()
    assert not torch.allclose(model(ids), model(ids))


def test_a_token_attends_in_both_directions_but_not_to_padding(architecture):
    model = tiny_model(architecture=architecture)
    model.config.causal = False
    row, other = random_ids(1, 7), random_ids(1, 12, seed=2)
    alone = model(row)

    # Beside a longer row it has the same logits: the padding behind it has no effect.
    padded = torch.cat([torch.nn.functional.pad(row, (0, 5), value=-1), other])
    torch.testing.assert_close(model(padded)[:1, :7], alone, rtol=1e-4, atol=1e-4)

    # Its first logits depend on its last token.
    changed = row.clone()
    changed[0, -1] = (row[0, -1] + 1) % 256
    assert (model(changed)[0, 0] - alone[0, 0]).abs().max() > 1e-3


def test_a_frozen_output_layer_gets_no_gradient_and_changes_no_other():
    model = tiny_model(architecture="qwen3")
    x, y, mask = random_ids(2, 9), random_ids(2, 9, seed=2), torch.ones(2, 9, dtype=torch.bool)
    model.loss_sum(x, y, mask).backward()
    expected = model.h[0].mlp.c_fc.weight.grad.clone()
    model.zero_grad()
    model.lm_head.weight.requires_grad_(False)
    model.loss_sum(x, y, mask).backward()
    torch.testing.assert_close(model.h[0].mlp.c_fc.weight.grad, expected)
    assert model.lm_head.weight.grad is None


def test_a_head_of_labels_is_an_output_layer_of_its_own():
    model = GPT(GPTConfig(32, VOCAB, n_layer=2, n_head=4, n_embd=32, n_labels=3)).eval()
    assert not model.config.tied and model.lm_head.weight.shape == (3, 32)
    x, y, mask = random_ids(4, 9), random_ids(4, 9, below=3), torch.zeros(4, 9, dtype=torch.bool)
    mask[:, -1] = True
    losses = torch.nn.functional.cross_entropy(model(x)[:, -1], y[:, -1], reduction="none")
    torch.testing.assert_close(model.token_losses(x, y, mask), losses)
    torch.testing.assert_close(model.loss_sum(x, y, mask), losses.sum())
