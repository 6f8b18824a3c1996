"""Random structured programs over small tensors and Python numbers.

A program is the source of a function of two tensors: assignments, ``if``, ``while``, ``for``,
``break``, ``continue`` and ``return``, nested. Names keep one type: ``i`` and ``j`` are ints, ``f``
and ``g`` floats, ``u`` and ``v`` float tensors, ``k`` an int tensor; up to three kits add lists, texts,
objects and calls. Loops are bounded and values stay small, so that every program ends and float errors
do not decide.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from tests.script.kits import KITS, PRELUDE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.script.kits import Kit

__all__ = ["programs"]

_INDENT = "    "
_INTS = ("i", "j")
_FLOATS = ("f", "g")
_TENSORS = ("u", "v")
_RESULTS = ("u", "v", "k", "i", "j", "f", "g")


class _Writer:
    """Writes one program, asking ``draw`` for every choice."""

    def __init__(self, draw, budget: int, kits: Sequence[Kit]) -> None:
        self.draw = draw
        self.budget = budget
        self.kits = kits
        self.lines: list[str] = []
        self.loops = 0

    def pick(self, *options):
        return self.draw(st.sampled_from(options))

    def emit(self, depth: int, text: str) -> None:
        self.lines.append(_INDENT * depth + text)

    # Pieces of kits

    def of_kits(self, what: str) -> list:
        return [piece for kit in self.kits for piece in getattr(kit, what)]

    def filled(self, piece: str) -> str:
        """A piece of a kit's code with something in each place; it is small."""
        self.loops += 1
        number = str(self.loops)

        def drawn(place: re.Match[str]) -> str:
            kind = place.group(1)
            if kind == "#":
                return number
            if kind in "ifu":
                return self.pick(*{"i": _INTS, "f": _FLOATS, "u": _TENSORS}[kind])
            if kind == "I":
                return self.pick("i", "j", "2", "-1", "x.shape[0]", "int(k.sum())", "(i + j)")
            if kind == "N":
                return self.pick(
                    "f", "g", "f * 0.5", "(g - f)", "u.sum().item()", "i * 0.5", "1.25"
                )
            if kind == "U":
                return self.pick("u", "v", "x", "u * 0.5", "(u + v)", "torch.tanh(v)", "-x")
            return self.condition(0)

        text = re.sub(r"(?<!\{)\{([ifuINUC#])\}", drawn, piece)
        return text.replace("{{", "{").replace("}}", "}")

    def emit_filled(self, depth: int, piece: str) -> None:
        for line in self.filled(piece).split("\n"):
            self.emit(depth, line)

    # Expressions

    def integer(self) -> str:
        kinds = ["name", "name", "literal", "sum", "size", "item", "choice", "mod"]
        more = self.of_kits("integers")
        kind = self.pick(*kinds, *(["kit"] * 4 if more else ()))
        if kind == "kit":
            return self.filled(self.pick(*more))
        if kind == "name":
            return self.pick(*_INTS)
        if kind == "literal":
            return str(self.draw(st.integers(-3, 4)))
        if kind == "sum":
            return f"({self.pick(*_INTS)} {self.pick('+', '-')} {self.pick('i', 'j', '1', '2')})"
        if kind == "size":
            return "x.shape[0]"
        if kind == "item":
            return self.pick(
                "int(k.sum())",
                "k[0].item()",
                "int((u > 0).sum())",
                "int(u.sum().clamp(-5, 5) * 0.9 + 0.07)",
            )
        if kind == "mod":
            return f"({self.pick(*_INTS)} % 5)"
        return f"({self.pick(*_INTS)} if {self.condition(0)} else {self.draw(st.integers(-2, 3))})"

    def number(self) -> str:
        more = self.of_kits("numbers")
        kinds = ["name", "literal", "sum", "item", "int", "abs", "max"]
        kind = self.pick(*kinds, *(["kit"] * 4 if more else ()))
        if kind == "kit":
            return self.filled(self.pick(*more))
        if kind == "name":
            return self.pick(*_FLOATS)
        if kind == "literal":
            return self.pick("0.5", "1.25", "-0.75", "2.0")
        if kind == "sum":
            return f"({self.pick(*_FLOATS)} * 0.5 + {self.pick('f', 'g', 'i', '0.25')})"
        if kind == "item":
            return self.pick("u.mean().item()", "v.max().item()", "float(u.min())")
        if kind == "int":
            return f"{self.pick(*_INTS)} * 0.5"
        if kind == "abs":
            return f"abs({self.pick(*_FLOATS)})"
        return f"{self.pick('max', 'min')}({self.pick(*_FLOATS)}, {self.pick('1.5', 'g')})"

    def tensor(self) -> str:
        more = self.of_kits("tensors")
        kinds = ["name", "scale", "add", "where", "fill", "tanh", "choice", "flip"]
        kind = self.pick(*kinds, *(["kit"] * 3 if more else ()))
        if kind == "kit":
            return f"{self.filled(self.pick(*more))} * 0.5"
        name = self.pick(*_TENSORS)
        if kind == "name":
            return name
        if kind == "scale":
            return f"{name} * {self.pick('0.5', 'f', 'i')}".replace(
                "* f", "* max(min(f, 2.0), -2.0)"
            ).replace("* i", "* (i % 3)")
        if kind == "add":
            return f"({name} + {self.pick('u', 'v', 'x', '1', 'k')}) * 0.5"
        if kind == "where":
            return (
                f"torch.where({name} > {self.pick('0', 'x')}, {name}, {self.pick('x', 'v', '-u')})"
            )
        if kind == "fill":
            return "torch.full_like(x, 0.5)"
        if kind == "flip":
            return f"{name}.flip(0)"
        if kind == "choice":
            return f"({name} if {self.condition(0)} else {self.pick('x', '-x')})"
        return f"torch.tanh({name})"

    def condition(self, depth: int = 1) -> str:
        kinds = ["int", "float", "tensor", "any", "mixed", "not"] if depth else ["int", "tensor"]
        more = self.of_kits("conditions") if depth else []
        kind = self.pick(*kinds, *(["kit"] * 3 if more else ()))
        if kind == "kit":
            return self.filled(self.pick(*more))
        if kind == "int":
            other = self.pick("0", "1", "2", "j", "x.shape[0]")
            return f"{self.pick(*_INTS)} {self.pick('<', '>', '==', '<=', '!=')} {other}"
        if kind == "float":
            return f"{self.pick(*_FLOATS)} {self.pick('<', '>')} {self.pick('0.3', '1.1', 'g')}"
        if kind == "tensor":
            reduced = f"{self.pick(*_TENSORS)}.{self.pick('sum()', 'max()', 'mean()')}"
            return f"{reduced} {self.pick('>', '<')} {self.pick('0.1', '1.3', '-0.7')}"
        if kind == "any":
            return self.pick("(u > 1).any()", "(k == 2).any()", "bool((v < 0).all())")
        if kind == "not":
            return f"not ({self.condition(0)})"
        return f"{self.condition(0)} {self.pick('and', 'or')} {self.condition(0)}"

    # Statements

    def assign(self, depth: int) -> None:
        kinds = ["int", "float", "tensor", "tensor", "ints", "augment", "place", "update", "swap"]
        more = self.of_kits("statements")
        kind = self.pick(*kinds, *(["kit"] * 9 if more else ()))
        if kind == "kit":
            self.emit_filled(depth, self.pick(*more))
        elif kind == "int":
            self.emit(depth, f"{self.pick(*_INTS)} = ({self.integer()}) % 7")
        elif kind == "float":
            self.emit(depth, f"{self.pick(*_FLOATS)} = max(min({self.number()}, 8.0), -8.0)")
        elif kind == "tensor":
            self.emit(depth, f"{self.pick(*_TENSORS)} = {self.tensor()}")
        elif kind == "ints":
            self.emit(
                depth,
                f"k = {self.pick('(k + 1) % 4', 'k.flip(0)', '(u > 0).long()', 'k * 0 + i')}",
            )
        elif kind == "augment":
            self.emit(depth, self.pick("i += 1", "j -= 1", "f += 0.5", "g = g * 0.5"))
        elif kind in ("place", "update"):  # what is written to has no other name
            name = self.pick(*_TENSORS)
            self.emit(depth, f"{name} = {name}.clone()")
            if kind == "update":
                self.emit(depth, f"{name} {self.pick('*= 0.5', '+= x', '-= k')}")
                return
            self.emit(
                depth,
                f"{name}[{self.pick('0', '-1', 'i % x.shape[0]')}] = {self.pick('f', '0.5', 'x[0]')}",
            )
        else:
            self.emit(depth, self.pick("i, j = j, i", "u, v = v, u", "f, g = g, f"))

    def block(self, depth: int, *, in_loop: bool) -> None:
        count = self.draw(st.integers(1, 3))
        for _ in range(count):
            self.statement(depth, in_loop=in_loop)

    def statement(self, depth: int, *, in_loop: bool) -> None:
        self.budget -= 1
        kinds = ["assign", "assign", "assign"]
        if self.budget > 0 and depth < 5:
            kinds += ["if", "if", "while", "for"]
        kind = self.pick(*kinds)
        if kind == "assign":
            self.assign(depth)
        elif kind == "if":
            self.branch(depth, in_loop=in_loop)
        elif kind == "while":
            self.loop_while(depth)
        else:
            self.loop_for(depth)

    def branch(self, depth: int, *, in_loop: bool) -> None:
        self.emit(depth, f"if {self.condition()}:")
        self.block(depth + 1, in_loop=in_loop)
        self.jump(depth + 1, in_loop=in_loop)
        if self.draw(st.booleans()):
            if self.draw(st.booleans()):
                self.emit(depth, f"elif {self.condition()}:")
                self.block(depth + 1, in_loop=in_loop)
                self.jump(depth + 1, in_loop=in_loop)
            self.emit(depth, "else:")
            self.block(depth + 1, in_loop=in_loop)

    def result(self) -> str:
        more = map(self.filled, self.of_kits("result"))
        return f"return {', '.join([*_RESULTS, *more])}"

    def jump(self, depth: int, *, in_loop: bool) -> None:
        options = ["", "", "", self.result()]
        if in_loop:
            options += ["break", "continue"]
        text = self.pick(*options)
        if text:
            self.emit(depth, text)

    def loop_while(self, depth: int) -> None:
        self.loops += 1
        counter = f"n{self.loops}"
        self.emit(depth, f"{counter} = 0")
        self.emit(
            depth,
            f"while {counter} < {self.pick('2', '3', 'x.shape[0]')} and ({self.condition()}):",
        )
        self.emit(depth + 1, f"{counter} += 1")
        self.block(depth + 1, in_loop=True)
        self.otherwise(depth)

    def loop_for(self, depth: int) -> None:
        more = self.of_kits("loops")
        if more and self.draw(st.booleans()):
            self.loop_of_kit(depth, *self.pick(*more))
            return
        self.loops += 1
        item = f"e{self.loops}"
        over = self.pick(
            "range(x.shape[0])", "range(i % 4)", "range(j % 3, -1, -1)", "x", "range(3)", "k",
            "range(int(k.max()))", "enumerate(x)",
        )  # fmt: skip
        if over == "enumerate(x)":
            self.emit(depth, f"for {item}, t{self.loops} in {over}:")
            self.emit(depth + 1, f"u = u * 0.5 + t{self.loops}")
            self.emit(depth + 1, f"i = (i + {item}) % 7")
        else:
            self.emit(depth, f"for {item} in {over}:")
            if over == "x":
                self.emit(
                    depth + 1,
                    self.pick(
                        f"v = (v + {item}) * 0.5", f"f = max(min({item}.item() + f, 8.0), -8.0)"
                    ),
                )
            elif over == "k":
                self.emit(depth + 1, f"k = (k + {item}) % 4")
            else:
                self.emit(depth + 1, f"j = (j + {item}) % 6")
        self.block(depth + 1, in_loop=True)
        self.otherwise(depth)

    def loop_of_kit(self, depth: int, head: str, body: str) -> None:
        head, body = self.filled(f"{head}\n{body}").split("\n")
        self.emit(depth, head)
        self.emit(depth + 1, body)
        self.block(depth + 1, in_loop=True)
        self.otherwise(depth)

    def otherwise(self, depth: int) -> None:
        if self.draw(st.integers(0, 5)) == 0:
            self.emit(depth, "else:")
            self.block(depth + 1, in_loop=False)


@st.composite
def programs(draw, size: int = 8) -> str:
    """The source of a function ``program(x, k)``."""
    kits = draw(st.lists(st.sampled_from(KITS), max_size=3, unique=True))
    writer = _Writer(draw, size, kits)
    writer.emit(0, "def program(x, k):")
    for line in ("i, j = 1, 2", "f, g = 0.5, 1.5", "u, v = x, x * 0.5"):
        writer.emit(1, line)
    for line in writer.of_kits("start"):
        writer.emit_filled(1, line)
    for _ in range(draw(st.integers(2, 5))):
        writer.statement(1, in_loop=False)
    writer.emit(1, writer.result())
    return "\n".join([*PRELUDE.split("\n"), "", *writer.lines]) + "\n"
