"""Explanations of a mismatch, in words: each is tried, and told only if the trial confirms it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import BridgeError
from bridge.feeds import to_numpy
from bridge.graph_index import open_model
from bridge.parity.checking import Tolerances, compare_outputs
from bridge.parity.comparison import Comparison, compare
from bridge.parity.relations import relation
from bridge.parity.sides import EagerSide, SessionSide
from bridge.providers import CPU, Contract, Provider

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import onnx_ir as ir

    from bridge.parity.sides import Side
    from bridge.session import Session

__all__ = ["OPTIMIZERS", "explain"]

_TOLD = 5  # weights that are named
# What preprocessing does to pictures that are 0 to 1, or 0 to 255.
_MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 3, 1, 1)
_STD = np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 3, 1, 1)
_TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "is scaled by 255": lambda x: x * 255,
    "is divided by 255": lambda x: x / 255,
    "is mapped from 0..1 to -1..1": lambda x: x * 2 - 1,
    "is mapped from -1..1 to 0..1": lambda x: (x + 1) / 2,
    "is negated": lambda x: -x,
    "is normalised with ImageNet's mean and standard deviation": lambda x: (x - _MEAN) / _STD,
    "has ImageNet's normalisation undone": lambda x: x * _STD + _MEAN,
    "has its channels reversed (RGB and BGR)": lambda x: np.ascontiguousarray(x[:, ::-1]),
    "is transposed in its last two dims": lambda x: np.ascontiguousarray(np.swapaxes(x, -1, -2)),
    "is flipped in its last dim": lambda x: np.ascontiguousarray(x[..., ::-1]),
}


def explain(
    reference: Side, session: Session, feed: Mapping[str, Any], tolerance: Tolerances
) -> list[str]:
    """What explains that the session does not compute what the reference computes."""
    try:
        expected = reference.run(feed)
    except Exception:  # then there is nothing to explain by values
        return []
    found: list[str] = []

    def agrees(side: Side, inputs: Mapping[str, Any] = feed) -> bool:
        try:
            return all(r.passed for r in compare_outputs(expected, side.run(inputs), tolerance))
        except BridgeError:
            return False

    if isinstance(reference, EagerSide):
        found += _eager_verdicts(reference, session, feed, expected, tolerance)
    found += _session_verdicts(session, agrees)
    if not found:
        found += _input_verdicts(session, feed, agrees)
    return found


def _eager_verdicts(
    side: EagerSide,
    session: Session,
    feed: Mapping[str, Any],
    expected: Mapping[str, Any],
    tolerance: Tolerances,
) -> list[str]:
    found = []
    again = side.run(feed)
    if not all(r.passed for r in compare_outputs(expected, again, tolerance)):
        found.append("eager code is not deterministic: two runs on the same inputs differ")
    training = _training(side.model)
    if training:
        with _eval_mode(training):
            calm = side.run(feed)
        told = f"eager is in train mode ({len(training)} modules)"
        try:
            rows = compare_outputs(calm, SessionSide(session).run(feed), tolerance)
            if all(r.passed for r in rows):
                told += ": after model.eval() it agrees"
        except BridgeError:
            pass
        found.append(told)
    found += _weight_verdicts(side.model, session)
    if not found and _takes_another_way_in_an_export(side, session, feed, tolerance):
        found.append(
            "the model computes other values when torch.compiler.is_exporting() tells it of an "
            "export, and the graph computes those"
        )
    return found


def _takes_another_way_in_an_export(
    side: EagerSide, session: Session, feed: Mapping[str, Any], tolerance: Tolerances
) -> bool:
    from exporters.pytorch import isolation

    try:
        with isolation.exporting():
            exported = side.run(feed)
        rows = compare_outputs(exported, SessionSide(session).run(feed), tolerance)
    except Exception:  # eager code that runs in no export
        return False
    return all(r.passed for r in rows)


def _training(model: Any) -> list[Any]:
    from exporters.pytorch.inputs import modules_of

    return [m for root in modules_of(model).values() for m in root.modules() if m.training]


@contextlib.contextmanager
def _eval_mode(modules: list[Any]) -> Iterator[None]:
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module in modules:
            module.training = True


def _weight_verdicts(model: Any, session: Session) -> list[str]:
    """Parameters and buffers that are not what the graph has under their names."""
    from exporters.pytorch.inputs import modules_of, named_tensors

    graph = open_model(session.source).graph
    initializers = graph.initializers
    folded = _folds_normalisation(model, graph)
    stale: list[str] = []
    for name, tensor in named_tensors(modules_of(model)).items():
        held = initializers[name].const_value if name in initializers else None
        if held is None or tuple(held.shape.numpy()) != tuple(tensor.shape):
            continue
        if folded and (
            tensor.dim() > 2 or any(_is_kernel(n) for n, _ in initializers[name].uses())
        ):
            continue
        row: Comparison = compare(name, to_numpy(tensor), held.numpy())
        if not row.passed:
            told = relation(to_numpy(tensor), held.numpy()) if len(stale) < _TOLD else None
            stale.append(f"{name} ({told})" if told else name)
    if not stale:
        return []
    names = ", ".join(stale[:_TOLD]) + (", ..." if len(stale) > _TOLD else "")
    kind = "weight of the graph is" if len(stale) == 1 else "weights of the graph are"
    return [f"{len(stale)} {kind} not eager's: {names}"]


def _folds_normalisation(model: Any, graph: ir.Graph) -> bool:
    """Whether whoever made the graph folded batch normalisation into the weights before it."""
    from torch.nn.modules.batchnorm import _BatchNorm

    from exporters.pytorch.inputs import modules_of

    if any(n.op_type == "BatchNormalization" for n in graph.all_nodes()):
        return False
    modules = [m for root in modules_of(model).values() for m in root.modules()]
    return any(isinstance(m, _BatchNorm) for m in modules)


def _is_kernel(node: ir.Node) -> bool:
    return node.op_type in ("Conv", "ConvTranspose", "FusedConv")


def _session_verdicts(session: Session, agrees: Callable[..., bool]) -> list[str]:
    """Whether the provider, or ONNX Runtime's optimizer, makes the difference."""
    found = []
    contract = session.settings.contract
    accelerators = [p for p in contract.providers if p.name != CPU]
    if accelerators:
        on_cpu = session.with_settings(
            contract=Contract((Provider(CPU),), cpu_allowed=True), cuda_graphs=False
        )
        if agrees(SessionSide(on_cpu)):
            name = accelerators[0].label
            found.append(f"the provider's kernel differs: CPU agrees, {name} does not")
    if session.settings.optimization != "none":
        plain = session.with_settings(optimization="none")
        if agrees(SessionSide(plain)):
            found.append(
                "ONNX Runtime's optimizer changes the result: without optimization it agrees"
            )
            found += _optimizer_verdict(session, agrees)
    return found


# ONNX Runtime's graph transformers that rewrite arithmetic, by the names it knows them by.
OPTIMIZERS = (
    "GeluApproximation", "ConstantFolding", "CommonSubexpressionElimination", "TransposeOptimizer",
    "MatMulAddFusion", "ReshapeFusion", "GeluFusionL1", "GeluFusionL2", "LayerNormFusionL1",
    "LayerNormFusionL2", "SimplifiedLayerNormFusion", "SkipLayerNormFusion", "AttentionFusion",
    "GroupQueryAttentionFusion", "EmbedLayerNormFusion", "GemmActivationFusion", "GemmSumFusion",
    "GemmTransposeFusion", "MatMulActivationFusion", "MatMulScaleFusion", "MatmulTransposeFusion",
    "MatMul_BatchNormalization_Fusion", "BiasGeluFusion", "FastGeluFusion", "QuickGeluFusion",
    "BiasSoftmaxFusion", "BiasDropoutFusion", "SwiGluFusion", "ConvActivationFusion",
    "ConvAddActivationFusion", "ConvMulFusion", "ConvAddFusion", "ConvBNFusion", "Pad_Fusion",
    "DivMulFusion", "GatherSliceToSplitFusion", "GatherToSliceFusion", "CastElimination",
    "CastChainElimination", "ExpandElimination", "NoopElimination", "EliminateIdentity",
    "NotWhereFusion", "SliceConcatToSpaceToDepthFusion", "MatMulIntegerToFloatFusion",
    "DynamicQuantizeMatMulFusion", "DQMatMulNBitsFusion", "QDQPropagationTransformer",
    "DoubleQDQPairsRemover", "QDQS8ToU8Transformer", "QDQSelectorActionTransformer",
    "QDQFinalCleanupTransformer", "WhereDummyDq", "ClipQuantRewrite", "ReluQuantRewrite",
    "NchwcTransformer", "NhwcTransformer",
)  # fmt: skip


def _optimizer_verdict(session: Session, agrees: Callable[..., bool]) -> list[str]:
    """The optimizer without which the session agrees, found by halving."""

    def agrees_without(names: tuple[str, ...]) -> bool:
        return agrees(SessionSide(session.with_settings(disabled_optimizers=names)))

    suspects: tuple[str, ...] = OPTIMIZERS
    if not agrees_without(suspects):
        return []
    while len(suspects) > 1:
        half = suspects[: len(suspects) // 2]
        suspects = half if agrees_without(half) else suspects[len(suspects) // 2 :]
    return [f"the optimizer is {suspects[0]}"] if agrees_without(suspects) else []


def _input_verdicts(
    session: Session, feed: Mapping[str, Any], agrees: Callable[..., bool]
) -> list[str]:
    """Whether the session would agree on an input that is preprocessed in a common way."""
    side = SessionSide(session)
    for name, value in feed.items():
        x = to_numpy(value)
        if x.dtype.kind != "f":
            continue
        for told, transform in _TRANSFORMS.items():
            try:
                changed = transform(x).astype(x.dtype)
            except (ValueError, IndexError):
                continue
            if agrees(side, {**feed, name: changed}):
                return [f"preprocessing differs: they agree when the session's {name!r} {told}"]
    return []
