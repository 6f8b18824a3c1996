"""What quantization costs trained nets, and what happens to one that it breaks."""

import pytest
import torch

import bridge
from tests.quantization.nets import Breaking, classified, digits, trained

NETS = ("cnn", "mobilenet", "transformer", "tagger", "detector")


def quantized(net, recipe, **options):
    return bridge.quantize(
        net.program, recipe, calibration=net.batches, metric=net.metric, gate=False, **options
    )


@pytest.mark.parametrize("name", NETS)
def test_the_nets_learned_something(name):
    assert trained(name).accuracy > 0.9


@pytest.mark.parametrize("recipe", ["int8-static", "int8-dynamic", "int8-mixed"])
@pytest.mark.parametrize("name", NETS)
def test_eight_bits_cost_at_most_half_a_point(name, recipe):
    report = quantized(trained(name), recipe).quantization
    assert report.quantized or (name in ("detector",) and recipe == "int8-dynamic")
    assert report.drop <= 0.005


@pytest.mark.parametrize("correction", ["rtn", "mse", "hqq", "gptq"])
@pytest.mark.parametrize("name", NETS)
def test_four_bit_weights_cost_at_most_a_point(name, correction):
    net = trained(name)
    report = quantized(net, "int4-weights", correction=correction).quantization
    assert report.drop <= 0.01


@pytest.mark.parametrize("method", ["minmax", "moving-average", "percentile", "entropy"])
def test_every_range_method_costs_at_most_half_a_point(method):
    report = quantized(trained("cnn"), "int8-static", method=method).quantization
    assert report.drop <= 0.005


@pytest.fixture(scope="module")
def breaking():
    images, labels = digits()
    base = trained("cnn").model
    with torch.no_grad():
        return classified(Breaking(base).eval(), images, labels)


def test_the_breaking_net_breaks_naive_quantization(breaking):
    report = quantized(breaking, "int8-static", per_channel=False, method="minmax").quantization
    assert report.drop > 0.05


def test_a_budget_keeps_what_breaks_in_float(breaking):
    program = quantized(breaking, "int8-static", max_drop=0.01, per_channel=False, method="minmax")
    report = program.quantization
    assert report.drop <= 0.01
    assert report.kept_float
    assert report.quantized
    assert breaking.metric(program.session()) == report.accuracy.metric


def test_smoothing_mends_channels_that_differ(breaking):
    rough = quantized(breaking, "int8-static", method="minmax").quantization
    smooth = quantized(breaking, "int8-static", method="minmax", smooth=1.0).quantization
    assert smooth.accuracy.snr > rough.accuracy.snr + 3
    assert smooth.drop <= 0.005


def test_what_cannot_be_saved_is_refused_with_the_culprits(breaking):
    with pytest.raises(bridge.QuantizationRejected) as caught:
        bridge.quantize(
            breaking.program, "int8-static", calibration=breaking.batches,
            metric=breaking.metric, max_drop=-1.0,
        )  # fmt: skip
    report = caught.value.report
    assert report.sensitivity
    assert report.sensitivity[0].node in str(caught.value)
    assert "the metric lost" in report.rejected
