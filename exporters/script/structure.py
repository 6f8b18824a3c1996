"""Jumps out of the middle become the ends of branches.

``break``, ``continue`` and ``return`` are rewritten so that every statement is entered at its start
and left at its end: what follows a jump that may be taken moves into the branch in which it is not
taken, and loops end by a flag in their condition. Afterwards a ``return`` stands only at the end of
a function's branches, and there is no ``break`` or ``continue``.
"""

from __future__ import annotations

import ast
import dataclasses
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PREFIX", "breaks_by", "is_exhaustive", "jumps", "structure"]

PREFIX = "ag__"  # of every name that the compiler makes up
_N = TypeVar("_N", bound=ast.AST)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_Match = ast.Match
_Block = ast.With | ast.Try | ast.Match


@dataclasses.dataclass(slots=True)
class _Context:
    """Where statements stand.

    Attributes:
        broken: Flag that ends the loop around them; None outside of loops.
        skipped: Flag that skips the rest of this iteration.
        returned: Flag and value for a ``return`` that cannot end the function at once.
    """

    broken: str | None = None
    skipped: str | None = None
    returned: tuple[str, str] | None = None


class _Structurer:
    def __init__(self) -> None:
        self._count = 0
        self.flags_set: set[str] = set()

    def name(self, what: str) -> str:
        self._count += 1
        return f"{PREFIX}{what}_{self._count}"

    def block(self, statements: Sequence[ast.stmt], context: _Context) -> list[ast.stmt]:
        """Structured statements that do the same."""
        done: list[ast.stmt] = []
        for index, statement in enumerate(statements):
            rest = list(statements[index + 1 :])
            if isinstance(statement, ast.Return | ast.Break | ast.Continue):
                return done + self._jump(statement, context)
            if isinstance(statement, ast.Raise):
                return [*done, statement]
            if isinstance(statement, ast.If) and _jumps(statement):
                return done + self._branch(statement, rest, context)
            if isinstance(statement, ast.For | ast.While):
                before, loop, after = self._loop(statement, context)
                done += [*before, loop]
                if context.broken is None and context.returned is not None and _returns(statement):
                    return done + self._unless_returned(statement, [*after, *rest], context)
                if after:
                    return done + self.block([*after, *rest], context)
                continue
            if isinstance(statement, _Block):
                if _jumps(statement):
                    return done + self._compound(statement, rest, context)
                done.append(self._inside(statement, context))
                continue
            if isinstance(statement, ast.If):
                done.append(self._both(statement, context))
                continue
            done.append(statement)
        return done

    def _unless_returned(
        self, loop: ast.stmt, rest: list[ast.stmt], context: _Context
    ) -> list[ast.stmt]:
        """What follows a loop in a branch, if the loop did not return."""
        assert context.returned is not None
        if not rest:
            return []
        test = _like(loop, ast.UnaryOp(ast.Not(), _load(context.returned[0], loop)))
        return [_like(loop, ast.If(test, self.block(rest, context), []))]

    # Jumps

    def _jump(
        self, jump: ast.Return | ast.Break | ast.Continue, context: _Context
    ) -> list[ast.stmt]:
        if isinstance(jump, ast.Return):
            if context.returned is None:
                return [jump]
            flag, value = context.returned
            result = jump.value or ast.copy_location(ast.Constant(None), jump)
            setting = [_assign(value, result, jump), self._set(flag, jump)]
            return setting + ([self._set(context.broken, jump)] if context.broken else [])
        flag_name = context.broken if isinstance(jump, ast.Break) else context.skipped
        assert flag_name is not None, "Python itself refuses a jump outside of a loop"
        return [self._set(flag_name, jump)]

    def _set(self, flag: str, at: ast.AST) -> ast.stmt:
        self.flags_set.add(flag)
        return _assign(flag, ast.copy_location(ast.Constant(True), at), at)

    def _both(self, s: ast.If, context: _Context) -> ast.If:
        body, orelse = self.block(s.body, context) or [_pass(s)], self.block(s.orelse, context)
        node = _like(s, ast.If(s.test, body, orelse))
        vars(node)["jumps"] = _jumps(s) or jumps(s)
        return node

    def _branch(self, s: ast.If, rest: list[ast.stmt], context: _Context) -> list[ast.stmt]:
        """An ``if`` with a jump in it, and what follows it."""
        ends = always_jumps(s.body), always_jumps(s.orelse)
        if not rest or all(ends):
            return [self._both(s, context)]
        if ends[0]:
            return [self._both(_like(s, ast.If(s.test, s.body, [*s.orelse, *rest])), context)]
        if ends[1]:
            return [self._both(_like(s, ast.If(s.test, [*s.body, *rest], s.orelse)), context)]
        return self._compound(s, rest, context)

    def _compound(self, s: ast.stmt, rest: list[ast.stmt], context: _Context) -> list[ast.stmt]:
        """A statement that may jump from its middle: flags say afterwards whether it did."""
        if (
            context.returned is None
            and not rest
            and always_jumps([s])
            and isinstance(s, ast.With | ast.Match)
        ):
            return [self._inside(s, context)]
        before: list[ast.stmt] = []
        after: list[ast.stmt] = []
        inner = context
        if context.returned is None and _returns(s):
            flag, value = self.name("returned"), self.name("value")
            before.append(_assign(flag, ast.Constant(False), s))
            inner = dataclasses.replace(context, returned=(flag, value))
            leave = _like(s, ast.Return(_load(value, s)))
            after.append(_like(s, ast.If(_load(flag, s), [leave], [])))
        flags = [f for f in (inner.broken, inner.skipped) if f is not None]
        if context.returned is not None:
            flags.append(context.returned[0])
        known = set(self.flags_set)
        self.flags_set.clear()
        changed = self._both(s, inner) if isinstance(s, ast.If) else self._inside(s, inner)
        flags = [f for f in flags if f in self.flags_set]
        self.flags_set |= known
        if after:
            return [*before, changed, *self.block([*after, *rest], context)]
        if rest and flags:
            test: ast.expr = _load(flags[0], s)
            if len(flags) > 1:
                test = _like(s, ast.BoolOp(ast.Or(), [_load(f, s) for f in flags]))
            guard = _like(
                s, ast.If(_like(s, ast.UnaryOp(ast.Not(), test)), self.block(rest, context), [])
            )
            return [*before, changed, guard]
        return [*before, changed, *self.block(rest, context)]

    def _inside(self, s: ast.stmt, context: _Context) -> ast.stmt:
        """A compound statement with its blocks structured."""
        if isinstance(s, ast.With):
            return _like(s, ast.With(s.items, self.block(s.body, context)))
        if isinstance(s, ast.Match):
            cases = [
                ast.match_case(c.pattern, c.guard, self.block(c.body, context) or [_pass(s)])
                for c in s.cases
            ]
            return _like(s, ast.Match(s.subject, cases))
        assert isinstance(s, ast.Try)
        handlers = [
            _like(h, ast.ExceptHandler(h.type, h.name, self.block(h.body, context) or [_pass(h)]))
            for h in s.handlers
        ]
        return _like(
            s,
            ast.Try(
                self.block(s.body, context) or [_pass(s)],
                handlers,
                self.block(s.orelse, context),
                self.block(s.finalbody, context),
            ),
        )

    # Loops

    def _loop(
        self, s: ast.For | ast.While, context: _Context
    ) -> tuple[list[ast.stmt], ast.stmt, list[ast.stmt]]:
        """Flags set before a loop, the loop, and what a ``return`` or an ``else`` leaves for after it."""
        inner = _Context()
        inner.broken = self.name("broken")
        inner.skipped = self.name("skipped")
        before: list[ast.stmt] = []
        after: list[ast.stmt] = []
        returns = any(_returns(b) for b in s.body)
        endless = (
            isinstance(s, ast.While) and isinstance(s.test, ast.Constant) and bool(s.test.value)
        )
        if returns:
            if context.returned is None:
                flag, value = self.name("returned"), self.name("value")
                before.append(_assign(flag, ast.Constant(False), s))
                leave = _like(s, ast.Return(_load(value, s)))
                if endless and not _breaks(s):
                    after.append(leave)
                else:
                    after.append(_like(s, ast.If(_load(flag, s), [leave], [])))
                inner.returned = (flag, value)
            else:
                inner.returned = context.returned
        known = set(self.flags_set)
        self.flags_set.clear()
        body = self.block(s.body, inner) or [_pass(s)]
        used, self.flags_set = self.flags_set, known | self.flags_set
        if inner.skipped in used:
            body.insert(0, _assign(inner.skipped, ast.Constant(False), s))
        breaks = inner.broken in used
        if breaks:
            before.append(_assign(inner.broken, ast.Constant(False), s))
        if s.orelse:
            orelse = s.orelse
            if breaks:
                not_broken = _like(s, ast.UnaryOp(ast.Not(), _load(inner.broken, s)))
                orelse = [_like(s, ast.If(not_broken, s.orelse, []))]
            after = [*after, *orelse]
        if returns and context.returned is not None and context.broken is not None:
            flag = context.returned[0]  # the loop around ends, too
            after.append(_like(s, ast.If(_load(flag, s), [_like(s, ast.Break())], [])))
        if isinstance(s, ast.While):
            test = s.test
            if breaks:
                go_on = _like(s.test, ast.UnaryOp(ast.Not(), _load(inner.broken, s.test)))
                test = go_on if endless else _like(s.test, ast.BoolOp(ast.And(), [go_on, s.test]))
            return before, _like(s, ast.While(test, body, [])), after
        loop = _like(s, ast.For(s.target, s.iter, body, []))
        if breaks:
            vars(loop)["broken_by"] = inner.broken
        return before, loop, after


def breaks_by(loop: ast.For) -> str | None:
    """The flag that ends a structured ``for``."""
    found: str | None = getattr(loop, "broken_by", None)
    return found


def jumps(statement: ast.If) -> bool:
    """Whether a structured ``if`` held a jump, so that what follows depends on the way taken."""
    return bool(getattr(statement, "jumps", False))


def is_exhaustive(statement: ast.If) -> bool:
    """Whether an ``if`` is the last case of a ``match``, which is taken for complete."""
    return bool(getattr(statement, "exhaustive", False))


def always_jumps(statements: Sequence[ast.stmt]) -> bool:
    """Whether the end of some statements is never reached."""
    if not statements:
        return False
    last = statements[-1]
    if isinstance(last, ast.Return | ast.Break | ast.Continue | ast.Raise):
        return True
    if isinstance(last, ast.If):
        return always_jumps(last.body) and always_jumps(last.orelse)
    if isinstance(last, ast.With):
        return always_jumps(last.body)
    if isinstance(last, _Match):
        complete = any(
            isinstance(c.pattern, ast.MatchAs) and c.pattern.pattern is None and c.guard is None
            for c in last.cases
        )
        return complete and all(always_jumps(c.body) for c in last.cases)
    return False


def _jumps(statement: ast.stmt) -> bool:
    """Whether a statement holds a jump out of it."""
    pending: list[tuple[ast.AST, bool]] = [(statement, False)]
    while pending:
        node, in_loop = pending.pop()
        if isinstance(node, ast.Return) or (
            isinstance(node, ast.Break | ast.Continue) and not in_loop
        ):
            return True
        inside = in_loop or isinstance(node, ast.For | ast.While)
        children = ast.iter_child_nodes(node)
        pending += [(c, inside) for c in children if not isinstance(c, _FUNCTIONS)]
    return False


def _returns(statement: ast.AST) -> bool:
    """Whether a statement holds a ``return`` of its own function."""
    if isinstance(statement, ast.Return):
        return True
    return any(
        _returns(c) for c in ast.iter_child_nodes(statement) if not isinstance(c, _FUNCTIONS)
    )


def _breaks(loop: ast.For | ast.While) -> bool:
    pending: list[ast.AST] = list(loop.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Break):
            return True
        if not isinstance(node, (*_FUNCTIONS, ast.For, ast.While)):
            pending += list(ast.iter_child_nodes(node))
        elif isinstance(node, ast.For | ast.While):
            pending += node.orelse
    return False


def _like(at: ast.AST, node: _N) -> _N:
    return ast.fix_missing_locations(ast.copy_location(node, at))


def _assign(name: str, value: ast.expr, at: ast.AST) -> ast.stmt:
    node = ast.Assign([ast.Name(name, ast.Store())], value)
    return _like(at, node)


def _load(name: str, at: ast.AST) -> ast.expr:
    return _like(at, ast.Name(name, ast.Load()))


def _pass(at: ast.AST) -> ast.stmt:
    return _like(at, ast.Pass())


def structure(statements: Sequence[ast.stmt]) -> list[ast.stmt]:
    """A function's body with jumps only at the ends of its branches."""
    body = list(statements)
    if not always_jumps(body):
        last = body[-1]
        body.append(_like(last, ast.Return(ast.Constant(None))))
    return _Structurer().block(body, _Context())
