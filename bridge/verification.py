"""Does the graph compute what eager computes? Asked of ONNX Runtime after every export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bridge.errors import ParityError
from bridge.parity.comparison import Comparison, compare
from bridge.session import Session, to_numpy
from exporters.pytorch import frontend
from exporters.pytorch.inputs import world_leaves
from exporters.tracing.worlds import candidate_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bridge.program import Program
    from exporters.pytorch.frontend import TracedModel

__all__ = ["verify"]


def verify(traced: TracedModel, program: Program) -> list[Comparison]:
    """Run every world, and inputs that no world had, through ONNX Runtime and eager code.

    Returns:
        A comparison of each output in each run.

    Raises:
        ParityError: An output differs.
        SpecialisationError: It differs because the trace froze something that varies.
    """
    session = Session(program)
    rows: list[Comparison] = []
    for number, world in enumerate(traced.worlds):
        expected = world.outputs
        label = "example" if number == 0 else f"world {number}"
        rows += _compare(traced, session, world.leaves, expected, f"{label} {_sizes(world.sizes)}")
    for sizes, leaves in fresh_inputs(traced):
        try:
            expected = traced.eager_outputs(leaves)
        except Exception:  # noqa: S112 (eager does not take these inputs, so nobody will give them)
            continue
        try:
            rows += _compare(traced, session, leaves, expected, f"unseen inputs {_sizes(sizes)}")
        except ParityError as error:
            reason = frontend.explain(traced, leaves, sizes)
            if reason is not None:
                raise reason from error
            raise
    return rows


def _sizes(sizes: dict[str, int]) -> str:
    return ", ".join(f"{k}={v}" for k, v in sizes.items()) or "as exported"


def _compare(
    traced: TracedModel,
    session: Session,
    leaves: Sequence[Any],
    expected: Sequence[Any],
    label: str,
) -> list[Comparison]:
    feed = {
        n: to_numpy(leaves[i]) for n, i in zip(session.input_names, traced.inputs, strict=True)
    }
    results = session.run(feed)
    if traced.random:
        return []
    rows = [
        compare(f"{name} ({label.strip()})", to_numpy(want), got)
        for (name, got), want in zip(results.items(), expected, strict=True)
    ]
    failed = [r for r in rows if not r.passed]
    if failed:
        raise ParityError(
            "the exported model does not compute what eager computes:\n"
            + "\n".join(f"  {r}" for r in failed),
            hint="export with verify=False and locate the node with bridge.check",
        )
    return rows


def fresh_inputs(traced: TracedModel) -> Iterator[tuple[dict[str, int], list[Any]]]:
    """Inputs that no world had: other values, and if there are dynamic dims, another size of each."""
    example = traced.worlds[0]
    moved = [_rolled(x) for x in example.leaves]
    if not traced.symbols:
        yield {}, moved
        return
    seen = {s.name: {w.sizes.get(s.name, s.size) for w in traced.worlds} for s in traced.symbols}
    sizes = {}
    for symbol in traced.symbols:
        options = (
            [1, *candidate_sizes(symbol)] if symbol.allows(1) else list(candidate_sizes(symbol))
        )
        unseen = [n for n in options if n not in seen[symbol.name]]
        sizes[symbol.name] = (
            unseen[0] if symbol.size < 16 and unseen else (unseen or [symbol.size])[-1]
        )
    yield sizes, world_leaves(moved, traced.symbols, sizes)


def _rolled(x: Any) -> Any:
    """The same values in other places, so that token ids and masks stay valid."""
    if not isinstance(x, torch.Tensor) or x.numel() < 2:
        return x
    return x.flatten().roll(1).view(x.shape)
