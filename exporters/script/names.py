"""Which names code binds and reads, and which are still needed after it."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from exporters.script.structure import breaks_by

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "FUNCTIONS",
    "bound_names",
    "captured_names",
    "certain_reads",
    "live_before",
    "mutated_lists",
    "read_names",
    "shared_names",
]

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
LIST_METHODS = frozenset(
    {"append", "extend", "insert", "pop", "remove", "clear", "reverse", "sort"}
)


class _Names(ast.NodeVisitor):
    """Bound and read names of one scope; the scopes inside count by what they read from outside."""

    def __init__(self) -> None:
        self.bound: set[str] = set()
        self.read: set[str] = set()

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self.read.add(node.id)
        else:
            self.bound.add(node.id)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.read.add(node.target.id)
        self.generic_visit(node)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.bound.add(node.name)
        for x in (*node.decorator_list, *node.args.defaults, *node.args.kw_defaults):
            if x is not None:
                self.visit(x)
        self._inside(node.args, node.body)

    visit_FunctionDef = visit_AsyncFunctionDef = _function  # noqa: N815

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for x in (*node.args.defaults, *node.args.kw_defaults):
            if x is not None:
                self.visit(x)
        self._inside(node.args, [node.body])

    def _inside(self, args: ast.arguments, body: Iterable[ast.AST]) -> None:
        inner = _Names()
        for statement in body:
            inner.visit(statement)
        own = {a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)}
        own |= {a.arg for a in (args.vararg, args.kwarg) if a is not None}
        outer = _declared(body)
        self.read |= (inner.read - own) - (inner.bound - outer) | (inner.read & outer)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.bound.add(node.name)
        inner = _Names()
        for x in (*node.bases, *node.decorator_list):
            self.visit(x)
        for statement in node.body:
            inner.visit(statement)
        self.read |= inner.read

    def _comprehension(self, node: ast.AST) -> None:
        inner = _Names()
        for child in ast.iter_child_nodes(node):
            inner.visit(child)
        targets = _Names()
        for generator in node.generators:  # type: ignore[attr-defined]
            targets.visit(generator.target)
        walrus = {n.target.id for n in ast.walk(node) if isinstance(n, ast.NamedExpr)}
        self.read |= inner.read - targets.bound
        self.bound |= walrus

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension  # noqa: N815

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name is not None:
            self.bound.add(node.name)
        self.generic_visit(node)

    def visit_alias(self, node: ast.alias) -> None:
        self.bound.add((node.asname or node.name).partition(".")[0])

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        if node.name is not None:
            self.bound.add(node.name)
        self.generic_visit(node)

    visit_MatchStar = visit_MatchAs  # type: ignore[assignment]  # noqa: N815

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        if node.rest is not None:
            self.bound.add(node.rest)
        self.generic_visit(node)


def _names(nodes: Iterable[ast.AST]) -> _Names:
    found = _Names()
    for node in nodes:
        found.visit(node)
    return found


def _declared(nodes: Iterable[ast.AST]) -> set[str]:
    """Names declared ``nonlocal`` or ``global`` in a function's own scope."""
    found: set[str] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Nonlocal | ast.Global):
            found.update(node.names)
        elif not isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            pending += list(ast.iter_child_nodes(node))
    return found


def certain_reads(statements: Sequence[ast.stmt]) -> set[str]:
    """The names that structured statements read whatever happens, before they bind them."""
    found: set[str] = set()
    bound: set[str] = set()
    for s in statements:
        if isinstance(s, ast.If):
            read = read_names([s.test]) | (certain_reads(s.body) & certain_reads(s.orelse))
        elif isinstance(s, ast.While):
            read = read_names([s.test])
        elif isinstance(s, ast.For):
            read = read_names([s.iter])
        elif isinstance(s, ast.With):
            read = read_names(s.items) | certain_reads(s.body)
        elif isinstance(s, ast.Try | ast.Match | ast.FunctionDef | ast.ClassDef):
            read = set()
        else:
            read = read_names([s])
        found |= read - bound
        bound |= bound_names([s])
    return found


def bound_names(nodes: Iterable[ast.AST]) -> set[str]:
    """The names that code binds in its own scope."""
    return _names(nodes).bound


def read_names(nodes: Iterable[ast.AST]) -> set[str]:
    """The names that code reads, in functions defined inside of it too."""
    return _names(nodes).read


def captured_names(nodes: Iterable[ast.AST]) -> set[str]:
    """The names that functions defined in code read from around them, whenever they are called."""
    found: set[str] = set()
    for node in nodes:
        for child in ast.walk(node):
            if isinstance(child, FUNCTIONS):
                found |= read_names([child])
    return found


def shared_names(nodes: Iterable[ast.AST]) -> set[str]:
    """The names that functions defined in code rebind around them (``nonlocal``)."""
    found: set[str] = set()
    for node in nodes:
        for child in ast.walk(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                found |= {
                    name
                    for inner in ast.walk(child)
                    if isinstance(inner, ast.Nonlocal)
                    for name in inner.names
                }
    return found


def global_names(nodes: Iterable[ast.AST]) -> set[str]:
    """The names that code declares ``global``."""
    return {
        name
        for node in nodes
        for child in ast.walk(node)
        if isinstance(child, ast.Global)
        for name in child.names
    }


def mutated_lists(nodes: Iterable[ast.AST]) -> set[str]:
    """Names whose objects code fills or empties: ``xs.append(x)``, ``xs += ys``."""
    found: set[str] = set()
    for node in nodes:
        for child in ast.walk(node):
            if (
                isinstance(child, ast.Call)
                and isinstance(child.func, ast.Attribute)
                and child.func.attr in LIST_METHODS
                and isinstance(child.func.value, ast.Name)
            ):
                found.add(child.func.value.id)
            elif isinstance(child, ast.Call):  # a function may fill what it is given
                found.update(a.id for a in child.args if isinstance(a, ast.Name))
            elif isinstance(child, ast.AugAssign) and isinstance(child.target, ast.Name):
                found.add(child.target.id)
    return found


# --- liveness -----------------------------------------------------------------------------------


def live_before(statements: Sequence[ast.stmt], after: set[str]) -> set[str]:
    """The names whose values may still be read, before some statements.

    Args:
        statements: Structured statements: no jumps out of loops.
        after: The names that may be read after them.
    """
    live = set(after)
    for statement in reversed(statements):
        live = _before(statement, live)
    return live


def _before(s: ast.stmt, after: set[str]) -> set[str]:
    if isinstance(s, ast.Return):
        return read_names([s])
    if isinstance(s, ast.Raise):
        return read_names([s])
    if isinstance(s, ast.If):
        return read_names([s.test]) | live_before(s.body, after) | live_before(s.orelse, after)
    if isinstance(s, ast.While):
        live = after | read_names([s.test])
        return live | live_before(s.body, live | live_before(s.body, live))
    if isinstance(s, ast.For):
        target = bound_names([s.target])
        flag = breaks_by(s)
        after = after | ({flag} if flag is not None else set())
        live = after | (live_before(s.body, after) - target)
        live |= live_before(s.body, live) - target
        return live | read_names([s.iter, s.target])
    if isinstance(s, ast.With):
        bound = bound_names([i.optional_vars for i in s.items if i.optional_vars is not None])
        return read_names(s.items) | (live_before(s.body, after) - bound)
    if isinstance(s, ast.Try | ast.Match):
        return after | read_names([s])
    names = _names([s])
    # `x[i] = v` and `x.a = v` read x; a name that is only bound was not needed before.
    return (after - names.bound) | names.read
