"""From a code object to one whose control flow is staged.

The new code behaves as the old one wherever no trace runs, and where its conditions are plain
values. It has the old one's parameters, free variables and line numbers, so that it can take its
place in the function.
"""

from __future__ import annotations
import __future__

import ast
import functools
from types import CodeType
from typing import Any

from exporters.script.expressions import MODULE
from exporters.script.fence import refuse_unsupported
from exporters.script.locate import FunctionSyntax, find_syntax
from exporters.script.statements import convert_function
from exporters.script.structure import PREFIX
from exporters.tracing import staged

__all__ = ["compile_code"]

_CONSTANT = "__bridge_constant_{}__"


@functools.lru_cache(maxsize=4096)
def compile_code(code: CodeType) -> CodeType:
    """The code of the same function with staged control flow.

    Raises:
        ScriptError: The source is not available, or holds what cannot be staged.
    """
    syntax = find_syntax(code)
    refuse_unsupported(syntax)
    constants: dict[str, Any] = {MODULE: staged}

    def constant(value: Any) -> ast.expr:
        name = _CONSTANT.format(len(constants))
        constants[name] = value
        return ast.Constant(name)

    function = _definition(syntax)
    if syntax.owner is not None:
        function = _Mangled(syntax.owner).visit(function)
    function = _Unannotated().visit(function)
    convert_function(function, constant, syntax.source)
    module = _wrapped(function, code)
    made = compile(module, code.co_filename, "exec", dont_inherit=True, flags=_future_flags(code))
    found = _find(made, function.name)
    return _finished(found, code, constants)


def _definition(syntax: FunctionSyntax) -> ast.FunctionDef:
    """The function as a ``def`` without decorators, defaults and annotations."""
    node = syntax.node
    if isinstance(node, ast.Lambda):
        body: list[ast.stmt] = [ast.copy_location(ast.Return(node.body), node.body)]
    else:
        body = list(node.body)
    args = node.args
    for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg):
        if arg is not None:
            arg.annotation = None
    nothing = ast.Constant(None)
    args.defaults = [nothing for _ in args.defaults]
    args.kw_defaults = [None if d is None else nothing for d in args.kw_defaults]
    # Not under its own name, or calls of itself would mean this definition, not the function.
    function = ast.FunctionDef(f"{PREFIX}function", args, body, [])
    if hasattr(ast, "TypeVar"):
        function.type_params = []  # type: ignore[attr-defined]
    return ast.fix_missing_locations(ast.copy_location(function, node))


def _wrapped(function: ast.FunctionDef, code: CodeType) -> ast.Module:
    """The definition inside of a function that owns its free variables."""
    free = list(code.co_freevars)
    if free:
        keep = ast.If(ast.Constant(0), [ast.Expr(ast.Name(n, ast.Load())) for n in free], [])
        # At the end: what is declared nonlocal must not be named before that.
        function.body.append(ast.fix_missing_locations(ast.copy_location(keep, function.body[0])))
    owned: list[ast.stmt] = []
    if free:
        targets: list[ast.expr] = [ast.Name(n, ast.Store()) for n in free]
        owned.append(ast.Assign(targets, ast.Constant(None)))
    owner = ast.FunctionDef(
        f"{PREFIX}owner", ast.arguments([], [], None, [], [], None, []), [*owned, function], []
    )
    if hasattr(ast, "TypeVar"):
        owner.type_params = []  # type: ignore[attr-defined]
    return ast.fix_missing_locations(ast.Module([owner], []))


def _find(module: CodeType, name: str) -> CodeType:
    (owner,) = (c for c in module.co_consts if isinstance(c, CodeType))
    return next(c for c in owner.co_consts if isinstance(c, CodeType) and c.co_name == name)


def _finished(made: CodeType, original: CodeType, constants: dict[str, Any]) -> CodeType:
    """The made code under the original's name, with objects in place of placeholders."""
    assert made.co_freevars == original.co_freevars, (made.co_freevars, original.co_freevars)

    def finish(code: CodeType) -> CodeType:
        generated = code.co_name.startswith(PREFIX) or code is made
        consts = tuple(
            finish(c)
            if isinstance(c, CodeType)
            else constants.get(c, c)
            if isinstance(c, str)
            else c
            for c in code.co_consts
        )
        qualname = original.co_qualname if generated else _own_qualname(code, made, original)
        name = original.co_name if generated else code.co_name
        return code.replace(co_consts=consts, co_name=name, co_qualname=qualname)

    return finish(made)


def _own_qualname(code: CodeType, made: CodeType, original: CodeType) -> str:
    """The name of a function that the user defined inside of the converted one."""
    parts = code.co_qualname.removeprefix(made.co_qualname).split(".")
    kept = [p for p in parts if not p.startswith(PREFIX)]
    return original.co_qualname + ".".join(kept) if kept else original.co_qualname


def _future_flags(code: CodeType) -> int:
    return code.co_flags & __future__.annotations.compiler_flag


class _Unannotated(ast.NodeTransformer):
    """Assignments without their annotations, which the names of an outer function cannot have."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        if node.value is None:
            return ast.copy_location(ast.Pass(), node)
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        return node


class _Mangled(ast.NodeTransformer):
    """Private names as Python writes them inside of a class."""

    def __init__(self, owner: str) -> None:
        self._owner = owner.lstrip("_")

    def _mangle(self, name: str) -> str:
        private = name.startswith("__") and not name.endswith("__") and "." not in name
        return f"_{self._owner}{name}" if private and self._owner else name

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        node.attr = self._mangle(node.attr)
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self._mangle(node.id)
        return node
