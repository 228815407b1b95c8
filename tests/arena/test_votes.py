"""The arena's files: concurrent and killed writers, the leaderboard, exports."""

import csv
import json
import math
import multiprocessing
import os
import random
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest

from minigpt.arena.leaderboard import ELO_PER_NAT, compute_standings, count_results, fit_strengths, select_votes
from minigpt.arena.problems import Problem
from minigpt.arena.votes import (
    Battles,
    Votes,
    append_lines,
    flag_answers,
    format_csv,
    read_votes,
)


def vote(left="a", right="b", result="left", **more):
    return {
        "left": left,
        "right": right,
        "result": result,
        "prompt": "问",
        "left_answer": "左答",
        "right_answer": "右答",
        **more,
    }


def answer(key, text="答", ended=True, failure=None):
    return SimpleNamespace(key=key, text=text, ended=ended, failure=failure)


def cast_many(path, number, count, acknowledged):
    """Cast votes in a process of its own. Votes that are on the disk are listed in the file `acknowledged`."""
    votes = Votes(path)
    with open(acknowledged, "a", encoding="utf-8") as file:
        for i in range(count):
            votes.add([vote(id=f"{number}-{i}", padding="长" * random.Random(i).randrange(2000))])
            file.write(f"{number}-{i}\n")
            file.flush()


def test_votes_of_three_processes_one_of_them_killed_are_all_there(tmp_path):
    path, spawn = tmp_path / "votes.jsonl", multiprocessing.get_context("spawn")
    names = [tmp_path / f"acknowledged-{number}" for number in range(3)]
    counts = (10**6, 100, 100)  # the first process is killed long before its last vote
    workers = [
        spawn.Process(target=cast_many, args=(path, number, count, names[number]), daemon=True)
        for number, count in enumerate(counts)
    ]
    for worker in workers:
        worker.start()
    while not (names[0].exists() and names[0].read_text(encoding="utf-8").count("\n") >= 20):
        time.sleep(0.005)
    workers[0].kill()
    for worker in workers:
        worker.join()
    votes, unreadable = read_votes(path)
    found = [each["id"] for each in votes]
    acknowledged = [line for name in names for line in name.read_text(encoding="utf-8").split("\n")[:-1]]
    assert len(acknowledged) >= 220 and set(acknowledged) <= set(found)
    assert len(found) == len(set(found)) and unreadable <= 1
    Votes(path).add([vote(id="after")])  # the killed process blocks nobody
    assert read_votes(path)[0][-1]["id"] == "after"


def test_a_torn_line_spoils_nothing_but_itself(tmp_path):
    path = tmp_path / "votes.jsonl"
    Votes(path).add([vote(id=1)])
    with open(path, "ab") as file:
        file.write(b'{"left": "a", "ri')
    Votes(path).add([vote(id=2)])
    votes, unreadable = read_votes(path)
    assert [each["id"] for each in votes] == [1, 2] and unreadable == 1


def test_lines_that_are_no_votes_are_counted(tmp_path):
    path = tmp_path / "votes.jsonl"
    path.write_bytes(
        b'7\n[]\n{"left": 1, "right": "b", "result": "left"}\n\xff\xfe\n\n' + json.dumps(vote()).encode() + b"\n"
    )
    votes, unreadable = Votes(path).all()
    assert len(votes) == 1 and unreadable == 4
    assert Votes(tmp_path / "none.jsonl").all() == ([], 0)


def test_a_place_that_cannot_be_written_to_is_said(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(Problem) as raised:
        append_lines(tmp_path / "file" / "votes.jsonl", "x\n")
    assert raised.value.key == "not_written"


def test_a_battle_is_good_for_one_vote_and_only_once_both_have_ended(tmp_path):
    battles = Battles(Votes(tmp_path / "votes.jsonl"))
    left, right = answer("a", ended=False), answer("b")
    name = battles.begin("问", [left, right], True, {"seed": 1})
    for result, key in (("left", "battle_runs"), ("best", "bad_result")):
        with pytest.raises(Problem) as raised:
            battles.cast(name, result)
        assert raised.value.key == key
    left.ended = True
    cast = battles.cast(name, "bad")
    assert (cast["left"], cast["right"], cast["result"], cast["blind"]) == ("a", "b", "bad", True)
    with pytest.raises(Problem) as raised:
        battles.cast(name, "left")
    assert raised.value.key == "no_battle"
    assert Votes(tmp_path / "votes.jsonl").all() == ([cast], 0)


def test_a_battle_that_failed_on_one_side_is_not_counted(tmp_path):
    battles = Battles(Votes(tmp_path / "votes.jsonl"))
    name = battles.begin("问", [answer("a"), answer("b", failure=RuntimeError())], False, {})
    with pytest.raises(Problem) as raised:
        battles.cast(name, "left")
    assert raised.value.key == "battle_failed" and not (tmp_path / "votes.jsonl").exists()


def test_a_vote_that_could_not_be_written_can_be_cast_again(tmp_path):
    (tmp_path / "arena").write_text("in the way", encoding="utf-8")
    battles = Battles(Votes(tmp_path / "arena" / "votes.jsonl"))
    name = battles.begin("问", [answer("a"), answer("b")], False, {})
    with pytest.raises(Problem):
        battles.cast(name, "tie")
    (tmp_path / "arena").unlink()
    assert battles.cast(name, "tie")["result"] == "tie"


def test_two_models_differ_by_the_logarithm_of_their_odds():
    lines = compute_standings([vote()] * 300 + [vote("b", "a", "left")] * 100)
    assert [line.model for line in lines] == ["a", "b"]
    assert lines[0].score - lines[1].score == pytest.approx(400 * math.log10(3), rel=0.01)  # the prior's share
    assert lines[0].score + lines[1].score == pytest.approx(2000)
    assert (lines[0].games, lines[0].wins, lines[0].losses, lines[0].win_rate) == (400, 300, 100, 0.75)


def simple_strengths(wins, prior=0.02, steps=20000, rate=0.02):
    """As `fit_strengths`, by gradient ascent for one matrix."""
    theta = np.zeros(len(wins))
    for _ in range(steps):
        slope = -prior * theta
        for i in range(len(wins)):
            for j in range(len(wins)):
                chance = 1 / (1 + math.exp(theta[j] - theta[i]))
                slope[i] += wins[i, j] * (1 - chance)
                slope[j] -= wins[i, j] * (1 - chance)
        theta += rate * slope
    return theta - theta.mean()


def test_many_tables_at_once_are_solved_as_one_by_a_plain_loop():
    wins = np.random.default_rng(0).integers(0, 6, size=(3, 4, 4)) * (1 - np.eye(4))
    wins[1, 0] = 0  # who never won
    for table, theta in zip(wins, fit_strengths(wins), strict=True):
        np.testing.assert_allclose(theta, simple_strengths(table, steps=4000), atol=1e-3)


def test_strengths_that_made_the_votes_are_found_and_mostly_lie_in_their_intervals():
    rng = random.Random(2)
    true = {f"m{i}": rng.gauss(0, 1) for i in range(8)}
    mean = sum(true.values()) / len(true)
    votes = []
    for _ in range(3000):
        a, b = rng.sample(sorted(true), 2)
        votes.append(vote(a, b, "left" if rng.random() < 1 / (1 + math.exp(true[b] - true[a])) else "right"))
    lines = compute_standings(votes)
    inside = [line.low <= 1000 + ELO_PER_NAT * (true[line.model] - mean) <= line.high for line in lines]
    assert sum(inside) >= 6 and all(line.low <= line.score <= line.high for line in lines)
    assert compute_standings(votes) == lines  # and the same again


def test_who_never_lost_has_a_finite_score_and_no_certainty():
    first, _ = compute_standings([vote()] * 20)
    assert first.model == "a" and 1000 < first.score < 2000 and first.high - first.low > 50
    assert compute_standings([]) == [] and len(compute_standings([vote(result="bad")])) == 2


def test_ties_and_both_bad_are_half_a_win_each():
    lines = compute_standings([vote(result="tie")] * 3 + [vote(result="bad")] * 2)
    assert [line.score for line in lines] == pytest.approx([1000, 1000])
    assert [line.ties for line in lines] == [5, 5]
    assert count_results([vote(result="bad"), vote()], ["a", "b"])[..., 0].tolist() == [[0, 1], [0, 0]]


def test_a_match_that_was_run_again_counts_once_and_kinds_can_be_told_apart():
    match = vote(kind="match")
    turned = vote("b", "a", "left", kind="match", right_answer="又答")  # the same question again, and b wins
    votes = [match, match, turned, vote(), vote(), vote("a", "a")]
    assert len(select_votes(votes)) == 3 and turned in select_votes(votes) and match not in select_votes(votes)
    assert (
        len(select_votes(votes)) == 3
        and len(select_votes(votes, "vote")) == 2
        and len(select_votes(votes, "match")) == 1
    )
    assert compute_standings(select_votes(votes))[0].automatic == 1
    assert vote("a", "a") in select_votes(votes, "vote", against_itself=True)  # a preference, but no game


def test_flagged_answers_are_a_csv_that_spreadsheets_open_and_no_cell_of_it_is_a_formula(tmp_path):
    path = tmp_path / "arena" / "flagged.csv"
    flag_answers(path, "=1+1", [answer("a", '多行\n"引号",逗号')], {"seed": 1})
    flag_answers(path, "问", [answer("a", "一"), answer("b", "二")], {})
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    with open(path, encoding="utf-8-sig", newline="") as file:
        first, second = csv.DictReader(file)
    assert first["prompt"] == "'=1+1" and first["outputs"] == '多行\n"引号",逗号' and first["settings"] == '{"seed": 1}'
    assert second["models"] == "a | b" and json.loads(second["outputs"]) == {"a": "一", "b": "二"}
    assert format_csv([[-1, "@x"]]) == '-1,"\'@x"\n'
    assert list(csv.reader([format_csv([["a\rb", "ok\r=1"]])])) == [["a\rb", "ok\r=1"]]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX's file size limit")
def test_a_disk_that_is_full_leaves_no_half_vote(tmp_path):
    import resource

    path = tmp_path / "votes.jsonl"
    Votes(path).add([vote(id=1)])
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, limits[1]))
    try:
        with pytest.raises(Problem):
            Votes(path).add([vote(id=2)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
