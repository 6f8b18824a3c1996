"""What the tracer knows of a tensor that user code holds: its graph value, its views, its worlds."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

__all__ = ["Memory", "Record", "View"]


class Memory:
    """The storage that a tensor and its views share; it counts the writes to it.

    Attributes:
        data: Whether what was written to it depends on input values.
    """

    __slots__ = ("data", "depth", "writes")

    def __init__(self, depth: int = 0) -> None:
        self.writes = 0
        self.data = False
        self.depth = depth  # of the block in which the storage came to be


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """How a record is cut out of another, and how a write to it goes back.

    Attributes:
        base: The record that is viewed.
        replay: The view's graph value from the base's.
        put_back: ``(base value, new view value) -> new base value``.
        index: Where it was cut out, as it was written.
    """

    base: Record
    replay: Callable[[ir.Value], ir.Value]
    put_back: Callable[[ir.Value, ir.Value], ir.Value]
    index: Any = None


class Record:
    """What the tracer knows of one handle.

    Attributes:
        value: Graph value, up to date when ``seen`` equals the memory's writes.
        home: World whose concrete result *is* the handle.
        worlds: Concrete results in the other worlds.
        unbacked: Whether a size depends on input values (``nonzero``), so that equal sizes in all
            worlds prove nothing.
    """

    __slots__ = ("_data", "home", "memory", "seen", "unbacked", "value", "view", "worlds")

    def __init__(
        self,
        value: ir.Value,
        home: int,
        worlds: dict[int, Any],
        *,
        data: bool = True,
        unbacked: bool = False,
        memory: Memory | None = None,
        view: View | None = None,
    ) -> None:
        self.value = value
        self.home = home
        self.worlds = worlds
        self._data = data
        self.unbacked = unbacked
        self.memory = memory if memory is not None else Memory()
        self.seen = self.memory.writes
        self.view = view

    @property
    def data(self) -> bool:
        """Whether the values depend on input values, not only on input sizes."""
        return self._data or self.memory.data
