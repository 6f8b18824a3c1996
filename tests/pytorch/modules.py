"""Torch's own module samples, run eagerly and through ONNX Runtime."""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tests.pytorch.opinfo import check_call

if TYPE_CHECKING:
    from collections.abc import Iterator


@functools.cache
def module_infos() -> dict[str, Any]:
    """Torch's module database by name: ``nn.LSTM``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_modules import module_db

    return {info.name: info for info in module_db}


def module_samples(
    name: str, dtype: torch.dtype, *, training: bool = False
) -> Iterator[tuple[torch.nn.Module, Any]]:
    """Modules with the arguments of a call, the same ones every time."""
    info = module_infos()[name]
    torch.manual_seed(0)
    np.random.seed(0)
    inputs = info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=False, training=training
    )
    for sample in inputs:
        if sample.forward_input is None:
            continue
        made = sample.constructor_input
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = info.module_cls(*made.args, **made.kwargs).to(dtype).train(training)
        if "Lazy" in name:
            module(*sample.forward_input.args, **sample.forward_input.kwargs)
        yield module, sample.forward_input


def module_failures(
    name: str,
    dtype: torch.dtype,
    *,
    opset: int | None = None,
    every: int = 1,
    training: bool = False,
    **tolerance: Any,
) -> list[str]:
    """What goes wrong with a module's samples, one line each."""
    found = []
    for number, (module, sample) in enumerate(module_samples(name, dtype, training=training)):
        if number % every:
            continue

        def call(args: Any, kwargs: Any, module: torch.nn.Module = module) -> Any:
            return module(*args, **kwargs)

        try:
            check_call(call, (sample.args, sample.kwargs), opset=opset, **tolerance)
        except Exception as error:
            text = str(error).strip().replace("\n", " | ")
            found.append(f"{name}-{number}: {type(error).__name__}: {text[:300]}")
    return found
