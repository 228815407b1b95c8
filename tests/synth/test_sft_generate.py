"""sft/sft_generate.py as a user runs it, against servers that behave well and badly."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from corpora import ROOT, made_up_articles, write_jsonl
from factory_fakes import LONG, POISONED, good_pairs, large_model, model_process
from serving_fakes import serving

from minigpt.common.cli import run_script

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None

SCRIPT = "sft/sft_generate.py"
SHORT = 30  # articles


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def wiki(folder, count=SHORT):
    return write_jsonl(folder / "wiki/a.jsonl", made_up_articles(count, tellings=1))


@pytest.fixture(scope="module")
def the_script():
    """sft/sft_generate.py as a module."""
    spec = importlib.util.spec_from_file_location("sft_generate", ROOT / SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ran(the_script, tmp_path, monkeypatch, capsys):
    """Runs the script over `wiki` in this process (faster than a new one) and returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(the_script, "Signals", lambda: SimpleNamespace(asked=False))  # pytest's own handlers stay

    def run(about, *flags, code=0):
        argv = [SCRIPT, "--input_dir=wiki", f"--api_base={about.base}", "--saves=saves.jsonl", *flags]
        monkeypatch.setattr(sys, "argv", argv)
        ended = 0
        try:
            run_script(the_script.main)
        except SystemExit as error:
            ended = error.code
        done = capsys.readouterr()
        assert ended == code, done.err
        return done.out + done.err

    return run


def titles(rows):
    """The articles of a file of pairs, each checked to be there once with the right pairs."""
    rows = list(rows)
    for row in rows:
        id = row["id"]
        town = made_up_articles(id + 1, 1)[id]["title"]
        right = good_pairs(town, "东西南北"[id % 4] + "河", str(id + 3))
        assert row == {"source": "wiki/a.jsonl", "id": id, "subject": town, "pairs": right}
    found = {row["subject"] for row in rows}
    assert len(found) == len(rows)
    return found


def every(count=SHORT, without=()):
    return {f"第{n}镇" for n in range(count)} - set(without)


@contextmanager
def started(folder, port, *flags):
    """A running sft_generate.py for the server at a port (model: stormy by default); killed at the end."""
    command = [sys.executable, str(ROOT / SCRIPT), "--input_dir=wiki", f"--api_base=http://127.0.0.1:{port}/v1"]
    command += ["--api_model=stormy", "--saves=saves.jsonl", "--request_seconds=1", *flags]
    log = open(folder / "log.txt", "ab")  # noqa: SIM115 (closed below)
    with log, subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(path, articles):
    """Wait until a file of pairs has this many articles (complete lines)."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if path.exists() and path.read_bytes().count(b"\n") >= articles:
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} has not {articles} articles")


def test_every_article_gets_pairs_and_a_second_run_from_another_folder_asks_about_new_ones(ran, script, tmp_path):
    wiki(tmp_path)
    with large_model() as about:
        said = ran(about, "--concurrency=3")
        assert titles(rows_of(tmp_path / "saves.jsonl")) == every()
        assert f"asking good at {about.base}; 0 articles are done already" in said
        assert f"{SHORT} accepted, 0 kept in part, 0 rejected" in said and f"{3 * SHORT}; requests: {SHORT}" in said
        assert "tokens: 210 read" in said and "prepare_sft.py --qa_files=saves.jsonl --articles=wiki" in said
        assert {body["temperature"] for body in about.asked} == {0.45} and about.asked[0]["max_tokens"] == 2048

        fresh = write_jsonl(tmp_path / "wiki/b.jsonl", made_up_articles(2, 1))  # ids start anew in each file
        (tmp_path / "deep").mkdir()
        flags = ["--input_dir=../wiki", f"--api_base={about.base}", "--saves=../saves.jsonl"]
        done = script(SCRIPT, *flags, cwd=tmp_path / "deep")
        assert f"2 accepted, 0 kept in part, 0 rejected, {SHORT} done before" in done.stdout, done.stderr
        assert len(about.asked) == SHORT + 2
    rows = rows_of(tmp_path / "saves.jsonl")[SHORT:]
    assert {(row["source"], row["id"]) for row in rows} == {(f"wiki/{fresh.name}", 0), (f"wiki/{fresh.name}", 1)}
    assert not (tmp_path / "rejects.jsonl").exists()


def test_bad_replies_of_every_kind_and_a_failing_server_do_not_change_the_accepted_pairs(ran, tmp_path):
    wiki(tmp_path)
    with large_model(models=("stormy",)) as about:
        said = ran(about, "--request_seconds=1", "--concurrency=8")
        assert titles(rows_of(tmp_path / "saves.jsonl")) == every() and f"{SHORT} accepted" in said
        assert not (tmp_path / "rejects.jsonl").exists()
        faults = said.split("faults: ")[1].splitlines()[0]
        broken = ("no_json", "cut_off", "pair_count", "question_length", "answer_length", "pronoun", "no_subject")
        for rule in (*broken, "duplicate", "characters", "unsupported"):
            assert f" {rule}" in faults
        for code in ("busy", "refused", "broke_off", "too_slow"):
            assert f" {code}" in said.split("failed requests: ")[1]
        again = [body for body in about.asked if len(body["messages"]) == 4]
        assert len(again) == SHORT / 3 and all("不合要求" in body["messages"][3]["content"] for body in again)
        assert {body["temperature"] for body in again} == {0.55}
        chats = {json.dumps(body) for body in about.asked if len(body["messages"]) > 1}
        assert len(chats) == SHORT + len(again)  # a retry after a failure is the same request


@pytest.mark.soak
def test_kills_of_the_server_and_of_the_run_lose_and_duplicate_no_article(tmp_path, rounds):
    count, kills = rounds(48, 600), rounds(3, 12)
    wiki(tmp_path, count)
    saves, port = tmp_path / "saves.jsonl", 0
    for kill in range(kills):
        mark = count * (2 * kill + 1) // (2 * kills + 2)
        with model_process(port) as (server, port):
            if kill < kills - 1:
                with started(tmp_path, port) as run:
                    wait_for(saves, mark)
                    server.kill()
                    server.wait()
                    with model_process(port):
                        wait_for(saves, mark + count // (2 * kills + 2))
                        run.kill()
            else:
                with started(tmp_path, port) as run:
                    wait_for(saves, mark)
                    run.kill()
    with model_process(port) as (_, port), started(tmp_path, port) as run:
        assert run.wait(120) == 0, (tmp_path / "log.txt").read_text(encoding="utf-8")
    whole = [
        line for line in saves.read_text(encoding="utf-8").splitlines() if line.endswith("]}")
    ]  # a kill may tear one
    assert titles(map(json.loads, whole)) == every(count)
    assert rows_of(tmp_path / "rejects.jsonl") == []


def test_concurrency_is_the_number_of_open_requests(ran, tmp_path):
    wiki(tmp_path, 24)
    with large_model(models=("slow",), together=8, seconds=0.05) as about:
        ran(about, "--concurrency=8")
        assert about.most == 8


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_exits_with_130_keeps_the_pairs_and_the_next_run_continues(script, tmp_path):
    wiki(tmp_path)
    saves = tmp_path / "saves.jsonl"
    with model_process(seconds=0.1) as (_, port):
        with started(tmp_path, port, "--api_model=good") as run:
            wait_for(saves, 3)
            run.send_signal(signal.SIGINT)
            assert run.wait(60) == 130
        log = (tmp_path / "log.txt").read_text(encoding="utf-8")
        assert "Traceback" not in log and "start again with the same command" in log and "pairs are in saves" in log
        some = titles(rows_of(saves))
        assert 3 <= len(some) < SHORT
        with started(tmp_path, port, "--api_model=good", "--concurrency=8") as run:
            assert run.wait(60) == 0
    assert titles(rows_of(saves)) == every()


def test_articles_that_make_the_server_fail_are_rejected_and_do_not_stop_the_run(ran, tmp_path):
    wiki(tmp_path, 12)
    with large_model(models=("poison",)) as about:
        ran(about, "--concurrency=1")
        assert titles(rows_of(tmp_path / "saves.jsonl")) == every(12, POISONED)
        rejects = rows_of(tmp_path / "rejects.jsonl")
        assert {row["title"] for row in rejects} == set(POISONED) and rejects[0]["source"] == "wiki/a.jsonl"
        assert all("has crashed (5 times" in row["reasons"][0][0] and row["replies"] == [] for row in rejects)
        asked = len(about.asked)
        assert "12 done before" in ran(about) and len(about.asked) == asked


def test_a_group_refused_because_of_one_article_is_asked_about_one_by_one(ran, tmp_path):
    wiki(tmp_path, 6)
    with large_model(models=("long",)) as about:
        said = ran(about, "--articles_per_request=2")
        assert titles(rows_of(tmp_path / "saves.jsonl")) == every(6, [LONG])
        assert "not answered: 1 articles" in said and "1 × an article was refused with status 400: the" in said
        assert not (tmp_path / "rejects.jsonl").exists()
        about.models = ("good",)
        assert "1 accepted" in ran(about, "--articles_per_request=2")
    assert titles(rows_of(tmp_path / "saves.jsonl")) == every(6)


THINKING = """--api_extra='{"reasoning_effort": "none"}'"""


@pytest.mark.parametrize(
    ("model", "flags", "expected", "mended"),
    [
        ("warm", [], ["only 1 is allowed; give --temperature=1 (now 0.45)"], ["--temperature=1"]),
        ("short", [], ["context length is 2048", "--max_new_tokens=512 --article_chars="], ["--max_new_tokens=512"]),
        ("unloaded", [], ["no model is loaded", "--api_model", "it offers unloaded"], None),
        ("cutting", [], ["cuts prompts at 2048 tokens", "OLLAMA_CONTEXT_LENGTH=8192", "--article_chars"], None),
        ("thinking", ["--tries=1"], ["thinking filled the reply", THINKING], None),
        ("endless", ["--tries=1"], ["end its answers: 240 characters", "--max_new_tokens to 512", "instruct"], None),
        ("trickling", ["--request_seconds=0.3"], ["end its answers: 5 characters", "within 0.3 s", "instruct"], None),
    ],
)
def test_troubles_alike_end_the_run_with_the_setting_and_no_article_is_lost(
    ran, tmp_path, model, flags, expected, mended
):
    wiki(tmp_path)
    with large_model(models=(model,)) as about:
        said = ran(about, *flags, "--concurrency=2", code=1)
        line = said.splitlines()[-1]
        assert line.startswith("error: ") and all(words in line for words in expected), line
        assert len(about.asked) <= 12 and "to have fewer no_json" not in said
        about.models = about.models if mended else ("good",)
        assert f"{SHORT} accepted" in ran(about, *(mended or []))
    assert not (tmp_path / "rejects.jsonl").exists()


def test_fewer_articles_than_end_a_run_are_reported_as_an_error_too(ran, tmp_path):
    wiki(tmp_path, 1)
    with large_model(models=("short",)) as about:
        assert "--max_new_tokens=" in ran(about, code=1).splitlines()[-1]


def test_a_model_that_takes_one_temperature_only_is_asked_again_with_it(ran, tmp_path):
    wiki(tmp_path, 2)
    with large_model(models=("moody",)) as about:
        said = ran(about, "--temperature=0.6", "--concurrency=1")
        assert "retries keep --temperature=0.6" in said and "2 accepted" in said
        assert [body["temperature"] for body in about.asked] == [0.6, 0.7, 0.6, 0.6, 0.6]


def test_extra_fields_are_in_every_request(ran, tmp_path):
    wiki(tmp_path, 3)
    with large_model(models=("long",)) as about:
        ran(about, '--api_extra={"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": false}}')
        assert len(about.asked) >= 4  # with the probe
        assert all(body["reasoning_effort"] == "none" and "enable_thinking" in str(body) for body in about.asked)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("refusing", ["status 401: the key is wrong", "OPENAI_API_KEY"]),
        ("unloaded", ["status 400: no model is loaded", "--api_model"]),
        ("away", ["too busy", "no reply for 0.005 minutes", "start again with the same command"]),
        ("dying", ["broke off", "no reply for 0.005 minutes"]),
    ],
)
def test_a_server_that_fails_every_request_ends_the_run_with_its_message(ran, tmp_path, model, expected):
    wiki(tmp_path)
    with large_model(models=(model,)) as about:
        said = ran(about, "--wait_minutes=0.005", code=1)
        line = said.splitlines()[-1]
        assert line.startswith("error: ") and all(words in line for words in expected), line
    assert rows_of(tmp_path / "saves.jsonl") == rows_of(tmp_path / "rejects.jsonl") == []


@pytest.mark.parametrize("flags", [[], ["--api_model=some"]])
def test_a_server_that_is_away_at_the_start_is_waited_for_and_then_reported(ran, tmp_path, flags):
    wiki(tmp_path)
    with large_model() as about:
        pass
    said = ran(about, "--wait_minutes=0.003", *flags, code=1)
    assert "connection refused" in said.splitlines()[-1] and "--wait_minutes" in said.splitlines()[-1]


def test_articles_of_one_request_are_checked_and_retried_separately(ran, tmp_path):
    wiki(tmp_path)
    with large_model(models=("group",)) as about:
        ran(about, "--articles_per_request=3")
        assert titles(rows_of(tmp_path / "saves.jsonl")) == every()
        asked = Counter(body["messages"][1]["content"].count("标题：") for body in about.asked)
        assert asked == {3: SHORT / 3, 1: SHORT * 2 / 3}
        saves, count = tmp_path / "saves.jsonl", len(about.asked)
        saves.write_bytes(b"".join(saves.read_bytes().splitlines(keepends=True)[:-10]))  # ten articles are to do again
        ran(about, "--articles_per_request=3")
        assert titles(rows_of(saves)) == every() and len(about.asked) > count


def test_good_pairs_are_kept_after_the_last_try(ran, tmp_path):
    wiki(tmp_path, 6)
    with large_model(models=("stubborn",)) as about:
        said = ran(about, "--tries=3")
        assert "0 accepted, 6 kept in part" in said and len(about.asked) == 18
        assert {body["temperature"] for body in about.asked} == {0.45, 0.55, 0.65}
        assert len({body["seed"] for body in about.asked}) == 18
    assert titles(rows_of(tmp_path / "saves.jsonl")) == every(6)


def test_articles_without_json_replies_are_rejected_with_the_replies_and_can_be_retried(ran, tmp_path):
    wiki(tmp_path, 4)
    with large_model(models=("babbling",)) as about:
        said = ran(about, "--tries=2", "--rejects=deep/bad.jsonl")
        rows = rows_of(tmp_path / "deep/bad.jsonl")
        assert len(rows) == 4 and "8 no_json" in said and "no pairs yet" in said and "deep/bad.jsonl" in said
        assert all(len(row["replies"]) == len(row["reasons"]) == 2 and "老和尚" in row["replies"][0] for row in rows)
        (tmp_path / "deep/bad.jsonl").unlink()
        about.models = ("good",)
        assert "4 accepted" in ran(about, "--rejects=deep/bad.jsonl")


def test_this_projects_own_server_can_be_used(ran, tmp_path):
    wiki(tmp_path, 2)
    # The fake repeats its prompt, which contains the example pairs.
    with serving(ROOT / "tests/helpers/serving_fakes.py") as server:
        about = SimpleNamespace(base=server.url + "/v1")
        said = ran(about, "--tries=1", "--max_new_tokens=700")
    assert "0 accepted, 0 kept in part, 2 rejected" in said
    assert all("青石桥" in row["replies"][0] for row in rows_of(tmp_path / "rejects.jsonl"))


def test_a_second_run_on_the_same_file_and_contradictory_settings_are_reported(ran, tmp_path):
    wiki(tmp_path)
    with model_process(seconds=5) as (_, port), started(tmp_path, port):
        until = time.monotonic() + 60
        while "asking" not in (tmp_path / "log.txt").read_text(encoding="utf-8") and time.monotonic() < until:
            time.sleep(0.02)
        about = SimpleNamespace(base=f"http://127.0.0.1:{port}")
        assert "another run writes to saves.jsonl" in ran(about, code=1)
    for flag, name in (
        ("--min_pairs=9", "max_pairs"),
        ("--rejects=saves.jsonl", "--rejects="),
        ("--clean=x", "clean"),
    ):
        assert name in ran(about, flag, code=1)


@pytest.mark.skipif(resource is None, reason="Windows has no such limit")
def test_a_full_disk_ends_the_run_with_one_line_and_leaves_complete_lines(ran, tmp_path):
    wiki(tmp_path)
    with large_model() as about:
        command = [sys.executable, str(ROOT / SCRIPT), "--input_dir=wiki", f"--api_base={about.base}"]

        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

        done = subprocess.run(
            [*command, "--saves=saves.jsonl"], cwd=tmp_path, capture_output=True, encoding="utf-8", preexec_fn=limit
        )
        line = done.stderr.splitlines()[-1]
        assert done.returncode == 1 and line.startswith("error: saves.jsonl cannot be written"), done.stderr
        size = (tmp_path / "saves.jsonl").stat().st_size
        assert 0 < len(titles(rows_of(tmp_path / "saves.jsonl"))) < SHORT and size <= 2000
        ran(about)
    assert titles(rows_of(tmp_path / "saves.jsonl")) == every()
