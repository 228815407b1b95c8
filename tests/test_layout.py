"""The rules that CONTRIBUTING.md states of the code as a whole."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ("model", "data_utils")  # files of the root that are no scripts: rooms import them
SCRIPTS = sorted(
    path
    for folder in ("", "data", "sft", "experiments")
    for path in (ROOT / folder).glob("*.py")
    if path.stem not in CHAPTERS
)


def imports_of(path):
    """First names of everything that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name.split(".")[0] for name in names)


def lint_imports(folder):
    """The finished `lint-imports` of a folder, by its pyproject.toml."""
    program = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    program = f"import sys; sys.path.insert(0, ''); {program}"
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, encoding="utf-8")


def test_rooms_import_by_the_contracts_of_pyproject():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("corpus/wrong.py", "from minigpt.training import optim"),  # upwards
        ("serving/wrong.py", "from minigpt.arena_ui import build"),  # to a room of its own level
        ("serving/wrong.py", "from minigpt.inference import engine"),  # torch, through another module
        ("arena/wrong.py", "import flask"),
        ("evaluation/wrong.py", "import train"),
        ("wrong.py", "import json"),  # a room that no layer names
    ],
)
def test_a_module_put_against_the_rules_fails(tmp_path, module, line):
    shutil.copytree(ROOT / "minigpt", tmp_path / "minigpt", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "minigpt" / module).write_text(line + "\n", encoding="utf-8")
    done = lint_imports(tmp_path)
    assert done.returncode == 1 and "wrong" in done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_no_script_imports_another(path):
    others = {other.stem for other in SCRIPTS} - {path.stem}
    assert not others & set(imports_of(path))


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_imports_the_lower_rooms_only(name):
    tree = ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    rooms = {module.split(".")[1] for module in modules if module.startswith("minigpt.")}
    assert rooms <= {"common", "device", "settings", "tokenizer", "metrics", "corpus"}


def test_what_prepares_data_starts_without_torch():
    scripts = "prepare, prepare_sft, prepare_task, make_correction"
    program = f"import sys; sys.path += ['data', 'sft']; import {scripts}; exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_both_readmes_give_the_same_commands():
    def commands(name):
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        return [line.split("#")[0].strip() for line in lines if line.startswith(("python ", "make ", "pip "))]

    assert commands("README.md") == commands("README.zh-CN.md")
    assert not re.search(
        r"@[A-Z_]+@", "".join((ROOT / n).read_text(encoding="utf-8") for n in ("README.md", "README.zh-CN.md"))
    )
    assert len(commands("README.md")) > 5


def public_names(path):
    """The public names that a module defines at its top level."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
        else:
            names = []
        yield from (name for name in names if not name.startswith("_"))


def test_a_public_name_stands_in_one_module_only():
    places = {}
    for path in [*(ROOT / "minigpt").rglob("*.py"), *(ROOT / f"{name}.py" for name in CHAPTERS), *SCRIPTS]:
        for name in set(public_names(path)) - {"main"}:
            places.setdefault(name, []).append(path.relative_to(ROOT).as_posix())
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}
