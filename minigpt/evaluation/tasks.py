"""Tasks under evaluation: labelled examples, predictors of their labels, and the figures of what they predict.

A predictor is a function that takes a list of `LabelledExample` (of minigpt/corpus/tasks.py) and returns a list of
`TaskPrediction`, one for each, in the same order. It may look at the texts only, not at `label` and `tags`. Models with
a head, language models that are shown examples, and comparisons of labels' likelihoods are measured through it alike:

    task = load_task(folder, "test", max_samples=0, seed=1337)   # kind, labels, examples, training (to take shots from)
    predictions = predict(task.examples)
    figures = task_figures(task, predictions, resamples, seed)   # plain values for the JSON
"""

import random
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_utils import load_row_tokenizer, open_rows, read_meta
from minigpt.common.errors import UserError
from minigpt.corpus.tasks import TAG, LabelledExample


class TaskPrediction(NamedTuple):
    """What a predictor says of one example.

    label: of a text or a pair, the name of a label; None for an answer that names none. Of a tagged text, the list of
    its characters' tags, one for each character.
    probability: of the label, 0 to 1; of tags the mean over the characters; None where the predictor gives none.
    """

    label: str | list | None
    probability: float | None = None


@dataclass
class TaskData:
    """A part of a task's data folder.

    kind: "classify", "pair" or "tag"; labels: the names of all labels; examples: the [`LabelledExample`] under
    evaluation; training: those of the train part, [] where the folder has none.
    """

    kind: str
    labels: list
    examples: list
    training: list


def load_task(folder, part, max_samples=0, seed=0):
    """The `TaskData` of a data folder, at most max_samples (0: all) of its examples, drawn by the seed.

    Raises UserError for a folder that holds no task.
    """
    meta = read_meta(folder)
    if meta["stage"] != "task":
        raise UserError(f"{folder} holds {meta['stage']} rows, no task; name a folder of data/prepare_task.py")
    examples = read_task_rows(folder, part)
    if max_samples and max_samples < len(examples):
        examples = random.Random(seed).sample(examples, max_samples)
    training = read_task_rows(folder, "train") if meta["parts"].get("train", {}).get("rows") else []
    return TaskData(meta["task"]["kind"], meta["task"]["labels"], examples, training)


def read_task_rows(folder, part):
    """The [`LabelledExample`] of a part of a task's data folder. Texts that were cut for the rows stay cut."""
    rows, meta = open_rows(folder, part)
    decode, eot, task = load_row_tokenizer(folder, meta).decode, meta["special_ids"]["eot"], meta["task"]
    examples = []
    for number, (ids, labels) in enumerate(rows, start=1):
        places = np.flatnonzero(labels)
        names = [task["labels"][label - 1] for label in labels[places]]
        source = f"{folder}/{part}.bin"
        if task["kind"] == TAG:
            # Each character has ids of its own. U+FFFD, which stands for bytes that are no text, decodes to nothing.
            starts = [0, *(places[:-1] + 1)]
            characters = (decode(ids[a : b + 1]) or "\ufffd" for a, b in zip(starts, places, strict=True))
            examples.append(LabelledExample(source, number, "".join(characters), tags=names))
        else:
            texts = np.split(ids, np.flatnonzero(ids == eot))[: 2 if task["kind"] == "pair" else 1]
            texts = [decode(text) for text in texts]  # the EOT before the second text decodes to nothing
            examples.append(LabelledExample(source, number, *texts, label=names[0]))
    return examples


def most_common_predictor(training):
    """The predictor that gives every text, or every character, the most common label of the training examples."""
    counts = Counter(name for example in training for name in example.names)
    label = counts.most_common(1)[0][0]

    def predict(examples):
        labels = [label if example.tags is None else [label] * len(example.text) for example in examples]
        share = counts[label] / counts.total()
        return [TaskPrediction(each, share) for each in labels]

    return predict
