"""An automatic match: the same questions to several models, scored against reference answers where there are any."""

import functools
import random
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

from minigpt.arena.answers import follow
from minigpt.arena.peers import SEPARATOR
from minigpt.arena.problems import Problem
from minigpt.arena.votes import now, vote_of
from minigpt.common.files import PROJECT
from minigpt.corpus.records import QUESTION_NAMES, Problems, read_questions
from minigpt.corpus.splits import read_heldout, subjects_by_id
from minigpt.metrics import exact_match, rouge_l

MOST_QUESTIONS = 1000
MOST_BYTES = 8 << 20
LONGEST_REFERENCE = 4000  # characters
AT_ONCE = 16  # questions that one model is asked together; a peer takes a quarter of them


@dataclass
class Results:
    """questions: [(question, reference or "")]; answers: {model: [text or None where it failed]}; keys: {model: as
    votes know it}; failures: {model: [what went wrong]}; marks: {model: [as `mark_of` gives them]}."""

    questions: list
    answers: dict = field(default_factory=dict)
    keys: dict = field(default_factory=dict)
    failures: dict = field(default_factory=dict)
    marks: dict = field(default_factory=dict)

    def scores(self, model):
        """(mean Rouge-L F, share of exact matches) of a model over the questions that can be scored; None for none."""
        marks = [mark for mark in self.marks[model] if mark]
        return tuple(sum(column) / len(marks) for column in zip(*marks, strict=True)) if marks else None


def mark_of(answer, reference):
    """(Rouge-L's F, exact match) of an answer, or None without a reference or an answer."""
    if not reference or answer is None:
        return None
    return rouge_l(answer, reference)[2], exact_match(answer, reference)


class SkippedRows:
    """The rows of a file that are not asked: their lines, and the reasons."""

    def __init__(self):
        self.lines, self.reasons = [], set()

    def add(self, reason, path, line):
        """Adds a row; empty lines are not counted. For `read_questions`, as `Problems.add`."""
        if reason != "empty line":
            self.lines.append(line)
            self.reasons.add(reason)


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
        if "bad UTF-8" in skipped.reasons:
            raise Problem("not_utf8")
        raise Problem("no_questions", names=", ".join((*QUESTION_NAMES, "instruction")))
    if len(questions) > MOST_QUESTIONS:
        raise Problem("many_questions", count=len(questions), most=MOST_QUESTIONS)
    return questions, skipped.lines


@functools.cache
def sample_questions():
    """As `read_match_questions`: questions of the embedded corpus about held-out subjects, which no model of the demo
    was fine-tuned on."""
    subjects = subjects_by_id([PROJECT / "data/wiki_sample"])
    heldout = read_heldout(PROJECT / "sft/sample_heldout.txt")
    rows = read_questions([PROJECT / "sft/sample_qa.jsonl"], Problems())
    return [(row.question, row.answer) for _, row in rows if subjects.get(str(row.id)) in heldout], []


def drawn(questions, count, seed=0):
    """`count` of the questions, drawn at random but always the same; 0: all."""
    return random.Random(seed).sample(questions, count) if 0 < count < len(questions) else questions


def play(arena, ticket, models, questions, params):
    """Ask every model every question, one model after the other; yields (Results so far, answers that are done).

    ticket: an arena.answers.Ticket that can stop it. Raises what a model that cannot be asked at all raises.
    """
    results, done = Results(questions), 0
    for model in models:
        texts, failures = [None] * len(questions), []
        results.answers[model], results.failures[model] = texts, failures
        marks = results.marks[model] = [None] * len(questions)
        at_once = AT_ONCE if SEPARATOR not in model else max(1, AT_ONCE // 4)
        for start in range(0, len(questions), at_once):
            asked = arena.ask_all([(model, question) for question, _ in questions[start : start + at_once]], params)
            ticket.add(asked)
            results.keys[model] = asked[0].key
            for _ in follow(asked):
                yield results, done + sum(answer.ended for answer in asked)
            for i, answer in enumerate(asked, start):
                texts[i] = None if answer.failure else answer.text
                marks[i] = None if ticket.stopped else mark_of(texts[i], questions[i][1])
                failures += [answer.failure] if answer.failure else []
            done += len(asked)
            if ticket.stopped:
                raise Problem("match_stopped")
            yield results, done


def judge(results, settings):
    """(votes, {(a, b): [a's wins, b's wins, ties]}): each pair of models on each question with a reference that both
    answered; the higher Rouge-L F wins."""
    votes, tally, marks = [], {}, results.marks
    started = now()
    for a, b in combinations(results.answers, 2):
        counts = tally[a, b] = [0, 0, 0]
        if results.keys[a] == results.keys[b]:
            continue
        for i, (question, _) in enumerate(results.questions):
            if marks[a][i] is None or marks[b][i] is None:
                continue
            fa, fb = marks[a][i][0], marks[b][i][0]
            result = "left" if fa > fb else "right" if fb > fa else "tie"
            counts[("left", "right", "tie").index(result)] += 1
            sides = [SimpleNamespace(key=results.keys[m], text=results.answers[m][i]) for m in (a, b)]
            votes.append(vote_of(question, *sides, result, settings, kind="match", match=started, rouge_l=[fa, fb]))
    return votes, tally
