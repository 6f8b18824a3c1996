"""Algorithms as an outsider writes them: state in objects, queues, stacks, early returns."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch

from tests.script.harness import T, agree


def R(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def counter(x):
    hits = 0
    best = x.new_tensor(float("-inf"))

    def visit(v):
        nonlocal hits, best
        if v > 0:
            hits += 1
            if v > best:
                best = v

    for v in x:
        visit(v)
    return hits, best


@dataclass
class Mut:
    total: torch.Tensor
    n: int = 0
    last: torch.Tensor | None = None


def mutate(x):
    s = Mut(x.new_zeros(()))
    for v in x:
        if v > 0.5:
            continue
        s.total += v
        s.n += 1
        s.last = v
    if s.last is None:
        return s.total, s.n
    return s.total + s.last, s.n


def running(x):
    st = {"mean": torch.zeros(x.shape[1]), "m2": torch.zeros(x.shape[1]), "n": 0}
    for row in x:
        st["n"] += 1
        d = row - st["mean"]
        st["mean"] = st["mean"] + d / st["n"]
        st["m2"] = st["m2"] + d * (row - st["mean"])
    var = st["m2"] / (st["n"] - 1) if st["n"] > 1 else torch.zeros_like(st["m2"])
    return {"mean": st["mean"], "var": var}


def find_root(x):
    k = 0
    while k < 20:
        if (x - k).abs().min() < 0.3:
            break
        k += 1
    else:
        return x.new_full((1,), -1.0), -1
    return x[:1] * k, k


def josephus(x, k):
    q = [v for v in x]
    out = []
    while len(q) > 0:
        for _ in range(int(k)):
            q.append(q.pop(0))
        out.append(q.pop(0))
    return torch.stack(out)


def find(m, t):
    for i in range(m.shape[0]):
        for j in range(m.shape[1]):
            if m[i, j] == t:
                return i, j
    return -1, -1


def machine(ops, x):
    stack = []
    acc = x
    for op in ops.tolist():
        match op:
            case 0:
                acc = acc + 1
            case 1:
                acc = acc * 2
            case 2 | 3:
                acc = -acc
            case k if k > 10:
                acc = acc + k
            case _:
                break
    return acc


def weighted(x):
    ws = [0.5, 1.0, 2.0]
    out = x.new_zeros(x.shape[1])
    for i, (w, row) in enumerate(zip(ws, x)):
        if row.sum() < 0:
            continue
        out = out + w * row * (i + 1)
    return out


def quick(x):
    x = x.clone()
    stack = [(0, x.shape[0] - 1)]
    while stack:
        lo, hi = stack.pop()
        if lo >= hi:
            continue
        p = x[hi]
        i = lo
        for j in range(lo, hi):
            if x[j] < p:
                x[i], x[j] = x[j].clone(), x[i].clone()
                i += 1
        x[i], x[hi] = x[hi].clone(), x[i].clone()
        stack.append((lo, i - 1))
        stack.append((i + 1, hi))
    return x


def selection(x):
    x = x.clone()
    for i in range(len(x) - 1):
        m = i
        for j in range(i + 1, len(x)):
            if x[j] < x[m]:
                m = j
        if m != i:
            x[[i, m]] = x[[m, i]]
    return x


def prim(w):
    n = w.shape[0]
    inside = torch.zeros(n, dtype=torch.bool)
    inside[0] = True
    cost = w.new_zeros(())
    while not inside.all():
        m = w.masked_fill(~(inside[:, None] & ~inside[None]), float("inf"))
        k = m.argmin()
        v = m.flatten()[k]
        if torch.isinf(v):
            break
        cost = cost + v
        inside[k % n] = True
    return cost, inside.sum()


def merge(iv):
    iv = iv[iv[:, 0].argsort()]
    out = [iv[0]]
    for k in range(1, iv.shape[0]):
        s, e = iv[k]
        if s <= out[-1][1]:
            out[-1] = torch.stack([out[-1][0], torch.maximum(out[-1][1], e)])
        else:
            out.append(iv[k])
    return torch.stack(out)


def brackets(tok):
    stack = []
    pair = {4: 1, 5: 2, 6: 3}
    for t in tok.tolist():
        if t in (1, 2, 3):
            stack.append(t)
        elif t in pair:
            if not stack or stack.pop() != pair[t]:
                return False
    return not stack


class Stack:
    def __init__(self):
        self.items = []

    def push(self, v):
        self.items.append(v)

    def pop(self):
        return self.items.pop()

    def __len__(self):
        return len(self.items)


def rpn(tok):
    s = Stack()
    for t in tok:
        if t >= 0:
            s.push(t)
        elif t == -1:
            b = s.pop()
            a = s.pop()
            s.push(a + b)
        else:
            b = s.pop()
            a = s.pop()
            s.push(a * b)
    return s.pop()


def lru(req, cap: int = 3):
    keys = torch.full((cap,), -1)
    age = torch.zeros(cap, dtype=torch.long)
    hits = 0
    for t, r in enumerate(req):
        pos = (keys == r).nonzero()
        if len(pos) > 0:
            age[pos[0, 0]] = t + 1
            hits += 1
        else:
            k = age.argmin()
            keys[k] = r
            age[k] = t + 1
    return hits, keys


def words(b):
    starts = []
    ends = []
    inside = False
    for i, c in enumerate(b):
        space = c == 32
        if not space and not inside:
            starts.append(i)
            inside = True
        elif space and inside:
            ends.append(i)
            inside = False
    if inside:
        ends.append(len(b))
    return torch.tensor(starts), torch.tensor(ends)


def window_max(x, w: int = 3):
    q = deque()
    out = []
    for i, v in enumerate(x):
        while q and x[q[-1]] <= v:
            q.pop()
        q.append(i)
        if q[0] <= i - w:
            q.popleft()
        if i >= w - 1:
            out.append(x[q[0]])
    return torch.stack(out)


class S(NamedTuple):
    pos: torch.Tensor
    vel: torch.Tensor
    n: int


def sim(x):
    s = S(x, torch.zeros_like(x), 0)
    while s.pos.max() < 10 and s.n < 50:
        s = s._replace(vel=s.vel + 0.5, n=s.n + 1)
        s = s._replace(pos=s.pos + s.vel)
        if (s.pos < 0).any():
            s = s._replace(pos=s.pos.abs())
    return s


def simpson(n):
    n = int(n)
    h = 1.0 / n
    s = 0.0
    i = 0
    while i < n:
        c = 1 if i % 2 == 0 else 2
        s += c * math.sin(i * h) * h
        i += 1
    return s


def lis(x):
    n = x.shape[0]
    d = torch.ones(n, dtype=torch.long)
    for i in range(1, n):
        m = x[:i] < x[i]
        if m.any():
            d[i] = d[:i][m].max() + 1
    return d.max()


def uf(edges, n):
    p = torch.arange(int(n))

    def root(i):
        while p[i] != i:
            i = p[i]
        return i

    c = int(n)
    for e in edges:
        a, b = root(e[0]), root(e[1])
        if a != b:
            p[a] = b
            c -= 1
    return c


def watershed(h):
    lab = torch.zeros_like(h, dtype=torch.long)
    nxt = 1
    for i in range(h.shape[0]):
        for j in range(h.shape[1]):
            if h[i, j] <= 0:
                continue
            up = lab[i - 1, j] if i > 0 else torch.tensor(0)
            left = lab[i, j - 1] if j > 0 else torch.tensor(0)
            if up == 0 and left == 0:
                lab[i, j] = nxt
                nxt += 1
            else:
                lab[i, j] = torch.maximum(up, left)
    return lab


def primes(n):
    ps = torch.zeros(0, dtype=torch.long)
    k = 2
    while k <= n:
        if ps.numel() == 0 or bool((k % ps != 0).all()):
            ps = torch.cat([ps, torch.tensor([k])])
        k += 1
    return ps


def operands_with_effects(x):
    found = []

    def take(v):
        found.append(v)
        return v > 0

    hits = 0
    for v in x:
        if v > 2 or (v > 1 and take(v)):
            hits += 1
    stack = [hits]
    empty = hits > 3 and (hits > 5 or stack.pop() > 4)
    return hits, len(found), len(stack), empty


def rebinds_in_a_tail(x):
    best = x.new_zeros(())

    def visit(v):
        nonlocal best
        if v > best:
            best = v
            return True
        return False

    count = 0
    for v in x:
        if visit(v):
            count += 1
    return best, count


def table(n):
    a = torch.rand(n, n, generator=torch.Generator().manual_seed(n))
    return a + a.T


def letters(text):
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


N = ({0: "n"},)
CASES = {
    counter: ([(T([1.0, -2, 3]),), (T([-1.0]),), (R(9),)], N),
    mutate: ([(T([1.0, 0.2, 0.3]),), (T([2.0, 2.0]),), (R(6),)], N),
    running: ([(R(4, 3),), (R(1, 3),), (R(9, 3),)], N),
    find_root: ([(T([3.1, 7.0]),), (T([100.0]),), (T([19.4, 50.0, -3.0]),)], N),
    josephus: (
        [(torch.arange(5), T(2)), (torch.arange(1), T(0)), (torch.arange(8), T(3))],
        ({0: "n"}, None),
    ),
    find: (
        [
            (torch.arange(6).reshape(2, 3), T(4)),
            (torch.arange(6).reshape(3, 2), T(9)),
            (torch.arange(1).reshape(1, 1), T(0)),
        ],
        ({0: "n", 1: "m"}, None),
    ),
    machine: (
        [
            (T([0, 1, 2]), R(2)),
            (T([12, 3, 5, 0]), R(2)),
            (T([9]), R(2)),
            (T([0, 0, 0, 0, 1]), R(2)),
        ],
        ({0: "n"}, None),
    ),
    weighted: ([(R(4, 3),), (R(1, 3),), (R(2, 3),), (R(6, 3),)], N),
    quick: ([(R(6),), (R(1),), (R(12),)], N),
    selection: ([(R(6),), (R(1),), (R(9),)], N),
    prim: ([(table(4),), (table(1),), (table(7),)], ({0: "n", 1: "n"},)),
    merge: (
        [
            (T([[1, 3], [2, 6], [8, 10]]),),
            (T([[1, 2]]),),
            (T([[5, 6], [1, 2], [2, 4], [7, 9], [8, 8]]),),
        ],
        N,
    ),
    brackets: ([(T([1, 2, 5, 4]),), (T([4]),), (T([1, 5]),), (T([1, 2, 3]),)], N),
    rpn: ([(T([2, 3, -1, 4, -2]),), (T([7]),), (T([1, 2, 3, -2, -1]),)], N),
    lru: ([(T([1, 2, 1, 3, 4, 1]),), (T([5]),), (T([1, 1, 1, 2, 3, 4, 5, 1, 2]),)], N),
    words: ([(letters("ab  c de"),), (letters("x"),), (letters(" hello  world again "),)], N),
    window_max: ([(R(6),), (R(3),), (R(11),)], N),
    sim: ([(R(3),), (R(1) + 20,), (R(5) - 3,)], N),
    simpson: ([(T(4),), (T(1),), (T(11),)], None),
    lis: ([(R(6),), (R(1),), (R(13),)], N),
    uf: (
        [
            (T([[0, 1], [1, 2]]), T(4)),
            (T([[0, 0]]), T(1)),
            (T([[0, 1], [2, 3], [1, 3], [0, 2]]), T(6)),
        ],
        ({0: "e"}, None),
    ),
    watershed: ([(R(3, 4),), (R(1, 1),), (R(5, 2),)], ({0: "h", 1: "w"},)),
    primes: ([(T(10),), (T(1),), (T(30),), (T(2),)], None),
    operands_with_effects: (
        [
            (T([1.5, 3.0, 0.0]),),
            (T([0.5]),),
            (T([3.0, 3.0, 3.0, 3.0, 1.2, 9.0, 7.0]),),
            (T([4.0] * 4),),
        ],
        N,
    ),
    rebinds_in_a_tail: ([(T([1.0, -2, 3]),), (T([-1.0]),), (R(9),)], N),
}


@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)
def test_agrees(function):
    inputs, dynamic = CASES[function]
    agree(function, inputs[:1], inputs[1:], dynamic_shapes=dynamic)
