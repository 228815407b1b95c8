"""The page's address with a prompt and its settings, which opens it again: ?prompt=…&temperature=0.8."""

import contextlib
import math
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from minigpt.arena.problems import Problem
from minigpt.arena.votes import SAMPLING_KEYS

MAX_QUERY_CHARS = 40_000  # a prompt of MAX_LINK_CHARS, with nine characters for each of Chinese
MAX_FIELDS = 40
MAX_LINK_CHARS = 2000  # of a prompt in a link: servers and browsers cut longer addresses


@dataclass
class LinkedPrompt:
    """What a link says. prompt: "" for none; model: a name of the list, or None; params: {key of SAMPLING_KEYS: value},
    each in its range."""

    prompt: str = ""
    model: str | None = None
    params: dict = field(default_factory=dict)


def read_link(query, check_prompt, models, ranges):
    """The LinkedPrompt of a page's query string, such as "?prompt=…&top_k=5". Never raises: what cannot be used is left
    out, and a number outside its range becomes the nearest in it.

    check_prompt: as Arena.check_prompt; models: the names that can be chosen; ranges: {key of SAMPLING_KEYS: (low,
    high)}, whole numbers where both are int.
    """
    found = LinkedPrompt()
    if not isinstance(query, str) or len(query) > MAX_QUERY_CHARS:
        return found
    try:
        values = {key: value[0] for key, value in parse_qs(query.removeprefix("?"), max_num_fields=MAX_FIELDS).items()}
    except ValueError:  # too many fields
        return found
    with contextlib.suppress(Problem):
        found.prompt = check_prompt(values.get("prompt", ""))[:MAX_LINK_CHARS]
    if values.get("model") in models:
        found.model = values["model"]
    for key in SAMPLING_KEYS:
        number = read_number(values.get(key), *ranges[key])
        if number is not None:
            found.params[key] = number
    return found


def read_number(text, low, high):
    """A number of a link, put into its range; None if it is none."""
    try:
        number = float(text)
    except (TypeError, ValueError):
        return None
    if not math.isfinite(number):
        return None
    number = min(max(number, low), high)
    return int(number) if isinstance(low, int) and isinstance(high, int) else number
