"""Checks the exercises of a chapter, which you fill in in docs/course/exercises/.

python docs/course/check.py 3              your answers to the exercises of chapter 3
python docs/course/check.py --solutions    the reference solutions of all chapters
"""

import importlib.util
import os
import sys
import traceback
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
sys.path.insert(0, str(ROOT))

from minigpt.common.cli import run_script
from minigpt.common.errors import UserError

EXERCISES = 3  # in each chapter


def load_file(path):
    """A Python file as a module. Raises UserError where it cannot be run."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{path.name}, line {error.lineno}: {error.msg}") from None
    except Exception as error:  # the reader's code may raise anything
        raise UserError(f"{path.name}, {error_place(error, path)}") from None
    return module


def error_place(error, path):
    """An error in words, with the line of a file in which it was raised, if it was in that file."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    place = next((f"line {frame.lineno}: " for frame in frames if frame.filename == str(path)), "")
    return f"{place}{type(error).__name__}: {error}"


def check_exercise(number, answers, solutions):
    """The hint (English, Chinese) for an exercise that is not solved yet; None where it is right."""
    try:
        return getattr(solutions, f"check_{number}")(getattr(answers, f"exercise_{number}"))
    except UserError:
        raise
    except Exception as error:  # the reader's code may raise anything
        said = error_place(error, answers.__file__)
        return f"it ended with an error, {said}", f"运行出错，{said}"


def check_chapter(chapter, folder):
    """Print what is right in a chapter's answers, files of `folder`. Returns whether all are."""
    name = f"chapter_{chapter:02d}.py"
    answers, solutions = load_file(folder / name), load_file(FOLDER / "solutions" / name)
    right = 0
    for number in range(1, EXERCISES + 1):
        hint = check_exercise(number, answers, solutions)
        if hint is None:
            right += 1
            print(f"{chapter}.{number}  right / 正确")
        else:
            print(f"{chapter}.{number}  not yet / 还不对\n     {hint[0]}\n     {hint[1]}")
    if right == EXERCISES:
        print(f"Chapter {chapter} is done. / 第 {chapter} 章完成。")
    return right == EXERCISES


def main():
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments) or not arguments:
        print(__doc__)
        return
    solutions = "--solutions" in arguments
    chapters = [int(path.stem.split("_")[1]) for path in sorted((FOLDER / "exercises").glob("chapter_*.py"))]
    numbers = [argument for argument in arguments if argument != "--solutions"]
    if wrong := [n for n in numbers if not n.isdigit() or int(n) not in chapters]:
        raise UserError(f"{wrong[0]!r} is no chapter; there are {', '.join(map(str, chapters))}")
    os.chdir(ROOT)  # exercises name files as the commands of the chapters do
    folder = FOLDER / ("solutions" if solutions else "exercises")
    results = [check_chapter(int(n), folder) for n in numbers or chapters]
    if not all(results):
        raise SystemExit(1)


if __name__ == "__main__":
    run_script(main)
