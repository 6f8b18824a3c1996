"""Control-flow statements become calls of staged operators on functions of their bodies."""

from __future__ import annotations

import ast
import builtins
from typing import TYPE_CHECKING, Any

from exporters.script.expressions import (
    MODULE,
    ExpressionConverter,
    is_key,
    is_run_time_place,
    staged_call,
)
from exporters.script.kept import mark_kept
from exporters.script.names import (
    FUNCTIONS,
    bound_names,
    captured_names,
    certain_reads,
    global_names,
    live_before,
    mutated_lists,
    read_names,
    shared_names,
)
from exporters.script.patterns import pattern_test
from exporters.script.structure import PREFIX, breaks_by, is_exhaustive, jumps, structure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from exporters.tracing.source import Source

__all__ = ["convert_function"]


def _arguments(*names: str) -> ast.arguments:
    return ast.arguments([], [ast.arg(n) for n in names], None, [], [], None, [])


def _function(name: str, body: list[ast.stmt], at: ast.AST, *parameters: str) -> ast.FunctionDef:
    node = ast.FunctionDef(name, _arguments(*parameters), body, [])
    if hasattr(ast, "TypeVar"):  # Python 3.12 wants the field
        node.type_params = []  # type: ignore[attr-defined]
    return ast.fix_missing_locations(ast.copy_location(node, at))


class StatementConverter:
    """Converts the body of one function.

    Args:
        node: The function.
        constant: Makes a placeholder that stands for an object in the code to be made.
        source: The position of a node.
    """

    def __init__(
        self,
        node: ast.FunctionDef,
        constant: Callable[[Any], ast.expr],
        source: Callable[[ast.AST], Source],
    ) -> None:
        self.node = node
        self.constant = constant
        self.source = source
        self.globals = global_names(node.body)
        self.captured = captured_names(node.body)
        self.outer = _declared_outer(node) | self.globals  # others read these at any time
        nested = [n for s in node.body for n in ast.walk(s) if isinstance(n, FUNCTIONS)]
        self.shared = shared_names(node.body) | self.outer | mutated_lists(nested)
        self.parameters = _parameter_names(node.args)
        self.given = self.parameters - bound_names(node.body)
        self.bound = bound_names(node.body) | self.parameters
        first = [*node.args.posonlyargs, *node.args.args]
        self.expressions = ExpressionConverter(self._hoist, first[0].arg if first else None)
        self.hoisted: list[ast.stmt] = []
        self.made: set[str] = set()
        self.variable = node.args.vararg
        self.fenced: int | None = None
        self._count = 0

    def convert(self) -> list[ast.stmt]:
        """The function's new body."""
        doc = self.node.body[:1] if ast.get_docstring(self.node, clean=False) is not None else []
        body = self.block(structure(self.node.body), set())
        locals_ = sorted((self.bound | self.made) - self.parameters - self.outer)
        if locals_:  # every name is the function's own, also where only a nested function binds it
            targets: list[ast.expr] = [ast.Name(n, ast.Store()) for n in locals_]
            never = ast.If(ast.Constant(0), [ast.Assign(targets, ast.Constant(None))], [])
            body.insert(0, ast.fix_missing_locations(ast.copy_location(never, self.node.body[0])))
        if self.variable is not None and self.variable.arg not in self.outer:
            name = self.variable.arg
            taken = staged_call("given", _load(name, self.node), at=self.node.body[0])
            store = ast.Assign([ast.Name(name, ast.Store())], taken)
            body.insert(0, _at(self.node.body[0], store))
        return [*doc, *body]

    def name(self, what: str) -> str:
        self._count += 1
        return f"{PREFIX}{what}_{self._count}"

    # Blocks

    def block(self, statements: Sequence[ast.stmt], after: set[str]) -> list[ast.stmt]:
        """Converted statements.

        Args:
            statements: Structured statements.
            after: Names that may be read after them.
        """
        result: list[list[ast.stmt]] = []
        live = after | self.captured | self.shared
        for index in range(len(statements) - 1, -1, -1):
            statement = statements[index]
            before, self.hoisted = self.hoisted, []
            if isinstance(statement, ast.If):
                needed = certain_reads(statements[index + 1 :])
                converted = self._if(statement, live, needed)
            else:
                converted = self.statement(statement, live)
            result.append([*self.hoisted, *converted])
            self.hoisted = before
            live = live_before([statement], live) | self.captured | self.shared
        return [s for part in reversed(result) for s in part]

    def statement(self, s: ast.stmt, after: set[str]) -> list[ast.stmt]:
        """One converted statement."""
        if isinstance(s, ast.While):
            return self._while(s, after)
        if isinstance(s, ast.For):
            return self._for(s, after)
        if isinstance(s, ast.With):
            items = [
                ast.withitem(self.expression(i.context_expr), i.optional_vars) for i in s.items
            ]
            return [_at(s, ast.With(items, self.block(s.body, after)))]
        if isinstance(s, ast.Try):
            return [self._try(s, after)]
        if isinstance(s, ast.Match):
            return self._match(s, after)
        if isinstance(s, ast.FunctionDef):
            return [convert_function(s, self.constant, self.source)]
        if isinstance(s, ast.ClassDef):
            s.body = [
                convert_function(m, self.constant, self.source)
                if isinstance(m, ast.FunctionDef)
                else m
                for m in s.body
            ]
            return [s]
        if isinstance(s, ast.AsyncFunctionDef):
            return [s]
        if isinstance(s, ast.Assert):
            message = self.expression(s.msg) if s.msg is not None else ast.Constant(None)
            call = staged_call(
                "assert_", self.expressions.test(s.test), self.expressions.lazy(message), at=s
            )
            return [_at(s, ast.Expr(call))]
        if isinstance(s, ast.Assign):
            return self._assign(s)
        if isinstance(s, ast.Return) and s.value is not None:
            return [_at(s, ast.Return(self._returned(self.expression(s.value), s)))]
        if isinstance(s, ast.AugAssign) and (
            is_run_time_place(s.target)
            or _is_nested_place(s.target)
            or (isinstance(s.target, ast.Subscript) and is_key(s.target.slice))
        ):
            return self._update_item(s)
        if isinstance(s, ast.AugAssign):
            s.value = self.expressions.beside(s.target, s.value)
            s.target = self.expression(s.target)  # type: ignore[assignment]
            return [s]
        for field, value in ast.iter_fields(s):
            if isinstance(value, ast.expr):
                setattr(s, field, self.expression(value))
            elif isinstance(value, list):
                setattr(
                    s, field, [self.expression(v) if isinstance(v, ast.expr) else v for v in value]
                )
        return [s]

    def expression(self, node: ast.expr) -> ast.expr:
        """One converted expression."""
        return self.expressions.convert(node)

    def _hoist(self, node: ast.expr, inner: list[ast.expr]) -> tuple[str, ast.expr]:
        """A function that evaluates an operand, and the scope of what it binds and changes."""
        name = self.name("operand")
        whole = [node, *inner]
        bound = bound_names(whole)
        body: list[ast.stmt] = [*self._declare(sorted(bound), node), ast.Return(node)]
        read = read_names(whole)
        parts, scope = self._scope(_at(node, ast.Expr(node)), bound, whole, read, lenient=bound)
        self.hoisted += [_function(name, body, node), *parts]
        self.made.update(bound)
        return name, scope

    # Statements

    def _if(self, s: ast.If, after: set[str], needed: set[str]) -> list[ast.stmt]:
        """A staged ``if``.

        Args:
            s: The statement.
            after: Names that may be read after it.
            needed: Names that are certainly read after it.
        """
        test = self.expressions.test(s.test)
        then_name, else_name = self.name("then"), self.name("else")
        tail = _ends_with_return(s.body) or _ends_with_return(s.orelse)
        bound = bound_names([*s.body, *s.orelse])
        kept = bound & (self.outer if tail else after)
        roots = read_names([*s.body, *s.orelse])
        lenient = kept if jumps(s) or is_exhaustive(s) else kept - needed
        scope_parts, scope = self._scope(
            s, kept, [*s.body, *s.orelse], roots, lenient=lenient, restored=bound
        )
        then = self._body(then_name, s.body, after, bound, s)
        orelse = self._body(else_name, s.orelse, after, bound, s)
        raises = ast.Tuple(
            [ast.Constant(_ends_with_raise(b)) for b in (s.body, s.orelse)], ast.Load()
        )
        call = staged_call(
            "if_", test, _load(then_name, s), _load(else_name, s), scope, at=s.test, raises=raises
        )
        result: ast.stmt = ast.Return(self._returned(call, s)) if tail else ast.Expr(call)
        return [then, orelse, *scope_parts, _at(s.test, result)]

    def _returned(self, value: ast.expr, at: ast.stmt) -> ast.expr:
        """What a function returns, if its caller may have to know what that can be."""
        if isinstance(value, ast.Constant):
            return value
        return staged_call("returned", value, at=at)

    def _while(self, s: ast.While, after: set[str]) -> list[ast.stmt]:
        live = live_before([s], after)
        roots = read_names([*s.body, s.test])
        before, self.hoisted = self.hoisted, []
        bound = bound_names([*s.body, s.test])
        converted = self.expressions.test(s.test)
        test_name, body_name = self.name("test"), self.name("body")
        scope_parts, scope = self._scope(s, bound & (after | live), s.body, roots)
        declared = self._declare(sorted(bound_names([converted])), s)
        test_body = [*declared, *self.hoisted, _at(s.test, ast.Return(converted))]
        self.hoisted = before
        body = self._body(body_name, s.body, after | live, bound, s)
        call = staged_call("while_", _load(test_name, s), _load(body_name, s), scope, at=s.test)
        return [
            _function(test_name, test_body, s.test),
            body,
            *scope_parts,
            _at(s.test, ast.Expr(call)),
        ]

    def _for(self, s: ast.For, after: set[str]) -> list[ast.stmt]:
        live = live_before([s], after)
        roots = read_names([s.target, *s.body])
        items = self.expression(s.iter)
        flag = breaks_by(s)
        body_name, item = self.name("body"), self.name("item")
        bound = bound_names([s.target, *s.body])
        scope_parts, scope = self._scope(s, bound & (after | live), s.body, roots)
        take = _at(s.target, ast.Assign([s.target], _load(item, s.target)))
        body = self._body(body_name, s.body, after | live, bound, s, item, first=[take])
        keywords = {}
        if flag is not None:
            keywords["test"] = self.expressions.lazy(self.expression(_not(flag, s.iter)))
        call = staged_call("for_", items, _load(body_name, s), scope, at=s.iter, **keywords)
        return [body, *scope_parts, _at(s.iter, ast.Expr(call))]

    def _try(self, s: ast.Try, after: set[str]) -> ast.stmt:
        everything = after | read_names([s])
        before, self.fenced = self.fenced, s.lineno
        body = self.block(s.body, everything)
        self.fenced = before
        handlers = [
            _at(h, ast.ExceptHandler(h.type, h.name, self.block(h.body, everything)))
            for h in s.handlers
        ]
        return _at(
            s,
            ast.Try(
                body,
                handlers,
                self.block(s.orelse, everything),
                self.block(s.finalbody, after),
            ),
        )

    def _match(self, s: ast.Match, after: set[str]) -> list[ast.stmt]:
        """A chain of ``if`` statements."""
        name = self.name("subject")
        self.made.add(name)
        self.bound.add(name)
        chain: list[ast.stmt] = []
        for case in reversed(s.cases):
            test = pattern_test(case.pattern, ast.Name(name, ast.Load()))
            if case.guard is not None:
                test = case.guard if test is None else ast.BoolOp(ast.And(), [test, case.guard])
            if test is None:
                chain = case.body
            else:
                branch = _at(case.pattern, ast.If(test, case.body, chain))
                vars(branch)["exhaustive"] = not chain
                chain = [branch]
        take = _at(s.subject, ast.Assign([ast.Name(name, ast.Store())], s.subject))
        return self.block([take, *chain], after)

    def _assign(self, s: ast.Assign) -> list[ast.stmt]:
        """An assignment; items at a run-time position are set by a call after it."""
        places: list[tuple[str, ast.expr]] = []

        def replaced(target: ast.expr) -> ast.expr:
            if is_run_time_place(target) or _is_nested_place(target):
                places.append((self.name("item"), target))
                return _at(target, ast.Name(places[-1][0], ast.Store()))
            if isinstance(target, ast.Tuple | ast.List):
                return _at(target, type(target)([replaced(t) for t in target.elts], ast.Store()))
            if isinstance(target, ast.Starred):
                return _at(target, ast.Starred(replaced(target.value), ast.Store()))
            return self.expression(target)

        value = self.expression(s.value)
        star = _star_in(s.targets)
        if star is not None:
            before, after = star
            value = staged_call("unpack", value, ast.Constant(before), ast.Constant(after), at=s)
            targets_ = [_unstarred(t) for t in s.targets]
            s = _at(s, ast.Assign(targets_, s.value))
        (single, *others) = s.targets
        if not others and (is_run_time_place(single) or _is_nested_place(single)):
            return [self._set_item(s, single, value)]
        targets = [replaced(t) for t in s.targets]
        self.made.update(name for name, _ in places)
        sets = [self._set_item(s, target, _load(name, s)) for name, target in places]
        return [_at(s, ast.Assign(targets, value)), *sets]

    def _set_item(self, at: ast.stmt, target: ast.expr, value: ast.expr) -> ast.stmt:
        if _is_nested_place(target):
            assert isinstance(target, ast.Subscript | ast.Attribute)
            call = self.expressions.within(
                target.value, lambda o: self._stored(at, target, o, value)
            )
        else:
            assert isinstance(target, ast.Subscript)
            call = self._stored(at, target, self.expression(target.value), value)
        return _at(at, ast.Expr(call))

    def _stored(
        self, at: ast.stmt, target: ast.expr, owner: ast.expr, value: ast.expr
    ) -> ast.expr:
        """``owner[i] = value`` or ``owner.name = value``, as a call."""
        if isinstance(target, ast.Attribute):
            return staged_call("setattribute", owner, ast.Constant(target.attr), value, at=at)
        assert isinstance(target, ast.Subscript)
        return staged_call("setitem", owner, self.expression(target.slice), value, at=at)

    def _update_item(self, s: ast.AugAssign) -> list[ast.stmt]:
        target = s.target
        operation = ast.Constant(type(s.op).__name__)
        value = self.expression(s.value)

        def updated(owner: ast.expr) -> ast.expr:
            if isinstance(target, ast.Attribute):
                name = ast.Constant(target.attr)
                return staged_call("updateattribute", owner, name, operation, value, at=s)
            assert isinstance(target, ast.Subscript)
            index = self.expression(target.slice)
            return staged_call("updateitem", owner, index, operation, value, at=s)

        assert isinstance(target, ast.Subscript | ast.Attribute)
        if _is_nested_place(target):
            call = self.expressions.within(target.value, updated)
        else:
            call = updated(self.expression(target.value))
        return [_at(s, ast.Expr(call))]

    # Functions of bodies

    def _body(
        self,
        name: str,
        statements: Sequence[ast.stmt],
        after: set[str],
        bound: set[str],
        at: ast.AST,
        *parameters: str,
        first: Sequence[ast.stmt] = (),
    ) -> ast.FunctionDef:
        before, self.hoisted = self.hoisted, []
        inner = [*first, *self.block(statements, after)]
        self.hoisted = before
        self.made.update(bound)
        place = statements[0] if statements else at
        return _function(
            name,
            [*self._declare(sorted(bound), at), *(inner or [_at(at, ast.Pass())])],
            place,
            *parameters,
        )

    def _declare(self, names: Sequence[str], at: ast.AST) -> list[ast.stmt]:
        """``nonlocal`` and ``global`` for names that a nested function binds for the function."""
        declared: list[ast.stmt] = []
        own = [n for n in names if n not in self.globals]
        shared = [n for n in names if n in self.globals]
        if own:
            declared.append(_at(at, ast.Nonlocal(own)))
        if shared:
            declared.append(_at(at, ast.Global(shared)))
        return declared

    def _scope(
        self,
        s: ast.stmt,
        kept: set[str],
        inside: Sequence[ast.AST],
        read: set[str],
        *,
        lenient: Iterable[str] = (),
        restored: set[str] | None = None,
    ) -> tuple[list[ast.stmt], ast.expr]:
        """Functions that read and bind the statement's names, and the scope made of them.

        Args:
            s: The statement.
            kept: Names that it binds and that matter afterwards.
            inside: Its bodies.
            read: Names that they read.
            lenient: See :class:`exporters.tracing.bodies.Scope`.
            restored: Names that it binds, and that hold afterwards what they held before.
        """
        lists = {n for n in mutated_lists(inside) if n in self.bound}
        names = sorted(kept | lists | (self.shared & self.bound))
        filled = lists - kept - self.shared
        matter = len(names)
        names += sorted((restored or set()) - set(names))
        roots = sorted(n for n in read if not hasattr(builtins, n) and n != "__class__")
        get, put, value = self.name("get"), self.name("set"), f"{PREFIX}values"
        getter = ast.Return(ast.Tuple([_bound_value(n) for n in names], ast.Load()))
        setter: list[ast.stmt] = [*self._declare(names, s)]
        if names:
            targets = ast.Tuple([ast.Name(n, ast.Store()) for n in names], ast.Store())
            setter.append(ast.Assign([targets], ast.Name(value, ast.Load())))
            for n in names:
                unbound = ast.Attribute(ast.Constant(MODULE), "UNBOUND", ast.Load())
                test = ast.Compare(ast.Name(n, ast.Load()), [ast.Is()], [unbound])
                setter.append(ast.If(test, [ast.Delete([ast.Name(n, ast.Del())])], []))
        else:
            setter.append(ast.Pass())
        self.made.update(names)
        everything = ast.Tuple([_bound_value(n) for n in roots], ast.Load())
        scope = staged_call(
            "Scope",
            ast.Tuple([ast.Constant(n) for n in names], ast.Load()),
            _load(get, s),
            _load(put, s),
            ast.Lambda(_arguments(), everything),
            self.constant(self.source(_anchor(s))),
            ast.Constant(self.fenced),
            ast.Tuple([ast.Constant(n) for n in sorted(lenient)], ast.Load()),
            ast.Constant(matter),
            ast.Tuple([ast.Constant(n) for n in names if n in self.given], ast.Load()),
            ast.Tuple([ast.Constant(n) for n in sorted(filled)], ast.Load()),
            ast.Tuple([ast.Constant(n) for n in roots], ast.Load()),
            at=s,
        )
        return [_function(get, [getter], s), _function(put, setter, s, value)], scope


def _anchor(s: ast.stmt) -> ast.AST:
    """The expression that decides."""
    if isinstance(s, ast.For):
        return s.iter
    return s.test if isinstance(s, ast.If | ast.While) else s


def _bound_value(name: str) -> ast.expr:
    read = ast.Lambda(_arguments(), ast.Name(name, ast.Load()))
    return ast.Call(ast.Attribute(ast.Constant(MODULE), "bind", ast.Load()), [read], [])


def _not(flag: str, at: ast.AST) -> ast.expr:
    return _at_expression(at, ast.UnaryOp(ast.Not(), ast.Name(flag, ast.Load())))


def _load(name: str, at: ast.AST) -> ast.expr:
    return _at_expression(at, ast.Name(name, ast.Load()))


def _at_expression(at: ast.AST, node: ast.expr) -> ast.expr:
    return ast.fix_missing_locations(ast.copy_location(node, at))


def _at(at: ast.AST, node: Any) -> Any:
    return ast.fix_missing_locations(ast.copy_location(node, at))


def _ends_with_return(statements: Sequence[ast.stmt]) -> bool:
    """Whether a branch ends the function."""
    if not statements:
        return False
    last = statements[-1]
    if isinstance(last, ast.If):
        return _ends_with_return(last.body) or _ends_with_return(last.orelse)
    if isinstance(last, ast.With):
        return _ends_with_return(last.body)
    if isinstance(last, ast.Match):
        return any(_ends_with_return(c.body) for c in last.cases)
    return isinstance(last, ast.Return)


def _ends_with_raise(statements: Sequence[ast.stmt]) -> bool:
    return bool(statements) and isinstance(statements[-1], ast.Raise | ast.Assert)


def _star_in(targets: Sequence[ast.expr]) -> tuple[int, int] | None:
    """How many targets stand before and behind a star, of a single nest of targets."""
    (target,) = targets if len(targets) == 1 else (None,)
    if isinstance(target, ast.Tuple | ast.List):
        for index, element in enumerate(target.elts):
            if isinstance(element, ast.Starred):
                return index, len(target.elts) - index - 1
    return None


def _unstarred(target: ast.expr) -> ast.expr:
    assert isinstance(target, ast.Tuple | ast.List)
    names = [e.value if isinstance(e, ast.Starred) else e for e in target.elts]
    return _at(target, ast.Tuple(names, ast.Store()))


def _is_nested_place(target: ast.expr) -> bool:
    """Whether ``x[i][j]`` or ``x[i].name`` is in an object at a run-time position."""
    return isinstance(target, ast.Subscript | ast.Attribute) and is_run_time_place(
        target.value, constant=True
    )


def _parameter_names(args: ast.arguments) -> set[str]:
    names = {a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)}
    return names | {a.arg for a in (args.vararg, args.kwarg) if a is not None}


def _declared_outer(node: ast.FunctionDef) -> set[str]:
    """Names of functions around this one that it rebinds."""
    found: set[str] = set()
    pending: list[ast.AST] = list(node.body)
    while pending:
        child = pending.pop()
        if isinstance(child, ast.Nonlocal):
            found.update(child.names)
        elif not isinstance(
            child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef
        ):
            pending += list(ast.iter_child_nodes(child))
    return found


def _is_generator(node: ast.FunctionDef) -> bool:
    pending: list[ast.AST] = list(node.body)
    while pending:
        child = pending.pop()
        if isinstance(child, ast.Yield | ast.YieldFrom):
            return True
        if not isinstance(
            child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef
        ):
            pending += list(ast.iter_child_nodes(child))
    return False


def convert_function(
    node: ast.FunctionDef,
    constant: Callable[[Any], ast.expr],
    source: Callable[[ast.AST], Source],
) -> ast.FunctionDef:
    """The function with staged control flow; generators stay as they are.

    Args:
        node: The definition; it is changed.
        constant: Makes a placeholder that stands for an object in the code to be made.
        source: The position of a node.
    """
    if not _is_generator(node):
        mark_kept(node.body)
        node.body = StatementConverter(node, constant, source).convert()
    return node
