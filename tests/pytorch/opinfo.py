"""Torch's own operator samples, run eagerly and through ONNX Runtime.

``python -m tests.pytorch.opinfo softmax nn.functional.gelu`` prints what fails and why;
``--dtypes float32,int64`` and ``--opset 17`` choose what is run, ``--all`` takes every operator.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from onnx_ir.tensor_adapters import TorchTensor

from exporters.errors import UnsupportedOpError
from exporters.pytorch.frontend import TracedModel, trace

onnxruntime.set_default_logger_severity(4)

# rtol, atol: torch.testing's defaults; reductions and transcendental functions differ in the
# last places between libraries, so cases may widen them with a reason.
TOLERANCES = {
    torch.float16: (1e-3, 1e-3),
    torch.bfloat16: (1.6e-2, 1e-2),
    torch.float32: (1.3e-6, 1e-5),
    torch.float64: (1e-7, 1e-7),
}


@dataclasses.dataclass(frozen=True)
class OpCase:
    """An operator of torch's ``op_db`` and what is asked of its lowering.

    Attributes:
        name: OpInfo name, ``nn.functional.gelu``; a variant after a dot, ``std.unbiased``.
        dtypes: Sample dtypes to run.
        rtol: Relative tolerance when torch's default is too strict.
        atol: Absolute tolerance when torch's default is too strict.
        why: Why a tolerance is widened, or values are not compared.
        values: Whether values are compared, or only shapes and dtypes (random operators).
        skip: Says of a sample why it is left out; None keeps it.
        failures: What is known to fail, by dtype, with the reason; the failure must occur.
        equal_nan: Whether NaN equals NaN.
    """

    name: str
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    rtol: float | None = None
    atol: float | None = None
    why: str = ""
    values: bool = True
    skip: Callable[[Any], str | None] | None = None
    failures: tuple[tuple[torch.dtype, str], ...] = ()

    def xfail(self, dtype: torch.dtype, reason: str) -> OpCase:
        """The same case, known to fail for a dtype."""
        return dataclasses.replace(self, failures=(*self.failures, (dtype, reason)))

    def known_failure(self, dtype: torch.dtype) -> str | None:
        """The reason why this dtype fails, if it is known to."""
        return dict(self.failures).get(dtype)


@functools.cache
def op_infos() -> dict[str, Any]:
    """Torch's operator database by name, variants as ``name.variant``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db

    return {
        f"{o.name}.{o.variant_test_name}" if o.variant_test_name else o.name: o for o in op_db
    }


def samples(name: str, dtype: torch.dtype) -> Iterator[Any]:
    """Torch's samples for an operator, the same ones every time."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (op_db draws from it)
    yield from op_infos()[name].sample_inputs("cpu", dtype, requires_grad=False)


def to_numpy(x: Any) -> np.ndarray:
    """A tensor or number as the array that ONNX Runtime takes."""
    return TorchTensor(x.detach()).numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def run_onnx(traced: TracedModel, leaves: Sequence[Any]) -> list[np.ndarray]:
    """The exported model's outputs on ONNX Runtime's CPU provider."""
    proto = ir.to_proto(traced.model).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    feed = {i.name: to_numpy(leaves[p]) for i, p in zip(traced.model.graph.inputs, traced.inputs, strict=True)}
    return session.run(None, feed)


def assert_same(
    got: np.ndarray,
    expected: Any,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    values: bool = True,
) -> None:
    """Shapes and dtypes are equal, and values within tolerance."""
    wanted = to_numpy(expected)
    assert got.shape == wanted.shape, f"shape {got.shape}, eager {wanted.shape}"
    assert got.dtype == wanted.dtype, f"dtype {got.dtype}, eager {wanted.dtype}"
    if not values:
        return
    default = TOLERANCES.get(expected.dtype if isinstance(expected, torch.Tensor) else torch.float32, (0.0, 0.0))
    if not wanted.dtype.kind == "c" and wanted.dtype.kind not in "fV":
        np.testing.assert_array_equal(got, wanted)
        return
    np.testing.assert_allclose(
        got.astype(np.float64) if wanted.dtype.kind != "c" else got,
        wanted.astype(np.float64) if wanted.dtype.kind != "c" else wanted,
        rtol=default[0] if rtol is None else rtol,
        atol=default[1] if atol is None else atol,
    )


def check_call(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    *,
    opset: int | None = None,
    dynamic_shapes: Any = None,
    **tolerance: Any,
) -> TracedModel:
    """Trace a call, run it on ONNX Runtime in every world, compare with eager."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = trace(function, arguments, opset=opset, dynamic_shapes=dynamic_shapes)
    for world in traced.worlds:
        eager = traced.eager(world.leaves)
        expected = [eager[i] for i in traced.outputs]
        for got, want in zip(run_onnx(traced, world.leaves), expected, strict=True):
            assert_same(got, want, **tolerance)
    return traced


def has_tensor(x: Any) -> bool:
    """Whether there is a tensor anywhere in a nest."""
    if isinstance(x, torch.Tensor):
        return True
    if isinstance(x, dict):
        return any(map(has_tensor, x.values()))
    return isinstance(x, list | tuple) and any(map(has_tensor, x))


def check_sample(case: OpCase, sample: Any, *, opset: int | None = None) -> None:
    """One sample of an operator agrees with eager."""
    op = op_infos()[case.name]

    def call(input: Any, args: Any, kwargs: Any) -> Any:
        return op(input, *args, **kwargs)

    check_call(
        call,
        (sample.input, sample.args, sample.kwargs),
        opset=opset,
        rtol=case.rtol,
        atol=case.atol,
        values=case.values,
    )


def failures(case: OpCase, dtype: torch.dtype, *, opset: int | None = None) -> list[str]:
    """What goes wrong with an operator's samples, one line each."""
    found = []
    for number, sample in enumerate(samples(case.name, dtype)):
        if case.skip is not None and case.skip(sample) is not None:
            continue
        if not has_tensor((sample.input, sample.args, sample.kwargs)):
            continue
        try:
            check_sample(case, sample, opset=opset)
        except Exception as error:
            text = str(error).strip().replace("\n", " | ")
            if isinstance(error, UnsupportedOpError):
                text = text.split(" | ")[0]
            found.append(f"{case.name}-{str(dtype)[6:]}-{number}: {type(error).__name__}: {text[:300]}")
    return found


def main() -> None:
    """Print the failing samples of the chosen operators, and a line per operator."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ops", nargs="*")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--opset", type=int)
    parser.add_argument("--per-op", type=int, default=3, help="failing samples to print per operator")
    options = parser.parse_args()
    names = list(op_infos()) if options.all else options.ops
    totals: collections.Counter[str] = collections.Counter()
    for name in names:
        info = op_infos()[name]
        for dtype in (getattr(torch, d) for d in options.dtypes.split(",")):
            if dtype not in info.supported_dtypes("cpu"):
                continue
            count = sum(1 for _ in samples(name, dtype))
            found = failures(OpCase(name), dtype, opset=options.opset)
            totals["ok" if not found else "failing"] += 1
            print(f"{'ok ' if not found else 'BAD'} {name} {str(dtype)[6:]} {count - len(found)}/{count}", flush=True)
            for line in found[: options.per_op]:
                print("     ", line[:400])
    print(dict(totals))


if __name__ == "__main__":
    main()
