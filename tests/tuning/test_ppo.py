"""PPO's arithmetic by hand-made cases."""

import pytest
import torch
from runs import TINY, finish_run, log_of, write_stages

from minigpt.tuning.ppo import (
    clipped_value_losses,
    estimate_advantages,
    explained_variance,
    token_rewards,
    whiten,
)

pytestmark = pytest.mark.numeric
MASK = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 0, 0, 0]]).bool()


def test_a_token_costs_its_divergence_and_the_last_one_earns_the_score():
    logprobs = torch.tensor([[9.0, -1.0, -2.0, -0.5, 9.0], [-1.0, -3.0, 9.0, 9.0, 9.0]])
    reference = torch.tensor([[5.0, -2.0, -1.0, -0.5, 5.0], [-1.5, -2.0, 5.0, 5.0, 5.0]])
    rewards = token_rewards(torch.tensor([1.0, -2.0]), logprobs, reference, MASK, kl_weight=0.1)
    expected = [[0, -0.1, 0.1, 1.0, 0], [-0.05, -2.0 + 0.1, 0, 0, 0]]
    assert torch.allclose(rewards, torch.tensor(expected))


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


def test_white_advantages_have_mean_0_and_deviation_1_over_kept_tokens():
    values = torch.tensor([[50.0, 1.0, 2.0, 3.0, 50.0], [4.0, 5.0, 50.0, 50.0, 50.0]])
    white = whiten(values, MASK)
    assert torch.allclose(white[MASK], torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]) / 2**0.5)
    assert not white[~MASK].any()
    assert not whiten(torch.full_like(values, 3.0), MASK).any()


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


def test_explained_variance_is_1_for_right_values_and_0_for_their_mean():
    returns = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(torch.full((4,), 3.0), returns) == pytest.approx(0)
    assert explained_variance(-returns, returns) < 0


def train_policy(folder, out, **changes):
    """A finished PPO run on the questions of `write_stages`."""
    return finish_run(**{
        **TINY, "objective": "ppo", "data_dir": str(folder / "sft"), "init_from": str(folder / "base/last.pt"),
        "out_dir": str(out), "rewards": ["format"], "rollout_questions": 4, "group_size": 4, "updates": 2,
        "rollout_tokens": 16, "max_iters": 8, "eval_interval": 4, "head_learning_rate": 1e-2, "dropout": 0.0, **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows of questions, and a base that has seen them for a moment."""
    folder = tmp_path_factory.mktemp("ppo")
    finish_run(**TINY, data_dir=write_stages(folder)["sft"], out_dir=str(folder / "base"))
    return folder


def test_first(folder, tmp_path):
    train_policy(folder, tmp_path / "run")
    for line in log_of(tmp_path / "run"): print(line)
    print(open(tmp_path / "run" / "samples.jsonl").read())
    assert 0
