"""Exported with dynamic dims, run at sizes that the trace has not seen, 1 and 0 among them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.pytorch.opinfo import check_call

# What is computed from x[n, m, 4], an index[n] below 3 and a mask[n, m].
FUNCTIONS = """
    x.reshape(x.shape[0], -1)
    x.view(x.shape[0], x.shape[1], 2, 2)
    x.view(-1, 4)
    x.view(x.shape[0] * x.shape[1], 4)
    x.reshape(-1)
    x.flatten()
    x.flatten(1)
    x.flatten(0, 1)
    x.unflatten(2, (2, -1))
    x.unflatten(1, (-1, 1))
    torch.cat([x, x], 1).unflatten(1, (2, -1))
    x.flatten(0, 1).unflatten(0, (x.shape[0], x.shape[1]))
    x.transpose(0, 1).reshape(x.shape[1], -1)
    x.permute(2, 0, 1)
    x.unsqueeze(0).squeeze(0)
    x.select(2, 0)
    x.swapaxes(0, 1)
    x.unsqueeze(1).expand(-1, 3, -1, -1)
    x[:, :1].expand(-1, x.shape[1], -1)
    x.unsqueeze(0).expand(2, *x.shape)
    x.expand_as(torch.zeros(2, *x.shape))
    x.repeat(2, 1, 1)
    x.repeat(1, x.shape[0], 1)
    x.tile(2, 1)
    x.repeat_interleave(2, dim=1)
    x.repeat_interleave(index, dim=0)
    x.chunk(2, dim=2)
    x.split(2, dim=2)
    x.split([1, 3], dim=-1)
    x.narrow(2, 1, 2)
    x.narrow(0, 0, x.shape[0])
    x[:, : x.shape[1] // 2]
    torch.cat([x, x * 2], dim=1)
    torch.cat([x, torch.zeros(1, x.shape[1], 4)], dim=0)
    torch.stack([x, -x], dim=1)
    torch.hstack([x, x])
    x.roll(1, 1)
    x.roll((1, -1), (0, 2))
    x.roll(2)
    x.flip(1)
    x.flip([0, 2])
    x.rot90(1, [0, 1])
    x.tril()
    x.transpose(1, 2).triu(1)
    x.diagonal(0, 0, 1)
    x.diagonal(1, 1, 2)
    torch.diag_embed(x[:, :, 0])
    x.unfold(1, 1, 1)
    torch.arange(x.shape[1])
    torch.arange(0, x.shape[1], 2, dtype=torch.float32)
    torch.arange(x.shape[1]) * 0.5
    torch.linspace(0, 1, x.shape[1] + 1)
    torch.zeros(x.shape[0], 3)
    torch.ones(x.shape[:2])
    torch.full((x.shape[1],), 2.5)
    torch.full_like(x, x.shape[1])
    torch.empty_like(x).fill_(1)
    torch.eye(x.shape[1])
    x.new_zeros(x.shape[1], 2)
    x.sum()
    x.sum(1)
    x.mean((1, 2))
    x.mean(1)
    x.mean()
    x.nanmean(0)
    x.var(1)
    x.std((0, 1))
    torch.var_mean(x, 0)
    torch.einsum("iij->j", x[:, :1].expand(-1, x.shape[0], -1))
    torch.nn.functional.mse_loss(x, x * 2)
    torch.nn.functional.cross_entropy(x.transpose(1, 2), mask.long())
    torch.nn.functional.cross_entropy(x[:, 0], index, label_smoothing=0.1)
    torch.nn.functional.cross_entropy(x.transpose(1, 2), x.transpose(1, 2).softmax(1))
    torch.nn.functional.nll_loss(x[:, 0], index, x[0, 0].exp(), ignore_index=1, reduction="none")
    torch.nn.functional.adaptive_avg_pool1d(x.sum(2), 1)
    torch.fft.hfft2(x[:, :, :3], s=(4, 4), dim=(0, 2))
    torch.fft.fft(x, n=5, dim=1).abs()
    x.sum(-1, keepdim=True) / x.shape[1]
    x.var(2)
    x.std((0, 2), unbiased=False)
    x.amax(-1)
    x.argmax(-1)
    x.max(dim=2)
    x.all(1)
    mask.any(1)
    x.logsumexp(1)
    x.norm(dim=-1)
    x.prod(1)
    x.softmax(1)
    x.log_softmax(-1)
    x.cumsum(1)
    x.cumprod(1)
    x.cummax(1)
    x.logcumsumexp(1)
    x.diff(dim=2)
    x.sort(dim=1, stable=True)
    x.argsort(dim=2, descending=True)
    x.topk(2, dim=-1)
    x.topk(x.shape[1], dim=1).values
    x.flatten(1).sort(-1).values
    x.median(-1)
    x.flatten(1).kthvalue(1).values
    x.gather(2, index.view(-1, 1, 1).expand(-1, x.shape[1], 1))
    x.scatter(2, index.view(-1, 1, 1).expand(-1, x.shape[1], 1), 1.0)
    x.scatter_add(2, index.view(-1, 1, 1).expand(-1, x.shape[1], 1), x)
    torch.zeros(3, 4).index_add(0, index, x.sum(1))
    torch.zeros(3, x.shape[1], 4).index_put((index,), x, accumulate=True)
    x.index_select(2, index)
    x.masked_fill(mask.unsqueeze(-1), 0)
    x.masked_select(mask.unsqueeze(-1))
    x.masked_scatter(mask.unsqueeze(-1), x * 2)
    x.masked_scatter(x > 0, x * 2)
    x.masked_scatter(mask.unsqueeze(-1).expand_as(x), x.flatten(0, 1))
    x[mask]
    torch.where(mask.unsqueeze(-1), x, 0.0)
    mask.nonzero()
    mask.sum(1)
    mask.cumsum(1)
    torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0]))
    torch.nn.functional.one_hot(index, 3)
    torch.meshgrid(index, index, indexing="ij")
    torch.broadcast_tensors(x, x[:, :1])
    x + x[:1] * x[:, :1]
    x * torch.arange(x.shape[1]).view(1, -1, 1)
    x.to(torch.float64).clamp(min=0)
    x @ x.transpose(1, 2)
    torch.atan2(x, x[..., :1])
    x.remainder(2)
    x // 0.3
    torch.lgamma(x)
"""


def arguments(n: int, m: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(n * 10 + m)
    x = torch.randn(n, m, 4)
    return x, torch.randint(0, 3, (n,)), torch.rand(n, m) > 0.5


def function(expression: str) -> Any:
    scope: dict[str, Any] = {"torch": torch}
    exec(f"def f(x, index, mask):\n return {expression}", scope)
    return scope["f"]


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
@pytest.mark.parametrize("expression", [e.strip() for e in FUNCTIONS.splitlines() if e.strip()])
def test_other_sizes_match_eager(expression: str) -> None:
    f = function(expression)
    others = []
    for sizes in ((7, 6), (3, 1), (1, 3), (1, 1), (0, 3), (3, 0)):
        try:
            f(*arguments(*sizes))
        except (RuntimeError, IndexError):
            continue  # not for these sizes
        others.append(arguments(*sizes))
    check_call(
        f,
        arguments(3, 5),
        dynamic_shapes=({0: "n", 1: "m"}, {0: "n"}, {0: "n", 1: "m"}),
        others=others,
        rtol=1e-5,
        atol=1e-5,
    )


PIECES = {
    "chunk in 2": lambda x: x.chunk(2),
    "chunk in 3": lambda x: x.chunk(3),
    "split by 2": lambda x: x.split(2),
    "sections": lambda x: x.tensor_split(3),
    "points": lambda x: x.tensor_split([1, 4]),
    "points on end": lambda x: torch.vsplit(x, [1, 3]),
    "points across": lambda x: torch.hsplit(x, [1, 3]),
}


@pytest.mark.parametrize("name", PIECES)
def test_pieces_of_a_few_or_no_rows(name: str) -> None:
    """Fewer rows than pieces: some are empty."""
    check_call(
        lambda x: torch.cat([p * 2 for p in PIECES[name](x)], int("across" in name)),
        (torch.randn(6, 4),),
        dynamic_shapes=({0: "n"},),
        others=[(torch.randn(n, 4),) for n in (0, 1, 2, 3, 4, 5, 7, 8)],
    )


def test_sizes_that_do_not_divide_are_left_to_eager() -> None:
    check_call(
        lambda x: torch.stack(torch.vsplit(x, 2)),
        (torch.randn(6, 4),),
        dynamic_shapes=({0: "n"},),
        others=[(torch.randn(n, 4),) for n in (2, 4, 8)],
    )


def test_writes_to_sections_of_a_dynamic_dim() -> None:
    def write(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x.tensor_split(3)[1].zero_()
        torch.vsplit(x, [1, 3])[2].add_(1)
        return x

    check_call(
        write,
        (torch.randn(6, 4),),
        dynamic_shapes=({0: "n"},),
        others=[(torch.randn(n, 4),) for n in (3, 4, 5, 7)],
    )
