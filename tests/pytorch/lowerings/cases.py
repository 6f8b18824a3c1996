"""Rows of the test tables: an operator or module of torch's databases, and a dtype."""

from __future__ import annotations

from typing import Any, TYPE_CHECKING

import pytest
import torch

from tests.pytorch.modules import module_failures
from tests.pytorch.opinfo import OpCase, failures

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

f16, f32, f64 = torch.float16, torch.float32, torch.float64
FLOATS = (f32, f64)
ALL_FLOATS = (f32, f64, f16)
OPSETS = (17, 18, 20, 21, 22, 24)


def op_cases(names: str, dtypes: tuple[torch.dtype, ...] = FLOATS, **options: Any) -> list[OpCase]:
    """A case for each of the names, which white space separates."""
    return [OpCase(name, dtypes=dtypes, **options) for name in names.split()]


def rows(cases: Iterable[OpCase]) -> list[Any]:
    """Test parameters: each case with each of its dtypes."""
    found = []
    for case in cases:
        for dtype in case.dtypes:
            reason = case.known_failure(dtype)
            marks = () if reason is None else pytest.mark.xfail(reason=reason, strict=True)
            name = f"{case.name}-{str(dtype).removeprefix('torch.')}"
            found.append(pytest.param(case, dtype, id=name, marks=marks))
    return found


def opset_rows(cases: Iterable[OpCase], opsets: Sequence[int] = OPSETS) -> list[Any]:
    """Test parameters: each case with each opset."""
    return [pytest.param(c, o, id=f"{c.name}-{o}") for c in cases for o in opsets]


def check_case(case: OpCase, dtype: torch.dtype) -> None:
    """All samples agree with eager."""
    found = failures(case, dtype)
    assert not found, "\n".join(found)


def check_opset(case: OpCase, opset: int) -> None:
    """The first float32 samples agree with eager in another opset."""
    found = failures(case, torch.float32, opset=opset, first=4 * case.every)
    assert not found, "\n".join(found)


def check_module(name: str, dtype: torch.dtype, **options: Any) -> None:
    """All samples of a module agree with eager."""
    found = module_failures(name, dtype, **options)
    assert not found, "\n".join(found)


def op_types(traced: Any) -> list[str]:
    """What the exported graph is made of, in order."""
    return [node.op_type for node in traced.model.graph]
