"""PPO (Schulman et al. 2017) with a value head, as InstructGPT trains its policy (Ouyang et al. 2022, section 3.5).

A token of a sampled answer is an action, the prompt and the tokens before it are the state. Shapes: B answers, T
positions; what belongs to a token is at its place among the targets, and counts where loss_mask (B, T) is True.
"""

import torch

GAMMA = 1.0  # discount of later rewards: an answer is rewarded once, at its end
LAMBDA = 0.95  # of `estimate_advantages`: 1 has no bias by wrong values, 0 the least variance


def token_rewards(scores, logprobs, reference_logprobs, loss_mask, kl_weight):
    """Rewards (B, T): each token costs kl_weight · (log π - log π_reference), the last one earns the answer's score.

    Their sum over an answer is what InstructGPT maximizes (its equation 2, without the pretraining gradients).
    scores: (B,); logprobs, reference_logprobs: (B, T), of the policy that sampled, and of the model that it began as.
    """
    rewards = torch.where(loss_mask, -kl_weight * (logprobs - reference_logprobs), 0.0)
    last = loss_mask.shape[1] - 1 - loss_mask.int().flip(1).argmax(dim=1)
    rewards[torch.arange(len(rewards), device=rewards.device), last] += scores
    return rewards


def estimate_advantages(rewards, values, loss_mask):
    """Generalized advantage estimates (B, T) (Schulman et al. 2016, equation 16; PPO's equations 11 and 12).

    rewards: (B, T), from `token_rewards`; values: (B, T), what the value head expects before each token. The kept
    tokens of a row stand together; 0 follows the last one.
    """
    values = torch.where(loss_mask, values, 0.0)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        surprise = rewards[:, t] + GAMMA * next_value - values[:, t]
        next_advantage = torch.where(loss_mask[:, t], surprise + GAMMA * LAMBDA * next_advantage, 0.0)
        advantages[:, t], next_value = next_advantage, values[:, t]
    return advantages


def whiten(values, loss_mask):
    """values (B, T) with mean 0 and standard deviation 1 over the kept tokens; 0 where all are equal."""
    kept = values[loss_mask]
    deviation = kept.std(correction=0).clamp(min=1e-8)
    return torch.where(loss_mask, (values - kept.mean()) / deviation, 0.0)


def clipped_value_losses(values, old_values, returns, clip):
    """Losses (N,) of values (N,): half the squared error to the returns, or that of a value within old_values ± clip,
    whichever is larger."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def explained_variance(values, returns):
    """Share of the variance of returns (N,) that values (N,) explain: 1 for all of it, below 0 for worse than their
    mean."""
    return 1 - ((returns - values).var(correction=0) / returns.var(correction=0).clamp(min=1e-8)).item()
