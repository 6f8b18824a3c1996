"""Linear systems by ONNX Runtime's kernel for inverses."""

import numpy as np
import pytest
import torch

import bridge
from tests.optim_passes.running import ops


def system(*batch, n=5, dtype=torch.float32):
    return torch.randn(*batch, n, n, dtype=dtype) + n * torch.eye(n, dtype=dtype)


CALLS = {
    "plain": (lambda a, b: torch.linalg.solve(a, b), 3),
    "vector": (lambda a, b: torch.linalg.solve(a, b[..., 0]), 3),
    "right": (lambda a, b: torch.linalg.solve(a.mT, b.mT, left=False), 3),
    "lower": (lambda a, b: torch.linalg.solve_triangular(a, b, upper=False), 3),
    "upper": (lambda a, b: torch.linalg.solve_triangular(a, b, upper=True), 3),
    "inv": (lambda a, b: torch.linalg.inv(a) @ b, 1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("name", CALLS)
def test_an_elimination_becomes_an_inverse(name, batch, dtype):
    call, products = CALLS[name]
    a, b = system(*batch, dtype=dtype), torch.randn(*batch, 5, 2, dtype=dtype)
    program = bridge.export(call, (a, b))
    fast = bridge.optimize(program, target="cpu")
    counts = ops(fast.model)
    assert counts["microsoft.Inverse"] == 1
    assert counts.get("MatMul", 0) + counts.get("microsoft.FusedMatMul", 0) == products
    assert "Scan" not in counts
    bridge.check(call, fast, [(a, b), (system(*batch, dtype=dtype), b)]).raise_for_mismatch()


def test_sizes_that_are_not_known():
    dims = {"a": {0: "batch", 1: "n", 2: "n"}, "b": {0: "batch", 1: "n", 2: "m"}}
    call, _ = CALLS["plain"]
    program = bridge.export(call, (system(2), torch.randn(2, 5, 3)), dynamic_shapes=dims)
    fast = bridge.optimize(program, target="cpu")
    assert "Scan" not in ops(fast.model)
    for batch, n, m in ((1, 1, 1), (4, 3, 2), (2, 20, 1)):
        a, b = system(batch, n=n), torch.randn(batch, n, m)
        bridge.check(call, fast, (a, b)).raise_for_mismatch()


def test_right_sides_are_met_as_exactly_as_by_elimination():
    """Hilbert's matrix: 1e-8 of a change in it is 1e-3 in the solution."""
    n = 6
    a = 1 / (torch.arange(n)[:, None] + torch.arange(n) + 1.0)
    b = torch.ones(n, 1)
    program = bridge.export(torch.linalg.solve, (a, b), verify=False)
    fast = bridge.optimize(program, target="cpu", verify=False)
    assert "Scan" not in ops(fast.model)
    x = fast(a, b)
    scale = float(a.abs().sum(1).max() * x.abs().max())
    assert (
        float((a.double() @ x.double() - b).abs().max())
        <= 4 * n * np.finfo(np.float32).eps * scale
    )


def test_a_factor_solves_with_two_triangles():
    def call(a, b):
        return torch.cholesky_solve(b, torch.linalg.cholesky(a @ a.mT))

    a, b = system(), torch.randn(5, 2)
    fast = bridge.optimize(bridge.export(call, (a, b)), target="cpu")
    assert ops(fast.model)["Scan"] == 1
    assert ops(fast.model)["microsoft.Inverse"] == 2
    bridge.check(call, fast, (system(), b)).raise_for_mismatch()


def test_other_scans_stay():
    program = bridge.export(
        torch.linalg.cholesky, system(n=4) @ torch.eye(4) + 8 * torch.eye(4), verify=False
    )
    assert ops(bridge.optimize(program, target="cpu", verify=False).model)["Scan"] == 1
