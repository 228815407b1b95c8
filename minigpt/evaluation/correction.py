"""Sentence correction measured: which sentences are asked, how a model is asked, and what its answers are worth."""

import os
import random
from collections import Counter
from dataclasses import dataclass

import numpy as np

from data_utils import load_row_tokenizer, open_rows, read_meta
from minigpt.common.errors import UserError
from minigpt.corpus.records import Problems, read_questions
from minigpt.evaluation.prompts import pairs_of_file, pairs_of_rows
from minigpt.metrics import compare, exact_match, interval

ASK = "你是中文校对员。请改正用户句子中的错误，只输出改正后的句子；句子没有错误时，原样输出。"
NONE = "none"  # how no system prompt is named in the settings
SYSTEMS = ("", ASK)
GROUPS = ("accuracy", "to_change", "to_keep")
# What can be wrong with an answer.
RIGHT, MISSED, OVERCORRECTED, WRONG, NO_ANSWER = "right", "missed", "overcorrected", "wrongly corrected", "no answer"
VERDICTS = (RIGHT, MISSED, WRONG, OVERCORRECTED, NO_ANSWER)
MORE_TOKENS = 8  # than the longest right sentence has: who needs more has it wrong already


@dataclass(frozen=True)
class CorrectionPair:
    question: str  # the sentence, perhaps with a mistake
    answer: str  # the right one
    kind: str = ""  # of the mistake, where it is known

    @property
    def changes(self):
        return self.question.strip() != self.answer.strip()


# What is asked


def kinds_of(paths):
    """{(question, answer): kind} of the rows that have a kind; files that do not exist are skipped."""
    rows = read_questions(filter(os.path.isfile, paths), Problems())
    return {(row.question, row.answer): row.kind for _, row in rows if row.kind}


def cases_of(pairs, kinds):
    return [
        CorrectionPair(question, answer, kinds.get((question.strip(), answer.strip()), ""))
        for question, answer in pairs
    ]


def load_cases(settings):
    """(asked, pool): `CorrectionPair`s that are asked, at most max_samples of them, drawn by seed, and those that
    examples are drawn from: all rows of the file, or the train part. Raises UserError.

    The rows are read as text, so that models with other tables can be asked them too.
    """
    if settings.questions:
        asked = cases_of(pairs_of_file(settings.questions), kinds_of([settings.questions]))
        pool = asked
    else:
        folder, meta = settings.data_dir, read_meta(settings.data_dir)
        if meta["stage"] != "sft":
            raise UserError(
                f"{folder} holds articles, no sentences to correct; name the folder of data/prepare_sft.py with "
                "--data_dir=…, or a file of them with --questions=…"
            )
        table, kinds = load_row_tokenizer(folder, meta), kinds_of(meta.get("sources") or [])
        asked, pool = (
            cases_of(pairs_of_rows(rows, meta, table), kinds)
            for rows in (open_rows(folder, settings.split or "test")[0], rows_to_show(folder, meta))
        )
    if not asked:
        raise UserError("no sentence could be read")
    if 0 < settings.max_samples < len(asked):
        asked = random.Random(settings.seed).sample(asked, settings.max_samples)
    return asked, pool


def rows_to_show(folder, meta):
    """The rows of the train part; none where it is empty, as in a folder that is only for tests."""
    return open_rows(folder, "train")[0] if meta["parts"].get("train", {}).get("rows") else ()


# How it is asked


def systems_of(names):
    """The system prompts that the setting `systems` names, "" for none: texts, or files of them, a line each."""
    found = []
    for name in names:
        if not os.path.isfile(name):
            found.append("" if name == NONE else name)
            continue
        try:
            with open(name, encoding="utf-8-sig") as file:
                lines = [line.strip() for line in file if line.strip()]
        except (OSError, UnicodeDecodeError):
            raise UserError(f"{name} cannot be read as UTF-8 text; it has a system prompt a line") from None
        found += ["" if line == NONE else line for line in lines]
    return list(dict.fromkeys(found)) or list(SYSTEMS)


def shots_of(texts):
    """The numbers of examples that the setting `shots` names. Raises UserError."""
    wrong = next((text for text in texts if not text.strip().isdecimal()), None)
    if wrong is not None:
        raise UserError(f"shots are numbers of examples, such as --shots=0,1,4, not {wrong!r}")
    return list(dict.fromkeys(int(text) for text in texts))


class Examples:
    """Draws the examples that stand before a sentence; half of them (rounded down) are sentences to keep."""

    def __init__(self, pool, seed):
        self.seed = seed
        self.sides = [case for case in pool if case.changes], [case for case in pool if not case.changes]

    def draw(self, case, count):
        """`count` cases for a case, always the same; never one with its question or its answer. Raises UserError."""
        rng, found, texts = random.Random(f"{self.seed}:{case.question}"), [], {case.question, case.answer}
        for side, wanted in zip(self.sides, (count - count // 2, count // 2), strict=True):
            found += self._take(rng, side, wanted, texts)
        for side in self.sides:  # where the other has too few
            found += self._take(rng, side, count - len(found), texts)
        if len(found) < count:
            raise UserError(
                f"{count} examples are wanted, but there are only {len(found)} others; ask for fewer --shots"
            )
        rng.shuffle(found)
        return found

    def _take(self, rng, side, count, texts):
        """Up to `count` cases of a side that share no text with what was taken."""
        found = []
        for case in rng.sample(side, min(len(side), 8 * count + 32)) if count else ():
            if len(found) < count and not texts & {case.question, case.answer}:
                texts |= {case.question, case.answer}
                found.append(case)
        return found


def chat(case, system="", examples=()):
    """The messages by which a sentence is asked: the system prompt, examples as turns, the sentence."""
    messages = [{"role": "system", "content": system}] if system else []
    for example in examples:
        messages += [{"role": "user", "content": example.question}, {"role": "assistant", "content": example.answer}]
    return [*messages, {"role": "user", "content": case.question}]


# What answers are worth


def verdict(case, prediction):
    """One of VERDICTS."""
    if prediction is None:
        return NO_ANSWER
    if exact_match(prediction, case.answer):
        return RIGHT
    if not case.changes:
        return OVERCORRECTED
    return MISSED if exact_match(prediction, case.question) else WRONG


def rights(cases, predictions):
    """(n,) float64: 1 for an exact match, 0 for none, nan where there was no answer."""
    marks = [
        np.nan if prediction is None else exact_match(prediction, case.answer)
        for case, prediction in zip(cases, predictions, strict=True)
    ]
    return np.array(marks, dtype=np.float64)


def mean(marks):
    """The mean of what is a number; None where there is nothing."""
    marks = marks[~np.isnan(marks)]
    return float(marks.mean()) if len(marks) else None


def figures(cases, predictions, resamples=1000, seed=0):
    """Accuracy (exact match) in all, on sentences to change and on sentences to keep, and by kind, with the counts.

    {"accuracy", "to_change", "to_keep" (0 to 1, or None), "intervals": {name: [low, high]}, "pairs",
    "pairs_to_change", "pairs_to_keep", "verdicts": {verdict: n}, "kinds": {kind: {"accuracy", "pairs", "interval"}}}.
    Sentences without an answer are counted as verdicts, and in nothing else.
    """
    marks = rights(cases, predictions)
    changes = np.array([case.changes for case in cases], dtype=bool)
    counts = Counter(verdict(case, prediction) for case, prediction in zip(cases, predictions, strict=True))
    found = {"intervals": {}, "verdicts": {name: counts[name] for name in VERDICTS if counts[name]}, "kinds": {}}
    for name, chosen in zip(GROUPS, (np.ones_like(changes), changes, ~changes), strict=True):
        found[name] = mean(marks[chosen])
        found["intervals"][name] = interval_of(marks[chosen], resamples, seed)
        answered = int((~np.isnan(marks[chosen])).sum())
        found["pairs" if name == "accuracy" else f"pairs_{name}"] = answered
    for kind in sorted({case.kind for case in cases} - {""}):
        of_kind = marks[[case.kind == kind for case in cases]]
        found["kinds"][kind] = {
            "accuracy": mean(of_kind),
            "pairs": int((~np.isnan(of_kind)).sum()),
            "interval": interval_of(of_kind, resamples, seed),
        }
    return found


def interval_of(marks, resamples, seed):
    found = interval(marks, resamples=resamples, seed=seed) if len(marks) else None
    return list(found) if found else None


def compared(cases, first, second, resamples, seed):
    """{group: `scores.compare`} of two models' predictions for the same cases; groups without a case are left out."""
    a, b = rights(cases, first), rights(cases, second)
    changes = np.array([case.changes for case in cases], dtype=bool)
    found = {}
    for name, chosen in zip(GROUPS, (np.ones_like(changes), changes, ~changes), strict=True):
        if result := compare(a[chosen], b[chosen], resamples, seed):
            found[name] = result
    return found


def shown(cases, predictions, count):
    """Lines of up to `count` sentences, those that went wrong first, each sort of failure in turn."""
    sorts = {name: [] for name in (*VERDICTS[1:-1], RIGHT, NO_ANSWER)}
    for case, prediction in zip(cases, predictions, strict=True):
        sorts[verdict(case, prediction)].append((case, prediction))
    lines = []
    while len(lines) < count and any(sorts[name] for name in VERDICTS[1:-1]):
        for name in VERDICTS[1:-1]:
            if sorts[name] and len(lines) < count:
                lines.append((name, *sorts[name].pop(0)))
    lines += [(RIGHT, *found) for found in sorts[RIGHT]][: count - len(lines)]
    return [
        f"{name}{f' ({case.kind})' if case.kind else ''}\n  原句 question:   {case.question}\n"
        f"  应为 reference:  {case.answer}\n  预测 prediction: {prediction}"
        for name, case, prediction in lines
    ]
