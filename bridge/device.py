"""Runs whose tensors stay on a device: torch tensors are bound by address, not copied."""

from __future__ import annotations

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

__all__ = ["bind_input", "bind_output", "ort_device", "output_shape", "run_on_device"]

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


def run_on_device(
    runtime: onnxruntime.InferenceSession,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    feed: Mapping[str, Any],
    options: onnxruntime.RunOptions,
    device: torch.device,
) -> list[torch.Tensor]:
    """Run on tensors of which some are on ``device``; all results are there.

    Raises:
        FeedError: An input is of another dtype or shape than declared.
    """
    tensors = {spec.name: prepared(spec, feed[spec.name]) for spec in inputs}
    check_shapes(inputs, tensors)
    binding = capi.SessionIOBinding(runtime._sess)
    held = []  # memory of values that are bound by reference
    for spec in inputs:
        x = tensors[spec.name]
        if x.device.type == "cpu":
            value, array = host_value(spec, x)
            held.append(array)
            binding.bind_ortvalue_input(spec.name, value)
        else:
            bind_input(binding, spec, x)
    results: dict[str, torch.Tensor | None] = {}
    for spec in outputs:
        shape = output_shape(spec, inputs, tensors)
        if shape is None or 0 in shape or spec.dtype is None:
            binding.bind_output(spec.name, ort_device(device))
            results[spec.name] = None
        else:
            y = torch.empty(shape, dtype=to_torch_dtype(spec.dtype), device=device)
            bind_output(binding, spec.name, y)
            results[spec.name] = y
    if device.type == "cuda":  # torch may still be writing the inputs
        torch.cuda.current_stream(device).synchronize()
    runtime._sess.run_with_iobinding(binding, options)  # returns when the device is done
    bound = [y for y in results.values() if y is not None]
    if len(bound) == len(results):
        return bound
    found = binding.get_outputs()
    return [
        taken(found[i], spec) if y is None else y
        for i, (spec, y) in enumerate(zip(outputs, results.values(), strict=True))
    ]


def taken(value: Any, spec: TensorSpec) -> torch.Tensor:
    """A result as a torch tensor in the same memory."""
    tensor: torch.Tensor = from_dlpack(value.to_dlpack())
    wanted = None if spec.dtype is None else to_torch_dtype(spec.dtype)
    # DLPack once had no booleans, and ONNX Runtime still calls them bytes
    return tensor if wanted is None or tensor.dtype == wanted else tensor.view(wanted)
