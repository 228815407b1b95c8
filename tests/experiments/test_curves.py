"""Figures of losses and of kinds of characters, against cases counted by hand."""

import numpy as np
import pytest

from minigpt.experiments.curves import (
    bits_by_class,
    character_class,
    classes_of_tokens,
    curve_figures,
    learned_at,
    loss_rebound,
    steps_to,
)


def test_a_rebound_is_a_rise_above_the_lowest_loss_at_the_second_to_fourth_check():
    for losses, rise in (
        ([3.0, 2.0, 2.5, 1.9], 0.5),
        ([3.0, 2.0, 1.5, 1.25], -0.25),  # it only falls: the smallest fall
        ([3.0, 2.0, 1.0, 0.75, 9.0], -0.25),  # a rise at the fifth check is not meant
        ([1.0, 2.0, 1.5, 1.75], 1.0),
        ([1.0, 2.0, 3.0], None),
    ):
        assert loss_rebound(losses) == rise


def test_the_figures_of_a_curve():
    rows = [(10, 2.0, 2.5), (20, 1.0, 0.75), (30, 0.5, 0.5), (40, 0.25, 1.0)]
    curve = [dict(zip(("step", "train_loss", "val_loss"), row, strict=True)) for row in rows]
    assert curve_figures(curve) == {
        "rebound": 0.5, "steps_to_loss": 30.0, "best_val": 0.5, "best_train": 0.5, "last_val": 1.0, "last_train": 0.25,
    }  # fmt: skip
    assert steps_to(np.array([10, 20, 30]), [3.0, 2.0, 1.0], 0.5) == 30  # never reached: all steps


def test_something_is_learned_once_nine_tenths_of_its_fall_are_made():
    assert learned_at([0, 10, 20, 30], [10.0, 5.0, 1.0, 0.0]) == 20
    assert learned_at([0, 10, 20], [10.0, 5.0, 0.0]) == pytest.approx(18)  # 1.0 lies at four fifths of the way to 0.0
    assert learned_at([0, 10, 20], [10.0, 0.0, 9.0]) == 9  # what comes after the lowest value does not count
    assert learned_at([0, 10], [1.0, 2.0]) == 0


def test_characters_are_digits_han_punctuation_or_others():
    kinds = {character: character_class(character) for character in "7７一汉，。(（+a é"}
    assert [kinds[c] for c in "7７"] == ["digits"] * 2 and [kinds[c] for c in "一汉"] == ["han"] * 2
    assert {kinds[c] for c in "，。(（+"} == {"punctuation"} and {kinds[c] for c in "a é"} == {"other"}


def test_a_token_has_the_class_of_its_first_character_and_counts_those_that_begin_in_it():
    han = "汉".encode()
    pieces = [b"1", han[:1], han[1:], "字，".encode(), b"", b"ab"]
    classes = classes_of_tokens(pieces)
    assert classes == [("digits", 1), ("han", 1), ("han", 0), ("han", 2), None, ("other", 2)]
    # The rest of a character that began before the text moves nothing.
    assert classes_of_tokens([han[1:], "字".encode(), b"12"]) == [("other", 0), ("han", 1), ("digits", 2)]
    nats = np.log(2) * np.array([4.0, 1.0, 2.0, 3.0, 99.0, 5.0])
    assert bits_by_class(classes, nats) == pytest.approx({"digits": 4.0, "han": 2.0, "other": 2.5})
