"""Loops whose trip count only run time knows.

A loop is first run to its end, eagerly and once per world: that gives the values that come after
it, and shows what each name holds over the iterations (types, sizes, lists that grow). Then its
body is recorded once, on handles of exactly that kind, and becomes the body of a ``Loop`` node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporters.errors import ScriptError
from exporters.tracing.bodies import refuse_in_try
from exporters.tracing.loop_body import AgainError, Recording
from exporters.tracing.loop_node import LoopNode
from exporters.tracing.loop_state import Iterable, LoopState
from exporters.tracing.replay import replay
from exporters.tracing.trace import Interrupt

if TYPE_CHECKING:
    from collections.abc import Callable

    from exporters.tracing.bodies import Scope
    from exporters.tracing.record import Record
    from exporters.tracing.trace import Trace

__all__ = ["Iterable", "stage_loop"]

_RECORDINGS = 100


def stage_loop(
    trace: Trace,
    body: Callable[..., Any],
    scope: Scope,
    *,
    test: Callable[[], Any] | None = None,
    first: Any = None,
    over: Iterable | None = None,
) -> None:
    """Turn a loop into a ``Loop`` node.

    Args:
        trace: The trace.
        body: One iteration; called with the item if there is something to loop over.
        scope: What an iteration binds.
        test: Whether another iteration follows; called before each.
        first: What ``test`` said before the first.
        over: What is looped over.

    Raises:
        BranchMismatchError: A name has another type after an iteration than before.
    """
    refuse_in_try(scope)
    loop = LoopState(trace, body, scope, test, over, first)
    replay(loop)
    memories: dict[int, Record] = {}
    unscanned: set[Any] = set()
    for _ in range(_RECORDINGS):
        recording = Recording(loop, memories, unscanned)
        loop.log.swap()
        try:
            recording.run()
        except AgainError:  # it writes to more than was known
            continue
        finally:
            loop.log.swap()
        LoopNode(recording).emit(first)
        return
    raise Interrupt(
        ScriptError(
            f"what this loop writes to is still not known after {_RECORDINGS} recordings of its body",
            source=scope.source,
            hint="move what does not change out of the loop, or split the loop in two",
        )
    )
