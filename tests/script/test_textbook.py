"""Programs from textbooks: sorting, searching, dynamic programming, state machines."""

from __future__ import annotations

import collections
import enum

import torch

from tests.script.language import Programs

program = Programs()


@program
def sliding_window(x):
    k = 2
    dq = collections.deque()
    out = []
    for i, v in enumerate(x.tolist()):
        while dq and dq[-1][1] <= v:
            dq.pop()
        dq.append((i, v))
        if dq[0][0] <= i - k:
            dq.popleft()
        if i >= k - 1:
            out.append(dq[0][1])
    if not out:
        return x * 0
    return torch.tensor(out)


@program
def balanced(x):
    depth = 0
    best = 0
    ok = True
    for v in x.tolist():
        if v > 0:
            depth += 1
        else:
            depth -= 1
        if depth < 0:
            ok = False
            break
        best = max(best, depth)
    return x * best if ok and depth == 0 else x - depth


@program
def stack_machine(x):
    st = []
    for v in x.tolist():
        if v < 0 and len(st) >= 2:
            b = st.pop()
            a = st.pop()
            st.append(a * b if v < -1.2 else a - b)
        else:
            st.append(v)
    return torch.tensor(st)


@program
def run_lengths(x):
    vals = []
    cnt = []
    for v in (x > 0).long().tolist():
        if vals and vals[-1] == v:
            cnt[-1] += 1
        else:
            vals.append(v)
            cnt.append(1)
    return torch.tensor(vals) * 10 + torch.tensor(cnt)


@program
def bubble_sort(x):
    a = x.tolist()
    n = len(a)
    swapped = True
    while swapped:
        swapped = False
        for i in range(n - 1):
            if a[i] > a[i + 1]:
                a[i], a[i + 1] = (a[i + 1], a[i])
                swapped = True
        n -= 1
    return torch.tensor(a)


@program
def insertion_sort(x):
    x = x.clone()
    for i in range(1, x.shape[0]):
        key = x[i].clone()
        j = i - 1
        while j >= 0 and x[j] > key:
            x[j + 1] = x[j]
            j -= 1
        x[j + 1] = key
    return x


@program
def quickselect(x):
    a = x.tolist()
    k = len(a) // 2
    while len(a) > 1:
        pv = a[0]
        lo = [v for v in a if v < pv]
        hi = [v for v in a if v > pv]
        eq = len(a) - len(lo) - len(hi)
        if k < len(lo):
            a = lo
        elif k < len(lo) + eq:
            return torch.tensor(pv)
        else:
            k -= len(lo) + eq
            a = hi
    return torch.tensor(a[0])


@program
def quicksort(x):
    stack = [(0, x.shape[0] - 1)]
    x = x.clone()
    while stack:
        lo, hi = stack.pop()
        if lo < hi:
            pv = x[hi].item()
            i = lo
            for j in range(lo, hi):
                if x[j] < pv:
                    t = x[i].item()
                    x[i] = x[j]
                    x[j] = t
                    i += 1
            t = x[i].item()
            x[i] = x[hi]
            x[hi] = t
            stack.append((lo, i - 1))
            stack.append((i + 1, hi))
    return x


@program
def mergesort(x):

    def merge(a, b):
        out = []
        i = j = 0
        while i < len(a) and j < len(b):
            if a[i] <= b[j]:
                out.append(a[i])
                i += 1
            else:
                out.append(b[j])
                j += 1
        return out + a[i:] + b[j:]

    runs = [[v] for v in x.tolist()]
    while len(runs) > 1:
        nxt = []
        for i in range(0, len(runs) - 1, 2):
            nxt.append(merge(runs[i], runs[i + 1]))
        if len(runs) % 2 == 1:
            nxt.append(runs[-1])
        runs = nxt
    return torch.tensor(runs[0])


@program
def greatest_common_divisor(x):
    g = 0
    for v in x.abs().long().tolist():
        a, b = (g, v)
        while b:
            a, b = (b, a % b)
        g = a
    return x * g


@program
def collatz(x):
    n = int(x.abs().sum()) + 1
    c = 0
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        c += 1
        if c > 60:
            break
    return x * c


@program
def sieve(x):
    n = int(x.abs().sum()) + 3
    ps = [True] * (n + 1)
    ps[0] = ps[1] = False
    i = 2
    while i * i <= n:
        if ps[i]:
            for j in range(i * i, n + 1, i):
                ps[j] = False
        i += 1
    return torch.tensor([i for i, v in enumerate(ps) if v])


@program
def newton(x):
    v = x.abs().sum() + 1
    g = v
    for it in range(50):
        ng = 0.5 * (g + v / g)
        if abs(ng - g) < 1e-06 * g:
            return (ng, it)
        g = ng
    return (g, 50)


@program
def bisection(x):
    lo, hi = (-10.0, 10.0)
    c = x.mean().item()
    n = 0
    while hi - lo > 0.0001:
        mid = (lo + hi) / 2
        if mid**3 + mid < c:
            lo = mid
        else:
            hi = mid
        n += 1
    return torch.tensor(lo)


class State(enum.Enum):
    IDLE = 0
    RUN = 1
    STOP = 2


@program
def state_machine_of_enums(x):
    s = State.IDLE
    n = 0
    for v in x.tolist():
        match s:
            case State.IDLE:
                if v > 0:
                    s = State.RUN
            case State.RUN:
                n += 1
                if v < -1:
                    s = State.STOP
            case State.STOP:
                n += 10
                if v > 1:
                    s = State.IDLE
    return x * n + (100 if s is State.STOP else 0)


@program
def state_machine_of_strings(x):
    s = "idle"
    trace = []
    for v in x.tolist():
        if s == "idle" and v > 0:
            s = "run"
        elif s == "run" and v < 0:
            s = "idle"
        trace.append(1 if s == "run" else 0)
    return torch.tensor(trace)


@program
def match_tuple(x):
    a, b = (x[0] > 0, x[-1] > 1)
    match (bool(a), bool(b)):
        case [True, True]:
            return x * 2
        case [True, False]:
            return x * 3
        case [False, _]:
            return x * 4


@program
def nonlocal_best(x):
    best = -1000000000.0
    where = -1

    def visit(i, v):
        nonlocal best, where
        if v > best:
            best = v
            where = i

    for i, v in enumerate(x.tolist()):
        visit(i, v)
    return x * where + best


def fib(n, memo):
    if n < 2:
        return n
    if n in memo:
        return memo[n]
    memo[n] = fib(n - 1, memo) + fib(n - 2, memo)
    return memo[n]


@program
def memoised_recursion(x):
    return x * fib(10, {})


@program
def fibonacci(x):
    n = int(x.abs().sum())
    a, b = (0, 1)
    for _ in range(n):
        a, b = (b, a + b)
    return x * a


@program
def largest_sum(x):
    best = cur = x[0]
    s = e = st = 0
    for i in range(1, x.shape[0]):
        if cur < 0:
            cur = x[i]
            st = i
        else:
            cur = cur + x[i]
        if cur > best:
            best = cur
            s = st
            e = i
    return (best, s, e)


@program
def two_that_add_up(x):
    n = x.shape[0]
    for i in range(n):
        for j in range(i + 1, n):
            if x[i] + x[j] == 4.5 or x[i] + x[j] == 1.0:
                return torch.tensor([i, j])
    return torch.tensor([-1, -1])


@program
def trapped_water(x):
    h = x.abs().tolist()
    i, r = (0, len(h) - 1)
    lm = rm = 0.0
    tot = 0.0
    while i < r:
        if h[i] < h[r]:
            lm = max(lm, h[i])
            tot += lm - h[i]
            i += 1
        else:
            rm = max(rm, h[r])
            tot += rm - h[r]
            r -= 1
    return torch.tensor(tot)


@program
def histogram(x):
    h = [0] * 4
    for v in x.tolist():
        h[min(3, max(0, int(v)))] += 1
    return torch.tensor(h)


@program
def coin_change(x):
    target = int(x.abs().sum())
    dp = [0] + [10**6] * target
    for c in (1, 3, 4):
        for t in range(c, target + 1):
            dp[t] = min(dp[t], dp[t - c] + 1)
    return torch.tensor(dp[target])


@program
def matrix_chain(x):
    d = [int(v) + 1 for v in x.abs()] + [2]
    n = len(d) - 1
    m = [[0] * n for _ in range(n)]
    for L in range(2, n + 1):
        for i in range(n - L + 1):
            j = i + L - 1
            m[i][j] = 10**9
            for k in range(i, j):
                q = m[i][k] + m[k + 1][j] + d[i] * d[k + 1] * d[j + 1]
                if q < m[i][j]:
                    m[i][j] = q
    return torch.tensor(m[0][n - 1])


test_one_way, test_every_way = program.tests()
