"""An automatic match: several models answer the same questions, and are scored against reference answers."""

import csv
import functools
import io
import json
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
from minigpt.corpus import records as corpus
from minigpt.metrics import exact_match, rouge_l
from minigpt.openai_client import clean_text

MOST_QUESTIONS = 1000
MOST_BYTES = 8 << 20
LONGEST_REFERENCE = 4000  # characters
LOCAL_BATCH = 16  # questions that a local model answers at once
REMOTE_BATCH = 4
QUESTION_NAMES = ("question", "prompt", "instruction", "问题")
ANSWER_NAMES = ("answer", "reference", "output", "答案")


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
    """As `read_questions`: the held-out questions of the sample corpus, whose subjects are not in the demo's
    fine-tuning data."""
    subjects, heldout = (
        corpus.subjects_by_id([PROJECT / "data/wiki_sample"]),
        corpus.read_heldout(PROJECT / "sft/sample_heldout.txt"),
    )
    rows = corpus.read_questions([PROJECT / "sft/sample_qa.jsonl"], corpus.Problems())
    return [(row.question, row.answer) for _, row in rows if subjects.get(str(row.id)) in heldout], []


def draw_questions(questions, count, seed=0):
    """`count` of the questions, a random sample that depends on the seed alone; all of them for 0."""
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
