"""Matrices factorised by hand, in loops over their rows; the second world's are regular, too."""

from __future__ import annotations

import torch

from tests.script.harness import agree


def _regular(n, seed):
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(seed))
    return a @ a.T + n * torch.eye(n)


def cholesky(a):
    n = a.shape[0]
    low = torch.zeros_like(a)
    for i in range(n):
        for j in range(i + 1):
            s = torch.dot(low[i, :j], low[j, :j])
            if i == j:
                low[i, j] = torch.sqrt(a[i, i] - s)
            else:
                low[i, j] = (a[i, j] - s) / low[j, j]
    return low


def lu_with_pivots(a):
    a = a.clone()
    n = a.shape[0]
    order = list(range(n))
    for k in range(n):
        p = k
        for i in range(k + 1, n):
            if a[i, k].abs() > a[p, k].abs():
                p = i
        if p != k:
            row = a[k].clone()
            a[k] = a[p]
            a[p] = row
            order[k], order[p] = order[p], order[k]
        for i in range(k + 1, n):
            a[i, k] /= a[k, k]
            a[i, k + 1 :] -= a[i, k] * a[k, k + 1 :]
    return a, torch.tensor(order)


def gram_schmidt(a):
    m, n = a.shape
    q, r = torch.zeros(m, n), torch.zeros(n, n)
    for j in range(n):
        v = a[:, j].clone()
        for i in range(j):
            r[i, j] = q[:, i] @ a[:, j]
            v = v - r[i, j] * q[:, i]
        r[j, j] = v.norm()
        q[:, j] = v / r[j, j]
    return q, r


def substituted_back(a, b):
    n = a.shape[0]
    upper = torch.triu(a)
    x = torch.zeros(n)
    for i in range(n - 1, -1, -1):
        x[i] = (b[i] - upper[i, i + 1 :] @ x[i + 1 :]) / upper[i, i]
    return x


MATRICES = [(_regular(n, n),) for n in (3, 2, 4, 1, 6)]


def test_cholesky():
    sizes = {"a": {0: "n", 1: "n"}}
    agree(cholesky, MATRICES[:1], MATRICES[1:], dynamic_shapes=sizes, rtol=1e-4, atol=1e-5)


def test_lu_with_pivots():
    sizes = {"a": {0: "n", 1: "n"}}
    others = [(torch.randn(n, n, generator=torch.Generator().manual_seed(n)),) for n in (2, 5)]
    agree(lu_with_pivots, MATRICES[:1], others, dynamic_shapes=sizes, rtol=1e-4, atol=1e-5)


def test_gram_schmidt():
    xs = [(_regular(n, n)[:, : n - 1],) for n in (4, 3, 5, 2)]
    sizes = {"a": {0: "m", 1: "n"}}
    agree(gram_schmidt, xs[:1], xs[1:], dynamic_shapes=sizes, rtol=1e-4, atol=1e-4)


def test_substitution():
    xs = [(a, torch.arange(1.0, a.shape[0] + 1)) for (a,) in MATRICES]
    sizes = {"a": {0: "n", 1: "n"}, "b": {0: "n"}}
    agree(substituted_back, xs[:1], xs[1:], dynamic_shapes=sizes, rtol=1e-4, atol=1e-5)
