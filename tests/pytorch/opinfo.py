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
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from onnx_ir.tensor_adapters import TorchTensor

from bridge.empty_batches import guarded
from exporters.errors import UnsupportedOpError
from exporters.pytorch.dtypes import is_complex
from exporters.pytorch.frontend import TracedModel, trace
from exporters.pytorch.inputs import bind

onnxruntime.set_default_logger_severity(4)

# rtol, atol: torch.testing's defaults; reductions and transcendental functions differ in the
# last places between libraries, so cases may widen them with a reason.
TOLERANCES = {
    torch.float16: (1e-3, 1e-3),
    torch.bfloat16: (1.6e-2, 1e-2),
    torch.float32: (1.3e-6, 1e-5),
    torch.float64: (1e-7, 1e-7),
}


# Operators whose values are drawn at random, or are whatever was in memory.
UNCOMPARABLE = frozenset(
    [
        "bernoulli",
        "cauchy",
        "empty",
        "empty_like",
        "empty_permuted",
        "empty_strided",
        "exponential",
        "geometric",
        "log_normal",
        "multinomial",
        "new_empty",
        "new_empty_strided",
        "normal",
        "normal.in_place",
        "normal.number_mean",
        "rand_like",
        "randint",
        "randint_like",
        "randn",
        "randn_like",
        "uniform",
        "nn.functional.alpha_dropout",
        "nn.functional.dropout",
        "nn.functional.dropout2d",
        "nn.functional.dropout3d",
        "nn.functional.feature_alpha_dropout.with_train",
        "nn.functional.rrelu",
    ]
)


@dataclasses.dataclass(frozen=True)
class OpCase:
    """An operator of torch's ``op_db`` and what is asked of its lowering.

    Attributes:
        name: OpInfo name, ``nn.functional.gelu``; a variant after a dot, ``std.unbiased``.
        dtypes: Sample dtypes to run.
        rtol: Relative tolerance when torch's default is too strict.
        atol: Absolute tolerance when torch's default is too strict.
        why: Why a tolerance is widened, or values are not compared.
        values: Whether values are compared, or only shapes and dtypes; None asks
            :data:`UNCOMPARABLE`.
        skip: Says of a sample why it is left out; None keeps it.
        call: What is called with the sample instead of the operator.
        every: Of samples that are many, take one of so many.
        failures: What is known to fail, by dtype, with the reason; the failure must occur.
    """

    name: str
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    rtol: float | None = None
    atol: float | None = None
    why: str = ""
    values: bool | None = None
    skip: Callable[[Any], str | None] | None = None
    call: Callable[..., Any] | None = None
    every: int = 1
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

    return {f"{o.name}.{o.variant_test_name}" if o.variant_test_name else o.name: o for o in op_db}


def samples(name: str, dtype: torch.dtype) -> Iterator[Any]:
    """Torch's samples for an operator, the same ones every time."""
    torch.manual_seed(0)
    np.random.seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # samples are made with functions that torch has deprecated
        made = list(op_infos()[name].sample_inputs("cpu", dtype, requires_grad=False))
    yield from made


def to_numpy(x: Any) -> np.ndarray:
    """A tensor or number as the array that ONNX Runtime takes; complex ones as pairs."""
    if is_complex(x):
        x = torch.view_as_real(torch.as_tensor(x).resolve_conj().resolve_neg())
    return TorchTensor(x.detach()).numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def run_onnx(traced: TracedModel, leaves: Sequence[Any]) -> list[np.ndarray]:
    """The exported model's outputs on ONNX Runtime's CPU provider."""
    model = traced.model
    if any(isinstance(x, torch.Tensor) and not x.numel() for x in leaves):
        model = guarded(model, refusing=True) or model  # as a session of Bridge runs it
    proto = ir.to_proto(model)
    for output in proto.graph.output:  # the Python binding reads no bfloat16
        if output.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16:
            node = onnx.NodeProto(
                op_type="Cast", input=[output.name], output=[f"{output.name}.wide"]
            )
            node.attribute.add(name="to", type=onnx.AttributeProto.INT, i=onnx.TensorProto.FLOAT)
            proto.graph.node.append(node)
            output.name += ".wide"
            output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    places = zip(traced.model.graph.inputs, traced.inputs, strict=True)
    return session.run(None, {i.name: to_numpy(leaves[p]) for i, p in places})


def assert_same(
    got: np.ndarray,
    expected: Any,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    values: bool = True,
    exact: Callable[[], Any] | None = None,
) -> None:
    """Shapes and dtypes are equal, and values within tolerance.

    Args:
        got: The exported model's output.
        expected: Eager's output.
        rtol: Relative tolerance; torch's default for the dtype.
        atol: Absolute tolerance; torch's default for the dtype.
        values: Whether values are compared.
        exact: Computes the output in float64, which judges where ``got`` and ``expected`` differ:
            an export may be as far from it as eager is.
    """
    dtype = expected.dtype if isinstance(expected, torch.Tensor) else torch.float32
    wanted = to_numpy(expected.float() if dtype == torch.bfloat16 else expected)
    assert got.shape == wanted.shape, f"shape {got.shape}, eager {wanted.shape}"
    assert got.dtype == wanted.dtype, f"dtype {got.dtype}, eager {wanted.dtype}"
    if not values:
        return
    if wanted.dtype.kind != "f":
        np.testing.assert_array_equal(got, wanted)
        return
    default = TOLERANCES[dtype.to_real() if dtype.is_complex else dtype]
    tolerance = default[0] if rtol is None else rtol, default[1] if atol is None else atol
    got, wanted = got.astype(np.float64), wanted.astype(np.float64)
    if np.allclose(got, wanted, *tolerance, equal_nan=True):
        return
    if exact is not None:
        truth = to_numpy(exact()).astype(np.float64)
        allowed = np.maximum(
            tolerance[1] + tolerance[0] * np.abs(truth), 2 * np.abs(wanted - truth)
        )
        if np.all(
            (np.abs(got - truth) <= allowed) | (got == wanted) | (np.isnan(got) & np.isnan(wanted))
        ):
            return
    np.testing.assert_allclose(got, wanted, *tolerance)


def check_call(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    *,
    opset: int | None = None,
    dynamic_shapes: Any = None,
    others: Sequence[tuple[Any, ...]] = (),
    **tolerance: Any,
) -> TracedModel:
    """Trace a call, run it on ONNX Runtime in every world, compare with eager.

    Args:
        function: What is exported.
        arguments: The example.
        opset: ONNX opset.
        dynamic_shapes: As for :func:`trace`.
        others: Arguments of further sizes, which the trace has not seen.
        **tolerance: As for :func:`assert_same`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = trace(function, arguments, opset=opset, dynamic_shapes=dynamic_shapes)
        unseen = [bind(function, other, {}).leaves for other in others]
        for leaves in [*(w.leaves for w in traced.worlds), *unseen]:
            _check_run(traced, leaves, tolerance)
    return traced


def _check_run(traced: TracedModel, leaves: Sequence[Any], tolerance: dict[str, Any]) -> None:
    eager = traced.eager(leaves)
    for got, index in zip(run_onnx(traced, leaves), traced.outputs, strict=True):
        assert_same(
            got,
            eager[index],
            exact=lambda index=index: _in_float64(traced, leaves)[index],
            **tolerance,
        )


def _in_float64(traced: TracedModel, leaves: Sequence[Any]) -> list[Any]:
    floats = (torch.float16, torch.bfloat16, torch.float32)
    wide = [x.double() if isinstance(x, torch.Tensor) and x.dtype in floats else x for x in leaves]
    wide = [x.to(torch.complex128) if is_complex(x) else x for x in wide]
    return traced.eager(wide)


def has_tensor(x: Any) -> bool:
    """Whether there is a tensor anywhere in a nest."""
    if isinstance(x, torch.Tensor):
        return True
    if isinstance(x, dict):
        return any(map(has_tensor, x.values()))
    return isinstance(x, list | tuple) and any(map(has_tensor, x))


def check_sample(case: OpCase, sample: Any, *, opset: int | None = None) -> None:
    """One sample of an operator agrees with eager."""
    op = case.call or op_infos()[case.name]

    def call(input: Any, args: Any, kwargs: Any) -> Any:
        return op(input, *args, **kwargs)

    check_call(
        call,
        (sample.input, sample.args, sample.kwargs),
        opset=opset,
        rtol=case.rtol,
        atol=case.atol,
        values=case.name not in UNCOMPARABLE if case.values is None else case.values,
    )


def failures(
    case: OpCase, dtype: torch.dtype, *, opset: int | None = None, first: int | None = None
) -> list[str]:
    """What goes wrong with an operator's samples, or its first ones; one line each."""
    found = []
    for number, sample in enumerate(samples(case.name, dtype)):
        if first is not None and number >= first:
            break
        if number % case.every:
            continue
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
            found.append(
                f"{case.name}-{str(dtype)[6:]}-{number}: {type(error).__name__}: {text[:300]}"
            )
    return found


def main() -> None:
    """Print the failing samples of the chosen operators, and a line per operator."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ops", nargs="*")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--opset", type=int)
    parser.add_argument("--per-op", type=int, default=3, help="failing samples to print")
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
            verdict = "BAD" if found else "ok "
            print(f"{verdict} {name} {str(dtype)[6:]} {count - len(found)}/{count}", flush=True)
            for line in found[: options.per_op]:
                print("     ", line[:400])
    print(dict(totals))


if __name__ == "__main__":
    main()
