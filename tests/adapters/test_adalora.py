"""AdaLoRA: the penalty's gradient, what is cut, when, and that a resumed budget goes on as it would have."""

import copy

import pytest
import torch
from adapting import adapting, randomize, with_lora
from tiny import random_ids, tiny_model

from minigpt.adapters.adalora import ORTHOGONALITY_WEIGHT, AdaLoRABudget
from minigpt.adapters.lora import merge_lora

STEPS, RANK, FINAL_RANK = 40, 4, 2
PARTS = 2 * 7  # layers, and matrices of qwen3's blocks


def model_with_budget():
    """(GPT in training mode with AdaLoRA, its budget)."""
    model = with_lora("qwen3", trained=False, rank=RANK, adalora_rank=FINAL_RANK).train()
    return model, AdaLoRABudget(model, adapting(rank=RANK, adalora_rank=FINAL_RANK))


def values(model):
    """The values e of all triplets of a model."""
    return torch.cat([p for name, p in model.named_parameters() if name.endswith("lora_e")])


def backward(model, step):
    """The gradients of a small batch that depends on the step; returns its loss."""
    ids = random_ids(4, 17, seed=step % 3)
    loss = model.loss_sum(ids[:, :-1], ids[:, 1:], torch.ones(4, 16, dtype=torch.bool)) / 64
    loss.backward()
    return loss.item()


def train(model, budget, first=0, last=STEPS):
    """Train as train.py does; returns (losses, numbers of triplets that are not zero after each step)."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 2e-2)
    losses, counts = [], []
    for step in range(first, last):
        losses.append(backward(model, step))
        budget.add_penalty_gradients()
        optimizer.step()
        budget.allocate(step + 1, STEPS)
        optimizer.zero_grad()
        counts.append(int(values(model).count_nonzero()))
    return losses, counts


@pytest.mark.numeric
def test_the_penaltys_gradient_is_autograds():
    model, budget = model_with_budget()
    randomize(model)
    backward(model, 0)
    of_loss = {name: p.grad.clone() for name, p in budget.parameters()}
    budget.add_penalty_gradients()
    for name in ("lora_a", "lora_b"):
        parameters = {n: p for n, p in budget.parameters() if n.endswith(name)}
        penalty = 0
        for key, p in parameters.items():
            layer = model.get_submodule(key.rpartition(".")[0])
            for part in p.split(layer.rank if name == "lora_a" else layer.chosen_rows):
                rows = part if name == "lora_a" else part.T
                penalty = penalty + (rows @ rows.T - torch.eye(RANK)).square().sum() * ORTHOGONALITY_WEIGHT / PARTS
        grads = torch.autograd.grad(penalty, list(parameters.values()))
        for (key, p), grad in zip(parameters.items(), grads, strict=True):
            torch.testing.assert_close(p.grad, of_loss[key] + grad, rtol=1e-4, atol=1e-6)


def test_the_budget_falls_to_its_end_and_the_model_learns():
    model, budget = model_with_budget()
    losses, counts = train(model, budget)
    assert counts[0] == budget.first == PARTS * RANK and counts[-1] == budget.last == PARTS * FINAL_RANK
    at_cuts = counts[9::10]
    assert at_cuts == [budget.budget(step, STEPS) for step in (10, 20, 30, 40)] and at_cuts[0] > at_cuts[1] > at_cuts[2]
    assert set(counts[-8:]) == {budget.last}
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.3


def test_what_is_zero_is_the_least_important():
    """The definition: importance is smoothed sensitivity times uncertainty, of a triplet by plain loops."""
    model, budget = model_with_budget()
    train(model, budget)
    scores = []
    for name, layer in budget.layers.items():
        kept = {
            key: budget.sensitivity[f"{name}.{key}"] * budget.uncertainty[f"{name}.{key}"]
            for key in ("lora_a", "lora_b", "lora_e")
        }
        first = 0
        for part, rows in enumerate(layer.chosen_rows):
            for i in range(RANK):
                at = part * RANK + i
                column = kept["lora_b"][first : first + rows, i]
                score = kept["lora_e"][at] + kept["lora_a"][at].mean() + column.mean()
                scores.append((score.item(), bool(layer.lora_e[at])))
            first += rows
    assert min(s for s, is_kept in scores if is_kept) > max(s for s, is_kept in scores if not is_kept)


def test_importance_is_smoothed_over_the_steps():
    model, budget = model_with_budget()
    randomize(model)
    name, p = next(budget.parameters())
    mean = spread = torch.zeros_like(p)
    for step in range(3):
        model.zero_grad()
        backward(model, step)
        budget.allocate(step + 1, STEPS)
        now = (p * p.grad).abs()
        mean = 0.85 * mean + 0.15 * now
        spread = 0.85 * spread + 0.15 * (now - mean).abs()
    torch.testing.assert_close(budget.sensitivity[name], mean)
    torch.testing.assert_close(budget.uncertainty[name], spread)


def test_a_resumed_budget_goes_on_as_it_would_have():
    model, budget = model_with_budget()
    train(model, budget, last=15)
    resumed, its_budget = model_with_budget()
    resumed.load_state_dict(copy.deepcopy(model.state_dict()))
    its_budget.load_state_dict(copy.deepcopy(budget.state_dict()))
    train(model, budget, first=15)
    train(resumed, its_budget, first=15)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))


def test_it_merges_into_a_plain_model():
    model, budget = model_with_budget()
    train(model, budget)
    ids = random_ids(2, 20)
    expected = model.eval()(ids)
    merge_lora(model)
    assert model.state_dict().keys() == tiny_model(architecture="qwen3").state_dict().keys()
    torch.testing.assert_close(model(ids), expected, rtol=1e-4, atol=1e-4)
