"""Which list displays code keeps: whoever holds such a list sees what becomes of it."""

from __future__ import annotations

import ast
import builtins
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["mark_kept"]


def mark_kept(nodes: Iterable[ast.AST]) -> None:
    """Mark the displays that are bound, returned, or given to a function of the user's."""
    for node in nodes:
        for child in ast.walk(node):
            if isinstance(child, ast.Assign | ast.Return | ast.NamedExpr):
                _mark(child.value)
            elif isinstance(child, ast.Call) and _is_users(child.func):
                for x in (*child.args, *(k.value for k in child.keywords)):
                    _mark(x)


def _mark(x: ast.expr | None) -> None:
    """Mark the displays that an expression's value is, or is made of."""
    if isinstance(x, ast.List | ast.Set):
        vars(x)["kept"] = True
    if isinstance(x, ast.List | ast.Tuple):
        parts = x.elts
    elif isinstance(x, ast.Dict | ast.BoolOp):
        parts = x.values
    elif isinstance(x, ast.BinOp):
        parts = [x.left, x.right]
    elif isinstance(x, ast.IfExp):
        parts = [x.body, x.orelse]
    else:
        return
    for part in parts:
        _mark(part)


def _is_users(function: ast.expr) -> bool:
    """Whether a function is one of this module's, or of the object's."""
    if isinstance(function, ast.Attribute):
        return isinstance(function.value, ast.Name) and function.value.id == "self"
    return isinstance(function, ast.Name) and not hasattr(builtins, function.id)
