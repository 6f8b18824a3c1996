"""``torch.cond``, ``while_loop``, ``scan``, ``map`` and ``associative_scan`` through script mode's staging.

In eager code these compile their functions; in a trace they run what stands here. They are plain
functions of Python, so their code is what is exchanged: it does not matter how they were imported.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import _higher_order_ops as operators
from torch.utils import _pytree as pytree

from exporters.pytorch.code_exchange import calling, exchanged
from exporters.tracing.bodies import Scope
from exporters.tracing.branches import if_
from exporters.tracing.builtin_functions import call
from exporters.tracing.iteration import for_, while_
from exporters.tracing.lists import StagedList
from exporters.tracing.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["staged_control_flow"]


def _scope(state: list[Any], *roots: Any) -> Scope:
    """The scope of a statement that binds the items of ``state``."""

    def put(values: tuple[Any, ...]) -> None:
        state[:] = values

    trace = Trace.current()
    source = trace.position()[0] if trace is not None and trace.live else None
    names = tuple(f"the carried value {i}" for i in range(len(state)))
    return Scope(names, lambda: tuple(state), put, lambda: (*state, *roots), source)


def cond(
    pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], operands: Any = ()
) -> Any:
    """``true_fn(*operands) if pred else false_fn(*operands)``."""
    then, orelse = functools.partial(true_fn, *operands), functools.partial(false_fn, *operands)
    return if_(pred, then, orelse, _scope([], true_fn, false_fn, operands))


def while_loop(
    cond_fn: Callable[..., Any], body_fn: Callable[..., Any], carried_inputs: Any
) -> tuple[Any, ...]:
    """``while cond_fn(*carried): carried = body_fn(*carried)``."""
    state = list(carried_inputs)

    def body() -> None:
        after = body_fn(*state)
        state[:] = after if isinstance(after, tuple | list) else (after,)

    while_(lambda: cond_fn(*state), body, _scope(state, cond_fn, body_fn))
    return tuple(state)


def scan(
    combine_fn: Callable[..., Any], init: Any, xs: Any, *, dim: int = 0, reverse: bool = False
) -> tuple[Any, Any]:
    """``carry, y = combine_fn(carry, x)`` for each slice of ``xs``; the last carry, all ``y``."""
    rows = [x.movedim(dim, 0) for x in pytree.tree_leaves(xs)]
    structure = pytree.tree_structure(xs)
    state = [init]

    def step(x: Sequence[Any]) -> Any:
        state[0], y = combine_fn(state[0], pytree.tree_unflatten(list(x), structure))
        return y

    found = _structure_of(rows, step, state)
    ys = _each(rows, step, state, found.num_leaves, combine_fn, reverse=reverse)
    return state[0], pytree.tree_unflatten(ys, found)


def map_over(f: Callable[..., Any], xs: Any, *args: Any) -> Any:
    """``f(x, *args)`` of each slice of ``xs``, stacked."""
    rows, structure = pytree.tree_flatten(xs)

    def step(x: Sequence[Any]) -> Any:
        return f(pytree.tree_unflatten(list(x), structure), *args)

    found = _structure_of(rows, step, [])
    ys = _each(rows, step, [], found.num_leaves, f, args, reverse=False)
    return pytree.tree_unflatten(ys, found)


def associative_scan(
    combine_fn: Callable[..., Any],
    xs: Any,
    dim: int,
    reverse: bool = False,  # noqa: FBT001 - torch's signature
    combine_mode: str = "pointwise",
) -> Any:
    """All prefixes of ``xs``, combined."""
    del combine_mode
    leaves, structure = pytree.tree_flatten(xs)
    rows = [x.movedim(dim, 0) for x in leaves]
    start = tuple(x[-1 if reverse else 0] for x in rows)
    state = [start]
    rest = [x[:-1] if reverse else x[1:] for x in rows]

    def step(x: Sequence[Any]) -> Any:
        before = pytree.tree_unflatten(list(state[0]), structure)
        after = combine_fn(before, pytree.tree_unflatten(list(x), structure))
        state[0] = tuple(pytree.tree_leaves(after))
        return state[0]

    later = _each(rest, step, state, len(rows), combine_fn, reverse=reverse)
    firsts = [x.unsqueeze(0) for x in start]
    pairs = zip(later, firsts, strict=True) if reverse else zip(firsts, later, strict=True)
    joined = [torch.cat(pair).movedim(0, dim) for pair in pairs]
    return pytree.tree_unflatten(joined, structure)


def _each(
    rows: Sequence[Any],
    step: Callable[[Sequence[Any]], Any],
    state: list[Any],
    leaves: int,
    *roots: Any,
    reverse: bool,
) -> list[Any]:
    """``step`` of the rows, one by one: the leaves of what it returns, stacked."""
    flipped = [x.flip(0) for x in rows] if reverse else list(rows)
    count = len(state)
    held: list[Any] = [*state, *([] for _ in range(leaves))]

    def body(index: Any) -> None:
        state[:] = held[:count]
        made = pytree.tree_leaves(step([x[index] for x in flipped]))
        held[:count] = state
        for filled, leaf in zip(held[count:], made, strict=True):
            filled.append(leaf)

    for_(call(range)(flipped[0].shape[0]), body, _scope(held, step, flipped, *roots))
    state[:] = held[:count]
    stacked = [
        _stacked(filled, x) for filled, x in zip(held[count:], _cycled(rows, leaves), strict=True)
    ]
    return [y.flip(0) for y in stacked] if reverse else stacked


def _cycled(rows: Sequence[Any], count: int) -> list[Any]:
    return [rows[min(i, len(rows) - 1)] for i in range(count)]


def _stacked(items: Any, like: torch.Tensor) -> torch.Tensor:
    """The items along a new first axis; none of them are as many rows of ``like``."""
    staged = isinstance(items, StagedList)
    return torch.stack(items) if staged or items else like[:0]


def _structure_of(
    rows: Sequence[Any], step: Callable[[Sequence[Any]], Any], state: list[Any]
) -> Any:
    """The structure of what a step returns."""
    before = list(state)
    found = pytree.tree_structure(step([x[0] for x in rows]))
    state[:] = before
    return found


_STAND_INS: tuple[tuple[Any, Callable[..., Any]], ...] = (
    (operators.cond, cond),
    (operators.while_loop, while_loop),
    (operators.scan, scan),
    (operators.map, map_over),
    (operators.associative_scan, associative_scan),
)


_CODES = [(original, calling(stand_in)) for original, stand_in in _STAND_INS]


@contextlib.contextmanager
def staged_control_flow() -> Iterator[None]:
    """Let the stand-ins run; outside of a trace they do what torch's do, uncompiled."""
    with exchanged(_CODES):
        yield
