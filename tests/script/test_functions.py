"""Functions of every kind: nested, closures, methods, recursive, decorated, with all arguments."""

from __future__ import annotations

import functools
import gc
import linecache

import pytest
import torch
from torch import nn

import bridge
from tests.script.harness import T, agree

ALL = [
    (T([1.0, 2.0, 3.0]),),
    (T([-1.0, -2.0, -3.0]),),
    (T([-1.0, 5.0, 0.5]),),
    (T([50.0, 60.0, 70.0]),),
]
SCALE = 3.0
OFFSET = torch.ones(3)


def pick(x):
    if x.sum() > 0:
        return x * SCALE
    return x - OFFSET


def calls_a_function(x):
    y = pick(x)
    return pick(y - 4)


def nested_function(x):
    def inner(v):
        if v.max() > 2:
            return v * 2
        return v + x

    return inner(x) + inner(x - 3)


def closure_over_tensor(x):
    weight = torch.full((3,), 2.0)

    def inner(v):
        while v.sum() < 20:
            v = v.abs() * weight + 1
        return v

    return inner(x)


def uses_nonlocal(x):
    count = 0
    total = torch.zeros(())

    def add(v):
        nonlocal count, total
        count += 1
        total = total + v

    for value in x:
        if value > 0:
            add(value)
    return count, total


def lambdas(x):
    f = lambda v: v * 2 if v.sum() > 0 else v - 1
    g = lambda v: f(v) if v.max() > 1 else f(-v)
    return g(x)


def all_kinds_of_arguments(x):
    def inner(a, b=2.0, *rest, scale=1.0, **more):
        if a.sum() > b:
            return a * scale + len(rest)
        return a - more.get("shift", 0.0)

    return inner(x) + inner(x, 5.0, 1, 2, scale=3.0) + inner(x, shift=7.0)


def power(x, n):
    if n == 0:
        return torch.ones_like(x)
    if x.sum() > 0:
        return x * power(x, n - 1)
    return power(x, n - 1) - x


def recursive(x):
    return power(x, 3)


def doubled(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args) * 2

    return wrapper


@doubled
def decorated(x):
    if x.max() > 3:
        return x + 1
    return x - 1


def with_partial(x):
    return functools.partial(power, n=2)(x)


def yields_outside(x):
    def squares(n):
        for i in range(n):
            yield i * i

    total = sum(squares(4))
    if x.sum() > 0:
        return x * total
    return x


def docstring_and_annotations(x: torch.Tensor, flag: bool = True) -> torch.Tensor:
    """Do one thing or the other."""
    limit: float = 2.0
    if x.max() > limit and flag:
        return x * limit
    return x


PROGRAMS = [
    calls_a_function, nested_function, closure_over_tensor, uses_nonlocal, lambdas,
    all_kinds_of_arguments, recursive, decorated, with_partial, yields_outside,
    docstring_and_annotations,
]  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_agrees(program):
    agree(program, [ALL[0]], ALL)
    agree(program, ALL)


def test_lambda_agrees():
    agree(lambda x: x * 2 if x.sum() > 0 else x - 1, [ALL[0]], ALL)


def test_function_made_in_a_function_agrees():
    def make(scale):
        def f(x):
            if x.sum() > 0:
                return x * scale
            return x

        return f

    agree(make(4.0), [ALL[0]], ALL)


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = nn.Linear(3, 3)
        self.__secret = 2.0

    def forward(self, x):
        if x.sum() > 0:
            return self.a(x) * self.__secret
        return self.b(x)


class Child(Gate):
    def forward(self, x):
        y = super().forward(x)
        while y.abs().max() > 0.5:
            y = y / 2
        return y


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))
        self.heads = nn.ModuleDict({"low": nn.Linear(3, 3), "high": nn.Linear(3, 3)})


class EarlyExit(Layers):
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
            if x.max() > 0.9:
                break
        return x


class Skips(Layers):
    def forward(self, x):
        used = 0
        for i, layer in enumerate(self.layers):
            if x[i % 3] < 0:
                continue
            x = x + layer(x)
            used += 1
        return x, used


class IndexedAtRunTime(Layers):
    def forward(self, x):
        return self.layers[x.argmax().item()](x)


class ChosenByCondition(Layers):
    def forward(self, x):
        head = self.heads["high"] if x.sum() > 0 else self.heads["low"]
        return head(x)


class DictAtRunTime(Layers):
    def forward(self, x):
        name = "high" if x.max() > 2 else "low"
        return self.heads[name](x)


class WritesState(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(3))
        self.calls = 0
        self.last = None

    def forward(self, x):
        if x.sum() > 0:
            self.seen += x
            self.last = x * 2
            self.calls += 1
        else:
            self.seen.mul_(0.5)
            self.last = x
        return self.seen + self.last * self.calls


class StateInLoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(1, 3)
        self.h = torch.zeros(1, 3)

    def forward(self, x):
        self.h = torch.zeros(1, 3)
        for value in x:
            self.step(value.view(1, 1))
        return self.h

    def step(self, value):
        self.h = self.cell(value, self.h)


MODULES = [
    Gate, Child, EarlyExit, Skips, IndexedAtRunTime, ChosenByCondition, DictAtRunTime, WritesState,
]  # fmt: skip


@pytest.mark.parametrize("kind", MODULES)
def test_modules_agree(kind):
    torch.manual_seed(0)
    for examples in ([ALL[0]], ALL):
        model = kind().eval()
        fresh = {k: v.clone() for k, v in model.state_dict().items()}
        program = bridge.export(
            model, examples[0], examples=list(examples[1:]) if len(examples) > 1 else None
        )
        for inputs in ALL:
            with torch.no_grad():
                model.load_state_dict(fresh)
                if isinstance(model, WritesState):
                    model.calls, model.last = 0, None
                expected = model(*inputs)
            got = program(*inputs)
            for a, b in zip(
                torch.utils._pytree.tree_leaves(got),
                torch.utils._pytree.tree_leaves(expected),
                strict=True,
            ):
                torch.testing.assert_close(
                    torch.as_tensor(a), torch.as_tensor(b), rtol=1e-4, atol=1e-5
                )


def test_state_of_a_module_is_carried_through_a_loop():
    model = StateInLoop().eval()
    others = [(T([1.0]),), (T([1.0, 2.0, -3.0, 4.0, 5.0]),)]
    agree(model, [(T([1.0, 2.0, 3.0]),)], others, dynamic_shapes={"x": {0: "n"}}, rtol=1e-4)


def test_script_does_nothing_in_eager():
    assert bridge.script(pick) is pick
    method = Gate().forward
    assert bridge.script(method) is method


def test_explicit_mode_compiles_what_is_marked():
    @bridge.script
    def marked(x):
        if x.sum() > 0:
            return x * 2
        return x

    program = agree(marked, [ALL[0]], ALL, script="explicit")
    assert program.report.scripted == []


def test_explicit_mode_refuses_what_is_not_marked():
    def unmarked(x):
        if x.sum() > 0:
            return x * 2
        return x

    with pytest.raises(bridge.ExportError, match=r"bridge\.script"):
        bridge.export(unmarked, ALL[0], script="explicit")


def test_report_names_what_was_compiled():
    program = bridge.export(nested_function, ALL[0])
    assert any("nested_function.<locals>.inner" in name for name in program.report.scripted)


def scaled_by(factor):
    @bridge.script
    def scale(x):
        if x.sum() > 0:
            return x * factor
        return x - factor

    return scale


def test_functions_of_one_definition_are_marked_each():
    """They share their code: one that is gone must not take the others' marks along."""
    first, others = scaled_by(2.0), [scaled_by(3.0)]
    for _ in range(2):
        program = bridge.export(first, ALL[0], examples=ALL, script="explicit", verify=False)
        for (x,) in ALL:
            assert torch.equal(program(x), first(x))
        others.clear()
        gc.collect()


def test_code_that_is_run_again_is_another_function():
    text = "def f(x):\n    for i in range(x.shape[0]):\n        x = x + i\n    return x\n"
    for number in range(2):  # as a cell of a notebook is
        name = f"<cell {number}>"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        namespace = {}
        exec(compile(text, name, "exec"), namespace)
        function = namespace.pop("f")
        program = bridge.export(function, torch.ones(3), dynamic_shapes={"x": {0: "n"}})
        assert name in program.report.scripted[0]
        torch.testing.assert_close(program(torch.ones(5)), function(torch.ones(5)))
        del function, program
