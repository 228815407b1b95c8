"""The rules that CONTRIBUTING.md states of the code as a whole."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "errors": -1,
    "files": -1,
    "assignments": -0.5,
    "streams": -0.5,
    "sockets": -0.5,
    "scripts": -0.7,
    "settings": -0.5,
    "configurator": 0,
    "tokenizer": 0,
    "model": 0,
    "sampling": 0,
    "checkpoint": 1,
    "data_utils": 1,
    "row_files": 0.5,
    "cleaning": 0.5,
    "json_array": 0.3,
    "readers": 0.5,
    "parsing": 0.6,
    "fields": 0.5,
    "conversations": 0.7,
    "cutting": 0.7,
    "corpus": 1,
    "preparing": 1.5,
    "downloads": 1.5,
    "factory": 2,
    "optim": 1,
    "compiling": 1.5,
    "device": 1,
    "decoding": 1,
    "quantize": 1.5,
    "distributed": 1,
    "tracking": 1,
    "generation": 2,
    "metrics": 2,
    "answered": 2.1,
    "scores": 0.5,
    "mistakes": 1,
    "evaluating": 2.6,
    "training": 2.5,
    "api_client": 1,
    "arena": 2.6,
    "serving": 2.7,
    "page": 2.7,
    "benchmarks": 2.8,
    "experiments": 2.9,
}
SCRIPT_FLOOR = 3
PACKAGES = ["arena", "benchmarks", "evaluating", "experiments", "factory", "page", "preparing", "serving"]
FOLDERS = ["data", "sft", *PACKAGES]
SOURCES = sorted([*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in ROOT.glob(f"{folder}/*.py"))])


def module_of(path):
    """The name under which the rest imports a file: a package's files count as the package."""
    return path.parent.name if path.parent.name in PACKAGES else path.stem


def imports_of(path):
    """First names of everything that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name.split(".")[0] for name in names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_imports_run_downward_only(path):
    modules = {module_of(p) for p in SOURCES} - {module_of(path)}
    floor = FLOORS.get(module_of(path), SCRIPT_FLOOR)
    for name in modules.intersection(imports_of(path)):
        assert FLOORS.get(name, SCRIPT_FLOOR) < floor, f"{path.name} imports {name}"


def test_the_http_side_knows_no_torch_and_nothing_else_knows_flask():
    for path in SOURCES:
        unknown = {"torch", "model"} if module_of(path) == "serving" else {"flask", "waitress"}
        assert not unknown & set(imports_of(path)), path.name


def test_the_page_knows_no_torch_and_nothing_else_knows_gradio():
    for path in SOURCES:
        unknown = {"torch", "model"} if module_of(path) == "page" else {"gradio", "altair", "uvicorn", "fastapi"}
        assert not unknown & set(imports_of(path)), path.name


def test_what_prepares_data_starts_without_torch():
    scripts = "prepare, prepare_sft, make_correction"
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
