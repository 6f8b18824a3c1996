from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.pytorch.lowerings.cases import (
    FLOATS,
    check_case,
    check_module,
    check_opset,
    f32,
    op_cases,
    op_types,
    opset_rows,
    rows,
)
from tests.pytorch.opinfo import OpCase, check_call

R = torch.randn
SUMS = {"rtol": 1e-5, "atol": 5e-5, "why": "the terms of a sum are added in another order"}
CASES = (
    *op_cases(
        """
        nn.functional.binary_cross_entropy nn.functional.binary_cross_entropy_with_logits
        nn.functional.cosine_embedding_loss nn.functional.cosine_similarity
        nn.functional.cross_entropy nn.functional.ctc_loss nn.functional.gaussian_nll_loss
        nn.functional.hinge_embedding_loss nn.functional.huber_loss nn.functional.kl_div
        nn.functional.l1_loss nn.functional.margin_ranking_loss nn.functional.mse_loss
        nn.functional.multi_margin_loss nn.functional.multilabel_margin_loss
        nn.functional.multilabel_soft_margin_loss nn.functional.nll_loss
        nn.functional.pairwise_distance nn.functional.poisson_nll_loss
        nn.functional.smooth_l1_loss nn.functional.soft_margin_loss
        nn.functional.triplet_margin_loss nn.functional.triplet_margin_with_distance_loss
        """,
        **SUMS,
    ),
    *op_cases(
        """
        nn.functional.linear_cross_entropy nn.functional.linear_cross_entropy.chunked
        nn.functional.linear_cross_entropy.chunked_none
        """,
        every=3,
        **SUMS,
    ),
)
MODULES = """
    L1 SmoothL1 KLDiv MSE MarginRanking MultiLabelMargin MultiMargin SoftMargin
    CosineEmbedding MultiLabelSoftMargin NLL GaussianNLL PoissonNLL HingeEmbedding Huber BCE
    BCEWithLogits CrossEntropy CTC
""".split()


def _available(cases: Any) -> list[OpCase]:
    from tests.pytorch.opinfo import op_infos

    return [c for c in cases if c.name in op_infos()]  # the last ones are of torch 2.13


@pytest.mark.parametrize(("case", "dtype"), rows(_available(CASES)))
def test_matches_eager(case: OpCase, dtype: torch.dtype) -> None:
    check_case(case, dtype)


@pytest.mark.parametrize(("case", "opset"), opset_rows(_available(CASES), (17, 18, 22)))
def test_matches_eager_in_other_opsets(case: OpCase, opset: int) -> None:
    check_opset(case, opset)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_modules_match_eager(name: str, dtype: torch.dtype) -> None:
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == f32 else {}
    check_module(f"nn.{name}Loss", dtype, every=1 if name != "CTC" else 2, **tolerance)


def test_cross_entropy_of_dynamic_sequences() -> None:
    check_call(
        lambda x, y: F.cross_entropy(x.flatten(0, 1), y.flatten(), ignore_index=0),
        (R(2, 5, 7), torch.randint(7, (2, 5))),
        dynamic_shapes={"x": {0: "b", 1: "t"}, "y": {0: "b", 1: "t"}},
        others=[(R(1, 3, 7), torch.tensor([[1, 0, 3]]))],
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("flat", [False, True])
def test_ctc_of_lengths_that_are_inputs(flat: bool) -> None:
    def call(x: Any, y: Any, n: Any, m: Any) -> Any:
        return F.ctc_loss(x.log_softmax(2), y, n, m, reduction="none", zero_infinity=True)

    y = torch.randint(1, 6, (6,) if flat else (2, 4))
    traced = check_call(
        call,
        (R(9, 2, 6), y, torch.tensor([9, 7]), torch.tensor([4, 2])),
        dynamic_shapes={"x": {0: "t", 1: "b"}, "y": {0: "s" if flat else "b"}, "n": {0: "b"},
                        "m": {0: "b"}} if not flat else None,
        rtol=1e-4,
        atol=1e-4,
    )  # fmt: skip
    assert op_types(traced).count("Scan") == 1


def test_margins_of_single_samples_and_of_integers() -> None:
    x, label = torch.randn(5), torch.tensor(2)
    for reduction in ("none", "mean"):
        check_call(lambda x, t, r=reduction: F.multi_margin_loss(x, t, reduction=r), (x, label))
    a, b, sign = torch.tensor([3, 1]), torch.tensor([2, 5]), torch.tensor([1, -1])
    check_call(lambda *x: F.margin_ranking_loss(*x, reduction="none"), (a, b, sign))
