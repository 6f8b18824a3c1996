"""Runs whose tensors stay on a device: torch tensors are bound by address, not copied."""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING, Any

import torch
from onnx_ir.tensor_adapters import from_torch_dtype, to_torch_dtype
from onnxruntime.capi import _pybind_state as capi
from torch.utils.dlpack import from_dlpack

from bridge.errors import FeedError
from bridge.feeds import check_shapes, describe, host_value, is_torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnxruntime

    from bridge.feeds import TensorSpec

__all__ = [
    "DeviceRuns",
    "bind_input",
    "bind_output",
    "ort_device",
    "prepared",
    "run_on_device",
    "taken",
]

_Kept = tuple[Any, dict[str, Any]]  # a binding, and what is bound to it by name
_PLAIN = (torch.Tensor, torch.nn.Parameter)  # whose memory is what it seems
_KEPT_SHAPES = 1000  # sets of input shapes
_ORT_TYPES = {"cpu": capi.OrtDevice.cpu, "cuda": capi.OrtDevice.cuda}


def ort_device(device: torch.device) -> Any:
    """A torch device as ONNX Runtime has it."""
    kind = _ORT_TYPES[device.type]()
    return capi.OrtDevice(kind, capi.OrtDevice.default_memory(), device.index or 0)


def bind_input(binding: Any, spec: TensorSpec, x: torch.Tensor) -> None:
    """Let an input be read from a contiguous tensor's memory."""
    binding.bind_input(
        spec.name,
        ort_device(x.device),
        int(from_torch_dtype(x.dtype)),
        list(x.shape),
        x.data_ptr(),
    )


def bind_output(binding: Any, name: str, x: torch.Tensor) -> None:
    """Let an output be written into a contiguous tensor's memory."""
    binding.bind_output(
        name, ort_device(x.device), int(from_torch_dtype(x.dtype)), list(x.shape), x.data_ptr()
    )


def prepared(spec: TensorSpec, x: Any) -> torch.Tensor:
    """An input as a contiguous tensor of the declared dtype.

    Raises:
        FeedError: It is of another dtype.
    """
    assert spec.dtype is not None
    if not is_torch(x):
        return torch.as_tensor(x, dtype=to_torch_dtype(spec.dtype))
    if from_torch_dtype(x.dtype) != spec.dtype:
        wanted = to_torch_dtype(spec.dtype)
        raise FeedError(
            f"input {spec.name!r} is {describe(x)}, the model takes {spec}: "
            f"{str(x.dtype)[6:]} instead of {str(wanted)[6:]}",
            hint=f"pass {spec.name}.to({wanted})",
        )
    tensor: torch.Tensor = x.detach().contiguous()
    return tensor


def output_shape(
    spec: TensorSpec, inputs: Sequence[TensorSpec], feed: Mapping[str, Any]
) -> list[int] | None:
    """The shape that an output is bound to have, None when the inputs do not tell."""
    if spec.dims is None:
        return None
    sizes = {
        dim: int(size)
        for i in inputs
        for dim, size in zip(i.dims or (), feed[i.name].shape, strict=False)
        if isinstance(dim, str)
    }
    shape = [d if isinstance(d, int) else sizes.get(str(d)) for d in spec.dims]
    return None if any(d is None for d in shape) else [int(d) for d in shape if d is not None]


def taken(value: Any, spec: TensorSpec) -> torch.Tensor:
    """A result as a torch tensor in the same memory."""
    tensor: torch.Tensor = from_dlpack(value.to_dlpack())
    wanted = None if spec.dtype is None else to_torch_dtype(spec.dtype)
    # DLPack once had no booleans, and ONNX Runtime still calls them bytes
    return tensor if wanted is None or tensor.dtype == wanted else tensor.view(wanted)


class DeviceRuns:
    """Runs of a session on tensors that stay on its device; what shapes decide is decided once.

    Threads may share it.

    Args:
        runtime: The session.
        inputs: Its declared inputs.
        outputs: Its declared outputs.
        device: Where results lie.
    """

    def __init__(
        self,
        runtime: onnxruntime.InferenceSession,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        device: torch.device,
    ) -> None:
        self._runtime = runtime._sess
        self._inputs = [_Slot.of(spec) for spec in inputs]
        self._outputs = {spec.name: _Slot.of(spec) for spec in outputs}
        self._specs = list(inputs)
        self._names = [spec.name for spec in outputs]
        self._device = device
        self._index = (
            -1 if device.type == "cpu" else device.index or 0
        )  # as Tensor.get_device says
        self._place = ort_device(device)
        # A binding that owns no memory, and the address and shape of each input that it reads: a
        # loop gives many of them again.
        self._kept = threading.local()
        self._shapes: dict[Any, dict[str, list[int] | None]] = {}
        self._like = {
            name: torch.empty(0, dtype=slot.dtype, device=device)
            for name, slot in self._outputs.items()
        }
        self._stream_of = torch.accelerator.current_stream if device.type == "cuda" else None

    def run(
        self, feed: Mapping[str, Any], names: Sequence[str], options: onnxruntime.RunOptions
    ) -> list[torch.Tensor]:
        """Run on tensors of which some are on the device; all results are there.

        Raises:
            FeedError: An input is of another dtype or shape than declared.
        """
        whole = names == self._names
        last: _Kept | None = self._kept.__dict__.pop("last", None) if whole else None
        binding, bound = last or (capi.SessionIOBinding(self._runtime), {})
        held: list[Any] = []  # memory of values that are bound by reference
        key: list[Any] = []
        for slot in self._inputs:
            x = feed[slot.name]
            plain = x.__class__ in _PLAIN and x.dtype is slot.dtype
            if plain and x.get_device() == self._index and x.is_contiguous():
                shape, address = x.shape, x.data_ptr()
                key.append(shape)
                if bound.get(slot.name) != (address, shape):
                    binding.bind_input(slot.name, self._place, slot.code, shape, address)
                    bound[slot.name] = address, shape
            else:
                key.append(self._bind_other(binding, slot, x, held))
        shapes = self._output_shapes(tuple(key))
        results: list[torch.Tensor | None] = []
        for name in names:
            slot, shape = self._outputs[name], shapes[name]
            if shape is None:
                binding.bind_output(name, self._place)
                results.append(None)
                continue
            y = self._like[name].new_empty(shape)  # takes less than torch.empty
            binding.bind_output(name, self._place, slot.code, shape, y.data_ptr())
            results.append(y)
        if self._stream_of is not None:  # torch may still be writing the inputs
            self._stream_of(self._device.index).synchronize()
        self._runtime.run_with_iobinding(binding, options)  # returns when the device is done
        made = [y for y in results if y is not None]
        if len(made) == len(results):
            if whole and not held:
                self._kept.last = binding, bound  # it owns no memory
            return made
        found = binding.get_outputs()
        return [
            taken(found[i], self._outputs[name].spec) if y is None else y
            for i, (name, y) in enumerate(zip(names, results, strict=True))
        ]

    def _bind_other(self, binding: Any, slot: _Slot, x: Any, held: list[Any]) -> Any:
        """Bind what is not a contiguous tensor on the device; returns its shape."""
        x = prepared(slot.spec, x)
        held.append(x)
        if x.device.type == "cpu":
            value, array = host_value(slot.spec, x)
            held.append(array)
            binding.bind_ortvalue_input(slot.name, value)
        else:
            place = ort_device(x.device)
            binding.bind_input(slot.name, place, slot.code, x.shape, x.data_ptr())
        return x.shape

    def _output_shapes(self, key: tuple[Any, ...]) -> dict[str, list[int] | None]:
        """The shape of each output for input shapes; None where only the run will tell."""
        found = self._shapes.get(key)
        if found is None:
            shaped = {
                slot.name: _Shaped(shape, slot.dtype)
                for slot, shape in zip(self._inputs, key, strict=True)
            }
            check_shapes(self._specs, shaped)
            found = {
                name: output_shape(slot.spec, self._specs, shaped)
                for name, slot in self._outputs.items()
            }
            found = {n: None if x is None or 0 in x else x for n, x in found.items()}
            if len(self._shapes) >= _KEPT_SHAPES:
                self._shapes.clear()
            self._shapes[key] = found
        return found


@dataclasses.dataclass(frozen=True, slots=True)
class _Slot:
    """An input or output with what would be looked up for every run."""

    name: str
    dtype: torch.dtype | None
    code: int
    spec: TensorSpec

    @classmethod
    def of(cls, spec: TensorSpec) -> _Slot:
        dtype = None if spec.dtype is None else to_torch_dtype(spec.dtype)
        return cls(spec.name, dtype, int(spec.dtype or 0), spec)


@dataclasses.dataclass(frozen=True, slots=True)
class _Shaped:
    """What a shape check looks at, and tells of."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None


def run_on_device(
    runtime: onnxruntime.InferenceSession,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    feed: Mapping[str, Any],
    options: onnxruntime.RunOptions,
    device: torch.device,
) -> list[torch.Tensor]:
    """One run of :class:`DeviceRuns`."""
    runs = DeviceRuns(runtime, inputs, outputs, device)
    return runs.run(feed, [s.name for s in outputs], options)
