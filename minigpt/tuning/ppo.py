"""PPO (Schulman et al. 2017) with a value head, as InstructGPT trains its policy (Ouyang et al. 2022, section 3.5).

A token of a sampled answer is an action, and the prompt with the tokens before it is the state. An answer earns its
reward at its last token, and each token costs its divergence from the reference, the model that the run began with. A
token's advantage is what the answer earns from there on, beyond what the value head expected. With the ratio
r = p(token) / p_old(token), where p_old is the policy that sampled, and A the advantage, a token's loss is

    - min(r A, clip(r, 1 - clip, 1 + clip) A) + value_weight * (clipped squared error of the value) / 2

and the loss of a step is its mean over all tokens. The value head is a linear layer on the policy's states.

Shapes: B answers, T positions; what belongs to a token is at its place among the targets, and counts where loss_mask
(B, T) is True.
"""

import torch
from torch import nn

from minigpt.tuning.grpo import clipped_loss
from minigpt.tuning.logprobs import state_logprobs
from minigpt.tuning.rollouts import PolicyObjective

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


class PPO(PolicyObjective):
    """PPO over `Rollouts`. A micro-batch's columns, each (B, T): advantages, values, returns.

    Figures beside those of `PolicyObjective`: value_loss; explained: share of the returns' variance that the values
    explained before the update.
    """

    def __init__(self, settings, rollouts, model, reference, reward_answers):
        super().__init__(settings, rollouts, model, reference, reward_answers)
        self.module = nn.Linear(model.config.n_embd, 1, bias=False, device=model.wte.weight.device)
        nn.init.zeros_(self.module.weight)

    def prepare_rollout(self, rollout):
        """Set the advantages, values and returns."""
        mask, values = rollout.loss_mask, self.predict_values(rollout)
        rewards = token_rewards(
            rollout.rewards.flatten(), rollout.old_logprobs, rollout.reference_logprobs, mask, self.settings.kl_weight
        )
        advantages = estimate_advantages(rewards, values, mask)
        returns = advantages + values
        rollout.columns = whiten(advantages, mask), values, returns
        self.rollouts.add_figures(explained=explained_variance(values[mask], returns[mask]))

    @torch.no_grad()
    def predict_values(self, rollout):
        """Values (N, T) of a rollout's tokens before the update, 0 outside of loss_mask."""
        model = self.rollouts.model
        was_training, device = model.training, model.wte.weight.device
        model.eval()
        found = torch.zeros(rollout.x.shape)
        for rows in torch.arange(len(found)).split(self.settings.batch_size):
            x, mask = rollout.x[rows].to(device), rollout.loss_mask[rows]
            with self.precision.context(device):
                values = self.module(model.trunk(x)[mask.to(device)])
            found[rows] = found[rows].masked_scatter(mask, values.float().cpu())
        model.train(was_training)
        return found

    def loss(self, model, x, y, loss_mask, old_logprobs, reference_logprobs, advantages, old_values, returns):
        """The summed loss of all sampled tokens of a micro-batch."""
        states = model.trunk(x)[loss_mask]
        logprobs = state_logprobs(model, states, y[loss_mask], self.settings.rollout_temperature)
        policy = clipped_loss(logprobs, old_logprobs[loss_mask], advantages[loss_mask], self.settings.clip)
        values = self.module(states).squeeze(1).float()
        value = clipped_value_losses(values, old_values[loss_mask], returns[loss_mask], self.settings.clip)
        self.rollouts.add_figures(value_loss=value.detach().mean())
        return (policy + self.settings.value_weight * value).sum()
