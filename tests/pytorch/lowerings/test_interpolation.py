from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.pytorch.lowerings.cases import (
    FLOATS,
    check_case,
    check_opset,
    f16,
    f32,
    op_cases,
    op_types,
    opset_rows,
    rows,
)
from tests.pytorch.opinfo import OpCase, check_call

R = torch.randn
WEIGHTS = {"rtol": 1e-4, "atol": 1e-4, "why": "positions are rounded at another step"}
RESIZES = """
    nn.functional.interpolate.area nn.functional.interpolate.bicubic
    nn.functional.interpolate.bilinear nn.functional.interpolate.linear
    nn.functional.interpolate.nearest nn.functional.interpolate.nearest-exact
    nn.functional.interpolate.trilinear nn.functional.upsample_bilinear
    nn.functional.upsample_nearest
"""
CASES = (
    *op_cases(RESIZES, (f32,), **WEIGHTS),
    *op_cases(RESIZES, (torch.float64,)),
    *op_cases(RESIZES, (f16,), rtol=5e-3, atol=5e-3, why="half precision"),
    *op_cases("_upsample_bilinear2d_aa", FLOATS, **WEIGHTS),
    *op_cases("nn.functional.grid_sample grid_sampler_2d grid_sampler_3d", FLOATS, every=3,
              **WEIGHTS),
    *op_cases("""
        nn.functional.pixel_shuffle nn.functional.pixel_unshuffle nn.functional.channel_shuffle
    """, (*FLOATS, f16, torch.uint8)),
)  # fmt: skip
SIZES = {"x": {0: "b", 2: "h", 3: "w"}}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.mark.parametrize(("case", "dtype"), rows(CASES))
def test_matches_eager(case: OpCase, dtype: torch.dtype) -> None:
    check_case(case, dtype)


@pytest.mark.parametrize(
    ("case", "opset"), opset_rows([c for c in CASES if f32 in c.dtypes], (17, 18, 19, 20, 24))
)
def test_matches_eager_in_other_opsets(case: OpCase, opset: int) -> None:
    check_opset(case, opset)


MODES = [
    ("nearest", {}), ("nearest-exact", {}), ("bilinear", {}),
    ("bilinear", {"align_corners": True}),
    ("bicubic", {}), ("bicubic", {"align_corners": True}),
]  # fmt: skip


BYTES = [
    (mode, options | {"antialias": antialias})
    for mode, options in MODES
    for antialias in (False, True)
    if mode.startswith("bi")
]


@pytest.mark.parametrize(("mode", "options"), BYTES, ids=str)
@pytest.mark.parametrize("channels", [3, 5])
def test_bytes_are_resized_to_the_last_bit(mode: str, options: Any, channels: int) -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 256, (2, channels, 37, 29), dtype=torch.uint8)
    check_call(
        lambda x: (
            F.interpolate(x, size=(11, 50), mode=mode, **options),
            F.interpolate(x, scale_factor=(1.7, 0.3), mode=mode, **options),
        ),
        (x,),
    )
    check_call(
        lambda x: F.interpolate(x, size=(11, 50), mode=mode, **options),
        (x,),
        dynamic_shapes=SIZES,
        others=[(x[:1, :, :5, :7],), (x[:, :, :1, :1],), (x.repeat(1, 1, 3, 4),)],
    )


@pytest.mark.parametrize("sizes", [(75, 65, 64, 55), (60, 80, 32, 43), (25, 20, 56, 56)], ids=str)
def test_smoothed_images_fall_on_torchs_side_of_a_half(sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 256, (1, 3, *sizes[:2])).float()
    check_call(
        lambda x: F.interpolate(x, sizes[2:], mode="bilinear", antialias=True).round(),
        (x,),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("dtype", [f32, torch.float64, torch.uint8], ids=str)
@pytest.mark.parametrize(("mode", "options"), MODES, ids=str)
def test_what_keeps_its_size_is_copied(mode: str, options: Any, dtype: torch.dtype) -> None:
    x = (R(1, 2, 14, 5) * 50 + 100).to(dtype)
    for factors in ((1.03, 1.7), (1.7, 1.1), (1.05, 1.05)):
        check_call(
            lambda x, f=factors: F.interpolate(x, scale_factor=f, mode=mode, **options),
            (x,),
            **CLOSE,
        )
    if "exact" not in mode:
        check_call(
            lambda x: F.interpolate(x, scale_factor=1.1, mode=mode, **options),
            (x,),
            dynamic_shapes=SIZES,
            others=[(x[..., :3, :],), (x.repeat(1, 1, 2, 3),)],
            **CLOSE,
        )


def test_one_row_of_an_image_is_its_first() -> None:
    check_call(
        lambda x: F.interpolate(x, scale_factor=0.2, mode="bilinear", align_corners=True),
        (R(1, 2, 12, 17).double(),),
        dynamic_shapes=SIZES,
        others=[(R(1, 2, 7, 9).double(),)],
    )


@pytest.mark.parametrize(("mode", "options"), MODES, ids=str)
@pytest.mark.parametrize("how", [{"size": (9, 7)}, {"scale_factor": 2}, {"scale_factor": 0.6}],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("opset", [17, 23])
def test_resize_of_dynamic_images(mode: str, options: Any, how: Any, opset: int) -> None:
    traced = check_call(
        lambda x: F.interpolate(x, mode=mode, **how, **options),
        (R(2, 3, 6, 8),),
        dynamic_shapes=SIZES,
        others=[(R(1, 3, 11, 5),), (R(0, 3, 5, 5),)],
        opset=opset,
        **CLOSE,
    )
    if opset == 23 and ("nearest" not in mode or how == {"scale_factor": 2}):
        assert op_types(traced) == ["Resize"]


def test_size_of_another_image() -> None:
    traced = check_call(
        lambda x, y: F.interpolate(x, size=y.shape[-2:], mode="bilinear"),
        (R(2, 3, 6, 8), R(2, 3, 12, 17)),
        dynamic_shapes={**SIZES, "y": {0: "b", 2: "hh", 3: "ww"}},
        others=[(R(1, 3, 5, 4), R(1, 3, 3, 9))],
        **CLOSE,
    )
    assert op_types(traced).count("Resize") == 1


def test_recomputed_scale() -> None:
    def call(x: Any) -> Any:
        return F.interpolate(x, scale_factor=1.7, mode="bilinear", recompute_scale_factor=True)

    check_call(call, (R(2, 3, 6, 8),), dynamic_shapes=SIZES, others=[(R(1, 3, 11, 4),)], **CLOSE)


def test_scale_that_doubles_a_small_image() -> None:
    """Torch doubles 3 places to 6, and forgets that the scale is 2.3; only of images."""
    for shape in ((1, 1, 3), (1, 1, 3, 3), (1, 1, 3, 3, 3)):
        check_call(lambda x: F.interpolate(x, scale_factor=2.3), (R(shape),))


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize(("before", "after"), [(14, 16), (14, 2), (2, 82), (2, 55), (13, 26)])
def test_nearest_places_are_torchs(mode: str, before: int, after: int) -> None:
    x = torch.arange(before * 2.0).reshape(1, 1, 2, before)
    check_call(lambda x: F.interpolate(x, size=(2, after), mode=mode), (x,))
    check_call(
        lambda x: F.interpolate(x, size=(2, after), mode=mode),
        (R(1, 1, 2, before + 1),),
        dynamic_shapes={"x": {3: "w"}},
        others=[(x,)],
    )


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(4, 5), (20, 30)], ids=str)
def test_antialias(mode: str, size: tuple[int, int]) -> None:
    check_call(
        lambda x: F.interpolate(x, size=size, mode=mode, antialias=True),
        (R(2, 3, 12, 18),),
        dynamic_shapes=SIZES,
        others=[(R(1, 3, 9, 31),)],
        **CLOSE,
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float64], ids=str)
def test_nearest_of_any_dtype(dtype: torch.dtype) -> None:
    x = torch.randint(0, 2, (2, 3, 4, 5)).to(dtype)

    def call(x: Any) -> Any:
        return torch._C._nn.upsample_nearest2d(x, [7, 9])

    if dtype in (torch.bool, torch.int64):
        with pytest.raises(NotImplementedError):
            call(x)  # torch has no such kernel either
    else:
        check_call(call, (x,))


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("opset", [17, 20, 23])
def test_sampling_of_dynamic_images(padding: str, mode: str, opset: int) -> None:
    def call(x: Any, grid: Any) -> Any:
        return F.grid_sample(x, grid, mode=mode, padding_mode=padding, align_corners=False)

    traced = check_call(
        call,
        (R(2, 3, 6, 8), torch.rand(2, 4, 5, 2) * 3 - 1.5),
        dynamic_shapes={**SIZES, "grid": {0: "b", 1: "gh", 2: "gw"}},
        others=[(R(1, 3, 5, 4), torch.rand(1, 2, 3, 2) * 3 - 1.5)],
        opset=opset,
        **CLOSE,
    )
    assert op_types(traced) == ["GridSample"]


@pytest.mark.parametrize("align", [False, True])
def test_spatial_transformer(align: bool) -> None:
    def call(x: Any, theta: Any) -> Any:
        grid = F.affine_grid(theta, x.size(), align_corners=align)
        return F.grid_sample(x, grid, align_corners=align)

    check_call(
        call,
        (R(2, 3, 6, 8), R(2, 2, 3)),
        dynamic_shapes={**SIZES, "theta": {0: "b"}},
        others=[(R(1, 3, 5, 4), R(1, 2, 3))],
        **CLOSE,
    )
    volume = torch.eye(3, 4)[None].repeat(2, 1, 1)
    check_call(lambda t: F.affine_grid(t, (2, 1, 3, 4, 5), align_corners=align), (volume,))


@pytest.mark.parametrize(
    ("module", "channels", "wanted"),
    [
        (nn.PixelShuffle(2), 8, ["DepthToSpace"]),
        (nn.PixelUnshuffle(2), 2, None),
        (nn.ChannelShuffle(2), 4, None),
        (nn.Upsample(scale_factor=2), 3, ["Resize"]),
    ],
    ids=str,
)
def test_modules_of_dynamic_images(module: nn.Module, channels: int, wanted: Any) -> None:
    traced = check_call(
        lambda x: module(x),
        (R(2, channels, 6, 8),),
        dynamic_shapes=SIZES,
        others=[(R(1, channels, 4, 10),)],
    )
    if wanted is not None:
        assert op_types(traced) == wanted
