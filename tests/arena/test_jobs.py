"""Training from the page: its job is a process of its own, one at a time; what visitors send reaches no command."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from arena_fakes import arena_settings, open_fake, write_checkpoint, write_checkpoints
from filelock import FileLock
from tiny import tiny_model, tiny_tokenizer

import demo
from minigpt.arena.arena import Arena
from minigpt.arena.job_files import JOB_LOCK, STOP, log_tail, read_job, write_job
from minigpt.arena.jobs import DEMO_PROGRESS, Jobs
from minigpt.arena.problems import Problem
from minigpt.checkpoint import load_checkpoint

HANG_SECONDS = 240
# Says that it runs, saves when it is asked to stop, and goes on with what it has saved.
SAVING_SCRIPT = """
import os, pathlib, signal, sys, time
state = pathlib.Path(__file__).with_suffix(".state")
def save(*_):
    signal.signal(signal.SIGINT, lambda *_: sys.exit(131))
    print("saving", flush=True)
    while pathlib.Path(__file__).with_suffix(".slow").exists():
        time.sleep(0.01)
    state.write_text("saved")
    sys.exit(130)
signal.signal(signal.SIGINT, save)
state.with_suffix(".pids").write_text(f"{os.getpid()} {os.getppid()}")
print("resumed" if "--init_from=resume" in sys.argv else "begun", flush=True)
if "--init_from=resume" in sys.argv:
    sys.exit(0)
while True:
    time.sleep(0.01)
"""
# run_job.py, which says that it finds the lock taken.
WAITING_JOB = """
import logging, sys
from minigpt.arena import run_job
class Told(logging.Handler):
    def emit(self, record):
        if "waiting" in record.getMessage():
            print("waiting", flush=True)
logger = logging.getLogger("filelock")
logger.setLevel(logging.DEBUG)
logger.addHandler(Told())
run_job.main()
"""
needs_sigint = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")


def wait_for(condition):
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < HANG_SECONDS
        time.sleep(0.02)


@pytest.fixture
def jobs(tmp_path):
    """Jobs of an empty out_root; what still runs after the test is stopped at once."""
    jobs = Jobs(tmp_path / "out")
    yield jobs
    while jobs.is_running():
        jobs.stop()
        time.sleep(0.2)


@pytest.fixture
def start_saving(jobs, tmp_path):
    """start_saving(): start a job of SAVING_SCRIPT, and wait until it runs."""
    script = tmp_path / "script.py"
    script.write_text(SAVING_SCRIPT, encoding="utf-8")

    def start():
        command = {
            "arguments": [str(script)],
            "resume": ["--init_from=resume"],
            "needs": str(script.with_suffix(".state")),
        }
        jobs._start("tune", lambda: ("page/tuned-1", [command]))
        wait_for(lambda: jobs.state().output.endswith("begun"))

    return start


@needs_sigint
def test_a_job_is_stopped_and_goes_on(jobs, start_saving):
    start_saving()
    assert jobs.state().status == "running"
    jobs.stop()
    wait_for(lambda: not jobs.is_running())
    state = jobs.state()
    assert state.status == "stopped" and state.can_resume and state.output.splitlines() == ["begun", "saving"]
    jobs.resume()
    wait_for(lambda: not jobs.is_running())
    assert jobs.state().status == "done" and jobs.state().output.splitlines()[-1] == "resumed"
    with pytest.raises(Problem, match="job_nothing_to_resume"):
        jobs.resume()
    with pytest.raises(Problem, match="job_none"):
        jobs.stop()


@needs_sigint
def test_a_second_stop_does_not_wait_for_saving(jobs, start_saving, tmp_path):
    (tmp_path / "script.slow").touch()
    start_saving()
    jobs.stop()
    wait_for(lambda: jobs.state().output.endswith("saving"))
    assert jobs.state().status == "stopping"
    jobs.stop()
    wait_for(lambda: not jobs.is_running())
    assert jobs.state().status == "stopped" and not (tmp_path / "script.state").exists()
    jobs.resume()  # nothing was saved, so the command begins anew
    wait_for(lambda: jobs.state().output.splitlines()[-1] == "begun")


@needs_sigint
def test_one_job_runs_at_a_time_whoever_starts_it(jobs, start_saving):
    start_saving()
    other = Jobs(jobs.folder.parent)  # another page, of another process
    for start in (other.start_demo, other.resume):
        with pytest.raises(Problem, match="job_busy"):
            start()
    assert jobs.state().status == "running" and jobs.state().name == "page/tuned-1"


@needs_sigint
def test_a_job_outlives_the_page_that_started_it(tmp_path, jobs, start_saving):
    # A page of its own process, which ends, as its whole process group does, right after the start.
    program = (
        "import sys; from minigpt.arena.jobs import Jobs\n"
        "Jobs(sys.argv[1])._start('tune', lambda: ('x', [{'arguments': [sys.argv[2]], 'resume': [], 'needs': ''}]))\n"
    )
    (tmp_path / "script.py").write_text(SAVING_SCRIPT, encoding="utf-8")
    arguments = [sys.executable, "-c", program, str(tmp_path / "out"), str(tmp_path / "script.py")]
    page = subprocess.Popen(arguments, start_new_session=True)
    assert page.wait(HANG_SECONDS) == 0
    with pytest.raises(ProcessLookupError):  # nothing of its group is left
        os.killpg(page.pid, signal.SIGHUP)
    wait_for(lambda: jobs.state().output.endswith("begun"))
    assert jobs.state().status == "running"


@needs_sigint
def test_a_job_whose_process_was_killed_is_told_and_can_go_on(jobs, start_saving, tmp_path):
    start_saving()
    for pid in (tmp_path / "script.pids").read_text(encoding="utf-8").split()[::-1]:
        os.kill(int(pid), signal.SIGKILL)  # first the job's own process, then the script
    wait_for(lambda: not jobs.is_running())
    assert jobs.state().status == "lost" and jobs.state().can_resume
    jobs.resume()
    wait_for(lambda: jobs.state().output.endswith("begun"))


def test_a_command_that_fails_ends_the_job(jobs, tmp_path):
    (tmp_path / "bad.py").write_text("raise SystemExit('error: what was wrong')", encoding="utf-8")
    commands = [{"arguments": [str(tmp_path / "bad.py")], "resume": [], "needs": ""}] * 2
    jobs._start("demo", lambda: ("demo", commands))
    wait_for(lambda: not jobs.is_running())
    state = jobs.state()
    assert (state.status, state.step, state.steps) == ("failed", 1, 2) and "what was wrong" in state.output


def questions_file(folder, count=40, name="mine.jsonl"):
    rows = [{"question": f"q{i}?", "answer": f"a{i}", "id": f"{i}"} for i in range(count)]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / name)


def test_a_checkpoint_is_tuned_on_an_uploaded_file(tmp_path):
    write_checkpoint(tmp_path / "out/base/ckpt.pt", tiny_model(), tiny_tokenizer(), "pretrain")
    arena = Arena(arena_settings(tmp_path), open_fake)
    upload = questions_file(tmp_path, name="--epochs=9; rm -rf x $(id).jsonl")
    arena.jobs.start_tuning(arena.trainable_checkpoint("base"), upload, 2)
    wait_for(lambda: not arena.jobs.is_running())
    state = arena.jobs.state()
    assert state.status == "done", state.output
    content = load_checkpoint(tmp_path / "out/page/tuned-1/ckpt.pt")
    assert content["stage"] == "sft" and content["settings"]["max_epochs"] == 2
    assert "page/tuned-1" in [choice.name for choice in arena.choices()]
    words = [word for command in read_job(arena.jobs.folder)["commands"] for word in command["arguments"]]
    assert not any("rm -rf" in word or "epochs" in word for word in words)
    assert all(word.startswith("--init") or Path(word).suffix == ".py" for word in words)
    arena.close()


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b"", "job_few_questions"),
        ("a.jsonl", b"\x00\xff\x1b[2J" * 1000, "job_few_questions"),
        ("a.jsonl", b'{"question": "q", "answer": "a"}\n' * 3, "job_few_questions"),
        ("a.py", b"import os", "job_bad_format"),
        ("settings", b"", "job_bad_format"),
    ],
)
def test_an_upload_that_will_not_do_leaves_nothing(tmp_path, name, content, problem):
    write_checkpoints(tmp_path / "out", ["base"])
    (tmp_path / name).write_bytes(content)
    arena = Arena(arena_settings(tmp_path), open_fake)
    with pytest.raises(Problem, match=problem):
        arena.jobs.start_tuning(arena.trainable_checkpoint("base"), str(tmp_path / name), 2)
    assert not arena.jobs.folder.exists()
    arena.close()


def test_what_a_visitor_names_must_be_listed(tmp_path):
    write_checkpoints(tmp_path / "out", ["base"])
    arena = Arena(arena_settings(tmp_path), open_fake)
    for name in ("../../etc/passwd", str(tmp_path / "out/base/ckpt.pt"), "base --help", ["base"]):
        with pytest.raises(Problem, match="no_model "):
            arena.trainable_checkpoint(name)
    with pytest.raises(Problem, match="no_model_chosen"):
        arena.trainable_checkpoint(None)
    good = questions_file(tmp_path)
    for epochs in (0, 21, 1.5, "3", None, True):
        with pytest.raises(Problem, match="job_epochs"):
            arena.jobs.start_tuning(arena.trainable_checkpoint("base"), good, epochs)
    with pytest.raises(Problem, match="job_no_file"):
        arena.jobs.start_tuning(arena.trainable_checkpoint("base"), None, 3)
    arena.close()


def test_the_lock_alone_says_whether_a_job_runs(tmp_path):
    jobs = Jobs(tmp_path)
    assert jobs.state() is None and not jobs.is_running()
    jobs.folder.mkdir()
    with FileLock(jobs.folder / JOB_LOCK):
        assert jobs.is_running()
        with pytest.raises(Problem, match="job_busy"):
            jobs.start_demo()
        jobs.stop()
        assert (jobs.folder / STOP).read_bytes() == b"."
    assert not jobs.is_running()


def test_two_who_look_at_once_are_no_job(tmp_path):
    jobs = Jobs(tmp_path)
    jobs.folder.mkdir()
    (jobs.folder / JOB_LOCK).touch()
    with ThreadPoolExecutor(8) as pool:
        assert not any(pool.map(lambda _: jobs.is_running(), range(400)))


def test_a_job_starts_while_somebody_looks_whether_one_runs(jobs):
    commands = [{"arguments": ["-c", "print('ran')"], "resume": [], "needs": ""}]
    jobs.folder.mkdir(parents=True)
    write_job(jobs.folder, {"kind": "demo", "name": "demo", "commands": commands, "next": 0, "status": "running"})
    with FileLock(jobs.folder / JOB_LOCK):
        process = subprocess.Popen([sys.executable, "-c", WAITING_JOB, str(jobs.folder)], stdout=subprocess.PIPE)
        assert process.stdout.readline().strip() == b"waiting"
    assert process.wait(HANG_SECONDS) == 0
    process.stdout.close()
    assert jobs.state().status == "done" and jobs.state().output == "ran"


def test_a_process_that_does_not_start_is_told(jobs, monkeypatch):
    monkeypatch.setattr("minigpt.arena.jobs.PROJECT", jobs.folder)  # where there is no minigpt
    monkeypatch.setenv("PYTHONPATH", "")
    old = jobs.folder / DEMO_PROGRESS
    old.parent.mkdir(parents=True)
    old.touch()
    with pytest.raises(Problem, match="job_not_started"):
        jobs.start_demo()
    assert jobs.state().status == "lost" and "minigpt" in jobs.state().output
    # Stopped before demo.py has noted anything, the demo begins anew: it does not go on with an earlier one.
    with pytest.raises(Problem, match="job_not_started"):
        jobs.resume()
    (command,) = read_job(jobs.folder)["commands"]
    assert command["arguments"] == ["demo.py"] and command["needs"] == str(old)
    old.touch()
    with pytest.raises(Problem, match="job_not_started"):
        jobs.resume()
    assert read_job(jobs.folder)["commands"][0]["arguments"] == ["demo.py", "--resume"]


def test_the_demo_notes_its_progress_where_the_page_looks():
    assert Path(DEMO_PROGRESS) == demo.PROGRESS


def test_a_folder_of_the_users_own_beside_the_tunings_does_not_matter(tmp_path):
    write_checkpoint(tmp_path / "out/base/ckpt.pt", tiny_model(), tiny_tokenizer(), "pretrain")
    arena = Arena(arena_settings(tmp_path), open_fake)
    for name in ("tuned-1", "tuned-my-2", "tuned-old2"):
        (arena.jobs.folder / name).mkdir(parents=True)
    base, upload = arena.trainable_checkpoint("base"), questions_file(tmp_path)
    name, _ = arena.jobs._prepare_tuning(base, upload, ".jsonl", 1, 40)
    assert name == "page/tuned-2"
    arena.close()


def test_the_end_of_a_log_shows_bars_once_and_no_control_characters(tmp_path):
    log = tmp_path / "job.log"
    log.write_bytes("a\n 1%|\r 50%|\r100%|█\n\x1b[31mred\x1b[0m\a\n".encode() + b"\xe4\xb8" + b"x" * 500)
    lines = log_tail(log).splitlines()
    assert lines[:3] == ["a", "100%|█", "red"] and len(lines[3]) == 161 and lines[3].endswith("x…")
    assert log_tail(tmp_path / "none") == ""
