from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.pytorch.lowerings.cases import (
    ALL,
    FLOATS,
    check_case,
    check_opsets,
    check_small_integers,
    op_cases,
    supported_rows,
)
from tests.pytorch.opinfo import OpCase

if TYPE_CHECKING:
    from collections.abc import Callable


def _elements(function: Callable[..., Any], dim_at: int) -> Callable[..., Any]:
    """Values, and the elements where the function says they are: equal ones may come in any order."""

    def call(input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        values, places = function(input, *args, **kwargs)
        if input.dim() == 0:
            return values, places
        dim = kwargs.get("dim", args[dim_at] if len(args) > dim_at else -1)
        if places.dim() < input.dim():
            places = places.unsqueeze(dim)
        return values, input.gather(dim, places)

    return call


def _argsort(input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    return input.sort(*args, **kwargs).values, input.argsort(*args, **kwargs)


INTEGERS = tuple(d for d in ALL if d not in FLOATS)
CASES = [
    *op_cases(
        """
        median msort nanmedian nanquantile quantile masked.median
        """,
        ALL,
    ),
    *op_cases("argsort kthvalue mode sort topk", FLOATS),
]
TIES = [
    OpCase("argsort", INTEGERS, call=_elements(_argsort, 0)),
    OpCase("kthvalue", INTEGERS, call=_elements(torch.kthvalue, 1)),
    OpCase("mode", INTEGERS, call=_elements(torch.mode, 0)),
    OpCase("sort", INTEGERS, call=_elements(torch.sort, 0)),
    OpCase("topk", INTEGERS, call=_elements(torch.topk, 1)),
]


@pytest.mark.parametrize(("case", "dtype"), supported_rows([*CASES, *TIES]))
def test_matches_eager(case: OpCase, dtype: torch.dtype) -> None:
    check_case(case, dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_matches_eager_in_other_opsets(case: OpCase) -> None:
    check_opsets(case)


@pytest.mark.parametrize("case", [*CASES[:-5], *TIES], ids=lambda c: c.name)
def test_matches_eager_for_small_integers(case: OpCase) -> None:
    check_small_integers(case)
