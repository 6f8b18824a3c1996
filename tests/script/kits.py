"""Pieces of state that random programs may have besides numbers and tensors, and what they do with it.

In a piece of code ``{i}`` is an int name, ``{f}`` a float name, ``{u}`` a tensor name, ``{I}`` an int,
``{N}`` a number, ``{U}`` a tensor and ``{C}`` a condition, each drawn anew; ``{#}`` is a number that
makes names of the program's own. ``{N}`` may be large: ``cut`` brings it back.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["KITS", "PRELUDE", "Kit"]


class Kit(NamedTuple):
    """One piece of state.

    Attributes:
        start: Lines that make it.
        result: What is returned of it.
        statements: Pieces of code that change it, or that take something from it.
        integers: Ints that it gives.
        numbers: Floats that it gives.
        tensors: Tensors of the input's shape that it gives.
        conditions: Conditions that it gives.
        loops: Heads of loops over it, each with a line of the body.
    """

    start: tuple[str, ...]
    result: tuple[str, ...] = ()
    statements: tuple[str, ...] = ()
    integers: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    loops: tuple[tuple[str, str], ...] = ()


PRELUDE = """\
import collections
import dataclasses
import enum
import math


class Mode(enum.Enum):
    UP = 1
    DOWN = 2
    FLAT = 3


Pair = collections.namedtuple("Pair", "y n")


@dataclasses.dataclass
class Box:
    y: object
    n: int
    f: float


def cut(a):
    return max(min(a, 8.0), -8.0)


def first_above(y, limit):
    for a in y:
        if a > limit:
            return a.item()
    return limit


def settled(y, n):
    if n < 0:
        return y
    while n > 0:
        y = y * 0.5
        n -= 2
        if y.sum() > 1:
            return y + n
    return -y


def counted(items, limit):
    n = 0
    for a in items:
        if a > limit:
            continue
        n += 1
        if n > 3:
            break
    else:
        return -n
    return n
"""

_TEXT = Kit(
    start=('s = "up"',),
    result=('{{"up": 1, "down": -1, "flat": 0}}[s]',),
    statements=(
        's = "down"',
        's = "up" if {C} else s',
        'if s == "up":\n    {u} = {U}\nelif s != "flat":\n    s = "flat"\nelse:\n    {i} = ({I}) % 7',
        'match s:\n    case "up":\n        {f} = cut({N})\n'
        '    case "down" | "flat" if {C}:\n        s = "up"\n    case _:\n        {i} += 1',
    ),
    integers=('{{"up": 1, "down": -1, "flat": 0}}[s]',),
    conditions=('s == "up"', 's in ("up", "flat")'),
)
_MODE = Kit(
    start=("m = Mode.UP",),
    result=("m.value",),
    statements=(
        "m = Mode.DOWN",
        "m = Mode.FLAT if {C} else Mode.UP",
        "if m is Mode.UP:\n    {f} = cut({N})\n    m = Mode.DOWN",
        "match m:\n    case Mode.UP:\n        {u} = {U}\n    case Mode.DOWN:\n        m = Mode.FLAT\n"
        "    case _:\n        {i} = ({I}) % 5",
    ),
    integers=("m.value",),
    conditions=("m is Mode.UP", "m == Mode.FLAT"),
)
_PAIR = Kit(
    start=("w = (1, 0.5)", "q = Pair(x, 2)"),
    result=("w[0]", "w[1]", "q.y", "q.n"),
    statements=(
        "w = (({I}) % 5, cut({N}))",
        "w = (w[0], {f})",
        "{i}, {f} = w",
        "q = Pair({U}, ({I}) % 4)",
        "q = q._replace(n=q.n + 1)",
        "q = q._replace(y=q.y * 0.5 + {u})",
        "{u}, n{#} = q",
    ),
    integers=("w[0]", "q.n"),
    numbers=("w[1]",),
    tensors=("q.y",),
    conditions=("q.n > w[0]",),
)
_BOX = Kit(
    start=("o = Box(x * 1.0, 0, 0.5)",),
    result=("o.y", "o.n", "o.f"),
    statements=(
        "o.n += 1",
        "o.n = ({I}) % 5",
        "o.f = cut({N})",
        "o.y = o.y * 0.5 + {u}",
        "o.y[0] = {f}",
        "o.y += {u} * 0.25",
        "o = Box({U} * 1.0, o.n, {f})",
        "o = dataclasses.replace(o, n=({I}) % 3)",
    ),
    integers=("o.n",),
    numbers=("o.f",),
    tensors=("o.y * 1.0",),
    conditions=("o.f < 1", "o.y.sum() > 0.3"),
)
_LIST = Kit(
    start=("p = []",),
    result=("len(p)", "sum(p, 0.0)"),
    statements=(
        "p.append({f})",
        "p.append(cut({N}))",
        "p.insert(0, {f})",
        "p = [{f}, *p]",
        "p += [{f}]",
        "p = p[1:]",
        "p = p[:2] + [{f}]",
        "p = [a * 0.5 for a in p if a > 0.3]",
        "p = [a + 1 if a < {f} else a for a in p]",
        "p.extend([0.5, {f}])",
        "p.extend(a * 0.5 for a in p[:2])",
        "p = p[::-1]",
        "p = sorted(p)",
        "p.reverse()",
        "if p:\n    {f} = cut(p.pop())",
        "if len(p) > 1:\n    {f} = cut(p.pop(0))\n    p[-1] = {f}",
        "if p:\n    p[{i} % len(p)] += 0.5",
        "for n{#} in range(len(p)):\n    p[n{#}] = p[n{#}] * 0.5",
        "p = u.tolist()",
        "if f in p:\n    {i} = p.index(f)",
        "del p[:1]",
        "while p and {C}:\n    p.pop()",
    ),
    integers=("len(p)", "sum(1 for a in p if a > 0)", "counted(p, {f})", "p.count(0.5)"),
    numbers=(
        "(p[-1] if p else 0.25)",
        "sum(p) * 1.0",
        "sum(p, 0.5)",
        "max(p, default=0.5)",
        "(min(p) if p else {f})",
        "float(sum(a * 0.5 for a in p))",
        "(p[{i} % len(p)] if p else {f})",
    ),
    tensors=("({u} + torch.tensor(p).sum())", "({u} if p else x)"),
    conditions=(
        "any(a > 0.6 for a in p)",
        "all(a < 1.1 for a in p)",
        "{f} in p",
        "len(p) > 2",
        "not p",
    ),
    loops=(
        ("for a{#} in p[:4]:", "{f} = cut({f} * 0.5 + a{#})"),
        ("for n{#}, a{#} in enumerate(p[:3]):", "{i} = ({i} + n{#}) % 7"),
        ("for a{#}, b{#} in zip(p[:3], x):", "{u} = {u} * 0.5 + a{#} * b{#}"),
        ("for a{#} in reversed(p[-3:]):", "{f} = cut(a{#} - {f})"),
    ),
)
_ROWS = Kit(
    start=("t = [[0.5, -1.0] for _ in range(x.shape[0])]",),
    result=("len(t)", "sum(len(r) for r in t)", "t[-1][0]"),
    statements=(
        "t[{i} % len(t)][0] = {f}",
        "t[-1].append({f})",
        "t.append([{f}, {f}])",
        "t[0] = [{f}]",
        "t[{i} % len(t)][-1] += 0.5",
    ),
    integers=("len(t)", "len(t[0])", "sum(len(r) for r in t) % 9"),
    numbers=("t[-1][0]", "t[{i} % len(t)][-1]", "sum(t[0])", "max(r[0] for r in t)"),
    conditions=("t[0][0] > 0", "any(r[0] > 1 for r in t)"),
    loops=(("for n{#} in range(min(len(t), 3)):", "{f} = cut({f} * 0.5 + t[n{#} % len(t)][0])"),),
)
_DICT = Kit(
    start=("d = {{}}", 'e = {{"a": 0.5, "b": x}}'),
    result=('d.get("f", 0.25)', 'e["a"]', 'e["b"]'),
    statements=(
        'd["f"] = {f}',
        'd["f"] = 0.5',
        'if "f" in d:\n    {f} = d["f"]',
        'e["a"] = cut({N})',
        'e["a"] += 0.5',
        'e["b"] = e["b"] * 0.5 + {u}',
        'e = {{"a": {f}, "b": {U}}}',
        'e = {{**e, "a": {f}}}',
        "e.update(a={f})",
    ),
    numbers=('d.get("f", 0.25)', '(d["f"] if "f" in d else {f})', 'e["a"]'),
    tensors=('e["b"]',),
    conditions=('"f" in d', 'e["a"] > 0.3'),
    loops=(("for a{#}, b{#} in e.items():", "{u} = {u} * 0.5 + b{#}"),),
)
_NONE = Kit(
    start=("b = None", "y = None"),
    result=("-9.0 if b is None else b", "x * 0 if y is None else y"),
    statements=(
        "b = {f}",
        "b = None if {C} else {f}",
        "if b is None or {f} > b:\n    b = {f}",
        "if b is not None:\n    {f} = b\n    b = None",
        "y = {U}",
        "y = {u} if y is None else y * 0.5",
    ),
    numbers=("(0.25 if b is None else b)",),
    tensors=("(x if y is None else y)",),
    conditions=("b is None", "b is not None and b > 0.4", "y is None"),
)
_CALLS = Kit(
    start=(
        "def bump(a):\n    nonlocal i\n    if a > 0:\n        i = (i + 1) % 7\n        return 1\n"
        "    return i",
        "def scaled(y, by=0.5):\n    if y.sum() > f:\n        return y * by\n    return y + g",
    ),
    statements=(
        "{u} = settled({u}, {I})",
        "{f} = cut(first_above({u}, {f}))",
        "j = bump({f})",
        "bump({N})",
        "{u} = scaled({u})",
        "{u} = scaled({U}, by=0.25)",
        "{f} = (lambda a: a * 0.5 if a > {f} else a)({f})",
    ),
    integers=("bump({f})", "counted({u}, 0.4)", "counted(range({i} % 5), {i})"),
    numbers=("first_above({u}, 0.3)",),
    tensors=("settled({u}, {i})", "scaled({u})"),
)
_WRITES = Kit(
    start=("z = x.clone()", "l = k.clone()"),
    result=("z", "l"),
    statements=(
        "z[{i} % x.shape[0]] += 0.5",
        "z[0] *= {f}",
        "z[-1] = {u}[0]",
        "z[:2] += 1",
        "z[1:] = z[1:] * 0.5",
        "z[z > {f}] = 0.5",
        "z.view(-1)[0] = {f}",
        "z.unsqueeze(0)[:, -1] -= 0.25",
        "z.mul_(0.5).add_({u})",
        "l[{i} % x.shape[0]] += 1",
        "l %= 4",
        "n{#} = z[:1]\nn{#} += 1",
        "n{#} = z.flip(0)\nn{#}[0] = {f}\nz = n{#}",
        "z = {U} * 1.0",
        "for n{#} in range(x.shape[0]):\n    z[n{#}] = z[n{#} - 1] * 0.5 + {u}[n{#}]",
        "for n{#} in range({i} % (x.shape[0] + 1)):\n    z[n{#}] -= 0.25\n    l[n{#}] = n{#}",
    ),
    integers=("l[0].item()", "int(l.sum()) % 5"),
    numbers=("z[0].item()", "float(z[-1])"),
    tensors=("z * 1.0", "(z + l)"),
    conditions=("z[0] > 0.3", "bool((l == 1).any())", "z.sum() > l.sum()"),
)
_ARITHMETIC = Kit(
    start=("c = 0",),
    result=("float(c)",),
    statements=(
        "c = c + {i} * 1.5",
        "c += {f}",
        "c = c / 2",
        "c = cut(c)",
        "if (n{#} := {I}) > 1:\n    {i} = n{#} % 6",
        "while (n{#} := i - 2) > 0:\n    i -= 1\n    {f} = cut({f} + n{#})",
        "{i}, {f} = {i} // 2, {f} % 1.5",
        "{i} = divmod({i}, 3)[1]",
        "{i} = min({i}, 3, {I})",
        "{f} = {f} if {f} < {N} else cut({N})",
    ),
    integers=("{i} // 2", "({i} ** 2) % 7", "round({f} + 0.07)", "-{i}", "int({f})", "math.floor({f})",
              "bool({i})", "({i} & 3)"),
    numbers=("{i} / 2", "{f} // 0.7", "float({i})", "({f} or 0.5)", "math.sqrt(abs({f}))",
             "float(c and {f})", "-{f}"),
    conditions=("0 <= {i} < 3", "-0.6 < {f} <= {f} + 1 < 2.3", "{i} < {f}", "{i} and {f}", "c > 1.2",
                "{i} == 1 or {f} > 0.3 and {C}"),
)  # fmt: skip
KITS = (
    _TEXT, _MODE, _PAIR, _BOX, _LIST, _ROWS, _DICT, _NONE, _CALLS, _WRITES, _ARITHMETIC,
)  # fmt: skip
