"""demo.py: its forecast, and its texts at the end, after Ctrl-C, and where the floor is missed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from corpora import ROOT

import demo
from minigpt.common.errors import UserError
from minigpt.run_log import LOG
from minigpt.settings.stages import TrainSettings

FIGURES = {"exact_match": 0.5, "rouge_l_f": 0.6, "perplexity": 1.5, "bits_per_char": 3.0, "pairs": 400}


def log(epochs, pace, answered=None):
    """Lines of a log in which an epoch takes `pace` seconds, up to `epochs`."""
    lines = [{"step": i, "epoch": epochs * i / 10, "seconds": 5 + pace * epochs * i / 10} for i in range(1, 11)]
    return [*lines[:-1], lines[-1] if answered is None else {**lines[-1], "answered": answered}]


def trainings(**seconds):
    pretraining = TrainSettings(max_epochs=4.0, max_seconds=seconds.get("pretraining", 800.0), out_dir="out/demo")
    tuning = TrainSettings(
        max_epochs=3.0, max_seconds=seconds.get("tuning", 200.0), out_dir="out/demo_sft", stop_at_answered=0.95
    )
    return [pretraining, tuning]


def test_the_time_of_a_training_is_estimated_by_its_log_without_the_start():
    pretraining, _ = trainings()
    assert demo.seconds_for_all(log(2.0, 100), pretraining) == pytest.approx(400)
    assert demo.seconds_for_all(log(2.0, 100)[:2], pretraining) is None
    assert demo.seconds_for_all([], pretraining) is None
    by_steps = TrainSettings(max_epochs=0.0, max_iters=40)
    assert demo.seconds_for_all(log(2.0, 100), by_steps) == pytest.approx(4 * 200)


def test_the_remaining_time_is_estimated_by_the_speed_and_limited_by_max_seconds():
    lines = log(0.5, 100)  # 55 s gone
    after = 400 * (demo.TUNING_SHARE + demo.MEASURING_SHARE)
    assert demo.seconds_to_come(lines, *trainings()) == pytest.approx(400 - 55 + after)
    assert demo.seconds_to_come(lines, *trainings(pretraining=0.0, tuning=0.0)) == pytest.approx(400 - 55 + after)
    slow = log(0.1, 1000)  # 105 s gone
    wanted = 800 - 105 + 200 + 4000 * demo.MEASURING_SHARE
    assert demo.seconds_to_come(slow, *trainings()) == pytest.approx(wanted)
    assert demo.seconds_to_come(lines[:1], *trainings()) is None


def test_the_forecast_is_printed_once_and_not_by_the_log_of_an_earlier_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "STARTED", time.perf_counter() - demo.FORECAST_SECONDS)
    path = Path("out/demo") / LOG
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in log(0.5, 100)), encoding="utf-8")
    forecast = demo.Forecast(*trainings())
    os.utime(path, (forecast.started - 100, forecast.started - 100))
    forecast()
    assert capsys.readouterr().out == ""
    os.utime(path, (forecast.started + 1, forecast.started + 1))
    forecast()
    forecast()
    assert capsys.readouterr().out.count("This machine will take about") == 1


def test_nothing_is_forecast_before_the_first_minute(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "STARTED", time.perf_counter() + 1e6)
    demo.Forecast(*trainings())()
    assert capsys.readouterr().out == ""


def test_the_text_of_a_forecast():
    said = demo.forecast_text(60, 540)
    assert "about 10 min in all, 9 min from now on" in said and "Ctrl-C" in said


def test_a_floor_that_is_reached():
    said = demo.floor_text([log(4.0, 50), log(1.5, 20, answered=0.905)], trainings())
    assert said.startswith("The floor is reached: 0.905 of 200") and "\n" not in said


def test_a_floor_missed_for_time_names_the_seconds_that_the_machine_needs():
    said = demo.floor_text([log(1.0, 800), log(1.0, 190, answered=0.3)], trainings())
    assert said.startswith("THE FLOOR IS MISSED: 0.300 of 200") and "the floor is 0.90" in said
    assert "Pretraining did 25% and fine-tuning 33%" in said
    assert "max_seconds = 3540 in config/demo.py and max_seconds = 660 in config/demo_sft.py" in said
    assert said.endswith("run this again.")


def test_the_floor_is_not_judged_without_stop_at_answered():
    pretraining, tuning = trainings()
    tuning.stop_at_answered = 0.0
    said = demo.floor_text([log(4.0, 50), log(3.0, 20)], [pretraining, tuning])
    assert said.startswith("Whether the floor is reached is not known")


def test_a_floor_missed_in_one_training_only_names_that_one():
    said = demo.floor_text([log(1.0, 800), log(3.0, 20, answered=0.3)], trainings())
    assert "config/demo.py" in said and "config/demo_sft.py" not in said


def test_a_floor_missed_after_all_epochs_is_not_blamed_on_time():
    said = demo.floor_text([log(4.0, 50), log(3.0, 20, answered=0.8)], trainings())
    assert said.startswith("THE FLOOR IS MISSED: 0.800") and "max_seconds" not in said and "max_epochs" in said


@pytest.mark.parametrize(
    ("stage", "there", "said", "unsaid"),
    [
        ("preparing", [], ["Stopped before any training", "python demo.py --resume"], ["--ckpt"]),
        ("pretraining", [], ["Stopped before any training"], ["--ckpt"]),
        ("pretraining", [demo.BASE], [f"--ckpt={demo.BASE}", "python demo.py --resume"], []),
        ("fine-tuning", [demo.BASE], [f"--ckpt={demo.BASE}", "python demo.py --resume"], []),
        ("fine-tuning", [demo.BASE, demo.TUNED_LAST], [f"--ckpt={demo.TUNED_LAST}"], [f"--ckpt={demo.BASE}"]),
        ("measuring", [demo.BASE, demo.TUNED, demo.TUNED_LAST], [demo.TUNED, "python sample.py"], ["--ckpt"]),
    ],
)
def test_ctrl_c_says_what_is_kept_and_how_to_continue(tmp_path, monkeypatch, stage, there, said, unsaid):
    monkeypatch.chdir(tmp_path)
    for path in map(Path, there):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    words = demo.interrupted_text(stage)
    assert all(part in words for part in said) and not any(part in words for part in unsaid)


class Scripts:
    """Replaces demo.run: notes the scripts, writes what trainings and evaluations write, or is interrupted."""

    def __init__(self, answered=0.95, interrupted_in=None):
        self.answered, self.interrupted_in, self.ran = answered, interrupted_in, []

    def __call__(self, *arguments, watch=None):
        self.ran.append(arguments)
        if self.interrupted_in and self.interrupted_in in arguments:
            raise KeyboardInterrupt
        if arguments[0] == "train.py":
            tuning = arguments[1] == demo.SETTINGS_FILES[1]
            folder = Path("out/demo_sft" if tuning else "out/demo")
            folder.mkdir(parents=True, exist_ok=True)
            lines = log(1.0, 100, self.answered if tuning else None)
            (folder / LOG).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        for path in (a.partition("=")[2] for a in arguments if a.startswith("--json=")):
            Path(path).write_text(json.dumps(FIGURES), encoding="utf-8")


@pytest.fixture
def play(tmp_path, monkeypatch):
    """play(quick=…, answered=…, interrupted_in=…): run the demo with `Scripts`, which it returns."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    for path in demo.SETTINGS_FILES:
        (tmp_path / path).write_bytes((ROOT / path).read_bytes())

    def run(quick=False, resume=False, **how):
        scripts = Scripts(**how)
        monkeypatch.setattr(demo, "run", scripts)
        monkeypatch.setattr(demo, "show_answers", lambda: None)
        demo.main(quick, resume)
        return scripts

    return run


def test_the_demo_ends_with_its_figures_and_the_floor(play, capsys):
    scripts = play(answered=0.93)
    assert [ran[0] for ran in scripts.ran[:5]] == [step[1] for step in demo.STEPS]
    assert any(f"--ckpt={demo.TUNED}" in ran for ran in scripts.ran)
    assert json.loads(demo.METRICS.read_text(encoding="utf-8"))["heldout_exact_match"] == 0.5
    said = capsys.readouterr().out
    assert said.splitlines()[-1].startswith("The floor is reached: 0.930") and demo.COURSE in said


def test_the_demo_ends_with_the_floor_where_it_is_missed(play, capsys):
    play(answered=0.4)
    said = capsys.readouterr().out
    assert "THE FLOOR IS MISSED: 0.400" in said[said.index("Next:") :]


@pytest.mark.parametrize(("script", "said"), [("data/prepare.py", "before any training"), ("visualize.py", "Ask it")])
def test_a_demo_that_is_interrupted_ends_with_130_and_says_so(play, capsys, script, said):
    with pytest.raises(SystemExit) as stopped:
        play(interrupted_in=script)
    assert stopped.value.code == 130
    assert said in capsys.readouterr().out and not demo.METRICS.exists()


@pytest.mark.parametrize("saved", [False, True])
def test_a_demo_goes_on_with_the_script_that_was_stopped(play, saved):
    with pytest.raises(SystemExit):
        play(interrupted_in=demo.SETTINGS_FILES[1])
    tuned_last = Path(demo.TUNED_LAST)
    tuned_last.parent.mkdir(parents=True, exist_ok=True)
    tuned_last.touch()  # an earlier demo's, unless this one has saved since
    progress = demo.read_progress()
    began = progress["began"]
    # The last script with that file of settings is the fine-tuning; preparing its rows was interrupted here.
    assert progress["done"] == 2
    demo.PROGRESS.write_text(json.dumps({**progress, "done": 4}), encoding="utf-8")
    os.utime(tuned_last, (began + 1, began + 1) if saved else (began - 1, began - 1))
    scripts = play(resume=True)
    flags = ("--init_from=resume",) if saved else ()
    assert scripts.ran[0] == ("train.py", demo.SETTINGS_FILES[1], *flags)
    assert scripts.ran[1][0] == "evaluations-perplexity.py"
    assert play(resume=True).ran[0][0] == "evaluations-perplexity.py"  # all is trained: it measures again


@pytest.mark.parametrize("quick", [False, True])
def test_a_demo_goes_on_as_it_was_begun(play, quick):
    with pytest.raises(SystemExit):
        play(quick=quick, interrupted_in="data/prepare_sft.py")
    scripts = play(quick=not quick, resume=True)
    assert [any(a.startswith("--max_epochs=") for a in ran) for ran in scripts.ran[:3]] == [False, quick, quick]
    assert json.loads(demo.METRICS.read_text(encoding="utf-8")).get("quick", False) is quick


def test_without_a_stopped_demo_resume_says_how_to_start(play):
    with pytest.raises(UserError, match=r"start one: python demo\.py"):
        play(resume=True)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM"])
def test_a_stopped_demo_waits_for_the_script_to_save(tmp_path, sent):
    script = tmp_path / "slow.py"
    script.write_text(
        "import signal, sys, time\n"
        "def save(*_):\n    print('saved', flush=True)\n    sys.exit(130)\n"
        f"signal.signal(signal.{sent}, save)\nprint('ready', flush=True)\ntime.sleep(600)\n",
        encoding="utf-8",
    )
    program = f"import demo\ntry:\n    demo.run({str(script)!r})\nexcept KeyboardInterrupt:\n    print('then')"
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=-1, encoding="utf-8", start_new_session=True
    )
    while process.stdout.readline() != "ready\n":
        assert process.poll() is None
    if sent == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        process.terminate()  # as `kill` does: only the demo gets it
    said, _ = process.communicate(timeout=60)
    assert said == "saved\nthen\n"


@pytest.mark.skipif(sys.platform == "win32", reason="SIGUSR1 stands for Windows' SIGBREAK")
def test_ctrl_break_waits_for_the_script_as_well():
    program = (
        "import os, signal, sys\nsignal.SIGBREAK = signal.SIGUSR1\nimport demo\n"
        "script = 'import os, signal; os.kill(os.getppid(), signal.SIGUSR1); print(1 + 1, flush=True)'\n"
        "try:\n    demo.run('-c', script)\nexcept KeyboardInterrupt:\n    print('then')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=240)
    assert done.stdout.splitlines()[-2:] == ["2", "then"], done.stderr


def test_the_watcher_is_called_while_a_script_runs(tmp_path):
    go, script = tmp_path / "go", tmp_path / "wait.py"
    script.write_text(
        f"import pathlib, time\nwhile not pathlib.Path({str(go)!r}).exists():\n    time.sleep(0.01)\n", encoding="utf-8"
    )
    demo.run(str(script), watch=go.touch)  # ends only because the watcher was called
    assert go.exists()


def test_quick_runs_every_script_for_a_moment_and_says_so(play, capsys):
    scripts = play(quick=True)
    assert [ran[:2] for ran in scripts.ran[:5]] == [step[1:] for step in demo.STEPS]
    for ran in scripts.ran[3:5]:
        assert float(next(a for a in ran if a.startswith("--max_epochs=")).partition("=")[2]) <= 0.1
    assert [ran[0] for ran in scripts.ran[5:]] == ["evaluations-RougeL.py", "visualize.py"]
    assert json.loads(demo.METRICS.read_text(encoding="utf-8"))["quick"]
    assert capsys.readouterr().out.splitlines()[-1] == demo.QUICK_TEXT
