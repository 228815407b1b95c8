"""An automatic match: several models answer the same questions, and are scored against reference answers."""

import functools
import random
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

from minigpt.arena.answers import follow_answers
from minigpt.arena.peers import SEPARATOR
from minigpt.arena.problems import Problem
from minigpt.arena.votes import make_vote, utc_now
from minigpt.common.files import PROJECT
from minigpt.corpus.questions import QUESTION_NAMES, read_questions
from minigpt.corpus.records import Problems
from minigpt.corpus.splits import read_heldout, subjects_by_id
from minigpt.metrics import exact_match, rouge_l

MOST_QUESTIONS = 1000
MOST_BYTES = 8 << 20
LONGEST_REFERENCE = 4000  # characters
LOCAL_BATCH = 16  # questions that a local model answers at once
REMOTE_BATCH = 4


@dataclass
class MatchResults:
    """Results so far.

    questions: [(question, reference or "")]; answers: {model: [text, None where it failed]}; keys: {model: its name in
    votes}; failures: {model: [exception]}; scores: {model: [as `score_answer` returns them]}.
    """

    questions: list
    answers: dict = field(default_factory=dict)
    keys: dict = field(default_factory=dict)
    failures: dict = field(default_factory=dict)
    scores: dict = field(default_factory=dict)

    def mean_scores(self, model):
        """(mean Rouge-L F, share of exact matches) over the questions with a score; None if there are none."""
        scores = [score for score in self.scores[model] if score]
        return tuple(sum(column) / len(scores) for column in zip(*scores, strict=True)) if scores else None


def score_answer(answer, reference):
    """(Rouge-L F, exact match) of an answer; None without a reference or an answer."""
    if not reference or answer is None:
        return None
    return rouge_l(answer, reference)[2], exact_match(answer, reference)


class SkippedRows(list):
    """[(line, reason)] of the rows of a file that are not asked."""

    def add(self, reason, path, line):
        """Add a row, unless it is an empty line. `read_questions` calls it, as `Problems.add`."""
        if reason != "empty line":
            self.append((line, reason))


def read_match_questions(path, max_chars):
    """([(question, reference or "")], [lines that were skipped]) of a file of questions, in any of the formats.

    A question of more than `max_chars`, or a reference of more than LONGEST_REFERENCE, is skipped. Raises Problem where
    the file is too large, has too many questions, or none.
    """
    if Path(path).stat().st_size > MOST_BYTES:
        raise Problem("big_file", most=MOST_BYTES >> 20)
    questions, skipped = [], SkippedRows()
    for line, row in read_questions([path], skipped, answer_required=False):
        if len(row.question) <= max_chars and len(row.answer) <= LONGEST_REFERENCE:
            questions.append((row.question, row.answer))
        else:
            skipped.add("too long", path, line)
    if not questions:
        if "bad UTF-8" in [reason for _, reason in skipped]:
            raise Problem("not_utf8")
        raise Problem("no_questions", names=", ".join(QUESTION_NAMES))
    if len(questions) > MOST_QUESTIONS:
        raise Problem("many_questions", count=len(questions), most=MOST_QUESTIONS)
    return questions, [line for line, _ in skipped]


@functools.cache
def sample_questions():
    """As `read_match_questions`: questions of the embedded corpus about held-out subjects, which no model of the demo
    was fine-tuned on."""
    subjects = subjects_by_id([PROJECT / "data/wiki_sample"])
    heldout = read_heldout(PROJECT / "sft/sample_heldout.txt")
    rows = read_questions([PROJECT / "sft/sample_qa.jsonl"], Problems())
    return [(row.question, row.answer) for _, row in rows if subjects.get(str(row.id)) in heldout], []


def draw_questions(questions, count, seed=0):
    """`count` of the questions, a random sample that depends on the seed alone; all of them for 0."""
    return random.Random(seed).sample(questions, count) if 0 < count < len(questions) else questions


def play_match(arena, token, models, questions, params):
    """Ask each model all questions, one model after the other. Yields (MatchResults so far, number of answers so far).

    questions: [(question, reference or "")]; token: a CancelToken. Raises Problem when it is cancelled, and what
    `Arena.ask` raises.
    """
    results, done = MatchResults(questions), 0
    for model in models:
        texts, failures, scores = [None] * len(questions), [], [None] * len(questions)
        results.answers[model], results.failures[model], results.scores[model] = texts, failures, scores
        batch = REMOTE_BATCH if SEPARATOR in model else LOCAL_BATCH
        for start in range(0, len(questions), batch):
            answers = arena.ask_all([(model, question) for question, _ in questions[start : start + batch]], params)
            token.add(answers)
            results.keys[model] = answers[0].key
            for _ in follow_answers(answers):
                yield results, done + sum(answer.ended for answer in answers)
            if token.stopped:
                raise Problem("match_stopped")
            for i, answer in enumerate(answers, start):
                texts[i] = None if answer.failure else answer.text
                scores[i] = score_answer(texts[i], questions[i][1])
                failures += [answer.failure] if answer.failure else []
            done += len(answers)
            yield results, done


def make_match_votes(results, settings):
    """(votes, {(a, b): [a's wins, b's wins, ties]}): a vote for each pair of models and question that both have a score
    for. The higher Rouge-L F wins."""
    votes, tally, scores = [], {}, results.scores
    started = utc_now()
    for a, b in combinations(results.answers, 2):
        counts = tally[a, b] = [0, 0, 0]
        if results.keys[a] == results.keys[b]:
            continue
        for i, (question, _) in enumerate(results.questions):
            if scores[a][i] is None or scores[b][i] is None:
                continue
            rouge_a, rouge_b = scores[a][i][0], scores[b][i][0]
            result = "left" if rouge_a > rouge_b else "right" if rouge_b > rouge_a else "tie"
            counts[("left", "right", "tie").index(result)] += 1
            sides = [SimpleNamespace(key=results.keys[m], text=results.answers[m][i]) for m in (a, b)]
            rouge = [rouge_a, rouge_b]
            votes.append(make_vote(question, *sides, result, settings, kind="match", match=started, rouge_l=rouge))
    return votes, tally
