"""An If whose condition an earlier one decides moves into its branches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bridge
from optim_passes.simplify.branches import BranchThreadPass, KnownBranchPass
from optim_passes.simplify.constants import LiftConstantsPass
from optim_passes.simplify.dead_code import DeadCodePass
from optim_passes.simplify.folding import ConstantFoldPass
from optim_passes.simplify.noops import NoOpPass
from tests.optim_passes.running import ops, optimise, parse
from tests.script.harness import assert_same

PASSES = (LiftConstantsPass(), BranchThreadPass(), NoOpPass(), ConstantFoldPass(),
          KnownBranchPass(), DeadCodePass())  # fmt: skip
FEEDS = [{"x": np.array(x, np.float32)} for x in (-1.0, 0.5, 1.5, 2.5)]
CHAIN = """g (float x) => (float y) {{
    nought = Constant <value_float=0.0> ()
    one = Constant <value_float=1.0> ()
    c = Greater(x, one)
    left, a = If (c) <then_branch = t () => (bool lt, float at) {{
        lt = Constant <value = bool {{1}}> ()
        at = Neg(x)
    }}, else_branch = e () => (bool le, float ae) {{
        ae = Add(x, one)
        le = {last}
    }}>
    {between}
    y = If ({condition}) <then_branch = u () => (float yu) {{
        yu = Identity(a)
    }}, else_branch = f () => (float yf) {{
        b = Exp(a)
        k = Cast <to=1> (left)
        yf = Sub(b, k)
    }}>
}}"""


@pytest.mark.parametrize(
    ("last", "condition", "count"),
    [("Less(x, nought)", "left", 2), ("Constant <value = bool {0}> ()", "left", 1),
     ("Less(x, nought)", "c", 1)],
)  # fmt: skip
def test_a_condition_that_is_decided_is_not_asked_again(last, condition, count):
    model = parse(CHAIN.format(last=last, condition=condition, between=""))
    optimise(model, *PASSES, feeds=FEEDS)
    assert ops(model)["If"] == count
    assert sum(n.op_type == "If" for n in model.graph) == 1


def test_what_is_read_in_between_stays_before():
    text = CHAIN.format(last="Less(x, nought)", condition="d", between="d = Not(left)")
    model = parse(text)
    optimise(model, *PASSES, feeds=FEEDS)
    assert sum(n.op_type == "If" for n in model.graph) == 2


def returns_early(x):
    for step in range(3):
        x = x * 2 - 1
        if x.sum() > 1:
            return x, step
        if x.min() < -9:
            x = x + 20
    return x - 100, 7


def test_a_loop_that_is_written_out_and_returns_is_one_chain():
    inputs = [torch.tensor(x) for x in ([0.4, 0.4], [3.0, 3.0], [0.9, 0.8], [-4.0, 0.5])]
    program = bridge.export(returns_early, (inputs[0],), examples=[(inputs[1],)])
    fast = bridge.optimize(program, target="cpu")
    assert sum(n.op_type == "If" for n in fast.model.graph) == 1
    for x in inputs:
        assert_same(fast(x), returns_early(x), rtol=1e-6, atol=1e-6, inputs=x)
