"""``torch.func`` and autograd inside of the exported code, at the example's sizes and at others."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)

import bridge
from tests.pytorch.opinfo import check_call

torch.manual_seed(0)
X, Y, V = torch.randn(3, 4), torch.randn(5, 4), torch.randn(4)
LAYER = nn.Linear(4, 3)
MLP = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 1))
FIRST = ({0: "n"},)


def _ensemble(x: torch.Tensor) -> torch.Tensor:
    models = [copy.deepcopy(LAYER) for _ in range(3)]
    for index, model in enumerate(models):
        model.weight.data.mul_(index + 1)
    parameters, buffers = stack_module_state(models)
    base = copy.deepcopy(LAYER).to("meta")
    return vmap(lambda p, b, x: functional_call(base, (p, b), (x,)), in_dims=(0, 0, None))(
        parameters, buffers, x
    )


def _pulled_back(x: torch.Tensor) -> Any:
    value, pull_back = vjp(torch.sin, x)
    return value, pull_back(value * 2)[0]


CALLS: dict[str, tuple[Any, tuple[torch.Tensor, ...], Any]] = {
    "vmap": (lambda x: vmap(lambda row: row * row.sum())(x), (X,), ({0: "n", 1: "m"},)),
    "vmap of a layer": (lambda x: vmap(LAYER)(x), (X,), FIRST),
    "vmap over other dims": (
        lambda x: vmap(lambda r: (r.exp(), r.mean()), in_dims=1, out_dims=(1, 0))(x),
        (X,),
        FIRST,
    ),
    "vmap in vmap": (
        lambda x, y: vmap(lambda a: vmap(lambda b: (a * b).sum())(y))(x),
        (X, Y),
        ({0: "n", 1: "k"}, {0: "m", 1: "k"}),
    ),
    "vmap reads what is around it": (
        lambda x, v: vmap(lambda row: (row * (v + 1)).sum())(x),
        (X, V),
        ({0: "n", 1: "m"}, {0: "m"}),
    ),
    "vmap with keywords": (lambda x: vmap(lambda a, scale: a * scale)(x, scale=x), (X,), FIRST),
    "an ensemble": (_ensemble, (X,), FIRST),
    "grad": (lambda x: grad(lambda y: (y.sin() ** 2).sum())(x), (X,), ({0: "n", 1: "m"},)),
    "grad of a network": (lambda x: grad(lambda y: MLP(y).sum())(x), (X,), FIRST),
    "grad with a value besides": (
        lambda x: grad(lambda y: ((y**3).sum(), y * 2), has_aux=True)(x),
        (X,),
        FIRST,
    ),
    "gradients by sample": (
        lambda x: vmap(grad(lambda w, a: LAYER.bias.sum() + (a @ w.T).square().sum()), (None, 0))(
            LAYER.weight, x
        ),
        (X,),
        FIRST,
    ),
    "jacrev": (lambda x: jacrev(lambda y: y.tanh() * y.sum())(x), (V,), FIRST),
    "jacfwd": (lambda x: jacfwd(lambda y: y.tanh() * y.sum())(x), (V,), FIRST),
    "hessian": (lambda x: hessian(lambda y: (y**3).sum())(x), (V,), None),
    "jvp": (lambda x: jvp(torch.sin, (x,), (x * 2,)), (X,), ({0: "n", 1: "m"},)),
    "linearize": (lambda x: linearize(torch.sin, x)[1](x * 2), (X,), ({0: "n", 1: "m"},)),
    "vjp": (_pulled_back, (X,), ({0: "n", 1: "m"},)),
}


@pytest.mark.parametrize("sizes", ["static", "dynamic"])
@pytest.mark.parametrize("name", CALLS)
def test_transforms_match_eager(name: str, sizes: str) -> None:
    function, arguments, dynamic = CALLS[name]
    check_call(function, arguments, dynamic_shapes=dynamic if sizes == "dynamic" else None)


def test_transforms_made_before_the_export() -> None:
    batched, gradient = vmap(torch.dot), grad(lambda y: y.square().sum())
    check_call(lambda x: batched(x, gradient(x)), (X,), dynamic_shapes=FIRST)


class Forces(nn.Module):
    """Energy and forces of points, as models of molecules compute them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            positions = positions.detach().requires_grad_(True)
            apart = positions[:, None] - positions[None] + 1e-2
            energy = self.net(apart.square().sum(-1, keepdim=True).sqrt()).sum()
            (gradient,) = torch.autograd.grad(energy, positions, create_graph=self.training)
        return energy, -gradient


def test_derivatives_inside_of_forward() -> None:
    model = Forces().eval()
    program = bridge.export(model, torch.randn(5, 3), dynamic_shapes={"positions": {0: "atoms"}})
    assert "net.0.weight" in program.model.graph.initializers
    for atoms in (1, 2, 7):
        x = torch.randn(atoms, 3)
        for got, want in zip(program(x), model(x), strict=True):
            torch.testing.assert_close(got, want.detach(), rtol=1e-4, atol=1e-4)


def test_what_torch_cannot_write_down_is_refused_with_its_line() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return vmap(lambda row: row * row.sum().item())(x)

    with pytest.raises(bridge.ExportError, match=r"(?s)transform.*test_transforms\.py:\d+.*hint"):
        bridge.export(f, X)


def test_torch_is_left_as_it_was() -> None:
    check_call(lambda x: vmap(torch.sum)(x), (X,))
    torch.testing.assert_close(vmap(torch.sum)(X), X.sum(1))
    torch.testing.assert_close(vjp(torch.sin, X)[1](X)[0], X.cos() * X)
