"""What running a body does to Python objects and to memory, and how to take it back.

A staged branch or loop body is run for what it computes, perhaps several times and perhaps for
worlds that do not take it. Whatever it did to names is taken back by the compiled code; what it did
to the contents of lists, dicts and attributes by a :class:`Snapshot`; what it did to arrays in
place by a :class:`MemoryLog`.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import inspect
import itertools
import logging
import operator
import types
from typing import TYPE_CHECKING, Any, Protocol

from exporters.tracing.lists import StagedList, revived
from exporters.tracing.own_lists import ScanList, become, is_own, restore
from exporters.tracing.pytree import shallow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = ["Change", "MemoryLog", "Snapshot", "WrittenMemory", "slots_of"]

_ATOMS = (int, float, complex, str, bytes, bool, type(None), type, types.ModuleType,
          types.BuiltinFunctionType, types.CodeType, range, slice, enum.Enum,
          logging.Logger)  # fmt: skip
_MISSING = object()
_OURS = ("exporters.", "onnx_ir", "torch.", "numpy", "collections")
# nn.Module keeps these, and forward rarely changes them: some libraries add hooks in the first run.
_FIXED = frozenset({
    "_modules", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks",
    "_forward_pre_hooks", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs", "_non_persistent_buffers_set",
    "_is_full_backward_hook",
})  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One place in an object that a body changed.

    Attributes:
        container: A dict (an object's attributes among them), or a list.
        key: Key or index; None for a list whose length changed.
        before: What was there; :attr:`MISSING` if nothing was.
        after: What is there now; :attr:`MISSING` if it was deleted.
        label: How to name the place to the user.
    """

    container: Any
    key: Any
    before: Any
    after: Any
    label: str

    MISSING = _MISSING

    @property
    def is_attribute(self) -> bool:
        """Whether the place is an attribute of an object."""
        return not self.label.endswith("]")

    @property
    def place(self) -> tuple[int, Any]:
        """Identifies the place among the changes of several bodies."""
        return id(self.container), self.key

    def put(self, value: Any) -> None:
        """Set the place to ``value``."""
        if isinstance(self.container, StagedList):
            self.container.assign(value.contents)
        elif isinstance(value, StagedList) and self.key is None:
            become(self.container, value)
        elif self.key is None:
            self.container[:] = value
        elif value is _MISSING:
            self.container.pop(self.key, None)
        else:
            self.container[self.key] = value


class _Slots(dict[str, Any]):
    """The slots of an object as a dict of its attributes."""

    def __init__(self, owner: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self._owner = owner
        self._names = names

    def keys(self) -> Any:
        """The names of the slots that are set."""
        return [n for n in self._names if hasattr(self._owner, n)]

    def items(self) -> Any:
        """What the slots hold."""
        return [(n, getattr(self._owner, n)) for n in self.keys()]

    def get(self, key: str, default: Any = None) -> Any:
        """What a slot holds."""
        return getattr(self._owner, key, default)

    def pop(self, key: str, *default: Any) -> Any:
        """Unset a slot."""
        found = self.get(key, *default)
        if hasattr(self._owner, key):
            delattr(self._owner, key)
        return found

    def clear(self) -> None:
        """Unset all slots."""
        for name in self.keys():
            delattr(self._owner, name)

    def update(self, other: Any) -> None:  # type: ignore[override]
        """Set some slots."""
        for name, value in other.items():
            self[name] = value

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __getitem__(self, key: str) -> Any:
        return getattr(self._owner, key)

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self._owner, key, value)


def _declared_slots(x: Any) -> list[str]:
    declared = [vars(c).get("__slots__", ()) for c in type(x).__mro__]
    names = [n for d in declared for n in ((d,) if isinstance(d, str) else d)]
    return [n for n in names if n not in ("__dict__", "__weakref__") and hasattr(type(x), n)]


def _class_attributes(x: type) -> list[str]:
    """What a user's class holds besides methods."""
    library = x.__module__.split(".")[0] in ("builtins", "torch") or issubclass(x, enum.Enum)
    if library:
        return []
    return [n for n, v in vars(x).items() if not n.startswith("__") and _is_state(v)]


def _is_state(x: Any) -> bool:
    return not callable(x) and not hasattr(x, "__get__")


def slots_of(x: Any) -> _Slots | None:
    """The slots of a user's object, or the attributes of a class, as the same dict each time."""
    from exporters.tracing.trace import Trace  # traces make snapshots

    trace = Trace.current()
    known = None if trace is None else trace.slotted.get(id(x))
    if known is not None:
        return known[1]
    names = _class_attributes(x) if isinstance(x, type) else _declared_slots(x)
    if trace is None or not names or type(x).__module__.startswith(_OURS):
        return None
    trace.slotted[id(x)] = x, _Slots(x, tuple(names))
    return trace.slotted[id(x)][1]


class Snapshot:
    """The contents of every mutable object that is reachable from some roots.

    Args:
        roots: Where to start.
        is_opaque: Objects not to look into (arrays).
        hooks: Whether to note hooks and submodules too.
        names: What the user calls the roots.
    """

    def __init__(
        self,
        roots: Iterable[Any],
        is_opaque: Callable[[Any], bool],
        *,
        hooks: bool = False,
        names: Sequence[str] = (),
    ) -> None:
        self._hooks = hooks
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any], str]] = []
        self._classes: dict[int, type] = {}  # of the objects whose attributes a dict holds
        self._lists: list[tuple[Any, list[Any], str]] = []
        self._sets: list[tuple[set[Any], set[Any]]] = []
        self._kinds: dict[int, type] = {}  # of lists
        self._staged: list[tuple[StagedList, dict[str, Any], str]] = []
        self._seen: set[int] = set()
        self._alive: list[Any] = []
        pending = list(itertools.zip_longest(roots, names, fillvalue=""))[::-1]
        while pending:
            x, label = pending.pop()
            if id(x) in self._seen or is_opaque(x):
                continue
            if isinstance(x, _ATOMS) and not (isinstance(x, type) and _class_attributes(x)):
                continue
            self._seen.add(id(x))
            self._alive.append(x)
            pending += self._look_into(x, label)

    def _look_into(self, x: Any, label: str) -> list[tuple[Any, str]]:
        if isinstance(x, types.MethodType):
            return [(x.__self__, label)]
        if isinstance(x, types.FunctionType):
            cells = zip(x.__code__.co_freevars, x.__closure__ or (), strict=False)
            return [(c.cell_contents, n) for n, c in cells if _is_filled(c)]
        inside: list[tuple[Any, str]] = []
        if isinstance(x, StagedList):
            self._staged.append((x, dict(vars(x)), label))
            return []
        if isinstance(x, ScanList):
            return []
        if isinstance(x, dict):
            self._dicts.append((x, dict(x), label))
            inside += [(v, f"{label}[{k!r}]") for k, v in x.items()]
        elif isinstance(x, list | collections.deque):
            self._lists.append((x, list(x), label))
            self._kinds[id(x)] = type(x)
            inside += [(v, f"{label}[{i}]") for i, v in enumerate(x)]
            if is_own(x):  # what it has besides is ours
                return inside
        elif isinstance(x, set):
            self._sets.append((x, set(x)))
        elif isinstance(x, tuple | frozenset):
            return [(v, f"{label}[{i}]") for i, v in enumerate(x)]
        slots = slots_of(x)
        if slots is not None:
            self._dicts.append((slots, dict(slots.items()), f"{label}."))
            inside += [(v, f"{label}.{n}") for n, v in slots.items()]
        attributes = getattr(x, "__dict__", None)
        if type(attributes) is dict and id(attributes) not in self._seen:
            self._seen.add(id(attributes))
            self._dicts.append((attributes, dict(attributes), f"{label}."))
            self._classes[id(attributes)] = type(x)
            for name, value in attributes.items():
                if name in _FIXED:
                    if self._hooks and isinstance(value, dict):
                        self._dicts.append((value, dict(value), f"{label}.{name}"))
                    if name == "_modules":
                        inside += [(m, f"{label}.{n}") for n, m in value.items()]
                    continue
                inside.append((value, f"{label}.{name}"))
        return inside

    def changes(self) -> list[Change]:
        """Every place whose contents are another object now."""
        found: list[Change] = []
        for container, before, label in self._dicts:
            if len(container) == len(before) and all(
                container.get(k, _MISSING) is v for k, v in before.items()
            ):
                continue
            keys = list(before) + [k for k in container if k not in before]
            for key in keys:
                old, new = (self._held(container, d, key, _MISSING) for d in (before, container))
                if old is not new:
                    name = f"{label}{key}" if label.endswith(".") else f"{label}[{key!r}]"
                    found.append(Change(container, key, old, new, name))
        for items, held, label in self._lists:
            if isinstance(items, ScanList):
                continue
            if isinstance(items, StagedList):
                found.append(Change(items, None, held, items.copy(), label))
                continue
            now = list(items)
            if len(now) != len(held):
                found.append(Change(items, None, held, now, label))
                continue
            for index, (old, new) in enumerate(zip(held, now, strict=True)):
                if old is not new:
                    found.append(Change(items, index, old, new, f"{label}[{index}]"))
        for staged, attributes, label in self._staged:
            if isinstance(staged, StagedList) and not _is_as(staged, attributes):
                held_before = revived(attributes)
                found.append(Change(staged, "contents", held_before, staged.copy(), label))
        return found

    def _held(self, container: Any, contents: dict[Any, Any], key: Any, default: Any) -> Any:
        """What a dict has under a key; of an object's attributes, what its class has."""
        if key in contents or id(container) not in self._classes:
            return contents.get(key, default)
        found = inspect.getattr_static(self._classes[id(container)], key, default)
        return default if hasattr(type(found), "__get__") else found

    def holders(self, changed: set[int]) -> Iterator[tuple[tuple[int, Any], Any]]:
        """The places, and lists, that hold an object in which something changed, and what is there now.

        Args:
            changed: The changed dicts and lists, by identity.
        """

        def is_changed(x: Any, parents: frozenset[int] = frozenset()) -> bool:
            if isinstance(x, _ATOMS) or is_own(x) or id(x) in parents:
                return False
            if id(x) in changed or id(getattr(x, "__dict__", x)) in changed:
                return True
            return any(is_changed(i, parents | {id(x)}) for _, i in shallow(x)[1])

        for container, before, _ in self._dicts:
            for key, value in before.items():
                if key in container and is_changed(value):
                    yield (id(container), key), container[key]
        for items, held, _ in self._lists:
            if any(map(is_changed, held)):
                yield (id(items), None), list(items)

    def changed_sets(self) -> list[set[Any]]:
        """Sets of Python's own that hold something else now: no branch or loop can follow them."""
        return [members for members, kept in self._sets if members != kept]

    def class_of(self, attributes: Any) -> type:
        """The class of the object that has some attributes; ``object`` for what is none."""
        found = self._classes.get(id(attributes), object)
        is_module = any("__call__" in vars(c) for c in found.__mro__)  # made before
        return object if is_module else found

    def places_of(self, x: Any) -> list[tuple[Any, Any, str]]:
        """The places that held ``x``: container, key, label."""
        found: list[tuple[Any, Any, str]] = []
        for container, before, label in self._dicts:
            for key, value in before.items():
                if value is x:
                    name = f"{label}{key}" if label.endswith(".") else f"{label}[{key!r}]"
                    found.append((container, key, name))
        for items, held, label in self._lists:
            found += [(items, i, f"{label}[{i}]") for i, v in enumerate(held) if v is x]
        return found

    def value(self, container: Any, key: Any, default: Any) -> Any:
        """What a place held when the snapshot was taken."""
        for known, before, _ in self._dicts:
            if known is container:
                return self._held(container, before, key, default)
        for items, held, _ in self._lists:
            if items is container:
                return held[key] if key is not None else held
        for staged, attributes, _ in self._staged:
            if staged is container:
                return revived(attributes)
        return default

    def make_plain(
        self, items_of: Callable[[StagedList], list[Any]]
    ) -> dict[int, tuple[Any, str]]:
        """Let all lists of run-time length be lists of one world.

        Returns:
            These lists with their labels, by the identity of each object inside of them.
        """
        found: dict[int, tuple[Any, str]] = {}
        for staged, _, label in self._staged:
            become(staged, items_of(staged))
            pending: list[Any] = [staged]
            while pending:
                x = pending.pop()
                held = [x, getattr(x, "__dict__", x)]
                found.update({id(part): (staged, label) for part in held})
                pending += [i for _, i in shallow(x)[1] if not isinstance(i, _ATOMS)]
        return found

    def restore(self) -> None:
        """Give every object the contents it had."""
        for container, before, _ in self._dicts:
            if len(container) != len(before) or any(
                container.get(k, _MISSING) is not v for k, v in before.items()
            ):
                container.clear()
                container.update(before)
        for items, held, _ in self._lists:
            kind = self._kinds[id(items)]
            became = type(items) is not kind
            if became:
                restore(items, kind, {}, held)
            elif len(items) != len(held) or any(map(operator.is_not, items, held)):
                items.clear()
                items.extend(held)
        for members, kept in self._sets:
            if members != kept:
                members.clear()
                members.update(kept)
        for staged, attributes, _ in self._staged:
            if not isinstance(staged, StagedList) or not _is_as(staged, attributes):
                restore(staged, StagedList, attributes, revived(attributes))


def _is_as(staged: StagedList, attributes: dict[str, Any]) -> bool:
    """Whether a list holds what it held when it had some attributes."""
    return staged.contents == (attributes["item"], attributes["columns"])


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


class WrittenMemory(Protocol):
    """An array's memory with the contents it had before the first write."""

    def swap(self) -> None:
        """Exchange the saved contents and the current ones."""


class MemoryLog:
    """The memory that was written to in some worlds while the log was kept.

    Args:
        worlds: The worlds whose writes are noted; None for all.
    """

    def __init__(self, worlds: frozenset[int] | None = None) -> None:
        self.worlds = worlds
        self.saved: dict[int, WrittenMemory] = {}

    def swap(self) -> None:
        """Exchange what was written and what was there before; again to change back."""
        for memory in self.saved.values():
            memory.swap()
