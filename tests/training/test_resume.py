"""A run that is killed, or compiled, or runs out of disk goes on as if nothing had been."""

import random
import shutil
import signal
import sys
import time
from functools import partial

import pytest
import torch
from corpora import made_up_questions, write_jsonl
from preferring import pair_row
from runs import arguments, finish, log_of, run_here, start, write_stages

from minigpt.checkpoint import load_checkpoint, newest_intact

INTERVAL = 5
RUN = {"max_iters": 150, "eval_interval": INTERVAL, "keep_every": 50}


def weights_of(folder):
    return load_checkpoint(folder / "last.pt")["model"]


def kill_at(process, log, lines, delay):
    """SIGKILL a run a moment after its log has so many lines; False where it ended before."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and log.read_bytes().count(b"\n") >= lines:
            time.sleep(delay)
            break
        time.sleep(0.001)
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return True


@pytest.mark.soak
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize(
    "changes",
    [{"optimizer": "muon"}]
    + [
        pytest.param(changes, marks=pytest.mark.soak_only)
        for changes in (
            *({"optimizer": name} for name in ("adamw", "lomo", "mezo")),
            {"method": "lora", "rank": 2, "lora_dropout": 0.1},
            {"method": "prefix", "virtual_tokens": 3},
            {"objective": "dpo"},
            {"objective": "grpo", "rewards": "rouge_l", "rollout_questions": 4, "updates": 3, "rollout_tokens": 8},
        )
    ],
)
def test_a_run_killed_at_random_moments_logs_what_one_never_stopped_logs(tmp_path, rounds, changes):
    data, data_dir, begin = write_stages(tmp_path), "pretrain", "scratch"
    if {"method", "objective"} & set(changes):
        run_here(data_dir=data["sft" if "objective" in changes else "pretrain"], out_dir=str(tmp_path / "base"))
        data_dir, begin = "sft", str(tmp_path / "base" / "last.pt")
    if changes.get("objective") == "dpo":
        pairs = [pair_row(one["question"], one["answer"]) for one in made_up_questions(40)]
        changes = {**changes, "preferences": write_jsonl(tmp_path / "pairs.jsonl", pairs)}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    given = {"data_dir": data[data_dir], **RUN, **changes}
    flags, resuming = arguments(**given), [f"--init_from={begin}"]
    run_here(**given, out_dir=str(whole), init_from=begin)
    kills, chance = 0, random.Random(str(changes))
    wanted = rounds(2, 10)
    while kills < wanted:
        process = start(*flags, f"--out_dir={killed}", *resuming)
        resuming = ["--init_from=resume"]
        done = newest_intact(killed)["progress"]["step"] if (killed / "last.pt").exists() else 0
        # At most a few intervals on, so that the run does not end before all kills; the delay reaches into saving.
        lines = done + chance.randint(1, max(2, (RUN["max_iters"] - done) // (wanted - kills)) - 1)
        if not kill_at(process, killed / "log.jsonl", lines, chance.random() * 0.05):
            finish(process)
            break
        kills += 1
        logged = (killed / "log.jsonl").read_bytes().count(b"\n")
        step = newest_intact(killed)["progress"]["step"]
        assert step >= logged // INTERVAL * INTERVAL - INTERVAL, "more than one interval was lost"
    finish(start(*flags, f"--out_dir={killed}", "--init_from=resume"))
    assert kills == wanted
    assert log_of(killed) == log_of(whole)
    assert all(torch.equal(value, weights_of(whole)[name]) for name, value in weights_of(killed).items())
    assert {path.name for path in killed.iterdir()} == {path.name for path in whole.iterdir()}
    assert newest_intact(killed)["settings"]["init_from"] == begin  # what it began from, not how it goes on


@pytest.fixture(params=["aot_eager", pytest.param("inductor", marks=pytest.mark.soak_only)])
def compiler(request, monkeypatch):
    """torch.compile's backend: one that needs no C++ compiler, and in `make soak` the one that users have."""
    if request.param == "inductor" and (sys.platform == "win32" or not shutil.which("g++")):
        pytest.skip("no compiler for torch.compile")
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=request.param))
    yield request.param
    torch._dynamo.reset()


def test_compiled_runs_resume_without_compiling_and_back(tmp_path, compiler):
    common = {"data_dir": write_stages(tmp_path)["pretrain"], "dropout": 0.0, "decay_lr": False, "n_layer": 1}
    whole, folder = tmp_path / "whole", tmp_path / "run"
    run_here(out_dir=str(whole), **{**common, "max_iters": 8})
    run_here(out_dir=str(folder), **{**common, "max_iters": 4})
    resumed = {**common, "out_dir": str(folder), "init_from": "resume"}
    said = run_here(**{**resumed, "max_iters": 6, "compile": "on"})
    assert "compile True (as set)" in said and "going on at step 4 of 6" in said
    run_here(**{**resumed, "max_iters": 8})
    losses, expected = ([line["train_loss"] for line in log_of(place)] for place in (folder, whole))
    assert losses == pytest.approx(expected, abs=1e-4)
    assert weights_of(folder).keys() == weights_of(whole).keys()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.soak_only), 2])
def test_a_disk_that_is_full_at_every_save_stops_no_training_and_hangs_no_process(tmp_path, processes):
    """The weights fit, the optimizer's state beside them does not: last.pt of step 0 stays."""
    data, folder = write_stages(tmp_path)["pretrain"], tmp_path / "run"
    flags = arguments(data_dir=data, out_dir=folder, max_iters=12, eval_interval=4)
    process = start(*flags, processes=processes, largest_file=300_000)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert out.count("training goes on and saves again") == 2
    assert "last.pt could not be written" in out and "older file is as it was" in out and 'train.py", line' not in out
    assert [line["step"] for line in log_of(folder)] == list(range(1, 13))
    assert newest_intact(folder)["progress"]["step"] == 0
    assert load_checkpoint(folder / "ckpt.pt")["progress"]["step"] == 12
    assert not list(folder.glob("*.partial"))
