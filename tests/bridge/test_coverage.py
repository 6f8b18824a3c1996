"""A parity check says which branches and loop bodies no input reached."""

from __future__ import annotations

import torch

import bridge

T = torch.tensor


def routes(x):
    total = x.cumsum(0)
    if x.sum() > 0:
        total = torch.linalg.vector_norm(x) * total.sort().values
    else:
        for row in x:
            if row > 5:
                total = total.flip(0) + row.exp().sort().values
            else:
                total = total.roll(1) * row
    return total


def _check(*inputs):
    program = bridge.export(routes, T([1.0, 2.0]), dynamic_shapes={"x": {0: "n"}}, verify=False)
    return bridge.check(routes, program, list(inputs))


def test_every_branch_is_reached_when_inputs_take_all_ways():
    report = _check((T([1.0, 2.0]),), (T([-9.0, 6.0, -1.0]),))
    assert report.passed
    assert report.unreached == []
    assert "no input reached" not in str(report)


def test_branches_that_no_input_takes_are_named_with_their_lines():
    report = _check((T([1.0, 2.0]),))
    assert report.passed
    first = routes.__code__.co_firstlineno
    lines = [f"test_coverage.py:{first + n}" for n in (2, 5, 6)]
    told = "\n".join(report.unreached)
    assert "the `else` branch of the `if` at" in told
    assert "the body of the loop at" in told
    assert all(line in told for line in lines), told
    assert len(report.unreached) == 4
    assert "no input reached the `else` branch of the `if` at" in str(report)
    assert report.to_dict()["unreached"] == report.unreached


def test_branches_inside_of_loops_are_followed():
    report = _check((T([-1.0, -2.0]),), (T([3.0]),))
    assert len(report.unreached) == 1
    assert report.unreached[0].startswith("the `if` branch of the `if` at")


def test_loops_of_zero_trips_do_not_reach_their_bodies():
    report = _check((T([3.0]),), (torch.zeros(0),))
    assert any(line.startswith("the body of the loop") for line in report.unreached)


def test_models_without_control_flow_have_nothing_unreached():
    assert bridge.check(torch.sin, inputs=torch.ones(3)).unreached == []
