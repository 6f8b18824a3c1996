"""The torch function mode: every torch call runs once per world and becomes nodes once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from exporters.errors import WorldError
from exporters.pytorch import autocast
from exporters.pytorch.arrays import StagedArrays, TensorMemory
from exporters.pytorch.call_arguments import plain_arguments, repaired_arguments
from exporters.pytorch.composite import composition
from exporters.pytorch.dtypes import element_type, is_complex
from exporters.pytorch.fallbacks import fallback, named_result
from exporters.pytorch.lists import call_on_list
from exporters.pytorch.loans import Loans
from exporters.pytorch.memo import CallMemo
from exporters.pytorch.optionals import call_either_way, settled_arguments
from exporters.pytorch.pieces import in_pieces
from exporters.pytorch.plans import Plan, plan
from exporters.pytorch.registry import (
    Decomposition,
    Handler,
    Lowering,
    UnknownCountError,
    Unlowerable,
    respelled,
)
from exporters.pytorch.specialisation import KEEP_IN_TORCH, Call, name_of, tensors_of
from exporters.pytorch.unsupported import (
    PLACEHOLDER_DOMAIN,
    UnsupportedCall,
    describe_arguments,
    untraced_transform,
)
from exporters.pytorch.views import assigns_itself, scatter_view
from exporters.tracing.lists import StagedList
from exporters.tracing.record import Record, View
from exporters.tracing.replay import OuterWrite
from exporters.tracing.scalars import TracedScalar
from exporters.tracing.trace import Interrupt, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx_ir as ir

    from exporters.tracing.source import Source

__all__ = ["TorchTracer"]

_MAX_NESTING = 12  # of torch code traced in place of calls: enough for torch's own layers


class TorchTracer(StagedArrays, TorchFunctionMode):
    """Sees every call that eager Python makes on tensors.

    Args:
        trace: The framework-neutral trace that is filled.
        named: Parameters and buffers by ``state_dict`` name.
    """

    def __init__(self, trace: Trace, named: dict[str, torch.Tensor]) -> None:
        super().__init__(trace, named)
        trace.frontend = self
        self.unsupported: list[UnsupportedCall] = []
        self.random: list[Source | None] = []
        self._plans: dict[Any, Plan] = {}
        self._composing: list[Callable[..., Any]] = []
        self.loans = Loans()
        self.memo = CallMemo()
        self.log: list[Call] = []
        self._log_world: int | None = None
        self.captured: Any = None  # while calls are none of the trace's: what is read in them
        self._logging = False  # inside a call of the user's: what it is made of is not noted

    # Calls

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.captured is not None:
            return func(*args, **kwargs)
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
        result = self._call(func, args, kwargs, world)
        self._note_fresh(result, self.leaves(args, kwargs))
        return result

    def _call(self, func: Any, args: Any, kwargs: dict[str, Any], world: int) -> Any:
        """A concrete call; where only its kind matters, there is an item in every empty tensor."""
        try:
            return self.memo.call(func, args, kwargs)
        except (IndexError, RuntimeError) as error:
            repaired = repaired_arguments(error, args, kwargs)
            if world not in self.trace.ghosts or repaired is None:
                raise
            return func(*repaired[0], **repaired[1])

    def _note_fresh(self, result: Any, arguments: Sequence[Any]) -> None:
        """Remember where constants are made: inside of a branch or a loop, or not."""
        found = {
            t.untyped_storage()._cdata for t in tensors_of(result) if t.layout is torch.strided
        }
        given = {t.untyped_storage()._cdata for t in arguments if isinstance(t, torch.Tensor)}
        depth = self.trace.depth()
        for key in found - given:
            if depth or not self.trace.recording:
                self.fresh[key] = depth
            else:  # an older storage had the same address
                self.fresh.pop(key, None)

    def _is_outer(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` is a constant from before the branch or loop that is being traced."""
        key = tensor.untyped_storage()._cdata
        return self.concrete_of(key) is None and key not in self.fresh

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

    def log_calls(self, world: int) -> None:
        """Note what every call of user code gives in one world."""
        self._log_world = world

    def dispatch(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Answer one call."""
        if torch._C._functorch.maybe_current_level() is not None:
            raise untraced_transform(self.trace)
        self.trace.moved()
        args, kwargs = plain_arguments(args, kwargs)
        if args and isinstance(args[0], StagedList):
            return call_on_list(self, func, args[0], args[1:], kwargs)
        if (parts := in_pieces(self, func, args, kwargs)) is not None:
            return parts
        known = self.plan(func)
        if known.query:
            return func(*args, **kwargs)
        if self.trace.optional and not self._target(known, args, kwargs)[2]:
            args, kwargs, maybe = settled_arguments(self, func, args, kwargs)
            if maybe is not None:
                with self:
                    return call_either_way(self.trace, func, args, kwargs, maybe)
        for entry in known.entries:
            if isinstance(entry, Handler):
                return entry.handle(self, func, args, kwargs)
        return self.call(func, known, args, kwargs)

    def call(self, func: Any, known: Plan, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run a call in every active world and lower it once."""
        leaves = self.leaves(args, kwargs)
        args, kwargs, target = self._target(known, args, kwargs)
        for written in target:
            self.loans.settle(self, written)
        tracked = [x for x in leaves if isinstance(x, TracedScalar) or self.record(x) is not None]
        inside = self.op.block is not self.op.main
        outer_write = inside and any(self._is_outer(t) for t in target)
        if not tracked and not outer_write and not self._is_random(known):
            for written in target:
                self.constants.before_write(written)
            result = func(*args, **kwargs)
            if inside or self.fresh:
                self._note_fresh(result, leaves)
            return result

        if known.assigns and assigns_itself(self, *args):
            return None
        if known.reshapes and self.record(args[0]) is not None:
            return self._reshape(func, known, args, kwargs)
        functional_args, functional_kwargs = self._functional_arguments(known, args, kwargs)
        reason: str | None = None
        results: dict[int, Any] | None = None
        has_complex = is_complex(args) or is_complex(tuple(kwargs.values()))
        entries = known.accepting(functional_args, functional_kwargs, has_complex=has_complex)
        if not entries or "sections" in kwargs or "indices" in kwargs:
            again = respelled(known.functional, functional_args, functional_kwargs)
            if again is not None:
                out = {k: kwargs[k] for k in ("out",) if k in kwargs}
                args, kwargs = again[0], again[1] | out
                functional_args, functional_kwargs = again
                entries = known.accepting(*again, has_complex=has_complex)
        for entry in entries:
            if entry.when is not None and not entry.when(*functional_args, **functional_kwargs):
                continue
            if isinstance(entry, Decomposition):
                try:
                    return self._compose(func, known, entry.body, args, kwargs, target)
                except Unlowerable as unlowerable:
                    reason = str(unlowerable)
                continue
            if entry.pairs and not has_complex:  # it may make complex numbers of real ones
                if target:
                    continue
                results = results or self.run(func, args, kwargs)
                if not is_complex(results[self.trace.active[0]]):
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
                    if same is not None and self._is_same_everywhere(same, results):
                        return same  # eager did nothing
                    if same is not None:  # contiguous() copies where sizes are others
                        results[self.trace.active[0]] = result.detach()
                    self._require_equal_lengths(results, tracked)
                    if autocast.is_enabled():
                        values = autocast.cast_arguments(self.op, values, result)
                    emitted = entry.emit(self.op, *values[0], **values[1])
            except Unlowerable as unlowerable:
                if isinstance(unlowerable, UnknownCountError) and results is not None:
                    self._require_equal_lengths(results, tracked, certain=False)
                reason = str(unlowerable)
                continue
            if entry.random:
                self.random.append(self.trace.position()[0])
            if target:
                self.write(target, emitted, data=self._taint(tracked)[0])
                result = results[self.trace.active[0]]
                same = self._argument_returned(result, target)
                return result if same is None else same
            data, unbacked = self._taint(tracked, sized=not known.pointwise)
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
                results[world] = self._call(func, arguments, named, world)
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
                        hint=KEEP_IN_TORCH,
                    )
                ) from error
        return results

    def _reshape(self, func: Any, known: Plan, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Let a handle be what a view of it would be: ``x.squeeze_()``."""
        tensor = args[0]
        before = self.record(tensor)
        view = self.call(known.functional, self.plan(known.functional), args, kwargs)
        made = self.record(view)
        assert before is not None
        assert made is not None
        self.run(func, args, kwargs)
        if made is not before:
            after = Record(
                made.value,
                before.home,
                before.worlds,
                data=before.data,
                unbacked=made.unbacked,
                memory=made.memory,
                view=made.view,
            )
            after.seen = made.seen
            self.trace.attach(tensor, after)
        return tensor

    def _argument_returned(self, result: Any, leaves: Sequence[Any]) -> Any:
        """The argument that a call gave back as it was; None if it made something new."""
        if not isinstance(result, torch.Tensor):
            return None
        home = self.trace.active[0]
        for x in leaves:
            if isinstance(x, torch.Tensor) and self.concrete(x, home) is result:
                return x
        return None

    def _is_same_everywhere(self, argument: torch.Tensor, results: dict[int, Any]) -> bool:
        return all(self.concrete(argument, w) is result for w, result in results.items())

    def _is_random(self, known: Plan) -> bool:
        return any(isinstance(e, Lowering) and e.random for e in known.entries)

    def _taint(self, tracked: Sequence[Any], *, sized: bool = True) -> tuple[bool, bool]:
        """Whether results depend on input values, and whether their sizes may.

        Args:
            tracked: The traced ones among a call's arguments.
            sized: Whether numbers may be sizes.
        """
        data = unbacked = False
        for x in tracked:
            if isinstance(x, TracedScalar):
                data = data or x.record.data
                unbacked = unbacked or (sized and x.record.data)
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
        if known.inplace_index is not None and known.inplace_index < len(args):
            args = [*args[: known.inplace_index], False, *args[known.inplace_index + 1 :]]
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
            return self._placeholder(func, args, kwargs, results, target, reason)
        with self:
            self._composing.append(body)
            try:
                result = body(*functional_args, **functional_kwargs)
            finally:
                self._composing.pop()
            if not target:
                return named_result(known.functional, result)
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
        target: list[torch.Tensor],
        reason: str | None,
    ) -> Any:
        """Note an unsupported call and go on, so that the export can list all of them at once."""
        name = torch.overrides.resolve_name(func) or getattr(func, "__name__", str(func))
        if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
            name = f"torch.ops.{func}"
        source, _ = self.trace.position()
        result = results[self.trace.active[0]]
        outputs = [x for x in self.leaves([result], {}) if self.record(x) is None]
        node = None
        if outputs or target:
            leaves = self.leaves(args, kwargs)
            tracked = [x.scalar() for x in leaves if isinstance(x, TracedScalar)]
            records = [self.record(x) for x in leaves if isinstance(x, torch.Tensor)]
            tracked += [self.trace.read(r) for r in records if r is not None]
            emitted = self.op.emit(
                "Unsupported",
                *tracked,
                domain=PLACEHOLDER_DOMAIN,
                outputs=len(outputs) + len(target),
            )
            values = emitted if isinstance(emitted, list) else [emitted]
            node = values[0].producer()
            self.write(target, values[len(outputs) :])
            self._track_all(results, iter(values), data=True, unbacked=False)
        if node is not None or result is not None:
            self.unsupported.append(
                UnsupportedCall(name, describe_arguments(args, kwargs), reason, source, node)
            )
        return result

    # Results

    def _require_equal_lengths(
        self, results: dict[int, Any], tracked: Sequence[Any], *, certain: bool = True
    ) -> None:
        """A call that gives several tensors must give as many in every world."""
        if isinstance(results[self.trace.active[0]], tuple | list):
            lengths = {w: len(r) for w, r in results.items()}
            if len(set(lengths.values())) > 1 or not certain:
                data, unbacked = self._taint(tracked)
                self.trace.decide(
                    lengths, data=data and unbacked, asked="the number of results of"
                )

    def _track_all(
        self, results: dict[int, Any], emitted: Any, *, data: bool, unbacked: bool
    ) -> None:
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
                self._result(
                    entry, args, values, parts, value, index, data=data, unbacked=unbacked
                )
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
        expected = element_type(handle.dtype)
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
        world = self.trace.active[0]  # whose result the handle is, if not whose arguments
        for x in args:
            if not isinstance(x, torch.Tensor):
                continue
            if self.concrete(x, world).untyped_storage()._cdata == storage:
                base = self.record(x)
                break
        else:
            return
        before = self.graph(x)
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

        if base is None:
            self.loans.note(handle, x, emit_again, put_back)
            return
        record.memory = base.memory
        record.seen = base.memory.writes
        record.view = View(base, emit_again, put_back, args[1] if len(args) > 1 else None)
