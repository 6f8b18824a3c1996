"""ATen operators called by name, and the graphs that ``torch.export`` makes of torch's samples."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from tests.pytorch.opinfo import check_call, op_infos, samples

aten = torch.ops.aten
prims = torch.ops.prims

X, Y = torch.randn(3, 4), torch.randn(3, 4)
INDEX, M = torch.tensor([2, 0]), torch.rand(3, 4) > 0.5
CALLS: dict[str, Any] = {
    "add.Tensor": lambda x, y, i, m: aten.add.Tensor(x, y, alpha=2),
    "add.Scalar": lambda x, y, i, m: aten.add.Scalar(x, 2),
    "alias": lambda x, y, i, m: aten.alias(x),
    "arange.start_step": lambda x, y, i, m: aten.arange.start_step(0, 6, 2) + i[:1],
    "clone": lambda x, y, i, m: aten.clone.default(x, memory_format=torch.contiguous_format),
    "copy": lambda x, y, i, m: aten.copy(x, y[:1]),
    "detach": lambda x, y, i, m: aten.detach(x),
    "elu": lambda x, y, i, m: aten.elu(x, 0.5),
    "elu.scaled": lambda x, y, i, m: aten.elu(x, 0.5, 2.0, 3.0),
    "expand": lambda x, y, i, m: aten.expand(x[:, :1], [3, 4]),
    "full": lambda x, y, i, m: aten.full([3], 2.0) + x[:, 0],
    "index": lambda x, y, i, m: aten.index(x, [None, i]),
    "index_put": lambda x, y, i, m: aten.index_put(x, [i], y[:2], True),
    "lift_fresh": lambda x, y, i, m: aten.lift_fresh(x),
    "lift_fresh_copy": lambda x, y, i, m: aten.lift_fresh_copy(x),
    "log_softmax": lambda x, y, i, m: aten._log_softmax(x, 1, False),
    "mean.dim": lambda x, y, i, m: aten.mean.dim(x, [1], True),
    "new_empty": lambda x, y, i, m: aten.new_empty(x, [2]).fill_(1),
    "new_full": lambda x, y, i, m: aten.new_full(x, [2], 3.0),
    "new_ones": lambda x, y, i, m: aten.new_ones(x, [2]),
    "new_zeros": lambda x, y, i, m: aten.new_zeros(x, [2], dtype=torch.int64),
    "permute": lambda x, y, i, m: aten.permute(x, [1, 0]),
    "prelu": lambda x, y, i, m: aten._prelu_kernel(x, y[:1]),
    "repeat": lambda x, y, i, m: aten.repeat(x, [2, 1]),
    "reshape_alias": lambda x, y, i, m: aten._reshape_alias(x, [4, 3], [3, 1]),
    "select": lambda x, y, i, m: aten.select.int(x, 1, -1),
    "select_copy": lambda x, y, i, m: aten.select_copy(x, 1, -1),
    "slice": lambda x, y, i, m: aten.slice.Tensor(x, 1, 1, 9223372036854775807, 2),
    "slice_copy": lambda x, y, i, m: aten.slice_copy(x, 0, 1),
    "softmax": lambda x, y, i, m: aten._softmax(x, 1, False),
    "softmax.half_to_float": lambda x, y, i, m: aten._to_copy(x, dtype=torch.float16),
    "split": lambda x, y, i, m: aten.split(x, 2, 1),
    "split.sizes": lambda x, y, i, m: aten.split(x, [1, 3], 1),
    "split_copy": lambda x, y, i, m: aten.split_copy(x, 2, 1),
    "squeeze.dims": lambda x, y, i, m: aten.squeeze.dims(x.unsqueeze(0), [0]),
    "sum.dim_IntList": lambda x, y, i, m: aten.sum.dim_IntList(x, [0]),
    "sym_size": lambda x, y, i, m: x * aten.sym_size.int(x, 0),
    "to_copy": lambda x, y, i, m: aten._to_copy(x, dtype=torch.int32),
    "unique": lambda x, y, i, m: aten._unique(i, True, True),
    "unsafe_index": lambda x, y, i, m: aten._unsafe_index(x, [i]),
    "unsafe_index_put": lambda x, y, i, m: aten._unsafe_index_put(x, [i], y[:2]),
    "unsafe_split_with_sizes": lambda x, y, i, m: aten.unsafe_split_with_sizes(x, [1, 2], 0),
    "unsafe_view": lambda x, y, i, m: aten._unsafe_view(x, [2, 6]),
    "var.correction": lambda x, y, i, m: aten.var.correction(x, [1], correction=1),
    "view": lambda x, y, i, m: aten.view(x, [2, -1]),
    "where.self": lambda x, y, i, m: aten.where.self(m, x, y),
    "prims.broadcast_in_dim": lambda x, y, i, m: prims.broadcast_in_dim(x, [2, 3, 4], [1, 2]),
    "prims.convert_element_type": lambda x, y, i, m: prims.convert_element_type(x, torch.int64),
    "prims.copy_to": lambda x, y, i, m: prims.copy_to(x.clone(), y),
    "prims.div": lambda x, y, i, m: prims.div(i, i + 2),
    "prims.prod": lambda x, y, i, m: prims.prod(x, [1]),
    "prims.sum": lambda x, y, i, m: prims.sum(x, [0, 1]),
    "prims.var": lambda x, y, i, m: prims.var(x, [1], 1.0),
    "prims.iota": lambda x, y, i, m: prims.iota(
        3, start=1, step=2, dtype=torch.int64, device="cpu", requires_grad=False
    ) + i[:1],
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_operators_called_by_name_match_eager(name: str) -> None:
    check_call(CALLS[name], (X, Y, INDEX, M))


def test_in_place_overloads_write() -> None:
    def f(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        aten.add_.Tensor(x, y)
        aten.copy_(x[0], y[1])
        aten.relu_(x)
        return aten.mul.out(x, y, out=torch.empty(3, 4))

    check_call(f, (X, Y))


def test_checks_are_left_to_eager() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        aten._assert_tensor_metadata(x, None, None, torch.float32)
        aten._assert_async.msg(torch.tensor(True), "never")
        torch._check(x.shape[0] == 3)
        return x + 1

    check_call(f, (X,))


def test_random_operators_of_exported_graphs_keep_shapes() -> None:
    def f(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        noisy, _ = aten.rrelu_with_noise_functional(x, torch.zeros_like(x), 0.1, 0.3, False)
        kept, mask = aten.native_dropout(x, 0.0, True)
        return aten.normal_functional(x, 0.0, 0.0), noisy, kept, mask

    check_call(f, (X,))


# One operator of each kind that torch.export writes down in its own way.
EXPORTED = [
    "__getitem__",
    "arange",
    "argwhere",
    "bool",
    "cat",
    "chunk",
    "clamp",
    "combinations",
    "cumsum",
    "diagonal",
    "diff",
    "dist",
    "div.floor_rounding",
    "expand",
    "flip",
    "frac",
    "gather",
    "index_put",
    "index_select",
    "isclose",
    "lerp",
    "linspace",
    "logsumexp",
    "masked.mean",
    "max.reduction_with_dim",
    "narrow",
    "new_zeros",
    "nonzero",
    "nn.functional.gelu",
    "nn.functional.one_hot",
    "repeat_interleave",
    "roll",
    "scatter_reduce.sum",
    "select_scatter",
    "softmax",
    "sort",
    "split",
    "squeeze",
    "std_mean",
    "stack",
    "sum",
    "to",
    "topk",
    "tril",
    "unbind",
    "unfold",
    "unique",
    "var",
    "where",
]


class _Call(torch.nn.Module):
    def __init__(self, function: Any, rebuild: Any) -> None:
        super().__init__()
        self.function, self.rebuild = function, rebuild

    def forward(self, *tensors: torch.Tensor) -> Any:
        input, args, kwargs = self.rebuild(list(tensors))
        return self.function(input, *args, **kwargs)


def _without_tensors(x: Any, found: list[torch.Tensor]) -> Any:
    """What makes ``x`` anew from a list of tensors."""
    if isinstance(x, torch.Tensor):
        found.append(x)
        return lambda given: given.pop(0)
    if isinstance(x, list | tuple):
        parts = [_without_tensors(i, found) for i in x]
        return lambda given: type(x)(p(given) for p in parts)
    if isinstance(x, dict):
        named = {k: _without_tensors(v, found) for k, v in x.items()}
        return lambda given: {k: v(given) for k, v in named.items()}
    return lambda given: x


@pytest.mark.parametrize("decomposed", [False, True], ids=["whole", "decomposed"])
@pytest.mark.parametrize("name", EXPORTED)
def test_exported_programs_match_eager(name: str, decomposed: bool) -> None:
    info = op_infos()[name]
    dtype = torch.float32 if torch.float32 in info.supported_dtypes("cpu") else torch.int64
    ran = 0
    for number, sample in enumerate(samples(name, dtype)):
        if number == 3:
            break
        tensors: list[torch.Tensor] = []
        rebuild = _without_tensors((sample.input, sample.args, sample.kwargs), tensors)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                program = torch.export.export(_Call(info, rebuild), tuple(tensors), strict=False)
                program = program.run_decompositions() if decomposed else program
                module = program.module()
            except (RuntimeError, torch._dynamo.exc.UserError):
                continue  # torch.export refuses sizes that are data
        ran += 1
        check_call(lambda *given, module=module: module(*given), tuple(tensors))
    assert ran
