"""What the tests of the language's constructs share: inputs, and how each program is compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.script.harness import T, agree

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OR_NONE", "VECTORS", "Programs"]

VECTORS = [
    (T([1.0, -2.0, 3.0]),),
    (T([4.0, 0.5]),),
    (T([0.0, 9.0, -1.0, 2.0, 5.0]),),
    (T([-3.0]),),
    (T([-1.0, -1.5]),),
]
OR_NONE = [(T([3.0, 1.0]),), (T([]),), (T([1.0, 2.0, 5.0]),), (T([-1.0, -2.0, 5.0]),)]


class Programs:
    """Collects a module's programs, as a decorator, and makes the tests of them."""

    def __init__(self, vectors: list[tuple[Any, ...]] = VECTORS) -> None:
        self.vectors = vectors
        self.functions: list[Callable[..., Any]] = []

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        self.functions.append(function)
        return function

    def tests(self) -> tuple[Callable[..., None], Callable[..., None]]:
        """That each agrees where the trace sees one vector, and where it sees all of them."""
        every_program = pytest.mark.parametrize(
            "function", self.functions, ids=lambda f: getattr(f, "__name__", type(f).__name__)
        )

        @every_program
        @pytest.mark.parametrize("example", [0, 1])
        def one_way(function: Callable[..., Any], example: int) -> None:
            inputs = self.vectors[example:] + self.vectors[:example]
            agree(function, inputs[:1], inputs[1:], dynamic_shapes={"x": {0: "n"}})

        @every_program
        def every_way(function: Callable[..., Any]) -> None:
            agree(function, self.vectors)

        return one_way, every_way
