"""Answers that the model in training samples to training questions, with their rewards: what GRPO and PPO learn from.

A rollout is `group_size` answers to each of `rollout_questions` questions, by the weights of now. `updates` optimizer
steps follow, each on another part of its rows. Then the next questions are asked.

A micro-batch is `(x, y, loss_mask, old_logprobs, reference_logprobs, *columns)`, all with B rows, one an answer:
  x, y                 int64 (B, T): ids of `question MARK answer EOT` and the next ones, padded on the right with 0
  loss_mask            bool (B, T): where y is a sampled token; an EOT that ended the answer is one of them
  old_logprobs         float32 (B, T): log-probabilities of y under the policy that sampled it, 0 outside of loss_mask
  reference_logprobs   float32 (B, T): the same under the model that the run began with
  columns              what the objective's `prepare_rollout` made of the rewards, each (B,) or (B, T): advantages, …
All log-probabilities are at the temperature of sampling, over the whole vocabulary.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_utils import BatchOrder, StepRows, TrainingData, fill_batches, input_width, row_prompts, split_row
from minigpt.common.errors import UserError
from minigpt.common.files import write_atomic
from minigpt.inference.engine import TextGenerator
from minigpt.inference.params import SamplingParams
from minigpt.metrics import rouge_l
from minigpt.run_log import ANSWERS_LOG, log_lines
from minigpt.tuning.logprobs import target_logprobs
from minigpt.tuning.objective import Objective
from minigpt.tuning.rewards import exact_reward

MAX_SAMPLED_BATCH = 256  # answers that are sampled at the same time
SAMPLES_SHOWN = 5  # of each validation
VALIDATION_QUESTIONS = 200  # 95% of such samples are within 0.04 of a share of 0.90


@dataclass
class Answer:
    """A sampled answer. prompt, ids: lists of ids as the model read and sampled them, an EOT that ended it included;
    ended: whether it ended so; question, text, reference: as text."""

    prompt: list
    ids: list
    ended: bool
    question: str
    text: str
    reference: str


@dataclass
class Rollout:
    """The N answers that are trained on, those to one question beside each other. Tensors: see the module.

    rewards: float32 (N / group_size, group_size), a row for each question. columns: tuple of tensors with N rows, which
    the objective's `prepare_rollout` sets.
    """

    x: torch.Tensor
    y: torch.Tensor
    loss_mask: torch.Tensor
    old_logprobs: torch.Tensor
    reference_logprobs: torch.Tensor
    rewards: torch.Tensor
    columns: tuple = ()

    def lengths(self):
        """int64 (N,): tokens of each row, question and answer."""
        return 2 + (self.loss_mask * torch.arange(self.x.shape[1])).amax(1)

    def micro_batch(self, rows):
        """The tensors of a micro-batch of some rows (their places), as wide as the longest of them."""
        width = input_width(int(self.lengths()[rows].max()), self.x.shape[1] + 1)
        tensors = (self.x, self.y, self.loss_mask, self.old_logprobs, self.reference_logprobs, *self.columns)
        return tuple(t[rows, :width] if t.dim() > 1 else t[rows] for t in tensors)


class RolloutOrder(BatchOrder):
    """The questions of each optimizer step: those of a rollout come `updates` times. Not sorted by length."""

    def __init__(self, n_rows, sampling, seed, questions, updates):
        super().__init__(np.ones(n_rows), sampling, seed, questions)
        self.updates = updates

    def _draw(self, epoch):
        return [rows for rows in super()._draw(epoch) for _ in range(self.updates)]


class Rollouts:
    """Samples rollouts of the training part's questions, and divides them into steps. As a run's data it has what
    `TrainingData` has; `validation` asks held-out questions.

    `start` must be called before the first step. figures: {name: [sum, count]} of the rollouts since they were taken.
    samples: [{"question", "answer", "reference", "reward"}] of the newest rollout, the highest reward first; among
    equal ones, what is least like its reference, since a reward that is tricked shows there.
    """

    batches_a_step = 1
    shapes = None  # as of `TrainingData`

    def __init__(self, settings, pinned=False):
        self.rows = TrainingData(settings)
        self.settings, self.pinned = settings, pinned
        self.train, self.val, self.meta = self.rows.train, self.rows.val, self.rows.meta
        self.tokenizer, self.lengths = self.rows.tokenizer, self.rows.lengths
        if self.meta["stage"] != "sft":
            raise UserError(
                f"objective {settings.objective} asks questions, and {settings.data_dir} holds {self.meta['stage']} "
                "rows; name a folder of questions with --data_dir= (data/prepare_sft.py makes it)"
            )
        self.order = RolloutOrder(
            len(self.train), settings.sampling, settings.seed, settings.rollout_questions, settings.updates
        )
        self.place, self.rollout = None, None  # (epoch, number) of the rollout in use
        self.figures, self.samples = {}, []

    def start(self, model, reference, reward_answers, objective):
        """model: the GPT that trains; reference: the one it began as. reward_answers(list of `Answer`) -> list of
        floats. objective: a `PolicyObjective`."""
        self.model, self.reference = model, reference
        self.reward_answers, self.objective = reward_answers, objective

    def longest_input(self):
        """As `TrainingData.longest_input`."""
        return self.rows.longest_input()

    def typical_step(self, position):
        """As `TrainingData.typical_step`: the rows themselves, with nothing sampled."""
        return self.rows.step((0, 0))

    def step(self, position):
        """`StepRows` of the step that begins at a position (epoch, step in it). Samples where a rollout begins."""
        (questions,), after = self.order.take(*position, 1)
        place = position[0], position[1] // self.settings.updates
        if place != self.place:
            self.rollout, self.place = self.sample_rollout(questions, place), place
        return self.divide(position[1] % self.settings.updates, after)

    def divide(self, update, after):
        """`StepRows` of one of the rollout's updates, whose rows are drawn by seed. after: the position after it."""
        rollout, updates = self.rollout, self.settings.updates
        rng = np.random.default_rng([self.settings.seed, *self.place])
        rows = torch.from_numpy(rng.permutation(len(rollout.x)))
        rows = rows[update::updates] if len(rows) >= updates else rows  # so few that all are in each
        lengths = rollout.lengths()[rows]
        parts = fill_batches(lengths.numpy(), self.settings.batch_size, self.settings.batch_tokens)
        batches = [rollout.micro_batch(rows[part]) for part in parts]
        if self.pinned:
            batches = [tuple(t.pin_memory() for t in batch) for batch in batches]
        return StepRows(batches, after, len(rows), int(lengths.sum()), int((lengths**2).sum()))

    def sample_rollout(self, questions, place):
        """The `Rollout` of some questions (places in the training part), by the model as it is now."""
        s = self.settings
        seeds = np.random.SeedSequence([s.seed, *place]).generate_state(len(questions) * s.group_size).tolist()
        params = [
            SamplingParams(temperature=s.rollout_temperature, top_k=0, max_new_tokens=s.rollout_tokens, seed=seed)
            for seed in seeds
        ]
        answers = self.ask([self.train[i] for i in questions for _ in range(s.group_size)], params)
        rewards = torch.tensor(self.reward_answers(answers), dtype=torch.float32).view(-1, s.group_size)
        self.note_answers(answers, rewards)

        # What is trained on: all answers to the questions that the objective chooses.
        chosen = self.objective.choose_questions(rewards)
        places = chosen.repeat_interleave(s.group_size).nonzero()[:, 0].tolist()
        x, y, loss_mask = pad_answers([answers[i] for i in places], self.model.row_positions)
        old, reference = (self.logprobs(model, x, y, loss_mask) for model in (self.model, self.reference))
        self.add_figures(kl=kl_estimate((reference - old)[loss_mask]).mean())
        rollout = Rollout(x, y, loss_mask, old, reference, rewards[chosen])
        self.objective.prepare_rollout(rollout)
        return rollout

    def ask(self, rows, params):
        """`Answer`s of the model to the last questions of fine-tuning rows. params: as in `TextGenerator.generate`."""
        pairs = [row_prompts(row, self.meta["special_ids"])[-1] for row in rows]
        was_training = self.model.training
        self.model.eval()
        # A new one each time, since virtual tokens that train are computed once by each. The weights are the model's.
        generator = TextGenerator(self.model, self.tokenizer, self.meta["stage"], MAX_SAMPLED_BATCH)
        streams = generator.generate_streams([prompt for prompt, _ in pairs], params)
        generator.close()  # else its cache stays in memory until Python looks for unreachable cycles
        self.model.train(was_training)
        questions = [split_row(row, self.meta["special_ids"])[-1][0] for row in rows]
        decode = self.tokenizer.decode
        return [
            Answer(s.prompt, s.ids, s.finish_reason == "stop", decode(question), "".join(s), decode(reference))
            for s, question, (_, reference) in zip(streams, questions, pairs, strict=True)
        ]

    def held_out_figures(self):
        """{"val_reward": mean reward, "val_exact": share that are their references} of greedy answers to up to
        VALIDATION_QUESTIONS validation questions, spread over the part."""
        places = np.linspace(0, len(self.val) - 1, min(VALIDATION_QUESTIONS, len(self.val))).astype(int)
        params = SamplingParams(temperature=0.0, max_new_tokens=self.settings.rollout_tokens)
        answers = self.ask([self.val[i] for i in places], params)
        return {"val_reward": float(np.mean(self.reward_answers(answers))), "val_exact": exact_share(answers)}

    @torch.no_grad()
    def logprobs(self, model, x, y, loss_mask):
        """Log-probabilities (N, T), 0 outside of loss_mask, of sampled tokens under a model without dropout."""
        was_training, device = model.training, model.wte.weight.device
        model.eval()
        found = torch.zeros(x.shape)
        for first in range(0, len(x), self.settings.batch_size):
            part = slice(first, first + self.settings.batch_size)
            batch = [t[part].to(device) for t in (x, y, loss_mask)]
            with self.objective.precision.context(device):
                values = target_logprobs(model, *batch, self.settings.rollout_temperature)
            found[part][loss_mask[part]] = values.cpu()
        model.train(was_training)
        return found

    def note_answers(self, answers, rewards):
        """Take note of a rollout's figures and samples. rewards (questions, group_size)."""
        self.add_figures(
            reward=rewards.mean(),
            signal=has_signal(rewards).float().mean(),
            length=np.mean([len(answer.ids) for answer in answers]),
            ended=np.mean([answer.ended for answer in answers]),
            exact=exact_share(answers),
        )
        found = {}
        for answer, reward in zip(answers, rewards.flatten().tolist(), strict=True):
            likeness = rouge_l(answer.text, answer.reference)[2]
            found[answer.question, answer.text] = (-reward, likeness, answer)
        best = sorted(found.values(), key=lambda entry: entry[:2])[:SAMPLES_SHOWN]
        self.samples = [
            {"question": a.question, "answer": a.text, "reference": a.reference, "reward": round(-negative, 4)}
            for negative, _, a in best
        ]

    def add_figures(self, **numbers):
        """Add numbers to the means of their names."""
        for name, number in numbers.items():
            total = self.figures.setdefault(name, [0.0, 0])
            total[0] += float(number)
            total[1] += 1

    def take_figures(self):
        """{name: mean} over the rollouts since the last call: reward; signal: share of the questions whose answers
        differ in reward; length: tokens of an answer; ended, exact: shares of the answers that ended by EOT, and that
        are their references; kl: nats a token, to the reference, over what is trained on."""
        means = {name: total / count for name, (total, count) in self.figures.items()}
        self.figures = {}
        return means

    def write_samples(self, out, step):
        """Write the newest rollout's samples into ANSWERS_LOG in the folder `out`. Those of later steps, which a run
        that was killed and goes on had written, are replaced."""
        path = Path(out) / ANSWERS_LOG
        earlier = [line for line in log_lines(path) if line["step"] < step]
        lines = [*earlier, *({"step": step, **sample} for sample in self.samples)]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_atomic(path, lambda file: file.write(text.encode()))

    def sample_line(self):
        """The newest rollout's first sample, as a line."""
        if not self.samples:
            return ""
        best = self.samples[0]
        return f"{best['question']} → {best['answer']} (reward {best['reward']:g}; reference: {best['reference']})"

    def state_dict(self):
        """What an exact resume needs: the rollout in use, and figures that are not logged yet."""
        rollout = dict(vars(self.rollout)) if self.rollout else None
        return {"place": self.place, "rollout": rollout, "figures": self.figures, "samples": self.samples}

    def load_state_dict(self, state):
        """Restore what `state_dict` returned."""
        self.place = state["place"] and tuple(state["place"])
        self.rollout = state["rollout"] and Rollout(**state["rollout"])
        self.figures, self.samples = state["figures"], state["samples"]


def pad_answers(answers, block_size):
    """(x, y, loss_mask), each (N, T), of N `Answer`s: see the module. block_size: ids that a row has at most."""
    rows = [[*answer.prompt, *answer.ids] for answer in answers]
    width = input_width(max(map(len, rows)), block_size)
    ids, loss_mask = torch.zeros(len(rows), width + 1, dtype=torch.int64), torch.zeros(len(rows), width).bool()
    for i, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        loss_mask[i, len(answer.prompt) - 1 : len(row) - 1] = True
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), loss_mask


def exact_share(answers):
    """Share of `Answer`s that are their references."""
    return float(np.mean([exact_reward(a.text, a.reference, a.ended) for a in answers]))


def has_signal(rewards):
    """bool (questions,): whether the answers to a question differ in their rewards (questions, group_size)."""
    return rewards.amax(1) > rewards.amin(1)


def kl_estimate(log_ratio):
    """The estimate k3 of the KL divergence of the policy to the reference (Schulman 2020; DeepSeekMath, eq. 4), in nats
    a token, of the same shape as log_ratio: log-probability under the reference less that under the policy."""
    return log_ratio.exp() - log_ratio - 1


class PolicyObjective(Objective):
    """What GRPO and PPO have in common. They add `loss`, and `prepare_rollout(rollout)`, which sets the columns of a
    `Rollout`: what `loss` takes beside its other tensors.

    rollouts: the `Rollouts` of the run; other arguments: as in `Rollouts.start`.
    """

    def __init__(self, settings, rollouts, model, reference, reward_answers):
        self.settings, self.rollouts = settings, rollouts
        self.validated = {}
        rollouts.start(model, reference, reward_answers, self)

    def choose_questions(self, rewards):
        """bool (questions,): those whose answers are trained on. rewards (questions, group_size)."""
        return torch.ones(len(rewards), dtype=torch.bool)

    def validate(self, run):
        """Minus the mean reward of greedy answers to validation questions. Writes the newest rollout's samples."""
        self.validated = self.rollouts.held_out_figures()
        try:
            self.rollouts.write_samples(run.out, run.progress.step)
        except OSError as error:  # a full disk may have room again at the next validation
            run.say(f"warning: {ANSWERS_LOG} could not be written ({error.strerror}); training goes on")
        return -self.validated["val_reward"]

    def sample_line(self, run):
        """The newest rollout's first sample."""
        return self.rollouts.sample_line()

    def take_figures(self):
        """As `Rollouts.take_figures` and, after a validation, `Rollouts.held_out_figures`."""
        validated, self.validated = self.validated, {}
        return {**self.rollouts.take_figures(), **validated}

    def state_dict(self):
        return {**super().state_dict(), "rollouts": self.rollouts.state_dict()}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.rollouts.load_state_dict(state["rollouts"])
