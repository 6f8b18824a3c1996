"""Random structured programs compute the same in eager Python and on ONNX Runtime."""

from __future__ import annotations

import copy
import linecache
import os

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

import bridge
from tests.script.generator import programs
from tests.script.harness import T, agree, assert_same

COUNT = int(os.environ.get("BRIDGE_RANDOM_PROGRAMS", "60"))
INPUTS = [  # sums of them are no thresholds of the programs: rounding must not decide
    (T([1.0, -2.0, 0.5]), T([1, 0, 2])),
    (T([-0.25, 0.75]), T([0, 3])),
    (T([2.5]), T([1])),
    (T([0.31, 0.22, -1.53, 4.17]), T([2, 2, 0, 1])),
    (T([-0.625, -0.875]), T([0, 0])),
]
_made = 0


def function_of(source):
    """The function, with its source where Python looks for it."""
    global _made
    _made += 1
    name = f"<program {_made}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    namespace = {"torch": torch}
    exec(compile(source, name, "exec"), namespace)
    return namespace["program"]


def _check(source, *, optimised=False):
    function = function_of(source)
    program = agree(function, INPUTS[:3], rtol=1e-4, atol=1e-4, unroll_limit=2)
    seen = (
        INPUTS[:3] if program.report.assumptions else INPUTS
    )  # a size decided: the report says so
    if optimised:
        program = bridge.optimize(program, target="cpu", verify=False)
    for inputs in seen if optimised else seen[3:]:
        expected = function(*copy.deepcopy(inputs))
        assert_same(program(*inputs), expected, rtol=1e-4, atol=1e-4, inputs=inputs)


@settings(
    max_examples=COUNT,
    deadline=None,
    database=None,
    derandomize=COUNT == 60,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(programs())
def test_random_programs_agree(source):
    _check(source)


@pytest.mark.slow
@settings(
    max_examples=600, deadline=None, database=None, derandomize=True,
    phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(programs(size=16))
def test_longer_random_programs_agree(source):
    _check(source)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3])
def test_longer_random_programs_of_other_seeds_agree(number):
    @seed(number)
    @settings(
        max_examples=int(os.environ.get("BRIDGE_LONGER_PROGRAMS", "200")), deadline=None, database=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(programs(size=16))
    def check(source):
        _check(source)

    check()


@settings(
    max_examples=COUNT // 3,
    deadline=None,
    database=None,
    derandomize=COUNT == 60,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(programs())
def test_random_programs_agree_when_optimised(source):
    _check(source, optimised=True)
