"""Texts that are made of numbers which only run time knows."""

from __future__ import annotations

import warnings

import pytest
import torch

import bridge
from tests.script.harness import T, agree

VECTORS = [(T(x),) for x in ([1.0, 2.0, 3.0], [5.0, -2.0, 0.0], [1.0, 1.0, 1.0], [1.0, 1.0, 10.0])]


class Routed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleDict({f"layer_{i}": torch.nn.Linear(3, 3) for i in range(3)})
        self.gate = torch.nn.Linear(3, 3)

    def chosen(self, row):
        return self.gate(row).argmax()


class ByText(Routed):
    def forward(self, x):
        return self.layers[f"layer_{self.chosen(x)}"](x)


class BySum(Routed):
    def forward(self, x):
        key = "layer_" + str(self.chosen(x).item())
        return self.layers[key](x) if key in self.layers else x


class ByPercent(Routed):
    def forward(self, x):
        return self.layers["layer_%d" % self.chosen(x)](x)


class ByFormat(Routed):
    def forward(self, x):
        return self.layers["layer_{}".format(self.chosen(x).item())](x)


@pytest.mark.parametrize("kind", [ByText, BySum, ByPercent, ByFormat])
def test_layers_are_found_by_texts(kind):
    torch.manual_seed(0)
    model = kind().eval()
    xs = [(3 * torch.randn(3),) for _ in range(9)]
    assert len({int(model.chosen(x)) for (x,) in xs}) == 3
    agree(model, xs[:1], xs[1:])


def looks_up(x):
    n = int(x.sum())
    return {"3": x, "6": x * 2, "12": x - 1}[f"{n}"]


def compares(x):
    n = int(x.sum())
    return x * 2 if f"n{n}" == "n6" else x


def searches(x):
    n = int(x.sum())
    return x * 2 if str(n) in ("3", "12") else x


def tells(x):
    n = int(x.sum())
    print(f"{n} and {x.mean().item():.2f}")
    warnings.warn(f"n={n}", stacklevel=1)
    return x * n


@pytest.mark.filterwarnings("ignore:n=")
@pytest.mark.parametrize("function", [compares, searches, tells])
def test_texts_are_followed(function):
    agree(function, VECTORS[:1], VECTORS[1:])


def test_keys_of_a_dict_are_followed():
    agree(looks_up, VECTORS[:1], VECTORS[2:])


def digits(x):
    return x * len(str(int(x.sum())))


def padded(x):
    return x * len(f"{int(x.sum()):>2}{x.mean().item()}")


def different_values(x):
    return x * len(frozenset(x.tolist()))


@pytest.mark.parametrize(
    ("function", "told", "hint"),
    [
        (digits, "a text that is made of a number in `return x * len(str(int(x.sum())))`",
         "compare the number, not its text, and look things up by it: layers[n] of a list, values[n] of a "
         "tensor"),
        (padded, "a text that is made of a number in "
                 '`return x * len(f"{int(x.sum()):>2}{x.mean().item()}")`',
         "compare the number, not its text, and look things up by it: layers[n] of a list, values[n] of a "
         "tensor"),
        (different_values, "the hash of a number in `return x * len(frozenset(x.tolist()))`",
         "use torch.unique, a list, or a tensor indexed by the number, in place of a set, a dict or a cache"),
    ],
    ids=lambda f: getattr(f, "__name__", ""),
)  # fmt: skip
def test_what_else_is_done_with_them_is_refused(function, told, hint):
    with pytest.raises(bridge.DataDependentError) as caught:
        bridge.export(function, VECTORS[0])
    assert caught.value.message == (f"Python asks for {told}, which depends on the input's values")
    assert caught.value.hint == hint
