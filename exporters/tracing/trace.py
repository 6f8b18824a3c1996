"""One tracing run: its worlds, its graph under construction, and what it assumed."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from exporters.errors import DataDependentError, DisagreeingBranchError, ExportError
from exporters.tracing import scalars
from exporters.tracing.arithmetic import computed
from exporters.tracing.graph import Block, GraphBuilder
from exporters.tracing.record import Memory, Record, View
from exporters.tracing.scalars import (
    ScalarRecord,
    TracedBool,
    TracedFloat,
    TracedInt,
    TracedScalar,
    plain,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Sequence
    from types import CodeType, FrameType

    from exporters.tracing.effects import MemoryLog
    from exporters.tracing.none_tests import NoneTests
    from exporters.tracing.source import Source, SourceFinder

__all__ = ["Assumption", "Interrupt", "Trace"]


@dataclasses.dataclass(frozen=True, slots=True)
class Assumption:
    """A question that Python asked of a traced value, and the one answer all worlds gave."""

    question: str
    answer: Any
    source: Source | None

    def __str__(self) -> str:
        where = "" if self.source is None else f" ({self.source})"
        return f"{self.question} is always {self.answer}{where}"


class Interrupt(BaseException):
    """Stops the trace from the inside: past the user's own ``except Exception``.

    Attributes:
        error: What to tell the user if the trace cannot be taken up again.
        frame: Where Python asked, or the code that has to be compiled, when that would help.
        optional: Whether the trace could go on as well.
    """

    def __init__(
        self,
        error: ExportError,
        frame: FrameType | CodeType | None = None,
        *,
        optional: bool = False,
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.frame = frame
        self.optional = optional


class _Current(threading.local):
    trace: Trace | None = None


_current = _Current()


class Trace:
    """Runs in one thread, from :meth:`__enter__` to :meth:`__exit__`.

    Args:
        worlds: How many concrete runs there are.
        opset: ONNX opset of the graph.
        finder: Finds the user's position on the stack.

    Attributes:
        active: The worlds that take part in what is being traced.
        live: Whether the trace still runs; afterwards traced numbers are plain numbers.
        recording: Whether calls become nodes. While it is off, one world runs eagerly.
        ghosts: Active worlds that only come along: they do not take the branch that is traced, and
            are left behind when something fails in them.
        logs: Logs of in-place writes, innermost last.
        unbound: Names that only one branch binds: which one, and where.
        optional: Values that may stand for None, each with whether it does not, by identity.
        implied: What conditions say of such values, by the identity of their records.
        none_tests: Finds plain code that compares such values with None.
        choices: Whether there are objects of which only run time knows the one that is meant.
        late_keys: Keys that dicts have since a loop around, each with the dict's identity.
        missing: What dicts hold under keys that may be missing, each with whether it is there.
        opened: Dicts, by their identity and a key that was seen to be missing at times.
        unordered: Dicts of which only run time knows in which order they have their keys.
        unroll_limit: Trip counts up to this, known when tracing, are unrolled.
        forcing: Whether an iteration is run that no world has, to see what it does.
        compiled: Code that is compiled.
        settled: Code that is compiled or cannot be; None where no code is compiled by itself.
        frontend: Knows the framework's arrays.
    """

    def __init__(self, worlds: int, *, opset: int, finder: SourceFinder) -> None:
        self.world_count = worlds
        self.active: tuple[int, ...] = tuple(range(worlds))
        self.live = False
        self.recording = True
        self.ghosts: frozenset[int] = frozenset()
        self.logs: list[MemoryLog] = []
        self.unroll_limit = 128
        self.optional: dict[int, tuple[Any, Any]] = {}
        self.implied: dict[int, tuple[Any, tuple[Any, ...], tuple[Any, ...]]] = {}
        self.none_tests: NoneTests | None = None
        self.choices = False
        self.late_keys: set[tuple[int, Any]] = set()
        self.forcing = False
        self.compiled: Container[Any] = ()
        self.settled: set[Any] | None = None
        self.unbound: dict[str, tuple[str, Source | None]] = {}
        self.missing: dict[int, Any] = {}  # values of dicts whose keys may be missing
        self.unordered: dict[int, Any] = {}  # dicts in which only run time knows the keys' order
        self.opened: dict[
            tuple[int, Any], Any
        ] = {}  # dicts, by themselves and a key that may be missing
        self.slotted: dict[int, Any] = {}  # objects with slots, and these as dicts
        self.frontend: Any = None
        self.assumptions: list[Assumption] = []
        self.finder = finder
        self.builder = GraphBuilder(opset)
        self.builder.position = self.position
        self.builder.same_size = self.same_size
        self._position: tuple[Source | None, str] | None = None
        self._records: dict[int, tuple[weakref.ref[Any], Record]] = {}
        self._sizes: dict[tuple[int, ...], tuple[ir.Value, int] | None] = {}
        self._before: Trace | None = None

    @staticmethod
    def current() -> Trace | None:
        """The trace that runs in this thread, if any."""
        return _current.trace

    def __enter__(self) -> Trace:
        self._before = _current.trace
        _current.trace = self
        self.live = True
        return self

    def __exit__(self, *_: object) -> None:
        _current.trace = self._before
        self.live = False
        if self.none_tests is not None:
            self.none_tests.stop()

    # Positions

    def position(self) -> tuple[Source | None, str]:
        """Where the user's code is now, and in which module."""
        if self._position is None:
            self._position = self.finder.find()
        return self._position

    def moved(self) -> None:
        """Forget the position: user code has run since it was looked up."""
        self._position = None

    # Handles

    def record(self, handle: Any) -> Record | None:
        """What is known of ``handle``; None for a constant."""
        found = self._records.get(id(handle))
        return None if found is None else found[1]

    def attach(self, handle: Any, record: Record) -> None:
        """Know ``handle`` by ``record`` for as long as it lives."""
        key = id(handle)
        records = self._records

        def forget(dead: weakref.ref[Any]) -> None:
            found = records.get(key)
            if found is not None and found[0] is dead:
                del records[key]

        records[key] = (weakref.ref(handle, forget), record)

    def records(self) -> Iterator[tuple[Any, Record]]:
        """Every handle that is alive, with its record."""
        for reference, record in list(self._records.values()):
            handle = reference()
            if handle is not None:
                yield handle, record

    # Views and writes

    def read(self, record: Record) -> ir.Value:
        """The up-to-date graph value: a stale view is cut out of its base anew."""
        if record.seen != record.memory.writes:
            assert record.view is not None
            base = self.read(record.view.base)
            self._set(record, self._inherit(record, record.view.replay(base)))
        return record.value

    def write(self, record: Record, value: ir.Value, *, data: bool = True) -> None:
        """Let ``record`` hold ``value`` from now on, and with it whatever shares its storage.

        Args:
            record: What is written to.
            value: What it holds afterwards.
            data: Whether that depends on input values.
        """
        record.memory.data = record.memory.data or data
        if record.view is not None:
            base = record.view.base
            before = self.read(base)
            whole = self._inherit(base, record.view.put_back(before, value))
            self.write(base, whole, data=data)
        else:
            memory, writes = record.memory, record.memory.writes

            def undo() -> None:
                memory.writes = writes

            self._on_leaving(memory, undo)
            self.builder.block.written.setdefault(id(record), record)
            memory.writes += 1
        self._set(record, value)

    def overwrite(self, record: Record, value: ir.Value) -> None:
        """Let a record hold another value inside a block, and its views be cut out of that."""
        memory, writes = record.memory, record.memory.writes

        def undo() -> None:
            memory.writes = writes

        self._on_leaving(memory, undo)
        memory.writes += 1
        self._set(record, value)

    def _set(self, record: Record, value: ir.Value) -> None:
        before = (record.value, record.seen)

        def undo() -> None:
            record.value, record.seen = before

        self._on_leaving(record.memory, undo)
        record.value, record.seen = value, record.memory.writes

    def _on_leaving(self, memory: Memory, undo: Callable[[], None]) -> None:
        """Take a write back at the end of the block, unless the storage came to be in it."""
        if memory.depth < self.depth():
            self.builder.block.undo.append(undo)

    def _inherit(self, record: Record, value: ir.Value) -> ir.Value:
        """Give ``value`` the type, shape and sizes that the record had before."""
        before = record.value
        if value is not before and value.const_value is None:
            value.type = before.type
            value.shape = None if before.shape is None else before.shape.copy()
            value.meta["sizes"] = before.meta.get("sizes")
        return value

    # Sizes

    def describe(
        self,
        value: ir.Value,
        dtype: ir.DataType,
        shapes: dict[int, tuple[int, ...]],
        *,
        unbacked: bool = False,
        dims: Sequence[int | None] | None = None,
    ) -> None:
        """Write into ``value`` what the worlds say of it: dtype, rank, and the static sizes.

        Args:
            value: The graph value.
            dtype: Its element type.
            shapes: Its concrete shape in each world.
            unbacked: Equal sizes prove nothing: only what the graph itself says is static.
            dims: The sizes that are static, when the caller knows better.
        """
        value.type = ir.TensorType(dtype)
        sizes = tuple(zip(*(shapes[w] for w in sorted(shapes)), strict=True))
        if len(shapes) == 1 and self.world_count > 1:
            unbacked = True  # one world proves nothing about sizes when there are several
        known = value.shape if dims is None else ir.Shape(dims)
        unbacked = unbacked or dims is not None
        value.shape = ir.Shape(
            [
                (
                    known.dims[axis]
                    if known is not None and isinstance(known.dims[axis], int)
                    else None
                )
                if unbacked or len(set(size)) > 1
                else size[0]
                for axis, size in enumerate(sizes)
            ]
        )
        value.meta["sizes"] = sizes

    def dim(self, record: Record, axis: int, sizes: dict[int, int]) -> int:
        """One size of a handle: an int when it is static, else a traced int."""
        value = self.read(record)
        assert value.shape is not None
        static = value.shape.dims[axis]
        if isinstance(static, int):
            return static
        return TracedInt(
            ScalarRecord(self, sizes, data=record.unbacked, origin=(value, axis), nonnegative=True)
        )

    def same_size(self, size: Any, x: ir.Value, axis: int) -> bool:
        """Whether a traced int is, for every input, the size of ``x`` along ``axis``."""
        if not isinstance(size, TracedInt):
            return False
        origin = size.record.origin
        if origin is not None and origin[0] is x and origin[1] == axis:
            return True
        all_sizes = x.meta.get("sizes")
        if origin is None or all_sizes is None or axis >= len(all_sizes):
            return False
        here = all_sizes[axis]
        # Equal in every world, and no two named dims of the inputs share these sizes.
        return (
            len(here) > 1
            and len(set(here)) > 1
            and here == tuple(size.record.worlds.values())
            and self._sizes.get(here, False) is not None
            and not size.record.data
        )

    def name_size(self, sizes: tuple[int, ...], symbol: Any) -> None:
        """Let ``sizes`` mean ``symbol``; sizes that mean two things mean nothing."""
        known = self._sizes.get(sizes, symbol)
        self._sizes[sizes] = symbol if known == symbol else None

    def symbol(self, sizes: tuple[int, ...]) -> Any:
        """The symbol that alone has these sizes in all worlds, else None."""
        return self._sizes.get(sizes)

    # Scalars

    def arithmetic(self, name: str, *operands: Any) -> Any:
        """One Python operation on numbers of which some are traced, in every world and the graph."""
        if not any(isinstance(x, TracedScalar) for x in operands):
            return scalars.PYTHON[name](*operands)
        if not self.live:
            return scalars.PYTHON[name](*map(plain, operands))
        return computed(self, name, operands)

    def repeat(self, items: Any, times: TracedInt) -> Any:
        """``items * times`` of a list or another sequence."""
        from exporters.tracing.lists import repeated  # lists are made in traces

        if not self.live or not items:
            return items * scalars.plain(times)
        if not self.recording:
            return items * times.record.worlds[self.active[0]]
        staged = repeated(self, items, times) if isinstance(items, list) else None
        return items * int(times) if staged is None else staged

    def compare(self, name: str, a: Any, b: Any) -> bool:
        """A comparison of numbers of which one is traced, as a plain bool.

        Raises:
            Interrupt: The worlds disagree, or the numbers depend on data.
        """
        answers = {
            w: bool(scalars.PYTHON[name](self.number_in(a, w), self.number_in(b, w)))
            for w in self.active
        }
        if self.certain(a, b) and len(set(answers.values())) == 1:
            return answers[self.active[0]]
        data = any(isinstance(x, TracedScalar) and x.record.data for x in (a, b))
        return bool(self.decide(answers, data=data, asked="the comparison in"))

    def certain(self, a: Any, b: Any) -> bool:
        """Whether two numbers are the same size, so that comparing them assumes nothing."""
        if not (isinstance(a, TracedInt) and isinstance(b, TracedInt)):
            return False
        if a.record is b.record or (
            a.record.origin is not None and a.record.origin == b.record.origin
        ):
            return True
        sizes = tuple(a.record.worlds.values())
        same = sizes == tuple(b.record.worlds.values()) and self.symbol(sizes) is not None
        return same and not a.record.data and not b.record.data

    def number_in(self, x: Any, world: int) -> Any:
        """The Python number that ``x`` is in one world."""
        return x.record.worlds[world] if isinstance(x, TracedScalar) else x

    def number(self, record: ScalarRecord, kind: type) -> Any:
        """The traced number of Python type ``kind``."""
        return {int: TracedInt, float: TracedFloat, bool: TracedBool}[kind](record)

    # Questions

    def in_loop(self) -> bool:
        """Whether a loop's body is recorded: numbers are other ones in the next iteration."""
        return any(block.kind == "loop" for block in self.builder.block.ancestry())

    def decide(
        self, answers: dict[int, Any], *, data: bool, asked: str, hint: str | None = None
    ) -> Any:
        """The answer all worlds give to a question of Python's.

        Args:
            answers: One per world.
            data: Whether the answer depends on input values.
            asked: What was asked, for the report.
            hint: What to do instead.

        Raises:
            Interrupt: The worlds disagree, or the answer depends on data.
        """
        if not self.recording:
            return answers[self.active[0]]
        self.moved()
        source, _ = self.position()
        firm = [w for w in self.active if w in answers and w not in self.ghosts]
        given = [answers[w] for w in firm] or [answers[w] for w in self.active if w in answers]
        self.leave_behind(w for w in self.ghosts if answers.get(w, given[0]) != given[0])
        text = "" if source is None else source.excerpt().split("\n")[0].strip()
        question = f"{asked} `{text}`" if text else asked.rpartition(" ")[0]
        frame = self.finder.asking_frame()
        remedy = "mark the function with @bridge.script, or "
        if frame is not None and self.settled is not None and frame.f_code in self.settled:
            remedy = ""  # it is compiled, and that did not help
        if any(answer != given[0] for answer in given):
            told = ", ".join(f"{a!r}" for a in given)
            raise Interrupt(
                DisagreeingBranchError(
                    f"the worlds disagree on {question}: {told}",
                    source=source,
                    hint=remedy + (hint or "keep the branch out of the exported function"),
                ),
                frame,
            )
        if data:
            raise Interrupt(
                DataDependentError(
                    f"Python asks for {question}, which depends on the input's values",
                    source=source,
                    hint=remedy + (hint or "use torch.where"),
                ),
                frame,
            )
        assumption = Assumption(question, given[0], source)
        if assumption not in self.assumptions:
            self.assumptions.append(assumption)
        return given[0]

    def number_taken(self) -> None:
        """Python takes a number that depends on data: compiled code follows where it goes.

        Raises:
            Interrupt: The code that takes it is not compiled yet.
        """
        if self.settled is None:
            return
        frame = self.finder.asking_frame()
        if frame is None or frame.f_code in self.settled:
            return
        source, _ = self.position()
        raise Interrupt(
            DataDependentError("Python takes a number from a tensor's values", source=source),
            frame,
            optional=True,
        )

    # Worlds that come along

    def in_worlds(self, function: Callable[[int], Any]) -> dict[int, Any]:
        """``function(world)`` in every active world; ghosts in which it fails are left behind."""
        results: dict[int, Any] = {}
        active = self.active
        for position, world in enumerate(active):
            try:
                results[world] = function(world)
            except Exception:
                if world not in self.ghosts or not (results or position + 1 < len(active)):
                    raise
                self.leave_behind([world])
        return results

    def leave_behind(self, worlds: Iterable[int]) -> None:
        """Go on without some ghosts."""
        gone = set(worlds)
        if gone:
            self.active = tuple(w for w in self.active if w not in gone)
            self.ghosts = self.ghosts - gone

    # Blocks

    def depth(self) -> int:
        """How many subgraphs are open."""
        return sum(1 for _ in self.builder.block.ancestry()) - 1

    def new_memory(self) -> Memory:
        """The state of something made here."""
        return Memory(self.depth())

    def new_block(self, kind: str) -> Block:
        """A block inside the current one."""
        return Block(kind, self.builder.block)


__all__ += ["View"]
