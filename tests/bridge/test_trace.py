"""``bridge.trace``: ordinary training and inference loops run around it unchanged."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import bridge


class Segmenter(nn.Module):
    """An encoder and a decoder with a tuple of additional features in between."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.decoder = nn.Sequential(nn.Conv2d(6, 5, 3, padding=1), nn.Dropout(0.5))

    def forward(self, imgs, additional):
        feat_1, feat_2 = additional
        feats = self.encoder(imgs)
        return self.decoder(torch.cat([feats, feat_1], 1) + feat_2)


def batch(n=2, height=8, width=6, dtype=torch.float32):
    torch.manual_seed(n)
    size = (height, width)
    return (
        torch.randn(n, 3, *size, dtype=dtype),
        (torch.randn(n, 2, *size, dtype=dtype), torch.randn(n, 6, *size, dtype=dtype)),
    )


@pytest.fixture
def model():
    return Segmenter().eval()


def test_every_size_is_dynamic_that_eager_lets_vary(model):
    traced = bridge.trace(model, example_input=batch())
    for sizes in ((1, 8, 6), (3, 5, 7), (2, 1, 1)):
        with torch.no_grad():
            torch.testing.assert_close(traced(*batch(*sizes)), model(*batch(*sizes)))
    assert len(traced.programs) == 1


def test_an_ordinary_training_loop_learns_what_eager_learns(model):
    reference = copy.deepcopy(model)
    traced = bridge.trace(model, example_input=batch())
    for module in (reference, traced):
        module.train()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            torch.manual_seed(step)  # dropout
            module(*batch(2 + step)).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(traced.state_dict(), reference.state_dict())
    traced.eval()
    reference.eval()
    with torch.no_grad():  # the weights have changed: traced anew
        torch.testing.assert_close(traced(*batch()), reference(*batch()))


def test_gradients_flow_in_eval_mode(model):
    reference = copy.deepcopy(model)
    traced = bridge.trace(model, example_input=batch())
    grads = []
    for module in (traced, reference):
        imgs, additional = batch(3)
        imgs.requires_grad_()
        module(imgs, additional).square().mean().backward()
        grads.append([imgs.grad, *(p.grad for p in module.parameters())])
    torch.testing.assert_close(grads[0], grads[1])


def test_state_dicts_are_the_eager_ones(model):
    traced = bridge.trace(model, example_input=batch())
    assert list(traced.state_dict()) == list(model.state_dict())
    outer = nn.ModuleDict({"inner": traced})
    assert list(outer.state_dict()) == [f"inner.{name}" for name in model.state_dict()]
    other = {name: torch.full_like(x, 0.25) for name, x in outer.state_dict().items()}
    outer.load_state_dict(other)
    assert model.encoder[0].weight.eq(0.25).all()
    with torch.no_grad():
        torch.testing.assert_close(traced(*batch()), model(*batch()))


def test_attributes_are_the_eager_ones(model):
    model.stride = 4
    traced = bridge.trace(model, example_input=batch())
    assert traced.stride == 4
    assert traced.encoder is model.encoder
    with pytest.raises(AttributeError, match="absent"):
        _ = traced.absent


def test_inputs_that_no_program_takes_get_one_of_their_own():
    def scale(x, factor):
        return x * factor

    traced = bridge.trace(scale, (torch.ones(3), 2.0))
    assert traced(torch.ones(5), 2.0).tolist() == [2.0] * 5
    assert traced(torch.ones(4), 3.0).tolist() == [3.0] * 4
    assert traced(torch.ones(2, dtype=torch.int64), 3).tolist() == [3, 3]
    assert len(traced.programs) == 3
    assert traced(torch.ones(5), 2.0).tolist() == [2.0] * 5
    assert len(traced.programs) == 3
    for factor in range(10, 15):
        traced(torch.ones(2), factor)
    with pytest.raises(bridge.FeedError, match="'factor' is 99"):
        traced(torch.ones(2), 99)


def test_a_model_in_train_mode_stays_in_train_mode(model):
    model.train()
    traced = bridge.trace(model, example_input=batch())
    assert model.training
    assert traced.training
    assert all(m.training for m in model.modules())


def test_errors_of_eager_are_errors_of_the_traced_module(model):
    traced = bridge.trace(model, example_input=batch())
    with pytest.raises(bridge.InputError, match="additional"), torch.no_grad():
        traced(*batch()[:1])
