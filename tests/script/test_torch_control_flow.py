"""``torch.cond`` and its like, and what ``torch.jit.script`` made, go through the same staging."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torch._higher_order_ops import associative_scan, scan, while_loop
from torch._higher_order_ops import map as torch_map

import bridge
from tests.script.harness import T, agree

VECTORS = [
    (T([1.0, -2.0, 3.0]),),
    (T([4.0, 0.5]),),
    (T([-1.0, -1.5]),),
    (T([0.0, 9.0, -1.0, 2.0]),),
]


def cond(x):
    return torch.cond(x.sum() > 0, lambda v: v * 2, lambda v: v - 1, (x,))


def cond_of_tuples(x):
    a, b = torch.cond(
        x.max() > 2, lambda v, w: (v * 2, w), lambda v, w: (v - 1, w + 1), (x, x.sum())
    )
    return a + b


def nested_cond(x):
    def positive(v):
        return torch.cond(v.max() > 2, torch.sin, torch.cos, (v,))

    return torch.cond(x.sum() > 0, positive, lambda v: v - 1, (x,))


def while_halving(x):
    return while_loop(
        lambda i, y: y.abs().sum() > 1, lambda i, y: (i + 1, y / 2), (torch.tensor(0), x)
    )


def scan_of_a_number(x):
    return scan(lambda c, v: (c * 0.5 + v, c + v), torch.zeros(()), x)


def scan_backwards(x):
    def combine(c, v):
        return (c[0] + v, c[1] * 0.5 + v), v * c[1]

    return scan(combine, (torch.zeros(()), torch.ones(())), x, reverse=True)


def mapped(x):
    return torch_map(lambda v, s: (v * s, v + s), x, x.sum())


def prefixes(x):
    return associative_scan(torch.mul, x, 0, combine_mode="generic")


PROGRAMS = [
    cond, cond_of_tuples, nested_cond, while_halving, scan_of_a_number, scan_backwards, mapped,
    prefixes,
]  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_agrees(program):
    agree(program, [VECTORS[0]], VECTORS[1:], dynamic_shapes={"x": {0: "n"}})
    agree(program, VECTORS)


def test_torch_has_its_functions_back_after_an_export():
    before = torch.cond.__code__
    bridge.export(cond, VECTORS[0])
    assert torch.cond.__code__ is before


class Signed(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(2)
        for i in range(x.size(0)):
            if bool(x[i] < 0):
                total = total - self.linear(x[i].view(1))
            else:
                total = total + self.linear(x[i].view(1))
        return self.dropout(total)


def test_scripted_functions_agree():
    @torch.jit.script
    def branch(x: torch.Tensor):
        if bool(x.sum() > 0):
            return x * 2
        return x - 1

    def calls_it(x):
        y = branch(x)
        while y.abs().sum() > 3:
            y = y / 2
        return branch(y)

    agree(calls_it, [VECTORS[0]], VECTORS[1:], dynamic_shapes={"x": {0: "n"}})
    agree(branch, [VECTORS[0]], [(T([-1.0, 0.5, -7.0]),)])


@pytest.mark.parametrize("training", [False, True])
def test_scripted_modules_run_in_the_mode_of_the_scripted_one(training):
    torch.manual_seed(0)
    model = torch.jit.script(Signed().train(not training))
    model.eval()
    program = agree(model, [VECTORS[0]], VECTORS[1:], dynamic_shapes={"x": {0: "n"}})
    assert "linear.weight" in {v.name for v in program.model.graph.initializers.values()}


def test_scripted_modules_inside_of_others_agree():
    torch.manual_seed(0)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.jit.script(Signed().eval())

        def forward(self, x):
            y = self.inner(x)
            if y.sum() > 0:
                return y
            return -y

    agree(Outer().eval(), [VECTORS[0]], VECTORS[1:], dynamic_shapes={"x": {0: "n"}})


def test_loaded_modules_are_refused():
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(Signed()), file)
    file.seek(0)
    with pytest.raises(bridge.ExportError, match="Signed has no Python source"):
        bridge.export(torch.jit.load(file), VECTORS[0])
