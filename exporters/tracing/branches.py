"""``if`` whose condition only run time knows."""

from __future__ import annotations

import dataclasses
import operator
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from exporters.errors import BranchMismatchError, ScriptError
from exporters.tracing.bindings import RESULT
from exporters.tracing.bodies import (
    Outcome,
    Scope,
    adopt,
    condition_in,
    condition_value,
    distinct,
    is_data,
    locate,
    raise_unowned,
    refuse_in_try,
    require_maker,
    run_body,
    seal,
)
from exporters.tracing.finish import live_nodes
from exporters.tracing.implied import granted, said_by
from exporters.tracing.leaves import (
    ABSENT,
    MISSING,
    Dummy,
    KeyAskedError,
    leaf_in,
    leaf_value,
    make_leaf,
    mark_key,
    presence_of_key,
    unset,
)
from exporters.tracing.lists import StagedList
from exporters.tracing.merging import UNBOUND, Merged, Ways, is_staged, static_dims
from exporters.tracing.nodes import Constant, joined_order
from exporters.tracing.own_lists import ScanList, is_own
from exporters.tracing.pytree import Tree, shallow
from exporters.tracing.scalars import ScalarRecord, TracedBool
from exporters.tracing.trace import Assumption, Interrupt, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from exporters.tracing.effects import Change
    from exporters.tracing.nodes import Slot

__all__ = ["if_"]

_INTERNAL = "ag__"  # names that the compiler made up
_COMPARED = "ag__compared"  # of operands, each read only where it was bound

# Nodes that may run although their branch is not taken: no failure, no side effect, little time.
_CHEAP = frozenset({
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Cos", "Equal", "Erf", "Exp", "Floor", "Gelu",
    "Greater", "GreaterOrEqual", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "Max", "Min", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu",
    "Round", "Sigmoid", "Sign", "Sin", "Softplus", "Sqrt", "Sub", "Tanh", "Where", "Xor",
    "Unsqueeze"
})  # fmt: skip
_CHEAP_NODES = 6


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
        if scope.source is None:  # of an expression
            trace.moved()
            scope = dataclasses.replace(scope, source=trace.position()[0])
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
        trace.moved()  # what does not fit is told of the statement, not of the branch's last line
        for w in trace.active:  # a ghost that got lost in the branch it takes is lost
            if w not in both[0 if self.truth[w] else 1].active:
                trace.leave_behind([w])
        try:
            return _IfMerge(self, value, both).apply()
        except BranchMismatchError:
            untaken = [i for i in (0, 1) if not set(self.taking(i)) - set(trace.ghosts)]
            if len(untaken) != 1 or is_data(trace, self.condition):
                raise
            self._assume(untaken[0], "is not taken")
            return self.branches[1 - untaken[0]]()

    def _branch(self, which: int) -> Outcome | None:
        """Trace a branch; None if it can be taken for granted that it is never taken."""
        trace = self.trace
        taking = self.taking(which)
        others = [w for w in trace.active if w not in taking]
        firm = [w for w in taking if w not in trace.ghosts]
        along = [w for w in taking if w in trace.ghosts] + others
        try:
            with granted(trace, said_by(trace, self.condition)[which]):
                return run_body(
                    trace,
                    self.branches[which],
                    self.scope,
                    "if",
                    active=[*firm, *along],
                    ghosts=along,
                )
        except Interrupt as interrupt:
            if firm or is_data(trace, self.condition) or type(interrupt.error) is not ScriptError:
                raise
            self._assume(which, "is not taken")
            return None
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
            if isinstance(error, RecursionError):
                raise Interrupt(
                    ScriptError(
                        f"the `{way}` branch calls its function again without end: how deep it recurs "
                        "depends on the input's values",
                        source=self.scope.source,
                        hint="write a loop, with a list for what waits to be done, or pass the most "
                        "calls that may follow as a plain number and stop at 0",
                    )
                ) from error
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
        self.ways.blocks = [o.block for o in outcomes]
        self.slots: list[Slot] = []
        self.values: list[tuple[ir.Value, ir.Value]] = []
        self.flags: dict[Any, Any] = {}  # whether places are there: keys of dicts

    def _choose(self, values: Sequence[Any]) -> Any:
        """One of two layers, keys or functions, by the condition."""
        from exporters.tracing.chosen import Chosen  # it stages branches itself

        if any(isinstance(v, Chosen) for v in values):
            return None
        record = ScalarRecord(self.trace, dict(self.staged.truth), data=True, scalar=self.value)
        return Chosen(TracedBool(record), [True, False], list(values))

    def apply(self) -> Any:
        trace, scope = self.trace, self.staged.scope
        then, orelse = self.outcomes
        self._whole_lists()
        names = [self._merge_name(i, n) for i, n in enumerate(scope.names[: scope.kept])]
        names += [_SAME] * (len(scope.names) - len(names))
        result = self.ways.merge(RESULT, [then.result, orelse.result])
        order, is_ordered = joined_order([list(then.changes), list(orelse.changes)])
        changes = {**then.changes, **orelse.changes}
        places = {place: changes[place] for place in order}
        changed = {place: self._merge_place(place, c) for place, c in places.items()}
        flags = {place: m for place, m in self.flags.items() if isinstance(m, Merged)}
        for merged in (*names, result, *changed.values(), *flags.values()):
            if isinstance(merged, Merged):
                self.slots += merged.slots
        written = {**then.memories, **orelse.memories}
        self.values += zip(self._values(0), self._values(1), strict=True)
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
        values = {place: self._rebuilt(changed[place], made) for place in places}
        for place, merged in flags.items():
            container = places[place].container
            mark_key(trace, values[place], self._rebuilt(merged, made))
            trace.opened[place] = container
            if not is_ordered:
                trace.unordered[id(container)] = container
        for place, change in places.items():
            value = values[place]
            if value is ABSENT:
                value = change.MISSING
            if (
                change.key is None
                and isinstance(value, StagedList)
                and not is_own(change.container)
            ):
                self._rebind(change, value, before)
            else:
                change.put(value)
        for (record, _), value in zip(written.values(), outputs[len(self.slots) :], strict=True):
            value.type = record.value.type
            value.shape = record.value.shape
            value.meta["sizes"] = record.value.meta.get("sizes")
            trace.write(record, value)
        return returned

    def _whole_lists(self) -> None:
        """Let a list that one branch lengthens be one place, not a place for each item."""
        grown = {
            id(c.container): c
            for o in self.outcomes
            for c in o.changes.values()
            if c.key is None and isinstance(c.container, list)
        }
        for outcome in self.outcomes:
            items = [c for c in outcome.changes.values() if id(c.container) in grown]
            for change in items:
                if change.key is None:
                    continue
                whole = grown[id(change.container)]
                del outcome.changes[change.place]
                known = outcome.changes.setdefault(
                    whole.place, dataclasses.replace(whole, after=list(whole.before))
                )
                known.after[change.key] = change.after
            for whole in grown.values():  # its items are taken apart: as this branch leaves them
                if whole.place not in outcome.changes:
                    after = [_left_by(outcome, x) for x in whole.before]
                    if any(map(operator.is_not, after, whole.before)):
                        outcome.changes[whole.place] = dataclasses.replace(whole, after=after)

    def _merge_place(self, place: Any, change: Change) -> Any:
        """What a place holds afterwards; a key of a dict may be missing on one way."""
        trace = self.trace
        values = [_placed(o, place, change) for o in self.outcomes]
        found = [presence_of_key(trace, v) for v in values]
        there = [v is not MISSING if p is None else p for v, p in zip(values, found, strict=True)]
        kept = any(place not in o.changes for o in self.outcomes)
        if kept and place in trace.late_keys:
            raise KeyAskedError(place)  # an iteration before may have set it, or not
        if not isinstance(change.container, dict) or all(t is True for t in there):
            return self.ways.merge(change.label, values)
        known = [unset(change.container) if v is MISSING else v for v in values]
        if all(v is ABSENT for v in known):
            return ABSENT
        merged = self.ways.keyed(change.label, known)
        if isinstance(merged.node, Constant):
            return self.ways.merge(change.label, known if change.is_attribute else values)
        self.flags[place] = self.ways.merge(change.label, there, always=True)
        if self._moves_key(place, change):
            trace.unordered[id(change.container)] = change.container
        return merged

    def _moves_key(self, place: Any, change: Change) -> bool:
        """Whether a key that may be missing is set again: it would come last where it was not there."""
        last = next(reversed(change.container), None)
        if presence_of_key(self.trace, change.before) is None or change.key == last:
            return False
        after = [o.changes[place].after for o in self.outcomes if place in o.changes]
        return any(x is not MISSING for x in after)

    def _rebind(self, change: Change, value: StagedList, before: tuple[Any, ...]) -> None:
        """Let everything that reaches a list of known length reach a staged one."""
        scope = self.staged.scope
        require_maker(self.trace, self.outcomes[0].snapshot, change.container, scope)
        names = list(scope.get())
        held = [i for i, x in enumerate(names) if x is change.container]
        places = self.outcomes[0].snapshot.places_of(change.container)
        if any(scope.names[i] in scope.given for i in held):
            name = next(scope.names[i] for i in held)
            raise_unowned(self.trace, name, change.container, scope)
        if not held and not places:
            if any(x is change.container for x in before):
                return  # a branch bound the name to another list: nobody reaches this one
            raise_unowned(self.trace, change.label, change.container, scope)
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
        if name.startswith(
            _COMPARED
        ):  # what else it holds may be of a recording that was given up
            values = [
                UNBOUND if o.names[index] is before else o.values[index] for o in self.outcomes
            ]
        if self.staged.scope.is_idle(name, *values):
            return _SAME
        known = [v for v in values if v is not UNBOUND]
        if (name.startswith(_INTERNAL) or name in self.staged.scope.lenient) and len(known) == 1:
            values = [ABSENT if v is UNBOUND else v for v in values]
        merged = self.ways.merge(name, values)
        if merged is UNBOUND and any(v is not UNBOUND for v in values):
            way = self.ways.names[0 if values[0] is not UNBOUND else 1]
            self.trace.unbound[name] = (way, self.staged.scope.source)
        return merged

    def _rebuilt(self, merged: Any, made: Iterator[Any]) -> Any:
        if isinstance(merged, Merged):
            return merged.rebuild([next(made) for _ in merged.slots])
        return merged

    def _values(self, which: int) -> list[ir.Value]:
        """The slots' values as one branch leaves them, computed at the end of that branch."""
        trace, builder, outcome = self.trace, self.trace.builder, self.outcomes[which]
        outer, builder.block = builder.block, outcome.block
        done = len(outcome.block.undo)
        try:
            for record, value in outcome.memories.values():  # what it wrote to is as it left it
                trace.overwrite(record, value)
            return [leaf_value(trace, s.values[which], s.type) for s in self.slots]
        finally:
            for undo in reversed(outcome.block.undo[done:]):
                undo()
            del outcome.block.undo[done:]
            builder.block = outer

    def _make(self, slot: Slot, index: int, value: ir.Value) -> Any:
        trace = self.trace
        worlds = {
            w: leaf_in(trace, slot.values[0 if self.staged.truth[w] else 1], slot.type, w)
            for w in trace.active
        }
        dims = static_dims(self.values[index]) if slot.type.kind == "array" else None
        unbacked = slot.type.kind == "array" and _sizes_differ(*self.values[index])
        data = slot.type.kind != "number" or self._is_data(slot.values)
        return make_leaf(trace, worlds, value, slot.type, dims=dims, unbacked=unbacked, data=data)

    def _is_data(self, numbers: Sequence[Any]) -> bool:
        """Whether one of two numbers depends on more than sizes; plain ones depend on nothing."""
        staged = [self.staged.condition, *(n for n in numbers if hasattr(n, "record"))]
        arrays = any(self.trace.frontend.is_array(n) or isinstance(n, Dummy) for n in numbers)
        return arrays or any(is_data(self.trace, n) for n in staged)

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
                chosen.append(self._both(condition, then))
            elif then is condition or _is_constant(then, wanted=True):
                chosen.append(op.Or(condition, orelse))
            else:
                no = op.And(op.Not(condition), orelse)
                chosen.append(op.Or(op.And(condition, then), no))
        return chosen

    def _both(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """``a and b``; of two negations, one of both."""
        op = self.trace.builder
        first, second = a.producer(), b.producer()
        if first is not None and second is not None and first.op_type == second.op_type == "Not":
            either: ir.Value = op.Or(first.inputs[0], second.inputs[0])
            return op.Not(either)
        return op.And(a, b)

    def _branch_node(self, pairs: Sequence[tuple[ir.Value, ir.Value]]) -> list[ir.Value]:
        trace, op = self.trace, self.trace.builder
        graphs = []
        for which, outcome in enumerate(self.outcomes):
            block = outcome.block
            outputs = [seal(trace, pair[which], block) for pair in pairs]
            outputs = distinct(trace, outputs, block)
            name = "then_branch" if which == 0 else "else_branch"
            nodes = live_nodes(block.nodes, outputs)
            graphs.append(ir.Graph([], outputs, nodes=nodes, name=op.unique_name(name)))
        condition, negated = self.value, self.value.producer()
        if negated is not None and negated.op_type == "Not" and negated.inputs[0] is not None:
            condition, graphs = negated.inputs[0], graphs[::-1]
        emitted = op.emit(
            "If", condition, then_branch=graphs[0], else_branch=graphs[1], outputs=len(pairs)
        )
        results = emitted if isinstance(emitted, list) else [emitted]
        locate(results[0], self.staged.scope)
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


def _left_by(outcome: Outcome, x: Any, parents: frozenset[int] = frozenset()) -> Any:
    """An object as a branch leaves it: itself, or a copy if it or something in it was changed."""
    if not outcome.changes or isinstance(x, StagedList | ScanList) or id(x) in parents:
        return x
    kind, items = shallow(x)
    held = getattr(x, "__dict__", x) if kind in ("object", "dataclass") else x
    changes = {c.key: c.after for c in outcome.changes.values() if c.container is held}
    children = [_left_by(outcome, changes.get(k, v), parents | {id(x)}) for k, v in items]
    if all(a is v for a, (_, v) in zip(children, items, strict=True)):
        return x
    keys = tuple(k for k, _ in items)
    return Tree(kind, x, keys, tuple(Tree("leaf") for _ in keys)).unflatten(children)


def _placed(outcome: Outcome, place: Any, change: Change) -> Any:
    """What a place holds after a branch; nobody reads what was deleted, or not put there."""
    if place in outcome.changes:
        held = outcome.changes[place].after
    else:  # what it holds is taken apart if another way holds something else
        held = _left_by(outcome, change.before)
    return MISSING if held is change.MISSING else held


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
