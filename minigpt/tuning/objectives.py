"""The objectives of train.py, by the setting objective, and the data that each trains on."""

import functools

from data_utils import TrainingData
from minigpt.common.errors import UserError
from minigpt.tuning.grpo import GRPO
from minigpt.tuning.objective import Objective
from minigpt.tuning.pairs import PreferenceData
from minigpt.tuning.ppo import PPO
from minigpt.tuning.preference import DirectPreference
from minigpt.tuning.reward_model import RewardObjective, load_reward_model
from minigpt.tuning.rewards import parse_rewards, weighted_rewards
from minigpt.tuning.rollouts import Rollouts

PREFERENCES, POLICIES = ("dpo", "reward"), ("grpo", "ppo")  # trained on pairs; on answers of the model's own
SPECIAL = (*PREFERENCES, *POLICIES)


def check_objective(settings, processes):
    """Raise UserError for settings that the objective cannot have. processes: their number."""
    name = settings.objective
    if name not in SPECIAL:
        return
    if settings.init_from == "scratch":
        raise UserError(f"objective {name} tunes a model that answers: name a fine-tuned one with --init_from=")
    if settings.optimizer in ("lomo", "mezo"):
        raise UserError(f"objective {name} trains with optimizer muon or adamw, not {settings.optimizer}")
    if settings.fsdp:
        raise UserError(f"objective {name} does not go with fsdp; leave that out")
    if name in PREFERENCES and not settings.preferences:
        raise UserError(
            f"objective {name} learns from pairs: name files of {{prompt, chosen, rejected}} with --preferences= (the "
            "arena exports its votes as such, sft/make_preferences.py makes them)"
        )
    if name in POLICIES and processes > 1:
        raise UserError(f"objective {name} trains in one process, here are {processes}: start it without torchrun")
    if name in POLICIES and settings.gradient_accumulation_steps > 1:
        raise UserError(f"objective {name} has no gradient_accumulation_steps; a step's size is set by updates")


def open_data(settings, rank=0, count=1, pinned=False, buckets=None):
    """The data of a run, as `TrainingData`, by the setting objective. Arguments and errors: as there. Pairs and
    answers of the model's own leave buckets out."""
    if settings.objective in PREFERENCES:
        return PreferenceData(settings, rank, count, pinned)
    if settings.objective in POLICIES:
        return Rollouts(settings, pinned)
    return TrainingData(settings, rank, count, pinned, buckets)


def make_objective(settings, data, model, device, load_reference, out):
    """The `Objective` of a run. data: as from `open_data`; model: the GPT that trains, on `device`; out: the run's
    folder; load_reference(): loads the model that the run began with, frozen, in eval mode, on the device."""
    if settings.objective == "dpo":
        return DirectPreference(settings, data, device, load_reference, out)
    if settings.objective == "reward":
        return RewardObjective()
    if settings.objective in POLICIES:
        policy = {"grpo": GRPO, "ppo": PPO}[settings.objective]
        return policy(settings, data, model, load_reference(), make_reward(settings, data.tokenizer, device))
    return Objective()


def make_reward(settings, tokenizer, device):
    """The function (list of `Answer`) -> rewards of a run, by its settings. tokenizer: the policy's."""
    if settings.reward_model:
        return load_reward_model(settings.reward_model, tokenizer, device).reward_answers
    return functools.partial(weighted_rewards, weights=parse_rewards(settings.rewards))
