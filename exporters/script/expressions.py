"""Expressions whose evaluation Python would decide: they become calls of staged operators."""

from __future__ import annotations

import ast
import builtins
import itertools
import math
from typing import TYPE_CHECKING

from exporters.script.names import LIST_METHODS
from exporters.script.patterns import MODULE
from exporters.script.structure import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MODULE", "ExpressionConverter", "is_key", "is_run_time_place", "staged_call"]


_COMPARISONS = {
    ast.Eq: "eq", ast.NotEq: "ne", ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge",
    ast.In: "in", ast.NotIn: "not_in", ast.Is: "is", ast.IsNot: "is_not",
}  # fmt: skip
# Operators by which a float takes a traced int for a plain one: only a float's own subclass is asked first.
_ARITHMETIC = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "truediv", ast.FloorDiv: "floordiv",
    ast.Mod: "mod", ast.Pow: "pow", ast.BitOr: "or",
}  # fmt: skip
_BUILTINS = frozenset({
    "abs", "all", "any", "bool", "deque", "divmod", "enumerate", "float", "getattr", "hasattr", "int",
    "isinstance", "len", "list", "max", "min", "print", "range", "reversed", "round", "set", "sorted", "sum",
    "tuple", "zip", "map", "filter", "iter", "next", "type",
})  # fmt: skip
_LIBRARY = frozenset({
    "accumulate", "chain", "combinations", "count", "cycle", "deque", "islice", "pairwise", "product",
    "reduce", "repeat", "starmap", "takewhile", "heapify", "heappop", "heappush", "bisect", "bisect_left",
    "bisect_right", "insort", "insort_left", "insort_right", "nlargest", "nsmallest", "zip_longest",
    "groupby", "Counter",
})  # fmt: skip
# Of lists: they compare items; of deques, which are lists; of dicts, whose keys may be missing.
_METHODS = frozenset({
    "count", "index", "sort", "appendleft", "extendleft", "popleft", "get", "items", "keys", "pop",
    "setdefault", "update", "values",
})  # fmt: skip
_MATH = frozenset(name for name in dir(math) if not name.startswith("_"))


def staged_call(name: str, *args: ast.expr, at: ast.AST, **keywords: ast.expr) -> ast.Call:
    """A call of a staged operator."""
    function = ast.Attribute(ast.Constant(MODULE), name, ast.Load())
    call = ast.Call(function, list(args), [ast.keyword(k, v) for k, v in keywords.items()])
    return ast.fix_missing_locations(ast.copy_location(call, at))


def _parameters(*names: str) -> ast.arguments:
    return ast.arguments([], [ast.arg(n) for n in names], None, [], [], None, [])


def _has_walrus(node: ast.AST) -> bool:
    return any(isinstance(n, ast.NamedExpr) for n in ast.walk(node))


def _has_effect(node: ast.AST) -> bool:
    """Whether a converted expression calls what may change an object: ``xs.pop()``, ``visit(x)``."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call):
            f = call.func
            if isinstance(f, ast.Call):  # of what ``method`` gives
                return True
            if isinstance(f, ast.Attribute) and f.attr in ("invoke", "spread"):
                f = call.args[f.attr == "spread"]
            if isinstance(f, ast.Name) and not hasattr(builtins, f.id):
                return True
            if isinstance(f, ast.Attribute) and not isinstance(f.value, ast.Constant):
                return True
    return False


def _may_ask(function: ast.expr) -> bool:
    """Whether a function may ask what it is given, so that it has to be compiled."""
    if isinstance(function, ast.Name):
        return not hasattr(builtins, function.id)
    return not (isinstance(function, ast.Attribute) and function.attr in LIST_METHODS)


def _staged_operator(name: str, at: ast.AST) -> ast.expr:
    operator = ast.Attribute(ast.Constant(MODULE), name, ast.Load())
    return ast.fix_missing_locations(ast.copy_location(operator, at))


def _is_starred(node: ast.expr) -> bool:
    return isinstance(node, ast.Starred)


class ExpressionConverter(ast.NodeTransformer):
    """Converts one expression at a time.

    Args:
        hoist: Defines a function of an operand, given with the operands hoisted out of it, before the
            current statement and returns its name, and the scope of what it binds and changes; for
            operands that bind names, which a lambda cannot do for the names around it, or that
            call what may change something.
        first_parameter: Name of the function's first parameter, for ``super()``.
    """

    def __init__(
        self,
        hoist: Callable[[ast.expr, list[ast.expr]], tuple[str, ast.expr]],
        first_parameter: str | None,
    ) -> None:
        self._hoist = hoist
        self._first = first_parameter
        self._count = 0
        self._own_scopes = (
            0  # comprehensions and lambdas around: names in them are not the function's
        )

    def convert(self, node: ast.expr) -> ast.expr:
        """The converted expression."""
        result: ast.expr = self.visit(node)
        return result

    def lazy(self, node: ast.expr) -> ast.expr:
        """A function of no arguments that evaluates an (already converted) expression."""
        inner = [vars(n)["operand"] for n in ast.walk(node) if "operand" in vars(n)]
        if (inner or _has_walrus(node) or _has_effect(node)) and not self._own_scopes:
            name, scope = self._hoist(node, inner)
            call = staged_call(
                "Operand", ast.copy_location(ast.Name(name, ast.Load()), node), scope, at=node
            )
            vars(call)["operand"] = ast.Tuple([node, *inner], ast.Load())
            return call
        function = ast.copy_location(ast.Lambda(_parameters(), node), node)
        ast.fix_missing_locations(function)
        if self._own_scopes and _has_effect(node):
            return staged_call("Operand", function, ast.Constant(None), at=node)
        return function

    # Operators

    def test(self, node: ast.expr) -> ast.expr:
        """A converted expression of which only the truth matters."""
        if isinstance(node, ast.BoolOp):
            parts = [self.test(v) for v in node.values]
            name = "and_" if isinstance(node.op, ast.And) else "or_"
            return staged_call(name, parts[0], *(self.lazy(p) for p in parts[1:]), at=node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return staged_call("not_", self.test(node.operand), at=node)
        converted = self.visit(node)
        if isinstance(node, ast.Compare | ast.Constant):
            return converted
        return staged_call("truth", converted, at=node)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        """``a and b``, ``a or b``."""
        values = [self.visit(v) for v in node.values]
        name = "and_" if isinstance(node.op, ast.And) else "or_"
        return staged_call(name, values[0], *(self.lazy(v) for v in values[1:]), at=node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        """``not a``."""
        if isinstance(node.op, ast.Not):
            return staged_call("not_", self.test(node.operand), at=node)
        operand = self.visit(node.operand)
        return ast.copy_location(ast.UnaryOp(node.op, operand), node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        """``a + b``, where ``a`` may be a float."""
        left, right = self.visit(node.left), self.visit(node.right)
        name = _ARITHMETIC.get(type(node.op))
        if name is None or isinstance(right, ast.Constant):
            return ast.copy_location(ast.BinOp(left, node.op, right), node)
        if isinstance(left, ast.Constant) and isinstance(left.value, str) and name == "mod":
            return staged_call("percent", left, right, at=node)
        if isinstance(left, ast.Constant) and not isinstance(left.value, float):
            return ast.copy_location(ast.BinOp(left, node.op, right), node)
        return staged_call("arithmetic", ast.Constant(name), left, right, at=node)

    def beside(self, target: ast.expr, node: ast.expr) -> ast.expr:
        """``b`` of ``a += b``, where ``a`` may be a float."""
        value = self.visit(node)
        if isinstance(node, ast.Constant) or not isinstance(target, ast.Name):
            return value
        read = ast.copy_location(ast.Name(target.id, ast.Load()), target)
        return staged_call("beside", read, value, at=node)

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        """``a if c else b``."""
        then, orelse = self.lazy(self.visit(node.body)), self.lazy(self.visit(node.orelse))
        return staged_call("ifexp", self.test(node.test), then, orelse, at=node)

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        """``a < b < c``."""
        operands = [self.visit(x) for x in (node.left, *node.comparators)]
        if len(node.ops) == 1:
            return self._comparison(node, node.ops[0], *operands)
        parts: list[ast.expr] = []
        for index, op in enumerate(node.ops):
            left, right = operands[index], operands[index + 1]
            if index + 1 < len(node.ops) and not isinstance(right, ast.Constant | ast.Name):
                self._count += 1
                name = f"{PREFIX}compared_{self._count}"
                binding = ast.NamedExpr(ast.Name(name, ast.Store()), right)
                right = ast.fix_missing_locations(ast.copy_location(binding, node))
                operands[index + 1] = ast.copy_location(ast.Name(name, ast.Load()), node)
            parts.append(self._comparison(node, op, left, right))
        return staged_call("and_", parts[0], *(self.lazy(p) for p in parts[1:]), at=node)

    def _comparison(self, at: ast.AST, op: ast.cmpop, left: ast.expr, right: ast.expr) -> ast.expr:
        return staged_call("compare", ast.Constant(_COMPARISONS[type(op)]), left, right, at=at)

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        """``a[b]`` that is read."""
        value, index = self.visit(node.value), self.visit(node.slice)
        if isinstance(node.ctx, ast.Load) and (
            is_key(node.slice) or not _is_plain_index(node.slice)
        ):
            return staged_call("getitem", value, index, at=node)
        return ast.copy_location(ast.Subscript(value, index, node.ctx), node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.expr:
        """``f"{a}b"``."""
        parts: list[ast.expr] = []
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                plain = part.conversion == -1 and part.format_spec is None
                self.generic_visit(part)
                whole = ast.copy_location(ast.JoinedStr([part]), node)
                parts.append(part.value if plain else whole)
            else:
                parts.append(part)
        return staged_call("text", *parts, at=node)

    # Calls

    def visit_Call(self, node: ast.Call) -> ast.expr:
        """``f(a)``, where ``f`` may be a builtin; ``super()``."""
        function = node.func
        is_super = isinstance(function, ast.Name) and function.id == "super"
        if is_super and not node.args and self._first is not None:
            arguments: list[ast.expr] = [
                ast.Name("__class__", ast.Load()),
                ast.Name(self._first, ast.Load()),
            ]
            return ast.fix_missing_locations(
                ast.copy_location(ast.Call(function, arguments, []), node)
            )
        if isinstance(function, ast.Attribute) and is_run_time_place(
            function.value, constant=function.attr in LIST_METHODS
        ):
            return self.within(function.value, lambda item: self._called_on(node, item))
        args = [self.visit(a) for a in node.args]
        if _is_text_format(node):
            assert isinstance(function, ast.Attribute)
            return staged_call("text_format", function.value, *args, at=node)
        keywords = [ast.keyword(k.arg, self.visit(k.value)) for k in node.keywords]
        if isinstance(function, ast.Attribute) and function.attr in _METHODS:
            owner = self.visit(function.value)
            converted = staged_call("method", owner, ast.Constant(function.attr), at=function)
            return ast.fix_missing_locations(
                ast.copy_location(ast.Call(converted, args, keywords), node)
            )
        called: ast.expr = self.visit(function)
        if any(map(_is_starred, args)):
            return self._spread(node, called, args, keywords)
        if any(k.arg is None for k in keywords):
            names: list[ast.expr | None] = [
                None if k.arg is None else ast.Constant(k.arg) for k in keywords
            ]
            given = ast.Dict(names, [k.value for k in keywords])
            return staged_call("with_keys", called, given, *args, at=node)
        if _may_be_builtin(function):
            called = staged_call("call", called, at=function)
        elif _may_ask(function):
            args = [called, *args]
            called = _staged_operator("invoke", function)
        return ast.fix_missing_locations(ast.copy_location(ast.Call(called, args, keywords), node))

    def _called_on(self, node: ast.Call, item: ast.expr) -> ast.expr:
        """The call of a method of what a name stands for."""
        assert isinstance(node.func, ast.Attribute)
        function = ast.copy_location(ast.Attribute(item, node.func.attr, ast.Load()), node.func)
        call = ast.Call(function, node.args, node.keywords)
        converted: ast.expr = self.visit(ast.copy_location(call, node))
        return converted

    def within(self, place: ast.expr, change: Callable[[ast.expr], ast.expr]) -> ast.expr:
        """What is done with ``a[i]``, which may change it.

        Args:
            place: The subscript.
            change: Makes the (converted) expression for what is done with a name.
        """
        assert isinstance(place, ast.Subscript)
        self._count += 1
        name = f"{PREFIX}place_{self._count}"
        self._own_scopes += 1
        try:
            body = change(ast.copy_location(ast.Name(name, ast.Load()), place))
        finally:
            self._own_scopes -= 1
        function = ast.copy_location(ast.Lambda(_parameters(name), body), place)
        index = self.visit(place.slice)

        def at(container: ast.expr) -> ast.expr:
            return staged_call("within", container, index, function, at=place)

        if is_run_time_place(place.value, constant=True):
            return self.within(place.value, at)
        return at(self.visit(place.value))

    def _spread(
        self, at: ast.Call, called: ast.expr, args: list[ast.expr], keywords: list[ast.keyword]
    ) -> ast.expr:
        """``f(a, *b)``."""
        stars = ast.Tuple([ast.Constant(_is_starred(a)) for a in args], ast.Load())
        values = [a.value if isinstance(a, ast.Starred) else a for a in args]
        replace = _staged_operator("call", at)
        call = ast.Call(
            _staged_operator("spread", at), [replace, called, stars, *values], keywords
        )
        return ast.fix_missing_locations(ast.copy_location(call, at))

    # Displays

    def visit_List(self, node: ast.List) -> ast.expr:
        """``[a, *b]``."""
        return self._display(node)

    def visit_Tuple(self, node: ast.Tuple) -> ast.expr:
        """``(a, *b)``."""
        return self._display(node)

    def _display(self, node: ast.List | ast.Tuple) -> ast.expr:
        self.generic_visit(node)
        if not (isinstance(node.ctx, ast.Load) and any(map(_is_starred, node.elts))):
            return staged_call("own", node, at=node) if "kept" in vars(node) else node
        parts: list[ast.expr] = []
        for is_starred, group in itertools.groupby(node.elts, _is_starred):
            if is_starred:
                parts += [e.value for e in group if isinstance(e, ast.Starred)]
            else:
                parts.append(ast.List(list(group), ast.Load()))
        kind = "tuple" if isinstance(node, ast.Tuple) else "list"
        return staged_call("display", ast.Constant(kind), *parts, at=node)

    def visit_Set(self, node: ast.Set) -> ast.expr:
        """``{a, b}``."""
        self.generic_visit(node)
        if "kept" not in vars(node):
            return node
        return staged_call("own_set", ast.List(node.elts, ast.Load()), at=node)

    def visit_SetComp(self, node: ast.SetComp) -> ast.expr:
        """``{f(a) for a in b if c}``."""
        if _has_walrus(node):
            return node  # it binds names around it: left to Python
        items = ast.copy_location(ast.GeneratorExp(node.elt, node.generators), node)
        return staged_call("own_set", self._comprehension(items, "comprehension"), at=node)

    def visit_Dict(self, node: ast.Dict) -> ast.expr:
        """``{a: b, **c}``."""
        self.generic_visit(node)
        if None not in node.keys:
            return node
        parts: list[ast.expr] = []
        pairs = zip(node.keys, node.values, strict=True)
        for is_star, group in itertools.groupby(pairs, lambda pair: pair[0] is None):
            held = list(group)
            if is_star:
                parts += [v for _, v in held]
            else:
                parts.append(ast.Dict([k for k, _ in held], [v for _, v in held]))
        return staged_call("merged_dicts", *parts, at=node)

    # Comprehensions

    def visit_ListComp(self, node: ast.ListComp) -> ast.expr:
        """``[f(a) for a in b if c]``."""
        return self._comprehension(node, "comprehension")

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> ast.expr:
        """``(f(a) for a in b if c)``."""
        return self._comprehension(node, "generator")

    def visit_DictComp(self, node: ast.DictComp) -> ast.expr:
        """``{a: f(a) for a in b if c}``."""
        if _has_walrus(node):
            return node  # it binds names around it: left to Python
        pair = ast.copy_location(ast.Tuple([node.key, node.value], ast.Load()), node)
        pairs = ast.copy_location(ast.GeneratorExp(pair, node.generators), node)
        return self._comprehension(ast.fix_missing_locations(pairs), "mapping")

    def _comprehension(self, node: ast.ListComp | ast.GeneratorExp, operator: str) -> ast.expr:
        if _has_walrus(node):
            return node  # it binds names around it: left to Python
        first = node.generators[0]
        items = self.visit(first.iter)
        self._own_scopes += 1
        try:
            if len(node.generators) > 1:
                inner = ast.copy_location(ast.ListComp(node.elt, node.generators[1:]), node)
                element = self._over(first.target, self._comprehension(inner, "Nested"))
            else:
                element = self._over(first.target, self.visit(node.elt))
            tests = [self._over(first.target, self.visit(t)) for t in first.ifs]
        finally:
            self._own_scopes -= 1
        return staged_call(operator, items, element, *tests, at=node)

    def _over(self, target: ast.expr, body: ast.expr) -> ast.expr:
        """``lambda target: body``, with a target that may be a nest of names."""
        function = _function_of(target, body)
        return ast.fix_missing_locations(ast.copy_location(function, body))

    def visit_Lambda(self, node: ast.Lambda) -> ast.expr:
        """``lambda a: b``; defaults stay as they are."""
        self._own_scopes += 1
        try:
            return ast.copy_location(ast.Lambda(node.args, self.visit(node.body)), node)
        finally:
            self._own_scopes -= 1


def _function_of(target: ast.expr, body: ast.expr) -> ast.Lambda:
    if isinstance(target, ast.Name):
        return ast.Lambda(_parameters(target.id), body)
    if isinstance(target, ast.Tuple | ast.List) and not any(
        isinstance(e, ast.Starred) for e in target.elts
    ):
        names: list[str] = []
        for index, element in enumerate(target.elts):
            if isinstance(element, ast.Name):
                names.append(element.id)
            else:
                name = f"{PREFIX}item_{index}"
                names.append(name)
                inner = _function_of(element, body)
                body = ast.Call(inner, [ast.Name(name, ast.Load())], [])
        whole = ast.Starred(ast.Name(f"{PREFIX}items", ast.Load()), ast.Load())
        call = ast.Call(ast.Lambda(_parameters(*names), body), [whole], [])
        return ast.Lambda(_parameters(f"{PREFIX}items"), call)
    # a starred target: let a comprehension over one item take it apart
    generator = ast.comprehension(
        target, ast.List([ast.Name(f"{PREFIX}items", ast.Load())], ast.Load()), [], 0
    )
    picked = ast.Subscript(ast.ListComp(body, [generator]), ast.Constant(0), ast.Load())
    return ast.Lambda(_parameters(f"{PREFIX}items"), picked)


def is_run_time_place(node: ast.AST, *, constant: bool = False) -> bool:
    """Whether ``x[i]`` may be an item of a list that only run time knows.

    Args:
        node: The expression.
        constant: Whether a constant ``i`` counts, too: something is done with the item.
    """
    if not isinstance(node, ast.Subscript):
        return False
    index = node.slice.operand if isinstance(node.slice, ast.UnaryOp) else node.slice
    plain = (ast.Slice, ast.Tuple) if constant else (ast.Slice, ast.Tuple, ast.Constant)
    return not isinstance(index, plain)


def is_key(index: ast.expr) -> bool:
    """Whether an index is a constant that only dicts have."""
    return isinstance(index, ast.Constant) and isinstance(index.value, str)


def _is_text_format(node: ast.Call) -> bool:
    """Whether a call is ``"a{}".format(b)``."""
    f = node.func
    simple = isinstance(f, ast.Attribute) and isinstance(f.value, ast.Constant)
    if not simple or node.keywords or any(map(_is_starred, node.args)):
        return False
    return isinstance(f.value.value, str) and f.attr == "format"  # type: ignore[attr-defined]


def _is_plain_index(index: ast.expr) -> bool:
    """Whether Python's own indexing will do: slices, tuples and constants are for tensors."""
    if isinstance(index, ast.UnaryOp):
        index = index.operand
    return isinstance(index, ast.Constant | ast.Slice | ast.Tuple)


def _may_be_builtin(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return function.id in _BUILTINS or (
            (function.id in _MATH or function.id in _LIBRARY)
            and not hasattr(builtins, function.id)
        )
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and (function.attr in _MATH or function.attr in _LIBRARY)
    )
