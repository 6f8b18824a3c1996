"""Rows of the test tables: an operator or module of torch's databases, and a dtype."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.pytorch.modules import module_failures
from tests.pytorch.opinfo import OpCase, failures, op_infos

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

f16, f32, f64 = torch.float16, torch.float32, torch.float64
FLOATS = (f32, f64)
ALL_FLOATS = (f32, f64, f16)
OPSETS = (17, 18, 20, 21, 22, 24)
ALL = (f32, f64, f16, torch.int64, torch.int32, torch.bool)
SMALL_INTEGERS = (torch.uint8, torch.int8, torch.int16)


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


def supported(case: OpCase, dtypes: Iterable[torch.dtype]) -> list[torch.dtype]:
    """Those of the dtypes that eager has the operator for, on CPU."""
    known = op_infos()[case.name].supported_dtypes("cpu")
    return [d for d in dtypes if d in known]


def supported_rows(cases: Iterable[OpCase]) -> list[Any]:
    """As :func:`rows`, of the dtypes that eager supports."""
    return rows(dataclasses.replace(c, dtypes=tuple(supported(c, c.dtypes))) for c in cases)


def check_small_integers(case: OpCase) -> None:
    """The first samples of the dtypes that are rarely met agree with eager."""
    found = [
        line
        for dtype in supported(case, SMALL_INTEGERS)
        for line in failures(case, dtype, first=3 * case.every)
    ]
    assert not found, "\n".join(found)


def check_opsets(case: OpCase, opsets: Sequence[int] = OPSETS) -> None:
    """The first samples of the first dtype agree with eager in all opsets."""
    (dtype, *_) = supported(case, case.dtypes)
    found = [
        f"opset {opset}: {line}"
        for opset in opsets
        for line in failures(case, dtype, opset=opset, first=3 * case.every)
    ]
    assert not found, "\n".join(found)


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
