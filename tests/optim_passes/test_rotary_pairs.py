"""Rotary position embedding of neighbours, as GLM, Cohere, EVA and Flux write it."""

import pytest
import torch

import bridge
from optim_passes.fusion.rotary import RotaryPass
from optim_passes.simplify.inference import InferShapesPass
from tests.optim_passes.running import ops, optimise, parse, reasons


def stacked(x):
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


def reshaped(x):
    return torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)


def unbound(x):
    first, second = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack([-second, first], dim=-1).flatten(3)


def repeated(angles):
    return angles.repeat_interleave(2, -1)


def doubled(angles):
    return torch.stack([angles, angles], -1).flatten(-2)


def joined(angles):
    return torch.cat([repeated(angles[..., :1]), doubled(angles[..., 1:])], -1)


class Rotated(torch.nn.Module):
    def __init__(self, turn, table, *, behind, width):
        super().__init__()
        self.turn, self.table, self.behind, self.width = turn, table, behind, width
        self.register_buffer("steps", 0.1 ** torch.arange(width // 2).float())

    def forward(self, x):
        x = x.view(*x.shape[:2], 2, 8) * 2
        x = x if self.behind else x.transpose(1, 2)
        angles = self.table(torch.arange(x.shape[1 if self.behind else 2])[:, None] * self.steps)
        angles = angles[:, None] if self.behind else angles
        turned, rest = x[..., : self.width], x[..., self.width :]
        y = turned * angles.cos() + self.turn(turned) * angles.sin()
        return y if self.width == 8 else torch.cat([y, rest], -1)


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("dynamic", [{0: "batch", 1: "length"}, {0: "batch"}])
@pytest.mark.parametrize(
    ("turn", "table", "width"),
    [
        (stacked, repeated, 8),
        (reshaped, doubled, 8),
        (unbound, joined, 8),
        (stacked, doubled, 4),
        (unbound, repeated, 4),
    ],
)
def test_neighbours_are_turned_by_one_node(turn, table, width, dynamic, behind):
    model = Rotated(turn, table, behind=behind, width=width).eval()
    program = bridge.export(model, torch.randn(2, 5, 16), dynamic_shapes=(dynamic,))
    made = bridge.optimize(program)
    counts = ops(made.model)
    assert counts["RotaryEmbedding"] == 1
    assert "Neg" not in counts
    for batch, length in ((1, 9), (3, 1)) if 1 in dynamic else ((1, 5),):
        x = torch.randn(batch, length, 16)
        torch.testing.assert_close(made(x), model(x), rtol=1e-4, atol=1e-5)


PAIRS = (
    "o = Slice(x, {odd}, end, three, two) e = Slice(x, zero, end, three, two) n = Neg(o) "
    "a = Unsqueeze({first}, four) b = Unsqueeze({second}, four) c = Concat<axis=-1>(a, b) "
    "r = Reshape(c, shape) p = Mul(x, cos) q = Mul(r, sin) y = Add(p, q)"
)


@pytest.mark.parametrize(
    ("odd", "first", "second", "told"),
    [
        ("one", "n", "e", {"the cosines are not pairs of equal ones"}),
        ("one", "e", "n", set()),
        ("zero", "n", "e", set()),
        ("one", "n", "n", set()),
    ],
)
def test_other_turns_and_angles_stay(odd, first, second, told):
    model = parse(
        "g (float[B,3,S,4] x, float[B,1,S,4] cos, float[B,1,S,4] sin) => (y) "
        "<int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3}, "
        "int64[1] four = {4}, int64[1] end = {4}, int64[4] shape = {0,3,-1,4}> "
        f"{{ {PAIRS.format(odd=odd, first=first, second=second)} }}",
        opset=23,
    )
    counts, report = optimise(model, InferShapesPass(), RotaryPass())
    assert "RotaryEmbedding" not in counts
    assert reasons(report) == told
