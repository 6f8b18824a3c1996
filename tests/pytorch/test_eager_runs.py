"""Eager code and long calls run once, however often a model is traced."""

from __future__ import annotations

import time

import pytest
import torch

import bridge
from exporters.pytorch import memo as memos
from exporters.pytorch.eager import EagerRuns
from exporters.pytorch.inputs import bind
from exporters.pytorch.memo import CallMemo


@pytest.fixture
def memo(monkeypatch):
    """One for which every call took long."""
    monkeypatch.setattr(memos, "_LONG", 0.0)
    monkeypatch.setattr(memos, "_LARGE", 0)
    memo = CallMemo()
    memo.remembers = True
    with torch.no_grad():
        yield memo


def counted(function):
    def call(*args, **kwargs):
        call.times += 1
        return function(*args, **kwargs)

    call.times = 0
    return call


def test_a_call_is_made_once(memo):
    exp = counted(torch.exp)
    x = torch.rand(3)
    first = memo.call(exp, (x,), {})
    first.zero_()  # the caller may write to it
    torch.testing.assert_close(memo.call(exp, (x,), {}), x.exp())
    torch.testing.assert_close(memo.call(exp, (x.clone(),), {}), x.exp())
    assert exp.times == 1


def test_several_results(memo):
    topk = counted(torch.topk)
    x = torch.rand(5)
    memo.call(topk, (x,), {"k": 2})
    found = memo.call(topk, (x,), {"k": 2})
    assert found.indices.tolist() == x.topk(2).indices.tolist()
    assert memo.call(topk, (x,), {"k": 3}).values.shape == (3,)
    assert topk.times == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.add_(1),
        lambda x: x.to(torch.float64),
        lambda x: x.t(),
        lambda x: torch.nn.Parameter(x),
    ],
    ids=["written to", "dtype", "strides", "parameter"],
)
def test_another_tensor_is_another_call(memo, change):
    exp = counted(torch.exp)
    x = torch.eye(2)
    memo.call(exp, (x,), {})
    y = change(x)
    torch.testing.assert_close(memo.call(exp, (y,), {}), y.detach().exp())
    assert exp.times == 2


def test_what_is_1_and_what_is_true_are_other_calls(memo):
    full = counted(torch.full)
    assert memo.call(full, ((2,), 1), {}).dtype == torch.int64
    assert memo.call(full, ((2,), True), {}).dtype == torch.bool


@pytest.mark.parametrize(
    "function",
    [torch.rand_like, torch.relu_, torch.detach, lambda x: x.view(-1)],
    ids=["random", "in place", "the same storage", "view"],
)
def test_other_than_new_values_are_not_kept(memo, function):
    function = counted(function)
    x = torch.rand(3)
    memo.call(function, (x,), {})
    memo.call(function, (x,), {})
    assert function.times == 2


def test_what_is_worth_the_least_goes_when_memory_is_full(memo):
    memo._left = 40

    def slow(x):
        time.sleep(0.01)
        return x + 1

    exp, slow = counted(torch.exp), counted(slow)
    x, y = torch.ones(3), torch.ones(4)
    memo.call(exp, (x,), {})
    memo.call(slow, (y,), {})
    memo.call(slow, (y,), {})
    memo.call(exp, (x,), {})
    memo.call(slow, (y,), {})
    assert (exp.times, slow.times) == (2, 1)
    assert memo._left == 8


def test_eager_code_runs_once_for_equal_arguments():
    function = counted(lambda x: x + 1)
    runs = EagerRuns()
    arguments = bind(function, (torch.ones(2),), None)
    for x in (torch.ones(2), torch.ones(2), torch.zeros(2), torch.ones(3)):
        torch.testing.assert_close(runs(function, arguments, [x]), [x + 1])
    assert function.times == 3


class Branching(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x):
        y = torch.relu_(self.linear(x))
        if y.sum() > 1:
            y = y * 2
        y = self.linear(y)
        if y.sum() > 2:
            y = y - 1
        return y.add_(torch.nn.functional.dropout(x, 0.0))


def test_traces_share_long_calls(monkeypatch):
    monkeypatch.setattr(memos, "_LONG", 0.0)
    monkeypatch.setattr(memos, "_LARGE", 0)
    torch.manual_seed(0)
    model = Branching().eval()
    program = bridge.export(model, (torch.ones(2, 4),), dynamic_shapes=({0: "n"},))
    for x in (torch.zeros(1, 4), torch.ones(5, 4) * 9, -torch.ones(3, 4)):
        torch.testing.assert_close(program(x), model(x))
