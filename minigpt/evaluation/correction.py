"""Sentence correction: the sentences under evaluation, the prompts, and the figures of a model's answers."""

import os
import random
from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from data_utils import load_row_tokenizer, open_rows, read_meta
from minigpt.common.errors import UserError
from minigpt.corpus.questions import read_questions
from minigpt.corpus.records import Problems
from minigpt.evaluation.prompts import draw_samples, last_question, pairs_of_file, pairs_of_rows
from minigpt.metrics import compare, count_edits, edit_scores, exact_match, interval

SYSTEM_PROMPT = "你是中文校对员。请改正用户句子中的错误，只输出改正后的句子；句子没有错误时，原样输出。"
NO_SYSTEM_PROMPT = "none"  # in the settings and in the table
DEFAULT_SYSTEM_PROMPTS = ("", SYSTEM_PROMPT)
CORRECTION_GROUPS = ("accuracy", "to_change", "to_keep")  # all sentences, those with a mistake, those without
RIGHT, MISSED, OVERCORRECTED, WRONG, NO_ANSWER = "right", "missed", "overcorrected", "wrongly corrected", "no answer"
FAILURES = (MISSED, WRONG, OVERCORRECTED)
VERDICTS = (RIGHT, *FAILURES, NO_ANSWER)


@dataclass(frozen=True)
class CorrectionPair:
    question: str  # a sentence, with or without a mistake
    answer: str  # the correct sentence
    kind: str = ""  # of the mistake, if it is known
    others: tuple = ()  # further corrections that are right, too

    @property
    def answers(self):
        """All corrections that are right."""
        return self.answer, *self.others

    @property
    def texts(self):
        """The set of the sentence and its corrections."""
        return {self.question, *self.answers}

    @property
    def changes(self):
        """Whether the sentence has to be changed: it is none of its corrections."""
        return not matches_any(self.question, self.answers)


# The sentences


def matches_any(text, answers):
    return any(exact_match(text, answer) for answer in answers)


def read_details(paths, form=None):
    """{(question, answer): (kind, other corrections)} of the rows that have any. Missing files are skipped.

    form: as `pairs_of_file` takes it.
    """
    rows = read_questions(filter(os.path.isfile, paths), Problems(), form=form)
    details = {(row.question, row.answer): (row.kind, row.other_answers) for _, row in rows}
    return {pair: known for pair, known in details.items() if any(known)}


def to_cases(pairs, details):
    """[`CorrectionPair`] of pairs [(prompt, answer)]. Of a chat, the last question is the sentence."""
    texts = [(last_question(prompt), answer) for prompt, answer in pairs]
    return [CorrectionPair(*pair, *details.get((pair[0].strip(), pair[1].strip()), ())) for pair in texts]


def load_cases(settings):
    """(cases, pool) of `CorrectionPair`s by the settings. Raises UserError.

    cases: the sentences to correct, at most max_samples of them, drawn by the seed. pool: the pairs that few-shot
    examples are drawn from: all rows of the file, or the train part. Rows are read as text, so that models with other
    tokenizers can be asked them.
    """
    if settings.questions:
        pool = cases = to_cases(
            pairs_of_file(settings.questions, settings), read_details([settings.questions], settings)
        )
    else:
        folder, meta = settings.data_dir, read_meta(settings.data_dir)
        if meta["stage"] != "sft":
            raise UserError(
                f"{folder} holds articles, no sentences to correct; name the folder of data/prepare_sft.py with "
                "--data_dir=…, or a file of them with --questions=…"
            )
        tokenizer, details = load_row_tokenizer(folder, meta), read_details(meta.get("sources") or [], settings)
        has_train_rows = meta["parts"].get("train", {}).get("rows")  # a folder may have a test part only
        cases_rows, _ = open_rows(folder, settings.split or "test")
        pool_rows = open_rows(folder, "train")[0] if has_train_rows else ()
        cases, pool = (to_cases(pairs_of_rows(rows, meta, tokenizer), details) for rows in (cases_rows, pool_rows))
    return draw_samples(cases, settings, "sentence"), pool


# The prompts


def parse_system_prompts(names):
    """The system prompts that the setting `systems` names: texts, or files with one prompt per line; "" for none."""
    prompts = []
    for name in names:
        if not os.path.isfile(name):
            prompts.append(name)
            continue
        try:
            with open(name, encoding="utf-8-sig") as file:
                prompts += [line.strip() for line in file if line.strip()]
        except (OSError, UnicodeDecodeError):
            raise UserError(f"{name} cannot be read as UTF-8 text; it has a system prompt a line") from None
    prompts = ["" if prompt == NO_SYSTEM_PROMPT else prompt for prompt in prompts]
    return list(dict.fromkeys(prompts)) or list(DEFAULT_SYSTEM_PROMPTS)


class ExampleSampler:
    """Draws the few-shot examples of a sentence. Half of them (rounded down) are sentences without a mistake."""

    def __init__(self, pool, seed):
        self.seed = seed
        self.to_change = [case for case in pool if case.changes]
        self.to_keep = [case for case in pool if not case.changes]

    def draw(self, case, count):
        """`count` examples for a case, always the same. None shares a text with the case. Raises UserError."""
        rng, examples, texts = random.Random(f"{self.seed}:{case.question}"), [], case.texts
        groups = self.to_change, self.to_keep
        for group, wanted in zip(groups, (count - count // 2, count // 2), strict=True):
            examples += self._take(rng, group, wanted, texts)
        for group in groups:  # if the other one has too few
            examples += self._take(rng, group, count - len(examples), texts)
        if len(examples) < count:
            raise UserError(
                f"{count} examples are wanted, but there are only {len(examples)} others; ask for fewer --shots"
            )
        rng.shuffle(examples)
        return examples

    def _take(self, rng, group, count, texts):
        """Up to `count` cases of a group that share no text with `texts`, to which theirs are added."""
        taken = []
        for case in rng.sample(group, min(len(group), 8 * count + 32)) if count else ():
            if len(taken) < count and not texts & case.texts:
                texts |= case.texts
                taken.append(case)
        return taken


def build_chat(case, system="", examples=()):
    """The messages of a prompt: the system prompt, the examples as turns, the sentence."""
    messages = [{"role": "system", "content": system}] if system else []
    for example in examples:
        messages += [{"role": "user", "content": example.question}, {"role": "assistant", "content": example.answer}]
    return [*messages, {"role": "user", "content": case.question}]


# The figures


def judge_correction(case, prediction):
    """One of VERDICTS."""
    if prediction is None:
        return NO_ANSWER
    if matches_any(prediction, case.answers):
        return RIGHT
    if not case.changes:
        return OVERCORRECTED
    return MISSED if exact_match(prediction, case.question) else WRONG


def matches_of_groups(cases, predictions):
    """[(group, (n,) float64)] for CORRECTION_GROUPS: 1 for an exact match, 0 for none, nan for no answer."""
    value_of = {RIGHT: 1.0, NO_ANSWER: np.nan}
    matches = np.array([value_of.get(judge_correction(*pair), 0.0) for pair in zip(cases, predictions, strict=True)])
    changes = np.array([case.changes for case in cases], dtype=bool)
    return list(zip(CORRECTION_GROUPS, (matches, matches[changes], matches[~changes]), strict=True))


def accuracy_of(matches, resamples, seed):
    """(mean, number of answers, [low, high]) of matches (n,), nan left out; None for a mean or interval of nothing."""
    answered = matches[~np.isnan(matches)]
    edges = interval(answered, resamples=resamples, seed=seed) if len(answered) else None
    return float(answered.mean()) if len(answered) else None, len(answered), edges and list(edges)


def correction_figures(cases, predictions, resamples=1000, seed=0):
    """Accuracy (exact match with any correction) over all sentences, over those to change and to keep, and by kind.

    {"accuracy", "to_change", "to_keep" (0 to 1, or None), "intervals": {group: [low, high]}, "pairs",
    "pairs_to_change", "pairs_to_keep", "verdicts": {verdict: n}, "kinds": {kind: {"accuracy", "pairs", "interval"}},
    "unchanged": share of the answers that are the sentence itself, "edits": `metrics.edit_scores`}.
    Sentences without an answer are counted in "verdicts" only.
    """
    groups = matches_of_groups(cases, predictions)
    counts = Counter(map(judge_correction, cases, predictions))
    figures = {"intervals": {}, "verdicts": {name: counts[name] for name in VERDICTS if counts[name]}, "kinds": {}}
    for group, matches in groups:
        key = "pairs" if group == "accuracy" else f"pairs_{group}"
        figures[group], figures[key], figures["intervals"][group] = accuracy_of(matches, resamples, seed)
    _, all_matches = groups[0]
    for kind in sorted({case.kind for case in cases} - {""}):
        accuracy, pairs, edges = accuracy_of(all_matches[[case.kind == kind for case in cases]], resamples, seed)
        figures["kinds"][kind] = {"accuracy": accuracy, "pairs": pairs, "interval": edges}
    answered = [(case, text.strip()) for case, text in zip(cases, predictions, strict=True) if text is not None]
    kept = sum(exact_match(text, case.question) for case, text in answered)
    figures["unchanged"] = kept / len(answered) if answered else None
    edits = [count_edits(case.question.strip(), text, map(str.strip, case.answers)) for case, text in answered]
    return {**figures, "edits": edit_scores(edits, resamples, seed)}


def compare_corrections(cases, first, second, resamples, seed):
    """{group: `metrics.compare`} of two models' predictions for the same cases. Groups without cases are left out."""
    groups = zip(matches_of_groups(cases, first), matches_of_groups(cases, second), strict=True)
    results = {group: compare(a, b, resamples, seed) for (group, a), (_, b) in groups}
    return {group: result for group, result in results.items() if result}


def failures_first(cases, predictions, count):
    """Texts of up to `count` sentences with their predictions: the failures first, the kinds of failure in turn."""
    by_verdict = {name: [] for name in VERDICTS}
    for case, prediction in zip(cases, predictions, strict=True):
        verdict = judge_correction(case, prediction)
        by_verdict[verdict].append((verdict, case, prediction))
    in_turn = zip_longest(*(by_verdict[name] for name in FAILURES))
    failures = [failure for turn in in_turn for failure in turn if failure]
    return [
        f"{name}{f' ({case.kind})' if case.kind else ''}\n  原句 question:   {case.question}\n"
        f"  应为 reference:  {' | '.join(case.answers)}\n  预测 prediction: {prediction}"
        for name, case, prediction in [*failures, *by_verdict[RIGHT]][:count]
    ]
