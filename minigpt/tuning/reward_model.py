"""A reward model (Ouyang et al. 2022, InstructGPT, section 3.5): a GPT whose head gives one number, an answer's reward.

It reads `prompt MARK answer EOT`, and the reward is the head's output at the EOT. It learns from pairs of answers to
the same prompt. By Bradley and Terry (1952), the one with the reward r is preferred to the one with the reward r' with
the probability σ(r - r'), and training makes the preferences that were given likely.

Only differences between the rewards of a prompt's answers count in that. So that one reward has a meaning, too, the two
rewards of a pair are drawn to a sum of 0 (Eisenstein et al. 2023, "Helping or Herding?", equation 2).
"""

import torch
from torch.nn import functional as F

from data_utils import row_prompts, split_row
from minigpt.checkpoint import load_checkpoint, load_model, stage_of
from minigpt.common.errors import UserError
from minigpt.inference.classify import HeadModel
from minigpt.inference.engine import open_converted
from minigpt.tokenizer import ANSWER_TEXT
from minigpt.tuning.objective import Objective

CENTERING = 0.01  # weight of the squared sum of a pair's rewards


def read_rewards(model, x, loss_mask):
    """(rewards of the chosen answers, of the rejected ones), each (B,) float32, of B pairs: the head's outputs where
    loss_mask (2B, T) is True, once a row. x: ids (2B, T)."""
    rewards = model.lm_head(model.trunk(x)[loss_mask]).squeeze(1).float()
    return rewards[0::2], rewards[1::2]


def bradley_terry_losses(chosen, rejected):
    """-log σ(r_chosen - r_rejected) of rewards (B,) and (B,): InstructGPT's equation 1, of each pair."""
    return F.softplus(rejected - chosen)


class RewardObjective(Objective):
    """Trains a reward model on `PreferenceData`: row 2i of a batch has the chosen answer, row 2i + 1 the rejected.

    Figures: the share of pairs whose chosen answer has the higher reward, in training and in validation.
    """

    def __init__(self):
        self.right = self.pairs = 0  # since the last log, of this process
        self.figures = {}

    def count(self, batch):
        """Number of pairs in a micro-batch."""
        return int(batch[2].sum()) // 2

    def loss(self, model, x, y, loss_mask, numbers):
        """The sum of `bradley_terry_losses`, and of the squares that center the rewards."""
        chosen, rejected = read_rewards(model, x, loss_mask)
        self.right += int((chosen > rejected).sum())
        self.pairs += len(chosen)
        return (bradley_terry_losses(chosen, rejected) + CENTERING * (chosen + rejected) ** 2).sum()

    @torch.no_grad()
    def validate(self, run):
        """The mean of `bradley_terry_losses` over the validation pairs, in nats; sets the figure val_accuracy."""
        loss, right, pairs = 0.0, 0, 0
        for x, _, loss_mask, _ in run.data.batches_of("val", run.processes.rank, run.processes.count):
            with run.precision.context(run.device):
                chosen, rejected = read_rewards(run.model, x.to(run.device), loss_mask.to(run.device))
            loss += bradley_terry_losses(chosen, rejected).sum().item()
            right += int((chosen > rejected).sum())
            pairs += len(chosen)
        loss, right, pairs = run.processes.total(loss, right, pairs)
        self.figures["val_accuracy"] = right / pairs
        return loss / pairs

    def sample_line(self, run):
        """The first validation pair with its rewards."""
        special_ids, decode = run.data.meta["special_ids"], run.data.tokenizer.decode
        scorer = RewardModel(run.model, run.data.tokenizer, run.data.meta["task"])
        pairs = [row_prompts(row, special_ids)[-1] for row in run.data.val[0]]
        question, _ = split_row(run.data.val[0][0], special_ids)[-1]
        run.model.eval()
        rewards = scorer.score(pairs)
        run.model.train()
        shown = [f"{decode(answer)} ({reward:.2f})" for (_, answer), reward in zip(pairs, rewards, strict=True)]
        return f"{decode(question)} → {shown[0]} or {shown[1]}"

    def take_figures(self):
        """{"accuracy", "val_accuracy"} since the last call, where there was a step, or a validation."""
        figures, self.figures = self.figures, {}
        if self.pairs:
            figures["accuracy"] = self.right / self.pairs
        self.right = self.pairs = 0
        return figures

    def state_dict(self):
        """The counts that are not logged yet."""
        return {"right": self.right, "pairs": self.pairs}

    def load_state_dict(self, state):
        """Restore what `state_dict` returned."""
        self.right, self.pairs = state["right"], state["pairs"]


class RewardModel(HeadModel):
    """A reward model in use."""

    def score(self, pairs):
        """[reward] of pairs (prompt, answer), lists of ids: a prompt ends with the answer mark, an answer before its
        EOT. Of a row that is longer than the model's block the beginning is left out."""
        rows = [[*prompt, *answer, self.tokenizer.eot_id][-self.block_size :] for prompt, answer in pairs]
        return [output.item() for output in self.outputs([(ids, [len(ids) - 1]) for ids in rows])]

    def reward_answers(self, answers):
        """[reward] of sampled `Answer`s, less their references' rewards: the log-odds that an answer is preferred.

        So the references have the reward 0, as on average in InstructGPT, and one above 0 shows what the reward model
        was tricked with. Where an answer was cut off, an EOT is put.
        """
        pairs = [(a.prompt, a.ids[:-1] if a.ended else a.ids) for a in answers]
        pairs += [(a.prompt, self.tokenizer.encode(a.reference)) for a in answers]
        keys = [(tuple(prompt), tuple(answer)) for prompt, answer in pairs]
        distinct = dict(zip(keys, pairs, strict=True))  # many samples are equal
        found = dict(zip(distinct, self.score(list(distinct.values())), strict=True))
        own, references = keys[: len(answers)], keys[len(answers) :]
        return [found[a] - found[b] for a, b in zip(own, references, strict=True)]

    def score_text(self, text):
        """The reward of a text `question ## answer`. Raises UserError for one without the mark."""
        question, mark, answer = text.partition(ANSWER_TEXT)
        if not mark:
            raise UserError(f"this model rewards an answer: write question {ANSWER_TEXT} answer")
        prompt = self.tokenizer.encode_prompt(question, answer=True)
        (reward,) = self.score([(prompt, self.tokenizer.encode(answer.strip()))])
        return reward


def check_reward_model(content, path):
    """Raise UserError unless a checkpoint's dict is a reward model's."""
    if (stage := stage_of(content)) != "reward":
        raise UserError(f"{path} is of stage {stage}, no reward model; train one with config/reward.py")


def open_reward_model(ckpt, settings):
    """(path, checkpoint's dict, `RewardModel`) of a checkpoint; arguments and errors: as of `open_converted`."""
    path, content, model, tokenizer, about = open_converted(ckpt, settings)
    check_reward_model(content, path)
    scorer = RewardModel(model, tokenizer, content["task"])
    scorer.about = about
    return path, content, scorer


def load_reward_model(path, tokenizer, device):
    """The `RewardModel` of a checkpoint, frozen, in float32 on a device, which rewards the answers of a policy.

    tokenizer: the policy's. Raises UserError where the reward model has another, or is none.
    """
    content = load_checkpoint(path)
    check_reward_model(content, path)
    own = content["tokenizer"]
    if own["sha256"] != tokenizer.sha256:
        raise UserError(
            f"the reward model {path} has the tokenizer {own['name']} ({own['sha256'][:8]}…), the policy has "
            f"{tokenizer.name} ({tokenizer.sha256[:8]}…); train a reward model that begins as the policy does"
        )
    model, tokenizer = load_model(content, device)
    return RewardModel(model.requires_grad_(False), tokenizer, content["task"])
