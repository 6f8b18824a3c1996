"""``match`` becomes a chain of ``if``: each pattern is a test that binds its names on the way."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MODULE", "pattern_test"]

MODULE = "__bridge_staged__"  # stands for the module of staged operators until code is made


def pattern_test(pattern: ast.pattern, subject: ast.expr) -> ast.expr | None:
    """Whether ``subject`` has a pattern, as an expression that also binds the pattern's names.

    Args:
        pattern: The pattern.
        subject: An expression that may be evaluated several times.

    Returns:
        None if the pattern matches everything and binds nothing.
    """
    if isinstance(pattern, ast.MatchValue):
        return ast.Compare(subject, [ast.Eq()], [pattern.value])
    if isinstance(pattern, ast.MatchSingleton):
        return _call("is_constant", subject, ast.Constant(pattern.value))
    if isinstance(pattern, ast.MatchOr):
        tests = [pattern_test(p, subject) for p in pattern.patterns]
        known = [t for t in tests if t is not None]
        return None if len(known) < len(tests) else ast.BoolOp(ast.Or(), known)
    if isinstance(pattern, ast.MatchAs):
        inner = None if pattern.pattern is None else pattern_test(pattern.pattern, subject)
        return _all([inner, _binding(pattern.name, subject)])
    if isinstance(pattern, ast.MatchSequence):
        return _sequence(pattern, subject)
    if isinstance(pattern, ast.MatchMapping):
        return _mapping(pattern, subject)
    assert isinstance(pattern, ast.MatchClass)
    return _class(pattern, subject)


def _sequence(pattern: ast.MatchSequence, subject: ast.expr) -> ast.expr | None:
    patterns = pattern.patterns
    star = next((i for i, p in enumerate(patterns) if isinstance(p, ast.MatchStar)), None)
    count = len(patterns) - (star is not None)
    tests: list[ast.expr | None] = [
        _call("is_sequence", subject, ast.Constant(count), ast.Constant(star is not None))
    ]
    for index, part in enumerate(patterns):
        if isinstance(part, ast.MatchStar):
            stop = index - count
            bounds = ast.Slice(ast.Constant(index), ast.Constant(stop) if stop else None)
            cut = _call("as_list", ast.Subscript(subject, bounds, ast.Load()))
            tests.append(_binding(part.name, cut))
        else:
            place = index if star is None or index < star else index - len(patterns)
            item = ast.Subscript(subject, ast.Constant(place), ast.Load())
            tests.append(pattern_test(part, item))
    return _all(tests)


def _mapping(pattern: ast.MatchMapping, subject: ast.expr) -> ast.expr | None:
    keys = ast.Tuple(list(pattern.keys), ast.Load())
    tests: list[ast.expr | None] = [_call("is_mapping", subject, keys)]
    for key, part in zip(pattern.keys, pattern.patterns, strict=True):
        tests.append(pattern_test(part, ast.Subscript(subject, key, ast.Load())))
    tests.append(_binding(pattern.rest, _call("without_keys", subject, keys)))
    return _all(tests)


def _class(pattern: ast.MatchClass, subject: ast.expr) -> ast.expr | None:
    names = ast.Tuple([ast.Constant(n) for n in pattern.kwd_attrs], ast.Load())
    count = ast.Constant(len(pattern.patterns))
    tests: list[ast.expr | None] = [_call("is_instance_of", subject, pattern.cls, count, names)]
    for index, part in enumerate(pattern.patterns):
        item = _call("positional_attribute", subject, pattern.cls, ast.Constant(index))
        tests.append(pattern_test(part, item))
    for name, part in zip(pattern.kwd_attrs, pattern.kwd_patterns, strict=True):
        tests.append(pattern_test(part, ast.Attribute(subject, name, ast.Load())))
    return _all(tests)


def _binding(name: str | None, value: ast.expr) -> ast.expr | None:
    """``name := value``, always true."""
    if name is None:
        return None
    return _call("always", ast.NamedExpr(ast.Name(name, ast.Store()), value))


def _all(tests: Iterable[ast.expr | None]) -> ast.expr | None:
    known = [t for t in tests if t is not None]
    if not known:
        return None
    return known[0] if len(known) == 1 else ast.BoolOp(ast.And(), known)


def _call(name: str, *args: Any) -> ast.expr:
    return ast.Call(ast.Attribute(ast.Constant(MODULE), name, ast.Load()), list(args), [])
