"""How often the articles of each folder are taken, where a corpus is mixed of several."""

import os
from pathlib import Path

from minigpt.common.errors import UserError


def input_of(path, inputs):
    """The entry of `inputs` (folders or files) that a file comes from: the longest that holds it."""
    holding = [i for i in inputs if Path(path).is_relative_to(Path(i).as_posix())]
    return max(holding, key=len)


def file_weights(settings, files):
    """{path: weight} of settings.weights, one for each of settings.input_dir; {} where none are given.

    Raises UserError for a wrong number of weights.
    """
    given = settings.weights
    if not given:
        return {}
    if len(given) != len(settings.input_dir):
        raise UserError(
            f"{len(given)} weights for {len(settings.input_dir)} input_dir: give one for each, in their order"
        )
    by_input = dict(zip(settings.input_dir, given, strict=True))
    return {path: by_input[input_of(path, settings.input_dir)] for path in map(os.fspath, files)}
