"""Nests of tensors: taken apart into named leaves and put together again, any container kept.

Lists, tuples, named tuples, dicts, dataclasses and mappings that are dataclasses (transformers'
``ModelOutput``) are taken apart by their items; any other object that holds a leaf somewhere in its
attributes (``DynamicCache``) by these. What holds no leaf stays as it is.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Tree", "emptied", "flatten", "shallow"]

_OPAQUE = (type, types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType,
           enum.Enum)  # fmt: skip
_ATOMS = (int, float, complex, str, bytes, type(None))


@dataclasses.dataclass(frozen=True, slots=True)
class Tree:
    """The structure around leaves.

    Attributes:
        kind: ``leaf``, ``static``, ``list``, ``tuple``, ``namedtuple``, ``dict``, ``dataclass`` or
            ``object``.
        original: The container, or the static value itself.
        keys: Index, key or attribute of each child.
        children: The structures inside.
    """

    kind: str
    original: Any = None
    keys: tuple[Any, ...] = ()
    children: tuple[Tree, ...] = ()

    @property
    def leaf_count(self) -> int:
        """How many leaves are below this node."""
        return 1 if self.kind == "leaf" else sum(c.leaf_count for c in self.children)

    def paths(self, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """The keys that lead to each leaf, in order."""
        if self.kind == "leaf":
            yield prefix
        for key, child in zip(self.keys, self.children, strict=True):
            yield from child.paths((*prefix, key))

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """Put ``leaves`` into new containers of the original types."""
        remaining = iter(leaves)
        return self._build(remaining)

    def _build(self, leaves: Iterator[Any]) -> Any:
        if self.kind == "leaf":
            return next(leaves)
        if self.kind == "static":
            return self.original
        items = [child._build(leaves) for child in self.children]
        original = self.original
        if self.kind == "list":
            return items if type(original) is list else _refill(original, items)
        if self.kind == "tuple":
            return tuple(items) if type(original) is tuple else type(original)(items)
        if self.kind == "namedtuple":
            return type(original)(*items)
        if self.kind == "dict":
            pairs = dict(zip(self.keys, items, strict=True))
            if type(original) is dict:
                return pairs
            new = copy.copy(original)
            for key, item in pairs.items():
                new[key] = item
            return new
        if self.kind == "dataclass":
            return _with_fields(original, dict(zip(self.keys, items, strict=True)))
        new = copy.copy(original)
        for key, item in zip(self.keys, items, strict=True):
            object.__setattr__(new, key, item)
        return new

    def describe(self) -> Any:
        """The structure as JSON: containers by kind, leaves as ``"*"``, other things as their repr."""
        if self.kind == "leaf":
            return "*"
        if self.kind == "static":
            plain = isinstance(self.original, int | float | str | bool | None)
            return {"static": self.original if plain else repr(self.original)}
        kind = {"object": "dict", "dataclass": "dict", "namedtuple": "tuple"}.get(
            self.kind, self.kind
        )
        if kind == "dict":
            return {
                "kind": "dict",
                "items": [
                    [k if isinstance(k, int | str) else repr(k), c.describe()]
                    for k, c in zip(self.keys, self.children, strict=True)
                ],
            }
        return {"kind": kind, "items": [c.describe() for c in self.children]}


def from_description(described: Any) -> Tree:
    """The tree that :meth:`Tree.describe` described, of plain containers."""
    if described == "*":
        return Tree("leaf")
    if "static" in described:
        return Tree("static", described["static"])
    if described["kind"] == "dict":
        keys = tuple(k for k, _ in described["items"])
        return Tree("dict", {}, keys, tuple(from_description(d) for _, d in described["items"]))
    children = tuple(from_description(d) for d in described["items"])
    empty: Any = [] if described["kind"] == "list" else ()
    return Tree(described["kind"], empty, tuple(range(len(children))), children)


def emptied(original: dict[Any, Any]) -> dict[Any, Any]:
    """A dict of the same type without keys."""
    new = copy.copy(original)
    new.clear()
    return new


def _refill(original: Any, items: list[Any]) -> Any:
    new = copy.copy(original)
    new[:] = items
    return new


def _with_fields(original: Any, changed: dict[str, Any]) -> Any:
    """A shallow copy of a dataclass with other field values, frozen ones and mappings included."""
    if isinstance(original, dict):  # transformers' ModelOutput keeps items and fields in step
        cls: Any = type(original)
        return cls(
            **{
                **{name: getattr(original, name) for name in cls.__dataclass_fields__},
                **changed,
            }
        )
    new = copy.copy(original)
    for name, item in changed.items():
        object.__setattr__(new, name, item)
    return new


def flatten(tree: Any, is_leaf: Callable[[Any], bool]) -> tuple[list[Any], Tree]:
    """The leaves of a nest, in order, and the structure around them."""
    leaves: list[Any] = []
    return leaves, _flatten(tree, is_leaf, leaves, set())


def _flatten(x: Any, is_leaf: Callable[[Any], bool], leaves: list[Any], parents: set[int]) -> Tree:
    if is_leaf(x):
        leaves.append(x)
        return Tree("leaf")
    if isinstance(x, (*_ATOMS, *_OPAQUE)) or id(x) in parents:
        return Tree("static", x)
    kind, items = _items(x)
    if not items:
        return Tree("static", x) if kind == "object" else Tree(kind, x)
    parents = parents | {id(x)}
    before = len(leaves)
    children = tuple(_flatten(item, is_leaf, leaves, parents) for _, item in items)
    if kind in ("object", "dataclass"):  # only what leads to a leaf is rebuilt
        if len(leaves) == before:
            return Tree("static", x)
        kept = [(k, c) for (k, _), c in zip(items, children, strict=True) if c.leaf_count]
        return Tree(kind, x, tuple(k for k, _ in kept), tuple(c for _, c in kept))
    return Tree(kind, x, tuple(k for k, _ in items), children)


def shallow(x: Any) -> tuple[str, list[tuple[Any, Any]]]:
    """The kind of a container, as in :class:`Tree`, and what it holds by key; nothing for an atom."""
    if isinstance(x, (*_ATOMS, *_OPAQUE)):
        return "object", []
    return _items(x)


def _items(x: Any) -> tuple[str, list[tuple[Any, Any]]]:
    if dataclasses.is_dataclass(x):
        names = [f.name for f in dataclasses.fields(x)]
        return "dataclass", [(n, getattr(x, n)) for n in names if hasattr(x, n)]
    if isinstance(x, dict):
        return "dict", list(x.items())
    if isinstance(x, tuple):
        if hasattr(x, "_fields"):
            return "namedtuple", list(zip(x._fields, x, strict=True))
        return "tuple", list(enumerate(x))
    if isinstance(x, list):
        return "list", list(enumerate(x))
    attributes = getattr(x, "__dict__", None)
    if attributes is None or callable(x):
        return "object", []
    return "object", list(attributes.items())
