"""Training started from the page: the demo, or the fine-tuning of a checkpoint. One job runs at a time, in a process of
its own (run_job.py), which outlives the page.

A command contains names of our own files only. What a visitor sends (a checkpoint's name, a number, a file of
questions) is checked, and stands in files of the job's folder.

    out/page/            the files of the last job (job_files.py)
    out/page/tuned-1/    a fine-tuning: questions, tokenizer, settings.py, rows/, and the run's own files
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from minigpt.arena.job_files import (
    JOB_LOCK,
    LOG_FILE,
    MAX_EPOCHS,
    QUESTION_FORMATS,
    STOP,
    log_tail,
    read_job,
    write_job,
)
from minigpt.arena.problems import Problem, validate_number
from minigpt.checkpoint import LAST, load_checkpoint, load_own_tokenizer
from minigpt.common.files import PROJECT, write_atomic
from minigpt.corpus.questions import read_questions
from minigpt.corpus.records import Problems

JOBS_FOLDER = "page"  # under out_root
START_LOCK = "start.lock"  # held while a job is being started
JOB_START_SECONDS = 30.0  # for the process of a job to begin
START_POLL_SECONDS = 0.05
PROBE_SECONDS, PROBE_POLL_SECONDS = 0.2, 0.01  # a job holds its lock for longer; another visitor's probe does not
DEMO_PROGRESS = "out/demo_progress.json"  # demo.py writes to out/, wherever the page's out_root is
TUNED_PREFIX = "tuned-"
TUNING_SETTINGS = "config/laptop_sft.py"
FEWEST_QUESTIONS = 20
CHECKS = 10  # validations of a fine-tuning
STEPS_PER_EPOCH = 50  # of a fine-tuning on few questions, as far as MIN_BATCH allows
MIN_BATCH, MAX_BATCH = 8, 32  # rows a step


@dataclass(frozen=True)
class JobState:
    """The last job. kind: "demo" or "tune"; name: of its run; step: number of the command that runs, from 1; steps: of
    all; status: "running", "stopping", "done", "stopped", "failed", or "lost" (its process was killed); output: the
    end of what it has printed."""

    kind: str
    name: str
    step: int
    steps: int
    status: str
    output: str

    @property
    def is_running(self):
        return self.status in ("running", "stopping")

    @property
    def can_resume(self):
        return self.status in ("stopped", "failed", "lost")


class Jobs:
    """Starts, stops and resumes the job of an out_root. All methods may be called by several processes at once."""

    def __init__(self, out_root):
        self.folder = Path(out_root).absolute() / JOBS_FOLDER

    def is_running(self):
        """Whether the process of a job runs now: it holds the lock. Takes PROBE_SECONDS where one does."""
        if not (self.folder / JOB_LOCK).exists():
            return False
        try:
            with FileLock(self.folder / JOB_LOCK, timeout=PROBE_SECONDS, poll_interval=PROBE_POLL_SECONDS):
                return False
        except Timeout:
            return True

    def state(self):
        """The `JobState`, or None where no job was ever started."""
        job = read_job(self.folder)
        if job is None:
            return None
        running, status = self.is_running(), job["status"]
        if running:
            status = "stopping" if (self.folder / STOP).exists() else "running"
        elif status == "running":
            job = read_job(self.folder)  # it may have ended between the two
            status = "lost" if job["status"] == "running" else job["status"]
        steps = len(job["commands"])
        step = min(job["next"] + 1, steps)
        return JobState(job["kind"], job["name"], step, steps, status, log_tail(self.folder / LOG_FILE))

    def start_demo(self):
        """Start demo.py. Raises Problem where a job runs."""

        def prepare():
            progress = PROJECT / DEMO_PROGRESS
            progress.unlink(missing_ok=True)  # an earlier demo's: with it, --resume would go on with that one
            return "demo", [{"arguments": ["demo.py"], "resume": ["--resume"], "needs": str(progress)}]

        self._start("demo", prepare)

    def start_tuning(self, checkpoint, questions, epochs):
        """Start to fine-tune a checkpoint on a file of questions.

        checkpoint: the `CheckpointInfo` of a listed one; questions: path of the uploaded file; epochs: a number.
        Raises Problem where a job runs, or an argument will not do.
        """
        epochs = validate_number("job_epochs", epochs, 1, MAX_EPOCHS)
        if not questions:
            raise Problem("job_no_file")
        suffix = Path(questions).suffix.lower()
        if suffix not in QUESTION_FORMATS:
            raise Problem("job_bad_format", formats=", ".join(QUESTION_FORMATS))
        asked = count_questions(questions)
        self._start("tune", lambda: self._prepare_tuning(checkpoint, questions, suffix, epochs, asked))

    def _prepare_tuning(self, checkpoint, questions, suffix, epochs, question_count):
        """Write the folder of a fine-tuning; returns its name and commands."""
        start = checkpoint.path.absolute()
        content = load_checkpoint(start, mmap=True)
        places = (self.folder / f"{TUNED_PREFIX}{number}" for number in count(1))
        place = next(place for place in places if not place.exists())
        place.mkdir(parents=True)
        asked = place / f"questions{suffix}"
        shutil.copyfile(questions, asked)
        tokenizer = place / "tokenizer.tiktoken"
        own = load_own_tokenizer(content)
        if not own.is_gpt2:
            write_atomic(tokenizer, lambda file: file.write(own.vocabulary))
        batch = min(MAX_BATCH, max(MIN_BATCH, question_count // STEPS_PER_EPOCH))
        settings = {
            "qa_files": [str(asked)], "tokenizer": "gpt2" if own.is_gpt2 else str(tokenizer),
            "sft_data_dir": str(place / "rows"), "data_dir": str(place / "rows"), "out_dir": str(place),
            "init_from": str(start), "block_size": content["model_args"]["block_size"],
            "max_epochs": epochs, "max_seconds": 0, "batch_size": batch,
            "eval_interval": max(1, epochs * question_count // batch // CHECKS),
        }  # fmt: skip
        text = '"""A fine-tuning that was started from the page."""\n\n'
        text += "".join(f"{key} = {value!r}\n" for key, value in settings.items())
        write_atomic(place / "settings.py", lambda file: file.write(text.encode()))
        files = [TUNING_SETTINGS, str(place / "settings.py")]
        commands = [
            {"arguments": ["data/prepare_sft.py", *files], "resume": [], "needs": ""},
            {"arguments": ["train.py", *files], "resume": ["--init_from=resume"], "needs": str(place / LAST)},
        ]
        return f"{JOBS_FOLDER}/{place.name}", commands

    def stop(self):
        """Ask the job to save and stop; a second time: to stop at once. Raises Problem where none runs."""
        if not self.is_running():
            raise Problem("job_none")
        with open(self.folder / STOP, "ab") as file:
            file.write(b".")

    def resume(self):
        """Go on with the last job from where it ended. Raises Problem where it runs, or cannot go on."""
        state = self.state()
        if state is None or state.status == "done":
            raise Problem("job_nothing_to_resume")

        def prepare():
            job = read_job(self.folder)
            command = job["commands"][job["next"]]
            if not command["needs"] or Path(command["needs"]).exists():
                missing = [flag for flag in command["resume"] if flag not in command["arguments"]]
                command["arguments"] += missing
            return job["name"], job["commands"], job["next"]

        self._start(state.kind, prepare)

    def _start(self, kind, prepare):
        """Start the process of a job. prepare(): writes its files; returns (name, commands[, the first to run])."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / START_LOCK, timeout=0):
                if self.is_running():
                    raise Problem("job_busy")
                name, commands, *first = prepare()
                (self.folder / STOP).unlink(missing_ok=True)
                if not first:
                    (self.folder / LOG_FILE).unlink(missing_ok=True)
                job = {"kind": kind, "name": name, "commands": commands, "next": first[0] if first else 0}
                write_job(self.folder, {**job, "status": "running"})
                self._start_process()
        except Timeout:
            raise Problem("job_busy") from None

    def _start_process(self):
        """Start run_job.py apart from this process and its terminal, and wait until it has the lock. Raises Problem
        where it ends with an error before that."""
        apart = {"creationflags": subprocess.CREATE_NO_WINDOW} if os.name == "nt" else {"start_new_session": True}
        with open(self.folder / LOG_FILE, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "minigpt.arena.run_job", str(self.folder)], cwd=PROJECT,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, **apart,
            )  # fmt: skip
        deadline = time.monotonic() + JOB_START_SECONDS
        while process.poll() is None and not self.is_running():
            if time.monotonic() > deadline:
                process.kill()
                raise Problem("job_not_started")
            time.sleep(START_POLL_SECONDS)
        if process.returncode:
            raise Problem("job_not_started")


def count_questions(path):
    """The number of usable questions of a file. Raises Problem where they are too few."""
    problems = Problems()
    count = sum(1 for _ in read_questions([path], problems))
    if count < FEWEST_QUESTIONS:
        raise Problem("job_few_questions", count=count, fewest=FEWEST_QUESTIONS)
    return count
