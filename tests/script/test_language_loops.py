"""Loops: eager code and ONNX Runtime agree on all ways through."""

from __future__ import annotations

import contextlib

import torch

from tests.script.language import Programs

OFF = torch.ones(())
program = Programs()


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
def walrus_while(x):
    total = 0.0
    i = 0
    while (s := x[: i + 1].sum()) < 3 and i < x.shape[0] - 1:
        total = total + s
        i += 1
    return total + s, i


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
def global_const(x):
    out = x
    for _ in range(3):
        out = out + OFF
        if out.sum() > 5:
            break
    return out


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
def any_all_sum(x):
    a = any(v > 2 for v in x)
    b = all(v > -3 for v in x)
    c = sum(1 for v in x if v > 0)
    d = sum(v.item() for v in x)
    e = max(v.item() for v in x)
    return a, b, c, d, e


@program
def float_times_a_size(x):
    return x * (0.5 * x.shape[0])


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


test_one_way, test_every_way = program.tests()
