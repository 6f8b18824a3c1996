"""The torch function mode: every torch call runs once per world and becomes nodes once."""

from __future__ import annotations

import dataclasses
import inspect
import weakref
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from torch.overrides import TorchFunctionMode

from exporters.errors import UnsupportedOpError, UntraceableError, WorldError
from exporters.pytorch import autocast, registry
from exporters.pytorch.composite import composition
from exporters.pytorch.constants import Constants, flat_bytes
from exporters.pytorch.dtypes import from_torch_dtype, to_torch_dtype
from exporters.pytorch.fallbacks import fallback
from exporters.pytorch.handlers import sizes_of, traced_number
from exporters.pytorch.isolation import is_opaque
from exporters.pytorch.lists import call_on_list
from exporters.pytorch.registry import Decomposition, Handler, Lowering, Unlowerable
from exporters.pytorch.specialisation import Call, name_of, tensors_of
from exporters.tracing.lists import StagedList
from exporters.tracing.loops import OuterWrite
from exporters.tracing.record import Record, View
from exporters.tracing.scalars import TracedScalar, plain
from exporters.tracing.trace import Interrupt, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exporters.tracing.source import Source

__all__ = ["Plan", "TorchTracer", "UnsupportedCall"]

_MAX_NESTING = 12  # of torch code traced in place of calls: enough for torch's own layers
PLACEHOLDER_DOMAIN = "bridge.unsupported"


@dataclasses.dataclass(frozen=True, slots=True)
class UnsupportedCall:
    """A call that nothing could turn into nodes."""

    function: str
    arguments: str
    reason: str | None
    source: Source | None


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What is known of a torch callable before it is called.

    Attributes:
        query: It only asks for metadata.
        writes: The name says that it writes to its first argument.
        inplace_index: Position of a Python function's ``inplace`` parameter.
        entries: What is registered for it, or for its functional form when it writes.
        functional: The functional form of an in-place method.
        assigns: It is ``x[index] = value``.
    """

    query: bool
    writes: bool
    inplace_index: int | None
    entries: tuple[registry.Entry, ...]
    functional: Callable[..., Any]
    assigns: bool = False


def plan(func: Any) -> Plan:
    """Look up everything about ``func`` that does not depend on its arguments."""
    if registry.is_query(func):
        return Plan(True, False, None, (), func)
    name = registry.aten_name(func)
    writes = name is not None and name.endswith("_") and not name.endswith("__")
    inplace_index = None
    if name is None:
        try:
            parameters = list(inspect.signature(func).parameters)
        except (TypeError, ValueError):
            parameters = []
        if "inplace" in parameters:
            inplace_index = parameters.index("inplace")
        plain = getattr(func, "__name__", "")
        writes = plain.endswith("_") and not plain.startswith("_")
    entries = registry.find(func)
    functional = func
    if writes:
        functional = _functional(func)
        if functional is not None:
            entries = entries or registry.find(functional)
    assigns = name == "setitem"
    return Plan(False, writes or assigns, inplace_index, entries, functional, assigns)


def _functional(func: Any) -> Any:
    """``Tensor.add`` for ``Tensor.add_``; the callable itself when it has no functional form."""
    name = registry.aten_name(func) or func.__name__
    plain = name.rstrip("_")
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        packet = getattr(torch.ops.aten, plain, None)
        return packet if packet is not None else func
    for owner in (torch.Tensor, torch, torch.nn.functional):
        found = getattr(owner, plain, None)
        if found is not None and callable(found):
            return found
    return func


class TorchTracer(TorchFunctionMode):
    """Sees every call that eager Python makes on tensors.

    Args:
        trace: The framework-neutral trace that is filled.
        named: Parameters and buffers by ``state_dict`` name.

    Attributes:
        keep: Called with every graph value that stands for a tensor, and the tensor in each world;
            later calls may write to it.
    """

    def __init__(self, trace: Trace, named: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.trace = trace
        trace.frontend = self
        self.op = trace.builder
        self.constants = Constants(trace, named)
        self.unsupported: list[UnsupportedCall] = []
        self.random: list[Source | None] = []
        self.promoted: dict[int, tuple[torch.Tensor, Record]] = {}
        self._plans: dict[Any, Plan] = {}
        self._composing: list[Callable[..., Any]] = []
        self._fresh: set[int] = set()  # storages of constants made inside of branches and loops
        self.keep: Callable[[ir.Value, dict[int, torch.Tensor]], None] | None = None
        self._concretes: dict[int, weakref.ref[torch.Tensor]] = {}  # by storage
        self.log: list[Call] = []
        self._log_world: int | None = None
        self._logging = False  # inside a call of the user's: what it is made of is not noted

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
        record = Record(value, home, others, data=data, unbacked=unbacked, memory=self.trace.new_memory())
        self.trace.attach(handle, record)
        with torch._C.DisableTorchFunction():
            for concrete in results.values():
                if concrete.layout is torch.strided:
                    key = concrete.untyped_storage()._cdata
                    known = self._concretes.get(key)
                    if known is None or known() is None:
                        self._concretes[key] = weakref.ref(concrete)
        if self.keep is not None:
            self.keep(value, results)
        return record

    def describe(
        self,
        value: ir.Value,
        results: dict[int, torch.Tensor],
        *,
        unbacked: bool = False,
        dims: Sequence[int | None] | None = None,
    ) -> None:
        """Set the value's dtype and shape from its concrete results."""
        if value.const_value is not None or value.meta.get("sizes") is not None:
            return  # known already: a constant, or another handle's value
        first = results[min(results)]
        ranks = {t.dim() for t in results.values()}
        if len(ranks) > 1:
            self._reject_ranks(results)
        self.trace.describe(
            value,
            from_torch_dtype(first.dtype),
            {w: tuple(t.shape) for w, t in results.items()},
            unbacked=unbacked,
            dims=dims,
        )

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
            return list(x.contents.worlds[world])
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
            if isinstance(x, torch.Size) or not x:
                return list(x)
            return [self.graph(i) for i in x] if isinstance(x, list) else tuple(self.graph(i) for i in x)
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

    # Calls

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.trace.recording:
            return self.replay(func, args, kwargs)
        if self._log_world is None or self._logging:
            return self.dispatch(func, args, kwargs)
        self._logging = True
        try:
            result = self.dispatch(func, args, kwargs)
        finally:
            self._logging = False
        found = tensors_of(self.concrete(result, self._log_world))
        if found:
            source, _ = self.trace.finder.find()
            copies = tuple(t.detach().clone() for t in found)
            self.log.append(Call(name_of(func), source, copies))
        return result

    def replay(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Answer a call eagerly, in the one world that is active."""
        (world,) = self.trace.active
        known = self.plan(func)
        for written in self._target(known, args, kwargs)[2]:
            if self.record(written) is None and self._is_outer(written):
                raise OuterWrite(written)
        args, kwargs = self.concrete(args, world), self.concrete(kwargs, world)
        if self.trace.logs:
            self._note_writes(known, args, kwargs, world)
        result = func(*args, **kwargs)
        self._note_fresh(result, self.leaves(args, kwargs))
        return result

    def _note_fresh(self, result: Any, arguments: Sequence[Any]) -> None:
        """Remember the constants that are made inside of a branch or a loop."""
        found = {t.untyped_storage()._cdata for t in tensors_of(result) if t.layout is torch.strided}
        if found:
            self._fresh |= found - {
                t.untyped_storage()._cdata for t in arguments if isinstance(t, torch.Tensor)
            }

    def _is_outer(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` is a constant from before the branch or loop that is being traced."""
        key = tensor.untyped_storage()._cdata
        owner = self._concretes.get(key)
        held = None if owner is None else owner()
        if held is not None and held.untyped_storage()._cdata == key:
            return False  # it is what a handle is in one world
        return key not in self._fresh

    def plan(self, func: Any) -> Plan:
        """What is known of ``func`` before it is called."""
        known = self._plans.get(func)
        if known is None:
            known = self._plans[func] = plan(func)
        return known

    def _note_writes(
        self, known: Plan, args: Sequence[Any], kwargs: dict[str, Any], world: int
    ) -> None:
        """Let the trace's logs save what a call is about to overwrite."""
        for tensor in self._target(known, args, kwargs)[2]:
            self._note_write(tensor, world)

    def _note_write(self, tensor: torch.Tensor, world: int) -> None:
        for log in self.trace.logs:
            key = tensor.untyped_storage()._cdata
            if (log.worlds is None or world in log.worlds) and key not in log.saved:
                log.saved[key] = TensorMemory(tensor)

    def _refuse_transforms(self) -> None:
        source, _ = self.trace.position()
        raise Interrupt(
            UntraceableError(
                "torch.func transforms (vmap, grad, jvp) are not traced",
                source=source,
                hint="write the function for whole batches, or keep it out of the exported model",
            )
        )

    def log_calls(self, world: int) -> None:
        """Note what every call of user code gives in one world."""
        self._log_world = world

    def dispatch(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Answer one call."""
        if torch._C._functorch.maybe_current_level() is not None:
            self._refuse_transforms()
        self.trace.moved()
        if args and isinstance(args[0], StagedList):
            return call_on_list(self, func, args[0], args[1:], kwargs)
        known = self.plan(func)
        if known.query:
            return func(*args, **kwargs)
        for entry in known.entries:
            if isinstance(entry, Handler):
                return entry.handle(self, func, args, kwargs)
        return self.call(func, known, args, kwargs)

    def call(self, func: Any, known: Plan, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run a call in every active world and lower it once."""
        leaves = self.leaves(args, kwargs)
        tracked = [x for x in leaves if isinstance(x, TracedScalar) or self.record(x) is not None]
        args, kwargs, target = self._target(known, args, kwargs)
        inside = self.op.block is not self.op.main
        outer_write = inside and any(self._is_outer(t) for t in target)
        if not tracked and not outer_write and not self._is_random(known):
            for written in target:
                self.constants.before_write(written)
            result = func(*args, **kwargs)
            if inside:
                self._note_fresh(result, leaves)
            return result

        if known.assigns and self._assigns_itself(*args):
            return None
        functional_args, functional_kwargs = self._functional_arguments(known, args, kwargs)
        reason: str | None = None
        results: dict[int, Any] | None = None
        for entry in known.entries:
            if isinstance(entry, Handler) or not entry.accepts(functional_args, functional_kwargs):
                continue
            if isinstance(entry, Decomposition):
                if entry.when is None or entry.when(*functional_args, **functional_kwargs):
                    return self._compose(func, known, entry.body, args, kwargs, target)
                continue
            for written in target:
                if self.record(written) is None:
                    self.promote(written)
            values = self.graph(tuple(functional_args)), self.graph(functional_kwargs)
            try:
                if target:  # the graph's side first: eager is about to write to its arguments
                    emitted = entry.emit(self.op, *values[0], **values[1])
                    results = self.run(func, args, kwargs)
                else:
                    results = results or self.run(func, args, kwargs)
                    result = results[self.trace.active[0]]
                    same = self._argument_returned(result, leaves)
                    if same is not None:
                        return same  # eager did nothing
                    self._require_equal_lengths(results, tracked)
                    if autocast.is_enabled():
                        values = autocast.cast_arguments(self.op, values, result)
                    emitted = entry.emit(self.op, *values[0], **values[1])
            except Unlowerable as unlowerable:
                reason = str(unlowerable)
                continue
            if entry.random:
                self.random.append(self.trace.position()[0])
            if target:
                self._write(target, emitted)
                result = results[self.trace.active[0]]
                same = self._argument_returned(result, target)
                return result if same is None else same
            data, unbacked = self._taint(tracked)
            return self._wrap(entry, args, values, results, emitted, data=data, unbacked=unbacked)
        return self._compose(func, known, None, args, kwargs, target, reason)

    def run(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[int, Any]:
        """The eager result in every active world.

        Raises:
            Interrupt: Another world than the first fails.
        """
        results: dict[int, Any] = {}
        active = self.trace.active
        for position, world in enumerate(active):
            arguments, named = self.concrete(args, world), self.concrete(kwargs, world)
            if self.trace.logs:
                self._note_writes(self.plan(func), arguments, named, world)
            try:
                results[world] = func(*arguments, **named)
            except Exception as error:
                if world in self.trace.ghosts and (results or position + 1 < len(active)):
                    self.trace.leave_behind([world])
                    continue
                if not results:
                    raise
                source, _ = self.trace.position()
                name = torch.overrides.resolve_name(func) or getattr(func, "__name__", str(func))
                raise Interrupt(
                    WorldError(
                        f"{name} works with the example's sizes, and fails with others: {error}",
                        source=source,
                    )
                ) from error
        return results

    def _argument_returned(self, result: Any, leaves: Sequence[Any]) -> Any:
        """The argument that a call gave back as it was; None if it made something new."""
        if not isinstance(result, torch.Tensor):
            return None
        home = self.trace.active[0]
        for x in leaves:
            if isinstance(x, torch.Tensor) and self.concrete(x, home) is result:
                return x
        return None

    def _assigns_itself(self, tensor: torch.Tensor, index: Any, value: Any) -> bool:
        """Whether ``x[i] = v`` ends an ``x[i] += y``: the value is that very part of ``x``."""
        if not isinstance(value, torch.Tensor):
            return False
        if value.untyped_storage()._cdata != tensor.untyped_storage()._cdata:
            return False
        home = self.trace.active[0]
        place = self.concrete(tensor, home)[self.concrete(index, home)]
        return (
            place.data_ptr() == value.data_ptr()
            and place.shape == value.shape
            and place.stride() == value.stride()
        )

    def _is_random(self, known: Plan) -> bool:
        return any(isinstance(e, Lowering) and e.random for e in known.entries)

    def _taint(self, tracked: Sequence[Any]) -> tuple[bool, bool]:
        """Whether results depend on input values, and whether their sizes may."""
        data = unbacked = False
        for x in tracked:
            if isinstance(x, TracedScalar):
                data = data or x.record.data
                unbacked = unbacked or x.record.data
            else:
                record = self.record(x)
                assert record is not None
                data = data or record.data
                unbacked = unbacked or record.unbacked
        return data, unbacked

    def _target(
        self, known: Plan, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Sequence[Any], dict[str, Any], list[torch.Tensor]]:
        """The tensors that the call writes to."""
        out = kwargs.get("out")
        if out is not None:
            return args, kwargs, list(out) if isinstance(out, tuple | list) else [out]
        written = known.writes
        if known.inplace_index is not None:
            index = known.inplace_index
            written = bool(args[index] if index < len(args) else kwargs.get("inplace", False))
        if written and args and isinstance(args[0], torch.Tensor):
            return args, kwargs, [args[0]]
        return args, kwargs, []

    def _functional_arguments(
        self, known: Plan, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        """The arguments without ``out=`` and ``inplace=``."""
        if "out" in kwargs or "inplace" in kwargs:
            kwargs = {k: v for k, v in kwargs.items() if k not in ("out", "inplace")}
        index = known.inplace_index
        if index is not None and index < len(args):
            args = [*args[:index], False, *args[index + 1 :]]
        return args, kwargs

    def _compose(
        self,
        func: Any,
        known: Plan,
        body: Callable[..., Any] | None,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        target: list[torch.Tensor],
        reason: str | None = None,
    ) -> Any:
        """Trace through plain torch code that does what the call does."""
        functional_args, functional_kwargs = self._functional_arguments(known, args, kwargs)
        body = body or fallback(known.functional, functional_args, functional_kwargs)
        if body is None or body in self._composing:
            body, reason = self._composition(known, functional_args, functional_kwargs, reason)
        if body is None:
            for written in target:
                if self.record(written) is None:
                    self.promote(written)
            results = self.run(func, args, kwargs)
            return self._placeholder(func, args, kwargs, results, reason)
        with self:
            self._composing.append(body)
            try:
                result = body(*functional_args, **functional_kwargs)
            finally:
                self._composing.pop()
            if not target:
                return result
            for written, new in zip(target, result if len(target) > 1 else [result], strict=True):
                if new is not written:
                    written.copy_(new)
        return target[0] if len(target) == 1 else type(kwargs["out"])(target)

    def _composition(
        self, known: Plan, args: Sequence[Any], kwargs: dict[str, Any], reason: str | None
    ) -> tuple[Callable[..., Any] | None, str | None]:
        """Code that makes the calls a C++ operator is composed of, or why there is none."""
        if len(self._composing) > _MAX_NESTING:
            return None, reason
        try:
            return composition(self, known.functional, args, kwargs), reason
        except Exception as error:  # eager's own complaint comes when the call is made
            return None, reason or str(error)

    def _placeholder(
        self,
        func: Any,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        results: dict[int, Any],
        reason: str | None,
    ) -> Any:
        """Note an unsupported call and go on, so that the export can list all of them at once."""
        name = torch.overrides.resolve_name(func) or getattr(func, "__name__", str(func))
        source, _ = self.trace.position()
        self.unsupported.append(
            UnsupportedCall(name, describe_arguments(args, kwargs), reason, source)
        )
        result = results[self.trace.active[0]]
        outputs = [x for x in self.leaves([result], {}) if self.record(x) is None]
        if outputs:
            values = self.op.emit("Unsupported", domain=PLACEHOLDER_DOMAIN, outputs=len(outputs))
            emitted: Any = iter(values if isinstance(values, list) else [values])
            self._track_all(results, emitted, data=True, unbacked=False)
        return result

    # Results

    # What staged control flow asks of a framework

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
            dtype, shape = from_torch_dtype(x.dtype), list(x.shape)
        record = self.record(x)
        if record is not None and record.value.shape is not None:
            dims = record.value.shape.dims
            sizes = record.value.meta.get("sizes") or [None] * len(dims)
            shape = [
                d if isinstance(d, int) else (s and self.trace.symbol(s)) or "?"
                for d, s in zip(dims, sizes, strict=True)
            ]
        return dtype, shape

    def truth(self, x: Any, world: int) -> bool:
        """Whether ``x`` is true in one world."""
        with torch._C.DisableTorchFunction():
            return bool(self.concrete(x, world))

    def shape_of(self, x: torch.Tensor) -> tuple[int, ...]:
        """A concrete tensor's shape."""
        with torch._C.DisableTorchFunction():
            return tuple(x.shape)

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

    def truth(self, x: Any, world: int) -> bool:
        """Whether ``x`` is true in one world."""
        with torch._C.DisableTorchFunction():
            return bool(self.concrete(x, world))

    def from_number(self, number: Any, dtype: ir.DataType) -> torch.Tensor:
        """A rank-0 tensor of a Python number."""
        with torch._C.DisableTorchFunction():
            return torch.tensor(number, dtype=to_torch_dtype(dtype))

    def zeros_like(self, x: Any) -> Any:
        """A constant of the type of ``x``: what is never read."""
        if not isinstance(x, torch.Tensor):
            return type(plain(x))(0)
        with torch._C.DisableTorchFunction():
            return torch.zeros_like(x)

    def item_value(self, item: Any, wanted: Any) -> ir.Value:
        """A list's item as a graph value."""
        if isinstance(item, torch.Tensor):
            value: ir.Value = self.graph(item)
            return value
        return self.op.operand(item, wanted.dtype)

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

    def _require_equal_lengths(self, results: dict[int, Any], tracked: Sequence[Any]) -> None:
        """A call that gives several tensors must give as many in every world."""
        if isinstance(results[self.trace.active[0]], tuple | list):
            lengths = {w: len(r) for w, r in results.items()}
            if len(set(lengths.values())) > 1:
                data, unbacked = self._taint(tracked)
                self.trace.decide(lengths, data=data and unbacked, asked="the number of results of")

    def _track_all(self, results: dict[int, Any], emitted: Any, *, data: bool, unbacked: bool) -> None:
        """Track every tensor in a nest of results, taking values from the iterator ``emitted``."""
        first = results[self.trace.active[0]]
        if isinstance(first, torch.Tensor):
            if self.trace.record(first) is None:
                self.track(results, next(emitted), data=data, unbacked=unbacked)
        elif isinstance(first, tuple | list):
            for index in range(len(first)):
                parts = {w: r[index] for w, r in results.items()}
                self._track_all(parts, emitted, data=data, unbacked=unbacked)

    def _wrap(
        self,
        entry: Lowering,
        args: Sequence[Any],
        values: Any,
        results: dict[int, Any],
        emitted: Any,
        *,
        data: bool,
        unbacked: bool,
    ) -> Any:
        result = results[self.trace.active[0]]
        if isinstance(emitted, TracedScalar):
            return emitted
        if isinstance(result, torch.Tensor):
            self._result(entry, args, values, results, emitted, None, data=data, unbacked=unbacked)
        elif isinstance(result, tuple | list):
            for index, value in enumerate(emitted):
                if value is None or not isinstance(result[index], torch.Tensor):
                    continue
                parts = {w: r[index] for w, r in results.items()}
                self._result(entry, args, values, parts, value, index, data=data, unbacked=unbacked)
        return result

    def _result(
        self,
        entry: Lowering,
        args: Sequence[Any],
        values: Any,
        results: dict[int, torch.Tensor],
        value: ir.Value,
        index: int | None,
        *,
        data: bool,
        unbacked: bool,
    ) -> None:
        handle = results[self.trace.active[0]]
        expected = from_torch_dtype(handle.dtype)
        unbacked = bool(value.meta.get("unbacked", unbacked))  # a lowering may know better
        if value.dtype is not None and value.dtype != expected:
            value = self.op.cast(value, expected)
        record = self.track(results, value, data=data, unbacked=unbacked)
        self._link_view(record, handle, entry, args, values, index)

    def _link_view(
        self,
        record: Record,
        handle: torch.Tensor,
        entry: Lowering,
        args: Sequence[Any],
        values: Any,
        index: int | None,
    ) -> None:
        """Make ``record`` a view of the argument that it shares storage with, if there is one."""
        storage = handle.untyped_storage()._cdata
        for x in args:
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata == storage:
                base = self.record(x)
                break
        else:
            return
        if base is None:
            return
        before = self.trace.read(base)
        op = self.op
        positional, keywords = values

        def emit_again(value: ir.Value) -> Any:
            arguments = [value if v is before else v for v in positional]
            named = {k: value if v is before else v for k, v in keywords.items()}
            emitted = entry.emit(op, *arguments, **named)
            return emitted if index is None else emitted[index]

        def put_back(base_value: ir.Value, view_value: ir.Value) -> ir.Value:
            if entry.put_back is not None:
                rest = [v for v in positional if v is not before]
                rest = rest if index is None else [index, *rest]
                result: ir.Value = entry.put_back(op, base_value, view_value, *rest, **keywords)
                return result
            return scatter_view(op, base_value, view_value, emit_again)

        record.memory = base.memory
        record.seen = base.memory.writes
        record.view = View(base, emit_again, put_back)

    def _write(self, target: list[torch.Tensor], emitted: Any) -> None:
        """Let each written tensor hold the value that its functional form computed."""
        values = list(emitted) if isinstance(emitted, tuple | list) else [emitted]
        for tensor, value in zip(target, values, strict=False):
            record = self.record(tensor)
            assert record is not None
            results = self.worlds(tensor)
            wanted = from_torch_dtype(tensor.dtype)
            value = self.op.cast(value, wanted)
            if _is_smaller(value.shape, record.value.shape):
                value = self._broadcast(value, self.trace.read(record))
            self.describe(value, results, unbacked=record.unbacked)
            self.trace.write(record, value)
            if self.keep is not None:
                self.keep(value, results)

    def _broadcast(self, value: ir.Value, like: ir.Value) -> ir.Value:
        if value.shape is None or like.shape is None:
            return value
        if len(value.shape.dims) > len(like.shape.dims):  # out= was resized
            return value
        return self.op.Expand(value, self.op.shape(like))

    def worlds(self, tensor: torch.Tensor) -> dict[int, torch.Tensor]:
        """The tensor in every active world that knows it."""
        record = self.record(tensor)
        if record is None:
            return dict.fromkeys(self.trace.active, tensor)
        known = {record.home: tensor, **record.worlds}
        return {w: known[w] for w in self.trace.active if w in known}

    def mutated(self, named: dict[str, torch.Tensor]) -> list[str]:
        """The parameters and buffers that something was written into."""
        return [
            name
            for name, tensor in named.items()
            if tensor.untyped_storage()._cdata in self.promoted or self.constants.was_written(tensor)
        ]

    # Constants that start to vary

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
                record.memory.depth = 0  # it was there before any branch or loop
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
        record = Record(value, owner.home, others, data=owner.data, memory=owner.memory,
                        view=View(owner, replay, put_back))
        self.describe(value, {owner.home: tensor, **others})
        self.trace.attach(tensor, record)
        return record


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


def _is_smaller(shape: ir.Shape | None, target: ir.Shape | None) -> bool:
    """Whether a result must be broadcast to what it is written to; unknown sizes are the same."""
    if shape is None or target is None:
        return False
    if len(shape.dims) != len(target.dims):
        return True
    sizes = zip(shape.dims, target.dims, strict=True)
    return any(isinstance(a, int) and a != b for a, b in sizes)


def scatter_view(
    op: Any, base: ir.Value, view: ir.Value, replay: Callable[[ir.Value], ir.Value]
) -> ir.Value:
    """Write a view back into its base by position: the view of the positions says where."""
    shape = op.shape(base)
    count = op.ReduceProd(shape, keepdims=0)
    positions = op.Reshape(op.Range(0, count, 1), shape)
    positions.shape = base.shape
    positions.meta["sizes"] = base.meta.get("sizes")
    places = op.Reshape(replay(positions), [-1])
    flat = op.ScatterElements(op.Reshape(base, [-1]), places, op.Reshape(view, [-1]), axis=0)
    result: ir.Value = op.Reshape(flat, shape)
    return result


def describe_arguments(args: Sequence[Any], kwargs: dict[str, Any]) -> str:
    """A call's arguments as ``float32[2, 3], dim=1``."""

    def one(x: Any) -> str:
        if isinstance(x, torch.Tensor):
            return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"
        if isinstance(x, tuple | list):
            inside = ", ".join(one(i) for i in x)
            return f"[{inside}]" if isinstance(x, list) else f"({inside})"
        return repr(x) if isinstance(x, int | float | str | None) else str(x)

    return ", ".join([*(one(x) for x in args), *(f"{k}={one(v)}" for k, v in kwargs.items())])


def unsupported_error(calls: Sequence[UnsupportedCall]) -> UnsupportedOpError:
    """One error that lists every unsupported call, each distinct one once."""
    lines: list[str] = []
    seen: set[Any] = set()
    for call in calls:
        if (call.function, call.source) in seen:
            continue
        seen.add((call.function, call.source))
        lines.append(f"no ONNX lowering for {call.function}({call.arguments})")
        if call.reason:
            lines.append(f"  {call.reason}")
        if call.source is not None:
            lines.append(f"  at {call.source}")
            lines.append(call.source.excerpt())
    first = calls[0].function
    closest = registry.closest(first)
    near = f"; the closest supported call is {closest}" if closest else ""
    return UnsupportedOpError(
        "\n".join(lines),
        hint=f"register one with `@lowers({first})`, see docs/how-to/add-an-op{near}",
    )
