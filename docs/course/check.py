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
    except Exception as error:  # outside the functions, the reader's code may raise anything, too
        raise UserError(f"{path.name}, {error_place(error, module)}{type(error).__name__}: {error}") from None
    return module


def error_place(error, module):
    """The last line of a module that an error came through, as "line 7: "; "" where it came through none."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return next((f"line {frame.lineno}: " for frame in frames if frame.filename == module.__file__), "")


def check_exercise(number, answers, solutions):
    """The hint (English, Chinese) for an exercise that is not solved yet; None where it is right."""
    exercise = getattr(answers, f"exercise_{number}", None)
    if exercise is None:
        return f"there is no function exercise_{number}", f"没有函数 exercise_{number}"
    try:
        return getattr(solutions, f"check_{number}")(exercise)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the reader's code may raise anything
        place = error_place(error, answers)
        said = f"{place}{type(error).__name__}: {error}"
        if not place and isinstance(error, (TypeError, ValueError, AttributeError, IndexError)):
            # It happened when the answer was compared.
            return (
                f"it returned something of another kind than the exercise asks for ({said})",
                f"返回的东西与题目要求的类型不符（{said}）",
            )
        return f"it ended with an error, {said}", f"运行出错：{said}"


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
    if not (ROOT / "out/demo_sft/ckpt.pt").exists():
        raise UserError("the demo has not been trained here; run: python demo.py")
    os.chdir(ROOT)  # exercises name files as the commands of the chapters do
    folder = FOLDER / ("solutions" if solutions else "exercises")
    results = [check_chapter(int(n), folder) for n in numbers or chapters]
    if not all(results):
        raise SystemExit(1)


if __name__ == "__main__":
    run_script(main)
