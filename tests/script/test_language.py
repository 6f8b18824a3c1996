"""Natural programs, a construct each: eager code, the trace and ONNX Runtime agree on all ways through."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import math
import typing
from math import hypot, sqrt

import pytest
import torch
from torch import nn

from tests.script.harness import T, agree

VECTORS = [
    (T([1.0, -2.0, 3.0]),),
    (T([4.0, 0.5]),),
    (T([0.0, 9.0, -1.0, 2.0, 5.0]),),
    (T([-3.0]),),
    (T([-1.0, -1.5]),),
]
OFF = torch.ones(())
PROGRAMS = []


def program(function):
    PROGRAMS.append(function)
    return function


@program
def loop_else_no_break(x):
    for v in x:
        if v > 100:
            r = v
            break
    else:
        r = x.sum()
    return r


@program
def while_else(x):
    n = 0
    while n < x.shape[0]:
        if x[n] < 0:
            break
        n += 1
    else:
        n = -1
    return n


@program
def match_enum(x):
    n = int(x.sum().item())
    match n:
        case 0:
            return x
        case 1 | 2:
            return x * 2
        case k if k < 0:
            return x - k
        case _:
            return x + n


@program
def match_tuple(x):
    a, b = x.sum().item() > 0, x.max().item() > 2
    match (a, b):
        case (True, True):
            y = x * 3
        case (True, False):
            y = x * 2
        case (False, _):
            y = x - 1
    return y


@program
def walrus_while(x):
    total = 0.0
    i = 0
    while (s := x[: i + 1].sum()) < 3 and i < x.shape[0] - 1:
        total = total + s
        i += 1
    return total + s, i


@program
def or_value(x):
    n = (x > 0).sum().item() or 7
    m = (x > 100).sum().item() and 3
    return n, m, x * n


@program
def neg_step(x):
    out = []
    for i in range(x.shape[0] - 1, -1, -1):
        out.append(x[i] * i)
    return torch.stack(out)


@program
def dyn_step(x):
    step = int((x > 0).sum().item()) + 1
    acc = 0
    for i in range(0, 10, step):
        acc += i
    return acc


@program
def dyn_step_neg(x):
    step = -1 - int((x > 0).sum().item())
    acc = torch.zeros(())
    for i in range(10, 0, step):
        acc = acc + i
    return acc


@program
def float_precision(x):
    t = 0.1
    for v in x:
        t = t * 1.1 + v.item() / 3
    return t, t > 1.0


@program
def int_to_tensor(x):
    acc = 0
    for row in x:
        acc = acc + row * 2
    return acc


@program
def int_to_float(x):
    acc = 0
    for v in x:
        acc += v.item() * 0.5
    return acc


@program
def tolist_loop(x):
    lens = (x > 0).long().tolist()
    tot = 0
    for n in lens:
        tot = tot * 2 + n
    return tot


@program
def tolist_split(x):
    n = int((x > 0).sum())
    a, b = x.split([n, x.shape[0] - n])
    return a.sum() - b.sum(), a, b


@program
def dict_items_assign(x):
    d = {"a": 0.0, "b": x * 0}
    for v in x:
        if v > 0:
            d["a"] = d["a"] + v.item()
        else:
            d["b"] = d["b"] + v
    return d["a"], d["b"]


@program
def dict_new_key(x):
    d = {}
    if x.sum() > 0:
        d["k"] = x * 2
    else:
        d["k"] = x - 1
    return d["k"]


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


@program
def one_branch_name(x):
    if x.sum() > 0:
        extra = x * 2
        used = True
    else:
        used = False
    if used:
        return extra + 1
    return x


@program
def sizes_differ(x):
    if x.sum() > 0:
        y = x[:1]
    else:
        y = torch.cat([x, x])
    return y * 2, y.shape[0]


@program
def lambdas(x):
    fs = [lambda v: v * 2, lambda v: v + 1]
    f = fs[0] if x.sum() > 0 else fs[1]
    return f(x)


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
def zero_trip(x):
    y = x * 3
    for i in range(int((x > 100).sum())):
        y = y + i
    return y


@program
def while_true(x):
    i = 0
    while True:
        x = x * 0.5
        i += 1
        if x.abs().max() < 0.25:
            break
        if i > 20:
            return x * 0, i
    return x, i


@program
def asserts(x):
    assert x.ndim == 1, "rank"
    assert x.sum() > -1000, f"bad {x.sum()}"
    return x * 2 if x.sum() > 0 else x


@program
def no_grad(x):
    with torch.no_grad(), contextlib.nullcontext():
        for v in x:
            if v > 0:
                x = x + v
    return x


@program
def views_write(x):
    y = x.clone()
    v = y[1:]
    for i in range(v.shape[0]):
        if v[i] > 0:
            v[i] = v[i] * 10
        else:
            v[i] -= 1
    return y, v


@program
def while_zip(x):
    t = 0
    for i, (a, b) in enumerate(zip(x, reversed(x))):
        t = t + a * b * i
    return t


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
def minmaxabs(x):
    n = int((x > 0).sum())
    m = int((x < 0).sum())
    return (
        min(n, m),
        max(n, m, 2),
        abs(n - m),
        min(x[0].item(), 0.5),
        divmod(n * 7 + 3, m + 2),
        round(x.sum().item(), 1),
        pow(n, 2),
    )


@program
def isinst(x):
    n = x.sum().item()
    if isinstance(n, float) and n > 0:
        return x
    return -x


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
def ret_in_loop(x):
    for i, v in enumerate(x):
        if v < 0:
            return i, v
    return -1, x[0]


@program
def ret_nested(x):
    for i in range(3):
        for j, v in enumerate(x):
            if v * i > 3:
                return v + i * 10 + j
    return x.sum()


@program
def list_index(x):
    rows = [x, x * 2, x * 3]
    i = int((x > 0).sum()) % 3
    rows[i] = rows[i] + 100
    rows[0], rows[i] = rows[i], rows[0]
    return rows


@program
def reorder_static(x):
    rows = [x[:1], x[:1] * 2, x[:1] * 3]
    order = torch.argsort(torch.cat(rows)).tolist()
    rows = [rows[i] for i in order]
    return torch.cat(rows)


@program
def chained(x):
    return x * 2 if 0 < x.sum() < 5 <= x.max() + 6 else x


@program
def tern_chain(x):
    s = x.sum()
    return x if s > 5 else x * 2 if s > 0 else x * 3


@program
def not_and_or(x):
    if not (x.sum() > 0) and (x.max() > 0 or x.min() < -2):
        return x
    return -x


@program
def continue_loop(x):
    t = torch.zeros(())
    n = 0
    for v in x:
        if v < 0:
            continue
        if v > 6:
            break
        t += v
        n += 1
    return t, n


@program
def aug_item(x):
    c = torch.zeros(4)
    for v in x:
        c[int(v.abs()) % 4] += 1
    return c


@program
def first_in_loop(x):
    for v in x:
        last = v * 2
    return last


@program
def grows(x):
    y = x[:1]
    while y.sum().abs() < 10 and y.shape[0] < 12:
        y = torch.cat([y, y * 1.5])
    return y


@program
def range_tensor(x):
    t = 0
    for i in range((x > 0).sum()):
        t += i * i
    return t


@program
def int_float_branch(x):
    k = 1
    if x.sum() > 0:
        k = 2.5
    return x * k


@program
def bool_state(x):
    found = False
    for v in x:
        found = found or bool(v > 2)
    return found


@program
def bits(x):
    n = int((x > 0).sum())
    r = 0
    while n > 0:
        r = (r << 1) | (n & 1)
        n >>= 1
    return r


@program
def collatz(x):
    n = int(x.abs().sum()) + 1
    c = 0
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        c += 1
    return c


@program
def set_static(x):
    s = {1, 2, 3}
    n = int((x > 0).sum())
    return x * 2 if n in s else x


@program
def dict_lookup(x):
    table = {0: 0.5, 1: 1.5, 2: 2.5, 3: 3.5}
    n = int((x > 0).sum())
    return x * table[n % 4]


@program
def partial_cond(x):
    f = functools.partial(torch.mul, x)
    return f(2) if x.sum() > 0 else f(3)


@program
def tensor_attr(x):
    y = x.clone()
    if y.sum() > 0:
        y.add_(1).mul_(2)
    else:
        y.zero_()
    return y


@program
def global_const(x):
    out = x
    for _ in range(3):
        out = out + OFF
        if out.sum() > 5:
            break
    return out


@program
def item_in_slice(x):
    n = int((x > 0).sum())
    return x[:n], x[n:], x[-n:] if n else x


@program
def del_name(x):
    y = x * 2
    if x.sum() > 0:
        z = y
        del y
        return z
    return y


@program
def multi_target(x):
    a = b = x
    if x.sum() > 0:
        a = b = x * 2
    return a + b


@program
def swap(x):
    a, b = x.sum(), x.max()
    while b.abs() > 0.1:
        a, b = b, a * 0.1
    return a, b


@program
def nested_break_else(x):
    r = 0
    for i in range(4):
        for v in x:
            if v * i > 2:
                break
        else:
            continue
        r = r + i
    return r


@program
def slices_a(x):
    n = int((x > 0).sum())
    return x[:n], x[n:]


@program
def slices_b(x):
    n = int((x > 0).sum())
    return x[-n:] if n else x


@program
def slices_c(x):
    n = int((x > 0).sum())
    return x[:n], x[-n:] if n else x


@program
def rebinds_a(x):
    y = x + 1
    if x.sum() > 0:
        y = x * 2
        z = y
    else:
        z = y + 1
    return z


@program
def rebinds_b(x):
    y = x + 1
    if x.sum() > 0:
        y = x * 2
        return y
    return y - 5


@program
def rebinds_c(x):
    y = x + 1
    n = 0
    if x.sum() > 0:
        n = n + 5
        y = y * n
    elif x.max() > 0:
        y = y + n - 1
    return y


@program
def pattern_a(x):
    match x.shape:
        case (n,) if n > 2:
            y = x * n
        case (n,):
            y = x - n
    return y


@program
def pattern_b(x):
    d = {"k": x.sum(), "m": 2}
    match d:
        case {"k": v, **rest} if v > 0:
            y = x * rest["m"]
        case {"k": v}:
            y = x - v
        case _:
            y = x
    return y


@dataclasses.dataclass
class P:
    h: torch.Tensor
    n: int


@program
def pattern_c(x):
    p = P(x, int((x > 0).sum()))
    match p:
        case P(h, 0):
            y = h
        case P(h=h, n=1 | 2 as k):
            y = h * k
        case P(n=n):
            y = x - n
    return y


@program
def pattern_d(x):
    n = int((x > 0).sum())
    match [n, x, x]:
        case [0, *rest]:
            return rest[0] + 5
        case [int(k), *_, last] if k > 1:
            return last * k
    return x


@program
def pattern_e(x):
    for v in x:
        match v.item() > 0, v.item() > 2:
            case True, True:
                x = x + 1
            case True, False:
                x = x * 2
            case False, _:
                x = x - 3
    return x


@program
def pattern_f(x):
    match x.sum().item():
        case float(s) if s > 3:
            return x * s
        case int():
            return x
        case None:
            return x
        case s:
            return x - s


@program
def pattern_g(x):
    rows = [x, x * 2, x * 3]
    i = int((x > 0).sum()) % 3
    rows[0], rows[i] = rows[i], rows[0]
    j, rows[j] = 1, rows[0] + 1
    a = rows[i] = x - 1
    return rows, a, j


@program
def filtered_comp_idx(x):
    pos = [i for i, v in enumerate(x) if v > 0]
    return torch.tensor(pos, dtype=torch.int64)


@program
def cache_tuples(x):
    cache = []
    h = torch.zeros(2)
    for v in x:
        h = torch.tanh(h + v)
        cache.append((h, h * v))
    ks = torch.stack([k for k, _ in cache])
    vs = torch.stack([v for _, v in cache])
    return ks, vs, len(cache)


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
def none_opt(x):
    y = None
    if x.sum() > 0:
        y = x * 2
    if y is None:
        return x
    return y


@program
def list_slice(x):
    out = []
    for v in x:
        out.append(v * 2)
    return (
        torch.stack(out[1:]) if len(out) > 1 else x,
        torch.stack(out[::-1]),
        torch.stack(out[:2]),
    )


@program
def ternary_none(x):
    bias = x if x.sum() > 0 else None
    return x + bias if bias is not None else x


@program
def math_trigonometry(x):
    s = x.sum().item()
    return (
        math.sqrt(abs(s)),
        math.floor(s / 2),
        math.exp(-abs(s)),
        math.hypot(s, 1.0),
        math.atan2(s, 2.0),
        math.log1p(abs(s)),
        math.pi * s,
        math.ceil(s),
        math.fabs(s),
        math.copysign(2.0, s),
        math.isclose(s, 3.0),
    )


@program
def math_hyperbolic(x):
    s = x.sum().item() / 20
    return (
        math.sinh(s),
        math.cosh(s),
        math.asin(s / 2),
        math.acos(s / 2),
        math.atan(s),
        math.asinh(s),
        math.tan(s),
        math.erf(s),
        math.expm1(s),
        math.degrees(s),
        math.radians(s),
        math.pow(abs(s), 1.5),
        math.log(abs(s) + 1, 2),
        math.log(abs(s) + 1),
        sqrt(abs(s)),
        hypot(s, s),
        math.fmod(s, 0.3),
        math.trunc(s * 10),
        math.modf(s),
    )


@program
def math_integers(x):
    n = int(x.abs().sum().item()) + 2
    return (
        math.gcd(n, 6),
        math.isqrt(n),
        math.lcm(n, 4),
        math.prod([n, 2, 3]),
        math.fsum([n, 0.5]),
        math.comb(5, 2),
    )


@program
def math_in_a_loop(x):
    a = x.abs().sum().item() + 1
    t = 0.0
    for v in x:
        t = t + math.sqrt(a) * math.log(a) + v.item()
    return t


@program
def any_all(x):
    return max(v.item() for v in x), min((v * v for v in x)), max([v for v in x if v > -100])


@program
def sort_key(x):
    items = [(v * 2, i) for i, v in enumerate(x)]
    best = sorted(items, key=lambda p: p[0], reverse=True)
    return best[0][0], best[0][1], torch.stack([b[0] for b in best])


@program
def sort_static(x):
    items = [(x.sum(), 0), (x.max(), 1), (x.min() * 2, 2)]
    items.sort(key=lambda p: p[0].item())
    return items[0][0], items[0][1], [p[1] for p in items]


@program
def reorder_tuples(x):
    cache = []
    for v in x:
        cache.append((v, v * torch.ones(2)))
    order = torch.argsort(x)
    cache = [cache[i] for i in order.tolist()]
    return torch.stack([c[0] for c in cache]), torch.stack([c[1] for c in cache])


@program
def list_del(x):
    out = [v for v in x]
    if len(out) > 2:
        del out[1]
    n = int((x > 0).sum()) % len(out)
    del out[n]
    return torch.stack(out) if out else x * 0


@program
def list_eqlen(x):
    out = []
    while len(out) < 5 and sum(out) < 6:
        out.append(len(out) + 1)
    return torch.tensor(out), out[-1]


@program
def list_of_lists(x):
    rows = []
    for v in x:
        rows.append([v, v * 2])
    return torch.stack([r[0] + r[1] for r in rows])


@program
def paths(x):
    best = [x[0]]
    for v in x:
        if v > best[-1]:
            best = best + [v]
        else:
            best = best[:-1] + [v]
    return torch.stack(best)


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
def dict_in_list(x):
    out = []
    for v in x:
        out.append({"v": v, "n": 1})
    return torch.stack([o["v"] for o in out]), sum(o["n"] for o in out)


@program
def nt_list(x):
    H = collections.namedtuple("H", "s n")
    hyps = []
    for i, v in enumerate(x):
        if v > -2:
            hyps.append(H(v, i))
    t = torch.zeros(())
    for h in hyps:
        t = t + h.s * h.n
    return t


@program
def zip_lists(x):
    a, b = [], []
    for v in x:
        a.append(v)
        b.append(v * 3)
    return sum(p * q for p, q in zip(a, b))


@program
def setslice(x):
    y = torch.zeros(x.shape[0] + 3)
    for i in range(x.shape[0]):
        y[i : i + 3] += x[i]
    return y


@program
def set_mask(x):
    y = x.clone()
    for k in range(3):
        y[y > k] = y[y > k] - 0.5
    return y


@program
def nested_cond_list(x):
    out = []
    for i, v in enumerate(x):
        if v > 0:
            if v > 2:
                out.append(v * 10)
            else:
                out.append(v)
        elif i == 0:
            continue
        else:
            out += [v - 1, v - 2]
    return len(out), sum(out, torch.zeros(()))


@program
def pop_until(x):
    st = [v for v in x]
    t = torch.zeros(())
    while st:
        v = st.pop()
        t = t * 0.5 + v
        if v > 3 and len(st) < 4:
            st.append(v - 2)
    return t


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
def optional_branch_use(x):
    mask = None
    if x.max() > 2:
        mask = x > 0
    y = x * 2
    if mask is not None:
        y = y * mask
    return y if mask is None else y + 1


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
def deep(x):
    total = torch.zeros(())
    for i, v in enumerate(x):
        for j in range(i + 1):
            if x[j] < 0:
                continue
            k = 0
            while k < 3:
                total = total + x[j] * v
                k += 1
                if total > 20:
                    return total, i
    return total, -1


@program
def deque_(x):
    q = collections.deque([x[0]])
    t = torch.zeros(())
    for v in x:
        q.append(v)
        if len(q) > 2:
            t = t + q.popleft()
    return t


@program
def accum_dict_static(x):
    counts = {k: 0 for k in ("a", "b")}
    for v in x:
        counts["a" if v > 0 else "b"] += 1
    return counts["a"], counts["b"]


@program
def while_list_cond(x):
    frontier = [x.sum()]
    steps = 0
    while frontier and steps < 6:
        new = []
        for f in frontier:
            if f.abs() > 1:
                new.append(f / 2)
                new.append(f / 4)
        frontier = new
        steps += 1
    return steps


@program
def any_all_sum(x):
    a = any(v > 2 for v in x)
    b = all(v > -3 for v in x)
    c = sum(1 for v in x if v > 0)
    d = sum(v.item() for v in x)
    e = max(v.item() for v in x)
    return a, b, c, d, e


@program
def list_ops(x):
    out = [x[0]]
    for v in x:
        if v > 0:
            out.insert(0, v)
        else:
            out.extend([v, v])
    out.reverse()
    out.pop(0)
    return torch.stack(out) if out else x


@program
def list_numbers(x):
    s = []
    for i, v in enumerate(x):
        if v > 0:
            s.append(i)
    return sum(s), len(s), (2 in s)


@program
def reorder(x):
    rows = []
    for v in x:
        rows.append(v * torch.ones(2))
    order = torch.argsort(x)
    return torch.stack([rows[i] for i in order])


@program
def str_state(x):
    mode = "up"
    for v in x:
        if v < 0:
            mode = "down"
    return x * 2 if mode == "up" else -x


@program
def math_signs(x):
    s = x.sum().item()
    return math.log1p(abs(s)), math.copysign(2.0, s)


@program
def math_sums(x):
    n = int(x.abs().sum().item()) + 2
    return math.prod([n, 2, 3]), math.fsum([n, 0.5]), x


@program
def float_times_a_size(x):
    return x * (0.5 * x.shape[0])


@program
def splits_by_a_list(x):
    lens = (x.abs().long() % 3).clamp(min=0)
    lens[0] += x.shape[0] * 3 - lens.sum()
    parts = torch.arange(x.shape[0] * 3).split(lens.tolist())
    t = 0
    for p in parts:
        t = t * 2 + p.sum()
    return t, len(parts)


@program
def equal_of_run_time_sizes(x):
    y = x
    while True:
        z = y[y > y.min() - 1]
        z = z[: max(1, z.shape[0] - 1)]
        if torch.equal(z, y):
            break
        y = z
    return y


@program
def reads_while_it_grows(x):
    hs = []
    for i in range(x.shape[0]):
        if i < 2:
            hs.append(x[i] * torch.ones(2))
        else:
            hs.append(hs[i - 1] + hs[i - 2])
    return torch.stack(hs)


@program
def stack_of_actions(x):
    st = []
    for a in (x > 0).long().tolist():
        if a == 1:
            st.append(torch.ones(2) * a)
        elif len(st) > 1:
            p = st.pop()
            q = st.pop()
            st.append(p + q * 2)
        else:
            st.append(torch.zeros(2))
    return st[-1], len(st)


@program
def appends_beside_a_continue(x):
    p = []
    n = 0
    u, v = x * 1, x * 0.5
    while n < 2:
        n += 1
        if v.mean() > 0.1:
            m = 0
            while m < 3 and u.mean() < 0.1:
                m += 1
                p.append(0.5)
            continue
        else:
            p.append(u.sum().item())
        v = v + 1
    return len(p), u


@program
def appends_in_nested_branches(x):
    p = []
    v = x
    for e1 in range(x.shape[0]):
        if v.sum() > 0.1:
            if (v > 1).any():
                p.append(0.5)
            elif v.max() > 0:
                p.append(1.5)
                for e2 in range(3):
                    p.append(2.5)
            continue
        v = v + 1
    return len(p), v


@program
def pops_in_one_branch(x):
    p = []
    n = 0
    while n < 2:
        n += 1
        if x.mean() > 0.1:
            if p:
                p.pop()
        else:
            p.append(x.sum().item())
        x = x + 1
    return len(p), x


@pytest.mark.parametrize("function", PROGRAMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("example", [0, 1])
def test_agrees_when_one_way_is_the_example(function, example):
    inputs = VECTORS[example:] + VECTORS[:example]
    agree(function, inputs[:1], inputs[1:], dynamic_shapes={"x": {0: "n"}})


@pytest.mark.parametrize("function", PROGRAMS, ids=lambda f: f.__name__)
def test_agrees_when_every_way_is_an_example(function):
    agree(function, VECTORS)
