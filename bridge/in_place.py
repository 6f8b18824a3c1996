"""Decode loops over state of fixed size, which every step overwrites where it lies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from onnx_ir.tensor_adapters import to_torch_dtype

from bridge.cuda_graphs import FixedRun
from bridge.device import prepared, run_on_device
from bridge.errors import FeedError, RunError
from bridge.feeds import check_shapes, is_torch, to_numpy
from bridge.parity.comparison import compare

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bridge.session import Session

__all__ = ["InPlaceSession"]

_NO_GRAPH = {"gpu_graph_id": "-1"}  # neither capture nor replay


class InPlaceSession:
    """A session whose state outputs are written over its state inputs.

    Nothing is allocated or copied for the state: caches of a fixed length on which kernels such as
    ``ScatterND`` and ``GroupQueryAttention`` can work in place. The first step of each input shape
    is also computed with separate buffers, and refused if that gives another result. On CUDA, a
    session made with ``cuda_graphs=True`` replays one captured graph for each input shape. One
    thread at a time may use it.

    Args:
        session: The session to run.
        state: The output that each state input takes its next value from, by input name.
        initial: The state before the first run, by input name; zeros unless given.
    """

    def __init__(
        self, session: Session, state: Mapping[str, str], initial: Mapping[str, Any] | None = None
    ) -> None:
        self.session = session
        self.links = dict(state)
        self.input_names = [n for n in session.input_names if n not in self.links]
        self.output_names = [n for n in session.output_names if n not in self.links.values()]
        self._inputs = {s.name: s for s in session.inputs}
        self._device = session.device
        self._runs: dict[Any, FixedRun] = {}
        self._buffers = {n: self._buffer(n, (initial or {}).get(n)) for n in self.links}

    def _buffer(self, name: str, initial: Any) -> torch.Tensor:
        spec = self._inputs.get(name)
        if spec is None or spec.dtype is None:
            raise FeedError(f"the model has no input {name!r} to bind")
        if initial is not None:
            x = prepared(spec, initial if is_torch(initial) else torch.as_tensor(initial))
            return x.to(self._device).clone()
        dims = spec.dims or ()
        shape = [d for d in dims if isinstance(d, int)]
        if len(shape) != len(dims):
            raise FeedError(
                f"state {name!r} is {spec}: its size is not fixed",
                hint=f"give its first value in initial={{{name!r}: ...}}",
            )
        return torch.zeros(shape, dtype=to_torch_dtype(spec.dtype), device=self._device)

    @property
    def state(self) -> dict[str, Any]:
        """Copies of the state before the next run by input name, as NumPy arrays."""
        return {name: to_numpy(x).copy() for name, x in self._buffers.items()}

    def reset(self, initial: Mapping[str, Any] | None = None) -> None:
        """Start anew from a given state, or from zeros."""
        for name, buffer in self._buffers.items():
            given = (initial or {}).get(name)
            if given is None:
                buffer.zero_()
            else:
                buffer.copy_(torch.as_tensor(given))

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """One step on the inputs that are no state; returns the outputs that are no state.

        Results lie in buffers that the next step writes to.

        Raises:
            FeedError: An input is missing, unknown, or of another dtype or shape than declared.
            RunError: ONNX Runtime failed, or the model cannot work in place.
        """
        if set(feed) != set(self.input_names):
            raise FeedError(f"given {', '.join(feed)}; a step takes {', '.join(self.input_names)}")
        tensors = {n: prepared(self._inputs[n], x).to(self._device) for n, x in feed.items()}
        check_shapes([self._inputs[n] for n in feed], tensors)
        key = tuple((n, tuple(x.shape)) for n, x in sorted(tensors.items()))
        fixed = self._runs.get(key)
        if fixed is None:
            found = self._first(key, tensors)
        else:
            with self.session.control.controlled():
                found = fixed.run(tensors)
        if any(map(is_torch, feed.values())):
            return {n: found[n] for n in self.output_names}
        return {n: to_numpy(found[n]) for n in self.output_names}

    def _first(self, key: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The first step of some shapes, both in place and with separate buffers."""
        session = self.session
        whole = {**tensors, **self._buffers}
        before = {n: x.clone() for n, x in self._buffers.items()}
        with session.control.controlled(_NO_GRAPH if session.captures_graphs else None) as options:
            separate = run_on_device(
                session.runtime, session.inputs, session.outputs, whole, options, self._device
            )
        expected = {n: x.clone() for n, x in zip(session.output_names, separate, strict=True)}
        outputs = dict(zip(session.output_names, separate, strict=True))
        for taker, giver in self.links.items():
            if outputs[giver].shape != self._buffers[taker].shape:
                raise FeedError(
                    f"output {giver!r} has shape {list(outputs[giver].shape)}, and the state "
                    f"{taker!r} {list(self._buffers[taker].shape)}: it cannot be kept in place",
                    hint="bind it with in_place=False",
                )
            outputs[giver] = self._buffers[taker]
        graph_id = len(self._runs) + 1 if session.captures_graphs else None
        inputs = {**{n: x.clone() for n, x in tensors.items()}, **self._buffers}
        fixed = FixedRun(session, inputs, outputs, graph_id)
        with session.control.controlled():
            found = fixed.run(tensors)
        for name, y in expected.items():
            if not compare(name, to_numpy(y), to_numpy(found[name])).passed:
                for taker, x in before.items():
                    self._buffers[taker].copy_(x)
                raise RunError(
                    f"{name!r} comes out differently when the state is written in place: the "
                    "model reads a state after it has written it",
                    hint="bind it with in_place=False",
                )
        self._runs[key] = fixed
        return found
