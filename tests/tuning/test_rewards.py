"""Rewards without a judge: their values, and what `rewards` may name."""

import pytest

from minigpt.common.errors import UserError
from minigpt.tuning.rewards import REWARDS, parse_rewards, weighted_rewards
from minigpt.tuning.rollouts import Answer

REFERENCE = "河长320千米。"


@pytest.mark.parametrize(
    ("text", "ended", "expected"),
    [
        ("河长320千米。", True, {"exact": 1, "rouge_l": 1, "numbers": 1, "format": 1}),
        (" 河长320千米。\n", True, {"exact": 1, "rouge_l": 1, "numbers": 1, "format": 1}),  # space around it
        ("河长320千米。", False, {"exact": 0, "rouge_l": 1, "numbers": 1, "format": 0}),  # cut off
        ("河长330千米。", True, {"exact": 0, "rouge_l": 7 / 8, "numbers": 0, "format": 1}),
        ("320", True, {"exact": 0, "rouge_l": 6 / 11, "numbers": 1, "format": 1}),
        ("河长320千米。\n河长", True, {"exact": 0, "rouge_l": 16 / 18, "numbers": 1, "format": 0}),
        ("河##", True, {"exact": 0, "rouge_l": 2 / 11, "numbers": 0, "format": 0}),
        (" ", True, {"exact": 0, "rouge_l": 0, "numbers": 0, "format": 0}),
    ],
)
def test_each_reward_of_an_answer(text, ended, expected):
    assert {name: reward(text, REFERENCE, ended) for name, reward in REWARDS.items()} == pytest.approx(expected)
    total = 2 * expected["exact"] + 0.5 * expected["rouge_l"]
    answer = Answer([], [], ended, "", text, REFERENCE)
    assert weighted_rewards([answer], {"exact": 2.0, "rouge_l": 0.5}) == pytest.approx([total])


def test_a_reference_decides_about_numbers_and_lines():
    assert REWARDS["numbers"]("河。", "江。", True) == 1  # neither has a number
    assert REWARDS["numbers"]("河长3米。", "江。", True) == 0
    assert REWARDS["format"]("一\n二", "三\n四", True) == 1


def test_rewards_and_weights_are_read():
    assert parse_rewards(["exact", "rouge_l:0.5"]) == {"exact": 1.0, "rouge_l": 0.5}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "exact, rouge_l, numbers, format"),
        (["exakt:1"], "no reward 'exakt' .*there are: exact, rouge_l, numbers, format"),
        (["exact:much"], "exact:much is no number above 0"),
        (["exact:"], "is no number above 0"),
        (["exact:-1"], "is no number above 0"),
        (["exact:nan"], "is no number above 0"),
        (["exact:1", "exact:2"], "exact twice"),
    ],
)
def test_what_rewards_may_not_be(given, message):
    with pytest.raises(UserError, match=message):
        parse_rewards(given)
