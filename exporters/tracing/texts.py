"""Texts that are made of numbers which only run time knows: keys of layers (``f"layer_{n}"``)."""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Any

from exporters.tracing.scalars import TracedInt, TracedScalar
from exporters.tracing.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["TracedText", "formatted", "joined", "text_of"]

_PLAIN = {"%": r"%[dsi]", "format": r"\{\}"}  # places where a number stands as it is
_HINT = (
    "compare the number, not its text, and look things up by it: layers[n] of a list, values[n] of a "
    "tensor"
)


class TracedText(str):
    """A ``str`` that differs between inputs.

    Attributes:
        trace: The trace it belongs to.
        worlds: The text in each world.
        number: The traced int that stands in it; None if there is anything else.
        ends: What stands before the number, and behind it.
    """

    trace: Trace
    worlds: dict[int, str]
    number: Any
    ends: tuple[str, str]

    def number_in(self, text: str) -> int | None:
        """The number for which this text is ``text``; None if there is none."""
        before, after = self.ends
        middle = text[len(before) : len(text) - len(after)]
        digits = middle.removeprefix("-")
        if text != before + middle + after or not (digits.isascii() and digits.isdigit()):
            return None
        return int(middle) if str(int(middle)) == middle else None

    def among(self, texts: Iterable[str]) -> dict[int, str]:
        """Those of some texts that this one can be, by the number."""
        if self.number is None:
            self._ask(str.__hash__)
        found = {self.number_in(x): x for x in texts if isinstance(x, str)}
        return {n: x for n, x in found.items() if n is not None}

    def _ask(self, question: Callable[[str], Any]) -> Any:
        if not (self.trace.live and self.trace.recording):
            return question(str.__str__(self))
        answers = {w: question(x) for w, x in self.worlds.items()}
        asked = "a text that is made of a number in"
        return self.trace.decide(answers, data=True, asked=asked, hint=_HINT)

    def __eq__(self, other: object) -> bool:
        return bool(self._ask(lambda x: x == other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return int(self._ask(str.__hash__))

    def __len__(self) -> int:
        return int(self._ask(str.__len__))

    def __str__(self) -> str:
        return self

    def __format__(self, spec: str) -> str:
        return self if not spec else str(self._ask(lambda x: format(x, spec)))

    def __add__(self, other: str) -> str:
        return joined([self, other])

    def __radd__(self, other: str) -> str:
        return joined([other, self])


def _made(trace: Trace, worlds: dict[int, str], number: Any, ends: tuple[str, str]) -> TracedText:
    made = TracedText(worlds[trace.active[0]])
    made.trace, made.worlds, made.number, made.ends = trace, worlds, number, ends
    return made


def text_of(trace: Trace, number: Any, spec: str) -> str:
    """``format(number, spec)`` of a traced number."""
    worlds = {w: format(x, spec) for w, x in number.record.worlds.items()}
    known = isinstance(number, TracedInt) and not spec
    return _made(trace, worlds, number if known else None, ("", ""))


def joined(parts: list[str]) -> str:
    """Several texts as one."""
    traced = [x for x in parts if isinstance(x, TracedText)]
    if not traced or not (traced[0].trace.live and traced[0].trace.recording):
        return "".join(parts)
    trace, single = traced[0].trace, traced[0]
    worlds = {
        w: "".join(x.worlds.get(w, x) if isinstance(x, TracedText) else x for x in parts)
        for w in trace.active
    }
    at = next(i for i, x in enumerate(parts) if x is single)
    before, after = single.ends
    ends = "".join(parts[:at]) + before, after + "".join(parts[at + 1 :])
    return _made(trace, worlds, single.number if len(traced) == 1 else None, ends)


def formatted(style: str, template: str, values: tuple[Any, ...]) -> str:
    """``template % values`` or ``template.format(*values)``.

    Args:
        style: ``"%"`` or ``"format"``.
        template: The text with places for values.
        values: What stands there.
    """
    plain: Any = operator.mod if style == "%" else lambda t, v: t.format(*v)
    numbers = [x for x in values if isinstance(x, TracedScalar) and x.record.data]
    trace = Trace.current()
    if not numbers or trace is None or not (trace.live and trace.recording):
        return str(plain(template, values))
    pieces = re.split(_PLAIN[style], template)
    if len(pieces) == len(values) + 1 and not any(c in p for p in pieces for c in "%{}"):
        texts = [t for p, x in zip(pieces, values, strict=False) for t in (p, format(x, ""))]
        return joined([*texts, pieces[-1]])
    worlds = {
        w: str(plain(template, tuple(trace.number_in(x, w) for x in values))) for w in trace.active
    }
    return _made(trace, worlds, None, ("", ""))
