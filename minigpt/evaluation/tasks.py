"""Tasks under evaluation: labelled examples, predictors of their labels, and the figures of what they predict.

A predictor is a function that takes a list of `LabelledExample` (of minigpt/corpus/tasks.py) and returns a list of
`TaskPrediction`, one for each, in the same order. It may look at the texts only, not at `label` and `tags`. Models with
a head, language models that are shown examples, and comparisons of labels' likelihoods are measured through it alike:

    task = load_task(folder, "test", max_samples=0, seed=1337)   # kind, labels, examples, training (to take shots from)
    result = measure_predictor({"name": "my way"}, predict, task, settings)   # `TaskResult`: predictions and figures

evaluations-tasks.py makes its tables, JSON and CSV of a list of `TaskResult`.
"""

import math
import random
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_utils import load_row_tokenizer, open_rows, read_meta
from minigpt.common.errors import UserError
from minigpt.corpus.tasks import TAG, LabelledExample
from minigpt.metrics import (
    compare,
    confusion_table,
    entity_scores,
    find_entities,
    interval,
    label_accuracy,
    label_scores,
    macro_f1_interval,
)

# The figures of a table, of texts and pairs with labels, and of tagged texts.
LABEL_FIGURES = ("accuracy", "macro_f1")
TAG_FIGURES = ("precision", "recall", "f1", "tag_accuracy")  # of entities, but the last
NO_ANSWER_LABEL = ""  # in the confusion table, of predictions that name no label


class TaskPrediction(NamedTuple):
    """What a predictor says of one example.

    label: of a text or a pair, the name of a label; None for an answer that names none. Of a tagged text, the list of
    its characters' tags, one for each character.
    probability: of the label, 0 to 1; of tags the mean over the characters; None where the predictor gives none.
    answer: the text that a language model answered, if it was asked for one.
    """

    label: str | list | None
    probability: float | None = None
    answer: str | None = None


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


def head_predictor(classifier, progress=None):
    """The predictor that is a `Classifier`. progress(n): n more examples are labelled."""

    def predict(examples):
        if classifier.kind == TAG:
            found = classifier.tag([example.text for example in examples], progress)
            means = [[p for p in each.probabilities if p is not None] for each in found]
            return [
                TaskPrediction(each.tags, sum(p) / len(p) if p else None) for each, p in zip(found, means, strict=True)
            ]
        texts = [e.text if e.text_b is None else (e.text, e.text_b) for e in examples]
        found = classifier.classify(texts, progress)
        return [TaskPrediction(each.label, each.probabilities[each.label]) for each in found]

    return predict


# Figures


def task_figures(task, predictions, resamples=1000, seed=0):
    """Plain values of [`TaskPrediction`] for the examples of a `TaskData`, with 95% bootstrap intervals over the texts.

    Labels: {"kind", "examples", "accuracy", "macro_f1", "no_answer" (predictions that name no label: these are wrong),
    "by_label" {label: scores}, "confusion" {"labels", "predicted", "counts"}, "intervals"}.
    Tags: {"kind", "examples", "precision", "recall", "f1" (of entities), "tag_accuracy", "by_type" {type: scores},
    "intervals"}. The scores are those of `metrics.count_scores`.
    """
    compute = tag_figures if task.kind == TAG else label_figures
    figures, intervals = compute(task, [each.label for each in predictions], resamples, seed)
    intervals = {name: edges and list(edges) for name, edges in intervals.items()}
    return {"kind": task.kind, "examples": len(predictions), **figures, "intervals": intervals}


def label_figures(task, predicted, resamples, seed):
    """(figures, intervals) of predicted labels, as `task_figures` has them."""
    actual = [example.label for example in task.examples]
    predicted = [NO_ANSWER_LABEL if label is None else label for label in predicted]
    no_answer = predicted.count(NO_ANSWER_LABEL)
    columns = [*task.labels, *([NO_ANSWER_LABEL] if no_answer else [])]
    by_label = {label: scores for label, scores in label_scores(predicted, actual).items() if label != NO_ANSWER_LABEL}
    counts = confusion_table(predicted, actual, columns)[: len(task.labels)]
    figures = {
        "accuracy": label_accuracy(predicted, actual),
        "macro_f1": sum(scores["f1"] for scores in by_label.values()) / len(by_label),
        "no_answer": no_answer,
        "by_label": by_label,
        "confusion": {"labels": task.labels, "predicted": columns, "counts": counts.tolist()},
    }
    intervals = {
        "accuracy": interval(right_labels(task, predicted)[0], resamples=resamples, seed=seed),
        "macro_f1": macro_f1_interval(predicted, actual, task.labels, resamples, seed),
    }
    return figures, intervals


def tag_figures(task, predicted, resamples, seed):
    """(figures, intervals) of predicted lists of tags, as `task_figures` has them."""
    actual = [example.tags for example in task.examples]
    scores = entity_scores(predicted, actual)
    right, counts = right_labels(task, predicted)
    figures = {name: scores[name] for name in ("precision", "recall", "f1")}
    figures["tag_accuracy"] = float(right.sum() / counts.sum()) if counts.sum() else math.nan
    figures["by_type"] = scores["by_type"]

    # Each text's numbers of entities: those that are right, that are predicted, that are there.
    found, wanted = ([set(find_entities(tags)) for tags in lists] for lists in (predicted, actual))
    hits = np.array([len(a & b) for a, b in zip(found, wanted, strict=True)])
    n_found, n_wanted = (np.array([len(each) for each in sets]) for sets in (found, wanted))
    ratios = {"precision": (hits, n_found), "recall": (hits, n_wanted), "f1": (2 * hits, n_found + n_wanted)}
    ratios["tag_accuracy"] = right, counts
    intervals = {name: interval(*sums, resamples, seed) if sums[1].sum() else None for name, sums in ratios.items()}
    return figures, intervals


def right_labels(task, predicted):
    """((n,) numbers of right labels, (n,) numbers of labels) of n examples; a tagged text has one a character."""
    names = [label if isinstance(label, list) else [label] for label in predicted]
    pairs = list(zip(names, (example.names for example in task.examples), strict=True))
    right = [sum(a == b for a, b in zip(found, wanted, strict=True)) for found, wanted in pairs]
    return np.array(right), np.array([len(wanted) for _, wanted in pairs])


@dataclass
class TaskResult:
    """What a model, or another predictor, gave for a task. about: plain values that say what it is, "name" among them;
    figures: as `task_figures` returns them."""

    about: dict
    predictions: list
    figures: dict

    @property
    def name(self):
        return self.about["name"]


def measure_predictor(about, predict, task, settings):
    """The `TaskResult` of a predictor. about: {"name": …, more}; settings: resamples and seed are used."""
    predictions = predict(task.examples)
    return TaskResult(about, predictions, task_figures(task, predictions, settings.resamples, settings.seed))


def compare_results(results, task, resamples=1000, seed=0):
    """[{"a": the result with the highest accuracy, "b": another, "figure", …}], as `metrics.compare` has it.

    results: [`TaskResult`]. The figure is the accuracy, of tags the tag accuracy.
    """
    figure = "tag_accuracy" if task.kind == TAG else "accuracy"
    best = max(results, key=lambda result: result.figures[figure])
    right = {id(each): right_labels(task, [one.label for one in each.predictions]) for each in results}
    comparisons = []
    for other in results:
        above, counts = right[id(best)]
        found = other is not best and compare(above, right[id(other)][0], resamples, seed, counts)
        if found:
            comparisons.append({"a": best.name, "b": other.name, "figure": figure, **found})
    return comparisons


def count_repeated(examples, training):
    """How many examples have texts that are among the training examples' texts."""
    known = {example.key for example in training}
    return sum(example.key in known for example in examples)


PREDICTION_COLUMNS = ("model", "text", "text_b", "label", "predicted", "probability", "answer")


def prediction_rows(results, task):
    """Yield rows of a CSV with PREDICTION_COLUMNS: each example of a task with what each [`TaskResult`] has for it."""
    for result in results:
        for example, (label, *more) in zip(task.examples, result.predictions, strict=True):
            labels = [example.label, label] if example.tags is None else [" ".join(example.tags), " ".join(label)]
            yield [result.name, example.text, example.text_b, *labels, *more]
