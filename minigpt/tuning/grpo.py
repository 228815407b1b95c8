"""GRPO, group relative policy optimization (Shao et al. 2024: DeepSeekMath, eq. 3 and 4).

Several answers are sampled to each question. An answer's advantage is its reward less the mean of its group, divided
by the group's standard deviation; all of its tokens have it. With the ratio r = p(token) / p_old(token), where p_old
is the policy that sampled, and A the advantage, a token's loss is

    - min(r A, clip(r, 1 - clip, 1 + clip) A) + kl_weight * KL

KL is the estimate k3 of the divergence to the reference, the model that the run began with.

The loss of a step is the mean over all tokens of its answers, as in DAPO (Yu et al. 2025, eq. 8). DeepSeekMath takes
the mean over an answer's tokens first, so that a token of a long wrong answer counts less than one of a short wrong
answer, and answers grow longer (Dr. GRPO: Liu et al. 2025). Questions whose answers all have the same reward teach
nothing, so their answers are left out (as in DAPO), unless all of a rollout's questions are such.
"""

import torch

from minigpt.tuning.logprobs import target_logprobs
from minigpt.tuning.rollouts import PolicyObjective, has_signal, kl_estimate

MIN_DEVIATION = 1e-4  # of a group's rewards, by which it is divided at least


def group_advantages(rewards):
    """Advantages (questions, group_size) of rewards (questions, group_size): standardized within each group."""
    centered = rewards - rewards.mean(1, keepdim=True)
    return centered / rewards.std(1, correction=0, keepdim=True).clamp(min=MIN_DEVIATION)


def clipped_loss(logprobs, old_logprobs, advantages, clip):
    """PPO's clipped loss (Schulman et al. 2017, eq. 7) of each token, to be minimised; all tensors (N,)."""
    ratio = (logprobs - old_logprobs).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


class GRPO(PolicyObjective):
    """GRPO over `Rollouts`. The column of a micro-batch: advantages (B,)."""

    def choose_questions(self, rewards):
        """The questions whose answers differ in reward; all where there is none."""
        signal = has_signal(rewards)
        return signal if signal.any() else ~signal

    def prepare_rollout(self, rollout):
        """Set the advantages."""
        rollout.columns = (group_advantages(rollout.rewards).flatten(),)

    def loss(self, model, x, y, loss_mask, old_logprobs, reference_logprobs, advantages):
        """The summed loss of all sampled tokens of a micro-batch."""
        logprobs = target_logprobs(model, x, y, loss_mask, self.settings.rollout_temperature)
        token_advantages = advantages[:, None].expand(loss_mask.shape)[loss_mask]
        losses = clipped_loss(logprobs, old_logprobs[loss_mask], token_advantages, self.settings.clip)
        return (losses + self.settings.kl_weight * kl_estimate(reference_logprobs[loss_mask] - logprobs)).sum()
