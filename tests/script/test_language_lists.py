"""Lists of run-time length: eager code and ONNX Runtime agree on all ways through."""

from __future__ import annotations

import collections

import torch

from tests.script.language import Programs

program = Programs()


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
def deque_(x):
    q = collections.deque([x[0]])
    t = torch.zeros(())
    for v in x:
        q.append(v)
        if len(q) > 2:
            t = t + q.popleft()
    return t


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
def splits_by_a_list(x):
    lens = (x.abs().long() % 3).clamp(min=0)
    lens[0] += x.shape[0] * 3 - lens.sum()
    parts = torch.arange(x.shape[0] * 3).split(lens.tolist())
    t = 0
    for p in parts:
        t = t * 2 + p.sum()
    return t, len(parts)


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


@program
def numbers_and_then_tensors(x):
    found = [0] * len(x)
    for i in range(len(x)):
        found[i] = x[i] * 2
    return torch.stack(found)


@program
def takes_two_and_puts_one_back(x):
    waiting = [v for v in x]
    rounds = 0
    while len(waiting) > 1:
        a, b = waiting.pop(0), waiting.pop(0)
        waiting.append((a + b) / 2)
        rounds += 1
    return waiting[0], rounds


@program
def deque_of_limited_length(x):
    window = collections.deque([torch.zeros(())], maxlen=2)
    total = torch.zeros(())
    for v in x:
        if v > 0:
            window.append(v)
        total = total + sum(window) / len(window)
        if len(window) == window.maxlen and window[0] > 3:
            window.popleft()
    return total, len(window), max(window)


@program
def table_of_pairs(x):
    rows = []
    for i, v in enumerate(x):
        if v < 9:
            rows.append((i, int(v)))
    return torch.tensor(rows), len(rows)


@program
def rows_of_a_tensor(x):
    pairs = torch.stack([x, x * 2], 1).long()
    total = 0
    for a, b in pairs.tolist():
        total = total * 2 + a - b if a > 0 else total + b
    return total


test_one_way, test_every_way = program.tests()
