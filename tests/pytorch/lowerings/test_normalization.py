from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.pytorch.lowerings.cases import (
    ALL_FLOATS,
    FLOATS,
    OPSETS,
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
STEPS = "torch divides by the standard deviation in another order"
CASES = (
    *op_cases(
        """
        nn.functional.batch_norm nn.functional.batch_norm.without_cudnn
        nn.functional.group_norm nn.functional.instance_norm nn.functional.layer_norm
        nn.functional.local_response_norm nn.functional.normalize nn.functional.rms_norm
        """,
        FLOATS,
        rtol=1e-5,
        atol=2e-5,
        why=STEPS,
    ),
    *op_cases(
        """
        nn.functional.batch_norm nn.functional.group_norm nn.functional.instance_norm
        nn.functional.layer_norm nn.functional.normalize nn.functional.rms_norm
        """,
        ALL_FLOATS[2:],
        rtol=5e-3,
        atol=5e-3,
        why="half precision: " + STEPS,
    ),
    *op_cases(
        """
        _batch_norm_with_update _native_batch_norm_legit native_batch_norm native_group_norm
        native_layer_norm
        """,
        FLOATS,
        rtol=1e-5,
        atol=2e-5,
        why=STEPS,
    ),
)
MODULES = (
    *(f"nn.{kind}Norm{n}d" for kind in ("Batch", "Instance") for n in (1, 2, 3)),
    "nn.GroupNorm", "nn.LayerNorm", "nn.LocalResponseNorm", "nn.RMSNorm",
)  # fmt: skip
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize(("case", "dtype"), rows(CASES))
def test_matches_eager(case: OpCase, dtype: torch.dtype) -> None:
    check_case(case, dtype)


@pytest.mark.parametrize(("case", "opset"), opset_rows([c for c in CASES if f32 in c.dtypes]))
def test_matches_eager_in_other_opsets(case: OpCase, opset: int) -> None:
    check_opset(case, opset)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_modules_match_eager(name: str, training: bool, dtype: torch.dtype) -> None:
    check_module(name, dtype, training=training, **(CLOSE if dtype == f32 else {}))


LAYERS = [
    (nn.LayerNorm(6), (2, 5, 6), ["LayerNormalization"]),
    (nn.LayerNorm((5, 6), elementwise_affine=False), (2, 5, 6), ["LayerNormalization"]),
    (nn.LayerNorm(6, bias=False), (2, 5, 6), ["LayerNormalization"]),
    (nn.RMSNorm(6), (2, 5, 6), ["RMSNormalization"]),
    (nn.RMSNorm(6, elementwise_affine=False), (2, 5, 6), ["RMSNormalization"]),
    (nn.InstanceNorm2d(4), (2, 4, 5, 6), ["InstanceNormalization"]),
    (nn.InstanceNorm1d(4, affine=True), (2, 4, 5), ["InstanceNormalization"]),
    (nn.BatchNorm2d(4).eval(), (2, 4, 5, 6), ["BatchNormalization"]),
    (nn.BatchNorm1d(4, affine=False).eval(), (2, 4), ["BatchNormalization"]),
    (nn.LocalResponseNorm(3), (2, 4, 5, 6), ["LRN"]),
    (nn.GroupNorm(2, 4, affine=False), (2, 4, 5, 6),
     ["Reshape", "InstanceNormalization", "Reshape"]),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "shape", "wanted"), LAYERS, ids=str)
def test_layers_stay_whole(layer: nn.Module, shape: tuple[int, ...], wanted: list[str]) -> None:
    assert op_types(check_call(layer, (R(shape),), **CLOSE)) == wanted


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(("layer", "shape", "_"), LAYERS, ids=str)
def test_layers_of_dynamic_inputs(layer: nn.Module, shape: Any, _: Any, opset: int) -> None:
    channels = {3: {0: "b", 1: "t"}, 2: {0: "b"}}.get(len(shape), {0: "b", 2: "h", 3: "w"})
    if isinstance(layer, nn.InstanceNorm1d):
        channels = {0: "b", 2: "t"}
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 2:
        channels = {0: "b"}
    third = [3 if axis in channels and axis else n for axis, n in enumerate(shape)]
    others = [(R(1, *third[1:]),)]
    # ORT's LRN refuses empty images, torch an empty batch of instances.
    if not isinstance(layer, nn.LocalResponseNorm | nn.InstanceNorm1d | nn.InstanceNorm2d):
        others.append((R(0, *third[1:]),))
    check_call(
        lambda x: layer(x),
        (R(shape),),
        dynamic_shapes={"x": channels},
        others=others,
        opset=opset,
        **CLOSE,
    )


def test_norm_over_dynamic_dims() -> None:
    check_call(
        lambda x: F.layer_norm(x, x.shape[1:]),
        (R(2, 5, 6),),
        dynamic_shapes={"x": {0: "b", 1: "t"}},
        others=[(R(1, 3, 6),)],
        **CLOSE,
    )


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.InstanceNorm2d])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_training_updates_the_running_statistics(kind: Any, momentum: float | None) -> None:
    norm = kind(3, affine=True, track_running_stats=True, momentum=momentum or 0.1)

    def call(x: Any) -> Any:
        first = norm(x)
        return first, norm(x * 2), norm.running_mean * 1, norm.running_var * 1

    before = norm.running_mean.clone()
    check_call(call, (R(2, 3, 5, 6),), **CLOSE)
    assert torch.equal(norm.running_mean, before)  # the export leaves the module alone


def test_large_means_keep_their_digits() -> None:
    """``GroupNormalization-21`` is off by 0.17 here, so it is not used."""
    x = R(2, 8, 16, 16) + 1000
    check_call(nn.GroupNorm(4, 8), (x,), rtol=1e-3, atol=1e-3)
