"""What staged control flow asks of a framework's arrays, answered for tensors.

It is asked while user code runs, so with the tracer's mode on: what only looks at concrete tensors
turns torch functions off.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from exporters.pytorch.constants import flat_bytes
from exporters.pytorch.dtypes import element_type, to_torch_dtype
from exporters.pytorch.handlers import sizes_of, traced_number
from exporters.pytorch.isolation import is_opaque
from exporters.pytorch.lists import as_tensor
from exporters.pytorch.tensors import TensorTracker
from exporters.tracing.scalars import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from exporters.tracing.lists import StagedList

__all__ = ["StagedArrays", "TensorMemory"]


class StagedArrays(TensorTracker):
    """Tensors as the staged operators see them."""

    def is_array(self, x: Any) -> bool:
        """Whether ``x`` can be a tensor of the graph."""
        return isinstance(x, torch.Tensor)

    def is_handle(self, x: Any) -> bool:
        """Whether ``x`` is a tensor whose values only run time knows."""
        return isinstance(x, torch.Tensor) and self.record(x) is not None

    def is_opaque(self, x: Any) -> bool:
        """Whether ``x`` has no contents that Python code changes."""
        return is_opaque(x)

    def type_of(self, x: torch.Tensor) -> tuple[ir.DataType, list[Any]]:
        """Element type and sizes, dynamic ones by name."""
        with torch._C.DisableTorchFunction():
            dtype = element_type(x.dtype)
            shape: list[Any] = [*x.shape, 2] if x.is_complex() else list(x.shape)
        record = self.record(x)
        if record is not None and record.value.shape is not None:
            dims = record.value.shape.dims
            sizes = record.value.meta.get("sizes") or [None] * len(dims)
            shape = [
                d if isinstance(d, int) else (s and self.trace.symbol(s)) or "?"
                for d, s in zip(dims, sizes, strict=True)
            ]
        return dtype, shape

    def shape_of(self, x: torch.Tensor) -> tuple[int, ...]:
        """A concrete tensor's shape."""
        with torch._C.DisableTorchFunction():
            return tuple(x.shape)

    def truth(self, x: Any, world: int) -> bool:
        """Whether ``x`` is true in one world."""
        with torch._C.DisableTorchFunction():
            return bool(self.concrete(x, world))

    def length(self, x: torch.Tensor) -> Any:
        """The size of the first dim: an int where it is static."""
        with torch._C.DisableTorchFunction():
            return sizes_of(self, x)[0]

    def to_number(self, x: torch.Tensor) -> Any:
        """A one-element handle as a traced number."""
        with torch._C.DisableTorchFunction():
            return traced_number(self, x, torch.Tensor.item)

    def any_equal(self, x: torch.Tensor, element: Any) -> Any:
        """Whether ``element`` is among the values of ``x``."""
        return (x == element).any().item()

    def reduce(self, x: torch.Tensor, name: str) -> Any:
        """Python's ``min(x)`` or ``max(x)`` of a rank-1 tensor."""
        return getattr(x, name)()

    def gather_items(self, items: Sequence[Any], index: Any) -> Any:
        """``items[index]`` by stacking, None if they do not stack."""
        if all(isinstance(x, torch.Tensor) for x in items):
            types = [self.type_of(x) for x in items]
            static = all(isinstance(n, int) for _, shape in types for n in shape)
            alike = all(t == types[0] for t in types)
            return torch.stack(list(items))[index] if static and alike else None
        kinds = {type(plain(x)) for x in items}
        if len(kinds) == 1 and kinds <= {int, float, bool}:
            dtype = {int: torch.int64, float: torch.float64, bool: torch.bool}[kinds.pop()]
            return torch.tensor(list(items), dtype=dtype)[index].item()
        return None

    def from_number(self, number: Any, dtype: ir.DataType) -> torch.Tensor:
        """A rank-0 tensor of a Python number."""
        with torch._C.DisableTorchFunction():
            return torch.tensor(number, dtype=to_torch_dtype(dtype))

    def zeros(self, dtype: ir.DataType, sizes: Sequence[int]) -> torch.Tensor:
        """A constant of zeros."""
        with torch._C.DisableTorchFunction():
            return torch.zeros(list(sizes), dtype=to_torch_dtype(dtype))

    def numbers_in(self, x: torch.Tensor, world: int) -> Any:
        """The numbers of a tensor in one world: one of rank 0, a list of rank 1."""
        with torch._C.DisableTorchFunction():
            return self.concrete(x, world).tolist()

    def zeros_like(self, x: Any) -> Any:
        """A constant of the type of ``x``: what is never read."""
        if not isinstance(x, torch.Tensor):
            return type(plain(x))(0)
        with torch._C.DisableTorchFunction():
            return torch.zeros_like(x)

    def sorted_list(self, items: StagedList, key: Any, *, reverse: bool) -> StagedList:
        """The items of a list in the order of numbers."""
        from exporters.tracing.iteration import comprehension  # it asks the frontend itself

        numbers: Any = items if key is None else comprehension(items, key)
        parts = numbers.parts() or (numbers,)  # of tuples the first that differ decide
        keys = [as_tensor(self, part, "sort") for part in parts]  # type: ignore[arg-type]
        return items.reordered(_order(keys, reverse=reverse))

    def order_of(self, keys: Sequence[Any], *, reverse: bool) -> list[Any]:
        """The places of some numbers in their order, as traced numbers."""
        if all(isinstance(k, torch.Tensor) for k in keys):
            stacked = [torch.stack([k.reshape([]) for k in keys])]
        elif all(isinstance(k, tuple) for k in keys):
            stacked = [torch.tensor(c, dtype=torch.float64) for c in zip(*keys, strict=True)]
        else:
            stacked = [torch.tensor(list(keys), dtype=torch.float64)]
        order = _order(stacked, reverse=reverse)
        return [order[i].item() for i in range(len(keys))]

    def on_arrays(self, name: str, numbers: Sequence[Any]) -> Any:
        """A torch function of some numbers, as a number."""
        whole = name in ("gcd", "lcm")
        dtype = torch.int64 if whole else torch.float64
        function = getattr(torch, name)
        return function(*(torch.tensor(x, dtype=dtype) for x in numbers)).item()

    def list_count(self, items: StagedList, element: Any) -> Any:
        """How many items of a list of numbers equal another."""
        return self._equal(items, element).sum().item()

    def _equal(self, items: StagedList, element: Any) -> torch.Tensor:
        """Which items of a list of numbers, or of tuples of numbers, equal another."""
        parts = items.parts()
        if parts is None or not isinstance(element, tuple) or len(parts) != len(element):
            return as_tensor(self, items, "==") == element  # type: ignore[arg-type]
        pairs = zip(parts, element, strict=True)
        masks = [as_tensor(self, part, "==") == x for part, x in pairs]  # type: ignore[arg-type]
        return functools.reduce(torch.logical_and, masks)

    def lists_equal(self, a: Any, b: Any) -> Any:
        """Whether two lists of numbers are equal; None if they hold something else."""
        tensors = []
        for items in (a, b):
            if hasattr(items, "columns"):
                if len(items.columns) != 1 or items.columns[0].type.rank:
                    return None
                tensors.append(as_tensor(self, items, "=="))  # type: ignore[arg-type]
            elif all(isinstance(x, int | float) for x in items):
                tensors.append(torch.tensor(items, dtype=None if items else torch.int64))
            else:
                return None
        one, other = tensors
        sizes = one.shape[0], other.shape[0]
        count = self.trace.arithmetic("min", *sizes)
        same = (one[:count] == other[:count]).all().item()
        return self.trace.arithmetic("and", self.trace.arithmetic("eq", *sizes), same)

    def place_of(self, items: StagedList, name: str) -> Any:
        """The place of the smallest or the largest of a list of numbers, the first of equal ones."""
        return getattr(as_tensor(self, items, name), f"arg{name}")().item()  # type: ignore[arg-type]

    def list_index(self, items: StagedList, element: Any) -> Any:
        """The place of the first item of a list of numbers that equals another."""
        return self._equal(items, element).long().argmax().item()

    def reduce_list(self, items: StagedList, name: str) -> Any:
        """Python's ``min(x)`` or ``max(x)`` of a list of numbers or of scalars."""
        reduced = getattr(as_tensor(self, items, name), name)()  # type: ignore[arg-type]
        return reduced if items.columns[0].type.number is None else reduced.item()

    def track_value(
        self,
        worlds: dict[int, torch.Tensor],
        value: ir.Value,
        *,
        dims: Sequence[int | None] | None = None,
        data: bool = True,
        unbacked: bool = False,
    ) -> torch.Tensor:
        """A new handle of a value whose concrete results exist already."""
        with torch._C.DisableTorchFunction():
            aliases = {w: t.detach() for w, t in worlds.items()}
        self.track(aliases, value, data=data, unbacked=unbacked, dims=dims)
        return aliases[self.trace.active[0]]


def _order(keys: Sequence[torch.Tensor], *, reverse: bool) -> torch.Tensor:
    """The places in the order of some numbers; where the first are equal, of the second."""
    *others, last = keys
    order = torch.argsort(last, descending=reverse, stable=True)
    for key in reversed(others):
        order = order[torch.argsort(key[order], descending=reverse, stable=True)]
    return order


class TensorMemory:
    """A tensor's storage with the bytes it held before the first write.

    Args:
        tensor: Any tensor on that storage.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        with torch._C.DisableTorchFunction():
            self._flat = flat_bytes(tensor)
            self._other = self._flat.clone()

    def swap(self) -> None:
        """Exchange the saved bytes and the current ones."""
        with torch._C.DisableTorchFunction(), torch.no_grad():
            now = self._flat.clone()
            self._flat.copy_(self._other)
            self._other = now
