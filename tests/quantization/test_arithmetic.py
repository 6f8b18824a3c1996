"""Scales, zero points and integers are those of the ONNX reference, bit for bit."""

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx.reference import ReferenceEvaluator

from optim_passes.quantization.arithmetic import (
    Affine,
    affine_of_range,
    dequantize,
    integer_limits,
    pack_nibbles,
    quantize,
    symmetric_scales,
)

# Scales below the smallest normal float32 are not made: kernels flush them to zero.
FLOATS = st.floats(-1e6, 1e6, width=32).map(lambda x: x if abs(x) > 2.0**-100 else 0.0)
TENSORS = arrays.arrays(np.float32, arrays.array_shapes(max_dims=3, max_side=6), elements=FLOATS)


# Workers share cores: what is slow then is no fault.
BUSY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def reference(text, feed):
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> g {text}')
    return ReferenceEvaluator(model).run(None, feed)


@BUSY
@given(TENSORS)
def test_scale_and_zero_point_are_those_of_dynamic_quantize_linear(x):
    want, scale, zero = reference(
        "(float[n] x) => (uint8[n] q, float s, uint8 z) { q, s, z = DynamicQuantizeLinear(x) }",
        {"x": x},
    )
    affine = affine_of_range(float(x.min()), float(x.max()))
    assert affine.scale.tobytes() == scale.tobytes()
    assert affine.zero_point == zero
    np.testing.assert_array_equal(quantize(x, affine), want)


@BUSY
@given(
    TENSORS,
    st.floats(2.0**-10, 2.0**10, width=32),
    st.sampled_from(["uint8", "int8", "uint16", "int16"]),
    st.integers(0, 127),
)
def test_integers_are_those_of_quantize_linear(x, scale, dtype, zero):
    affine = Affine(np.asarray(scale, np.float32), np.asarray(zero, dtype))
    signature = f"(float[n] x, float s, {dtype} z)"
    feed = {"x": x, "s": affine.scale, "z": affine.zero_point}
    [want] = reference(f"{signature} => ({dtype}[n] q) {{ q = QuantizeLinear(x, s, z) }}", feed)
    got = quantize(x, affine)
    np.testing.assert_array_equal(got, want)
    feed = {"q": want, "s": affine.scale, "z": affine.zero_point}
    [back] = reference(
        f"({dtype}[n] q, float s, {dtype} z) => (float[n] y) {{ y = DequantizeLinear(q, s, z) }}",
        feed,
    )
    assert dequantize(got, affine).tobytes() == back.tobytes()


@BUSY
@given(
    arrays.arrays(np.float32, (4, 3, 2), elements=FLOATS),
    st.integers(0, 2),
    st.sampled_from([127, 63]),
)
def test_each_channel_has_the_scale_of_its_largest_magnitude(x, axis, most):
    scales = symmetric_scales(x, axis, most)
    affine = Affine(scales, np.zeros(scales.shape, np.int8))
    got = quantize(x, affine, axis)
    feed = {"x": x, "s": scales, "z": affine.zero_point}
    [want] = reference(
        "(float[n] x, float[n] s, int8[n] z) => (int8[n] q)"
        f"{{ q = QuantizeLinear<axis = {axis}>(x, s, z) }}",
        feed,
    )
    np.testing.assert_array_equal(got, want)
    assert np.abs(got.astype(int)).max() <= most
    error = np.abs(dequantize(got, affine, axis) - x)
    shape = [1, 1, 1]
    shape[axis] = -1
    assert (error <= 0.5001 * scales.reshape(shape) + 1e-6 * np.abs(x)).all()


@BUSY
@given(FLOATS, FLOATS, st.sampled_from(["uint8", "int8", "uint16", "int16"]), st.booleans())
def test_zero_is_exact_and_bounds_are_within_half_a_step(a, b, dtype, symmetric):
    low, high = min(a, b), max(a, b)
    affine = affine_of_range(low, high, dtype, symmetric=symmetric)
    zero = quantize(np.zeros(1, np.float32), affine)
    assert dequantize(zero, affine)[0] == 0
    ends = np.asarray([min(low, 0), max(high, 0)], np.float32)
    error = np.abs(dequantize(quantize(ends, affine), affine) - ends)
    assert (error <= 1.01 * float(affine.scale) + 1e-6 * np.abs(ends)).all()


def test_a_range_of_nothing_but_zero_has_a_scale():
    affine = affine_of_range(0.0, 0.0)
    assert float(affine.scale) == np.float32(1 / 255)
    assert (quantize(np.zeros(3, np.float32), affine) == affine.zero_point).all()


def test_subnormal_ranges_and_the_largest_ones_have_finite_scales():
    for bound in (1e-45, 1e-40, 3.4e38):
        for symmetric in (False, True):
            affine = affine_of_range(-bound, bound, symmetric=symmetric)
            assert np.isfinite(affine.scale)
            assert affine.scale > 0


@pytest.mark.parametrize("bound", [float("nan"), float("inf")])
def test_a_range_that_is_not_finite_is_refused(bound):
    with pytest.raises(ValueError, match="not finite"):
        affine_of_range(0.0, bound)


def test_nibbles_are_packed_low_half_first_and_filled_up():
    packed = pack_nibbles(np.asarray([[1, 2, 3]], np.uint8))
    np.testing.assert_array_equal(packed, [[0x21, 0x03]])
    assert integer_limits(np.uint8, 4) == (0, 15)
    assert integer_limits(np.int8) == (-128, 127)
