"""Automatic matches, training runs and examples."""

import json
import threading

import pytest
from arena_fakes import arena_settings, open_fake, write_checkpoints
from corpora import ROOT
from peer_fakes import peer

from minigpt.arena.answers import CancelToken
from minigpt.arena.arena import Arena, read_examples
from minigpt.arena.match import (
    draw_questions,
    make_match_votes,
    play_match,
    read_match_questions,
    sample_questions,
)
from minigpt.arena.problems import Problem
from minigpt.arena.runs import MAX_CURVE_POINTS, RunLogs
from minigpt.inference.params import SamplingParams


@pytest.fixture
def arena(tmp_path):
    write_checkpoints(tmp_path / "out")
    arena = Arena(arena_settings(tmp_path), open_fake)
    yield arena
    arena.close()


def key_of(raised):
    return raised.value.key


# Matches


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.jsonl", '{"question": "一", "answer": "壹"}\n{broken\n[]\n{"prompt": "二"}\n{"question": 7}\n\n'),
        ("q.json", '[{"question": "一", "answer": "壹"}, 5, {"prompt": "二"}]'),
        ("q.csv", "\ufeffquestion,answer\n一,壹\n,空\n二,\n"),
        ("q.txt", "一\n\n二\n"),
    ],
)
def test_questions_are_read_in_every_form_and_bad_rows_cost_no_good_ones(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    questions, skipped = read_match_questions(tmp_path / name, 1000)
    assert [question for question, _ in questions] == ["一", "二"]
    assert questions[0][1] == ("" if name == "q.txt" else "壹")
    assert skipped == {"q.jsonl": [2, 3, 5], "q.json": [2], "q.csv": [3], "q.txt": []}[name]


def test_a_cell_of_a_csv_may_have_several_lines(tmp_path):
    (tmp_path / "q.csv").write_text('question,answer\n"x\n\ny",1\na\u2028b,2\n', encoding="utf-8", newline="")
    assert read_match_questions(tmp_path / "q.csv", 1000)[0] == [("x\n\ny", "1"), ("a\u2028b", "2")]


@pytest.mark.parametrize(
    ("name", "content", "key"),
    [("q.jsonl", b"", "no_questions"), ("q.txt", b"\x80\xff", "not_utf8"), ("q.json", b"{", "no_questions"),
     ("q.csv", b"a,b\n1,2\n", "no_questions"), ("q.txt", b"q\n" * 1001, "many_questions"),
     ("q.txt", b"q" * (9 << 20), "big_file"), ("q.txt", b"q" * 2000, "no_questions")],
)  # fmt: skip
def test_a_file_that_cannot_be_asked_is_said(tmp_path, name, content, key):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Problem) as raised:
        read_match_questions(tmp_path / name, 1000)
    assert key_of(raised) == key


def test_a_match_scores_the_answers_and_counts_wins(arena):
    questions = [("full stop", "full stop"), ("full stop, 二", "没有关系"), ("full stop 三", "")]
    with peer(["echo", "whole"]) as other:
        arena.peers.add("p", other.address)
        arena.peers.check(5)
        steps = list(play_match(arena, CancelToken(), ["alpha", "whole @ p"], questions, SamplingParams()))
    results, done = steps[-1]
    assert done == 6 and results.answers["alpha"] == [question for question, _ in questions]
    assert results.answers["whole @ p"][0] == "整个full stop"
    assert results.mean_scores("alpha")[1] == 0.5 and results.scores["alpha"][2] is None
    votes, tally = make_match_votes(results, {"seed": 1})
    assert tally == {("alpha", "whole @ p"): [1, 0, 1]} and len(votes) == 2
    assert votes[0]["kind"] == "match" and votes[0]["result"] == "left" and votes[0]["rouge_l"][0] == 1.0
    assert votes[0]["left"] == "alpha (step 7)" and votes[1]["result"] == "tie"


def test_a_model_that_fails_some_answers_loses_none_of_the_others(arena):
    questions = [("fail", "f"), ("full stop", "full stop")]
    results, _ = list(play_match(arena, CancelToken(), ["alpha"], questions, SamplingParams()))[-1]
    assert results.answers["alpha"] == [None, "full stop"] and len(results.failures["alpha"]) == 1
    assert results.scores["alpha"] == [None, (1.0, True)]


def test_a_match_can_be_stopped(arena):
    token = CancelToken()
    playing = play_match(arena, token, ["alpha", "beta"], [("never", "")] * 3, SamplingParams())
    threading.Timer(0.3, token.stop).start()
    with pytest.raises(Problem) as raised:
        list(playing)
    assert key_of(raised) == "match_stopped" and arena.models._slots["alpha"].users == 0


def test_the_embedded_questions_are_about_held_out_subjects():
    questions, skipped = sample_questions()
    assert len(questions) == 830 and not skipped and all(all(pair) for pair in questions)
    assert len(draw_questions(questions, 20)) == 20 and draw_questions(questions, 20) == draw_questions(questions, 20)
    assert draw_questions(questions, 0) == questions


# Runs and examples


def line(step, train=1.0, val=None):
    return json.dumps({"step": step, "epoch": 1, "train_loss": train, "val_loss": val, "seconds": 1}) + "\n"


def test_runs_are_read_while_they_grow_and_long_curves_are_thinned(tmp_path):
    log = tmp_path / "out" / "a" / "log.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text(line(1) + '{"step": 2, "tra', encoding="utf-8")
    runs = RunLogs(tmp_path / "out")
    assert list(runs.list_logs()) == ["a"] and runs.curves(["a"]) == [(1, 1.0, "a · train")]
    assert runs.state("a")["active"] and runs.state("a")["val_loss"] is None and runs.state("b") is None
    log.write_text(line(1) + line(2, "abc") + line(3, [1], float("nan")), encoding="utf-8")
    assert runs.state("a")["train_loss"] == 1.0 and runs.curves(["a"]) == [(1, 1.0, "a · train")]
    log.write_text("".join(line(i, i, 5.0 if i == 999 else None) for i in range(1000)), encoding="utf-8")
    curve = [point for point in runs.curves(["a", "none"]) if point[2] == "a · train"]
    assert len(curve) <= MAX_CURVE_POINTS and curve[-1] == (999, 999, "a · train")
    assert runs.curves(["a"])[-1] == (999, 5.0, "a · val") and runs.state("a")["step"] == 999


def test_examples_are_those_of_the_file_and_a_bad_row_costs_no_good_one(tmp_path):
    rows, problems = read_examples(ROOT / "examples.csv")
    assert len(rows) >= 20 and not problems and {kind for _, kind, _ in rows} == {"pretrain", "sft"}
    path = tmp_path / "e.csv"
    path.write_text("prompt,kind,note\n好,sft,\n,sft,x\n坏,other,x\n", encoding="utf-8-sig")
    rows, problems = read_examples(path)
    assert rows == [["好", "sft", ""]] and [p.values["line"] for p in problems] == [3, 4]
    path.write_text("prompt,b\n好,x\n", encoding="utf-8")
    for unusable in (path, tmp_path / "none.csv"):
        rows, (problem,) = read_examples(unusable)
        assert not rows and problem.key == "examples_file" and problem.values["columns"] == "prompt, kind, note"
