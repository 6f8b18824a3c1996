"""What a pipeline should have fused, and what it did: counted before and after it.

What is expected is counted in two ways: in the graph before any pass, by the node that no way of
writing an operator down can do without (an attention has a softmax between two products, a GELU an
``Erf``), and by the types of the modules that the graph came from, where it says so.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from typing import TYPE_CHECKING, Any

from optim_passes.scopes import nested, scopes
from optim_passes.values import attribute, ints, norm_axis, only_consumer, producer, rank, scalar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import onnx_ir as ir

    from optim_passes.rewriting import Refusal

__all__ = ["Census", "Expectation", "Miss", "census", "expectations"]

_HOPS = 4  # a refusal this near to what was not fused is the reason
_SHOWN = 3  # modules that a line names
_SCORES = 8  # nodes between the product of queries and keys and the softmax
_ACTIVATIONS = frozenset({"Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "Clip"})


@dataclasses.dataclass(frozen=True, slots=True)
class Miss:
    """Something that was expected to become one node, and did not.

    Attributes:
        node: Name of the node that is left.
        module: Module path of the user's code there.
        reason: Why.
        blocking: Name of the value or node that stood in the way; empty if nobody knows.
    """

    node: str
    module: str
    reason: str
    blocking: str = ""

    def __str__(self) -> str:
        where = f" in {self.module}" if self.module else ""
        at = f" (at {self.blocking})" if self.blocking else ""
        return f"{self.node}{where}: {self.reason}{at}"


@dataclasses.dataclass(frozen=True, slots=True)
class Expectation:
    """How many of one kind were expected, and how many there are.

    Attributes:
        kind: ``attention``, ``layer norm``, ...
        expected: How many there should be.
        achieved: How many there are.
        modules: How many modules of that kind the graph came from; None if it does not say.
        misses: Those that are still written out.
        others: Paths of the modules that are called so and compute something else.
    """

    kind: str
    expected: int
    achieved: int
    modules: int | None
    misses: tuple[Miss, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def absent(self) -> int:
        """How many are gone altogether: dead, or the same as others."""
        return max(0, self.expected - self.achieved - len(self.misses))

    def __str__(self) -> str:
        text = f"{self.kind}: {self.achieved} of {self.expected}"
        if self.absent:
            text += f" ({self.absent} not in the graph: dead, or the same as others)"
        if self.others:
            modules = "module" if len(self.others) == 1 else "modules"
            text += f" ({len(self.others)} {modules} called so compute something else: "
            text += ", ".join(self.others[:_SHOWN]) + (", ...)" if self.others[_SHOWN:] else ")")
        return text


@dataclasses.dataclass(frozen=True, slots=True)
class _Kind:
    """Something that becomes one node, or nothing.

    Attributes:
        fused: Operators that it becomes; none if it goes into its neighbours.
        anchors: Whether a node is the one that it cannot do without when it is written out.
        classes: Names of module classes that are one.
        passes: Names of the passes whose refusals concern it.
        needs: The pass that has to be in a pipeline for it to be expected; None for any.
        written_by: The pass that writes it out in the anchor's form, where that is the fastest.
    """

    fused: frozenset[str]
    anchors: Callable[[ir.Node], bool]
    classes: re.Pattern[str] | None
    passes: re.Pattern[str]
    needs: str | None = None
    written_by: str | None = None


@dataclasses.dataclass(slots=True)
class Census:
    """How often each kind is there, as one node and written out, and in which modules."""

    fused: collections.Counter[str]
    anchors: dict[str, list[ir.Node]]
    written: collections.Counter[str]
    places: dict[str, set[str]]


def census(model: ir.Model) -> Census:
    """Count each kind in all bodies; in a function, as often as it is called."""
    calls = _calls(model)
    places: dict[str, set[str]] = {k: set() for k in _KINDS}
    found = Census(collections.Counter(), {k: [] for k in _KINDS}, collections.Counter(), places)
    for scope in scopes(model):
        times = 1 if scope.function is None else calls[scope.function.identifier()]
        for node in scope.body:
            for name, kind in _KINDS.items():
                if node.op_type in kind.fused:
                    found.fused[name] += times
                elif kind.anchors(node):
                    found.anchors[name].append(node)
                    found.written[name] += times
                else:
                    continue
                places[name].add(node.metadata_props.get("bridge.module", ""))
    return found


def _calls(model: ir.Model) -> collections.Counter[Any]:
    """How often each function runs, by its identifier."""
    counts: collections.Counter[Any] = collections.Counter()

    def count(nodes: Iterable[ir.Node], times: int) -> None:
        for node in nodes:
            function = model.functions.get(node.op_identifier())
            if function is not None:
                counts[node.op_identifier()] += times
                count(function.all_nodes(), times)

    count(model.graph.all_nodes(), 1)
    return counts


def expectations(
    before: Census,
    after: Census,
    refusals: Sequence[Refusal],
    *,
    passes: Iterable[str],
    modules: Mapping[str, str] | None = None,
) -> list[Expectation]:
    """Compare what should be there with what is.

    Args:
        before: Of the model before the pipeline.
        after: Of the model after it.
        refusals: Of the pipeline.
        passes: Names of its passes.
        modules: Class names of the modules that the graph came from, by path.
    """
    names = set(passes)
    rows = []
    for name, kind in _KINDS.items():
        if kind.needs is not None and kind.needs not in names:
            continue
        paths = [] if modules is None else _modules_of(kind, modules)
        counted = None if modules is None else len(paths)
        others = tuple(p for p in paths if not _is_among(p, before.places[name]))
        expected = before.fused[name] + before.written[name]
        left, meant = after.anchors[name], 0
        if kind.written_by in names:
            left, meant = [], len(left)
        if kind.fused:
            achieved = after.fused[name] + meant
        else:
            achieved = max(0, expected - len(left))
        if expected or others:
            misses = tuple(_miss(n, kind, refusals) for n in left)
            expected = max(expected, achieved)
            rows.append(Expectation(name, expected, achieved, counted, misses, others))
    return rows


def _modules_of(kind: _Kind, modules: Mapping[str, str]) -> list[str]:
    """Paths of the modules of the kind, without those that only hold one."""
    if kind.classes is None:
        return []
    paths = [p for p, name in modules.items() if kind.classes.search(name)]
    return [p for p in paths if not any(q.startswith(f"{p}.") for q in paths if q != p)]


def _is_among(path: str, places: Iterable[str]) -> bool:
    """Whether a module, or one inside of it, is one of those."""
    return any(p == path or p.startswith(f"{path}.") for p in places)


def _miss(node: ir.Node, kind: _Kind, refusals: Sequence[Refusal]) -> Miss:
    module = node.metadata_props.get("bridge.module", "")
    name = node.name or node.op_type
    concerned = [r for r in refusals if kind.passes.search(r.pass_name)]
    near = {n.name for n in _around(node)}
    for refusal in sorted(concerned, key=lambda r: r.node not in near):
        if refusal.node in near or (module and refusal.module == module):
            return Miss(name, module, refusal.reason, refusal.blocking)
    before = next((v.producer() for v in node.inputs if v is not None), None)
    if before is None:
        return Miss(name, module, "no pass knows it in this form")
    reason = f"no pass knows it in this form, {node.op_type} of {before.op_type}"
    return Miss(name, module, reason, before.name or "")


def _around(node: ir.Node) -> set[ir.Node]:
    """The nodes within a few steps."""
    found = {node}
    for _ in range(_HOPS):
        found |= {p for n in found for v in n.inputs if v and (p := v.producer()) is not None} | {
            u.node for n in found for v in n.outputs for u in v.uses()
        }
    return found


# Anchors


def _is_attention(node: ir.Node) -> bool:
    """A softmax over the last axis, of a product, that is a factor of a product, itself or turned."""
    if node.op_type != "Softmax" or node.domain:
        return False
    size, axis = rank(node.inputs[0]), attribute(node, "axis", -1)
    if axis != -1 and (size is None or norm_axis(axis, size) != size - 1):
        return False
    return _reaches_product(node.inputs[0], _SCORES) and _is_factor(node.outputs[0])


def _reaches_product(value: ir.Value | None, steps: int) -> bool:
    node = None if value is None else value.producer()
    if node is None or steps == 0:
        return False
    if node.op_type in ("MatMul", "FusedMatMul", "Einsum"):
        return True
    if node.op_type == "If":
        results = [g.outputs[value.index() or 0] for g in nested(node)]  # type: ignore[union-attr]
        return any(_reaches_product(v, steps - 1) for v in results)
    if node.op_type not in ("Add", "Mul", "Div", "Where", "Cast", "Reshape", "Max", "Sub", "Tanh"):
        return False
    return any(_reaches_product(v, steps - 1) for v in node.inputs)


def _is_factor(value: ir.Value, steps: int = 4, *, turned: bool = False) -> bool:
    for use in value.uses():
        node = use.node
        if node.op_type in ("MatMul", "FusedMatMul", "Einsum"):
            return use.idx == (1 if turned else 0)
        if (
            steps
            and node.op_type == "Transpose"
            and _is_factor(node.outputs[0], steps - 1, turned=not turned)
        ):
            return True
        passing = node.op_type in (
            "Cast",
            "Dropout",
            "Identity",
            "Where",
            "IsNaN",
            "Reshape",
            "Mul",
        )
        if steps and passing and _is_factor(node.outputs[0], steps - 1, turned=turned):
            return True
    return False


def _mean_square(node: ir.Node) -> ir.Value | None:
    """What the square root of a mean square is taken of: ``x`` of ``sqrt(mean(x * x) + eps)``."""
    power = scalar(node.inputs[1]) if node.op_type == "Pow" else None
    if node.domain or (node.op_type != "Sqrt" and power not in (-0.5, 0.5)):
        return None
    added = producer(node.inputs[0], "Add")
    if added is None:
        return None
    for value in added.inputs:
        mean = producer(value, "ReduceMean", "Unsqueeze", "Reshape")
        if mean is not None and mean.op_type != "ReduceMean":
            mean = producer(mean.inputs[0], "ReduceMean")
        if mean is None or not _over_last(mean):
            continue
        square = producer(mean.inputs[0], "Mul", "Pow")
        if square is not None and (
            square.inputs[0] is square.inputs[1] or scalar(square.inputs[1]) == 2
        ):
            return square.inputs[0]
    return None


def _over_last(mean: ir.Node) -> bool:
    axes = attribute(mean, "axes") or (ints(mean.inputs[1]) if len(mean.inputs) > 1 else None)
    size = rank(mean.inputs[0])
    return axes == [-1] or (axes is not None and size is not None and axes == [size - 1])


def _is_layer_norm(node: ir.Node) -> bool:
    x = _mean_square(node)
    return x is not None and _is_centred(x)


def _is_rms_norm(node: ir.Node) -> bool:
    x = _mean_square(node)
    return x is not None and not _is_centred(x)


def _is_centred(value: ir.Value) -> bool:
    """Whether the mean has been taken off."""
    node = producer(value, "Sub", "Cast")
    if node is not None and node.op_type == "Cast":
        node = producer(node.inputs[0], "Sub")
    return node is not None and producer(node.inputs[1], "ReduceMean") is not None


def _is_gelu(node: ir.Node) -> bool:
    """The error function, or the tanh or sigmoid that stand for it."""
    if node.domain or node.op_type not in ("Erf", "Tanh", "Sigmoid"):
        return False
    if node.op_type == "Erf":
        return True
    scaled = producer(node.inputs[0], "Mul")
    if scaled is None:
        return False
    wanted = 1.702 if node.op_type == "Sigmoid" else math.sqrt(2 / math.pi)
    return any(
        (number := scalar(v)) is not None and abs(number - wanted) < 1e-3 for v in scaled.inputs
    )


def _is_rotary(node: ir.Node) -> bool:
    """Halves put together in the other order, one with its sign turned."""
    if node.op_type != "Concat" or node.domain or len(node.inputs) != 2:
        return False
    turned = producer(node.inputs[0], "Neg")
    if turned is None:
        return False
    halves = (turned.inputs[0], node.inputs[1])
    return all(producer(v, "Slice", "Split") is not None for v in halves)


def _is_batch_norm(node: ir.Node) -> bool:
    if node.op_type != "BatchNormalization" or attribute(node, "training_mode", 0):
        return False
    return bool(attribute(node, "epsilon", 1e-5))  # 0: a pass scales and shifts channels with it


def _is_group_norm(node: ir.Node) -> bool:
    """An instance normalisation of groups that were made by a Reshape."""
    return (
        node.op_type == "InstanceNormalization" and producer(node.inputs[0], "Reshape") is not None
    )


def _is_conv_activation(node: ir.Node) -> bool:
    if node.op_type not in _ACTIVATIONS or node.domain or node.inputs[0] is None:
        return False
    conv = producer(node.inputs[0], "Conv")
    return conv is not None and only_consumer(conv.outputs[0]) is node


def _kind(
    fused: str, anchors: Any, classes: str, passes: str, needs: str | None = None,
    written_by: str | None = None,
) -> _Kind:  # fmt: skip
    return _Kind(
        frozenset(fused.split()),
        anchors,
        re.compile(classes) if classes else None,
        re.compile(passes),
        needs,
        written_by,
    )


_KINDS: dict[str, _Kind] = {
    "attention": _kind(
        "Attention MultiHeadAttention GroupQueryAttention PackedMultiHeadAttention",
        _is_attention, r"Attention$", "Attention",
    ),
    "layer norm": _kind(
        "LayerNormalization SkipLayerNormalization EmbedLayerNormalization",
        _is_layer_norm, r"(^|[a-z])LayerNorm(2d)?$", "Norm",
    ),
    "RMS norm": _kind(
        "RMSNormalization SimplifiedLayerNormalization SkipSimplifiedLayerNormalization",
        _is_rms_norm, r"RMSNorm$", "Norm",
    ),
    "group norm": _kind(
        "GroupNormalization GroupNorm", _is_group_norm, r"GroupNorm$", "Group",
        written_by="GroupNorm",
    ),
    "GELU": _kind(
        "Gelu BiasGelu FastGelu QuickGelu", _is_gelu, r"(GELU|GELUActivation)$", "Gelu"
    ),
    "rotary embedding": _kind("RotaryEmbedding", _is_rotary, "", "Rotary|Attention"),
    "batch norm": _kind("", _is_batch_norm, "", "BatchNorm|Affine", "BatchNorm"),
    "activation after Conv": _kind(
        "", _is_conv_activation, "", "ConvActivation", "ConvActivation"
    ),
}  # fmt: skip


def names_of(passes: Iterable[Any]) -> Iterator[str]:
    """What reports call the passes of a pipeline."""
    from optim_passes.pipeline import leaves, pass_name

    yield from (pass_name(p) for p in leaves(list(passes)))
