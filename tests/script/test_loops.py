"""Loops over run-time counts, and what they carry."""

from __future__ import annotations

import math

import pytest
import torch

from tests.script.harness import T, agree

VECTORS = [
    (T([1.0, -2.0, 3.0]),),
    (T([4.0, 0.5]),),
    (T([0.0, 9.0, -1.0, 2.0, 5.0]),),
    (T([-3.0]),),
]
EMPTY = (torch.zeros(0),)
MATRICES = [
    (torch.arange(6.0).view(3, 2),),
    (torch.arange(10.0).view(5, 2) - 4,),
    (torch.ones(1, 2),),
]


def while_data(x):
    steps = 0
    while x.abs().sum() > 1:
        x = x * 0.5
        steps += 1
    return x, steps


def while_counter(x):
    i = 0
    total = x.new_zeros(())
    while i < x.shape[0]:
        total = total + x[i] * i
        i += 1
    return total, i


def for_range(x):
    total = torch.zeros(())
    for i in range(x.shape[0]):
        total = total * 0.5 + x[i]
    return total


def for_range_bounds(x):
    total = torch.zeros(())
    for i in range(1, x.shape[0]):
        total = total + x[i] - x[i - 1]
    return total


def for_range_step(x):
    total = torch.zeros(())
    for i in range(0, x.shape[0], 2):
        total = total + x[i]
    return total


def for_range_negative(x):
    total = torch.zeros(())
    for i in range(x.shape[0] - 1, -1, -1):
        total = total * 2 + x[i]
    return total


def for_tensor_range(x):
    n = x.abs().max().long()
    y = x
    for i in range(n):
        y = y + i
    return y


def for_rows(x):
    total = 0
    for row in x:
        total = total + row
    return total


def for_enumerate(x):
    total = 0.0
    for i, value in enumerate(x, 1):
        total = total + value * i
    return total


def for_zip(x):
    total = torch.zeros(())
    for a, b in zip(x, x.flip(0)):
        total = total * 0.9 + a * b
    return total


def for_reversed(x):
    total = torch.zeros(())
    for value in reversed(x):
        total = total * 2 + value
    return total


def with_break(x):
    total = torch.zeros(())
    for value in x:
        if value < 0:
            break
        total = total + value
    return total


def with_continue(x):
    total = torch.zeros(())
    count = 0
    for value in x:
        if value <= 0:
            continue
        total = total + value
        count += 1
    return total, count


def with_else(x):
    for i in range(x.shape[0]):
        if x[i] > 4:
            found = i
            break
    else:
        found = -1
    return found


def with_return(x):
    for i in range(x.shape[0]):
        if x[i] > 3:
            return x * i
    return x


def while_true(x):
    n = 0
    while True:
        x = x + 1
        n += 1
        if x.sum() > 10:
            break
        if n > 7:
            break
    return x, n


def while_with_else(x):
    i = 0
    while i < x.shape[0]:
        if x[i] < 0:
            break
        i += 1
    else:
        i = -1
    return i


def nested_loops(x):
    total = torch.zeros(())
    for i in range(x.shape[0]):
        for j in range(i):
            if x[j] > x[i]:
                continue
            total = total + x[j]
        total = total - 1
    return total


def nested_break(x):
    best = x.new_zeros(())
    for i in range(x.shape[0]):
        for j in range(i + 1, x.shape[0]):
            if x[i] + x[j] > 6:
                best = x[i] + x[j]
                break
        if best > 0:
            break
    return best


def first_bound_in_loop(x):
    for value in x:
        last = value * 2
    return last


def int_becomes_float(x):
    acc = 0
    for value in x:
        acc = acc + value * 0.5
    return acc


def python_floats(x):
    scale = 1.0
    for _ in range(x.shape[0]):
        scale = scale / 3
    return x * scale, scale


def math_on_handles(x):
    n = x.shape[0]
    root = math.sqrt(n) + math.log(n + 1) + math.ceil(n / 2) + math.floor(n / 3) + math.exp(-n)
    return x * root + math.sqrt(x.abs().sum())


def floor_and_mod(x):
    n = x.argmax().item() - 2
    return x + n // 2, x * (n % 3), -n // 2, abs(n), n**2


def augmented_in_place(x):
    out = torch.zeros(2)
    for row in x:
        out += row
        out[0] -= 1
    return out


def writes_by_index(x):
    out = torch.zeros_like(x)
    for i in range(x.shape[0]):
        out[i] = x[i] * i
        if i > 0:
            out[i] += out[i - 1]
    return out


def writes_through_a_view(x):
    out = torch.zeros(3, 2)
    last = out[2]
    for row in x:
        last.add_(row)
    return out


def writes_to_the_input(x):
    for i in range(x.shape[0]):
        x[i] = x[i] * 2
    return x + 0


def grows(x):
    y = x[:1]
    while y.shape[0] < 6:
        y = torch.cat([y, y.sum(0, keepdim=True)])
    return y


def grows_by_rows(x):
    y = x[:0]
    for row in x:
        y = torch.cat([y, row.unsqueeze(0) * 2])
    return y


def tuple_state(x):
    a, b = torch.zeros(()), torch.ones(())
    for value in x:
        a, b = b, a + value
    return a, b


def dict_state(x):
    state = {"sum": torch.zeros(()), "n": 0}
    for value in x:
        state["sum"] = state["sum"] + value
        state["n"] += 1
    return state


def caches(x):
    cache = [(torch.zeros(2), torch.ones(2)) for _ in range(2)]
    for row in x:
        new = []
        for k, v in cache:
            new.append((k + row, v * 0.5))
        cache = new
    return cache


def condition_uses_state(x):
    low, high = x.new_zeros(()), x.abs().sum() + 1
    for _ in range(12):
        middle = (low + high) / 2
        if middle * middle > 5:
            high = middle
        else:
            low = middle
    return low


def collatz(x):
    n = x.abs().max().long().item() + 3
    steps = 0
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps += 1
    return steps, x


def two_loops(x):
    i = 0
    while i < x.shape[0]:
        i += 2
    total = torch.zeros(())
    for j in range(i):
        total = total + j
    return total, i


def loop_in_branch(x):
    y = x
    if x.sum() > 2:
        for i in range(x.shape[0]):
            y = y + x[i]
    else:
        while y.sum() < 1:
            y = y + 1
    return y


def target_after_loop(x):
    i = 0
    for i in range(x.shape[0]):
        if x[i] > 2:
            break
    return i


def to_list(x):
    total = torch.zeros(())
    for n in x.long().clamp(0, 3).tolist():
        total = total + n
    return total


def loop_over_items(x):
    table = {"a": 1.0, "b": 2.0}
    y = x
    for name, weight in table.items():
        if x.sum() > 3:
            y = y * weight + len(name)
    return y


def min_max_abs(x):
    n = min(x.shape[0], 3)
    m = max(n, x.argmax().item(), 1)
    return x * n, m, abs(n - m), max(x.max(), x.sum())


VECTOR_PROGRAMS = [
    while_data, while_counter, for_range, for_range_bounds, for_range_step, for_range_negative,
    for_tensor_range, for_rows, for_enumerate, for_zip, for_reversed, with_break, with_continue,
    with_else, with_return, while_true, while_with_else, nested_loops, nested_break,
    first_bound_in_loop, int_becomes_float, python_floats, math_on_handles, floor_and_mod,
    writes_by_index, writes_to_the_input, tuple_state, dict_state, condition_uses_state, collatz,
    two_loops, loop_in_branch, target_after_loop, to_list, loop_over_items, min_max_abs,
]  # fmt: skip
NOT_WHEN_EMPTY = {
    first_bound_in_loop, for_tensor_range, int_becomes_float, for_rows, math_on_handles, collatz,
    floor_and_mod, min_max_abs, for_enumerate, loop_in_branch,
}  # fmt: skip
MATRIX_PROGRAMS = [
    augmented_in_place,
    writes_through_a_view,
    grows,
    grows_by_rows,
    caches,
    for_rows,
]


@pytest.mark.parametrize("program", VECTOR_PROGRAMS, ids=lambda f: f.__name__)
def test_agrees_over_sizes(program):
    others = VECTORS[1:] + ([] if program in NOT_WHEN_EMPTY else [EMPTY])
    agree(program, [VECTORS[0]], others, dynamic_shapes={"x": {0: "n"}})


@pytest.mark.parametrize("program", VECTOR_PROGRAMS, ids=lambda f: f.__name__)
def test_agrees_with_examples_of_every_way(program):
    agree(program, VECTORS, [] if program in NOT_WHEN_EMPTY else [EMPTY])


@pytest.mark.parametrize("program", MATRIX_PROGRAMS, ids=lambda f: f.__name__)
def test_agrees_on_matrices(program):
    agree(program, [MATRICES[0]], MATRICES[1:], dynamic_shapes={"x": {0: "n"}})
