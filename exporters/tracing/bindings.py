"""Where the ways of a branch or a loop bind a name, for the text of errors."""

from __future__ import annotations

import ast
import linecache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exporters.tracing.source import Source

__all__ = ["RESULT", "binding_lines", "is_expression", "leaves_loop"]

RESULT = "the returned value"
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


def binding_lines(source: Source | None, label: str) -> tuple[int | None, int | None]:
    """The lines that bind a name on each way: in an ``if``'s branches, or a loop's body.

    Args:
        source: Where the condition or the loop's items stand.
        label: The name, or a place such as ``self.count``; or :data:`RESULT`.

    Returns:
        For a branch the lines of its two ways, for a loop None and the line of its body.
    """
    statement, rest = _statement(source)
    if leaves_loop(source):
        return (
            (None, None) if statement is None else (_last([statement], label), _last(rest, label))
        )
    if isinstance(statement, ast.If):
        orelse = statement.orelse or (rest if label == RESULT else [])
        return _last(statement.body, label), _last(orelse, label)
    if isinstance(statement, ast.For):
        return None, _last([statement.target, *statement.body], label)
    if isinstance(statement, ast.While):
        return None, _last(statement.body, label)
    return None, None


def leaves_loop(source: Source | None) -> bool:
    """Whether an error is told of a loop as a whole: of a ``return`` in it."""
    statement, _ = _statement(source)
    return (
        isinstance(statement, ast.For | ast.While)
        and source is not None
        and (source.column == statement.col_offset)
    )


def is_expression(source: Source | None) -> bool:
    """Whether an error is told of a conditional expression, not of a statement."""
    return isinstance(_statement(source)[0], ast.expr)


def _statement(source: Source | None) -> tuple[ast.AST | None, list[ast.stmt]]:
    """The ``if``, loop or expression that an error is told of, and the statements after it."""
    if source is None or source.column is None:
        return None, []
    try:
        tree = ast.parse("".join(linecache.getlines(source.file)))
    except SyntaxError:
        return None, []
    place = (source.line, source.column, source.end_column)
    first = place[:2]
    for node in ast.walk(tree):
        if isinstance(node, ast.IfExp | ast.BoolOp) and _place(node) == place:
            return node, []
        fields = (getattr(node, name, None) for name in ("body", "orelse", "finalbody"))
        for body in (b for b in fields if isinstance(b, list)):
            for index, statement in enumerate(body):
                start = statement.lineno, statement.col_offset
                whole = isinstance(statement, ast.For | ast.While) and start == first
                if whole or _place(_head(statement)) == place:
                    return statement, body[index + 1 :]
        if isinstance(node, ast.Match):
            for index, case in enumerate(node.cases):
                if _place(case.pattern) == place:
                    others = [s for c in node.cases[index + 1 :] for s in c.body]
                    return ast.If(ast.Constant(True), case.body, others), []
    return None, []


def _head(statement: ast.stmt) -> ast.expr | None:
    """What a statement's errors point at."""
    if isinstance(statement, ast.If | ast.While):
        return statement.test
    return statement.iter if isinstance(statement, ast.For) else None


def _place(node: ast.expr | ast.pattern | None) -> tuple[int, int, int | None] | None:
    if node is None:
        return None
    end = node.end_col_offset if node.end_lineno == node.lineno else None
    return node.lineno, node.col_offset, end


def _last(body: Sequence[ast.AST], label: str) -> int | None:
    """The last line that binds a name or a place, or else what holds the place."""
    found = [(text, line) for node in body for text, line in _bindings(node)]
    while label:
        lines = [line for text, line in found if text == label]
        if lines:
            return None if label == RESULT and len(lines) > 1 else lines[-1]
        label = label[: max(label.rfind("["), label.rfind("."), 0)]
    return None


def _bindings(node: ast.AST) -> Iterator[tuple[str, int]]:
    """What code binds, and where."""
    if isinstance(node, _SCOPES):
        return
    if isinstance(node, ast.Return):
        yield RESULT, node.lineno
    if isinstance(node, ast.Name | ast.Attribute | ast.Subscript) and isinstance(
        node.ctx, ast.Store
    ):
        yield ast.unparse(node), node.lineno
    for child in ast.iter_child_nodes(node):
        yield from _bindings(child)
