"""What an address with a prompt may and may not set."""

from urllib.parse import urlencode

import pytest

from minigpt.arena.links import MAX_LINK_CHARS, LinkedPrompt, read_link
from minigpt.arena.problems import Problem

RANGES = {
    "max_new_tokens": (1, 500), "temperature": (0.0, 2.0), "top_k": (0, 200), "top_p": (0.0, 1.0),
    "frequency_penalty": (-2.0, 2.0), "seed": (0, 2**53 - 1),
}  # fmt: skip


def check_prompt(prompt):
    if not prompt.strip() or "坏" in prompt:
        raise Problem("no_prompt")
    return prompt


def read(query):
    return read_link(query, check_prompt, {"demo", "a @ b"}, RANGES)


def test_all_fields_of_a_link_are_read():
    values = {
        "prompt": "铁是什么？\n<b>&=", "model": "a @ b", "max_new_tokens": 30, "temperature": 0.8, "top_k": 5,
        "top_p": 0.9, "frequency_penalty": -0.5, "seed": 7,
    }  # fmt: skip
    link = read("?" + urlencode(values))
    assert (link.prompt, link.model) == (values.pop("prompt"), values.pop("model")) and link.params == values
    assert isinstance(link.params["top_k"], int) and isinstance(link.params["seed"], int)


def test_numbers_outside_their_range_become_the_nearest_in_it():
    link = read("max_new_tokens=0&temperature=99&top_k=1e9&top_p=-3&frequency_penalty=-9&seed=-1")
    assert link.params == {
        "max_new_tokens": 1, "temperature": 2.0, "top_k": 200, "top_p": 0.0, "frequency_penalty": -2.0, "seed": 0,
    }  # fmt: skip


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "", "0x10", "true", "[1]", "１２a", "__import__"])
def test_what_is_no_number_is_left_out(value):
    assert read("?" + urlencode({"temperature": value, "top_k": value})).params == {}


@pytest.mark.parametrize(
    "query",
    ["", "?", None, 7, ["prompt=x"], {"prompt": "x"}, "?prompt=", "?prompt=%E5%9D%8F", "?model=gone",
     "?model=../../etc", "&".join(f"a{i}=1" for i in range(100)) + "&prompt=x", "?prompt=" + "x" * 50_000,
     "?%ff=%ff&=&&==&__theme=dark"],
)  # fmt: skip
def test_a_link_without_anything_usable_changes_nothing(query):
    assert read(query) == LinkedPrompt()


def test_a_prompt_of_a_link_is_cut_at_its_limit():
    assert len(read("?prompt=" + "x" * 3000).prompt) == MAX_LINK_CHARS
