"""What a model takes and gives: torch tensors, NumPy arrays and numbers as ONNX Runtime's values.

Nothing is copied that ONNX Runtime can read where it lies. Element types that NumPy lacks
(bfloat16, float8) are ml_dtypes arrays on the NumPy side.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir
from onnxruntime.capi import _pybind_state as capi

from bridge.errors import FeedError, ModelFileError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnxruntime

__all__ = [
    "HOST",
    "OrtValue",
    "TensorSpec",
    "check_shapes",
    "declared_values",
    "describe",
    "host_array",
    "host_value",
    "is_torch",
    "object_value",
    "run_values",
    "specs_of",
    "to_numpy",
    "to_torch",
]

HOST = capi.OrtDevice(capi.OrtDevice.cpu(), capi.OrtDevice.default_memory(), 0)
_NATIVE = 1  # numpy.dtype.isbuiltin: 0 is byte-swapped or structured, 2 is of ml_dtypes

# onnxruntime.OrtValue wraps these, at a cost of microseconds for each value of each run.
OrtValue: TypeAlias = Any  # capi.OrtValue
OrtValueVector: TypeAlias = Any  # capi.OrtValueVector


def is_torch(x: Any) -> bool:
    """Whether ``x`` is a torch tensor; torch is not imported to find out."""
    return hasattr(x, "data_ptr") and hasattr(x, "detach")


@dataclasses.dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output as the model declares it.

    Attributes:
        name: Its name.
        dtype: Element type, None for what is no tensor of numbers (a string, a sequence).
        dims: A size, a symbol or None for each axis; None when the rank is unknown or 0.
        type: ONNX Runtime's own name of the type.
        native: NumPy's own element type of the same numbers; None if it has none.
    """

    name: str
    dtype: ir.DataType | None
    dims: tuple[int | str | None, ...] | None
    type: str
    native: np.dtype[Any] | None = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        element = None if self.dtype is None else self.dtype.numpy()
        native = element if element is not None and element.isbuiltin == _NATIVE else None
        object.__setattr__(self, "native", native)

    @classmethod
    def of(cls, argument: onnxruntime.NodeArg) -> TensorSpec:
        """The declaration of one of a session's inputs or outputs."""
        # ONNX Runtime gives [] for a scalar and for a value of unknown rank alike.
        dims = tuple(argument.shape) if argument.shape else None
        return cls(argument.name, _dtype_of(argument.type), dims, argument.type)

    def __str__(self) -> str:
        if self.dtype is None:
            return self.type
        dims = "..." if self.dims is None else ", ".join(_dim(d) for d in self.dims)
        return f"{self.dtype.name.lower()}[{dims}]".replace("float[", "float32[").replace(
            "double[", "float64["
        )


def _dtype_of(kind: str) -> ir.DataType | None:
    """The element type in ONNX Runtime's name of a type, None for no tensor of numbers."""
    if not kind.startswith("tensor(") or kind == "tensor(string)":
        return None
    return ir.DataType[kind[7:-1].upper()]


def _dim(dim: int | str | None) -> str:
    return "?" if dim is None else str(dim)


def declared_values(
    runtime: onnxruntime.InferenceSession,
) -> tuple[list[TensorSpec], dict[str, TensorSpec], list[TensorSpec]]:
    """A session's inputs, the weights that a caller may replace by name, and its outputs.

    Raises:
        ModelFileError: A name is no text.
    """
    try:
        replaceable = map(TensorSpec.of, runtime.get_overridable_initializers())
        return (
            [TensorSpec.of(i) for i in runtime.get_inputs()],
            {spec.name: spec for spec in replaceable},
            [TensorSpec.of(o) for o in runtime.get_outputs()],
        )
    except UnicodeDecodeError as error:
        raise ModelFileError(f"a name in the model is not UTF-8: {error.object!r}") from error


def specs_of(
    feed: Any, inputs: Sequence[TensorSpec], replaceable: Mapping[str, TensorSpec]
) -> list[TensorSpec]:
    """The declarations of what a feed gives: every input, and weights that it replaces.

    Raises:
        FeedError: An input is missing, or the model has none of a name.
    """
    names = ", ".join(s.name for s in inputs) or "none"
    if not hasattr(feed, "keys"):
        raise FeedError(
            f"the feed is a {type(feed).__name__}; it is a dict by input name",
            hint=f"the model's inputs are {names}; or call the session with the eager arguments",
        )
    missing = [f"{s.name} ({s})" for s in inputs if s.name not in feed]
    known = {s.name for s in inputs} | replaceable.keys()
    unknown = [str(n) for n in feed if n not in known]
    told = [f"missing {', '.join(missing)}"] * bool(missing)
    told += [f"unknown {', '.join(unknown)}"] * bool(unknown)
    if told:
        raise FeedError(f"{'; '.join(told)}; the model's inputs are {names}")
    return [*inputs, *(replaceable[n] for n in feed if n in replaceable)]


def describe(x: Any) -> str:
    """A value as ``float32[2, 3]``."""
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        dtype = str(x.dtype).removeprefix("torch.")
        return f"{dtype}[{', '.join(map(str, x.shape))}]"
    return f"{x!r} ({type(x).__name__})"


def check_shapes(specs: Sequence[TensorSpec], feed: Mapping[str, Any]) -> None:
    """Compare every input's shape with its declaration.

    Raises:
        FeedError: A rank or a size is another, or one symbol would have two sizes.
    """
    symbols: dict[str, tuple[int, str]] = {}
    for spec in specs:
        x = feed[spec.name]
        if spec.dims is None or spec.dtype is None:
            continue
        shape = x.shape
        if len(shape) != len(spec.dims):
            raise _misfit(spec, x, f"{len(shape)} dims instead of {len(spec.dims)}")
        for axis, (dim, size) in enumerate(zip(spec.dims, shape, strict=True)):
            if isinstance(dim, int):
                if dim != size:
                    raise _misfit(spec, x, f"size {size} instead of {dim} at dim {axis}")
            elif dim is not None:
                known = symbols.setdefault(dim, (size, spec.name))
                if known[0] != size:
                    raise _misfit(
                        spec, x, f"{dim} is {size} at dim {axis}, and {known[0]} in {known[1]!r}"
                    )


def _misfit(spec: TensorSpec, x: Any, difference: str, hint: str | None = None) -> FeedError:
    return FeedError(
        f"input {spec.name!r} is {describe(x)}, the model takes {spec}: {difference}", hint=hint
    )


def host_array(spec: TensorSpec, x: Any) -> np.ndarray[Any, Any]:
    """``x`` as an array in host memory, of the element type that the model takes.

    Raises:
        FeedError: ``x`` is of another element type, or is sparse.
    """
    array = _shared(x)
    if array is not None and array.dtype is spec.native and array.flags.c_contiguous:
        return array
    assert spec.dtype is not None
    array, dtype = _host_array(spec, x)
    if dtype != spec.dtype:
        raise _misfit(spec, x, f"{_name(dtype)} instead of {_name(spec.dtype)}", _cast(spec, x))
    return array


def host_value(spec: TensorSpec, x: Any) -> tuple[OrtValue, Any]:
    """``x`` as a value of ONNX Runtime in host memory, and the array that holds its memory.

    Raises:
        FeedError: ``x`` is of another element type than the model takes, or is sparse.
    """
    assert spec.dtype is not None
    array = host_array(spec, x)
    if spec.native is not None:
        return capi.OrtValue.ortvalue_from_numpy(array, HOST), array
    bits = array.view(f"u{array.dtype.itemsize}")
    return capi.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, int(spec.dtype)), bits


def _shared(x: Any) -> np.ndarray[Any, Any] | None:
    """What most callers pass: an array, or a plain tensor on the CPU in the same memory."""
    if x.__class__ is np.ndarray:
        given: np.ndarray[Any, Any] = x
        return given
    try:
        array = x.numpy()
    except (AttributeError, TypeError, RuntimeError):  # a number; a tensor that is on a device,
        return None  # sparse, or requires a gradient
    return array if array.__class__ is np.ndarray else None


def _name(dtype: ir.DataType) -> str:
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(dtype.name, dtype.name.lower())


def _cast(spec: TensorSpec, x: Any) -> str:
    assert spec.dtype is not None
    name = _name(spec.dtype)
    cast = f"{spec.name}.to(torch.{name})" if is_torch(x) else f"{spec.name}.astype({name!r})"
    return f"pass {cast}"


def _host_array(spec: TensorSpec, x: Any) -> tuple[np.ndarray[Any, Any], ir.DataType]:
    if is_torch(x):
        array = to_numpy(x, spec.name)
    elif isinstance(x, np.ndarray):
        array = to_numpy(x)
    else:  # a number or a list of numbers has no element type of its own
        assert spec.dtype is not None
        wanted = spec.dtype.numpy()
        array = _of_numbers(spec, x)
        if array.dtype != wanted and not hasattr(x, "dtype") and _fits(array, wanted):
            array = array.astype(wanted)
    if not array.flags.c_contiguous or not array.dtype.isnative:
        array = np.asarray(array, array.dtype.newbyteorder("="), order="C")
    return array, _onnx_dtype(spec, x, array)


def _of_numbers(spec: TensorSpec, x: Any) -> np.ndarray[Any, Any]:
    try:
        array = np.asarray(x)
    except ValueError as error:  # rows of different lengths
        raise _misfit(spec, x, str(error).split(".")[0]) from error
    return array


def _fits(array: np.ndarray[Any, Any], wanted: np.dtype[Any]) -> bool:
    if array.dtype.kind in "iub" and wanted.kind in "iub":
        return array.dtype.kind == "b" or wanted.kind != "b"
    return array.dtype.kind in "biuf" and wanted.kind not in "iub"


def _onnx_dtype(spec: TensorSpec, x: Any, array: np.ndarray[Any, Any]) -> ir.DataType:
    if array.dtype.kind in "OSU":
        raise _misfit(spec, x, "it is not made of numbers")
    try:
        return ir.DataType.from_numpy(array.dtype)
    except TypeError as error:
        raise _misfit(spec, x, f"ONNX has no {array.dtype.name}") from error


def to_numpy(x: Any, name: str = "value") -> np.ndarray[Any, Any]:
    """An array that shares memory with ``x`` where it can; complex numbers are pairs of real ones.

    Raises:
        FeedError: ``x`` is a sparse tensor.
    """
    if isinstance(x, np.ndarray):
        return _pairs(x) if x.dtype.kind == "c" else x
    if not is_torch(x):
        return np.asarray(x)
    if x.requires_grad:
        x = x.detach()
    if x.is_complex():
        return _pairs(x.resolve_conj().resolve_neg().cpu().numpy())
    try:
        if x.device.type != "cpu":
            x = x.cpu()
        array: np.ndarray[Any, Any] = x.numpy()
        return array
    except (TypeError, RuntimeError):
        return _odd_tensor(x, name)


def _pairs(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Complex numbers with the real and imaginary parts along one more dim."""
    real = x.real.dtype
    return np.ascontiguousarray(x).reshape(x.shape).view(real).reshape(*x.shape, 2)


def _odd_tensor(x: Any, name: str) -> np.ndarray[Any, Any]:
    """What ``Tensor.numpy`` refuses: tensors lazily conjugated, sparse, of types NumPy lacks."""
    import torch

    from exporters.pytorch.dtypes import from_torch_dtype

    if x.layout is not torch.strided:
        raise FeedError(
            f"{name!r} is {x.layout}; ONNX inputs are dense and strided",
            hint=f"pass {name}.to_dense()",
        )
    try:
        x = x.resolve_conj().resolve_neg().contiguous()
        element = from_torch_dtype(x.dtype).numpy()
        if element.isbuiltin != _NATIVE:
            x = x.view({1: torch.uint8, 2: torch.int16}[x.element_size()])
        array: np.ndarray[Any, Any] = x.numpy()
    except (TypeError, RuntimeError) as error:  # quantized, nested, on meta, inside of vmap
        raise FeedError(
            f"{name!r} is a {type(x).__name__} whose values cannot be read: {error}",
            hint="pass a plain dense tensor on the CPU or the GPU",
        ) from error
    return array.view(element)


def run_values(
    runtime: onnxruntime.InferenceSession,
    values: dict[str, OrtValue],
    names: Sequence[str],
    options: onnxruntime.RunOptions,
) -> OrtValueVector:
    """Run on values by input name; results in host memory, in the order of ``names``."""
    # The wrapper iterates over the vector, which takes 30 us; run_with_ortvaluevector is deaf to
    # RunOptions.terminate.
    return runtime._sess.run_with_ort_values(values, names, options)


class _Lent:
    """Memory of an ONNX Runtime value in NumPy's array interface; the array keeps the value."""

    def __init__(self, value: OrtValue, bits: str) -> None:
        self._value = value
        self.__array_interface__ = {
            "data": (value.data_ptr(), False),
            "shape": tuple(value.shape()),
            "typestr": bits,
            "version": 3,
        }


def value_to_numpy(value: OrtValue, dtype: ir.DataType | None) -> Any:
    """A result as an array that lives in the result's own memory."""
    if dtype is None or dtype.numpy().isbuiltin == _NATIVE:
        return value.numpy()
    element = dtype.numpy()
    if 0 in value.shape():
        return np.empty(value.shape(), element)
    return np.asarray(_Lent(value, f"<u{element.itemsize}")).view(element)


def object_value(spec: TensorSpec, x: Any) -> Any:
    """``x`` as ONNX Runtime's Python binding takes it: for sequences, optionals and strings.

    Raises:
        FeedError: ``x`` is nothing of the kind.
    """
    kind, _, rest = spec.type.partition("(")
    if kind == "optional":
        inner = dataclasses.replace(spec, type=rest[:-1], dtype=_dtype_of(rest[:-1]))
        return None if x is None else object_value(inner, x)
    if kind == "seq":
        if not isinstance(x, list | tuple):
            raise _misfit(spec, x, "it is no list", f"pass a list: [{spec.name}]")
        inner = TensorSpec(spec.name, _dtype_of(rest[:-1]), None, rest[:-1])
        return [object_value(inner, i) for i in x]
    if spec.dtype is not None:
        array, dtype = _host_array(spec, x)
        if dtype != spec.dtype:
            raise _misfit(
                spec, x, f"{_name(dtype)} instead of {_name(spec.dtype)}", _cast(spec, x)
            )
        return array
    if spec.type != "tensor(string)":
        return x
    strings: np.ndarray[Any, Any] = np.empty(0) if is_torch(x) else np.asarray(x)
    if strings.dtype.kind not in "OSU":
        raise _misfit(spec, x, "it is not made of strings")
    return np.char.decode(strings, "utf-8") if strings.dtype.kind == "S" else strings


def to_torch(x: Any) -> Any:
    """An array as a torch tensor in the same memory, a list's arrays too; else as it is."""
    if isinstance(x, list):
        return [to_torch(i) for i in x]
    if not isinstance(x, np.ndarray) or x.dtype.kind in "OSU":
        return x
    import torch

    if not x.flags.writeable:
        x = x.copy()
    if x.dtype.isbuiltin == _NATIVE:
        return torch.from_numpy(x)
    bits = x.view({1: np.uint8, 2: np.int16}[x.dtype.itemsize])
    return torch.from_numpy(bits).view(getattr(torch, x.dtype.name))
