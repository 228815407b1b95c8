"""The objectives of train.py, by the setting objective, and the data that each trains on."""

from data_utils import TrainingData
from minigpt.common.errors import UserError
from minigpt.tuning.objective import Objective

PREFERENCES, POLICIES = ("dpo", "reward"), ("grpo", "ppo")  # trained on pairs; on answers of the model's own
SPECIAL = (*PREFERENCES, *POLICIES)


def check_objective(settings, processes):
    """Raise UserError for settings that the objective cannot have. processes: their number."""
    if settings.method in SPECIAL:  # --method=dpo is --objective=dpo with full tuning
        settings.objective, settings.method = settings.method, "full"
    name = settings.objective
    if name not in SPECIAL:
        return
    if settings.init_from == "scratch":
        raise UserError(f"objective {name} tunes a model that answers: name a fine-tuned one with --init_from=")
    if settings.optimizer in ("lomo", "mezo"):
        raise UserError(f"objective {name} trains with optimizer muon or adamw, not {settings.optimizer}")
    if settings.fsdp:
        raise UserError(f"objective {name} does not go with fsdp; leave that out")
    if settings.replay_share:
        raise UserError(f"replay_share is for fine-tuning (objective causal), not for {name}")
    if name in PREFERENCES and not settings.preferences:
        raise UserError(
            f"objective {name} learns from pairs: name files of {{prompt, chosen, rejected}} with --preferences= (the "
            "arena exports its votes as such, sft/make_preferences.py makes them)"
        )
    if name in POLICIES and processes > 1:
        raise UserError(f"objective {name} trains in one process, here are {processes}: start it without torchrun")
    if name in POLICIES and settings.gradient_accumulation_steps > 1:
        raise UserError(f"objective {name} has no gradient_accumulation_steps; a step's size is set by updates")


def open_data(settings, rank=0, count=1, pinned=False):
    """The data of a run, as `TrainingData`, by the setting objective. Arguments and errors: as there."""
    return TrainingData(settings, rank, count, pinned)


def make_objective(settings, data, model, device, load_reference, out):
    """The `Objective` of a run. data: as from `open_data`; model: the GPT that trains, on `device`; out: the run's
    folder; load_reference(): loads the model that the run began with, frozen, in eval mode, on the device."""
    return Objective()
