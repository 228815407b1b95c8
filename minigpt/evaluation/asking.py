"""Models that answer the same questions: load them, collect their answers, compare them pair by pair."""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from minigpt.checkpoint import check_generates, load_checkpoint, stage_of
from minigpt.common.errors import UserError
from minigpt.evaluation.models import LocalModel, RemoteModel, find_models
from minigpt.evaluation.prompts import check_fit, load_pairs
from minigpt.evaluation.tables import text_table
from minigpt.metrics import compare, interval, mean_scores, score_each, too_few

MAX_MODELS_FOR_ALL_PAIRS = 6  # up to so many models, every two are compared; with more, each with the best
COMPARED_FIGURES = ("rouge_l_f", "exact_match")
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class EvaluatedModel:
    """A model under evaluation, before it is loaded: a checkpoint without its weights, or a model behind an API.

    STAGES: those of the checkpoints that it may be, else a UserError. content: the checkpoint's dict without its
    weights; None for a model behind an API, which is treated as fine-tuned.
    contamination: what `check_models` found, as a dict, or None.
    """

    STAGES = ("pretrain", "sft")

    def __init__(self, name, path):
        self.name, self.path = name, path
        self.contamination = self.remote = self.content = self.step = None
        self.stage = "sft"
        if isinstance(path, Path):
            content = load_checkpoint(path, mmap=True)
            self.content = {key: value for key, value in content.items() if key not in ("model", "optimizers")}
            self.stage, self.step = stage_of(content), content["progress"]["step"]
            if self.stage not in self.STAGES:
                check_generates(self.stage, path)
                raise UserError(f"{path} is of stage {self.stage}, not of {' or '.join(self.STAGES)}; name another")
        else:
            self.remote = RemoteModel(path, name)

    def about(self):
        """What it is, for the JSON."""
        return {"checkpoint": str(self.path), "name": self.name, "stage": self.stage, "step": self.step}

    def open(self, settings):
        """The `LocalModel` (its weights are loaded now) or the `RemoteModel`."""
        return self.remote or LocalModel(self.path, settings)


def load_evaluation(settings):
    """([`EvaluatedModel`], pairs): the models of the setting `ckpt`, and the questions that all of them are asked.

    Raises UserError, before any model is asked, for one that is missing or that the questions do not fit.
    """
    models = [EvaluatedModel(*found) for found in find_models(settings.ckpt, settings.out_root)]
    pairs = load_pairs(settings, models[0])
    for model in models[1:]:
        check_fit(settings, model)
    return models, pairs


def note_cut_prompts(opened, pairs, params):
    """Print how many prompts a loaded model has to cut."""
    if cut := opened.cut_prompts([prompt for prompt, _ in pairs], params):
        print(f"note: {cut} prompts leave no room for an answer in the model's block; only their ends are used")


def measure_in_turn(models, measure):
    """([measure(model) of each model], whether Ctrl-C ended it). A model whose measurement fails is left out.

    Raises UserError if none is left, and KeyboardInterrupt if none was measured before it.
    """
    results = []
    for model in models:
        try:
            results.append(measure(model))
        except UserError as error:
            if len(models) == 1:
                raise
            print(f"note: {error}; it is left out")
        except KeyboardInterrupt:
            if not results:
                raise
            print(f"stopped; the figures are of the {len(results)} of {len(models)} models that were measured")
            return results, True
    if not results:
        raise UserError("no model could be measured")
    return results, False


def combine_entries(entries, **more):
    """The JSON of an evaluation: {"models": entries, …}; the figures of a single model are also on the top level."""
    return {**(entries[0] if len(entries) == 1 else {}), **more, "models": entries}


def require_one_model(models, script):
    """The only one of some `EvaluatedModel`s. Raises UserError if there are more."""
    if len(models) > 1:
        names = ", ".join(str(model.path) for model in models[:8])
        raise UserError(f"{script} looks at one model; name one of {names} with --ckpt=…")
    return models[0]


@dataclass
class ModelAnswers:
    """A model's answers to n pairs. predictions: texts, None for no answer; scores: as `score_each` returns them."""

    model: EvaluatedModel
    predictions: list
    scores: dict

    @property
    def name(self):
        return self.model.name

    def figures(self, resamples=1000, seed=0):
        """Plain values for the JSON: the model, the mean scores, and "intervals" {score: [low, high]}.

        "failed" is the number of pairs without an answer. No other figure counts them.
        """
        intervals = {name: interval(values, resamples=resamples, seed=seed) for name, values in self.scores.items()}
        return {
            **self.model.about(), **mean_scores(self.scores), "failed": self.predictions.count(None),
            "intervals": {name: edges and list(edges) for name, edges in intervals.items()},
            "leak": self.model.contamination,
        }  # fmt: skip


def collect_answers(model, opened, pairs, params, words=False, progress=None):
    """`ModelAnswers` of an `EvaluatedModel` to pairs [(prompt, reference)]. Raises UserError.

    opened: what `model.open` returned. words: also compute Rouge-L over words. progress(n): n more are answered.
    """
    prompts, references = zip(*pairs, strict=True)
    predictions = opened.answers(prompts, params, progress)
    return ModelAnswers(model, predictions, score_each(predictions, references, words))


def compare_models(answers, resamples=1000, seed=0):
    """[{"a", "b", "figure", …}] for every two models, or, for more than MAX_MODELS_FOR_ALL_PAIRS, the best and each.

    answers: [`ModelAnswers`] to the same pairs. The other keys are those of `metrics.compare`.
    """
    best = max(answers, key=lambda one: mean_scores(one.scores)["rouge_l_f"] or 0.0)
    every_two = itertools.combinations(answers, 2)
    with_best = ((best, one) for one in answers if one is not best)
    results = []
    twos = every_two if len(answers) <= MAX_MODELS_FOR_ALL_PAIRS else with_best
    for (a, b), figure in itertools.product(twos, COMPARED_FIGURES):
        result = compare(a.scores[figure], b.scores[figure], resamples, seed)
        if result:
            results.append({"a": a.name, "b": b.name, "figure": figure, **result})
    return results


def print_comparisons(comparisons, relation, difference, names):
    """Print how sure it is that model A is better than model B on the same rows, for those with an interval.

    comparisons: [{"a", "b", "figure", …}], as `metrics.compare` has them; relation: "<" or ">"; difference: head of the
    column of differences; names: {figure: its name}.
    """
    rows = []
    for c in comparisons:
        if not too_few(c["rows"]):
            figures = f"{c['difference']:+.4f}", f"{c['low']:+.4f}…{c['high']:+.4f}", f"{c['a_better']:.1%}"
            rows.append([f"{c['a']} {relation} {c['b']}", names[c["figure"]], *figures, c["rows"]])
    if rows:
        heads = [f"A {relation} B", "figure", difference, "95% interval", "A better in", "rows"]
        print("\n" + text_table(heads, rows))
        print("A better in: share of resamples (paired bootstrap) in which A is better; 5% to 95% decides nothing")


def lowest_and_highest(values, count=10):
    """(indices of the `count` lowest values, indices of the `count` highest), nan left out.

    Equal values keep their order, and the highest value is not among the lowest. Both lists are empty if there are no
    more than 2 * count values.
    """
    known = [i for i, value in enumerate(values) if value == value]
    if len(known) <= 2 * count:
        return [], []
    highest = max(values[i] for i in known)
    lowest = [i for i in sorted(known, key=lambda i: values[i])[:count] if values[i] < highest]
    return lowest, sorted(known, key=lambda i: -values[i])[:count]


def strip_controls(text):
    """The text with control characters replaced, so that a remote model cannot send terminal escapes."""
    return CONTROLS.sub("�", text)


def shorten(text, max_chars=32):
    """The beginning of a text, in one line that is safe to print."""
    text = strip_controls(" ".join(text.split()))
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"
