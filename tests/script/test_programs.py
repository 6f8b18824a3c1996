"""Real programs, written naturally, export whole and agree with eager."""

from __future__ import annotations

import pytest

from tests.script.harness import agree
from tests.script.programs import CASES


@pytest.mark.parametrize("name", list(CASES))
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
