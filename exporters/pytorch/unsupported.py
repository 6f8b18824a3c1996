"""Calls that nothing could turn into nodes, all reported at once if anything comes of them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from exporters.errors import UnsupportedOpError, UntraceableError
from exporters.pytorch import registry
from exporters.tracing.trace import Interrupt

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from exporters.tracing.source import Source
    from exporters.tracing.trace import Trace

__all__ = [
    "PLACEHOLDER_DOMAIN",
    "UnsupportedCall",
    "describe_arguments",
    "require_supported",
    "unsupported_error",
    "untraced_transform",
]

PLACEHOLDER_DOMAIN = "bridge.unsupported"


@dataclasses.dataclass(frozen=True, slots=True)
class UnsupportedCall:
    """A call that nothing could turn into nodes.

    Attributes:
        function: Its name.
        arguments: What it was called with.
        reason: Why no lowering takes it, where there is one.
        source: The user's line.
        node: The placeholder that computes its results; None if they are no tensors, so that the
            trace has frozen them.
    """

    function: str
    arguments: str
    reason: str | None
    source: Source | None
    node: ir.Node | None = None


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


def require_supported(model: ir.Model, calls: Sequence[UnsupportedCall]) -> None:
    """Check that nothing in the graph is a placeholder; what nobody reads may be unsupported.

    Raises:
        UnsupportedOpError: The outputs depend on unsupported calls; it lists all of them.
    """
    if PLACEHOLDER_DOMAIN in model.opset_imports or calls:
        live = {n for n in model.graph.all_nodes() if n.domain == PLACEHOLDER_DOMAIN}
        missed = [c for c in calls if c.node is None or c.node in live]
        known = {c.node for c in missed}
        missed += [
            UnsupportedCall(node.op_type, "", None, None) for node in live if node not in known
        ]
        if missed:
            raise unsupported_error(missed)


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
        closest = registry.closest(call.function)
        if closest is not None and not call.reason:
            lines.append(f"  the closest supported call is {closest}")
    functions = list(dict.fromkeys(c.function for c in calls))
    if len(functions) > 1:
        lines.insert(
            0, f"{len(functions)} functions have no ONNX lowering: {', '.join(functions)}"
        )
    return UnsupportedOpError(
        "\n".join(lines),
        hint=f"register one with `@lowers({functions[0]})`, see docs/how-to/add-an-op",
    )


def untraced_transform(trace: Trace) -> Interrupt:
    """The refusal of a call inside of a transform that was not written down."""
    return Interrupt(
        UntraceableError(
            "this transform of torch.func is not traced",
            source=trace.position()[0],
            hint="call vmap, grad, jvp, vjp, jacrev or jacfwd of torch.func inside of the exported "
            "function, or keep the transform out of it",
        )
    )
