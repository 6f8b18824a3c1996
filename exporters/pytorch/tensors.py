"""What the tracer knows of tensors: their graph values, and what they are in each world."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch

from exporters.errors import UntraceableError, WorldError
from exporters.pytorch.constants import Constants
from exporters.pytorch.dtypes import element_type
from exporters.tracing.lists import StagedList
from exporters.tracing.record import Record, View
from exporters.tracing.scalars import TracedScalar
from exporters.tracing.trace import Interrupt, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx_ir as ir

__all__ = ["TensorTracker"]


class TensorTracker:
    """Keeps a record of every tensor that depends on the inputs; all others are constants.

    Args:
        trace: The framework-neutral trace that is filled.
        named: Parameters and buffers by ``state_dict`` name.

    Attributes:
        fresh: Constants made inside of branches and loops: the depth of the block, by storage.
        promoted: Constants that something was written into: the tensor and its record, by storage.
        keep: Called with every graph value that stands for a tensor, and the tensor in each world;
            later calls may write to it.
    """

    def __init__(self, trace: Trace, named: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.trace = trace
        self.op = trace.builder
        self.constants = Constants(trace, named)
        self.fresh: dict[int, int] = {}
        self.promoted: dict[int, tuple[torch.Tensor, Record]] = {}
        self.keep: Callable[[ir.Value, dict[int, torch.Tensor]], None] | None = None
        self.apart: set[int] = set()  # storages taken apart into a run-time number of pieces
        self._concretes: dict[int, list[weakref.ref[torch.Tensor]]] = {}  # by storage

    # Handles

    def record(self, tensor: torch.Tensor) -> Record | None:
        """What is known of ``tensor``; None for a constant."""
        found = self.trace.record(tensor)
        if found is None and self.promoted:
            with torch._C.DisableTorchFunction():
                owner = self.promoted.get(tensor.untyped_storage()._cdata)
                if owner is not None:
                    return self.adopt(tensor, *owner)
        return found

    def track(
        self,
        results: dict[int, torch.Tensor],
        value: ir.Value,
        *,
        data: bool = True,
        unbacked: bool = False,
        dims: Sequence[int | None] | None = None,
    ) -> Record:
        """Make the first active world's tensor the handle of ``value``."""
        home = self.trace.active[0]
        handle = results[home]
        self.describe(value, results, unbacked=unbacked, dims=dims)
        others = {w: t for w, t in results.items() if w != home}
        record = Record(
            value, home, others, data=data, unbacked=unbacked, memory=self.trace.new_memory()
        )
        self.trace.attach(handle, record)
        with torch._C.DisableTorchFunction():
            for concrete in results.values():
                if concrete.layout is torch.strided:
                    key = concrete.untyped_storage()._cdata
                    alive = [c for c in self._concretes.get(key, ()) if c() is not None]
                    self._concretes[key] = [*alive, weakref.ref(concrete)]
        if self.keep is not None:
            self.keep(value, results)
        return record

    def concrete_of(self, storage: int) -> torch.Tensor | None:
        """What a handle is in one world, if such a tensor lies in the storage."""
        alive = (reference() for reference in self._concretes.get(storage, ()))
        with torch._C.DisableTorchFunction():  # a dead one's address may be another storage's
            there = (t for t in alive if t is not None and t.untyped_storage()._cdata == storage)
            return next(there, None)

    def describe(
        self,
        value: ir.Value,
        results: dict[int, torch.Tensor],
        *,
        unbacked: bool = False,
        dims: Sequence[int | None] | None = None,
    ) -> None:
        """Set the value's dtype and shape from its concrete results."""
        if len({t.dim() for t in results.values()}) > 1:
            self._reject_ranks(results)
        if value.const_value is not None or value.meta.get("sizes") is not None:
            return  # known already: a constant, or another handle's value
        first = results[min(results)]
        if first.is_nested or first.is_quantized:
            self._reject_kind(first)
        pair = (2,) if first.is_complex() else ()
        self.trace.describe(
            value,
            element_type(first.dtype),
            {w: (*t.shape, *pair) for w, t in results.items()},
            unbacked=unbacked,
            dims=dims,
        )

    def _reject_kind(self, tensor: torch.Tensor) -> None:
        source, _ = self.trace.position()
        if tensor.is_nested:
            kind, hint = "nested", "pad the parts (torch.nn.utils.rnn.pad_sequence) and mask them"
        else:
            kind = str(tensor.dtype).removeprefix("torch.")
            hint = (
                "torch.fake_quantize_per_tensor_affine is exported, and bridge.quantize quantizes"
            )
        raise Interrupt(UntraceableError(f"ONNX has no {kind} tensors", source=source, hint=hint))

    def _reject_ranks(self, results: dict[int, torch.Tensor]) -> None:
        source, _ = self.trace.position()
        shapes = ", ".join(str(list(t.shape)) for t in results.values())
        raise Interrupt(
            WorldError(
                f"the number of dims depends on the input's sizes: {shapes}",
                source=source,
                hint="name the dim to squeeze, or give an example whose dynamic dims are all above 1",
            )
        )

    def concrete(self, x: Any, world: int) -> Any:
        """``x`` as it is in one world: handles become tensors, traced numbers bare numbers."""
        if isinstance(x, torch.Tensor):
            record = self.record(x)
            return x if record is None or record.home == world else record.worlds[world]
        if isinstance(x, TracedScalar):
            return x.record.worlds[world]
        if isinstance(x, StagedList):
            return x.in_world(world)
        if isinstance(x, tuple | list):
            items = [self.concrete(i, world) for i in x]
            if type(x) in (tuple, list):
                return type(x)(items)
            if isinstance(x, torch.Size):
                return torch.Size(items)
            return type(x)(*items) if hasattr(x, "_fields") else type(x)(items)
        if isinstance(x, dict):
            return {k: self.concrete(v, world) for k, v in x.items()}
        if isinstance(x, slice):
            return slice(*(self.concrete(i, world) for i in (x.start, x.stop, x.step)))
        return x

    def graph(self, x: Any) -> Any:
        """``x`` as the graph has it: tensors become values; numbers stay, traced or not."""
        if isinstance(x, torch.Tensor):
            record = self.record(x)
            return self.constants.value(x) if record is None else self.trace.read(record)
        if isinstance(x, tuple | list):
            items = [self.graph(i) for i in x]
            return items if isinstance(x, list | torch.Size) else tuple(items)
        if isinstance(x, dict):
            return {k: self.graph(v) for k, v in x.items()}
        if isinstance(x, slice):
            return slice(self.graph(x.start), self.graph(x.stop), self.graph(x.step))
        return x

    def leaves(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
        """The tensors and traced numbers among a call's arguments."""
        found: list[Any] = []

        def visit(x: Any) -> None:
            if isinstance(x, torch.Tensor | TracedScalar):
                found.append(x)
            elif isinstance(x, tuple | list):
                for i in x:
                    visit(i)
            elif isinstance(x, dict):
                for i in x.values():
                    visit(i)
            elif isinstance(x, slice):
                visit((x.start, x.stop, x.step))

        for x in args:
            visit(x)
        for x in kwargs.values():
            visit(x)
        return found

    def worlds(self, tensor: torch.Tensor) -> dict[int, torch.Tensor]:
        """The tensor in every active world that knows it."""
        record = self.record(tensor)
        if record is None:
            return dict.fromkeys(self.trace.active, tensor)
        known = {record.home: tensor, **record.worlds}
        return {w: known[w] for w in self.trace.active if w in known}

    # Writes

    def write(self, target: list[torch.Tensor], emitted: Any, *, data: bool = True) -> None:
        """Let each written tensor hold the value that its functional form computed.

        Args:
            target: What was written to.
            emitted: What they hold afterwards.
            data: Whether that depends on input values.
        """
        values = list(emitted) if isinstance(emitted, tuple | list) else [emitted]
        for tensor, value in zip(target, values, strict=False):
            record = self.record(tensor)
            assert record is not None
            self._require_way_back(tensor, record)
            results = self.worlds(tensor)
            wanted = element_type(tensor.dtype)
            value = self.op.cast(value, wanted)
            if _is_smaller(value.shape, record.value.shape):
                value = self._broadcast(value, self.trace.read(record))
            self.describe(value, results, unbacked=record.unbacked)
            # In a loop an earlier iteration may have written other values.
            self.trace.write(record, value, data=data or self.trace.in_loop())
            if self.keep is not None:
                self.keep(value, results)

    def _require_way_back(self, tensor: torch.Tensor, record: Record) -> None:
        """Check that what is written to a part of another tensor can be told to that tensor."""
        if record.view is not None or not self.apart:
            return
        with torch._C.DisableTorchFunction():
            key = tensor.untyped_storage()._cdata
        base = self.concrete_of(key) if key in self.apart else None
        owner = None if base is None or base is tensor else self.trace.record(base)
        if owner is None or owner.memory is record.memory or owner.home != record.home:
            return
        raise Interrupt(
            UntraceableError(
                "what is written to is one of a run-time number of pieces of another tensor, which "
                "the graph would not change",
                source=self.trace.position()[0],
                hint="write to x[start:end], or put the pieces together again with torch.cat",
            )
        )

    def _broadcast(self, value: ir.Value, like: ir.Value) -> ir.Value:
        if value.shape is None or like.shape is None:
            return value
        if len(value.shape.dims) > len(like.shape.dims):  # out= was resized
            return value
        return self.op.Expand(value, self.op.shape(like))

    def mutated(self, named: dict[str, torch.Tensor]) -> list[str]:
        """The parameters and buffers that something was written into."""
        return [
            name
            for name, tensor in named.items()
            if tensor.untyped_storage()._cdata in self.promoted
            or self.constants.was_written(tensor)
        ]

    def promote(self, tensor: torch.Tensor, value: ir.Value | None = None) -> Record:
        """Track a constant from now on, because something traced is written into it.

        Args:
            tensor: The constant.
            value: Its graph value, an initializer unless given.
        """
        with torch._C.DisableTorchFunction():
            base = tensor if tensor._base is None else tensor._base
            nbytes = base.numel() * base.element_size()
            if base is not tensor and nbytes != base.untyped_storage().nbytes():
                base = tensor
            if self.record(base) is None:
                if value is None:
                    value = self.constants.value(base)
                self.constants.before_write(base)  # after the capture, which it copies
                home = self.trace.active[0]
                results = {
                    w: base if w == home else base.detach().clone()
                    for w in range(self.trace.world_count)
                }
                record = self.track(results, value, data=False)
                record.memory.depth = self.fresh.get(base.untyped_storage()._cdata, 0)
                self.promoted[base.untyped_storage()._cdata] = (base, record)
            found = self.record(tensor)
        assert found is not None
        return found

    def adopt(self, tensor: torch.Tensor, base: torch.Tensor, owner: Record) -> Record:
        """Track a tensor that shares the storage of a promoted one."""
        with torch._C.DisableTorchFunction():
            geometry = (
                tensor.size(),
                tensor.stride(),
                tensor.storage_offset() - base.storage_offset(),
            )
            places = torch.arange(base.numel()).as_strided(*geometry).numpy().copy()
            others = {w: t.as_strided(*geometry) for w, t in owner.worlds.items()}
        op = self.op

        def replay(value: ir.Value) -> ir.Value:
            cut: ir.Value = op.Gather(op.Reshape(value, [-1]), places)
            return cut

        def put_back(value: ir.Value, view: ir.Value) -> ir.Value:
            flat = op.ScatterElements(
                op.Reshape(value, [-1]), places.reshape(-1), op.Reshape(view, [-1]), axis=0
            )
            whole: ir.Value = op.Reshape(flat, op.shape(value))
            return whole

        value = replay(self.trace.read(owner))
        record = Record(
            value,
            owner.home,
            others,
            data=owner.data,
            memory=owner.memory,
            view=View(owner, replay, put_back),
        )
        self.describe(value, {owner.home: tensor, **others})
        self.trace.attach(tensor, record)
        return record


def _is_smaller(shape: ir.Shape | None, target: ir.Shape | None) -> bool:
    """Whether a result must be broadcast to what it is written to; unknown sizes are the same."""
    if shape is None or target is None:
        return False
    if len(shape.dims) != len(target.dims):
        return True
    sizes = zip(shape.dims, target.dims, strict=True)
    return any(isinstance(a, int) and a != b for a, b in sizes)
