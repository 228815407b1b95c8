"""The process of a training job: runs its commands one after the other (jobs.py starts it).

    python -m minigpt.arena.run_job out/page

It holds the folder's lock as long as it runs, so that nobody has to guess whether it does, and takes its orders from
files, so that no process is ever signalled by a number that another one may have by now.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from minigpt.arena.job_files import JOB, JOB_LOCK, LOG_FILE, STOP, read_job, write_job

COMMAND_POLL_SECONDS = 0.5
LOCK_SECONDS = 10.0  # the page takes the lock for a moment, to see whether a job runs
IS_WINDOWS = os.name == "nt"
STOP_SIGNAL = signal.CTRL_BREAK_EVENT if IS_WINDOWS else signal.SIGINT


def run_command(arguments, log, asked):
    """Run a command of the project and return its exit status. asked(): how often it was asked to stop, which is
    passed on as Ctrl-C, to the command and the processes that it has started."""
    group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if IS_WINDOWS else {"start_new_session": True}
    process = subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=subprocess.STDOUT, **group)
    sent = 0
    while True:
        try:
            return process.wait(timeout=COMMAND_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        if asked() > sent:
            sent += 1
            if IS_WINDOWS:
                process.send_signal(STOP_SIGNAL)
            else:
                os.killpg(process.pid, STOP_SIGNAL)


def run_job(folder):
    """Run the commands of a folder's job from its next one on, and write how it ended."""
    stop = folder / STOP

    def asked():
        return stop.stat().st_size if stop.exists() else 0

    job = read_job(folder)
    with open(folder / LOG_FILE, "ab") as log:
        while job["next"] < len(job["commands"]):
            write_job(folder, {**job, "status": "running"})
            status = run_command(job["commands"][job["next"]]["arguments"], log, asked)
            if status or asked():
                write_job(folder, {**job, "status": "stopped" if asked() else "failed", "exit_status": status})
                return
            job["next"] += 1
    write_job(folder, {**job, "status": "done"})


def main():
    folder = Path(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a page in the background ignores Ctrl-C, and hands this on
    try:
        with FileLock(folder / JOB_LOCK, timeout=LOCK_SECONDS):
            run_job(folder)
    except Timeout:
        raise SystemExit(f"{folder / JOB}: a job runs already") from None


if __name__ == "__main__":
    main()
