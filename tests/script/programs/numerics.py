"""Numerical methods: iterate until it converges."""

from __future__ import annotations

import math

import torch
from torch import nn

from tests.script.programs.case import Case, normal, seeded, uniform


class AdaptiveODE(nn.Module):
    """A neural ODE by Bogacki-Shampine 3(2) with step size control."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def forward(self, y, t_end):
        t = 0.0
        dt = 0.1
        steps = 0
        while t < t_end:
            dt = min(dt, float(t_end) - t)
            k1 = self.net(y)
            k2 = self.net(y + dt * 0.5 * k1)
            k3 = self.net(y + dt * 0.75 * k2)
            new = y + dt * (2 / 9 * k1 + 1 / 3 * k2 + 4 / 9 * k3)
            k4 = self.net(new)
            low = y + dt * (7 / 24 * k1 + 0.25 * k2 + 1 / 3 * k3 + 0.125 * k4)
            error = (new - low).abs().max().item()
            if error < 1e-4:
                t = t + dt
                y = new
                steps += 1
            factor = 0.9 * (1e-4 / (error + 1e-12)) ** (1 / 3)
            dt = dt * max(0.2, min(5.0, factor))
        return y, steps


def van_der_pol(y, mu, t_end):
    """The same with tensors for time, and an accepted trajectory."""

    def f(y):
        return torch.stack([y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]])

    t = torch.zeros(())
    h = torch.tensor(0.05)
    times, states = [t], [y]
    while t < t_end:
        h = torch.minimum(h, t_end - t)
        k1 = f(y)
        k2 = f(y + h * k1)
        euler = y + h * k1
        heun = y + h / 2 * (k1 + k2)
        error = (heun - euler).norm()
        if error <= 1e-2:
            t = t + h
            y = heun
            times.append(t)
            states.append(y)
        h = h * torch.clamp(0.9 * torch.sqrt(1e-2 / (error + 1e-10)), 0.3, 2.0)
    return torch.stack(times), torch.stack(states)


def sinkhorn(cost, a, b):
    """Optimal transport with entropy, until the marginals fit."""
    K = torch.exp(-cost / 0.1)
    u = torch.ones_like(a)
    v = torch.ones_like(b)
    for iteration in range(200):
        u = a / (K @ v)
        v = b / (K.t() @ u)
        error = (u * (K @ v) - a).abs().sum()
        if error < 1e-4:
            break
    plan = u[:, None] * K * v[None, :]
    return plan, (plan * cost).sum(), iteration


def power_iteration(A):
    """The largest eigenvalue and its vector."""
    v = torch.ones(A.shape[0]) / math.sqrt(A.shape[0])
    value = torch.tensor(0.0)
    while True:
        w = A @ v
        new = torch.dot(v, w)
        v = w / torch.norm(w)
        if torch.abs(new - value) < 1e-6 * torch.abs(new):
            break
        value = new
    return new, v


def kmeans(points, centers):
    """Lloyd's algorithm; an empty cluster keeps its center."""
    iterations = 0
    while True:
        distances = torch.cdist(points, centers)
        labels = distances.argmin(dim=1)
        new = centers.clone()
        for k in range(centers.shape[0]):
            members = points[labels == k]
            if len(members) > 0:
                new[k] = members.mean(dim=0)
        iterations += 1
        if torch.allclose(new, centers) or iterations >= 50:
            break
        centers = new
    return new, labels, iterations


def newton_sqrt(x):
    """Newton's method for each element, until all have converged."""
    y = torch.clamp(x, min=1.0)
    while ((y * y - x).abs() > 1e-4 * torch.clamp(x, min=1.0)).any():
        y = 0.5 * (y + x / y)
    return y


def newton_minimise(start, target):
    """A damped Newton iteration with a backtracking line search."""

    def loss(p):
        return ((p**2 - target) ** 2).sum()

    p = start
    for _ in range(30):
        gradient = 4 * p * (p**2 - target)
        if gradient.norm() < 1e-3:
            break
        hessian = torch.diag(12 * p**2 - 4 * target + 1e-3)
        direction = -torch.linalg.solve(hessian, gradient)
        if torch.dot(direction, gradient) > 0:
            direction = -gradient
        step = 1.0
        while loss(p + step * direction) > loss(p) and step > 1e-4:
            step *= 0.5
        p = p + step * direction
    return p, loss(p)


def conjugate_gradient(A, b):
    """Solves ``A x = b`` for a positive definite matrix."""
    x = torch.zeros_like(b)
    r = b - A @ x
    p = r.clone()
    rs = r @ r
    for i in range(b.shape[0] * 2):
        if rs.sqrt() < 1e-4:
            break
        Ap = A @ p
        alpha = rs / (p @ Ap)
        x += alpha * p
        r -= alpha * Ap
        new = r @ r
        p = r + (new / rs) * p
        rs = new
    return x


def bisection(low, high, target):
    """The root of x^3 + x = target."""
    while high - low > 1e-5:
        middle = (low + high) / 2
        if middle**3 + middle < target:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def jacobi(grid, mask):
    """Relaxes a temperature field to its boundary values."""
    change = torch.tensor(1.0)
    n = 0
    while change > 1e-3 and n < 500:
        new = grid.clone()
        new[1:-1, 1:-1] = 0.25 * (
            grid[:-2, 1:-1] + grid[2:, 1:-1] + grid[1:-1, :-2] + grid[1:-1, 2:]
        )
        new = torch.where(mask, grid, new)
        change = (new - grid).abs().max()
        grid = new
        n += 1
    return grid, n


def mandelbrot(c_real, c_imag):
    """Escape times."""
    z_real, z_imag = torch.zeros_like(c_real), torch.zeros_like(c_imag)
    count = torch.zeros_like(c_real, dtype=torch.int32)
    alive = torch.ones_like(c_real, dtype=torch.bool)
    for i in range(60):
        z_real, z_imag = z_real**2 - z_imag**2 + c_real, 2 * z_real * z_imag + c_imag
        alive = alive & (z_real**2 + z_imag**2 <= 4)
        if not alive.any():
            break
        count += alive.int()
        z_real = torch.where(alive, z_real, 0)
        z_imag = torch.where(alive, z_imag, 0)
    return count


def pagerank(adjacency):
    """Until the ranks stop moving."""
    n = adjacency.size(0)
    transition = adjacency / adjacency.sum(0).clamp(min=1)
    rank = torch.full((n,), 1.0 / n)
    delta = 1.0
    while delta > 1e-5:
        new = 0.15 / n + 0.85 * (transition @ rank)
        delta = (new - rank).abs().sum().item()
        rank = new
    return rank


def gradient_descent(x, y):
    """Logistic regression with an early stop."""
    w = torch.zeros(x.shape[1])
    best = float("inf")
    patience = 0
    for epoch in range(100):
        p = torch.sigmoid(x @ w)
        loss = -(y * torch.log(p + 1e-7) + (1 - y) * torch.log(1 - p + 1e-7)).mean().item()
        if loss < best - 1e-3:
            best = loss
            patience = 0
        else:
            patience += 1
            if patience == 3:
                break
        w = w - 0.5 * (x.t() @ (p - y)) / len(x)
    return w, best


def exponential_average(x, alpha):
    """A filter over time."""
    y = torch.empty_like(x)
    y[0] = x[0]
    for t in range(1, x.shape[0]):
        y[t] = alpha * x[t] + (1 - alpha) * y[t - 1]
    return y


def running_maximum_drawdown(prices):
    """The largest loss from a peak."""
    peak = prices[0]
    worst = torch.zeros(())
    for price in prices:
        peak = torch.maximum(peak, price)
        worst = torch.maximum(worst, (peak - price) / peak)
    return worst


def kalman(measurements, q, r):
    """A scalar Kalman filter; NaN marks a missing measurement."""
    x = torch.zeros(())
    p = torch.ones(())
    estimates = []
    for z in measurements:
        p = p + q
        if not torch.isnan(z):
            k = p / (p + r)
            x = x + k * (z - x)
            p = (1 - k) * p
        estimates.append(x)
    return torch.stack(estimates)


def gram_schmidt(vectors):
    """Orthonormal rows; dependent ones are dropped."""
    basis = []
    for v in vectors:
        w = v
        for b in basis:
            w = w - torch.dot(w, b) * b
        n = w.norm()
        if n > 1e-3:
            basis.append(w / n)
    return torch.stack(basis)


def _spd(n, seed=0):
    a = normal(n, n, seed=seed)
    return a @ a.t() / n + torch.eye(n)


def _marginals(n, m, seed=0):
    a, b = uniform(n, seed=seed) + 0.1, uniform(m, seed=seed + 1) + 0.1
    return uniform(n, m, seed=seed + 2), a / a.sum(), b / b.sum()


def _grid(n, m, seed=0):
    mask = torch.zeros(n, m, dtype=torch.bool)
    mask[0], mask[-1], mask[:, 0], mask[:, -1] = True, True, True, True
    return uniform(n, m, seed=seed), mask


def _plane(n, m):
    return torch.linspace(-2, 0.5, m).expand(n, m).contiguous(), torch.linspace(
        -1.2, 1.2, n
    ).unsqueeze(1).expand(n, m).contiguous()


S = torch.tensor

CASES = {
    "adaptive_ode": Case(
        seeded(AdaptiveODE),
        (normal(3, 8), S(1.0)),
        (
            (normal(1, 8, seed=1), S(0.0)),
            (normal(5, 8, seed=2) * 4, S(3.0)),
            (normal(2, 8, seed=3), S(0.01)),
        ),
        ({0: "batch"}, {}),
        (normal(16, 8, seed=4) * 3, S(4.0)),
        atol=1e-4,
    ),
    "van_der_pol": Case(
        lambda: van_der_pol,
        (S([1.0, 0.5]), S(2.0), S(1.0)),
        ((S([2.0, 0.0]), S(5.0), S(4.0)), (S([2.0, 0.0]), S(1.0), S(0.0))),
        None,
        (S([2.0, 0.0]), S(3.0), S(8.0)),
        atol=1e-4,
    ),
    "sinkhorn": Case(
        lambda: sinkhorn,
        _marginals(5, 6),
        (_marginals(1, 1, 3), _marginals(3, 9, 6), _marginals(20, 12, 9)),
        ({0: "n", 1: "m"}, {0: "n"}, {0: "m"}),
        _marginals(64, 64, 12),
        atol=1e-4,
    ),
    "power_iteration": Case(
        lambda: power_iteration,
        (_spd(5),),
        ((_spd(1, 1),), (_spd(12, 2),)),
        ({0: "n", 1: "n"},),
        (_spd(64, 3),),
        atol=1e-3,
    ),
    "kmeans": Case(
        lambda: kmeans,
        (normal(12, 3), normal(3, 3, seed=1)),
        (
            (normal(1, 3, seed=2), normal(3, 3, seed=3)),
            (normal(40, 3, seed=4), normal(3, 3, seed=5) * 50),
        ),
        ({0: "points"}, {}),
        (normal(500, 3, seed=6), normal(3, 3, seed=7)),
    ),
    "kmeans_any_k": Case(
        lambda: kmeans,
        (normal(12, 3), normal(3, 3, seed=1)),
        (
            (normal(1, 3, seed=2), normal(1, 3, seed=3)),
            (normal(40, 3, seed=4), normal(6, 3, seed=5)),
        ),
        ({0: "points"}, {0: "clusters"}),
        (normal(500, 3, seed=6), normal(8, 3, seed=7)),
    ),
    "newton_sqrt": Case(
        lambda: newton_sqrt,
        (uniform(4) * 100,),
        ((torch.zeros(0),), (torch.ones(1),), (uniform(33, seed=1) * 1e4,)),
        ({0: "n"},),
        (uniform(1000, seed=2) * 1e3,),
        atol=1e-3,
    ),
    "newton_minimise": Case(
        lambda: newton_minimise,
        (normal(4), uniform(4, seed=1) + 0.5),
        (
            (normal(1, seed=2), uniform(1, seed=3) + 0.5),
            (normal(9, seed=4) * 3, uniform(9, seed=5) * 5),
            (torch.ones(3), torch.ones(3)),
        ),
        ({0: "n"}, {0: "n"}),
        (normal(16, seed=4) * 3, uniform(16, seed=5) * 5),
        atol=1e-3,
    ),
    "conjugate_gradient": Case(
        lambda: conjugate_gradient,
        (_spd(5), normal(5)),
        (
            (_spd(1, 1), normal(1, seed=1)),
            (_spd(12, 2), normal(12, seed=2)),
            (_spd(4), torch.zeros(4)),
        ),
        ({0: "n", 1: "n"}, {0: "n"}),
        (_spd(64, 3), normal(64, seed=3)),
        atol=1e-3,
    ),
    "bisection": Case(
        lambda: bisection,
        (S(0.0), S(4.0), S(7.0)),
        ((S(0.0), S(100.0), S(0.5)), (S(1.0), S(1.0), S(7.0))),
        None,
        (S(0.0), S(100.0), S(5.0)),
    ),
    "jacobi": Case(
        lambda: jacobi,
        _grid(6, 7),
        (_grid(3, 3, 1), _grid(12, 5, 2)),
        ({0: "n", 1: "m"}, {0: "n", 1: "m"}),
        _grid(40, 40, 3),
    ),
    "mandelbrot": Case(
        lambda: mandelbrot,
        _plane(5, 6),
        (_plane(1, 1), _plane(16, 9), (torch.full((2, 2), 9.0), torch.full((2, 2), 9.0))),
        ({0: "h", 1: "w"}, {0: "h", 1: "w"}),
        _plane(80, 100),
    ),
    "pagerank": Case(
        lambda: pagerank,
        ((uniform(6, 6) > 0.5).float(),),
        (((uniform(1, 1, seed=1) > 2).float(),), ((uniform(15, 15, seed=2) > 0.7).float(),)),
        ({0: "n", 1: "n"},),
        ((uniform(100, 100, seed=3) > 0.9).float(),),
    ),
    "gradient_descent": Case(
        lambda: gradient_descent,
        (normal(10, 4), (uniform(10, seed=1) > 0.5).float()),
        (
            (normal(1, 4, seed=2), torch.ones(1)),
            (normal(50, 4, seed=3), (uniform(50, seed=4) > 0.5).float()),
        ),
        ({0: "n"}, {0: "n"}),
        (normal(200, 4, seed=3), (normal(200, 4, seed=3)[:, 0] > 0.2).float()),
        atol=1e-4,
    ),
    "exponential_average": Case(
        lambda: exponential_average,
        (normal(6, 3), S(0.3)),
        ((normal(1, 3, seed=1), S(0.9)), (normal(30, 3, seed=2), S(0.1))),
        ({0: "steps"}, {}),
        (normal(200, 3, seed=3), S(0.1)),
    ),
    "running_maximum_drawdown": Case(
        lambda: running_maximum_drawdown,
        (uniform(6) + 0.5,),
        ((uniform(1, seed=1) + 0.5,), (uniform(40, seed=2) + 0.5,)),
        ({0: "days"},),
        (uniform(500, seed=3) + 0.5,),
    ),
    "kalman": Case(
        lambda: kalman,
        (S([1.0, float("nan"), 2.0, 1.5]), S(0.1), S(0.5)),
        ((S([float("nan")]), S(0.1), S(0.5)), (normal(30), S(0.2), S(0.9))),
        ({0: "steps"}, {}, {}),
        (normal(300), S(0.2), S(0.9)),
    ),
    "gram_schmidt": Case(
        lambda: gram_schmidt,
        (normal(4, 6),),
        ((normal(1, 6, seed=1),), (torch.cat([normal(3, 6, seed=2), normal(3, 6, seed=2)]),)),
        ({0: "vectors"},),
        (normal(30, 6, seed=3),),
    ),
}
