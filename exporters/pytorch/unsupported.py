"""Calls that nothing could turn into nodes, all reported at once."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from exporters.errors import UnsupportedOpError
from exporters.pytorch import registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.tracing.source import Source

__all__ = ["PLACEHOLDER_DOMAIN", "UnsupportedCall", "describe_arguments", "unsupported_error"]

PLACEHOLDER_DOMAIN = "bridge.unsupported"


@dataclasses.dataclass(frozen=True, slots=True)
class UnsupportedCall:
    """A call that nothing could turn into nodes."""

    function: str
    arguments: str
    reason: str | None
    source: Source | None


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
    first = calls[0].function
    closest = registry.closest(first)
    near = f"; the closest supported call is {closest}" if closest else ""
    return UnsupportedOpError(
        "\n".join(lines),
        hint=f"register one with `@lowers({first})`, see docs/how-to/add-an-op{near}",
    )
