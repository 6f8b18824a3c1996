"""Torchvision's detectors export whole, whatever the image's size, and with nothing to be found."""

from __future__ import annotations

import pytest
import torch

import bridge
from tests import torchvision_shim
from tests.script.harness import assert_same

torchvision_shim.install()
from torchvision.models import detection  # noqa: E402 - imported after its operators exist

SIZES = ((120, 80), (64, 64), (200, 333))
SMALL = {"min_size": 128, "max_size": 256}
MODELS = {
    "fasterrcnn_resnet50_fpn": {**SMALL, "box_score_thresh": 0.012},
    "maskrcnn_resnet50_fpn": {**SMALL, "box_score_thresh": 0.012, "box_detections_per_img": 8},
    "keypointrcnn_resnet50_fpn": {**SMALL, "box_detections_per_img": 8},
    # The order of its 1,000 best of 90 classes, with random weights, is up to rounding.
    "retinanet_resnet50_fpn": {
        **SMALL,
        "score_thresh": 0.05,
        "topk_candidates": 20,
        "num_classes": 5,
    },
    "fcos_resnet50_fpn": {**SMALL, "score_thresh": 0.05},
    "ssd300_vgg16": {"score_thresh": 0.011},
}


def build(name, **options):
    """A detector with seeded random weights, of which no two scores are nearly the same."""
    torch.manual_seed(0)
    make = getattr(detection, name)
    model = make(weights=None, weights_backbone=None, **{**MODELS[name], **options}).eval()
    with torch.no_grad():
        for parameter, weight in model.named_parameters():
            if parameter.endswith("cls_logits.weight"):
                weight *= 20
    return model


def image(height, width, seed=0):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def told_apart(model, size, seed):
    """An image in which no two things found have the same score: those come in any order."""
    for other in range(0, 50, 10):
        x = image(*size, seed=seed + other)
        with torch.no_grad():
            expected = model([x])
        scores = expected[0]["scores"]
        if len(scores.unique()) == len(scores):
            return x, expected
    raise AssertionError("every image has equal scores")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_agrees_at_every_image_size(name):
    model = build(name)
    dynamic = ([{1: "height", 2: "width"}],)
    program = bridge.export(model, ([image(96, 128)],), dynamic_shapes=dynamic)
    for seed, size in enumerate(SIZES):
        x, expected = told_apart(model, size, seed + 1)
        assert_same(program([x]), expected, rtol=1e-3, atol=1e-3, inputs=size)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_nothing_found(name):
    threshold = next((k for k in MODELS[name] if "score_thresh" in k), "box_score_thresh")
    model = build(name, **{threshold: 2.0})
    dynamic = ([{1: "height", 2: "width"}],)
    program = bridge.export(model, ([image(96, 128)],), dynamic_shapes=dynamic)
    x = image(150, 70, seed=5)
    with torch.no_grad():
        expected = model([x])
    assert len(expected[0]["boxes"]) == 0
    assert_same(program([x]), expected, rtol=1e-3, atol=1e-3, inputs=(150, 70))
