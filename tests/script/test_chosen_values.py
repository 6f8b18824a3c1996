"""What is one of several objects, or holds what may be None, where several functions ask for it."""

from __future__ import annotations

import enum

import pytest
import torch

import bridge
from tests.script.harness import T, agree

VECTORS = [
    (T([1.0, -2.0, 3.0]),),
    (T([4.0, 0.5]),),
    (T([0.0, 9.0, -1.0, 2.0, 5.0]),),
    (T([-3.0]),),
    (T([-1.0, -1.5]),),
]


def first_above(x, limit):
    for i, v in enumerate(x):
        if v > limit:
            return i
    return None


def asks_what_a_function_returns(x):
    i = first_above(x, 2)
    return x if i is None else x * (i + 2)


def first_negative(x):
    for i, v in enumerate(x):
        if v < 0:
            return i, v
    return None


def asks_for_a_pair(x):
    found = first_negative(x)
    if found is None:
        return torch.tensor(-1.0)
    i, v = found
    return v * i


def scaled(x, i=None):
    return x if i is None else x * (i + 2)


def passes_what_may_be_none(x):
    i = None
    if x.max() > 2:
        i = x.argmax().item()
    return scaled(x, i)


class Memory:
    def __init__(self):
        self.last = None

    def use(self, x):
        return x if self.last is None else x * self.last


def asks_an_object(x):
    memory = Memory()
    if x.max() > 2:
        memory.last = x.max()
    return memory.use(x)


def by_mode(x, mode):
    return x * 2 if mode == "up" else x


def passes_a_string(x):
    return by_mode(x, "up" if x.sum() > 0 else "down")


class Mode(enum.Enum):
    IDLE = 0
    RUN = 1
    STOP = 2


def is_a_state_machine(x):
    mode, total, stopped = Mode.IDLE, torch.zeros(()), 0
    for v in x:
        if mode is Mode.IDLE:
            if v > 0:
                mode = Mode.RUN
        elif mode == Mode.RUN:
            total = total + v
            if v < -1:
                mode = Mode.STOP
        if mode in (Mode.STOP, Mode.IDLE):
            stopped += 1
    return total, stopped, mode == Mode.STOP, mode is not Mode.IDLE


@bridge.script
def two_of_many(x):
    return ("up" if x.sum() > 0 else "down"), x.max()


def asks_for_what_is_returned(x):
    mode, top = two_of_many(x)
    return x if mode == "up" else x - top


FUNCTIONS = [asks_what_a_function_returns, asks_for_a_pair, passes_what_may_be_none,
             asks_an_object, passes_a_string, asks_for_what_is_returned, is_a_state_machine]  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("example", [0, 1, 3])
def test_agrees(function, example):
    inputs = VECTORS[example:] + VECTORS[:example]
    agree(function, inputs[:1], inputs[1:], dynamic_shapes={"x": {0: "n"}})


def test_a_caller_that_is_not_marked_is_named():
    with pytest.raises(bridge.ExportError) as caught:
        bridge.export(asks_for_what_is_returned, VECTORS[0], script="explicit")
    assert str(caught.value).startswith(
        "what is returned here is another object for other inputs, and the caller "
        "asks_for_what_is_returned is not compiled\n"
    )
    assert "\nhint: mark asks_for_what_is_returned with @bridge.script\n" in str(caught.value)


@bridge.script
def passes_to_one_that_is_not_marked(x):
    return by_mode(x, "up" if x.sum() > 0 else "down")


def test_a_function_that_is_not_marked_is_named():
    with pytest.raises(bridge.ExportError) as caught:
        bridge.export(passes_to_one_that_is_not_marked, VECTORS[0], script="explicit")
    assert str(caught.value).startswith(
        "what by_mode is given here is another object for other inputs, and it is not compiled\n"
    )
    assert "\nhint: mark by_mode with @bridge.script\n" in str(caught.value)


def test_a_branch_on_what_was_written_depends_on_the_input():
    def written(x):
        d = torch.zeros(3)
        d[1] = (x * x).sum()
        return x if d[1] < 3 else -x

    agree(written, [(T([1.0, 1.0]),)], [(T([2.0, 1.0]),), (T([0.0, 0.0]),)])
