"""Views of constants whose bounds are traced: ``table[:x.shape[0]]``.

Such a view is a value of the graph, and its base stays a constant, until something is written to
either. Then the base is tracked as well, and what was cut out of it becomes a view of it.
"""

from __future__ import annotations

import dataclasses
import weakref
from typing import TYPE_CHECKING

import torch

from exporters.tracing.record import Record, View

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from exporters.pytorch.tensors import TensorTracker

__all__ = ["Loans"]


@dataclasses.dataclass(frozen=True, slots=True)
class _Loan:
    borrower: weakref.ref[torch.Tensor]
    lender: torch.Tensor
    replay: Callable[[ir.Value], ir.Value]
    put_back: Callable[[ir.Value, ir.Value], ir.Value]


class Loans:
    """The views of constants in a trace, by storage."""

    def __init__(self) -> None:
        self._loans: dict[int, list[_Loan]] = {}

    def note(
        self,
        borrower: torch.Tensor,
        lender: torch.Tensor,
        replay: Callable[[ir.Value], ir.Value],
        put_back: Callable[[ir.Value, ir.Value], ir.Value],
    ) -> None:
        """Remember how ``borrower`` is cut out of the constant ``lender``."""
        loan = _Loan(weakref.ref(borrower), lender, replay, put_back)
        self._loans.setdefault(lender.untyped_storage()._cdata, []).append(loan)

    def settle(self, tracker: TensorTracker, written: torch.Tensor) -> None:
        """Make views of all that was cut out of the storage of ``written``, which is about to change."""
        if not self._loans:
            return
        key = written.untyped_storage()._cdata
        for loan in self._loans.pop(key, ()):
            handle = loan.borrower()
            record = None if handle is None else tracker.trace.record(handle)
            if record is None:
                continue
            base = tracker.promote(loan.lender)
            before = record.memory
            record.view = View(base, loan.replay, loan.put_back)
            for _, other in list(tracker.trace.records()):
                if other.memory is before:
                    other.memory, other.seen = base.memory, base.memory.writes
                    _move(other, *tracker.promoted[key])


def _move(record: Record, root: torch.Tensor, owner: Record) -> None:
    """Let a record's concrete results lie in the storages that its base has in each world."""
    with torch._C.DisableTorchFunction():
        for world, t in record.worlds.items():
            start = t.storage_offset() - root.storage_offset()
            record.worlds[world] = owner.worlds[world].as_strided(t.size(), t.stride(), start)
