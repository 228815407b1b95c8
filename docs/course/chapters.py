"""The chapters of the course as files: their pages in both languages, and the commands that stand in them."""

import re
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
CHINESE = ".zh-CN.md"
# A block of commands with their outputs, and the comments before it that say how it is run.
BLOCK = re.compile(r"(?P<notes>(?:<!--[^>]*-->\n+)*)```console\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
NOTE = re.compile(r"<!-- (background|lines)(?:: (\d+))? -->")
PROMPT = "$ "


@dataclass
class Command:
    """A command of a page. text: without its prompt; output: the lines that the page shows; lines: the most of them
    that are shown, or None; background: it is a server that runs until the end of the chapter."""

    text: str
    output: list = field(default_factory=list)
    lines: int | None = None
    background: bool = False


def chapter_pages():
    """{number: [English page, Chinese page]}; 0 is the course's front page, which has the demo."""
    pages = {0: [FOLDER / "README.md", FOLDER / f"README{CHINESE}"]}
    for path in sorted(FOLDER.glob("[0-9][0-9]-*.md")):
        if not path.name.endswith(CHINESE):
            pages[int(path.name[:2])] = [path, path.with_name(path.name.removesuffix(".md") + CHINESE)]
    return pages


def page_blocks(text):
    """[[`Command`]] of a page's text, a list for each block."""
    return [block_commands(match) for match in BLOCK.finditer(text)]


def block_commands(match):
    """The [`Command`] of a match of BLOCK."""
    notes = {name: value for name, value in NOTE.findall(match["notes"])}
    lines = int(notes["lines"]) if "lines" in notes else None
    commands = []
    for line in match["text"].splitlines():
        if line.startswith(PROMPT):
            background = "background" in notes and not commands
            commands.append(Command(line.removeprefix(PROMPT), lines=lines, background=background))
        elif commands:
            commands[-1].output.append(line)
    return commands


def with_outputs(text, blocks):
    """A page's text with the outputs of blocks: [[`Command`]], as `page_blocks` gives them."""
    remaining = iter(blocks)

    def fill(match):
        lines = [line for each in next(remaining) for line in (PROMPT + each.text, *each.output)]
        return f"{match['notes']}```console\n" + "".join(f"{line}\n" for line in lines) + "```"

    return BLOCK.sub(fill, text)


def shown_lines(output, limit):
    """The lines of an output (str) that a page shows: at most `limit` of them, the first and the last ones."""
    lines = [line.rstrip() for line in output.rstrip().splitlines()]
    # demo.py prints the commands that it runs. They must not be read as commands of the page.
    lines = [f"  {line}" if line.startswith(PROMPT) else line for line in lines]
    if limit is None or len(lines) <= limit:
        return lines
    first = (limit + 1) // 2
    return [*lines[:first], "…", *lines[len(lines) - (limit - first) :]]
