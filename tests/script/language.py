"""What the tests of the language's constructs share: inputs, and how each program is compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.script.harness import T, agree

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["VECTORS", "every_way", "one_way"]

VECTORS = [
    (T([1.0, -2.0, 3.0]),),
    (T([4.0, 0.5]),),
    (T([0.0, 9.0, -1.0, 2.0, 5.0]),),
    (T([-3.0]),),
    (T([-1.0, -1.5]),),
]


def one_way(function: Callable[..., Any], example: int) -> None:
    """The trace sees one vector, and the others are compared."""
    inputs = VECTORS[example:] + VECTORS[:example]
    agree(function, inputs[:1], inputs[1:], dynamic_shapes={"x": {0: "n"}})


def every_way(function: Callable[..., Any]) -> None:
    """The trace sees all vectors."""
    agree(function, VECTORS)
