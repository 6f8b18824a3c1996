"""``f(*a) == exported(f)(*a)``: eager code against ONNX Runtime, on inputs that take every way."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

import bridge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bridge.program import Program

__all__ = ["T", "agree"]

T = torch.tensor


def agree(
    function: Callable[..., Any],
    examples: Sequence[tuple[Any, ...]],
    others: Sequence[tuple[Any, ...]] = (),
    *,
    dynamic_shapes: Any = None,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    **options: Any,
) -> Program:
    """Export with the first example (or with all of them) and compare on every input.

    Args:
        function: What to export.
        examples: Inputs that the trace sees; with ``dynamic_shapes`` only the first.
        others: Inputs that it does not see.
        dynamic_shapes: As for ``bridge.export``.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        **options: Further options of ``bridge.export``.
    """
    more = list(examples[1:]) if dynamic_shapes is None and len(examples) > 1 else None
    program = bridge.export(
        function, examples[0], dynamic_shapes=dynamic_shapes, examples=more, **options
    )
    for inputs in (*examples, *others):
        with torch.no_grad():
            expected = function(*copy.deepcopy(inputs))
        got = program(*copy.deepcopy(inputs))
        assert_same(got, expected, rtol=rtol, atol=atol, inputs=inputs)
    return program


def assert_same(got: Any, expected: Any, *, rtol: float, atol: float, inputs: Any) -> None:
    """Equal structures, and in them equal shapes, dtypes and values."""
    found = torch.utils._pytree.tree_leaves(got)
    wanted = torch.utils._pytree.tree_leaves(expected)
    assert len(found) == len(wanted), f"{got} instead of {expected} for {inputs}"
    for x, y in zip(found, wanted, strict=True):
        if isinstance(y, str | None):
            assert x == y
            continue
        a, b = torch.as_tensor(x), torch.as_tensor(y)
        if isinstance(x, float):  # an output that is the same for all inputs
            a = a.double()
        if isinstance(y, float):
            b = b.double()
        assert a.shape == b.shape, f"shape {list(a.shape)}, eager {list(b.shape)} for {inputs}"
        assert a.dtype == b.dtype, f"dtype {a.dtype}, eager {b.dtype} for {inputs}"
        torch.testing.assert_close(
            a, b, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m: f"{m}\nfor {inputs}"
        )
