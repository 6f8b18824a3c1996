"""Inputs that take the branches that given inputs do not take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import BridgeError
from bridge.feeds import to_numpy
from bridge.graph_index import open_model
from bridge.parity.forcing import Probe
from bridge.parity.inputs import Case

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bridge.session import Session

__all__ = ["branch_cases"]

_TRIES = 60  # inputs that are looked at
_SCALES = (1.0, -1.0, 0.0, 10.0, -10.0, 0.1, 100.0, -100.0)


def branch_cases(session: Session, feed: Mapping[str, Any], *, seed: int = 0) -> Iterator[Case]:
    """Cases in which an ``If`` of the main graph goes the other way than on ``feed``.

    Conditions are computed on many variations of the feed, of which the first that flips one is a
    case. Integers take values between the least and the largest that they have in the feed.

    Args:
        session: A session of the model.
        feed: Inputs by name.
        seed: Of the random numbers.
    """
    model = open_model(session.source)
    nodes = [n for n in model.graph if n.op_type == "If" and n.inputs[0] is not None]
    probe = Probe(model, session.settings_for_parts())
    names = [str(n.inputs[0].name) for n in nodes if n.inputs[0] is not None]
    names = [n for n in dict.fromkeys(names) if n in probe.types]
    if not names:
        return
    part, inputs = probe.session(names)
    feed = {n: to_numpy(x) for n, x in feed.items()}

    def conditions(values: Mapping[str, Any]) -> dict[str, bool]:
        found = part.run({own: values[n] for n, own in inputs.items()})
        return {n: bool(np.asarray(x).all()) for n, x in found.items()}

    seen = {(n, x) for n, x in conditions(feed).items()}
    rng = np.random.default_rng(seed)
    for number in range(_TRIES):
        if len(seen) == 2 * len(names):
            return
        values = {n: _other(x, number, rng) for n, x in feed.items()}
        try:
            new = {(n, x) for n, x in conditions(values).items()} - seen
        except BridgeError:  # the model does not take such values
            continue
        if new:
            seen |= new
            told = ", ".join(f"{n} is {x}" for n, x in sorted(new))
            yield Case(f"another branch: {told}", values)


def _other(x: np.ndarray[Any, Any], number: int, rng: np.random.Generator) -> Any:
    """Another array of the same shape and kind."""
    if x.dtype.kind == "b":
        return ~x if number % 2 == 0 else rng.integers(0, 2, x.shape).astype(bool)
    if x.dtype.kind in "iu":
        if not x.size:
            return x
        return rng.integers(int(x.min()), int(x.max()) + 1, x.shape).astype(x.dtype)
    if x.dtype.kind in "OSU":
        return x
    scale = _SCALES[number % len(_SCALES)]
    if number < len(_SCALES):
        return x * x.dtype.type(scale)
    noise = rng.standard_normal(x.shape) * scale + rng.standard_normal() * abs(scale)
    return noise.astype(x.dtype)
