"""The whole text of an error, put together from the program that it is told of."""

from __future__ import annotations

import inspect
import os
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["text"]


def text(
    function: Callable[..., Any], told: str, place: Any, code: str, hint: str, error: str
) -> str:
    """What an error says.

    Args:
        function: The program.
        told: What happened; ``{2}`` in it is the number of the line two below the ``def``.
        place: How many lines below the ``def`` it happened; with another function, in that one.
        code: What is underlined.
        hint: The remedy.
        error: The class.
    """
    where, offset = place if isinstance(place, tuple) else (function, place)
    lines, first = inspect.getsourcelines(where)
    file = os.path.relpath(inspect.getsourcefile(where) or "").replace(os.sep, "/")
    line = lines[offset].strip()
    column = line.rindex(code)
    told = re.sub(r"\{(\d)\}", lambda number: str(first + int(number[1])), told)
    return (
        f"{told}\n"
        f"  at {file}:{first + offset} in {where.__qualname__}\n"
        f"    {line}\n"
        f"    {' ' * column}{'^' * len(code)}\n"
        "\n"
        f"hint: {hint}\n"
        f"docs/errors#{error.lower()}"
    )
