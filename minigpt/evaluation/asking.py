"""Models that are asked the same questions: a look at them first, what they answered, and which of two is better."""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from minigpt.checkpoint import load_checkpoint
from minigpt.common.errors import UserError
from minigpt.evaluation.contamination import leak_of
from minigpt.evaluation.models import LocalModel, RemoteModel, find_models, without_weights
from minigpt.evaluation.prompts import check_fit, load_pairs, part_asked
from minigpt.metrics import compare, interval, means, score_each

EACH_WITH_EACH = 6  # up to so many models every two are compared; of more, each with the best
COMPARED = ("rouge_l_f", "exact_match")
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Entrant:
    """A model before it is asked. What its checkpoint says is known, but it takes no memory yet; a server is there.

    As prompts.py takes a model: stage, content.
    """

    def __init__(self, name, path):
        self.name, self.path, self.leak = name, path, None
        if isinstance(path, Path):
            self.content, self.remote = without_weights(load_checkpoint(path)), None
            self.stage, self.step = self.content["stage"], self.content["progress"]["step"]
        else:
            self.remote = RemoteModel(path, name)
            self.content, self.stage, self.step = None, self.remote.stage, None

    def open(self, settings):
        """The `LocalModel` or `RemoteModel`."""
        return self.remote or LocalModel(self.path, self.name, settings)


def look(settings):
    """([`Entrant`], pairs): the models of the setting ckpt, and the questions that all of them are asked.

    Raises UserError before any has been asked: for one that is not there, or that the rows are not for.
    """
    entrants = [Entrant(*found) for found in find_models(settings.ckpt, settings.out_root)]
    pairs = load_pairs(settings, entrants[0])
    for entrant in entrants[1:]:
        check_fit(settings, entrant)
    return entrants, pairs


def find_leaks(entrants, pairs, settings):
    """Look for the pairs in what each was trained on, once for all checkpoints of a run; returns lines to print."""
    by_run, lines = {}, []
    for entrant in entrants:
        by_run.setdefault(repr((entrant.content or {}).get("settings", entrant.path)), []).append(entrant)
    for run in by_run.values():
        measured = None if settings.questions else (settings.data_dir, part_asked(settings, run[0]))
        leak = leak_of(run[0].content, pairs=pairs, measured=measured)
        for entrant in run:
            entrant.leak = leak
        who = run[0].name + (f" … {run[-1].name}" if len(run) > 1 else "")
        lines.append(f"{who}: {leak.line()}" if len(entrants) > 1 else leak.line())
    return lines


@dataclass
class Asked:
    """What an entrant made of n pairs. predictions: texts, None where no answer came; scores: as `score_each`."""

    entrant: Entrant
    predictions: list
    scores: dict

    @property
    def name(self):
        return self.entrant.name

    @property
    def failed(self):
        """Pairs without an answer; no figure counts them."""
        return sum(prediction is None for prediction in self.predictions)

    def figures(self, resamples=1000, seed=0):
        """Plain values for the JSON: what it is, the means, and the "intervals" {name: [low, high]} of these."""
        intervals = {name: interval(values, resamples=resamples, seed=seed) for name, values in self.scores.items()}
        return {
            "checkpoint": str(self.entrant.path), "name": self.name, "stage": self.entrant.stage,
            "step": self.entrant.step, **means(self.scores), "failed": self.failed,
            "intervals": {name: edges and list(edges) for name, edges in intervals.items()},
            "leak": self.entrant.leak and self.entrant.leak.to_dict(),
        }  # fmt: skip


def ask(entrant, model, pairs, params, words=False, progress=None):
    """`Asked`: what a model (the opened entrant) answers to pairs [(prompt, reference)]. Raises UserError."""
    prompts, references = zip(*pairs, strict=True)
    predictions = model.answers(prompts, params, progress)
    return Asked(entrant, predictions, score_each(predictions, references, words))


def comparisons(asked, resamples=1000, seed=0):
    """[{"a", "b", "figure", …}] of every two models, or of more than EACH_WITH_EACH of the best with each other one.

    The rest of an entry is as `scores.compare` has it. Pairs that either did not answer are left out.
    """
    means_of = [means(one.scores)["rouge_l_f"] or 0.0 for one in asked]
    best = asked[max(range(len(asked)), key=means_of.__getitem__)] if asked else None
    few = len(asked) <= EACH_WITH_EACH
    twos = itertools.combinations(asked, 2) if few else ((best, one) for one in asked if one is not best)
    found = []
    for (a, b), figure in itertools.product(twos, COMPARED):
        result = compare(a.scores[figure], b.scores[figure], resamples, seed)
        if result:
            found.append({"a": a.name, "b": b.name, "figure": figure, **result})
    return found


def ends_of(values, most=10):
    """(indices of the lowest, of the highest) of values (n,), at most so many each, without nan; the first of equal
    ones first; the highest value is not among the lowest. Both are [] where there are not more than the two would hold.
    """
    there = [i for i, value in enumerate(values) if value == value]
    if len(there) <= 2 * most:
        return [], []
    highest = max(values[i] for i in there)
    lowest = [i for i in sorted(there, key=lambda i: values[i])[:most] if values[i] < highest]
    return lowest, sorted(there, key=lambda i: -values[i])[:most]


def printable(text):
    """A text as a console can be given it: what another machine sent may hold orders to it."""
    return CONTROLS.sub("�", text)


def clipped(text, most=32):
    """A text's beginning in one line, for a list."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= most else text[: most - 1] + "…"


def only_one(entrants, script):
    """The one entrant. Raises UserError where there are more."""
    if len(entrants) > 1:
        names = ", ".join(str(entrant.path) for entrant in entrants[:8])
        raise UserError(f"{script} looks at one model; name one of {names} with --ckpt=…")
    return entrants[0]
