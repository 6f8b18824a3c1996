"""Calls that ask for sizes, truth values and numbers rather than for tensors."""

from __future__ import annotations

import functools
import itertools
import math
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from exporters.errors import UntraceableError
from exporters.pytorch.registry import handles, query
from exporters.tracing.columns import Column, ItemType
from exporters.tracing.lists import StagedList
from exporters.tracing.merging import Ways
from exporters.tracing.operators import and_, compare
from exporters.tracing.scalars import ScalarRecord, TracedScalar
from exporters.tracing.trace import Interrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exporters.pytorch.tensors import TensorTracker
    from exporters.pytorch.tracer import TorchTracer

T = torch.Tensor
_T: Any = torch.Tensor  # its getters and setters are not declared

# What only asks for metadata, the same in every world. (Some are absent in some versions of torch.)
_METHODS = """
    dim ndimension requires_grad_ is_floating_point is_complex is_signed is_contiguous is_conj is_neg
    is_inference is_pinned is_shared element_size get_device _is_view has_names retain_grad
    register_hook is_set_to __hash__ __repr__ __format__ __dir__ __dlpack_device__ storage_offset
"""
_GETTERS = """
    ndim dtype device layout requires_grad grad grad_fn is_leaf is_cuda is_cpu is_mps is_xpu is_meta
    is_sparse is_sparse_csr is_mkldnn is_quantized is_nested is_vulkan names output_nr _version _base
    itemsize retains_grad _backward_hooks
"""
_FUNCTIONS = """
    is_floating_point is_complex is_signed is_tensor is_inference is_conj is_neg is_same_size
    result_type can_cast promote_types typename
"""
for _name in _METHODS.split():
    if hasattr(T, _name):
        query(getattr(T, _name))
for _name in _GETTERS.split():
    if hasattr(T, _name):
        query(getattr(T, _name).__get__)
for _name in _FUNCTIONS.split():
    query(getattr(torch, _name))
query(_T.requires_grad.__set__, _T._backward_hooks.__set__)
query(torch.ops.aten._has_same_storage_numel)


def _native(tracer: TorchTracer, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)


def sizes_of(tracer: TensorTracker, tensor: torch.Tensor) -> list[int]:
    """The shape of a handle: an int where it is static, else a traced int."""
    record = tracer.record(tensor)
    if record is None:
        return list(tensor.shape)
    shapes = {w: tuple(t.shape) for w, t in tracer.worlds(tensor).items()}
    return [
        tracer.trace.dim(record, axis, {w: s[axis] for w, s in shapes.items()})
        for axis in range(tensor.dim())
    ]


@handles(_T.shape.__get__)
def shape(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    if tracer.record(args[0]) is None:
        return func(*args)
    return torch.Size(sizes_of(tracer, args[0]))


@handles(T.size)
def size(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    if tracer.record(args[0]) is None:
        return func(*args, **kwargs)
    axis = args[1] if len(args) > 1 else kwargs.get("dim")
    sizes = sizes_of(tracer, args[0])
    return torch.Size(sizes) if axis is None else sizes[axis]


@handles(T.numel, T.nelement, torch.numel)
def numel(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    tensor = args[0] if args else kwargs["input"]
    return math.prod(sizes_of(tracer, tensor))


@handles(_T.nbytes.__get__)
def nbytes(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    return math.prod(sizes_of(tracer, args[0])) * args[0].element_size()


@handles(T.stride)
def stride(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    tensor = args[0]
    if tracer.record(tensor) is None:
        return func(*args, **kwargs)
    strides: list[Any] = list(tensor.stride())
    if tensor.is_contiguous():
        sizes = sizes_of(tracer, tensor)
        strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    axis = args[1] if len(args) > 1 else kwargs.get("dim")
    return tuple(strides) if axis is None else strides[axis]


@handles(T.__len__)
def length(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    record = tracer.record(args[0])
    if record is None:
        return func(*args)
    answers = {w: len(t) for w, t in tracer.worlds(args[0]).items()}
    if isinstance(sizes_of(tracer, args[0])[0], TracedScalar):
        return tracer.trace.decide(answers, data=record.unbacked, asked="len() of")
    return answers[tracer.trace.active[0]]


def _ask(tracer: TorchTracer, func: Any, args: Any, kwargs: Any, asked: str) -> Any:
    record = tracer.record(args[0])
    if record is None:
        return func(*args, **kwargs)
    answers = {w: func(t, *args[1:], **kwargs) for w, t in tracer.worlds(args[0]).items()}
    return tracer.trace.decide(answers, data=record.data, asked=asked)


@handles(T.__bool__, T.is_nonzero, torch.is_nonzero)
def truth(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    return _ask(tracer, func, args, kwargs, "the truth of")


@handles(T.__int__, T.__index__, T.__long__)
def integer(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    return _ask(tracer, func, args, kwargs, "int() of")


@handles(T.__float__)
def floating(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    return _ask(tracer, func, args, kwargs, "float() of")


@handles(T.__complex__)
def complex_number(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    return _ask(tracer, func, args, kwargs, "complex() of")


@handles(T.__contains__)
def contains(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    tensor, element = args
    if not any(isinstance(x, TracedScalar) or tracer.record(x) for x in tracer.leaves(args, {})):
        return func(*args)
    with tracer:
        return bool((tensor == element).any())


@handles(torch.equal, T.equal)
def equal(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    if not any(tracer.record(x) for x in tracer.leaves(args, kwargs)):
        return func(*args, **kwargs)
    first: Any
    second: Any
    first, second = itertools.chain(args, kwargs.values())
    with tracer:
        if first.dim() != second.dim():
            return False
        same: Any = True
        for axis, (a, b) in enumerate(zip(first.shape, second.shape, strict=True)):
            if tracer.trace.certain(a, b) or (not isinstance(a, TracedScalar) and a is b):
                continue
            same = and_(same, functools.partial(compare, "eq", a, b))
            if same is False:
                return False
            common = tracer.trace.arithmetic("min", a, b)
            first, second = first.narrow(axis, 0, common), second.narrow(axis, 0, common)
        return and_(same, lambda: (first == second).all().item())


@handles(torch.allclose, T.allclose)
def allclose(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    if not any(tracer.record(x) for x in tracer.leaves(args, kwargs)):
        return func(*args, **kwargs)
    with tracer:
        return torch.isclose(*args, **kwargs).all().item()


@handles(T.item)
def item(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    tensor = args[0]
    record = tracer.record(tensor)
    if record is None:
        return func(*args)
    if record.data:
        tracer.trace.number_taken()
    return traced_number(tracer, tensor, lambda t: t.item())


def traced_number(
    tracer: TensorTracker, tensor: torch.Tensor, read: Callable[[torch.Tensor], Any]
) -> Any:
    """A one-element handle as a traced Python number."""
    record = tracer.record(tensor)
    assert record is not None
    worlds = {w: read(t) for w, t in tracer.worlds(tensor).items()}
    kind = type(next(iter(worlds.values())))
    if kind is complex:
        return tracer.trace.decide(worlds, data=record.data, asked="item() of")
    value = tracer.trace.read(record)
    dtype = {bool: ir.DataType.BOOL, int: ir.DataType.INT64, float: ir.DataType.DOUBLE}[kind]
    op = tracer.op
    if tensor.dim() > 0:
        value = op.Reshape(value, [])
        value.shape = ir.Shape([])
        value.type = record.value.type
    return tracer.trace.number(
        ScalarRecord(tracer.trace, worlds, data=record.data, scalar=op.cast(value, dtype)), kind
    )


@handles(T.tolist)
def tolist(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    tensor = args[0]
    record = tracer.record(tensor)
    if record is None:
        return func(*args)

    if record.data:
        tracer.trace.number_taken()
    sizes = sizes_of(tracer, tensor)
    if len(sizes) == 1 and isinstance(sizes[0], TracedScalar):
        return _staged_numbers(tracer, tensor)
    if len(sizes) == 2 and isinstance(sizes[1], TracedScalar):
        return _staged_table(tracer, tensor)
    if len(sizes) == 2 and isinstance(sizes[0], TracedScalar):
        return _staged_rows(tracer, tensor)

    def nest(x: torch.Tensor) -> Any:
        if x.dim() == 0:
            return x.item()
        return [nest(row) for row in x.unbind(0)]

    with tracer:
        return nest(tensor)


def _staged_rows(tracer: TorchTracer, tensor: torch.Tensor) -> Any:
    """The rows of a rank-2 handle of run-time length, each a list of numbers."""
    with tracer:
        columns = tensor.unbind(1)
    parts = [_staged_numbers(tracer, column) for column in columns]
    if not parts:
        return tensor.tolist()
    blank = [p.columns[0].blank() for p in parts]
    item = Ways(tracer.trace, ("the rows",), None).merge("the rows", [blank], always=True)
    numbers = tuple(p.columns[0] for p in parts)
    return StagedList(tracer.trace, item.node, numbers, data=parts[0].data)


def _staged_table(tracer: TorchTracer, tensor: torch.Tensor) -> StagedList:
    """The rows of a rank-2 handle whose rows have a run-time length, each a list of numbers."""
    with tracer:
        flat = tensor.flatten()
    numbers = _staged_numbers(tracer, flat)
    kind = ItemType.of_lists(numbers.columns[0].type)
    worlds = {w: t.tolist() for w, t in tracer.worlds(tensor).items()}
    item = Ways(tracer.trace, ("the rows",), None).merge("the rows", [numbers], always=True)
    column = Column(tracer.trace, kind, worlds, tracer.graph(tensor))
    return StagedList(tracer.trace, item.node, (column,), data=numbers.data)


def _staged_numbers(tracer: TorchTracer, tensor: torch.Tensor) -> StagedList:
    """The numbers of a rank-1 handle of run-time length."""
    worlds = {w: t.tolist() for w, t in tracer.worlds(tensor).items()}
    number = bool if tensor.dtype is torch.bool else float if tensor.is_floating_point() else int
    value = tracer.graph(tensor)
    kind = ItemType(value.dtype, 0, number)
    item = Ways(tracer.trace, ("the numbers",), None).merge(
        "the numbers", [number(0)], always=True
    )
    record = tracer.record(tensor)
    column = Column(tracer.trace, kind, worlds, value)
    data = record is None or record.unbacked
    return StagedList(tracer.trace, item.node, (column,), data=data)


@handles(
    T.numpy, T.__array__, T.data_ptr, T.untyped_storage, T.storage, T._typed_storage, T.__dlpack__,
    torch._C._to_dlpack, T.apply_, T.map_, T.__reduce_ex__, _T.__cuda_array_interface__.__get__,
)  # fmt: skip
def leaves_the_trace(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    if tracer.record(args[0]) is None:
        return func(*args, **kwargs)
    source, _ = tracer.trace.position()
    raise Interrupt(
        UntraceableError(
            f"Tensor.{getattr(func, '__name__', func)}() hands a traced tensor to code that the "
            "tracer cannot see",
            source=source,
            hint="stay in torch here, or compute this part outside of the exported function",
        )
    )


@handles(T.__deepcopy__, T.clone)
def clone(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    tensor = args[0]
    record = tracer.record(tensor)
    if record is None:
        return func(*args, **kwargs)
    results = {w: t.clone() for w, t in tracer.worlds(tensor).items()}
    tracer.track(results, tracer.trace.read(record), data=record.data, unbacked=record.unbacked)
    return results[tracer.trace.active[0]]


@handles(torch.autograd.grad, torch.autograd.backward, T.backward)
def derivatives(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    if not any(tracer.record(x) for x in tracer.leaves(args, kwargs) if isinstance(x, T)):
        return func(*args, **kwargs)
    raise DerivativesAsked


class DerivativesAsked(BaseException):
    """Code asks autograd for derivatives of traced tensors, which it computes below Python."""


@handles(
    _T.grad.__set__,
    T.__setstate__,
    T.share_memory_,
    T.pin_memory,
    T.register_post_accumulate_grad_hook,
)
def ignored(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    return args[0]


@handles(torch._assert)
def asserted(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> None:
    """Checks of values are for eager; a graph has no exceptions."""
    condition = args[0]
    traced = isinstance(condition, TracedScalar) or (
        isinstance(condition, torch.Tensor) and tracer.record(condition) is not None
    )
    if not traced:
        func(*args, **kwargs)


@handles(_T.data.__set__)
def set_data(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> None:
    tensor, new = args
    record = tracer.record(new)
    if record is None and tracer.record(tensor) is None:
        tracer.constants.before_write(tensor)
        func(tensor, new)
        return
    results = {w: t.detach() for w, t in tracer.worlds(new).items()}
    func(tensor, results[tracer.trace.active[0]])
    results[tracer.trace.active[0]] = tensor
    value = tracer.graph(new)
    tracer.track(results, value, data=record is None or record.data)


@handles(T.set_, T.resize_, T.resize_as_, T.as_strided_)
def reshapes_storage(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    if not any(
        isinstance(x, TracedScalar) or tracer.record(x) for x in tracer.leaves(args, kwargs)
    ):
        tracer.constants.before_write(args[0])
        return func(*args, **kwargs)
    return leaves_the_trace(tracer, func, args, kwargs)


def sequence_sizes(sizes: Sequence[Any]) -> list[Any]:
    """``f(2, 3)`` and ``f((2, 3))`` are the same to torch."""
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        return list(sizes[0])
    return list(sizes)
