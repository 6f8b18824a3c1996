from __future__ import annotations

from typing import Any

import pytest
import torch

import bridge
import tests.torchvision_shim
from exporters.errors import UnsupportedOpError
from tests.pytorch.lowerings.cases import OPSETS, op_types
from tests.pytorch.opinfo import check_call

tests.torchvision_shim.install()
ops = pytest.importorskip("torchvision.ops")
R = torch.randn
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def boxes(count: int, size: float = 50.0) -> torch.Tensor:
    torch.manual_seed(count)
    corner = torch.rand(count, 2) * size
    return torch.cat([corner, corner + torch.rand(count, 2) * size * 0.6], 1)


def regions(count: int, images: int, size: float) -> torch.Tensor:
    return torch.cat([torch.randint(images, (count, 1)).float(), boxes(count, size) - 2], 1)


@pytest.mark.parametrize("opset", OPSETS)
def test_nms(opset: int) -> None:
    traced = check_call(
        lambda b, s: ops.nms(b, s, 0.5),
        (boxes(40), torch.rand(40)),
        dynamic_shapes={"b": {0: "n"}, "s": {0: "n"}},
        others=[(boxes(1), torch.rand(1)), (boxes(0), torch.rand(0)), (boxes(90), torch.rand(90))],
        opset=opset,
    )
    assert op_types(traced).count("NonMaxSuppression") == 1


def test_nms_by_class() -> None:
    def call(b: Any, s: Any, c: Any) -> Any:
        keep = ops.batched_nms(b, s, c, 0.4)
        return b[keep], s[keep]

    check_call(call, (boxes(30), torch.rand(30), torch.randint(3, (30,))))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [-1, 2])
@pytest.mark.parametrize("opset", [17, 21, 22, 23])
def test_roi_align(aligned: bool, ratio: int, opset: int) -> None:
    traced = check_call(
        lambda x, r: ops.roi_align(x, r, (5, 4), 0.7, ratio, aligned),
        (R(2, 3, 16, 16), regions(12, 2, 20)),
        dynamic_shapes={"x": {0: "b", 2: "h", 3: "w"}, "r": {0: "n"}},
        others=[(R(1, 3, 9, 11), regions(3, 1, 12)), (R(1, 3, 9, 11), regions(0, 1, 12))],
        opset=opset,
        **CLOSE,
    )
    assert op_types(traced).count("RoiAlign") == (opset < 22)


@pytest.mark.parametrize("opset", [21, 23])
def test_position_sensitive_roi_align(opset: int) -> None:
    check_call(
        lambda x, r: ops.ps_roi_align(x, r, (2, 3), 0.7, 2),
        (R(2, 12, 12, 12), regions(6, 2, 15)),
        dynamic_shapes={"x": {0: "b", 2: "h", 3: "w"}, "r": {0: "n"}},
        others=[(R(1, 12, 9, 11), regions(3, 1, 12)), (R(1, 12, 9, 11), regions(0, 1, 12))],
        opset=opset,
        **CLOSE,
    )


def test_roi_pool() -> None:
    def call(x: Any, r: Any) -> Any:
        return ops.roi_pool(x, r, (3, 2), 0.7)

    inputs = R(2, 3, 16, 16), regions(8, 2, 15)
    traced = check_call(call, inputs, opset=21)
    assert op_types(traced) == ["MaxRoiPool"]
    with pytest.raises(UnsupportedOpError, match="export with opset=21"):
        check_call(call, inputs, opset=23)


@pytest.mark.parametrize("opset", [19, 21, 22, 23])
@pytest.mark.parametrize("masked", [False, True])
def test_deformable_convolution(opset: int, masked: bool) -> None:
    weight, bias = R(4, 3, 3, 3), R(4)

    def call(x: Any, offset: Any, mask: Any) -> Any:
        return ops.deform_conv2d(
            x, offset, weight, bias, stride=2, padding=1, mask=mask if masked else None
        )

    traced = check_call(
        call,
        (R(2, 3, 10, 10), R(2, 18, 5, 5), torch.rand(2, 9, 5, 5)),
        dynamic_shapes={"x": {0: "b"}, "offset": {0: "b"}, "mask": {0: "b"}},
        others=[(R(1, 3, 10, 10), R(1, 18, 5, 5), torch.rand(1, 9, 5, 5))],
        opset=opset,
        **CLOSE,
    )
    assert op_types(traced).count("DeformConv") == 1


def test_boxes_with_corners_in_the_wrong_order_overlap_nothing() -> None:
    from torchvision.ops import nms

    boxes = torch.tensor(
        [[0.0, 0, 4, 4], [4, 4, 0, 0], [4, 0, 0, 4], [0, 0, 4, 3.9], [1, 1, 1, 1]]
    )
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    program = bridge.export(lambda b, s: nms(b, s, 0.5), (boxes, scores))
    assert program(boxes, scores).tolist() == nms(boxes, scores, 0.5).tolist() == [0, 1, 2, 4]
