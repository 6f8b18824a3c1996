"""Real programs, written naturally, export whole and agree with eager."""

from __future__ import annotations

import pytest

from tests.script.harness import agree
from tests.script.programs import CASES

# What is wrong with a program that does not export yet.
FAULTS: dict[str, str] = {
}


def _marked(name):
    marks = [pytest.mark.xfail(reason=FAULTS[name])] if name in FAULTS else []
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [_marked(name) for name in CASES])
def test_program(name):
    case = CASES[name]
    program = agree(
        case.make(),
        [case.example, *case.examples],
        [*case.others, *([case.large] if case.large is not None else [])],
        dynamic_shapes=case.dynamic,
        rtol=1e-4,
        atol=case.atol,
    )
    assert not program.report.warnings
