"""What is known of a torch callable before it is called."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

import torch

from exporters.pytorch import registry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Plan", "plan"]


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What is known of a torch callable before it is called.

    Attributes:
        query: It only asks for metadata.
        writes: The name says that it writes to its first argument.
        inplace_index: Position of a Python function's ``inplace`` parameter.
        entries: What is registered for it, or for its functional form when it writes.
        functional: The functional form of an in-place method.
        assigns: It is ``x[index] = value``.
        reshapes: It writes no values to its first argument, but gives it another shape.
        pointwise: No number among the arguments says anything of the result's sizes.
    """

    query: bool
    writes: bool
    inplace_index: int | None
    entries: tuple[registry.Entry, ...]
    functional: Callable[..., Any]
    assigns: bool = False
    pointwise: bool = False
    reshapes: bool = False

    def accepting(
        self, args: Sequence[Any], kwargs: dict[str, Any], *, has_complex: bool
    ) -> list[registry.Lowering | registry.Decomposition]:
        """The entries that take such arguments."""
        found = []
        for entry in self.entries:
            if isinstance(entry, registry.Handler):
                continue
            if isinstance(entry, registry.Decomposition):
                fits = has_complex or not entry.pairs
            else:
                fits = entry.pairs or not has_complex
            if fits and entry.accepts(args, kwargs):
                found.append(entry)
        # what was written for pairs knows more of them than code that is traced through
        return sorted(found, key=lambda e: not e.pairs) if has_complex else found


def plan(func: Any) -> Plan:
    """Look up everything about ``func`` that does not depend on its arguments."""
    if registry.is_query(func):
        return Plan(True, False, None, (), func)
    name = registry.aten_name(func)
    writes = name is not None and name.endswith("_") and not name.endswith("__")
    inplace_index = None
    if name is None:
        try:
            parameters = list(inspect.signature(func).parameters)
        except (TypeError, ValueError):
            parameters = []
        if "inplace" in parameters:
            inplace_index = parameters.index("inplace")
        plain = getattr(func, "__name__", "")
        writes = plain.endswith("_") and not plain.startswith("_")
    entries = registry.find(func)
    functional = func
    if writes:
        functional = _functional(func)
        if functional is not None:
            entries = entries or registry.find(functional)
    assigns = name == "setitem"
    pointwise = name is not None and name.rstrip("_") in _POINTWISE
    return Plan(
        False, writes or assigns, inplace_index, entries, functional, assigns, pointwise,
        reshapes=name in _RESHAPING,
    )  # fmt: skip


_RESHAPING = frozenset("squeeze_ unsqueeze_ transpose_ t_ swapaxes_ swapdims_".split())


_POINTWISE = frozenset(
    """
    add addcdiv addcmul bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor
    clamp clamp_max clamp_min clip copysign div divide eq fill float_power floor_divide fmod ge
    greater gt ldexp le leaky_relu lerp less logical_and logical_or lt masked_fill maximum minimum
    mul multiply nan_to_num ne pow remainder rsub softmax sub subtract threshold true_divide where
    """.split()
)


def _functional(func: Any) -> Any:
    """``Tensor.add`` for ``Tensor.add_``; the callable itself when it has no functional form."""
    name = registry.aten_name(func) or func.__name__
    plain = name.rstrip("_")
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        packet = getattr(torch.ops.aten, plain, None)
        return packet if packet is not None else func
    for owner in (torch.Tensor, torch, torch.nn.functional):
        found = getattr(owner, plain, None)
        if found is not None and callable(found):
            return found
    return func
