"""The control-flow compiler: Python's ``if``, ``while`` and ``for`` become staged operators."""

from exporters.script.install import (
    Target,
    compiled,
    is_marked,
    marked,
    nested_codes,
    script,
    target_behind,
    target_of,
)

__all__ = [
    "Target",
    "compiled",
    "is_marked",
    "marked",
    "nested_codes",
    "script",
    "target_behind",
    "target_of",
]
