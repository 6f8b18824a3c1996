"""What a graph cannot return: lists of run-time length, None for some inputs, one of several objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporters.errors import BranchMismatchError, UntraceableError
from exporters.tracing.chosen import Chosen
from exporters.tracing.leaves import is_leaf, presence, presence_of_key
from exporters.tracing.lists import StagedList
from exporters.tracing.pytree import shallow
from exporters.tracing.trace import Assumption

if TYPE_CHECKING:
    from exporters.tracing.trace import Trace

__all__ = ["require_outputs"]


def require_outputs(trace: Trace, result: Any, name: str = "the result") -> None:
    """Complain of what cannot be an output; what is None for no example is taken to be never None.

    Args:
        trace: The trace.
        result: What the model returned.
        name: What to call it.

    Raises:
        UntraceableError: A list has a length that only run time knows.
        BranchMismatchError: Something is None for some of the examples.
    """
    present = presence(trace, result)
    if present is not None:
        if not all(trace.number_in(present, w) for w in trace.active):
            raise BranchMismatchError(
                f"{name} is None for some inputs and a value for others; an output of a graph is "
                "always there",
                hint="return an empty tensor, or a flag beside the tensor, instead of None",
            )
        assumption = Assumption(f"that {name} is not None", True, None)
        if assumption not in trace.assumptions:
            trace.assumptions.append(assumption)
    if isinstance(result, StagedList):
        raise UntraceableError(
            f"{name} is a list whose length only run time knows; an output of a graph is a tensor",
            hint="return torch.stack(items), or torch.cat(items) and the lengths",
        )
    if isinstance(result, Chosen):
        options = ", ".join(repr(x) for x in result.options[:4])
        raise UntraceableError(
            f"{name} is one of several objects, chosen at run time: {options}",
            hint="return a number that stands for it",
        )
    if is_leaf(trace, result):
        return
    kind, items = shallow(result)
    if kind in ("list", "tuple", "namedtuple", "dict", "dataclass"):
        for key, item in items:
            if kind == "dict" and presence_of_key(trace, item) is not None:
                raise UntraceableError(
                    f"{name} has the key {key!r} for some inputs only; an output of a graph is always "
                    "there",
                    hint="return what it holds under a name of its own: `d.get(key, default)`",
                )
            require_outputs(trace, item, f"{name}[{key!r}]")
