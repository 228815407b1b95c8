"""Reads the settings of a script, each checked against the typed record in record.py.

A setting is given, from weakest to strongest, by
  1. the default in record.py,
  2. a file of plain assignments:       python train.py config/train_config.py
  3. a flag on the command line:        python train.py --batch_size=8 --compile=off

A settings file is parsed, never executed: `name = value`, where the value is a literal, a list of
literals, or arithmetic over numbers and names assigned above it (`max_iters = 10 * 1000`).

Of two settings of which one takes the other's place (max_epochs that of max_iters, batch_tokens that of batch_size)
the one given by the stronger of these counts.
"""

import ast
import difflib
import os
import sys
import typing
from dataclasses import fields

from minigpt.common.errors import UserError
from minigpt.settings.assignments import read_assignments
from minigpt.settings.record import Settings
from minigpt.settings.scripts import OWN_DEFAULTS, SCRIPTS

FIELDS = {f.name: f for f in fields(Settings)}
TYPES = typing.get_type_hints(Settings)


def defaults(script):
    """The Settings of a script (a key of SCRIPTS) to which nothing is given."""
    return Settings(**OWN_DEFAULTS.get(script, {}))


def load_settings(script, argv=None):
    """Settings of `script` (a key of SCRIPTS) from `argv` (default: the command line).

    Arguments without `--` are settings files. `--help` prints the script's settings and exits.
    Its `given` has the names of those that a file or a flag set, be it to their default.
    Raises UserError for an unknown key (naming the nearest known one), a wrong type, a missing file.
    """
    argv = sys.argv[1:] if argv is None else argv
    if "--help" in argv or "-h" in argv:
        print(help_text(script))
        raise SystemExit(0)
    settings, sources = defaults(script), {}
    for number, path in enumerate(a for a in argv if not a.startswith("-")):
        for key, value in read_assignments(path, known):
            setattr(settings, key, checked(key, value, path))
            sources[key] = number, path
    for flag in (a for a in argv if a.startswith("-")):
        key, equals, text = flag.lstrip("-").partition("=")
        if not flag.startswith("--") or not (equals or TYPES.get(key) is bool):
            raise UserError(f"{flag}: write it as --name=value (--help lists the settings)")
        known(key, "command line")
        text = text if equals else "True"  # --quick alone
        if script not in FIELDS[key].metadata["used_by"]:
            users = ", ".join(SCRIPTS[s] for s in FIELDS[key].metadata["used_by"])
            raise UserError(f"--{key} is a setting of {users}, not of {SCRIPTS[script]}")
        setattr(settings, key, checked(key, from_text(key, text), "command line"))
        sources[key] = len(argv), "command line"
    prefer_later(settings, sources, script)
    settings.given = frozenset(sources)
    return settings


def prefer_later(settings, sources, script):
    """Of two settings of which one takes the other's place, let the one given later count, and say so.

    sources: {setting: (how late it was given, where)}.
    """
    for name, f in FIELDS.items():
        other = f.metadata["replaces"]
        if script in f.metadata["used_by"] and name in sources and other in sources and getattr(settings, name) > 0:
            (given, where), (later, later_where) = sources[name], sources[other]
            if later > given:
                if os.environ.get("RANK", "0") == "0":  # of torchrun's processes one says it
                    print(
                        f"note: {other}={getattr(settings, other)} ({later_where}) takes the place of "
                        f"{name}={getattr(settings, name):g} ({where})"
                    )
                setattr(settings, name, type(getattr(settings, name))(0))


def known(key, where):
    if key not in FIELDS:
        near = difflib.get_close_matches(key, FIELDS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "; --help lists the settings"
        raise UserError(f"{where}: unknown setting {key!r}{hint}")


def from_text(key, text):
    """A flag's text as a value: Python's literals where they parse (1e-4, True, ['a']), else the text."""
    kind = TYPES[key]
    if kind is str:
        return text
    if typing.get_origin(kind) is list and not text.startswith("["):
        return [part for part in text.split(",") if part]
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def checked(key, value, where):
    """`value` as the type of setting `key`. Raises UserError showing both types, or the choices."""
    kind, choices = TYPES[key], FIELDS[key].metadata["choices"]
    if typing.get_origin(kind) is list:
        value = [value] if isinstance(value, str) else value
        right = isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)
        value = list(value) if right else value
    elif kind is float and type(value) is int:
        right, value = True, float(value)
    else:
        right = type(value) is kind
    if not right:
        wanted = "a list of str" if typing.get_origin(kind) is list else kind.__name__
        raise UserError(f"{where}: {key} wants {wanted}, got {value!r} ({type(value).__name__})")
    wrong = [v for v in (value if isinstance(value, list) else [value]) if choices and v not in choices]
    if wrong:
        raise UserError(f"{where}: {key} is one of {', '.join(map(repr, choices))}, not {wrong[0]!r}")
    low = FIELDS[key].metadata["low"]
    if low is not None and value < low:
        raise UserError(f"{where}: {key} is {value}; it must be at least {low}")
    if (key in ("dropout", "smooth") or key.endswith("_share")) and not 0 <= value < 1:
        raise UserError(f"{where}: {key} is a share from 0 to 1, not {value}")
    return value


def help_text(script):
    """The settings of one script, a paragraph each."""
    what = " train|generate|prepare" if script == "bench" else ""
    lines = [f"python {SCRIPTS[script]}{what} [settings file …] [--name=value …]", ""]
    for name, f in FIELDS.items():
        if script not in f.metadata["used_by"]:
            continue
        kind = TYPES[name]
        shown = "list" if typing.get_origin(kind) is list else kind.__name__
        lines.append(f"  --{name}={getattr(defaults(script), name)!r}  ({shown})\n        {f.metadata['help']}")
        if f.metadata["choices"]:
            lines.append(f"        one of: {', '.join(map(repr, f.metadata['choices']))}")
    return "\n".join(lines)
