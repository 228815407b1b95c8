"""PPO: its arithmetic by hand-made cases, and small runs."""

import json
from types import SimpleNamespace

import pytest
import torch
from corpora import write_jsonl
from runs import TINY, finish_run, log_of, write_stages
from tiny import random_ids, tiny_model

from minigpt.checkpoint import load_checkpoint
from minigpt.common.errors import UserError
from minigpt.inference.params import SamplingParams
from minigpt.tuning.ppo import (
    PPO,
    clipped_value_losses,
    estimate_advantages,
    explained_variance,
    token_rewards,
    whiten,
)
from minigpt.tuning.reward_model import load_reward_model
from minigpt.tuning.rollouts import Rollout

MASK = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 0, 0, 0]]).bool()


@pytest.mark.numeric
def test_a_token_costs_its_divergence_and_the_last_one_earns_the_score():
    logprobs = torch.tensor([[9.0, -1.0, -2.0, -0.5, 9.0], [-1.0, -3.0, 9.0, 9.0, 9.0]])
    reference = torch.tensor([[5.0, -2.0, -1.0, -0.5, 5.0], [-1.5, -2.0, 5.0, 5.0, 5.0]])
    rewards = token_rewards(torch.tensor([1.0, -2.0]), logprobs, reference, MASK, kl_weight=0.1)
    expected = [[0, -0.1, 0.1, 1.0, 0], [-0.05, -2.0 + 0.1, 0, 0, 0]]
    assert torch.allclose(rewards, torch.tensor(expected))


@pytest.mark.numeric
def test_advantages_are_the_discounted_surprises_of_the_rest_of_the_answer():
    rewards = torch.tensor([[0, -0.1, 0.2, 1.0, 0], [0.5, -1.0, 0, 0, 0]])
    values = torch.tensor([[7.0, 0.3, 0.6, 0.8, 7.0], [0.25, 0.5, 7.0, 7.0, 7.0]])
    # By hand: surprises r + V' - V, then sums with the factor 0.95 a token.
    first = [-0.1 + 0.6 - 0.3, 0.2 + 0.8 - 0.6, 1.0 - 0.8]
    second = [0.5 + 0.5 - 0.25, -1.0 - 0.5]
    expected = [
        [0, first[0] + 0.95 * first[1] + 0.95**2 * first[2], first[1] + 0.95 * first[2], first[2], 0],
        [second[0] + 0.95 * second[1], second[1], 0, 0, 0],
    ]
    assert torch.allclose(estimate_advantages(rewards, values, MASK), torch.tensor(expected))


@pytest.mark.numeric
def test_white_advantages_have_mean_0_and_deviation_1_over_kept_tokens():
    values = torch.tensor([[50.0, 1.0, 2.0, 3.0, 50.0], [4.0, 5.0, 50.0, 50.0, 50.0]])
    white = whiten(values, MASK)
    assert torch.allclose(white[MASK], torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]) / 2**0.5)
    assert not white[~MASK].any()
    assert not whiten(torch.full_like(values, 3.0), MASK).any()


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("value", "old", "wanted", "loss", "moves"),
    [
        (1.1, 1.0, 2.0, 0.5 * 0.9**2, True),  # within the clip
        (1.5, 1.0, 2.0, 0.5 * 0.8**2, False),  # beyond it, towards the return: no gradient
        (1.5, 1.0, 1.0, 0.5 * 0.5**2, True),  # beyond it, away from the return
    ],
)
def test_a_value_that_moved_far_towards_its_return_has_no_gradient(value, old, wanted, loss, moves):
    values = torch.tensor([value], requires_grad=True)
    losses = clipped_value_losses(values, torch.tensor([old]), torch.tensor([wanted]), clip=0.2)
    losses.sum().backward()
    assert losses.item() == pytest.approx(loss)
    assert bool(values.grad.item()) == moves


@pytest.mark.numeric
def test_explained_variance_is_1_for_right_values_and_0_for_their_mean():
    returns = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(torch.full((4,), 3.0), returns) == pytest.approx(0)
    assert explained_variance(-returns, returns) < 0


@pytest.mark.numeric
def test_the_first_step_on_a_rollout_is_the_plain_policy_gradient(architecture):
    model = tiny_model(architecture=architecture)
    settings = SimpleNamespace(clip=0.2, kl_weight=0.1, value_weight=0.5, rollout_temperature=0.7, batch_size=2)
    rollouts = SimpleNamespace(model=model, start=lambda *parts: None, add_figures=lambda **numbers: None)
    ppo = PPO(settings, rollouts, model, None, None)
    torch.nn.init.normal_(ppo.module.weight, generator=torch.Generator().manual_seed(0))
    ids, mask = random_ids(3, 9), torch.zeros(3, 8).bool()
    for row, (first, end) in enumerate([(2, 8), (4, 5), (1, 6)]):
        mask[row, first:end] = True
    x, y = ids[:, :-1], ids[:, 1:]

    # By plain formulas: log-probabilities at the temperature of sampling, and values of the states.
    states = model.hidden(x)
    logprobs = (model.lm_head(states) / 0.7).log_softmax(-1).gather(2, y[..., None])[..., 0]
    values = states @ ppo.module.weight[0]
    rollout = Rollout(x, y, mask, logprobs.detach(), torch.full(mask.shape, -3.0), torch.tensor([[1.0, 0.0, 2.0]]))
    ppo.prepare_rollout(rollout)
    advantages, old_values, returns = rollout.columns
    assert torch.allclose(old_values[mask], values[mask], atol=1e-5)
    plain = -(advantages * logprobs)[mask].sum() + 0.25 * ((values - returns)[mask] ** 2).sum()
    expected = torch.autograd.grad(plain, [*model.parameters(), ppo.module.weight])

    loss = ppo.loss(model, x, y, mask, *rollout.micro_batch(torch.arange(3))[3:])
    found = torch.autograd.grad(loss, [*model.parameters(), ppo.module.weight])
    assert loss.item() == pytest.approx(
        (0.25 * (values - returns)[mask] ** 2 - advantages[mask]).sum().item(), abs=1e-3
    )
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * max(1.0, b.abs().max().item()))


# Whole runs


def train_policy(folder, out, **changes):
    """A finished PPO run on the questions of `write_stages`; an answer that ends is rewarded."""
    return finish_run(**{
        **TINY, "objective": "ppo", "data_dir": str(folder / "sft"), "init_from": str(folder / "base/last.pt"),
        "out_dir": str(out), "rewards": ["format"], "rollout_questions": 8, "group_size": 4, "updates": 4,
        "rollout_tokens": 12, "max_iters": 8, "eval_interval": 8, "batch_size": 16, "decay_lr": False, **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows of questions, and a base that has seen them for a moment."""
    folder = tmp_path_factory.mktemp("ppo")
    finish_run(**TINY, data_dir=write_stages(folder)["sft"], out_dir=str(folder / "base"))
    return folder


def test_a_run_raises_its_reward_and_shows_what_is_rewarded(folder, tmp_path):
    train_policy(folder, tmp_path / "run", max_iters=60, learning_rate=3e-3, dropout=0.0, eval_interval=30)
    lines = [line for line in log_of(tmp_path / "run") if "reward" in line]
    first, last = (sum(line["reward"] for line in part) / 5 for part in (lines[:5], lines[-5:]))
    assert last > first + 0.3
    assert {"reward", "kl", "length", "signal", "ended", "exact", "explained"} <= set(lines[-1])
    assert lines[-1]["kl"] > lines[0]["kl"] == 0
    validated = [line for line in log_of(tmp_path / "run") if line["val_loss"] is not None]
    assert all(line["val_loss"] == -line["val_reward"] for line in validated)
    samples = list(map(json.loads, (tmp_path / "run/samples.jsonl").read_text(encoding="utf-8").splitlines()))
    assert [sample["reward"] for sample in samples if sample["step"] == 60] == [1.0] * 5


def test_a_run_stopped_amid_a_rollout_goes_on_exactly(folder, tmp_path):
    train_policy(folder, tmp_path / "run", max_iters=6, eval_interval=2)
    train_policy(folder, tmp_path / "run", max_iters=12, eval_interval=2, init_from="resume")
    train_policy(folder, tmp_path / "whole", max_iters=12, eval_interval=2)
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")
    run, whole = (load_checkpoint(tmp_path / name / "last.pt") for name in ("run", "whole"))
    assert all(torch.equal(run["model"][name], whole["model"][name]) for name in whole["model"])
    assert torch.equal(*(each["objective"]["module"]["weight"] for each in (run, whole)))


def test_a_reward_model_rewards_and_another_checkpoint_is_refused(folder, tmp_path):
    pairs = [{"prompt": f"第{i}镇？", "chosen": "东", "rejected": "东西南"} for i in range(8)]
    path = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    base = str(folder / "base/last.pt")
    finish_run(**{
        **TINY, "objective": "reward", "preferences": [str(path)], "init_from": base, "max_iters": 2,
        "out_dir": str(tmp_path / "reward"),
    })  # fmt: skip
    run = train_policy(folder, tmp_path / "run", reward_model=str(tmp_path / "reward/last.pt"), max_iters=4)
    answers = run.data.ask(run.data.val[:3], SamplingParams(temperature=1.0, max_new_tokens=12, seed=1))
    scorer = load_reward_model(tmp_path / "reward/last.pt", run.data.tokenizer, "cpu")
    eot = run.data.tokenizer.eot_id

    def plain(prompt, ids):
        return scorer.model(torch.tensor([[*prompt, *ids, eot]]))[0, -1, 0].item()

    expected = [
        plain(answer.prompt, [token_id for token_id in answer.ids if token_id != eot])
        - plain(answer.prompt, scorer.tokenizer.encode(answer.reference))
        for answer in answers
    ]
    assert run.data.reward_answers(answers) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UserError, match="of stage sft, no reward model"):
        train_policy(folder, tmp_path / "other", reward_model=base)
