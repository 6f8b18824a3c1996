"""Decode loops: what a step leaves behind, such as a KV cache, is the next step's input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from onnxruntime.capi import _pybind_state as capi

from bridge.errors import FeedError
from bridge.feeds import HOST, check_shapes, host_value, is_torch, to_torch, value_to_numpy
from bridge.providers import CUDA_PROVIDERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bridge.feeds import OrtValue, TensorSpec
    from bridge.session import Session

__all__ = ["BoundSession"]


class BoundSession:
    """A session that hands some outputs on to inputs of its next run, without a copy.

    An output of one run *is* the input of the next, in the provider's own memory. One thread at a
    time may use it.

    Args:
        session: The session to run.
        state: The output that each state input takes its next value from, by input name.
        initial: The state before the first run, by input name. What is not given starts empty: its
            dims that are no other input's are 0.
    """

    def __init__(
        self, session: Session, state: Mapping[str, str], initial: Mapping[str, Any] | None = None
    ) -> None:
        self.session = session
        self.links = dict(state)
        self._inputs = {s.name: s for s in session.inputs}
        made = {s.name: s for s in session.outputs}
        for taker, giver in self.links.items():
            _require_link(taker, self._inputs.get(taker), giver, made.get(giver))
        self.input_names = [n for n in session.input_names if n not in self.links]
        self.output_names = [n for n in session.output_names if n not in self.links.values()]
        self._home = _state_device(session)
        self._values: dict[str, OrtValue] = {}
        self._memory: dict[str, Any] = {}  # arrays that given values point into
        self.reset(initial)

    def reset(self, initial: Mapping[str, Any] | None = None) -> None:
        """Start anew from a given state, or from an empty one."""
        self._values.clear()
        self._memory.clear()
        for name, x in (initial or {}).items():
            if name not in self.links:
                raise FeedError(f"{name!r} is no state input; these are {', '.join(self.links)}")
            self._set(name, x)

    def _set(self, name: str, x: Any) -> None:
        self._values[name], self._memory[name] = _value(self._inputs[name], x)

    @property
    def state(self) -> dict[str, Any]:
        """The state before the next run by input name, as NumPy arrays."""
        return {
            name: value_to_numpy(_on_host(value), self._inputs[name].dtype)
            for name, value in self._values.items()
        }

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """One step on the inputs that are no state; returns the outputs that are no state.

        Raises:
            FeedError: An input is missing, unknown, or of another dtype or shape than declared.
            RunError: ONNX Runtime failed; the state is as it was before.
        """
        if set(feed) != set(self.input_names):
            raise FeedError(f"given {', '.join(feed)}; a step takes {', '.join(self.input_names)}")
        values: dict[str, OrtValue] = {}
        memory: dict[str, Any] = {}
        for name, x in feed.items():
            values[name], memory[name] = _value(self._inputs[name], x)
        check_shapes([self._inputs[n] for n in feed], memory)
        for name in self.links:
            if name not in self._values:
                self._set(name, _empty(self._inputs[name], self._inputs, memory))
            values[name] = self._values[name]
        givers = list(dict.fromkeys(self.links.values()))
        on_device = any(is_torch(x) and x.device.type != "cpu" for x in feed.values())
        devices = [self._home if on_device else HOST] * len(self.output_names)
        found = self._step(values, [*self.output_names, *givers], devices, len(givers))
        states = {g: found[len(self.output_names) + i] for i, g in enumerate(givers)}
        for name, giver in self.links.items():
            self._values[name] = states[giver]
            if giver not in self._inputs:  # an output that is an input lies in the input's memory
                self._memory.pop(name, None)
        return self._results(found, feed, on_device=on_device)

    def _step(
        self, values: Mapping[str, OrtValue], names: list[str], devices: list[Any], states: int
    ) -> Any:
        runtime = self.session.runtime._sess
        binding = capi.SessionIOBinding(runtime)
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name, device in zip(names, [*devices, *[self._home] * states], strict=True):
            binding.bind_output(name, device)
        with self.session.control.controlled() as options:
            runtime.run_with_iobinding(binding, options)
        return binding.get_outputs()

    def _results(self, found: Any, feed: Mapping[str, Any], *, on_device: bool) -> dict[str, Any]:
        if on_device:
            from bridge.device import taken

            specs = {s.name: s for s in self.session.outputs}
            return {n: taken(found[i], specs[n]) for i, n in enumerate(self.output_names)}
        types = {s.name: s.dtype for s in self.session.outputs}
        results = {n: value_to_numpy(found[i], types[n]) for i, n in enumerate(self.output_names)}
        if any(map(is_torch, feed.values())):
            return {n: to_torch(x) for n, x in results.items()}
        return results


def _require_link(
    taker: str, taken: TensorSpec | None, giver: str, given: TensorSpec | None
) -> None:
    if taken is None:
        raise FeedError(f"the model has no input {taker!r} to bind")
    if given is None:
        raise FeedError(f"the model has no output {giver!r} to bind to input {taker!r}")
    if taken.dtype is None or taken.dtype != given.dtype:
        raise FeedError(f"output {giver!r} ({given}) cannot become input {taker!r} ({taken})")


def _state_device(session: Session) -> Any:
    """Where the state lives: with the first provider that has memory of its own."""
    for provider in session.settings.contract.providers:
        if provider.name in CUDA_PROVIDERS:
            number = int(provider.options.get("device_id", 0))
            return capi.OrtDevice(capi.OrtDevice.cuda(), capi.OrtDevice.default_memory(), number)
    return HOST


def _value(spec: TensorSpec, x: Any) -> tuple[OrtValue, Any]:
    if is_torch(x) and x.device.type != "cpu":
        from bridge.device import prepared

        tensor = prepared(spec, x)
        import torch

        torch.cuda.current_stream(tensor.device).synchronize()
        return capi.OrtValue.from_dlpack(tensor.__dlpack__()), tensor
    return host_value(spec, x)


def _empty(
    spec: TensorSpec, inputs: Mapping[str, TensorSpec], given: Mapping[str, Any]
) -> np.ndarray[Any, Any]:
    """The state before the first run: no past, for the batch that the other inputs have."""
    assert spec.dtype is not None
    sizes = {
        dim: size
        for name, x in given.items()
        for dim, size in zip(inputs[name].dims or (), x.shape, strict=False)
    }
    shape = [d if isinstance(d, int) else sizes.get(d, 0) for d in spec.dims or ()]
    return np.zeros(shape, spec.dtype.numpy())


def _on_host(value: OrtValue) -> OrtValue:
    if value.device_name().lower() == "cpu":
        return value
    copied = onnxruntime.OrtValue(value).numpy()
    return capi.OrtValue.ortvalue_from_numpy(copied, HOST)
