"""Refusal of what cannot be staged, before anything is traced."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from exporters.errors import ScriptSyntaxError

if TYPE_CHECKING:
    from exporters.script.locate import FunctionSyntax

__all__ = ["refuse_unsupported"]

_REFUSED: dict[type[ast.AST], tuple[str, str]] = {
    ast.Yield: ("`yield`", "collect the items in a list and return it"),
    ast.YieldFrom: ("`yield from`", "collect the items in a list and return it"),
}


class _Fence(ast.NodeVisitor):
    def __init__(self, syntax: FunctionSyntax) -> None:
        self.syntax = syntax

    def visit(self, node: ast.AST) -> None:
        refused = _REFUSED.get(type(node))
        if refused is not None:
            what, remedy = refused
            raise ScriptSyntaxError(
                f"{what} cannot become part of a graph",
                source=self.syntax.source(node),
                hint=remedy,
            )
        super().visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Nested functions are judged when they are compiled themselves."""

    visit_AsyncFunctionDef = visit_Lambda = visit_ClassDef = visit_FunctionDef  # type: ignore[assignment]  # noqa: N815


def refuse_unsupported(syntax: FunctionSyntax) -> None:
    """Raise if the function is a generator or a coroutine.

    Raises:
        ScriptSyntaxError: With the file, the line and a remedy.
    """
    node = syntax.node
    if isinstance(node, ast.AsyncFunctionDef):
        raise ScriptSyntaxError(
            f"`async def {node.name}` cannot become part of a graph",
            source=syntax.source(node),
            hint="export the function that does the computing, not the one that waits",
        )
    fence = _Fence(syntax)
    for child in [node.body] if isinstance(node, ast.Lambda) else node.body:
        fence.visit(child)
