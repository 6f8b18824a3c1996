"""``x[...]`` and ``x[...] = y`` in all forms, writes through views; static and dynamic sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from exporters.errors import UntraceableError
from tests.pytorch.opinfo import check_call

if TYPE_CHECKING:
    from collections.abc import Callable


def inputs(a: int = 5, b: int = 6) -> tuple[torch.Tensor, ...]:
    """A tensor, two arrays of positions, and masks over its dims."""
    torch.manual_seed(a)
    x = torch.randn(a, b, 7)
    i, j = torch.tensor([0, 2, -1]), torch.tensor([1, -2, 3])
    masks = (torch.rand(*x.shape[:n]) > 0.5 for n in (1, 2, 3))
    return x, i, j, *masks, torch.rand(b) > 0.5


# What is dynamic: nothing, the first dim, the first two.
SHAPES = {
    "static": (None, []),
    "first": (
        ({0: "a"}, None, None, {0: "a"}, {0: "a"}, {0: "a"}, None),
        [(3, 6), (11, 6), (1, 6), (0, 6)],
    ),
    "both": (
        ({0: "a", 1: "b"}, None, None, {0: "a"}, {0: "a", 1: "b"}, {0: "a", 1: "b"}, {0: "b"}),
        [(3, 5), (11, 8), (1, 8), (3, 1), (0, 5)],
    ),
}
READS: tuple[Any, ...] = (
    lambda x, *_: x[0],
    lambda x, *_: x[-1],
    lambda x, *_: x[:, -1],
    lambda x, *_: x[1, 2],
    lambda x, *_: x[..., 1:3],
    lambda x, *_: x[1:-1, ::2, None],
    lambda x, *_: x[None, ..., 0],
    lambda x, *_: x[:, 1, 2:5],
    lambda x, *_: x[-2:],
    lambda x, *_: x[2:1],
    lambda x, *_: x[True],
    lambda x, *_: x[[0, 1]],
    lambda x, *_: x[[0, 1], [1, 2]],
    lambda x, *_: x[:, : x.shape[1]],
    lambda x, *_: x[:, x.shape[1] // 2 :],
    lambda x, *_: x[torch.arange(x.shape[0]), -1],
    lambda x, i, *_: x[i],
    lambda x, i, *_: x[:, i],
    lambda x, i, *_: x[i[0]],
    lambda x, i, *_: x[i[1] :],
    lambda x, i, *_: x[:, : i[1]],
    lambda x, i, *_: x[0, i],
    lambda x, i, *_: x[i, 0],
    lambda x, i, *_: x[0, :, i],
    lambda x, i, j, *_: x[i, j],
    lambda x, i, j, *_: x[:, i, j],
    lambda x, i, j, *_: x[i, :, j],
    lambda x, i, j, *_: x[i, None, j],
    lambda x, i, j, *_: x[i[:, None], j],
    lambda x, i, j, *_: x[:, i[:, None], j],
    lambda x, i, j, *_: x[i[None], j[:, None]],
    lambda x, i, j, m, *_: x[m],
    lambda x, i, j, m, *_: x[m, 1],
    lambda x, i, j, m, *_: x[m, :, 2],
    lambda x, i, j, m, mm, *_: x[mm],
    lambda x, i, j, m, mm, *_: x[torch.arange(x.shape[0]), mm.sum(-1) - 1],
    lambda x, i, j, m, mm, *_: x[mm, torch.tensor(1)],
    lambda x, i, j, m, mm, mmm, n: x[mmm],
    lambda x, i, j, m, mm, mmm, n: x[:, n],
    lambda x, i, j, m, mm, mmm, n: x[0][n],
)
WRITES = """
    x[0] = 1.0
    x[:] = 2.0
    x[()] = 2.0
    x[...] = x[..., :1]
    x[:, -1] = x[:, 0]
    x[..., 1:3] = 0
    x[1:-1] = x[0].clone()
    x[1:3, 2, 1:5] = 3.0
    x[:, 1, 2:5] = x[0, 0, 0:3].clone()
    x[:, 1] = x[:, 2]
    x[0, 1] = x[1, 1]
    x[0, 1, 2] = 5
    x[::2] = 0
    x[:, ::2] = x[:, 1::2].clone()[:, :1]
    x[i] = 1.0
    x[i] = x[:3].clone()
    x[:, i] = 0
    x[:, i] = x[:, :3].clone()
    x[i, j] = x[0, :3].clone() * 0
    x[i, j] = x[:3, 0].clone()
    x[:, i, j] = 1.0
    x[i, :, j] = x[:3, :, 0].clone()
    x[m] = 0
    x[m] = x[0].clone()
    x[m2] = x[0, 0].clone()
    x[m2] = 0
    x[m3] = -1.0
    x[m2] = x[m2] * 2
    x[m3] = x[m3] + 1
    x[:, n] = 0.0
    x[:, n] = x[:, :1].clone()
    x[m, 1] = 7.0
    x[m] = x[m] * 2
    x[m, :, 2] = 0
    x[0][n] = 9.0
    x[0, n] = 0
    x[None] = x[None] * 2
    x[..., None, 0] = 0.0
    x[i[0]] = x[1].clone()
    x[i[1]:] = 0
    x[:, i[1]:] = 1.0
    x[:, :i[1]] = 1.0
    x[:, i[1]] = 0
    x[:, x.shape[1] // 2:] = 0
    x[:, :x.shape[1] // 2] = x[:, x.shape[1] // 2:x.shape[1] // 2 * 2].clone()
    x[:, x.shape[1] - 1] = 0
    x[torch.arange(x.shape[0]), -1] = 0
    x[2:1] = 5.0
    x[:, -2:] = x[:, :2].clone()
    x[-3:-1] = 1
    x[i] += 1
    x[m] += 1
    x[..., 0] += x[..., 1]
    x[:, :, 0:1] += x[:, :, 1:2]
    x[i, j] += 2
    x[:, 0:2][:, 1] = 8.0
    x[:, 1:4][:, ::2] = 0
    x[0].add_(1)
    x[:, 1:3].mul_(2)
    x.view(-1)[3:7] = 0
    x.T[0] = 1
    x.transpose(0, 1)[2] = 1.0
    x.permute(2, 0, 1)[1:3].add_(1)
    x.movedim(0, -1)[1] = 2
    x.select(1, 2).zero_()
    x.narrow(1, 1, 3).fill_(2)
    x.chunk(2, 1)[1].add_(1)
    x.chunk(2, 1)[0].add_(1)
    x.diagonal(0, 1, 2).zero_()
    x.unfold(1, 2, 2)[:, 0].zero_()
    x.unsqueeze(0)[0, 1].zero_()
    x.flatten(1)[:, 2:4] = 0
    x.expand(-1, -1, 7)[0] = 1.0
    x.as_strided((3,), (5,), 2).zero_()
    x.detach()[0] = 3
    x.swapaxes(0, 2)[1] = 4
    x[..., 0].unsqueeze(-1).mul_(3)
    x.squeeze()[0].copy_(x[1])
    x.clamp_(min=0)
    x.masked_fill_(m2.unsqueeze(-1), 3)
    x.index_fill_(1, i, 2.0)
    x.index_add_(1, i.abs(), x[:, :3].clone())
    x.index_copy_(0, i.abs(), x[:3].clone())
    x.scatter_(1, i.view(1, 3, 1).remainder(x.shape[1]).expand(2, 3, 7), 1.5)
"""
STATIC_WRITES = """
    x.split(2, 1)[1].zero_()
    x.split([1, 2, 3], 1)[1].mul_(2)
    x.unbind(1)[3].mul_(3)
    x.tensor_split(3, 1)[1].zero_()
    x.tensor_split((1, 4), 1)[2].zero_()
    x.unflatten(1, (2, 3))[:, 0, 1] = 0
    x.view(5, 3, 2, 7)[:, 1, 0] = 4.0
    x.reshape(5, 42)[:, 3] = 1
    torch.hsplit(x, 2)[1].add_(1)
"""


def writer(statement: str) -> Callable[..., torch.Tensor]:
    """A function that makes a copy, executes the statement on it and returns it."""
    scope: dict[str, Any] = {"torch": torch}
    exec(f"def write(x, i, j, m, m2, m3, n):\n x = x.clone()\n {statement}\n return x", scope)
    return scope["write"]


def statements(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def check(function: Any, sizes: str) -> None:
    dynamic, unseen = SHAPES[sizes]
    others = [inputs(*size) for size in unseen]
    accepted = [other for other in others if accepts(function, other)]
    check_call(function, inputs(), dynamic_shapes=dynamic, others=accepted)


def accepts(function: Any, arguments: tuple[torch.Tensor, ...]) -> bool:
    try:
        function(*arguments)
    except (RuntimeError, IndexError):
        return False
    return True


@pytest.mark.parametrize("sizes", SHAPES)
@pytest.mark.parametrize("read", READS, ids=lambda f: f"L{f.__code__.co_firstlineno}")
def test_reads_match_eager(read: Any, sizes: str) -> None:
    def function(x: Any, i: Any, j: Any, m: Any, m2: Any, m3: Any, n: Any) -> Any:
        return read(x, i, j, m, m2, m3, n)

    check(function, sizes)


@pytest.mark.parametrize("sizes", SHAPES)
@pytest.mark.filterwarnings("ignore:The use of `x.T`:UserWarning")
@pytest.mark.parametrize("statement", statements(WRITES))
def test_writes_match_eager(statement: str, sizes: str) -> None:
    check(writer(statement), sizes)


@pytest.mark.parametrize("statement", statements(STATIC_WRITES))
def test_writes_to_pieces_of_static_size_match_eager(statement: str) -> None:
    check(writer(statement), "static")


@pytest.mark.parametrize("opset", [17, 18, 20, 24])
@pytest.mark.parametrize("statement", statements(WRITES)[::4])
def test_writes_match_eager_in_other_opsets(statement: str, opset: int) -> None:
    check_call(writer(statement), inputs(), opset=opset)


def test_a_view_sees_writes_to_its_base_and_siblings() -> None:
    def f(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = x.clone()
        left, right = x.chunk(2, dim=1)
        flat = x.view(-1)
        left.add_(1)
        flat[0] = 7
        right.copy_(left * 2)
        return x, left, right, flat

    check_call(f, (torch.randn(3, 4),))


def test_writes_of_empty_parts_change_nothing() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[3:3] = 1
        x[:, 5:] = 2
        x[torch.zeros(3, dtype=torch.bool)] = 3
        x[torch.zeros(0, dtype=torch.long)] = 4
        return x

    check_call(f, (torch.randn(3, 4),))


def test_dtypes_of_assigned_values_give_way() -> None:
    def f(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[0] = 2.7
        x[1] = y[0]
        x[:, 1] = True
        x[2, :2] = y[1, :2].double()
        return x

    check_call(f, (torch.zeros(3, 4, dtype=torch.int32), torch.full((3, 4), 3.6)))


def test_bool_tensors_are_indexed_and_assigned() -> None:
    def f(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[i] = True
        x[x.sum(-1) > 1] = False
        x[:, 0] |= x[:, 1]
        return x

    check_call(f, (torch.rand(4, 3) > 0.5, torch.tensor([1])))


@pytest.mark.parametrize(
    "taken", [lambda x: x.split(2), lambda x: x.unbind(0)], ids=["split", "unbind"]
)
def test_writes_to_pieces_of_run_time_number_are_refused(taken: Any) -> None:
    def write(x: torch.Tensor) -> torch.Tensor:
        x = x * 1
        taken(x)[1].add_(1)
        return x

    with pytest.raises(UntraceableError, match="run-time number of pieces"):
        check_call(write, (torch.randn(4, 3),), dynamic_shapes=({0: "n"},))
