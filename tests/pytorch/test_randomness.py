"""Random numbers from outside of torch are frozen, and users are told."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

import bridge

X = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (lambda x: x * random.random(), "random"),
        (lambda x: x * float(np.random.rand()), r"numpy\.random"),
    ],
)
def test_frozen_random_numbers_warn_and_leave_the_generator_alone(draw, name):
    random.seed(3)
    np.random.seed(3)
    expected = random.Random(3).random(), np.random.RandomState(3).rand()
    with pytest.warns(bridge.FrozenRandomWarning, match=f"forward draws from {name}: "):
        program = bridge.export(draw, (X,))
    assert any("forward draws from" in w for w in program.report.warnings)
    assert (random.random(), np.random.rand()) == expected
    assert program(X).eq(program(X)).all()
