"""What all staged statements share: scopes, conditions, and bodies traced into blocks of their own."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from exporters.errors import BranchMismatchError, ScriptError
from exporters.tracing.effects import Change, MemoryLog, Snapshot
from exporters.tracing.leaves import is_leaf, mark, mark_key, presence, presence_of_key
from exporters.tracing.lists import StagedList
from exporters.tracing.merging import flatten_state
from exporters.tracing.own_lists import ScanList
from exporters.tracing.pytree import Tree, shallow
from exporters.tracing.trace import Interrupt, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import FrameType

    from exporters.tracing.graph import Block
    from exporters.tracing.record import Record
    from exporters.tracing.source import Source

__all__ = ["NO_SCOPE", "Outcome", "Scope", "adopt", "condition_in", "condition_value", "distinct",
           "is_data", "locate", "raise_unowned", "recorded", "refuse_in_try", "require_maker", "run_body",
           "seal", "worlds_of"]  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Scope:
    """What compiled code tells of a statement.

    Attributes:
        names: Names that the statement may bind.
        get: Their values; UNBOUND for those without.
        set: Binds them.
        roots: The values of all names that the statement's bodies read.
        source: Where it stands.
        fenced: The line of a ``try`` around it, in which nothing can be staged.
        lenient: Names that are read only where the branch that binds them was taken, so that they
            may hold anything elsewhere.
        kept: How many of the names, from the first, matter afterwards; None for all.
        given: Names that hold what the caller gave, which the caller may hold, too.
        filled: Names that nobody reads afterwards, of lists that the statement may fill.
        read: The names that the bodies read.
    """

    names: tuple[str, ...]
    get: Callable[[], tuple[Any, ...]]
    set: Callable[[tuple[Any, ...]], None]
    roots: Callable[[], tuple[Any, ...]]
    source: Source | None = None
    fenced: int | None = None
    lenient: tuple[str, ...] = ()
    kept: int | None = None
    given: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()
    read: tuple[str, ...] = ()

    def is_idle(self, name: str, *values: Any) -> bool:
        """Whether nobody reads what a statement leaves in a name, as it fills no container there."""
        return name in self.filled and not any(isinstance(v, list | dict | set) for v in values)

    def snapshot(self, trace: Trace, held: Sequence[Any]) -> Snapshot:
        """The contents of what the bodies may change, given what the names hold."""
        roots = self.roots()
        read = self.read if len(self.read) == len(roots) else ("",) * len(roots)
        names = ["" if n.startswith("ag__") else n for n in (*self.names, *read)]
        return Snapshot((*held, *roots), trace.frontend.is_opaque, names=names)

    def reaching(self, x: Any) -> Scope:
        """The same of a statement whose bodies read one more thing."""
        return dataclasses.replace(self, roots=lambda: (*self.roots(), x))


NO_SCOPE = Scope((), lambda: (), lambda _: None, lambda: ())


def recorded() -> Trace | None:
    """The current trace while it records; None in eager code and in eager replays."""
    trace = Trace.current()
    return trace if trace is not None and trace.live and trace.recording else None


def condition_in(trace: Trace, x: Any, world: int) -> bool:
    """A condition's truth in one world."""
    present = presence(trace, x)
    if present is not None and not trace.number_in(present, world):
        return False
    if isinstance(x, StagedList):
        return bool(x.in_world(world))
    return bool(trace.frontend.truth(x, world) if is_leaf(trace, x) else x)


def condition_value(trace: Trace, x: Any) -> ir.Value:
    """A staged condition as a BOOL value of rank 0."""
    op = trace.builder
    present = presence(trace, x)
    if present is not None:
        there = op.operand(present)
        del trace.optional[id(x)]
        try:
            inside = condition_value(trace, x) if is_leaf(trace, x) else op.operand(bool(x))
        finally:
            mark(trace, x, present)
        return op.And(there, inside)
    if isinstance(x, StagedList):
        return condition_value(trace, trace.arithmetic("gt", x.staged_length(), 0))
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
    if isinstance(x, StagedList):
        return x.data
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
    snapshot = scope.snapshot(trace, names)
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
            for members in snapshot.changed_sets():
                _require_own(trace, members, scope)
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
    if isinstance(x, StagedList):
        return x.copy()
    if isinstance(x, ScanList) or x is Change.MISSING or is_leaf(trace, x):
        return x
    kind, items = shallow(x)
    if kind in ("list", "tuple", "namedtuple", "dict") and type(x) is not ScanList:
        children = [frozen(trace, item) for _, item in items]
        unchanged = all(a is b for a, (_, b) in zip(children, items, strict=True))
        if unchanged and kind in ("tuple", "namedtuple"):
            return x
        keys = tuple(k for k, _ in items)
        copied = Tree(kind, x, keys, tuple(Tree("leaf") for _ in keys)).unflatten(children)
    else:
        leaves, tree = flatten_state(trace, x)
        if tree.kind in ("leaf", "static"):
            return x
        copied = tree.unflatten(leaves)
    present, there = presence(trace, x), presence_of_key(trace, x)
    if there is not None:
        mark_key(trace, copied, there)
    return copied if present is None else mark(trace, copied, present)


def _depth(block: Block) -> int:
    return sum(1 for _ in block.ancestry()) - 1


def raise_unowned(trace: Trace, label: str, items: Any, scope: Scope) -> None:
    """Complain of a list that changes its length where nobody can be told.

    Raises:
        Interrupt: Asks for the function that made it to be compiled: it makes other lists then.
    """
    raise Interrupt(
        BranchMismatchError(
            f"the list `{label or '?'}` changes its length here, and is reached through a name that "
            "this function does not own",
            source=scope.source,
            hint="make the list in the function that fills it",
        ),
        trace.finder.frame_that(lambda f: _holds(trace, f, items)),
    )


def _require_own(trace: Trace, members: set[Any], scope: Scope) -> None:
    """Ask for the function that made a set to be compiled: branches and loops follow its own sets.

    Raises:
        Interrupt: It is not compiled yet.
    """
    maker = trace.finder.frame_that(lambda f: _holds(trace, f, members))
    if maker is not None:
        told = "a set changes here that was made in a function that is not compiled"
        hint = f"mark {maker.f_code.co_qualname} with @bridge.script"
        raise Interrupt(ScriptError(told, source=scope.source, hint=hint), maker)


def require_maker(trace: Trace, snapshot: Snapshot, items: Any, scope: Scope) -> None:
    """Ask for the function that made an object that holds a list: other names may hold it, too.

    Raises:
        Interrupt: It is not compiled yet.
    """
    for container, _, label in snapshot.places_of(items):
        maker = vars(snapshot.class_of(container)).get("__init__")
        code = getattr(maker, "__code__", None)
        if trace.settled is None or code is None or code in trace.settled:
            continue
        if trace.finder.is_user(code):
            told = f"the list `{label}` changes its length here"
            raise Interrupt(BranchMismatchError(told, source=scope.source), code, optional=True)


def _holds(trace: Trace, frame: FrameType, items: Any) -> bool:
    """Whether a function that is not compiled holds a list under a name."""
    code = frame.f_code
    if code in trace.compiled or not trace.finder.is_user(code):
        return False
    return any(x is items for x in frame.f_locals.values())


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


def locate(value: ir.Value, scope: Scope) -> None:
    """Let the node that makes ``value`` stand where its statement does, not where that ends."""
    node = value.producer()
    if node is not None and scope.source is not None:
        node.metadata_props["bridge.source"] = str(scope.source)


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


def distinct(trace: Trace, outputs: list[ir.Value], block: Block) -> list[ir.Value]:
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
