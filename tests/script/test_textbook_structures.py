"""Programs from textbooks: tokens, simulation, trees, queues, objects with state."""

from __future__ import annotations

import collections
import functools
import heapq
import math
import typing

import torch

from tests.script.language import Programs

program = Programs()


@program
def convolution(x):
    k = [0.25, 0.5, 0.25]
    out = []
    n = x.shape[0]
    for i in range(n):
        s = 0.0
        for j in range(-1, 2):
            if 0 <= i + j < n:
                s = s + x[i + j] * k[j + 1]
        out.append(s)
    return torch.stack(out)


@program
def shift_register(x):
    s = int(x.abs().sum()) + 1
    out = []
    for _ in range(5):
        bit = (s ^ s >> 2) & 1
        s = s >> 1 | bit << 3
        out.append(bit)
    return torch.tensor(out)


@program
def digits_in_base_three(x):
    n = int(x.abs().sum())
    d = []
    while n > 0:
        n, r = divmod(n, 3)
        d.append(r)
    if not d:
        d = [0]
    d.reverse()
    return torch.tensor(d)


@program
def number_from_digits(x):
    v = 0
    sign = 1
    for i, c in enumerate(x.long().tolist()):
        if c < 0:
            if i == 0:
                sign = -1
            else:
                break
            continue
        v = v * 10 + c
    return x * (sign * v)


@program
def merged_pairs(x):
    toks = x.abs().long().tolist()
    merges = {(0, 9): 10, (1, 2): 11, (4, 0): 12}
    changed = True
    while changed:
        changed = False
        out = []
        i = 0
        while i < len(toks):
            if i + 1 < len(toks) and toks[i] == 1 and (toks[i + 1] == 2):
                out.append(11)
                i += 2
                changed = True
            elif i + 1 < len(toks) and toks[i] == 4 and (toks[i + 1] == 0):
                out.append(12)
                i += 2
                changed = True
            else:
                out.append(toks[i])
                i += 1
        toks = out
    return torch.tensor(toks)


@program
def words(x):
    words = []
    cur = []
    for c in x.long().tolist():
        if c <= 0:
            if cur:
                words.append(cur)
                cur = []
        else:
            cur.append(c)
    if cur:
        words.append(cur)
    return torch.tensor([sum(w) * 10 + len(w) for w in words] + [len(words)])


@program
def runge_kutta(x):

    def f(t, y):
        return -y + t

    t = 0.0
    y = x
    h = 0.1
    n = 0
    while t < 1.0 - 1e-09:
        k1 = f(t, y)
        k2 = f(t + h / 2, y + h / 2 * k1)
        k3 = f(t + h / 2, y + h / 2 * k2)
        k4 = f(t + h, y + h * k3)
        yn = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        if (yn - y).abs().max() > 0.3 and h > 0.02:
            h = h / 2
            continue
        y = yn
        t += h
        n += 1
        if h < 0.1:
            h = min(h * 2, 1.0 - t) if t < 1 else h
    return (y, n)


@program
def controller(x):
    integ = 0.0
    prev = None
    pos = 0.0
    for target in x.tolist():
        e = target - pos
        integ += e * 0.1
        d = 0.0 if prev is None else (e - prev) / 0.1
        u = 0.5 * e + 0.1 * integ + 0.01 * d
        u = max(-1.0, min(1.0, u))
        pos += u
        prev = e
    return torch.tensor(pos)


@program
def filtered(x):
    m = torch.zeros(())
    P = torch.ones(())
    ms = []
    for z in x:
        P = P + 0.1
        k = P / (P + 0.5)
        if (z - m).abs() > 4:
            ms.append(m)
            continue
        m = m + k * (z - m)
        P = (1 - k) * P
        ms.append(m)
    return torch.stack(ms)


@program
def gradient_descent(x):
    w = torch.zeros_like(x)
    lr = 0.5
    last = math.inf
    for it in range(100):
        g = 2 * (w - x)
        loss = ((w - x) ** 2).sum().item()
        if loss > last:
            lr *= 0.5
        if loss < 0.001:
            break
        last = loss
        w = w - lr * g * 0.3
    else:
        it = -1
    return (w, it)


@program
def recent_ones(x):
    cache = collections.deque(maxlen=2)
    hits = 0
    for v in x.abs().long().tolist():
        if v in cache:
            hits += 1
        else:
            cache.append(v)
    return x * hits


@program
def priority_queue(x):
    h = []
    for i, v in enumerate(x.tolist()):
        heapq.heappush(h, (v, i))
        if len(h) > 2:
            heapq.heappop(h)
    return torch.tensor([i for _, i in sorted(h)])


@program
def merged(x):
    a = sorted(x.tolist())
    b = sorted((x * 0.5).tolist())
    out = []
    i = j = 0
    while i < len(a) or j < len(b):
        if j >= len(b) or (i < len(a) and a[i] < b[j]):
            out.append(a[i])
            i += 1
        else:
            out.append(b[j])
            j += 1
    return torch.tensor(out)


@program
def intervals(x):
    iv = sorted([(min(v, 0.0), max(v, 0.5)) for v in x.tolist()])
    out = [iv[0]]
    for s, e in iv[1:]:
        if s <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], e))
        else:
            out.append((s, e))
    return torch.tensor(out)


class Node(typing.NamedTuple):
    val: float
    left: int
    right: int


@program
def search_tree(x):
    vals = []
    left = []
    right = []
    for v in x.tolist():
        vals.append(v)
        left.append(-1)
        right.append(-1)
        n = len(vals) - 1
        if n == 0:
            continue
        cur = 0
        while True:
            if v < vals[cur]:
                if left[cur] < 0:
                    left[cur] = n
                    break
                cur = left[cur]
            else:
                if right[cur] < 0:
                    right[cur] = n
                    break
                cur = right[cur]
    out = []
    st = []
    cur = 0
    while st or cur >= 0:
        while cur >= 0:
            st.append(cur)
            cur = left[cur]
        cur = st.pop()
        out.append(vals[cur])
        cur = right[cur]
    return torch.tensor(out)


@program
def search_tree_of_tuples(x):
    tree = []
    for v in x.tolist():
        tree.append(Node(v, -1, -1))
        n = len(tree) - 1
        cur = 0
        while n > 0:
            nd = tree[cur]
            if v < nd.val:
                if nd.left < 0:
                    tree[cur] = nd._replace(left=n)
                    break
                cur = nd.left
            else:
                if nd.right < 0:
                    tree[cur] = nd._replace(right=n)
                    break
                cur = nd.right
    return (torch.tensor([nd.left for nd in tree]), torch.tensor([nd.right for nd in tree]))


class Bank:
    def __init__(self):
        self.bal = 0.0
        self.log = []

    def deposit(self, a):
        if a <= 0:
            return False
        self.bal += a
        self.log.append(a)
        return True

    def withdraw(self, a):
        if a > self.bal:
            return False
        self.bal -= a
        self.log.append(-a)
        return True


@program
def account(x):
    b = Bank()
    fails = 0
    for v in x.tolist():
        ok = b.deposit(v) if v >= 0 else b.withdraw(-v)
        if not ok:
            fails += 1
    return (torch.tensor(b.bal), fails, len(b.log))


class Stack:
    def __init__(self):
        self.items = []

    def push(self, v):
        self.items.append(v)

    def pop(self):
        return self.items.pop()

    @property
    def empty(self):
        return len(self.items) == 0

    def __len__(self):
        return len(self.items)


@program
def stack_object(x):
    s = Stack()
    for v in x.tolist():
        if v < 0 and (not s.empty):
            s.pop()
        else:
            s.push(v)
    tot = 0.0
    while not s.empty:
        tot = tot * 2 + s.pop()
    return torch.tensor(tot)


@program
def length_of_an_object(x):
    s = Stack()
    for v in x.tolist():
        if v > 0:
            s.push(v)
    return x * len(s)


@program
def first_positive(x):
    n = x.shape[0]
    i = 0
    while i < n and x[i] <= 0:
        i += 1
    return x[i] if i < n else x.sum() * 0 - 1


@program
def nearest_neighbours(x):
    path = [0]
    seen = [False] * x.shape[0]
    seen[0] = True
    for _ in range(x.shape[0] - 1):
        best = None
        bd = None
        for j in range(x.shape[0]):
            if seen[j]:
                continue
            d = (x[j] - x[path[-1]]).abs()
            if bd is None or d < bd:
                bd = d
                best = j
        seen[best] = True
        path.append(best)
    return torch.tensor(path)


@program
def largest_difference(x):
    pre = [0.0]
    for v in x.tolist():
        pre.append(pre[-1] + v)
    best = -1000000000.0
    for i in range(len(pre)):
        for j in range(i + 1, len(pre)):
            best = max(best, pre[j] - pre[i])
    return torch.tensor(best)


@program
def gaps_filled(x):
    out = []
    prev = None
    for v in x.long().tolist():
        if prev is not None and v - prev > 1:
            for k in range(prev + 1, v):
                out.append(k)
        out.append(v)
        prev = v
    return torch.tensor(out)


@program
def mutual_recursion(x):

    def even(n):
        return True if n == 0 else odd(n - 1)

    def odd(n):
        return False if n == 0 else even(n - 1)

    return x * 2 if even(4) else x


@program
def reduced(x):
    return functools.reduce(lambda a, b: a * 0.5 + b if b > 0 else a, x.tolist(), 0.0) + x


@program
def any_and_all(x):
    xs = x.tolist()
    if all((v > -5 for v in xs)) and any((v > 3 for v in xs)):
        return x * 2
    return x * sum((1 for v in xs if v > 0))


@program
def counted_from_one(x):
    s = x.sum() * 0
    for i, v in enumerate(x, start=1):
        if i % 2:
            s = s + v
        else:
            s = s - v
        if s.abs() > 8:
            return (s, i)
    return (s, 0)


test_one_way, test_every_way = program.tests()
