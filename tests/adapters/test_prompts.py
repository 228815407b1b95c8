"""Virtual tokens: training with them is training with embeddings before every row; how each method begins."""

import pytest
import torch
from tiny import random_ids, tiny_model, tiny_tokenizer

from minigpt.adapters.prompts import (
    EncodedPrompt,
    Prefix,
    PromptTokens,
    check_room,
    flatten_virtual,
    make_virtual_tokens,
    run_embeddings,
)
from minigpt.common.errors import UserError
from minigpt.settings.stages import Adapting

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def settings(**changed):
    return Adapting(**{"method": "prompt", "virtual_tokens": 5, **changed})


def frozen_model(architecture):
    return tiny_model(architecture=architecture).requires_grad_(False)


def batch(rows):
    mask = torch.ones(rows, 11, dtype=torch.bool)
    mask[0, 4:] = False
    return random_ids(rows, 11), random_ids(rows, 11, seed=2), mask


def loss_behind(model, embeddings, x, y, mask):
    """The plain way: the embeddings stand before those of every row, and their outputs are dropped."""
    n = len(embeddings)
    together = torch.cat([embeddings.expand(len(x), -1, -1), model.wte(x)], dim=1)
    logits = model.lm_head(model.states(together, torch.arange(n + x.shape[1]))[:, n:])
    return torch.nn.functional.cross_entropy(logits[mask], y[mask], reduction="sum")


@pytest.mark.numeric
@pytest.mark.parametrize("rows, n", [(1, 5), (4, 5), (4, 1)])
def test_a_prompt_trains_as_embeddings_before_every_row_do(architecture, rows, n):
    model, data = frozen_model(architecture), batch(rows)
    plain = (0.2 * torch.randn(n, 32)).requires_grad_()
    expected = loss_behind(model, plain, *data)
    expected.backward()

    model.virtual = PromptTokens(plain.detach())
    loss = model.loss_sum(*data)
    loss.backward()
    torch.testing.assert_close(loss, expected, **CLOSE)
    torch.testing.assert_close(model.virtual.embeddings.grad, plain.grad, **CLOSE)
    torch.testing.assert_close(model.token_losses(*data).sum(), expected, **CLOSE)
    assert all(p.grad is None for name, p in model.named_parameters() if not name.startswith("virtual."))

    # A prefix of the same keys and values: its gradient, passed on to the embeddings that they come from, is the same.
    embeddings = plain.detach().clone().requires_grad_()
    start = flatten_virtual(run_embeddings(model, embeddings))
    model.virtual = Prefix(start.detach())
    loss = model.loss_sum(*data)
    loss.backward()
    start.backward(model.virtual.embeddings.grad)
    torch.testing.assert_close(loss, expected, **CLOSE)
    torch.testing.assert_close(embeddings.grad, plain.grad, **CLOSE)


@pytest.mark.numeric
@pytest.mark.parametrize("method, width", [("prompt", 0), ("p-tuning", 16), ("prefix", 0), ("prefix", 16)])
def test_each_method_begins_as_its_text_before_every_row_and_all_of_it_trains(architecture, method, width):
    model, (x, y, mask) = frozen_model(architecture), batch(2)
    ids = tiny_tokenizer().encode("的河a")
    for n, begin in ((2, ids[:2]), (7, [*ids, *ids, ids[0]])):
        config = settings(method=method, virtual_tokens=n, prompt_text="的河a", prefix_width=width)
        model.virtual = make_virtual_tokens(model, config, tiny_tokenizer())
        behind = torch.cat([torch.tensor(begin).expand(2, -1), x], dim=1)
        virtual, model.virtual = model.virtual, None
        expected = model(behind)[:, n:]
        model.virtual = virtual
        torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-3)
    model.loss_sum(x, y, mask).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.virtual.parameters())


def test_random_tokens_are_drawn_by_the_seed_and_differ():
    model = frozen_model("qwen3")
    torch.manual_seed(3)
    first, other = (make_virtual_tokens(model, settings(), tiny_tokenizer()).embeddings for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(make_virtual_tokens(model, settings(), tiny_tokenizer()).embeddings, first)
    assert not torch.equal(first, other)
    assert all((model.wte.weight == row).all(dim=1).any() for row in first)


def test_an_encoder_as_narrow_as_it_may_be_still_begins_close():
    """Fewer hidden units than virtual tokens cannot give every embedding; the nearest are taken."""
    start = torch.randn(6, 32)
    prompt = EncodedPrompt(start, 3)
    assert 0 < (prompt.finished() - start).norm() < start.norm()


def test_virtual_tokens_count_against_the_block():
    check_room(8, 32, 24, "rows")
    with pytest.raises(UserError, match="take at most 8 virtual tokens, or prepare the rows with --block_size=23"):
        check_room(9, 32, 24, "rows")


def test_virtual_tokens_that_fill_the_block_are_refused():
    with pytest.raises(UserError, match="virtual_tokens is 32, but the model has 32 positions"):
        make_virtual_tokens(frozen_model("gpt2"), settings(virtual_tokens=32), tiny_tokenizer())
