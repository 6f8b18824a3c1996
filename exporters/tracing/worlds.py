"""Which dims vary, and the sizes that each world gives them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from exporters.errors import DynamicShapeError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = [
    "Symbol",
    "are_sides",
    "candidate_sizes",
    "first_sizes",
    "oblong",
    "parse_dynamic_shapes",
    "smaller_sizes",
    "unseen_sizes",
]


@dataclasses.dataclass(slots=True)
class Symbol:
    """A dynamic dim of the inputs.

    Attributes:
        name: What the graph calls it.
        size: Its size in the example.
        places: The ``(leaf, axis)`` pairs that have this size.
        minimum: Smallest size that the user declared.
        maximum: Largest size that the user declared.
        optional: The user left it to the exporter whether it varies (``Dim.AUTO``).
        named: The user named it, so that equal names mean equal sizes and others may differ.
    """

    name: str
    size: int
    places: list[tuple[int, int]]
    minimum: int = 0
    maximum: int | None = None
    optional: bool = False
    named: bool = True

    def allows(self, size: int) -> bool:
        """Whether ``size`` is within the declared bounds."""
        return self.minimum <= size and (self.maximum is None or size <= self.maximum)


def candidate_sizes(symbol: Symbol) -> Iterator[int]:
    """Other sizes for a dim, the most telling first.

    A size must not only differ from the example's: its halves, quarters and so on must differ too,
    or else ``n // 2`` would look constant. So a small dim is about doubled, of a large one about a
    third is taken (a multiple of the same power of two, since eager code often asks for one; less
    than half, since eager code runs on it). Never 1, which broadcasts.
    """
    n = symbol.size
    step = 1
    while n % (step * 2) == 0 and step < 32:
        step *= 2
    if n >= 64:
        near = max(1, n // 3 // step)
        wanted = [k * step for k in (near, near + 1, near - 1, near + 2)]
        wanted += [2 * n, n // 2 + 1, n + step, n - step, n + 1, n - 1]
    else:
        wanted = [2 * n + 1, 2 * n, 3 * n, 2 * n + 3, 4 * n, 5 * n, 2 * n + 2, n + 2, n + 3]
        wanted += [n + 1, n - 1, n // 2, 7, 5, 3, 2]
    seen = {n}
    for size in wanted:
        if size > 1 and size not in seen and symbol.allows(size):
            seen.add(size)
            yield size


def first_sizes(symbols: Sequence[Symbol], taken: set[int]) -> dict[str, int]:
    """One new size per symbol, each of its own and unlike any in ``taken``.

    An image that is wider than high becomes one that is higher than wide, or else the shorter side
    of the example would be the shorter side of all images.
    """
    chosen: dict[str, int] = {}
    used = set(taken)
    for symbol in symbols:
        options = list(candidate_sizes(symbol))
        if not options:
            raise DynamicShapeError(
                f"dim {symbol.name!r} is declared dynamic, but {symbol.size} is the only size above 1 "
                f"between its bounds {symbol.minimum} and {symbol.maximum}",
                hint="widen its bounds, or leave it out of dynamic_shapes",
            )
        free = [s for s in options if s not in used] or options
        other = next((s for s in symbols if s.name in chosen and are_sides(s, symbol)), None)
        if other is not None and other.size != symbol.size:
            wider = symbol.size > other.size
            turned = [s for s in free if (s > chosen[other.name]) is not wider]
            if not turned:  # the other side can be larger or smaller yet
                turned = free[:1]
                again = [s for s in candidate_sizes(other) if s not in used and s != free[0]]
                beyond = [s for s in again if (free[0] > s) is not wider]
                chosen[other.name] = beyond[0] if beyond else chosen[other.name]
                used.add(chosen[other.name])
            free = turned
        used.add(free[0])
        chosen[symbol.name] = free[0]
    return chosen


def unseen_sizes(symbol: Symbol, seen: Collection[int]) -> list[int]:
    """Other sizes for a dim, the smallest first; its own if there are none."""
    options = [1, *candidate_sizes(symbol)] if symbol.allows(1) else [*candidate_sizes(symbol)]
    return sorted({n for n in options if n not in seen}) or [symbol.size]


def smaller_sizes(
    symbols: Sequence[Symbol], seen: Mapping[str, Collection[int]]
) -> dict[str, int]:
    """For small dims 1, for large ones a size below the example's; images are as high as wide.

    Args:
        symbols: The dynamic dims.
        seen: The sizes that worlds gave to each dim.
    """
    sizes: dict[str, int] = {}
    for symbol in symbols:
        unseen = unseen_sizes(symbol, seen[symbol.name])
        below = [n for n in unseen if n <= symbol.size] or [symbol.size]
        sizes[symbol.name] = below[0] if symbol.size < 16 else below[-1]
    for first, second in oblong(symbols):
        size = sizes[first.name]
        if size > 1 and second.allows(size):
            sizes[second.name] = size
    return sizes


def oblong(symbols: Sequence[Symbol]) -> list[tuple[Symbol, Symbol]]:
    """The pairs of dims that are an image's sides, of different lengths in the example."""
    pairs = itertools.combinations(symbols, 2)
    return [(a, b) for a, b in pairs if a.size != b.size and are_sides(a, b)]


def are_sides(first: Symbol, second: Symbol) -> bool:
    """Whether two dims are the height and width of one input."""
    places = set(first.places)
    return any(axis > 1 and (leaf, axis - 1) in places for leaf, axis in second.places)


def parse_dynamic_shapes(
    spec: Any,
    names: Sequence[str],
    paths: Sequence[tuple[Any, ...]],
    shapes: Sequence[tuple[int, ...] | None],
) -> list[Symbol]:
    """The dynamic dims that a ``dynamic_shapes`` or ``dynamic_axes`` argument declares.

    Args:
        spec: Nested like the inputs; at a tensor a dict ``{axis: dim}`` or a sequence of dims, where
            a dim is a name, a ``torch.export.Dim``, ``Dim.AUTO``/``DYNAMIC``/``STATIC``, an int or
            None. In the ``dynamic_axes`` style keys are flat input names and ``[0, 1]`` names axes.
        names: Flat input names.
        paths: The keys that lead to each leaf, argument name first.
        shapes: The example's shape of each leaf; None for numbers.

    Raises:
        DynamicShapeError: It names an input or an axis that does not exist, or disagrees with the
            example.
    """
    if spec is None:
        return []
    symbols: dict[str, Symbol] = {}
    if isinstance(spec, Sequence) and not isinstance(spec, str):
        arguments = list(dict.fromkeys(p[0] for p in paths))
        if len(spec) > len(arguments):
            raise DynamicShapeError(
                f"dynamic_shapes has {len(spec)} entries, the model takes {len(arguments)} inputs: "
                f"{', '.join(arguments)}"
            )
        spec = dict(zip(arguments, spec, strict=False))
    if not isinstance(spec, Mapping):
        raise DynamicShapeError(f"dynamic_shapes is a {type(spec).__name__}, not a dict or tuple")
    for key, entry in spec.items():
        _declare(key, entry, names, paths, shapes, symbols)
    return list(symbols.values())


def _declare(
    key: Any,
    entry: Any,
    names: Sequence[str],
    paths: Sequence[tuple[Any, ...]],
    shapes: Sequence[tuple[int, ...] | None],
    symbols: dict[str, Symbol],
) -> None:
    flat = {name: i for i, name in enumerate(names)}
    if key in flat and not any(len(p) > 1 and p[0] == key for p in paths):
        _declare_leaf(flat[key], entry, names, shapes, symbols)
        return
    below = [i for i, p in enumerate(paths) if p[0] == key]
    if not below:
        if key in flat:
            _declare_leaf(flat[key], entry, names, shapes, symbols)
            return
        raise DynamicShapeError(
            f"dynamic_shapes names {key!r}; the model's inputs are {', '.join(map(repr, names))}"
        )
    _descend(entry, [(i, paths[i][1:]) for i in below], str(key), names, shapes, symbols)


def _descend(
    entry: Any,
    leaves: list[tuple[int, tuple[Any, ...]]],
    where: str,
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...] | None],
    symbols: dict[str, Symbol],
) -> None:
    if entry is None:
        return
    if len(leaves) == 1 and not leaves[0][1]:
        _declare_leaf(leaves[0][0], entry, names, shapes, symbols)
        return
    groups: dict[Any, list[tuple[int, tuple[Any, ...]]]] = {}
    for index, path in leaves:
        groups.setdefault(path[0], []).append((index, path[1:]))
    if isinstance(entry, Mapping):
        unknown = [k for k in entry if k not in groups]
        if unknown:
            if len(groups) == 1:  # an object's only attribute, left out by the user
                only = next(iter(groups))
                _descend(entry, groups[only], f"{where}.{only}", names, shapes, symbols)
                return
            raise DynamicShapeError(
                f"dynamic_shapes names {unknown[0]!r} in {where!r}, which holds "
                f"{', '.join(map(repr, groups))}"
            )
        pairs = list(entry.items())
    elif isinstance(entry, Sequence) and not isinstance(entry, str):
        if len(groups) == 1 and len(entry) != 1:
            only = next(iter(groups))
            _descend(entry, groups[only], f"{where}.{only}", names, shapes, symbols)
            return
        if len(entry) != len(groups):
            raise DynamicShapeError(
                f"dynamic_shapes has {len(entry)} entries for {where!r}, which holds {len(groups)}: "
                f"{', '.join(map(repr, groups))}"
            )
        pairs = list(zip(groups, entry, strict=True))
    else:
        raise DynamicShapeError(
            f"dynamic_shapes for {where!r} is {entry!r}; it holds {', '.join(map(repr, groups))}",
            hint=f"name the dims of each tensor in it: {{{next(iter(groups))!r}: {{0: {entry!r}}}}}",
        )
    for key, below in pairs:
        _descend(below, groups[key], f"{where}.{key}", names, shapes, symbols)


def _declare_leaf(
    index: int,
    entry: Any,
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...] | None],
    symbols: dict[str, Symbol],
) -> None:
    name, shape = names[index], shapes[index]
    if entry is None:
        return
    if shape is None:
        raise DynamicShapeError(f"input {name!r} is a number: it has no dims to make dynamic")
    rank = len(shape)
    if isinstance(entry, Mapping):
        pairs = list(entry.items())
    elif all(isinstance(i, int) for i in entry) and tuple(entry) != shape:
        pairs = [(i, f"{name}_dim_{i}") for i in entry]  # dynamic_axes={"x": [0, 2]}
    else:
        if len(entry) != rank:
            raise DynamicShapeError(
                f"dynamic_shapes gives {len(entry)} dims for {name!r}, which has {rank}: {list(shape)}"
            )
        pairs = list(enumerate(entry))
    for axis, dim in pairs:
        if not isinstance(axis, int) or not -rank <= axis < rank:
            raise DynamicShapeError(
                f"dynamic_shapes names axis {axis!r} of {name!r}, which has {rank} dims: {list(shape)}"
            )
        _declare_dim(index, axis % rank, dim, name, shape, symbols)


def _declare_dim(
    index: int, axis: int, dim: Any, name: str, shape: tuple[int, ...], symbols: dict[str, Symbol]
) -> None:
    size = shape[axis]
    hint = "" if isinstance(dim, str | int) else str(getattr(dim, "type", ""))  # Dim.AUTO and kin
    if dim is None or "STATIC" in hint:
        return
    if isinstance(dim, int):
        if dim != size:
            raise DynamicShapeError(
                f"dynamic_shapes says that dim {axis} of {name!r} is {dim}; in the example it is {size}"
            )
        return
    automatic = "AUTO" in hint or "DYNAMIC" in hint
    if automatic:
        symbol_name = f"{name}_dim_{axis}"
    else:
        symbol_name = dim if isinstance(dim, str) else getattr(dim, "__name__", str(dim))
    symbol = symbols.get(symbol_name)
    if symbol is None:
        symbols[symbol_name] = Symbol(
            name=symbol_name,
            size=size,
            places=[(index, axis)],
            minimum=getattr(dim, "min", None) or 0,
            maximum=getattr(dim, "max", None),
            optional="AUTO" in hint,
            named=not automatic,
        )
        return
    if symbol.size != size:
        raise DynamicShapeError(
            f"dim {symbol_name!r} is {symbol.size} in one input and {size} in {name!r} dim {axis}"
        )
    symbol.places.append((index, axis))
