"""Settings files: plain assignments of literals and arithmetic, parsed and never executed."""

import ast
import operator
from pathlib import Path

from minigpt.common.errors import UserError

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


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
        names[key] = evaluate(node.value, names, where)
    return list(names.items())


def evaluate(node, names, where):
    """Value of a literal, a list of them, or arithmetic over numbers and names already assigned."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        return [evaluate(item, names, where) for item in node.elts]
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    operands = (
        [node.operand]
        if isinstance(node, ast.UnaryOp)
        else [node.left, node.right]
        if isinstance(node, ast.BinOp)
        else []
    )
    if operands and type(node.op) in OPERATORS:
        values = [evaluate(operand, names, where) for operand in operands]
        if all(isinstance(v, (int, float)) for v in values):
            try:
                return OPERATORS[type(node.op)](*values)
            except ArithmeticError as error:
                raise UserError(f"{where}: {error}") from None
    raise UserError(f"{where}: a value must be a literal or arithmetic, not `{ast.unparse(node)}`")
