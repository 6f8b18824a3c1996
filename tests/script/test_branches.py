"""``if`` in all its forms."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, NamedTuple

import pytest
import torch

import bridge
from tests.script.harness import T, agree

POSITIVE, NEGATIVE = (T([1.0, 2.0, 3.0]),), (T([-1.0, -2.0, -3.0]),)
MIXED, LARGE = (T([-1.0, 5.0, 0.5]),), (T([50.0, 60.0, 70.0]),)
ALL = (POSITIVE, NEGATIVE, MIXED, LARGE)


def if_else(x):
    if x.sum() > 0:
        y = x * 2
    else:
        y = x - 1
    return y


def if_without_else(x):
    y = x + 1
    if x.sum() > 0:
        y = y * 3
    return y


def elif_chain(x):
    s = x.sum()
    if s > 100:
        r = x.exp().clamp(max=10.0)
    elif s > 5:
        r = x.sqrt()
    elif s > 0:
        r = x.sin()
    else:
        r = x.abs()
    return r


def nested(x):
    if x[0] > 0:
        if x[1] > 10:
            y = x * 2
        else:
            y = x * 3
        y = y + 1
    else:
        y = -x
        if x[2] < 0:
            y = y.cumsum(0)
    return y


def early_return(x):
    if x.sum() > 100:
        return x.relu()
    if x.sum() > 0:
        y = x + 1
        if x[0] < 0:
            return y * 5
        y = y - 3
    else:
        y = x.neg()
    return y * 2


def first_bound_in_branches(x):
    if x.sum() > 0:
        a, b = x + 1, x * 2
    else:
        b, a = x - 1, x
    return a * b


def bound_in_one_branch_and_not_read(x):
    y = x
    if x.sum() > 0:
        only_here = x * 2
        y = only_here + 1
    return y


def several_results(x):
    n, flag, scale = 1, False, 0.5
    if x.sum() > 0:
        n, flag, scale = 2, True, 1.5
    return x * n, flag, scale, n


def differing_sizes(x):
    if x.sum() > 0:
        y = x[:2]
    else:
        y = torch.cat([x, x])
    return y + 1, y.shape[0]


def and_or_not(x):
    a, b = x.sum() > 0, x.max() > 10
    if a and not b:
        return x + 1
    if b or not a:
        return x - 1
    return x


def chained_comparison(x):
    if 0 < x.sum() < 10:
        return x * 2
    if -3 <= x.min() <= -1 < x.max():
        return x * 3
    return x


def ternary(x):
    y = x.exp() if x.max() < 4 else x.log1p() if x.min() > 0 else x
    return y + (1 if x.sum() > 0 else 2)


def or_as_value(x):
    chosen = x.relu().sum() or x.min()
    return chosen * 2


def condition_of_numbers(x):
    n = x.argmax().item()
    if n == 2:
        return x * n
    if n != 1 and x.shape[0] > 2:
        return x + n
    return x - n


def walrus(x):
    if (total := x.sum()) > 0 and (top := x.max()) > 2:
        return x * total + top
    return x + total


def none_on_both(x):
    mask = None
    if x.sum() > 0:
        y = x * 2
    else:
        y = x
    if mask is not None:
        y = y + mask
    return y


def in_place(x):
    y = x.clone()
    if x.sum() > 0:
        y.mul_(2)
        y[0] = 7.0
    else:
        y[1:] += 1
    return y


def through_a_view(x):
    y = torch.zeros(2, 3)
    row = y[1]
    if x.sum() > 0:
        row.copy_(x)
    else:
        y[:, 0] = x[0]
    return y, row


def raises_in_a_branch(x):
    if x.dim() > 1:
        raise ValueError("rank")
    if x.sum() > 1e9:
        raise ValueError("too large")
    if x.max() > 10:
        return x * 2
    return x


def assertion(x):
    assert x.sum() < 1e9, "too large"
    if x.sum() > 0:
        return x * 2
    return x


def match_numbers(x):
    match x.argmax().item():
        case 0:
            y = x
        case 1 | 3:
            y = x * 2
        case n if n > 1:
            y = x + n
        case _:
            y = x - 1
    return y


def with_block(x):
    with torch.no_grad():
        if x.sum() > 0:
            return x * 2
        y = x + 1
        y += 1
    return y


def f_string(x):
    label = f"{x.shape[0]} values"
    if x.sum() > 0:
        return x * len(label)
    return x


class Pair(NamedTuple):
    a: Any
    b: Any


@dataclasses.dataclass
class State:
    h: Any
    steps: int


def containers(x):
    pair, table, state = Pair(x, x + 1), {"k": x, "n": 1}, State(x, 0)
    if x.sum() > 0:
        pair = pair._replace(a=x * 2)
        table["k"] = x * 3
        state.h, state.steps = x * 4, 1
    else:
        table["n"] = 5
        state = State(x * 5, 2)
    return pair, table, state.h, state.steps


def list_items(x):
    xs = [x, x + 1, x + 2]
    if x.sum() > 0:
        xs[1] = x * 10
    else:
        xs[0], xs[2] = xs[2], xs[0]
    return xs


def membership(x):
    n = x.argmax().item()
    if n in (0, 2):
        return x * 2
    if n not in [1]:
        return x * 3
    return x


def is_instance(x):
    n = x.argmax().item()
    if isinstance(n, int) and n > 0:
        return x * n
    return x


def float_and_bool_of_handles(x):
    if bool(x.sum() > 0) and float(x.max()) > 2.5:
        return x * int(x.max())
    return x


PROGRAMS = [
    if_else, if_without_else, elif_chain, nested, early_return, first_bound_in_branches,
    bound_in_one_branch_and_not_read, several_results, differing_sizes, and_or_not,
    chained_comparison, ternary, or_as_value, condition_of_numbers, walrus, none_on_both, in_place,
    through_a_view, raises_in_a_branch, assertion, match_numbers, with_block, f_string, containers,
    list_items, membership, is_instance, float_and_bool_of_handles,
]  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_agrees_when_every_way_is_an_example(program):
    agree(program, ALL)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("example", range(len(ALL)))
def test_agrees_when_one_way_is_the_example(program, example):
    agree(program, [ALL[example]], ALL)


@pytest.mark.parametrize(
    "program", [if_else, elif_chain, nested, early_return, differing_sizes, in_place, and_or_not]
)
def test_agrees_at_other_sizes(program):
    others = [(T([1.0, 2, 3, 4, 5]),), (T([-4.0, 1, 1, 1]),), (T([90.0, 9, 9]),)]
    agree(program, [POSITIVE], others, dynamic_shapes={"x": {0: "n"}})


def bound_where_nobody_reads_it(x, k):
    v = x * 0.5
    if x.sum() > 0.1:
        if (k == 2).any():
            if x.mean() > 0.1:
                v = torch.full_like(x, 0.5)
        elif bool((v < 0).all()):
            v *= 0.5
            k = k * 0 + 1
    v = (x + 1) * 0.5
    return v, k


def test_what_a_branch_binds_stays_in_it():
    """A name that is dead after an inner ``if``, and written to on the other way of the outer one."""
    x, k = T([3.0, 1.0, 1.0]), T([1, 2, 0])
    inputs = [(x, k), (x, k * 0), (x - 1.5, k), (-x, k), (x * 0 - 1, k * 0)]
    longer = torch.cat([x, x]), torch.cat([k, k])
    for example in inputs:
        agree(bound_where_nobody_reads_it, [example, longer], inputs)


def of_another_rank_before(x):
    t = x
    if x.sum() > 0:
        t = x[None] * 2
        y = total(t)
    else:
        y = total(t) + 1
    return y


def a_tuple_before(x):
    t = x
    if x.sum() > 0:
        t = (x, x * 2)
        y = total(t[0]) + total(t[1])
        nothing(t)
    else:
        y = total(t)
    return y


def total(t):
    return t.sum()


def nothing(t):
    pass


@pytest.mark.parametrize("function", [of_another_rank_before, a_tuple_before])
def test_names_that_nobody_reads_afterwards_have_any_type(function):
    """Also those that are given to functions, which could fill a list."""
    inputs = [(torch.ones(3),), (-torch.ones(3),), (torch.ones(5),)]
    agree(function, inputs[:1], inputs, dynamic_shapes=({0: "n"},))


logger = logging.getLogger(__name__)


def tells_its_way(x):
    if x.sum() > 0:
        logger.info("upwards")  # it remembers that nobody listens
        return x * 2
    return x - 1


def test_loggers_are_nobodys_state():
    logger.manager._clear_cache()
    agree(tells_its_way, [(T([1.0]),)], [(T([-1.0]),), (T([3.0]),)])


def test_a_way_that_no_size_takes_may_have_another_rank() -> None:
    def flat(x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 3:
            return x
        elif x.numel() > 0:
            x = x.reshape(1, -1) * 2
        return x.reshape(-1)

    program = bridge.export(flat, torch.randn(3), dynamic_shapes=({0: "n"},))
    for size in (1, 3, 5):
        x = torch.randn(size)
        torch.testing.assert_close(program(x), flat(x))
    assert any("is not taken" in a for a in program.report.assumptions)


def test_a_number_chosen_by_sizes_is_a_size() -> None:
    def first(x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        m = n // 2 if n > 4 else n
        y = x[:m]
        if y.numel() == 0:  # a question of sizes: that no example takes it is taken for granted
            return y.reshape(3, 3)
        return y * m

    program = bridge.export(first, torch.randn(3), dynamic_shapes=({0: "n"},))
    for size in (1, 3, 4, 5, 9):
        x = torch.randn(size)
        torch.testing.assert_close(program(x), first(x))
