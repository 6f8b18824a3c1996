from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.pytorch.lowerings.cases import (
    ALL,
    check_case,
    check_opsets,
    check_small_integers,
    f16,
    op_cases,
    op_types,
    supported_rows,
)
from tests.pytorch.opinfo import OpCase, check_call

ROUNDED = {"rtol": 1e-2, "atol": 1e-2, "why": "eager counts in float16, the graph in float64"}
CASES = [
    *op_cases(
        """
        arange empty empty_like empty_permuted empty_strided eye full full_like linspace logspace
        new_empty new_empty_strided new_full new_ones new_zeros ones ones_like scalar_tensor
        tril_indices triu_indices zeros zeros_like signal.windows.bartlett signal.windows.blackman
        signal.windows.cosine signal.windows.exponential signal.windows.gaussian
        signal.windows.general_cosine signal.windows.general_hamming signal.windows.hamming
        signal.windows.hann signal.windows.kaiser signal.windows.nuttall
        """,
        ALL,
    ),
    *op_cases(
        "linspace.tensor_overload logspace.tensor_overload",
        tuple(d for d in ALL if d != f16),
        every=7,
    ),
    *op_cases("linspace.tensor_overload logspace.tensor_overload", (f16,), every=7, **ROUNDED),
]


@pytest.mark.parametrize(("case", "dtype"), supported_rows(CASES))
def test_matches_eager(case: OpCase, dtype: torch.dtype) -> None:
    check_case(case, dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_matches_eager_in_other_opsets(case: OpCase) -> None:
    check_opsets(case)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_matches_eager_for_small_integers(case: OpCase) -> None:
    check_small_integers(case)


NUMBERS = {
    "tensor": lambda x: torch.tensor([x.shape[0], 2, 3]),
    "nested tensor": lambda x: torch.tensor(
        [[x.shape[0], 1], [2, x.shape[1]]], dtype=torch.float32
    ),
    "as_tensor": lambda x: torch.as_tensor(x.shape[0] * 1.5),
    "asarray": lambda x: torch.asarray([x.shape[0], 0.5]),
    "tensor of tensors": lambda x: torch.tensor([x.sum(), x.shape[0]]),
    "range": lambda x: torch.range(0, x.shape[0]),
    "arange of floats": lambda x: torch.arange(0.0, x.shape[0], 0.3),
    "arange as floats": lambda x: torch.arange(x.shape[0], dtype=torch.float64),
    "arange down": lambda x: torch.arange(x.shape[0], 0, -1),
    "full of a size": lambda x: torch.full((2, x.shape[1]), x.shape[0]),
    "full of a value": lambda x: torch.full((2,), x[0, 0].item()),
    "new_full": lambda x: x.new_full((x.shape[0],), 2, dtype=torch.int64),
    "new_zeros by sizes": lambda x: x.new_zeros(x.shape[0], 2),
    "zeros of no size": lambda x: torch.zeros(()) + x,
    "ones_like of dtype": lambda x: torch.ones_like(x, dtype=torch.bool),
    "eye": lambda x: torch.eye(x.shape[0], x.shape[1]),
    "tril_indices": lambda x: torch.tril_indices(3, 3) + x.shape[0],
    "linspace": lambda x: torch.linspace(-1, 1, x.shape[0]),
}


@pytest.mark.parametrize(
    "sizes", [{}, {"dynamic_shapes": ({0: "n", 1: "m"},)}], ids=["static", "dynamic"]
)
@pytest.mark.parametrize("name", NUMBERS)
def test_tensors_of_sizes_and_numbers_match_eager(name: str, sizes: dict[str, Any]) -> None:
    check_call(NUMBERS[name], (torch.randn(3, 5),), **sizes)


def test_small_constants_are_no_nodes() -> None:
    traced = check_call(lambda x: x + torch.zeros_like(x) + torch.ones(2, 3), (torch.ones(2, 3),))
    assert op_types(traced) == ["Add", "Add"]


WINDOWS: dict[str, Any] = {
    "hann": torch.hann_window,
    "hamming": torch.hamming_window,
    "blackman": torch.blackman_window,
    "bartlett": torch.bartlett_window,
    "kaiser": torch.kaiser_window,
    "frequencies": lambda n, _: torch.fft.fftfreq(n, 0.5),
    "half of them": lambda n, _: torch.fft.rfftfreq(n, 0.5),
}


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("name", WINDOWS)
def test_windows_of_dynamic_length(name: str, periodic: bool) -> None:
    check_call(
        lambda x: x * WINDOWS[name](x.shape[1], periodic)[: x.shape[1] // 2 + 1].sum(),
        (torch.randn(2, 9),),
        dynamic_shapes=({1: "n"},),
        others=[(torch.randn(2, n),) for n in (1, 2, 3, 8, 33)],
        rtol=1e-5,
        atol=1e-6,
    )
