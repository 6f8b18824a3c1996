"""State that loops and functions carry: eager code and ONNX Runtime agree on all ways through."""

from __future__ import annotations

import dataclasses
import typing

import torch
from torch import nn

from tests.script.language import Programs

program = Programs()


@program
def dict_items_assign(x):
    d = {"a": 0.0, "b": x * 0}
    for v in x:
        if v > 0:
            d["a"] = d["a"] + v.item()
        else:
            d["b"] = d["b"] + v
    return d["a"], d["b"]


class Point(typing.NamedTuple):
    p: torch.Tensor
    n: int


@program
def nt_replace(x):
    s = Point(x * 0, 0)
    for v in x:
        s = s._replace(p=s.p + v, n=s.n + 1)
        if v < 0:
            s = s._replace(n=s.n + 10)
    return s.p, s.n


@program
def cache_assign(x):
    cache = [(torch.zeros(2), torch.zeros(2)) for _ in range(3)]
    for v in x:
        for i in range(3):
            k, w = cache[i]
            k = k + v
            w = w * 0.5 + k
            cache[i] = (k, w)
    return cache


@program
def star_args(x):
    def f(*a, **k):
        s = a[0]
        for v in a[1:]:
            if v.sum() > 0:
                s = s + v * k.get("w", 1)
        return s

    args = [x, x * 2, -x]
    return f(*args, w=3)


@program
def nonlocal_counter(x):
    count = 0

    def bump(n=1):
        nonlocal count
        count += n

    for v in x:
        if v > 0:
            bump()
        else:
            bump(n=10)
    return count


@program
def recursion(x):
    def fact(n, y):
        if n <= 1:
            return y
        if y.sum() > 10:
            return y
        return fact(n - 1, y * n)

    return fact(4, x)


@dataclasses.dataclass
class State:
    h: torch.Tensor
    n: int = 0
    done: bool = False


@program
def dc_state(x):
    s = State(x * 0)
    while not s.done:
        s.h = s.h + x.abs() + 0.5
        s.n += 1
        s.done = bool(s.h.max() > 5)
    return s.h, s.n


@dataclasses.dataclass(frozen=True)
class Fro:
    h: torch.Tensor
    n: int = 0


@program
def dc_replace(x):
    s = Fro(x)
    for i in range(5):
        if s.h.abs().max() < 8:
            s = dataclasses.replace(s, h=s.h * 2, n=s.n + 1)
    return s.h, s.n


@program
def dict_loop(x):
    d = {"a": x, "b": x * 2, "c": -x}
    out = {}
    for k, v in d.items():
        if v.sum() > 0:
            out[k] = v * 2
        else:
            out[k] = v
    return out["a"], out["b"], out["c"]


@program
def nested_fn_loop(x):
    def step(h, v):
        if v > 0:
            return h + v, True
        return h - v, False

    h = torch.zeros(())
    c = 0
    for v in x:
        h, up = step(h, v)
        if up:
            c += 1
    return h, c


@program
def kv_cat(x):
    cache = [None, None]
    for v in x:
        for i in range(2):
            new = v.view(1, 1) * (i + 1)
            if cache[i] is None:
                cache[i] = (new, new + 1)
            else:
                k, w = cache[i]
                cache[i] = (torch.cat([k, new]), torch.cat([w, new + 1]))
    return cache[0][0], cache[1][1]


@program
def none_state(x):
    best = None
    for v in x:
        if best is None or v > best:
            best = v
    return best


@program
def none_state2(x):
    prev = None
    tot = torch.zeros(())
    for v in x:
        if prev is not None:
            tot = tot + (v - prev).abs()
        prev = v
    return tot


@program
def dict_of_lists(x):
    d = {"pos": [], "neg": []}
    for v in x:
        if v > 0:
            d["pos"].append(v)
        else:
            d["neg"].append(v)
    return len(d["pos"]), sum(d["neg"], torch.zeros(()))


@program
def optional_chain(x):
    best, idx = None, None
    for i, v in enumerate(x):
        if best is not None and v <= best:
            continue
        best, idx = v, i
    return best, idx


@program
def optional_attr(x):
    state = {"h": None, "c": 0}
    for v in x:
        h = v if state["h"] is None else state["h"] * 0.5 + v
        state["h"] = h
        state["c"] += 1
    return state["h"], state["c"]


@program
def optional_tuple(x):
    past = None
    for v in x:
        if past is None:
            past = (v, v * 2)
        else:
            a, b = past
            past = (a + v, b * v)
    return past[0], past[1]


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(1, 1)
        torch.manual_seed(0)
        nn.init.constant_(self.lin.weight, 0.5)
        nn.init.constant_(self.lin.bias, 0.1)

    def forward(self, v, past=None):
        h = self.lin(v.view(1, 1))
        if past is not None:
            h = h + past[0]
        return h, (h, h * 2)


CELL = Cell()


@program
def past_module(x):
    past = None
    outs = []
    for v in x:
        h, past = CELL(v, past)
        outs.append(h)
    return torch.cat(outs), past[1]


@program
def str_mode(x):
    mode = "a"
    out = []
    for v in x:
        if mode == "a" and v > 0:
            mode = "b"
        elif mode == "b" and v < 0:
            mode = "c"
        out.append(v * 2 if mode == "b" else v)
    return torch.stack(out)


@program
def fn_state(x):
    f = torch.sin
    y = x
    for i in range(4):
        y = f(y)
        if y.sum() > 0:
            f = torch.cos
        else:
            f = torch.sin
    return y


@program
def accum_dict_static(x):
    counts = {k: 0 for k in ("a", "b")}
    for v in x:
        counts["a" if v > 0 else "b"] += 1
    return counts["a"], counts["b"]


@program
def str_state(x):
    mode = "up"
    for v in x:
        if v < 0:
            mode = "down"
    return x * 2 if mode == "up" else -x


class Settings:
    """Kept by the class."""

    scale = 1.0
    steps: typing.ClassVar[list[int]] = []


@program
def attributes_of_classes(x):
    Settings.scale, Settings.steps = 1.0, []
    for v in x:
        if v > 0:
            Settings.scale = Settings.scale + v.item()
            Settings.steps.append(1)
    if x.sum() > 1:
        Settings.scale = -1.0
    return x * Settings.scale, len(Settings.steps)


test_one_way, test_every_way = program.tests()
