"""Which other sizes eager code accepts, found by running it."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING

from exporters.errors import DynamicShapeError
from exporters.tracing.worlds import Symbol, candidate_sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["accepted_sizes", "every_dim"]

_TRIES = 16  # sizes per dim; eager code that accepts none of them has a fixed size there
_MANY = 16  # dims above which unnamed ones of one size and axis are tried together first


def every_dim(names: Sequence[str], shapes: Sequence[tuple[int, ...] | None]) -> list[Symbol]:
    """A symbol for every dim of every input, each of them free to stay static."""
    return [
        Symbol(f"{name}_dim_{axis}", size, [(index, axis)], optional=True, named=False)
        for index, (name, shape) in enumerate(zip(names, shapes, strict=True))
        for axis, size in enumerate(shape or ())
    ]


def accepted_sizes(
    symbols: Sequence[Symbol],
    taken: set[int],
    error_of: Callable[[Sequence[Symbol], Mapping[str, int]], Exception | None],
) -> tuple[list[Symbol], dict[str, int]]:
    """The dims that can vary, with another size for each.

    Dims are varied one at a time. Unnamed ones that eager rejects alone are varied together with
    those of the same size, on the same axis first, and become one dim when that is accepted.

    Args:
        symbols: The dims that were declared dynamic.
        taken: Sizes that no dynamic dim should have.
        error_of: What eager raises for other sizes of some symbols; None if it accepts them.

    Raises:
        DynamicShapeError: A dim that must vary cannot, or not together with the others.
    """
    kept: list[Symbol] = []
    sizes: dict[str, int] = {}
    used = set(taken)

    def accept(symbol: Symbol) -> bool:
        options = [n for n in candidate_sizes(symbol) if n not in used]
        for size in itertools.islice(options, _TRIES):
            if error_of([symbol], {symbol.name: size}) is None:
                kept.append(symbol)
                sizes[symbol.name] = size
                used.add(size)
                return True
        return False

    pending = list(symbols)
    if len(pending) > _MANY:
        pending = _merged(pending, lambda s: (s.size, s.places[0][1]))
    rejected = [s for s in pending if not accept(s)]
    for key in (_size_and_axis, _size):
        merged = [s for s in _merged(rejected, key) if s not in rejected]
        for symbol in merged:
            if accept(symbol):
                rejected = [s for s in rejected if not set(s.places) <= set(symbol.places)]
    for symbol in rejected:
        if not symbol.optional:
            raise _frozen(symbol, error_of)
    if not kept or error_of(kept, sizes) is None:
        return kept, sizes
    return _together(kept, sizes, used, error_of)


def _size_and_axis(symbol: Symbol) -> tuple[int, ...]:
    return symbol.size, symbol.places[0][1]


def _size(symbol: Symbol) -> tuple[int, ...]:
    return (symbol.size,)


def _merged(symbols: Iterable[Symbol], key: Callable[[Symbol], tuple[int, ...]]) -> list[Symbol]:
    """Unnamed symbols with equal keys as one; the others as they are."""
    groups: dict[tuple[int, ...], list[Symbol]] = {}
    result: list[Symbol] = []
    for symbol in symbols:
        if symbol.named:
            result.append(symbol)
        else:
            groups.setdefault(key(symbol), []).append(symbol)
    for group in groups.values():
        first = group[0]
        if len(group) > 1:
            first = dataclasses.replace(
                first,
                places=[p for s in group for p in s.places],
                minimum=max(s.minimum for s in group),
                maximum=min((s.maximum for s in group if s.maximum is not None), default=None),
                optional=all(s.optional for s in group),
            )
        result.append(first)
    return result


def _frozen(
    symbol: Symbol, error_of: Callable[[Sequence[Symbol], Mapping[str, int]], Exception | None]
) -> DynamicShapeError:
    size = next(iter(candidate_sizes(symbol)), symbol.size)
    error = error_of([symbol], {symbol.name: size})
    return DynamicShapeError(
        f"dim {symbol.name!r} is declared dynamic, but eager accepts only {symbol.size}: "
        f"{type(error).__name__}: {error}",
        hint="leave it out of dynamic_shapes, give dims that must be equal the same name, or pass "
        "examples= with sizes that the model accepts",
    )


def _together(
    kept: list[Symbol],
    sizes: dict[str, int],
    used: set[int],
    error_of: Callable[[Sequence[Symbol], Mapping[str, int]], Exception | None],
) -> tuple[list[Symbol], dict[str, int]]:
    """Each dim can vary alone but not all at once: dims that broadcast against each other."""
    problem = error_of(kept, sizes)
    for key in (_size_and_axis, _size):
        merged = _merged(kept, key)
        chosen: dict[str, int] = {}
        free = set(used)
        for symbol in merged:
            size = sizes.get(symbol.name)
            if size is None or size in chosen.values():
                size = next((n for n in candidate_sizes(symbol) if n not in free), symbol.size)
            free.add(size)
            chosen[symbol.name] = size
        if len(merged) < len(kept) and error_of(merged, chosen) is None:
            return merged, chosen
    firm = [s for s in kept if not s.optional]
    firm_sizes = {s.name: sizes[s.name] for s in firm}
    if firm != kept and error_of(firm, firm_sizes) is None:
        return firm, firm_sizes
    raise DynamicShapeError(
        "eager accepts another size for each dynamic dim alone, but not for all at once: "
        f"{type(problem).__name__}: {problem}",
        hint="pass examples=[...] with two sets of sizes that the model accepts",
    )
