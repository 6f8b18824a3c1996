from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from tests.pytorch.lowerings.cases import (
    ALL,
    check_case,
    check_opsets,
    check_small_integers,
    op_cases,
    op_types,
    supported_rows,
)
from tests.pytorch.opinfo import OpCase, check_call, to_numpy

CASES = op_cases(
    """
    bernoulli cauchy exponential geometric log_normal multinomial nn.functional.alpha_dropout
    nn.functional.dropout nn.functional.dropout2d nn.functional.dropout3d
    nn.functional.feature_alpha_dropout.with_train
    nn.functional.feature_alpha_dropout.without_train nn.functional.rrelu normal
    normal.in_place normal.number_mean rand_like randint randint_like randn randn_like uniform
    """,
    ALL,
)


@pytest.mark.parametrize(("case", "dtype"), supported_rows(CASES))
def test_matches_eager(case: OpCase, dtype: torch.dtype) -> None:
    check_case(case, dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_matches_eager_in_other_opsets(case: OpCase) -> None:
    check_opsets(case)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_matches_eager_for_small_integers(case: OpCase) -> None:
    check_small_integers(case)


def drawn(function: Any, *arguments: Any, opset: int = 23) -> list[np.ndarray]:
    """The outputs of three runs of one exported model."""
    traced = check_call(function, arguments, values=False, opset=opset)
    assert traced.random
    proto = ir.to_proto(traced.model).SerializeToString()
    session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
    feed = {
        i.name: to_numpy(arguments[p])
        for i, p in zip(traced.model.graph.inputs, traced.inputs, strict=True)
    }
    return [session.run(None, feed)[0] for _ in range(3)]


LAWS = {  # of 20 000 numbers: mean, standard deviation, least, most
    "rand": (lambda x: torch.rand(x.shape), 0.5, 12**-0.5, 0, 1),
    "rand_like": (lambda x: torch.rand_like(x), 0.5, 12**-0.5, 0, 1),
    "randn": (lambda x: torch.randn(x.shape), 0, 1, -6, 6),
    "randn_like": (lambda x: torch.randn_like(x), 0, 1, -6, 6),
    "normal": (lambda x: torch.normal(x * 0 + 3, 2.0), 3, 2, -9, 15),
    "normal_": (lambda x: x.clone().normal_(1, 0.5), 1, 0.5, -3, 5),
    "uniform_": (lambda x: x.clone().uniform_(-1, 3), 1, 4 * 12**-0.5, -1, 3),
    "exponential_": (lambda x: x.clone().exponential_(2), 0.5, 0.5, 0, 12),
    "log_normal_": (lambda x: x.clone().log_normal_(0, 0.25), 1.0317, 0.262, 0, 5),
    "geometric_": (lambda x: x.clone().geometric_(0.25), 4, 12**0.5, 1, 90),
    "randint": (lambda x: torch.randint(3, 7, x.shape) + x * 0, 4.5, 1.25**0.5, 3, 6),
    "randint_like": (lambda x: torch.randint_like(x, 4), 1.5, 1.25**0.5, 0, 3),
    "random_": (lambda x: x.clone().random_(0, 4), 1.5, 1.25**0.5, 0, 3),
    "bernoulli": (lambda x: torch.bernoulli(x * 0 + 0.3), 0.3, 0.21**0.5, 0, 1),
    "bernoulli_": (lambda x: x.clone().bernoulli_(0.3), 0.3, 0.21**0.5, 0, 1),
    "multinomial": (
        lambda x: torch.multinomial(torch.tensor([1.0, 2.0, 1.0]), x.numel(), True) + x.view(-1) * 0,
        1, 0.5**0.5, 0, 2,
    ),
    "dropout": (lambda x: F.dropout(x * 0 + 1, 0.25), 1, (1 / 3) ** 0.5, 0, 1.3334),
    "dropout1d": (lambda x: F.dropout1d(x.view(100, 200, 1) * 0 + 1, 0.25), 1, (1 / 3) ** 0.5, 0, 1.3334),
    "alpha_dropout": (lambda x: F.alpha_dropout(torch.randn_like(x), 0.25, True), 0, 1, -7, 7),
    "rrelu": (lambda x: F.rrelu(x * 0 - 1, 0.2, 0.4, True), -0.3, 0.2 * 12**-0.5, -0.4, -0.2),
}  # fmt: skip


@pytest.mark.parametrize("opset", [21, 23])
@pytest.mark.parametrize("name", LAWS)
def test_numbers_follow_their_law_and_differ_between_runs(name: str, opset: int) -> None:
    function, mean, deviation, least, most = LAWS[name]
    runs = drawn(function, torch.ones(100, 200), opset=opset)
    assert not np.array_equal(runs[0], runs[1])
    for numbers in runs:
        # Five standard errors: one run in a million is further off.
        assert abs(numbers.mean() - mean) < 5 * deviation / 20_000**0.5
        assert numbers.std() == pytest.approx(deviation, rel=0.08)
        assert least <= numbers.min()
        assert numbers.max() <= most


def test_a_permutation_is_one() -> None:
    runs = drawn(lambda x: torch.randperm(50) + x.long() * 0, torch.ones(50))
    assert all(sorted(r) == list(range(50)) for r in runs)
    assert not np.array_equal(runs[0], runs[1])


def test_drawing_without_replacement_repeats_nothing() -> None:
    for run in drawn(lambda x: torch.multinomial(x, 10), torch.ones(4, 10)):
        assert (np.sort(run, axis=1) == np.arange(10)).all()


def test_channels_are_dropped_whole() -> None:
    for run in drawn(lambda x: F.dropout2d(x, 0.5), torch.ones(8, 64, 3, 3)):
        flat = run.reshape(8 * 64, 9)
        assert (flat == flat[:, :1]).all()
        assert {0.0, 2.0} == set(np.unique(flat))


def test_dropout_of_evaluation_is_nothing_and_draws_nothing() -> None:
    traced = check_call(lambda x: F.dropout(x, 0.5, training=False).sin(), (torch.ones(3),))
    assert not traced.random
    assert op_types(traced) == ["Sin"]


def test_sizes_may_be_dynamic() -> None:
    check_call(
        lambda x: (torch.randn_like(x), torch.rand(x.shape[0], 2), torch.randperm(x.shape[0])),
        (torch.ones(3, 4),),
        dynamic_shapes=({0: "n"},),
        others=[(torch.ones(7, 4),), (torch.ones(1, 4),), (torch.ones(0, 4),)],
        values=False,
    )
