"""Reads the settings of a script, each checked against its dataclass in stages.py.

A setting is given, from weakest to strongest, by
  1. its default in stages.py,
  2. a file of plain assignments:       python train.py config/train_config.py
  3. a flag on the command line:        python train.py --batch_size=8 --compile=off

A settings file is parsed, never executed: `name = value`, where the value is a literal, a list of
literals, or arithmetic over numbers and names assigned above it (`max_iters = 10 * 1000`). It may have settings of
other scripts too: they are checked and left out.

Of two settings of which one takes the other's place (max_epochs that of max_iters, batch_tokens that of batch_size)
the one given by the stronger of these counts.
"""

import ast
import difflib
import operator
import os
import sys
import typing
from dataclasses import fields
from pathlib import Path

from minigpt.common.errors import UserError
from minigpt.settings.stages import STAGES

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}
RENAMED = {"precision": "dtype", "bf16": "bfloat16"}  # settings and values of earlier versions, and what they are now


def settings_of(stage):
    """{name: (its dataclass field, its type)} of a stage's settings."""
    types = typing.get_type_hints(stage)
    return {f.name: (f, types[f.name]) for f in fields(stage)}


KNOWN = {name: about for stage in STAGES for name, about in settings_of(stage).items()}


def load_settings(stage, argv=None):
    """Settings of a stage (a class of stages.py) from `argv` (default: the command line).

    Arguments without `--` are settings files. `--help` prints the stage's settings and exits.
    Its `given` has the names of the settings that a file or a flag set, be it to their default.
    Raises UserError for an unknown key (naming the nearest known one), a wrong type, a missing file.
    """
    argv = sys.argv[1:] if argv is None else argv
    if "--help" in argv or "-h" in argv:
        print(help_text(stage))
        raise SystemExit(0)
    settings, own = stage(), settings_of(stage)
    sources = {}  # {name: (how late it was given, where)}
    for number, path in enumerate(a for a in argv if not a.startswith("-")):
        for key, value in read_assignments(path, check_known):
            value = check_value(key, value, path, own.get(key, KNOWN[key]))
            if key in own:
                setattr(settings, key, value)
                sources[key] = number, path
    for flag in (a for a in argv if a.startswith("-")):
        key, text = split_flag(flag, stage)
        value = check_value(key, from_text(text, own[key][1]), "command line", own[key])
        setattr(settings, key, value)
        sources[key] = len(argv), "command line"
    prefer_later(settings, sources, own)
    settings.given = frozenset(sources)
    return settings


def split_flag(flag, stage):
    """(key, text of the value) of a flag. Raises UserError unless it is `--name=value`, or `--name` of a bool."""
    key, equals, text = flag.lstrip("-").partition("=")
    if not flag.startswith("--") or not (equals or KNOWN.get(key, (None, None))[1] is bool):
        raise UserError(f"{flag}: write it as --name=value (--help lists the settings)")
    check_known(key, "command line")
    if key not in settings_of(stage):
        users = ", ".join(other.SCRIPT for other in STAGES if key in settings_of(other))
        raise UserError(f"--{key} is a setting of {users}, not of {stage.SCRIPT}")
    return key, text if equals else "True"


def prefer_later(settings, sources, own):
    """Of two settings of which one takes the other's place, let the one given later count, and say so."""
    for name, (f, kind) in own.items():
        other = f.metadata["replaces"]
        if name in sources and other in sources and getattr(settings, name) > 0:
            (given, where), (later, later_where) = sources[name], sources[other]
            if later > given:
                if os.environ.get("RANK", "0") == "0":  # one of torchrun's processes says it
                    print(
                        f"note: {other}={getattr(settings, other)} ({later_where}) takes the place of "
                        f"{name}={getattr(settings, name):g} ({where})"
                    )
                setattr(settings, name, kind(0))


def check_known(key, where):
    """Raise UserError, with the nearest known name, for a key that no stage has."""
    if key in RENAMED:
        raise UserError(f"{where}: {key} is now called {RENAMED[key]}")
    if key not in KNOWN:
        near = difflib.get_close_matches(key, KNOWN, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "; --help lists the settings"
        raise UserError(f"{where}: unknown setting {key!r}{hint}")


def from_text(text, kind):
    """A flag's text as a value of a type: Python's literals where they parse (1e-4, True, ['a']), else the text."""
    if kind is str:
        return text
    if typing.get_origin(kind) is list and not text.startswith("["):
        return text  # `check_value` splits it
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def check_value(key, value, where, about):
    """`value` as the type of setting `key`; about: its (field, type). A text given for a list is split at commas.

    Raises UserError that shows both types, or the choices, or the range.
    """
    f, kind = about
    if typing.get_origin(kind) is list:
        (item_kind,) = typing.get_args(kind)
        if isinstance(value, str):
            value = [from_text(part.strip(), item_kind) for part in value.split(",") if part.strip()]
        if not isinstance(value, (list, tuple)):
            raise_wrong_type(key, value, f"a list of {item_kind.__name__}", where)
        value = [as_kind(key, item, item_kind, where, f"a list of {item_kind.__name__}") for item in value]
    else:
        value = as_kind(key, value, kind, where, "True or False" if kind is bool else kind.__name__)
    for item in value if isinstance(value, list) else [value]:
        check_range(key, item, where, f.metadata)
    return value


def as_kind(key, value, kind, where, wanted):
    """A value as a plain type; an int is a float too. Raises UserError with the type that was wanted."""
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise_wrong_type(key, value, wanted, where)
    return value


def raise_wrong_type(key, value, wanted, where):
    """Raise the UserError of a value whose type is not the one wanted."""
    raise UserError(f"{where}: {key} wants {wanted}, got {value!r} ({type(value).__name__})")


def check_range(key, value, where, about):
    """Raise UserError unless a value is one of a setting's choices and within its range; about: its metadata."""
    if about["choices"] and value not in about["choices"]:
        now = f" (write {RENAMED[value]})" if value in RENAMED else ""
        raise UserError(f"{where}: {key} is one of {', '.join(map(repr, about['choices']))}, not {value!r}{now}")
    if about["below"] is not None and not about["low"] <= value < about["below"]:
        raise UserError(f"{where}: {key} is a share from {about['low']} to {about['below']}, not {value}")
    if about["low"] is not None and value < about["low"]:
        raise UserError(f"{where}: {key} is {value}; it must be at least {about['low']}")
    if about["high"] is not None and value > about["high"]:
        raise UserError(f"{where}: {key} is {value}; it must be at most {about['high']}")


def help_text(stage):
    """The settings of one stage, a paragraph each."""
    what = " train|generate|prepare|export" if stage.SCRIPT == "bench.py" else ""
    lines = [f"python {stage.SCRIPT}{what} [settings file …] [--name=value …]", ""]
    for name, (f, kind) in settings_of(stage).items():
        shown = str(kind) if typing.get_origin(kind) is list else kind.__name__
        lines.append(f"  --{name}={getattr(stage(), name)!r}  ({shown})\n        {f.metadata['help']}")
        if f.metadata["choices"]:
            lines.append(f"        one of: {', '.join(map(repr, f.metadata['choices']))}")
    return "\n".join(lines)


# Settings files.


def read_assignments(path, check):
    """List of (key, value) of a settings file, in its order; check(key, where) is called for each key.

    Raises UserError naming file and line.
    """
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8-sig"))
    except OSError:
        raise UserError(
            f"settings file {path} is not there (settings of one's own are given as --name=value)"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text, so it is no settings file") from None
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path}, line {getattr(error, 'lineno', '?')}: not a plain assignment") from None
    names = {}
    for node in tree.body:
        where = f"{path}, line {node.lineno}"
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            continue  # a docstring
        if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
            raise UserError(f"{where}: only plain assignments (name = value) are allowed in a settings file")
        key = node.targets[0].id
        check(key, where)
        names[key] = evaluate_node(node.value, names, where)
    return list(names.items())


def evaluate_node(node, names, where):
    """Value of a literal, a list of them, or arithmetic over numbers and names already assigned."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        return [evaluate_node(item, names, where) for item in node.elts]
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    operands = []
    if isinstance(node, ast.UnaryOp):
        operands = [node.operand]
    elif isinstance(node, ast.BinOp):
        operands = [node.left, node.right]
    if operands and type(node.op) in OPERATORS:
        values = [evaluate_node(operand, names, where) for operand in operands]
        if all(isinstance(v, (int, float)) for v in values):
            try:
                return OPERATORS[type(node.op)](*values)
            except ArithmeticError as error:
                raise UserError(f"{where}: {error}") from None
    raise UserError(f"{where}: a value must be a literal or arithmetic, not `{ast.unparse(node)}`")
