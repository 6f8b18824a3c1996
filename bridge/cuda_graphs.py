"""Runs with fixed addresses, and the CUDA graphs that can be captured from them.

A CUDA graph replays kernels on the addresses that they were captured with, so inputs are copied
into buffers of their own (on the device, asynchronously) and results are copied out of such. ONNX
Runtime captures a graph for each ``gpu_graph_id``; here, one for each set of input shapes.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import onnxruntime
import torch
from onnxruntime.capi import _pybind_state as capi

from bridge.device import bind_input, bind_output, prepared, run_on_device
from bridge.feeds import check_shapes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bridge.feeds import TensorSpec
    from bridge.session import Session

__all__ = ["FixedRun", "GraphBuckets"]

_GRAPH_ID = "gpu_graph_id"
_NO_GRAPH = "-1"  # ONNX Runtime's "neither capture nor replay"
_SEEN_BEFORE_CAPTURE = 1  # runs of a shape that are not captured: many shapes come only once


class FixedRun:
    """Runs a session on buffers that keep their addresses.

    Args:
        session: The session to run.
        inputs: The buffer of each input.
        outputs: The buffer of each output; one may also be an input's, where the model's kernels
            can write in place.
        graph_id: Under which to capture and replay a CUDA graph; None for plain runs.
    """

    def __init__(
        self,
        session: Session,
        inputs: Mapping[str, torch.Tensor],
        outputs: Mapping[str, torch.Tensor],
        graph_id: int | None = None,
    ) -> None:
        self.inputs = dict(inputs)
        self.outputs = dict(outputs)
        self._session = session
        self._binding = capi.SessionIOBinding(session.runtime._sess)
        for spec in session.inputs:
            bind_input(self._binding, spec, self.inputs[spec.name])
        for name, buffer in self.outputs.items():
            bind_output(self._binding, name, buffer)
        self._options = onnxruntime.RunOptions()
        if graph_id is not None:
            self._options.add_run_config_entry(_GRAPH_ID, str(graph_id))
        buffers = [*self.inputs.values(), *self.outputs.values()]
        self._device = next((b.device for b in buffers if b.device.type == "cuda"), None)

    def run(self, feed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run once; what comes back are the output buffers themselves.

        Args:
            feed: New values for some of the inputs, of the buffers' shapes.
        """
        for name, x in feed.items():
            if self.inputs[name].data_ptr() != x.data_ptr():
                self.inputs[name].copy_(x, non_blocking=True)
        if self._device is not None:
            torch.cuda.current_stream(self._device).synchronize()
        self._session.runtime._sess.run_with_iobinding(self._binding, self._options)
        if self._device is not None:
            self._binding.synchronize_outputs()
        return self.outputs


class GraphBuckets:
    """Captured graphs of a session, one for each set of input shapes.

    Shapes that are new run plainly, and are captured when they come again. When ``limit`` graphs
    are captured, further shapes run plainly. Where capturing fails, the session goes on without.

    Args:
        session: A session made with ``enable_cuda_graph``.
        device: Where its tensors are.
        sizes: For each symbol, the sizes to round up to: inputs are filled up with copies of their
            last slice, and results are cut. The model must treat slices along it independently.
        limit: How many graphs to keep.
    """

    def __init__(
        self,
        session: Session,
        device: torch.device,
        sizes: Mapping[str, Sequence[int]] | None = None,
        limit: int = 16,
    ) -> None:
        self._session = session
        self._device = device
        self._sizes = {k: sorted(v) for k, v in (sizes or {}).items()}
        self._limit = limit
        self._seen: dict[Any, int] = {}
        self._captured: dict[Any, FixedRun] = {}
        self._lock = threading.Lock()  # a graph has one set of buffers
        self.failure: str | None = None

    def run(self, feed: Mapping[str, Any], outputs: Sequence[TensorSpec]) -> list[torch.Tensor]:
        """Run, by a captured graph where there is one for these shapes.

        Raises:
            FeedError: An input is of another dtype or shape than declared.
        """
        specs = self._session.inputs
        tensors = {s.name: prepared(s, feed[s.name]).to(self._device) for s in specs}
        check_shapes(specs, tensors)
        tensors, cut = padded(specs, tensors, self._sizes)
        with self._lock:
            found = self._replay(tensors)
        if found is None:
            options = onnxruntime.RunOptions()
            options.add_run_config_entry(_GRAPH_ID, _NO_GRAPH)
            results = run_on_device(
                self._session.runtime, specs, outputs, tensors, options, self._device
            )
        else:
            results = [found[s.name] for s in outputs]
        return [_cut(y, s, cut) for s, y in zip(outputs, results, strict=True)]

    def _replay(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
        """Copies of the results of a captured graph; None where there is none."""
        key = tuple((name, tuple(x.shape)) for name, x in tensors.items())
        fixed = self._captured.get(key)
        if fixed is None:
            seen = self._seen.get(key, 0)
            self._seen[key] = seen + 1
            full = len(self._captured) >= self._limit
            if seen < _SEEN_BEFORE_CAPTURE or full or self.failure is not None:
                return None
            try:
                fixed = self._capture(tensors)
            except Exception as error:  # whatever stops a capture, plain runs still work
                self.failure = str(error)
                return None
            self._captured[key] = fixed
        return {name: y.clone() for name, y in fixed.run(tensors).items()}

    def _capture(self, tensors: Mapping[str, torch.Tensor]) -> FixedRun:
        options = onnxruntime.RunOptions()
        options.add_run_config_entry(_GRAPH_ID, _NO_GRAPH)
        session = self._session
        outputs = run_on_device(
            session.runtime, session.inputs, session.outputs, tensors, options, self._device
        )
        fixed = FixedRun(
            session,
            {n: x.clone() for n, x in tensors.items()},
            dict(zip(session.output_names, outputs, strict=True)),
            graph_id=len(self._captured) + 1,
        )
        fixed.run(tensors)  # ONNX Runtime warms up and captures
        return fixed


def padded(
    specs: Sequence[TensorSpec],
    tensors: Mapping[str, torch.Tensor],
    sizes: Mapping[str, Sequence[int]],
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Inputs filled up to the next allowed sizes, and the true size of each symbol that grew."""
    cut: dict[str, int] = {}
    found = dict(tensors)
    for spec in specs:
        for axis, dim in enumerate(spec.dims or ()):
            x = found[spec.name]
            allowed = sizes.get(str(dim), ())
            size = x.shape[axis]
            wanted = next((n for n in allowed if n >= size), size)
            if wanted > size > 0:
                index = torch.arange(wanted, device=x.device).clamp_(max=size - 1)
                found[spec.name] = x.index_select(axis, index)
                cut[str(dim)] = size
    return found, cut


def _cut(y: torch.Tensor, spec: TensorSpec, cut: Mapping[str, int]) -> torch.Tensor:
    for axis, dim in enumerate(spec.dims or ()):
        if isinstance(dim, str) and dim in cut:
            y = y.narrow(axis, 0, cut[dim])
    return y
