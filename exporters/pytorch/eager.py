"""Runs of the eager model that leave no sign of themselves."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from exporters.errors import UntraceableError
from exporters.pytorch import isolation
from exporters.pytorch.inputs import Arguments, clone, is_leaf, modules_of
from exporters.pytorch.memo import CallMemo
from exporters.tracing.pytree import flatten
from exporters.tracing.source import source_of_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["LIBRARY", "EagerRuns", "explained", "run_eager"]

LIBRARY = os.path.dirname(torch.__file__) + os.sep


def run_eager(
    model: Callable[..., Any],
    arguments: Arguments,
    leaves: Sequence[Any],
    *,
    exporting: bool = True,
    memo: CallMemo | None = None,
) -> Any:
    """Call the model, and leave no sign of it.

    Args:
        model: The eager callable.
        arguments: The example, of which the structure is used.
        leaves: What the arguments hold.
        exporting: Whether the model sees that it is exported, as in a trace.
        memo: Knows calls that other runs made.
    """
    modules = modules_of(model)
    told = isolation.exporting() if exporting else contextlib.nullcontext()
    memo = memo or CallMemo()
    with isolation.isolated(modules.values()), isolation.untouched(memo.call), told:
        return arguments.call(model, [clone(x) for x in leaves])


class EagerRuns:
    """Eager runs of one model, each of them made once.

    An export traces a model several times in the same worlds, which eager code of a detector takes
    longer for than the traces do.

    Attributes:
        memo: Calls that took long in them and in the traces.
        seconds: What the longest of them took.
    """

    def __init__(self) -> None:
        self.memo = CallMemo()
        self.seconds = 0.0
        self._known: list[tuple[bool, list[Any], list[Any]]] = []

    def __call__(
        self, model: Callable[..., Any], arguments: Arguments, leaves: Sequence[Any]
    ) -> list[Any]:
        """The leaves of what the model returns; nobody may write to them."""
        told = isolation.is_told_of_compiling()
        for before, given, results in self._known:
            if before is told and len(given) == len(leaves) and all(map(_same, given, leaves)):
                return results
        started = time.perf_counter()
        results = flatten(run_eager(model, arguments, leaves, memo=self.memo), is_leaf)[0]
        self.seconds = max(self.seconds, time.perf_counter() - started)
        self._known.append((told, list(leaves), results))
        return results


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a is b or (a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b))
    return type(a) is type(b) and bool(a == b)


def explained(error: Exception, model: Callable[..., Any], arguments: Arguments) -> Exception:
    """An error of user code: with a note if eager code raises it too, else a refusal of the trace."""
    source = source_of_error(error, (LIBRARY,))
    try:
        run_eager(model, arguments, arguments.leaves)
    except Exception:
        if any(isinstance(x, np.ndarray) for x in arguments.leaves):
            return UntraceableError(
                "the NumPy arrays of the example are torch tensors in the trace, of which this code "
                f"raises {type(error).__name__}: {error}",
                source=source,
                hint="compute with torch, whose functions take NumPy's keywords too: x.sum(axis=0)",
            )
        place = [] if source is None else [f"  at {source}", source.excerpt(), ""]
        hint = "hint: call the model with these arguments until it runs, then export it"
        error.add_note("\n".join(["eager code raises this for the example", *place, hint]))
        return error
    return UntraceableError(
        f"eager code runs, but its trace raises {type(error).__name__}: {error}",
        source=source,
        hint="write this line in another way, or keep it out of the exported model",
    )
