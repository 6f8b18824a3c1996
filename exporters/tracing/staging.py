"""``if`` whose condition only run time knows, and what all staged statements share."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from exporters.errors import BranchMismatchError, ScriptError
from exporters.tracing.effects import Change, MemoryLog, Snapshot
from exporters.tracing.finish import live_nodes
from exporters.tracing.lists import ScanList, StagedList
from exporters.tracing.merging import (
    UNBOUND,
    Merged,
    Slot,
    Ways,
    flatten_state,
    is_staged,
    leaf_in,
    leaf_value,
    make_leaf,
    static_dims,
)
from exporters.tracing.scalars import ScalarRecord, TracedBool
from exporters.tracing.trace import Assumption, Interrupt, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from exporters.tracing.graph import Block
    from exporters.tracing.record import Record
    from exporters.tracing.source import Source

__all__ = ["Scope", "condition_in", "condition_value", "if_", "recorded", "seal"]

INTERNAL = "ag__"  # names that the compiler made up

# Nodes that may run although their branch is not taken: no failure, no side effect, little time.
_CHEAP = frozenset(
    ["Abs", "Add", "And", "Cast", "Ceil", "Clip", "Cos", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Min", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Softplus", "Sqrt", "Sub", "Tanh", "Where", "Xor", "Unsqueeze"]
)
_CHEAP_NODES = 6


@dataclasses.dataclass(frozen=True, slots=True)
class Scope:
    """What compiled code tells of a statement.

    Attributes:
        names: Names that the statement may bind and that matter afterwards.
        get: Their values; UNBOUND for those without.
        set: Binds them.
        roots: The values of all names that the statement's bodies read.
        source: Where it stands.
        fenced: The line of a ``try`` around it, in which nothing can be staged.
        lenient: A name that only one branch binds is read only where that branch was taken, so it
            may hold anything elsewhere.
    """

    names: tuple[str, ...]
    get: Callable[[], tuple[Any, ...]]
    set: Callable[[tuple[Any, ...]], None]
    roots: Callable[[], tuple[Any, ...]]
    source: Source | None = None
    fenced: int | None = None
    lenient: bool = False


def recorded() -> Trace | None:
    """The current trace while it records; None in eager code and in eager replays."""
    trace = Trace.current()
    return trace if trace is not None and trace.live and trace.recording else None


def condition_in(trace: Trace, x: Any, world: int) -> bool:
    """A condition's truth in one world."""
    return bool(trace.frontend.truth(x, world))


def condition_value(trace: Trace, x: Any) -> ir.Value:
    """A staged condition as a BOOL value of rank 0."""
    op = trace.builder
    if trace.frontend.is_array(x):
        value = trace.frontend.graph(x)
        if value.shape is None or len(value.shape.dims):
            value = op.Reshape(value, [])
            value.shape = ir.Shape([])
    else:
        value = op.operand(x)
    return op.cast(value, ir.DataType.BOOL)


def is_data(trace: Trace, x: Any) -> bool:
    """Whether a condition depends on input values, not only on sizes."""
    record = x.record if hasattr(x, "record") else trace.record(x)
    return bool(record is None or record.data)


@dataclasses.dataclass(slots=True)
class Outcome:
    """What running a body left behind.

    Attributes:
        block: The nodes it emitted.
        result: What it returned.
        names: The objects that the names of its scope were bound to afterwards.
        values: What these held then.
        changes: Places in objects that it changed.
        memories: Storage that it wrote to, with its value afterwards.
        active: The worlds that got through.
        snapshot: The objects as they were before.
    """

    block: Block
    result: Any
    names: tuple[Any, ...]
    values: tuple[Any, ...]
    changes: dict[Any, Change]
    memories: dict[int, tuple[Record, ir.Value]]
    active: tuple[int, ...]
    snapshot: Snapshot


@contextlib.contextmanager
def worlds_of(trace: Trace, active: Sequence[int], ghosts: Iterable[int]) -> Iterator[None]:
    """Let only some worlds take part."""
    before = trace.active, trace.ghosts
    trace.active, trace.ghosts = tuple(active), frozenset(ghosts)
    try:
        yield
    finally:
        trace.active, trace.ghosts = before


def run_body(
    trace: Trace,
    body: Callable[[], Any],
    scope: Scope,
    kind: str,
    *,
    active: Sequence[int],
    ghosts: Iterable[int],
    prepare: Callable[[Block], None] | None = None,
    finish: Callable[[Outcome], None] | None = None,
    transient: bool = False,
) -> Outcome:
    """Trace a body into a block of its own, and take back everything it did outside of it.

    Args:
        trace: The trace.
        body: What to run.
        scope: The statement's scope.
        kind: The block's kind, ``if`` or ``loop``.
        active: Worlds that take part, the ones that matter first.
        ghosts: Those of them that only come along.
        prepare: Called inside the block before the body.
        finish: Called inside the block after the body, before its effects are taken back.
        transient: Whether in-place writes are taken back in all worlds, not only in ghosts.
    """
    builder = trace.builder
    names = scope.get()
    snapshot = Snapshot((*scope.roots(), *names), trace.frontend.is_opaque)
    block = trace.new_block(kind)
    log = MemoryLog(None if transient else frozenset(ghosts))
    outer, builder.block = builder.block, block
    trace.logs.append(log)
    try:
        with worlds_of(trace, active, ghosts):
            if prepare is not None:
                prepare(block)
            result = body()
            bound = scope.get()
            outcome = Outcome(
                block=block,
                result=frozen(trace, result),
                names=bound,
                values=tuple(frozen(trace, x) for x in bound),
                changes={
                    c.place: dataclasses.replace(c, after=frozen(trace, c.after))
                    for c in snapshot.changes()
                },
                memories={
                    key: (record, trace.read(record))
                    for key, record in block.written.items()
                    if record.memory.depth <= _depth(outer)
                },
                active=trace.active,
                snapshot=snapshot,
            )
            if finish is not None:
                finish(outcome)
            return outcome
    finally:
        trace.logs.pop()
        log.swap()
        for undo in reversed(block.undo):
            undo()
        builder.block = outer
        scope.set(names)
        snapshot.restore()


def frozen(trace: Trace, x: Any) -> Any:
    """``x`` in containers of its own, which later changes do not reach."""
    if isinstance(x, StagedList) or x is Change.MISSING or isinstance(x, ScanList):
        return x
    leaves, tree = flatten_state(trace, x)
    return x if tree.kind in ("leaf", "static") else tree.unflatten(leaves)


def _depth(block: Block) -> int:
    return sum(1 for _ in block.ancestry()) - 1


def raise_unowned(label: str, scope: Scope) -> None:
    """Complain of a list that changes its length where nobody can be told."""
    raise Interrupt(
        BranchMismatchError(
            f"the list `{label or '?'}` changes its length here, and is reached through a name that "
            "this function does not own",
            source=scope.source,
            hint="make the list in the function that fills it",
        )
    )


def refuse_in_try(scope: Scope) -> None:
    """Raise if the statement stands in a ``try``, which a graph does not have."""
    if scope.fenced is not None:
        raise Interrupt(
            ScriptError(
                f"this depends on the input inside of the `try` of line {scope.fenced}; a graph "
                "raises no exceptions",
                source=scope.source,
                hint="move the branch or loop out of the try statement",
            )
        )


# --- if -----------------------------------------------------------------------------------------


def if_(
    condition: Any,
    then: Callable[[], Any],
    orelse: Callable[[], Any],
    scope: Scope,
    *,
    raises: tuple[bool, bool] = (False, False),
) -> Any:
    """Run one of two branches, or stage both.

    Args:
        condition: What decides: a plain value natively, a handle at run time.
        then: The branch for true; binds names through ``nonlocal``, returns a value or None.
        orelse: The branch for false.
        scope: What the branches bind.
        raises: Whether each branch ends with ``raise``.

    Raises:
        BranchMismatchError: A name has another type after each branch.
        ScriptError: A branch that no example takes cannot be traced.
    """
    trace = Trace.current()
    if trace is None or not trace.live or not is_staged(trace, condition):
        return then() if condition else orelse()
    if not trace.recording:
        return then() if condition_in(trace, condition, trace.active[0]) else orelse()
    refuse_in_try(scope)
    return _StagedIf(trace, condition, (then, orelse), scope, raises).run()


class _StagedIf:
    def __init__(
        self,
        trace: Trace,
        condition: Any,
        branches: tuple[Callable[[], Any], Callable[[], Any]],
        scope: Scope,
        raises: tuple[bool, bool],
    ) -> None:
        self.trace = trace
        self.condition = condition
        self.branches = branches
        self.scope = scope
        self.raises = raises
        self.truth = {w: condition_in(trace, condition, w) for w in trace.active}

    def taking(self, which: int) -> list[int]:
        """The worlds that take a branch: 0 for true, 1 for false."""
        return [w for w in self.trace.active if self.truth[w] is (which == 0)]

    def run(self) -> Any:
        trace = self.trace
        value = condition_value(trace, self.condition)
        order = (1, 0) if self.raises[1] or not self.taking(1) else (0, 1)
        outcomes: dict[int, Outcome] = {}
        for which in order:
            outcome = self._branch(which)
            if outcome is None:
                return self.branches[1 - which]()  # the other one is always taken
            outcomes[which] = outcome
        both = outcomes[0], outcomes[1]
        for w in trace.active:  # a ghost that got lost in the branch it takes is lost
            if w not in both[0 if self.truth[w] else 1].active:
                trace.leave_behind([w])
        return _IfMerge(self, value, both).apply()

    def _branch(self, which: int) -> Outcome | None:
        """Trace a branch; None if it can be taken for granted that it is never taken."""
        trace = self.trace
        taking = self.taking(which)
        others = [w for w in trace.active if w not in taking]
        firm = [w for w in taking if w not in trace.ghosts]
        along = [w for w in taking if w in trace.ghosts] + others
        try:
            return run_body(
                trace,
                self.branches[which],
                self.scope,
                "if",
                active=[*firm, *along],
                ghosts=along,
            )
        except Exception as error:
            if firm:
                raise
            if self.raises[which]:
                self._assume(which, "never raises")
                return None
            if not is_data(trace, self.condition):
                self._assume(which, "is not taken")
                return None
            way = "if" if which == 0 else "else"
            raise Interrupt(
                ScriptError(
                    f"the `{way}` branch, which no example takes, cannot be traced: "
                    f"{type(error).__name__}: {error}",
                    source=self.scope.source,
                    hint="give an example that takes it with examples=[...]",
                )
            ) from error

    def _assume(self, which: int, what: str) -> None:
        way = "the `if` branch" if which == 0 else "the `else` branch"
        source = self.scope.source
        text = "" if source is None else source.excerpt().split("\n")[0].strip()
        assumption = Assumption(f"that {way} of `{text}` {what}", True, source)
        if assumption not in self.trace.assumptions:
            self.trace.assumptions.append(assumption)


class _IfMerge:
    """Joins the two outcomes: names, places, memory, results become outputs of one node."""

    def __init__(
        self, staged: _StagedIf, value: ir.Value, outcomes: tuple[Outcome, Outcome]
    ) -> None:
        self.staged = staged
        self.trace = staged.trace
        self.value = value
        self.outcomes = outcomes
        self.ways = Ways(
            self.trace,
            ("the `if` branch", "the `else` branch"),
            staged.scope.source,
            choose=self._choose,
        )
        self.slots: list[Slot] = []
        self.values: list[tuple[ir.Value, ir.Value]] = []

    def _choose(self, values: Sequence[Any]) -> Any:
        """One of two layers, keys or functions, by the condition."""
        from exporters.tracing.chosen import Chosen  # it stages branches itself

        record = ScalarRecord(self.trace, dict(self.staged.truth), data=True, scalar=self.value)
        return Chosen(TracedBool(record), [True, False], list(values))

    def apply(self) -> Any:
        trace, scope = self.trace, self.staged.scope
        then, orelse = self.outcomes
        names = [self._merge_name(i, n) for i, n in enumerate(scope.names)]
        result = self.ways.merge("the returned value", [then.result, orelse.result])
        places = {**then.changes, **orelse.changes}
        changed = {
            place: self.ways.merge(
                change.label,
                [
                    o.changes[place].after if place in o.changes else change.before
                    for o in self.outcomes
                ],
            )
            for place, change in places.items()
        }
        for merged in (*names, result, *changed.values()):
            if isinstance(merged, Merged):
                self.slots += merged.slots
        written = {**then.memories, **orelse.memories}
        for slot in self.slots:
            self.values.append(tuple(self._value(slot, which) for which in (0, 1)))  # type: ignore[arg-type]
        for key, (record, _) in written.items():
            self.values.append(
                tuple(  # type: ignore[arg-type]
                    o.memories[key][1] if key in o.memories else trace.read(record)
                    for o in self.outcomes
                )
            )
        outputs = self._emit()
        made = iter(
            self._make(slot, i, v)
            for i, (slot, v) in enumerate(zip(self.slots, outputs, strict=False))
        )
        before = scope.get()
        scope.set(
            tuple(
                self._rebuilt(merged, made) if merged is not _SAME else old
                for merged, old in zip(names, before, strict=True)
            )
        )
        returned = self._rebuilt(result, made)
        for place, change in places.items():
            value = self._rebuilt(changed[place], made)
            if change.key is None and isinstance(value, StagedList):
                self._rebind(change, value)
            else:
                change.put(value)
        for (record, _), value in zip(written.values(), outputs[len(self.slots) :], strict=True):
            value.type = record.value.type
            value.shape = record.value.shape
            value.meta["sizes"] = record.value.meta.get("sizes")
            trace.write(record, value)
        return returned

    def _rebind(self, change: Change, value: StagedList) -> None:
        """Let everything that reaches a list of known length reach a staged one."""
        scope = self.staged.scope
        names = list(scope.get())
        held = [i for i, x in enumerate(names) if x is change.container]
        places = self.outcomes[0].snapshot.places_of(change.container)
        if not held and not places:
            raise_unowned(change.label, scope)
        for index in held:
            names[index] = value
        scope.set(tuple(names))
        for container, key, _ in places:
            container[key] = value

    def _merge_name(self, index: int, name: str) -> Any:
        before = self.staged.scope.get()[index]
        if all(o.names[index] is before for o in self.outcomes):
            return _SAME
        values = [o.values[index] for o in self.outcomes]
        known = [v for v in values if v is not UNBOUND]
        if (name.startswith(INTERNAL) or self.staged.scope.lenient) and len(known) == 1:
            bound = known[0]
            return _dummies(self.trace, name, values, bound)
        merged = self.ways.merge(name, values)
        if merged is UNBOUND and any(v is not UNBOUND for v in values):
            way = self.ways.names[0 if values[0] is not UNBOUND else 1]
            self.trace.unbound[name] = (way, self.staged.scope.source)
        return merged

    def _rebuilt(self, merged: Any, made: Iterator[Any]) -> Any:
        if isinstance(merged, Merged):
            return merged.rebuild([next(made) for _ in merged.slots])
        return merged

    def _value(self, slot: Slot, which: int) -> ir.Value:
        """A slot's value as one branch leaves it, computed at the end of that branch."""
        builder = self.trace.builder
        outer, builder.block = builder.block, self.outcomes[which].block
        try:
            return leaf_value(self.trace, slot.values[which], slot.type)
        finally:
            builder.block = outer

    def _make(self, slot: Slot, index: int, value: ir.Value) -> Any:
        trace = self.trace
        worlds = {
            w: leaf_in(trace, slot.values[0 if self.staged.truth[w] else 1], slot.type, w)
            for w in trace.active
        }
        dims = static_dims(self.values[index]) if slot.type.kind == "array" else None
        unbacked = slot.type.kind == "array" and _sizes_differ(*self.values[index])
        return make_leaf(trace, worlds, value, slot.type, dims=dims, unbacked=unbacked)

    def _emit(self) -> list[ir.Value]:
        """The outputs: of an ``If``, or of the branches' own nodes where both may run."""
        outputs = self._logical()
        rest = [i for i, x in enumerate(outputs) if x is None]
        if not rest:
            return [x for x in outputs if x is not None]
        pairs = [self.values[i] for i in rest]
        found = self._select(pairs) if self._both_may_run(pairs) else self._branch_node(pairs)
        for index, value in zip(rest, found, strict=True):
            outputs[index] = value
        return [x for x in outputs if x is not None]

    def _select(self, pairs: Sequence[tuple[ir.Value, ir.Value]]) -> list[ir.Value]:
        """Run both branches and choose among their results."""
        op, condition = self.trace.builder, self.value
        for outcome in self.outcomes:
            adopt(self.trace, outcome.block)
        chosen = []
        for then, orelse in pairs:
            if then.dtype != ir.DataType.BOOL:
                chosen.append(op.Where(condition, then, orelse))
            elif orelse is condition or _is_constant(orelse, wanted=False):
                chosen.append(op.And(condition, then))
            elif then is condition or _is_constant(then, wanted=True):
                chosen.append(op.Or(condition, orelse))
            else:
                no = op.And(op.Not(condition), orelse)
                chosen.append(op.Or(op.And(condition, then), no))
        return chosen

    def _branch_node(self, pairs: Sequence[tuple[ir.Value, ir.Value]]) -> list[ir.Value]:
        trace, op = self.trace, self.trace.builder
        graphs = []
        for which, outcome in enumerate(self.outcomes):
            block = outcome.block
            outputs = [seal(trace, pair[which], block) for pair in pairs]
            outputs = _distinct(trace, outputs, block)
            name = "then_branch" if which == 0 else "else_branch"
            nodes = live_nodes(block.nodes, outputs)
            graphs.append(ir.Graph([], outputs, nodes=nodes, name=op.unique_name(name)))
        emitted = op.emit(
            "If", self.value, then_branch=graphs[0], else_branch=graphs[1], outputs=len(pairs)
        )
        results = emitted if isinstance(emitted, list) else [emitted]
        for output, pair in zip(results, pairs, strict=True):
            output.type = pair[0].type
            dims = static_dims(pair)
            output.shape = None if dims is None else ir.Shape(dims)
        return results

    def _logical(self) -> list[ir.Value | None]:
        """Outputs that are the condition itself, or its negation."""
        found: list[ir.Value | None] = [None] * len(self.values)
        for index, slot in enumerate(self.slots):
            if slot.type.number is bool and slot.values[0] is True and slot.values[1] is False:
                found[index] = self.value
            elif slot.type.number is bool and slot.values[0] is False and slot.values[1] is True:
                found[index] = self.trace.builder.Not(self.value)
        return found

    def _both_may_run(self, pairs: Sequence[tuple[ir.Value, ir.Value]]) -> bool:
        nodes = [n for o in self.outcomes for n in o.block.nodes]
        if len(nodes) > _CHEAP_NODES or not all(
            n.op_type in _CHEAP and not n.domain for n in nodes
        ):
            return False
        for then, orelse in pairs:
            if (
                then.shape is None
                or orelse.shape is None
                or not isinstance(then.type, ir.TensorType)
            ):
                return False
            first, second = list(then.shape.dims), list(orelse.shape.dims)
            if first != second or any(not isinstance(d, int) or d > 4096 for d in first):
                return False
        return True


_SAME = object()  # a name that neither branch bound anew


def _is_constant(value: ir.Value, *, wanted: bool) -> bool:
    constant = value.const_value
    return constant is not None and constant.size == 1 and bool(constant.numpy().item()) is wanted


def _sizes_differ(then: ir.Value, orelse: ir.Value) -> bool:
    """Whether the branches' sizes are not known to be the same."""
    if then.shape is None or orelse.shape is None:
        return True
    pairs = zip(then.shape.dims, orelse.shape.dims, strict=False)
    sizes = zip(then.meta.get("sizes") or (), orelse.meta.get("sizes") or (), strict=False)
    same_sizes = [a == b for a, b in sizes]
    for axis, (a, b) in enumerate(pairs):
        static = isinstance(a, int), isinstance(b, int)
        if all(static):
            if a != b:
                return True
        elif any(static) or axis >= len(same_sizes) or not same_sizes[axis]:
            return True
    return False


def _dummies(trace: Trace, label: str, values: list[Any], bound: Any) -> Any:
    """Let a name of the compiler's that only one way binds hold zeros on the other."""
    leaves, tree = flatten_state(trace, bound)
    zeros = tree.unflatten([trace.frontend.zeros_like(x) for x in leaves])
    ways = Ways(trace, ("one way", "the other"), None, loose=True)
    return ways.merge(label, [zeros if v is UNBOUND else v for v in values])


def adopt(trace: Trace, block: Block) -> None:
    """Let a block's nodes run in the block around it."""
    outer = trace.builder.block
    for node in block.nodes:
        outer.nodes.append(node)
        for value in node.outputs:
            value.meta["block"] = outer


def seal(trace: Trace, value: ir.Value, block: Block) -> ir.Value:
    """``value`` as something that ``block`` itself produces, as a subgraph's outputs must be."""
    if value.meta.get("block") is block and value.producer() is not None:
        return value
    copy: ir.Value = trace.builder.emit("Identity", value, block=block)
    copy.type, copy.shape = value.type, value.shape
    return copy


def _distinct(trace: Trace, outputs: list[ir.Value], block: Block) -> list[ir.Value]:
    """The outputs with a copy of each that stands among them again."""
    seen: set[int] = set()
    result = []
    for value in outputs:
        output = value
        if id(value) in seen:
            output = trace.builder.emit("Identity", value, block=block)
            output.type, output.shape = value.type, value.shape
        seen.add(id(output))
        result.append(output)
    return result
