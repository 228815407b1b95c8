"""Which settings go with which objective."""

import pytest

from minigpt.common.errors import UserError
from minigpt.settings.stages import TrainSettings
from minigpt.training.setup import check_settings
from minigpt.tuning.objectives import check_objective

PAIRS = {"init_from": "model.pt", "preferences": ["pairs.jsonl"]}


@pytest.mark.parametrize("name", ["dpo", "reward", "grpo", "ppo"])
def test_a_method_that_names_an_objective_is_full_tuning_for_it(name):
    settings = TrainSettings(method=name, **PAIRS)
    check_settings(settings)
    check_objective(settings, processes=1)
    assert (settings.objective, settings.method) == (name, "full")


@pytest.mark.parametrize(
    ("given", "processes", "said"),
    [
        ({"objective": "dpo", "init_from": "scratch"}, 1, "name a fine-tuned one with --init_from="),
        ({"objective": "dpo", **PAIRS, "preferences": []}, 1, "with --preferences="),
        ({"objective": "reward", **PAIRS, "preferences": []}, 1, "with --preferences="),
        ({"objective": "dpo", **PAIRS, "optimizer": "mezo"}, 1, "muon or adamw, not mezo"),
        ({"objective": "ppo", **PAIRS, "optimizer": "lomo"}, 1, "muon or adamw, not lomo"),
        ({"objective": "reward", **PAIRS, "fsdp": True}, 1, "does not go with fsdp"),
        ({"objective": "grpo", **PAIRS}, 2, "start it without torchrun"),
        ({"objective": "grpo", **PAIRS, "gradient_accumulation_steps": 2}, 1, "set by updates"),
    ],
)
def test_wrong_settings_of_an_objective_are_one_line(given, processes, said):
    with pytest.raises(UserError, match=said) as caught:
        check_objective(TrainSettings(**given), processes)
    assert "\n" not in str(caught.value)


def test_dpo_and_reward_models_train_in_several_processes():
    for name in ("dpo", "reward"):
        check_objective(TrainSettings(objective=name, **PAIRS), processes=2)
