"""An automatic match: the same questions to several models, scored against reference answers where there are any."""

import csv
import functools
import io
import json
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
from minigpt.corpus import records as corpus
from minigpt.metrics import exact_match, rouge_l
from minigpt.openai_client import clean_text

MOST_QUESTIONS = 1000
MOST_BYTES = 8 << 20
LONGEST_REFERENCE = 4000  # characters
AT_ONCE = 16  # questions that one model is asked together; a peer takes a quarter of them
QUESTION_NAMES = ("question", "prompt", "instruction", "问题")
ANSWER_NAMES = ("answer", "reference", "output", "答案")


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


def read_questions(path, most_chars):
    """([(question, reference or "")], [what was skipped]) of a file: .jsonl or .json, .csv, or text with one a line.

    A row's names are those of QUESTION_NAMES and ANSWER_NAMES; a question of more than `most_chars`, or a reference of
    more than LONGEST_REFERENCE, is skipped. Raises Problem where nothing can be read.
    """
    path = Path(path)
    if path.stat().st_size > MOST_BYTES:
        raise Problem("big_file", most=MOST_BYTES >> 20)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Problem("not_utf8") from None
    reader = {".jsonl": rows_of_jsonl, ".json": rows_of_json, ".csv": rows_of_csv}.get(
        path.suffix.lower(), rows_of_text
    )
    questions, skipped = [], []
    for line, row in reader(text):
        pair = pair_of(row)
        if pair and len(pair[0]) <= most_chars and len(pair[1]) <= LONGEST_REFERENCE:
            questions.append(pair)
        else:
            skipped.append(line)
    if not questions:
        raise Problem("no_questions", names=", ".join(QUESTION_NAMES))
    if len(questions) > MOST_QUESTIONS:
        raise Problem("many_questions", count=len(questions), most=MOST_QUESTIONS)
    return questions, skipped


@functools.cache
def sample_questions():
    """As `read_questions`: those of the embedded corpus about subjects that the demo's training asked nothing about."""
    subjects, heldout = (
        corpus.subjects_by_id([PROJECT / "data/wiki_sample"]),
        corpus.read_heldout(PROJECT / "sft/sample_heldout.txt"),
    )
    rows = corpus.read_questions([PROJECT / "sft/sample_qa.jsonl"], corpus.Problems())
    return [(row.question, row.answer) for _, row in rows if subjects.get(str(row.id)) in heldout], []


def drawn(questions, count, seed=0):
    """`count` of the questions, drawn at random but always the same; 0: all."""
    return random.Random(seed).sample(questions, count) if 0 < count < len(questions) else questions


def rows_of_jsonl(text):
    for line, row in enumerate(text.split("\n"), start=1):
        if row.strip():
            try:
                yield line, json.loads(row)
            except (ValueError, RecursionError):
                yield line, None


def rows_of_json(text):
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        rows = None
    yield from enumerate(rows if isinstance(rows, list) else [], start=1)


def rows_of_csv(text):
    try:
        yield from enumerate(csv.DictReader(io.StringIO(text, newline="")), start=2)
    except csv.Error as error:  # a cell of more than 128 KiB
        raise Problem("bad_csv", detail=str(error)) from None


def rows_of_text(text):
    yield from ((line, {"question": row}) for line, row in enumerate(text.split("\n"), start=1) if row.strip())


def pair_of(row):
    """(question, reference or "") of a row, or None where it has no question."""
    if not isinstance(row, dict):
        return None
    question = next((row[name] for name in QUESTION_NAMES if isinstance(row.get(name), str)), "")
    reference = next((row[name] for name in ANSWER_NAMES if isinstance(row.get(name), str)), "")
    question, reference = (clean_text(text.replace("\0", "").strip()) for text in (question, reference))
    return (question, reference) if question else None


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
