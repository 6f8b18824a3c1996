"""From a code object to the syntax tree of its function."""

from __future__ import annotations

import ast
import copy
import functools
import linecache
from typing import TYPE_CHECKING

from exporters.errors import ScriptError
from exporters.tracing.source import Source

if TYPE_CHECKING:
    from types import CodeType

__all__ = ["FunctionSyntax", "find_syntax"]

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


class FunctionSyntax:
    """A function's syntax tree.

    Attributes:
        node: The definition; positions are those in the file.
        owner: Name of the class that it is defined in directly, for private names.
        code: The code object that Python made of it.
    """

    def __init__(self, node: Function, owner: str | None, code: CodeType) -> None:
        self.node = node
        self.owner = owner
        self.code = code

    def source(self, node: ast.AST) -> Source:
        """The position of a node."""
        one_line = getattr(node, "end_lineno", None) == getattr(node, "lineno", None)
        return Source(
            file=self.code.co_filename,
            line=getattr(node, "lineno", self.code.co_firstlineno),
            function=self.code.co_qualname,
            column=getattr(node, "col_offset", None),
            end_column=getattr(node, "end_col_offset", None) if one_line else None,
        )


@functools.lru_cache(maxsize=256)
def _parse(file: str, text: str) -> ast.Module | None:
    try:
        return ast.parse(text, file)
    except SyntaxError:
        return None


def find_syntax(code: CodeType) -> FunctionSyntax:
    """The definition that ``code`` was compiled from.

    Raises:
        ScriptError: The source is not available, or not what was compiled.
    """
    linecache.checkcache(code.co_filename)
    text = "".join(linecache.getlines(code.co_filename))
    where = f"{code.co_qualname} ({code.co_filename}:{code.co_firstlineno})"
    if not text:
        raise ScriptError(
            f"the source of {where} is not available, so its control flow cannot be compiled",
            hint="define the function in a file or a notebook cell, not in exec() or the plain prompt",
        )
    tree = _parse(code.co_filename, text)
    found = [] if tree is None else [f for f in _definitions(tree) if _matches(f[0], code)]
    if len(found) > 1:  # several lambdas in one line
        found = [f for f in found if _compiles_to(f[0], code)] or found
    if len(found) != 1:
        raise ScriptError(
            f"the source of {where} is not what runs: the file was changed, or the function was "
            "made by other code",
            hint="import the module anew",
        )
    node, owner = found[0]
    return FunctionSyntax(copy.deepcopy(node), owner, code)


def _definitions(tree: ast.AST) -> list[tuple[Function, str | None]]:
    found: list[tuple[Function, str | None]] = []

    def visit(node: ast.AST, owner: str | None) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function):
                found.append((child, owner))
                visit(child, owner)
            elif isinstance(child, ast.ClassDef):
                visit(child, child.name)
            else:
                visit(child, owner)

    visit(tree, None)
    return found


def _matches(node: Function, code: CodeType) -> bool:
    if isinstance(node, ast.Lambda):
        if code.co_name != "<lambda>" or node.lineno != code.co_firstlineno:
            return False
    else:
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        if code.co_name != node.name or first != code.co_firstlineno:
            return False
    return _parameters(node.args) == list(code.co_varnames[: _parameter_count(code)])


def _parameters(args: ast.arguments) -> list[str]:
    names = [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
    return names + [a.arg for a in (args.vararg, args.kwarg) if a is not None]


def _parameter_count(code: CodeType) -> int:
    extra = bool(code.co_flags & 0x04) + bool(code.co_flags & 0x08)  # *args, **kwargs
    return code.co_argcount + code.co_kwonlyargcount + extra


def _compiles_to(node: Function, code: CodeType) -> bool:
    """Whether a lambda is the one that ``code`` was made of, among others in its line."""
    if not isinstance(node, ast.Lambda):
        return True
    positions = [p for p in code.co_positions() if p[0] is not None and p[2]]
    body = node.body
    return bool(positions) and all(
        (body.lineno, body.col_offset) <= (line, column)
        and (end_line, end_column) <= (body.end_lineno, body.end_col_offset)
        for line, end_line, column, end_column in positions
    )
