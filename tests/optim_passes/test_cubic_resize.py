"""Bicubic interpolation as products."""

import numpy as np
import pytest

from optim_passes.fusion.cubic_resize import CubicResizePass
from optim_passes.simplify.inference import InferShapesPass
from tests.optim_passes.running import optimise, parse


def resized(shape, target, attributes):
    model = parse(
        f"g (float[{shape}] x, float[0] none, int64[{len(target)}] sizes) => (y) "
        f'{{ a = Neg(x) b = Resize<mode="cubic"{attributes}>(a, none, none, sizes) y = Neg(b) }}',
        none=np.zeros(0, np.float32),
        sizes=np.array(target, np.int64),
    )
    return optimise(model, InferShapesPass(), CubicResizePass(), rtol=1e-4, atol=1e-5)[0]


LAST = ", axes=[2,3]"


@pytest.mark.parametrize("target", [(24, 20), (7, 5), (16, 9), (1, 1), (5, 30)])
@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners", "asymmetric"])
def test_known_sizes_make_two_products(target, coordinates):
    mode = f', coordinate_transformation_mode="{coordinates}"'
    assert resized("N,3,16,15", target, mode + LAST) == {"Neg": 2, "MatMul": 2}


def test_sizes_of_all_axes_and_another_coefficient():
    attributes = ", cubic_coeff_a=-0.5"
    assert resized("2,3,6,5", (2, 3, 9, 11), attributes) == {"Neg": 2, "MatMul": 2}


@pytest.mark.parametrize(
    ("shape", "target", "attributes"),
    [
        ("N,3,H,W", (9, 9), LAST),
        ("2,3,6,5", (9, 9), LAST + ", antialias=1"),
        ("2,3,6,5", (9, 9), LAST + ", exclude_outside=1"),
        ("2,3,6,5", (9, 9), LAST + ', coordinate_transformation_mode="pytorch_half_pixel"'),
        ("1,1,4,700", (8, 8), LAST),
    ],
)
def test_other_interpolations_stay(shape, target, attributes):
    assert resized(shape, target, attributes) == {"Neg": 2, "Resize": 1}
