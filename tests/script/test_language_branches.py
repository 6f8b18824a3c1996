"""Branches, conditions and `match`: eager code and ONNX Runtime agree on all ways through."""

from __future__ import annotations

import dataclasses
import functools

import torch

from tests.script.language import Programs

program = Programs()


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
def or_value(x):
    n = (x > 0).sum().item() or 7
    m = (x > 100).sum().item() and 3
    return n, m, x * n


@program
def dict_new_key(x):
    d = {}
    if x.sum() > 0:
        d["k"] = x * 2
    else:
        d["k"] = x - 1
    return d["k"]


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


@program
def asserts(x):
    assert x.ndim == 1, "rank"
    assert x.sum() > -1000, f"bad {x.sum()}"
    return x * 2 if x.sum() > 0 else x


@program
def isinst(x):
    n = x.sum().item()
    if isinstance(n, float) and n > 0:
        return x
    return -x


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
def int_float_branch(x):
    k = 1
    if x.sum() > 0:
        k = 2.5
    return x * k


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
def none_opt(x):
    y = None
    if x.sum() > 0:
        y = x * 2
    if y is None:
        return x
    return y


@program
def ternary_none(x):
    bias = x if x.sum() > 0 else None
    return x + bias if bias is not None else x


@program
def optional_branch_use(x):
    mask = None
    if x.max() > 2:
        mask = x > 0
    y = x * 2
    if mask is not None:
        y = y * mask
    return y if mask is None else y + 1


test_one_way, test_every_way = program.tests()
