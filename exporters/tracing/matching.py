"""What ``match`` asks of its subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from exporters.tracing.builtin_functions import call
from exporters.tracing.operators import compare
from exporters.tracing.scalars import TracedBool

__all__ = ["always", "as_list", "is_constant", "is_instance_of", "is_mapping", "is_sequence",
           "positional_attribute", "without_keys"]  # fmt: skip

# A pattern `int(n)` binds the whole subject.
_WHOLE = (bool, bytearray, bytes, dict, float, frozenset, int, list, set, str, tuple)


def always(_: Any) -> bool:
    """True, whatever was bound on the way."""
    return True


def is_constant(subject: Any, constant: Any) -> Any:
    """``subject is constant``, of None, True and False."""
    if isinstance(subject, TracedBool) and isinstance(constant, bool):
        return compare("eq", subject, constant)
    return compare("is", subject, constant)


def is_sequence(subject: Any, count: int, more: bool) -> Any:  # noqa: FBT001
    """Whether it is a sequence, of ``count`` items or ``more``."""
    if not isinstance(subject, Sequence) or isinstance(subject, str | bytes | bytearray):
        return False
    return compare("ge" if more else "eq", call(len)(subject), count)


def as_list(items: Any) -> list[Any]:
    """What a starred name of a pattern holds."""
    made: list[Any] = call(list)(items)
    return made


def is_mapping(subject: Any, keys: tuple[Any, ...]) -> bool:
    """Whether it is a mapping that has some keys."""
    return isinstance(subject, Mapping) and all(k in subject for k in keys)


def without_keys(subject: Any, keys: tuple[Any, ...]) -> dict[Any, Any]:
    """The rest of a mapping."""
    return {k: v for k, v in subject.items() if k not in keys}


def is_instance_of(subject: Any, kind: type, count: int, names: tuple[str, ...]) -> bool:
    """Whether it is an instance that has the attributes that are asked for."""
    if not call(isinstance)(subject, kind):
        return False
    if count and kind not in _WHOLE:
        names = (*kind.__match_args__[:count], *names)  # type: ignore[attr-defined]
    return all(hasattr(subject, n) for n in names)


def positional_attribute(subject: Any, kind: type, index: int) -> Any:
    """What a positional part of a class pattern stands for."""
    if kind in _WHOLE:
        return subject
    return getattr(subject, kind.__match_args__[index])  # type: ignore[attr-defined]
