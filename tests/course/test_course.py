"""The course: its pages, its runner, and the programs that check its exercises. `docs/course/run.py --small`, which
.ci/run calls, runs its commands."""

import os
import re

import chapters
import check
import pytest
import run

from minigpt.common.errors import UserError

COURSE = chapters.FOLDER
PAGES = chapters.chapter_pages()

PAGE = """# A page

<!-- lines: 3 -->
```console
$ echo one
old
$ python train.py config/demo.py --max_seconds=60 | tail -2
```

```bash
$ not a command
```

<!-- background -->
```console
$ python server.py
```
"""


@pytest.mark.parametrize("number", PAGES)
def test_both_languages_have_the_same_commands_and_outputs(number):
    texts, _ = run.read_chapter(number, PAGES[number])  # raises where the commands differ
    english, chinese = map(chapters.page_blocks, texts)
    assert english == chinese
    assert all(command.output or command.background for block in english for command in block)


@pytest.mark.parametrize("number", [number for number in PAGES if number])
def test_each_chapter_has_three_exercises_with_solutions(number):
    name = f"chapter_{number:02d}.py"
    exercises, solutions = (check.load_file(COURSE / folder / name) for folder in ("exercises", "solutions"))
    for i in range(1, check.EXERCISES + 1):
        exercise, solution = getattr(exercises, f"exercise_{i}"), getattr(solutions, f"exercise_{i}")
        assert (
            exercise.__code__.co_varnames[: exercise.__code__.co_argcount]
            == solution.__code__.co_varnames[: solution.__code__.co_argcount]
        )
        try:
            hint = check.check_exercise(i, exercises, solutions)
        except UserError as error:  # where no demo was trained, it says that it needs its files
            assert re.search(r"data/processed_demo|out/demo", str(error))
        else:
            assert hint is not None  # what is not filled in is not right


def test_a_page_is_read_and_its_outputs_are_replaced():
    blocks = chapters.page_blocks(PAGE)
    assert [[command.text for command in block] for block in blocks] == [
        ["echo one", "python train.py config/demo.py --max_seconds=60 | tail -2"], ["python server.py"],
    ]  # fmt: skip
    assert blocks[0][0].output == ["old"] and blocks[0][0].lines == 3 and not blocks[0][0].background
    assert blocks[1][0].background and blocks[1][0].lines is None
    blocks[0][0].output = ["new", "lines"]
    text = chapters.with_outputs(PAGE, blocks)
    assert text == PAGE.replace("old", "new\nlines")
    assert chapters.shown_lines("a\nb \nc\nd\ne\n\n", 3) == ["a", "b", "…", "e"]
    assert chapters.shown_lines("a\nb\n", 3) == ["a", "b"]
    assert chapters.shown_lines("$ python train.py\n", None) == ["  $ python train.py"]  # not a command of the page


def test_commands_run_in_order_and_a_failing_one_is_named(tmp_path):
    runner = run.Runner(tmp_path, small=False)
    blocks = [[chapters.Command("echo 中文 > file"), chapters.Command("cat file; echo unseen >&2")]]
    runner.run_chapter(1, blocks)
    assert blocks[0][1].output == ["中文"]
    with pytest.raises(UserError, match=r"`cat missing \| cat` ended with status 1(.|\n)*missing"):
        runner.run_chapter(1, [[chapters.Command("cat missing | cat")]])


def test_a_server_is_awaited_and_stopped(tmp_path):
    (tmp_path / "server.py").write_text(
        "import os, time, pathlib\npathlib.Path('pid').write_text(str(os.getpid()))\n"
        "print('serving at http://127.0.0.1:5000')\ntime.sleep(600)\n", encoding="utf-8",
    )  # fmt: skip
    runner = run.Runner(tmp_path, small=False)
    block = [chapters.Command("python server.py", background=True), chapters.Command("cat pid")]
    runner.run_chapter(1, [block])
    assert block[0].output == ["serving at http://127.0.0.1:5000"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(block[1].output[0]), 0)
    with pytest.raises(UserError, match="ended with status 2"):
        runner.run_chapter(1, [[chapters.Command("python missing.py", background=True)]])


def test_small_runs_replace_flags():
    small = " ".join(run.SMALL["train.py"])
    assert run.shorten_command("python train.py config/demo.py --max_seconds=60 | tail -2") == (
        f"python train.py config/demo.py {small} | tail -2"
    )
    assert (
        run.shorten_command("python train.py a.py 2>/dev/null | cat")
        == f"python train.py a.py {small} 2>/dev/null | cat"
    )
    assert run.shorten_command("python sample.py --prompt=铁") == "python sample.py --prompt=铁"
    assert run.shorten_command("python demo.py") == "python demo.py --quick"


def test_pages_whose_commands_differ_are_refused(tmp_path):
    pages = [tmp_path / "01-a.md", tmp_path / "01-a.zh-CN.md"]
    pages[0].write_text(PAGE, encoding="utf-8")
    pages[1].write_text(PAGE.replace("echo one", "echo two"), encoding="utf-8")
    with pytest.raises(UserError, match="echo two"):
        run.read_chapter(1, pages)


def test_answers_are_checked_and_errors_of_theirs_are_hints(tmp_path, capsys, monkeypatch):
    (tmp_path / "solutions").mkdir()
    (tmp_path / "solutions/chapter_01.py").write_text(
        "def check_1(exercise):\n    return None if exercise() == 2 else ('count again', '再数一遍')\n"
        "check_2 = check_3 = check_1\n", encoding="utf-8",
    )  # fmt: skip
    (tmp_path / "chapter_01.py").write_text(
        "def exercise_1():\n    return 2\ndef exercise_2():\n    return None\ndef exercise_3():\n    return 1 / 0\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(check, "FOLDER", tmp_path)
    assert not check.check_chapter(1, tmp_path)
    said = capsys.readouterr().out
    assert "1.1  right" in said and "1.2  not yet / 还不对\n     count again\n     再数一遍" in said
    assert "line 6: ZeroDivisionError" in said
    (tmp_path / "solutions/chapter_01.py").write_text(
        "def check_1(exercise):\n    return None if exercise() - 2 == 0 else ('count again', '再数一遍')\n"
        "check_2 = check_3 = check_1\n", encoding="utf-8",
    )  # fmt: skip
    (tmp_path / "chapter_01.py").write_text("def exercise_1():\n    return 'two'\n", encoding="utf-8")
    assert not check.check_chapter(1, tmp_path)
    said = capsys.readouterr().out
    assert "1.1  not yet / 还不对\n     it returned something of another kind" in said
    assert "1.3  not yet / 还不对\n     there is no function exercise_3" in said
    (tmp_path / "chapter_01.py").write_text("import torhc\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"chapter_01\.py, line 1: ModuleNotFoundError"):
        check.check_chapter(1, tmp_path)
    (tmp_path / "chapter_01.py").write_text("def exercise_1():\n    return (\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"chapter_01\.py, line 2"):
        check.check_chapter(1, tmp_path)
    (tmp_path / "chapter_01.py").write_text("\nimport no_such_module\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"chapter_01\.py, line 2: ModuleNotFoundError"):
        check.check_chapter(1, tmp_path)
