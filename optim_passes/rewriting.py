"""Passes that look at one node after another and put others in its place.

A pass gets each node of its ``op_types`` with a :class:`~optim_passes.builder.Builder`, and
returns the values that take the place of the node's outputs. Where it nearly applies, it raises
:class:`RefusedError` through one of the ``require_*`` functions; the reasons are in the report.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir
from onnxscript.rewriter import pattern

from optim_passes.builder import Builder, refine_shape
from optim_passes.scopes import Names, captured, nested, scopes
from optim_passes.values import is_scalar, rank, scalar, static_shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from optim_passes.scopes import Scope

__all__ = [
    "Fusion",
    "NodePass",
    "Outcome",
    "Pass",
    "Refusal",
    "RefusedError",
    "commit",
    "erase",
    "remove_unused",
    "replace_value",
    "require",
    "require_dtype",
    "require_opset",
    "require_rank",
    "require_scalar",
    "require_static_shape",
]

_SWEEPS = 20  # a pass that still finds something then is undoing its own work


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """A place where a pass nearly did something.

    Attributes:
        pass_name: The pass.
        reason: Why it did not.
        node: Name of the node where it would have.
        module: Module path of the user's code there.
        blocking: Name of the value or node that stood in the way.
    """

    pass_name: str
    reason: str
    node: str
    module: str = ""
    blocking: str = ""

    def __str__(self) -> str:
        at = f" (at {self.blocking})" if self.blocking else ""
        return f"{self.pass_name} left {self.node} alone: {self.reason}{at}"


class RefusedError(Exception):
    """A pass does not apply here, for a reason that the user may want to know.

    Args:
        reason: Why.
        blocking: What stands in the way.
    """

    def __init__(self, reason: str, blocking: ir.Node | ir.Value | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.blocking = blocking


@dataclasses.dataclass
class Outcome(ir.passes.PassResult):
    """What a pass did.

    Attributes:
        rewrites: How many times it changed something.
        refusals: Where it nearly did.
    """

    rewrites: int = 0
    refusals: list[Refusal] = dataclasses.field(default_factory=list)


class Pass(ir.passes.InPlacePass):
    """Changes a model in place, one body after another: main graph, subgraphs, functions."""

    @property
    def name(self) -> str:
        """What reports call the pass."""
        return type(self).__name__.removesuffix("Pass")

    def call(self, model: ir.Model) -> Outcome:
        """Run on every body."""
        outcome = Outcome(model, modified=False)
        for scope in scopes(model):
            self.run(scope, outcome)
        outcome.modified = outcome.rewrites > 0
        return outcome

    @abc.abstractmethod
    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Change the nodes of one body, not of those inside it; count what was changed."""

    def refuse(
        self, outcome: Outcome, node: ir.Node, reason: str, blocking: ir.Node | ir.Value | None
    ) -> None:
        """Note a refusal."""
        outcome.refusals.append(
            Refusal(
                self.name,
                reason,
                node.name or node.op_type,
                node.metadata_props.get("bridge.module", ""),
                (blocking.name or "") if blocking is not None else "",
            )
        )


class NodePass(Pass):
    """Rewrites single nodes until there is nothing left to rewrite.

    Attributes:
        op_types: The operators that :meth:`rewrite` wants to see.
        repeat: Whether what it made may be rewritten again.
    """

    op_types: ClassVar[frozenset[str]]
    repeat: ClassVar[bool] = True

    @abc.abstractmethod
    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """What stands for the node's outputs from now on; None to leave it.

        Raises:
            RefusedError: It looked right, but something forbids it.
        """

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Sweep over the body until a sweep changes nothing."""
        names: Names | None = None
        for _ in range(_SWEEPS if self.repeat else 1):
            changed = 0
            refusals: list[tuple[ir.Node, RefusedError]] = []
            for node in scope.body:
                if node.op_type not in self.op_types:
                    continue
                names = names or Names(scope.model)
                try:
                    changed += self._apply(node, scope, names)
                except RefusedError as error:
                    refusals.append((node, error))
            outcome.rewrites += changed
            if not changed:
                break
        for node, refused in refusals:
            self.refuse(outcome, node, refused.reason, refused.blocking)

    def _apply(self, node: ir.Node, scope: Scope, names: Names) -> bool:
        op = Builder(scope, names, [node])
        with op.discarding():
            made = self.rewrite(node, op)
        if made is None:
            op.discard()
            return False
        values = [made] if isinstance(made, ir.Value) else list(made)
        commit(op, node, node.outputs, values, [node])
        return True


class Fusion(NodePass):
    """Puts a few nodes in the place of a pattern of nodes.

    A subclass gives :meth:`pattern`, :meth:`check` and :meth:`rewrite_match`; the last node of the
    pattern has to be one of ``op_types``. Values inside the pattern may have no other use.

    Attributes:
        commute: Whether to also match with the operands of Add and Mul swapped.
    """

    commute: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self._patterns: list[pattern.Pattern] = []
        for function in self.patterns():
            rule = pattern.RewriteRule(function, lambda op, **_: None, name=self.name)
            self._patterns += rule.commute() if self.commute else [rule]

    def patterns(self) -> Iterable[Any]:
        """The patterns; the first one that matches is taken."""
        return (self.pattern,)

    @abc.abstractmethod
    def pattern(self, op: Any, *values: Any) -> Any:
        """The nodes to find, in onnxscript's pattern language."""

    def check(self, scope: Scope, **values: Any) -> None:
        """Look at what the pattern's variables stand for.

        Raises:
            RefusedError: They do not fit; use the ``require_*`` functions.
        """

    @abc.abstractmethod
    def fused(self, op: Builder, **values: Any) -> Any:
        """Make the nodes that take the pattern's place."""

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """Not used: a fusion replaces more than one node."""
        raise NotImplementedError

    def _apply(self, node: ir.Node, scope: Scope, names: Names) -> bool:
        refused: RefusedError | None = None
        for candidate in self._patterns:
            collector = _Collector()
            match = candidate.match(scope.model, scope.body, node, tracer=collector)
            if not match:
                if collector.used_elsewhere is not None and refused is None:
                    refused = RefusedError("an intermediate result has another use", node)
                continue
            origins = [node, *(n for n in match.nodes if n is not node)]
            op = Builder(scope, names, origins)
            try:
                with op.discarding():
                    self.check(scope, **match.bindings)
                    made = self.fused(op, **match.bindings)
            except RefusedError as error:
                refused = error
                continue
            values = [made] if isinstance(made, ir.Value) else list(made)
            commit(op, node, match.outputs, values, match.nodes)
            return True
        if refused is not None:
            raise refused
        return False


class _Collector(pattern.MatchingTracer):  # type: ignore[misc]  # untyped
    """Remembers whether a pattern failed only because of another use of what is inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.used_elsewhere: ir.Node | None = None

    def log(
        self, rule: Any, container: Any, node: ir.Node, match_result: Any, status: Any
    ) -> None:
        if match_result.reason.startswith("Matched nodes have other uses"):
            self.used_elsewhere = node


def commit(
    op: Builder,
    anchor: ir.Node,
    old_values: Sequence[ir.Value],
    new_values: Sequence[ir.Value | None],
    old_nodes: Iterable[ir.Node],
) -> None:
    """Put what a builder made into the graph, before ``anchor``, in the place of other nodes.

    Args:
        op: The builder.
        anchor: A node that everything made may stand before.
        old_values: What is replaced.
        new_values: By what; None leaves a value that nobody uses.
        old_nodes: Nodes to remove, if nothing uses them any more.
    """
    scope = op.scope
    for value in op.initializers:
        scope.model.graph.initializers.add(value)
    for domain in {n.domain for n in op.nodes}:
        if domain:
            scope.import_domain(domain)
    if op.nodes:
        scope.body.insert_before(anchor, op.nodes)
    for old, new in zip(old_values, new_values, strict=True):
        if new is not None and new is not old:
            replace_value(old, new, scope.body, anchor, rename=new.producer() in op.nodes)
    remove_unused([*old_nodes, *op.nodes])


def replace_value(
    old: ir.Value, new: ir.Value, body: ir.Graph, anchor: ir.Node, *, rename: bool
) -> None:
    """Let every user of ``old`` use ``new``.

    Args:
        old: A value of ``body``.
        new: One that may stand before ``anchor``.
        body: Where they are.
        anchor: Where an Identity goes if ``new`` cannot be an output of the body itself.
        rename: Whether ``new`` takes over the name, because nobody knows its own.
    """
    if old.is_graph_output():
        if new.producer() is None or new.graph is not body or new.is_graph_output():
            new = _identity(new, body, anchor)
        for index, value in enumerate(body.outputs):
            if value is old:
                body.outputs[index] = new
        rename = True
    if new.type is None:
        new.type = old.type
    if old.shape is not None and (new.shape is None or rename):
        known = new.shape
        new.shape = old.shape  # it may know names of dims that inference does not
        if known is not None and not new.is_graph_output():
            new.shape = old.shape.copy()
            refine_shape(new, known.dims)
    old.replace_all_uses_with(new)
    if rename:
        old.name, new.name = new.name, old.name
        new.meta.update(old.meta)


def _identity(value: ir.Value, body: ir.Graph, anchor: ir.Node) -> ir.Value:
    node = ir.Node(
        "", "Identity", [value], name=f"{anchor.name}/Identity",
        metadata_props=dict(anchor.metadata_props),
    )  # fmt: skip
    body.insert_before(anchor, node)
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    return node.outputs[0]


def remove_unused(nodes: Iterable[ir.Node]) -> None:
    """Remove nodes that nothing uses, and what then nothing uses of what they read.

    A dead node that stayed would count as a user of its operands, and keep fusions off.
    """
    pending = list(nodes)
    while pending:
        node = pending.pop()
        body = node.graph
        if body is None or any(v.uses() or v.is_graph_output() for v in node.outputs):
            continue
        operands = [v for v in node.inputs if v is not None]
        for graph in nested(node):
            operands += captured(graph)
        erase(node)
        pending += [p for v in operands if (p := v.producer()) is not None and p.graph is body]


def erase(node: ir.Node) -> None:
    """Take a node out of its body, and let its subgraphs use nothing any more."""
    for graph in nested(node):
        for inner in graph.all_nodes():
            for index in range(len(inner.inputs)):
                inner.replace_input_with(index, None)
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def require(fact: Any, reason: str, blocking: ir.Node | ir.Value | None = None) -> None:
    """Refuse unless ``fact`` holds."""
    if not fact:
        raise RefusedError(reason, blocking)


def require_opset(scope: Scope | Builder, version: int) -> None:
    """Refuse where the default domain is older than ``version``."""
    require(scope.opset >= version, f"opset {scope.opset} is older than {version}")


def require_scalar(
    value: ir.Value | None, expected: float, name: str, *, relative: float = 1e-3
) -> None:
    """Refuse unless ``value`` is a constant number near ``expected``, of rank 0 or 1."""
    number = scalar(value)
    require(number is not None, f"{name} is not a constant number", value)
    require(is_scalar(value), f"{name} has rank {rank(value)}, which may broadcast", value)
    assert number is not None
    close = abs(number - expected) <= relative * abs(expected)
    require(close, f"{name} is {number:g}, not {expected:g}", value)


def require_dtype(value: ir.Value, *allowed: ir.DataType) -> None:
    """Refuse a value of another element type."""
    told = "unknown" if value.dtype is None else value.dtype.name
    require(value.dtype in allowed, f"the dtype is {told}", value)


def require_rank(value: ir.Value, *allowed: int) -> None:
    """Refuse a value of another rank."""
    require(rank(value) in allowed, f"the rank is {rank(value)}", value)


def require_static_shape(value: ir.Value) -> tuple[int, ...]:
    """The shape; refuse where a dim of it is not known."""
    shape = static_shape(value)
    require(shape is not None, "the shape is not static", value)
    assert shape is not None
    return shape
