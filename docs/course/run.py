"""Runs the commands of the course's pages, so that what the pages show is what the commands print.

    python docs/course/run.py 3          the commands of chapter 3, in this folder, where `python demo.py` has run;
                                         then the check of the solutions of its exercises
    python docs/course/run.py 3 --write  also writes the outputs into both pages
    python docs/course/run.py            the demo, then all chapters
    python docs/course/run.py --small    the same in minutes, in a copy of the project; what is trained answers nothing

Needs bash. A chapter ends at its first command that fails. With --small two chapters run at a time.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from chapters import ROOT, Command, chapter_pages, page_blocks, shown_lines, with_outputs

from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.common.files import write_atomic

# Flags that --small gives to the scripts that would take long. They replace those of the page.
SMALL = {
    "demo.py": ["--quick"],
    "train.py": ["--max_seconds=5"],
    "evaluations-RougeL.py": ["--max_samples=20"],
    "evaluations-decoding.py": ["--max_samples=20"],
    "sft/make_preferences.py": ["--max_samples=40"],
    "docs/course/scripts/09_rewards.py": ["--max_iters=2", "--rollout_questions=4"],
    "docs/course/scripts/11_prompts.py": ["--questions=20"],
}
COMMAND = re.compile(r"python (?P<script>\S+\.py)(?P<flags>((?!\s2>)[^|;&>])*)")
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")
POLL_SECONDS = 0.2
SMALL_WORKERS = 2  # chapters at the same time
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", "out", "processed*", "downloads", "site", "__pycache__", ".*_cache"
)


class Runner:
    """Runs commands in a folder. small: long ones are shortened."""

    def __init__(self, folder, small):
        self.folder, self.small = folder, small
        # `python` and the programs beside it are those that run this script.
        paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = {**os.environ, "PATH": paths, "PYTHONUNBUFFERED": "1"}
        self.servers = []

    def run_chapter(self, number, blocks, say=print):
        """Run the commands of a chapter and fill their outputs. Raises UserError at the first that fails."""
        started = time.perf_counter()
        try:
            for command in (command for block in blocks for command in block):
                say(f"$ {command.text}", flush=True)
                output = self.start_server(command) if command.background else self.run(command)
                command.output = shown_lines(output, command.lines)
                say("\n".join(command.output), flush=True)
        finally:
            for server in self.servers:
                server.terminate()
                server.wait()
            self.servers.clear()
        print(f"  (chapter {number}: {time.perf_counter() - started:.0f} s)\n", flush=True)

    def check_solutions(self, number):
        """Check the reference solutions of a chapter's exercises; the front page has none."""
        if number:
            self.run(Command(f"python docs/course/check.py {number} --solutions"))

    def run(self, command):
        """The output of a command: what it writes to stdout."""
        text = shorten_command(command.text) if self.small else command.text
        done = subprocess.run(self.arguments(text), cwd=self.folder, env=self.environment, capture_output=True)
        if done.returncode:
            said = (done.stdout + done.stderr).decode(errors="replace")
            raise UserError(f"`{text}` ended with status {done.returncode}:\n{said.rstrip()}")
        return done.stdout.decode()

    def start_server(self, command):
        """Start a server and wait for the line with its address. Returns what it has written to stdout until then."""
        log = tempfile.NamedTemporaryFile()  # noqa: SIM115 (open as long as the server runs)
        server = subprocess.Popen(
            self.arguments(f"exec {command.text}"), cwd=self.folder, env=self.environment, stdout=log
        )
        self.servers.append(server)
        while not ADDRESS.search(said := Path(log.name).read_text(encoding="utf-8")):
            if server.poll() is not None:
                raise UserError(f"the server `{command.text}` ended with status {server.returncode}: {said}")
            time.sleep(POLL_SECONDS)
        return said

    @staticmethod
    def arguments(text):
        return ["bash", "-o", "pipefail", "-c", text]


def shorten_command(text):
    """A command with the flags of SMALL."""

    def shorten(match):
        flags, added = match["flags"], SMALL.get(match["script"], [])
        for flag in added:
            flags = re.sub(rf"\s{flag.split('=')[0]}(=\S*)?(?=\s|$)", "", flags)
        end = " " if flags.endswith(" ") else ""
        return " ".join([f"python {match['script']}{flags.rstrip()}", *added]) + end

    return COMMAND.sub(shorten, text)


def read_chapter(number, pages):
    """([text of each page], [[Command]]) of a chapter. Raises UserError where its pages differ in their commands."""
    texts = [path.read_text(encoding="utf-8") for path in pages]
    english, chinese = ([[c.text for c in block] for block in page_blocks(text)] for text in texts)
    if english != chinese:
        differing = next((pair for pair in zip(english, chinese, strict=False) if pair[0] != pair[1]), "their number")
        raise UserError(f"chapter {number}: the commands of its two pages differ: {differing}")
    return texts, page_blocks(texts[0])


def main():
    flags = {arg for arg in sys.argv[1:] if arg.startswith("-")}
    numbers = [arg for arg in sys.argv[1:] if not arg.startswith("-")]
    if flags & {"-h", "--help"}:
        print(__doc__)
        return
    chapters = chapter_pages()
    wrong = [n for n in numbers if not n.isdigit() or int(n) not in chapters]
    if wrong := wrong + sorted(flags - {"--small", "--write"}):
        known = f"a chapter from {min(chapters)} to {max(chapters)}, --small or --write"
        raise UserError(f"{wrong[0]!r} is none of: {known}")
    if flags == {"--small", "--write"}:
        raise UserError("--write needs the outputs of the full commands: leave --small out")
    chosen = [int(n) for n in numbers] or list(chapters)
    if "--small" in flags:
        run_small(chapters, chosen)
        return
    for number in chosen:
        texts, blocks = read_chapter(number, chapters[number])
        runner = Runner(ROOT, small=False)
        runner.run_chapter(number, blocks)
        runner.check_solutions(number)
        if "--write" in flags:
            for path, text in zip(chapters[number], texts, strict=True):
                content = with_outputs(text, blocks).encode()
                write_atomic(path, lambda file, content=content: file.write(content))


def run_small(chapters, numbers):
    """Run chapters shortened, in a copy of the project: models of the user's own must not be replaced by bad ones."""
    with tempfile.TemporaryDirectory() as copy, ThreadPoolExecutor(SMALL_WORKERS) as pool:
        folder = shutil.copytree(ROOT, Path(copy) / "MiniGPT", ignore=NOT_COPIED)

        def run(number):
            runner = Runner(folder, small=True)
            runner.run_chapter(number, read_chapter(number, chapters[number])[1], no_output)
            runner.check_solutions(number)

        run(0)
        for done in [pool.submit(run, number) for number in numbers if number]:
            done.result()


def no_output(*_, **__):
    """In the place of `print`, where the outputs of chapters that run at the same time would mix."""


if __name__ == "__main__":
    run_script(main)
