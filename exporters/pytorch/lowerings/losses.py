"""Losses that torch computes below Python."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

from exporters.pytorch.lowerings.dims import static_size
from exporters.pytorch.lowerings.reductions import reduce
from exporters.pytorch.lowerings.scanning import scan
from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.registry import decomposes, lowers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.tracing.graph import GraphBuilder as Op

T = torch.Tensor


def _reduced(losses: T, reduction: Any) -> T:
    """Torch's 0, 1 and 2, or their names."""
    if reduction in (1, "mean"):
        return losses.mean()
    return losses.sum() if reduction in (2, "sum") else losses


@decomposes(torch._C._nn.mse_loss)
def mse_loss(input: torch.Tensor, target: torch.Tensor, reduction: int = 1) -> T:
    return _reduced((input - target).square(), reduction)


@decomposes(torch.hinge_embedding_loss)
def hinge_embedding_loss(
    input: torch.Tensor, target: torch.Tensor, margin: float = 1.0, reduction: int = 1
) -> T:
    zero = torch.zeros_like(input)
    apart = torch.where(target == 1, zero, (margin - input).clamp(min=0))
    return _reduced(apart + torch.where(target == -1, zero, input), reduction)


@decomposes(torch.margin_ranking_loss)
def margin_ranking_loss(
    input1: torch.Tensor, input2: torch.Tensor, target: torch.Tensor, margin: float = 0.0,
    reduction: int = 1,
) -> T:  # fmt: skip
    losses = -target * (input1 - input2) + margin * 1.0  # integers become floats
    return _reduced(losses.clamp(min=0), reduction)


@decomposes(torch._C._nn.multilabel_margin_loss)
def multilabel_margin_loss(input: torch.Tensor, target: torch.Tensor, reduction: int = 1) -> T:
    """The targets of a sample end at the first -1; class 0 may stand among them."""
    x, labels = (v if v.dim() > 1 else v.reshape(1, -1) for v in (input, target))
    classes = x.shape[1]
    valid = (labels == -1).to(torch.int64).cumsum(1) == 0
    places = labels.clamp(min=0)
    hit = (places[:, :, None] == torch.arange(classes)) & valid[:, :, None]
    is_target = hit.any(1)
    margins = (1 - x.gather(1, places)[:, :, None] + x[:, None, :]).clamp(min=0)
    counted = valid[:, :, None] & ~is_target[:, None, :]
    losses = (margins * counted.to(x.dtype)).sum((1, 2)) / classes
    return _reduced(losses if target.dim() > 1 else losses[0], reduction)


@decomposes(torch._C._nn.multi_margin_loss)
def multi_margin_loss(
    input: torch.Tensor, target: torch.Tensor, p: float = 1, margin: float = 1.0,
    weight: torch.Tensor | None = None, reduction: int = 1,
) -> T:  # fmt: skip
    x = input.reshape(-1, input.shape[-1] if input.dim() else 1)
    label = target.reshape(-1, 1)
    classes = x.shape[1]
    margins = (margin - x.gather(1, label) + x).clamp(min=0)
    margins = margins if p == 1 else margins * margins
    margins = margins if weight is None else margins * weight[label]
    counted = torch.arange(classes) != label
    losses = (margins * counted.to(x.dtype)).sum(1) / classes
    return _reduced(losses if target.dim() else losses[0], reduction)


@decomposes(F.gaussian_nll_loss)
def gaussian_nll_loss(
    input: torch.Tensor, target: torch.Tensor, var: Any, full: bool = False, eps: float = 1e-6,
    reduction: str = "mean",
) -> T:  # fmt: skip
    """Without eager's look at the sign of each variance."""
    if not isinstance(var, torch.Tensor):
        var = torch.full_like(input, var)
    elif var.dim() == input.dim() - 1:
        var = var.unsqueeze(-1)
    var = var.clamp(min=eps)
    losses = 0.5 * (var.log() + (input - target).square() / var)
    return _reduced(losses + 0.5 * math.log(2 * math.pi) if full else losses, reduction)


# Losses of classes, which are the only dim or the second one


def _over_classes(weight: T, dims: int) -> T:
    """One weight for each class, to multiply what has ``dims`` dims with."""
    return weight if dims == 1 else weight.reshape(-1, *[1] * (dims - 2))


@decomposes(torch._C._nn.nll_loss_nd)
def nll_loss_nd(
    input: torch.Tensor, target: torch.Tensor, weight: Any = None, reduction: int = 1,
    ignore_index: int = -100,
) -> T:  # fmt: skip
    dim = min(input.dim() - 1, 1)
    counted = target != ignore_index
    known = torch.where(counted, target, 0)
    losses = -input.gather(dim, known.unsqueeze(dim)).squeeze(dim)
    shares = counted.to(input.dtype)
    if weight is not None:
        shares = torch.where(counted, weight[known], 0.0)
        losses = losses * weight[known]
    losses = torch.where(counted, losses, 0.0)
    if reduction == 1:
        return losses.sum() / shares.sum()
    return _reduced(losses, reduction)


def _of_shares(x: T, target: T, weight: T | None, reduction: int) -> T:
    """Cross entropy where the target is a share for each class, from log probabilities."""
    dims = x.dim()
    losses = x * target
    if weight is not None:
        losses = losses * _over_classes(weight, dims)
    if reduction != 1:
        return -losses.sum() if reduction == 2 else -losses.sum(min(dims - 1, 1))
    count: Any = 1
    for axis in range(dims):
        count = count if axis == min(dims - 1, 1) else count * x.shape[axis]
    return -losses.sum() / count


@decomposes(torch._C._nn.cross_entropy_loss)
def cross_entropy_loss(
    input: torch.Tensor, target: torch.Tensor, weight: Any = None, reduction: int = 1,
    ignore_index: int = -100, label_smoothing: float = 0.0,
) -> T:  # fmt: skip
    dim = min(input.dim() - 1, 1)
    classes = input.shape[dim]
    x = torch.log_softmax(input, dim)
    if target.is_floating_point():
        if label_smoothing > 0:
            spread = torch.tensor(label_smoothing, dtype=x.dtype) / classes
            target = target * (1 - label_smoothing) + spread
        return _of_shares(x, target, weight, reduction)
    y = nll_loss_nd(x, target, weight, reduction, ignore_index)
    if label_smoothing <= 0:
        return y
    counted = target != ignore_index
    shares = counted.to(x.dtype)
    if weight is not None:
        shares = torch.where(counted, weight[torch.where(counted, target, 0)], 0.0)
        x = x * _over_classes(weight, x.dim())
    smooth = torch.where(counted, -x.sum(dim), 0.0)
    smooth = smooth.sum() / shares.sum() if reduction == 1 else _reduced(smooth, reduction)
    return y * (1 - label_smoothing) + smooth * label_smoothing / classes


def _is_chunked(*_: object, options: object = None, **__: object) -> bool:
    return options is not None


if hasattr(F, "linear_cross_entropy"):  # torch 2.13

    @decomposes(F.linear_cross_entropy, when=_is_chunked)
    def linear_cross_entropy(
        input: torch.Tensor, linear_weight: torch.Tensor, target: torch.Tensor, *,
        options: Any = None, **rest: Any,
    ) -> T:  # fmt: skip
        """Chunks save memory for the gradient; the loss is the same."""
        loss: T = F.linear_cross_entropy(input, linear_weight, target, **rest)
        return loss


# Connectionist temporal classification


@decomposes(torch.ctc_loss)
def ctc_loss(
    log_probs: torch.Tensor, targets: torch.Tensor, input_lengths: Any, target_lengths: Any,
    blank: int = 0, reduction: int = 1, zero_infinity: bool = False,
) -> T:  # fmt: skip
    batched = log_probs.dim() == 3
    x = log_probs if batched else log_probs.unsqueeze(1)
    labels = targets if batched or targets.dim() > 1 else targets.unsqueeze(0)
    lengths, counts = (
        n if isinstance(n, torch.Tensor) else torch.tensor(n)
        for n in (input_lengths, target_lengths)
    )
    losses: T = torch.ops.aten._ctc_loss.Tensor(
        x, labels, lengths.reshape(-1), counts.reshape(-1), blank, zero_infinity
    )[0]
    if zero_infinity:
        losses = torch.where(losses == math.inf, torch.zeros_like(losses), losses)
    if reduction == 1:
        return (losses / counts.clamp(min=1).to(losses.dtype)).mean()
    return losses.sum() if reduction == 2 or not batched else losses


@lowers(torch.ops.aten._ctc_loss)
def _ctc_loss(
    op: Op, /, log_probs: ir.Value, targets: ir.Value, input_lengths: Any, target_lengths: Any,
    blank: int = 0, zero_infinity: object = False,
) -> tuple[ir.Value, ir.Value]:  # fmt: skip
    """Lower to a ``Scan-11`` of the forward recursion over labels with blanks between them."""
    lengths = op.cast(op.operand(input_lengths), ir.DataType.INT64)
    counts = op.cast(op.operand(target_lengths), ir.DataType.INT64)
    labels = op.cast(_padded_labels(op, targets, counts, blank), ir.DataType.INT64)
    extended, skips = _with_blanks(op, labels, blank)
    steps = op.dim(log_probs, 0)
    spread = op.Expand(op.Unsqueeze(extended, [0]), op.concat_dims([steps, 1, 1]))
    scores = op.GatherElements(log_probs, spread, axis=2)  # [T, N, 2 S + 1]
    last = op.Squeeze(steps, [0]) if isinstance(steps, ir.Value) else steps
    time = op.Unsqueeze(op.Range(0, last, 1), [1, 2])
    running = op.Less(time, op.Unsqueeze(lengths, [1]))  # [T, N, 1]
    lowest = np.asarray(-math.inf, log_probs.dtype.numpy())

    def step(states: list[ir.Value], items: list[ir.Value]) -> tuple[list[ir.Value], ir.Value]:
        (alpha,) = states
        stay, next_, jump = alpha, _shifted(op, alpha, 1), _shifted(op, alpha, 2)
        jump = op.Where(skips, jump, lowest)
        new = op.Add(_log_sum(op, [stay, next_, jump]), items[0])
        kept = op.Where(items[1], new, alpha)
        return [kept], op.Identity(kept)

    first = op.Equal(op.Range(0, op.Squeeze(op.dim_vector(extended, 1), [0]), 1), 0)
    begin = op.Where(first, np.zeros([], log_probs.dtype.numpy()), lowest)
    begin = op.Expand(begin, op.concat_dims([op.dim_vector(extended, 0), 1]))
    begin.shape = ir.Shape([None, None])
    scores.shape = running.shape = ir.Shape([None, None, None])
    alphas, (final,) = scan(op, step, [begin], [scores, running])
    end = op.Unsqueeze(op.Mul(counts, 2), [1])
    before = op.GatherElements(final, op.Max(op.Sub(end, 1), np.asarray(0)), axis=1)
    before = op.Where(op.Greater(end, 0), before, lowest)  # no labels: only the first blank
    total = _log_sum(op, [op.GatherElements(final, end, axis=1), before])
    return op.Neg(op.Squeeze(total, [1])), op.Transpose(alphas, perm=[1, 0, 2])


def _padded_labels(op: Op, targets: ir.Value, counts: ir.Value, blank: int) -> ir.Value:
    """Labels [N, S]: as they are, or cut out of one row of all labels."""
    if rank(targets) == 2:
        return targets
    ends = op.CumSum(counts, np.asarray(0))
    starts = op.Sub(ends, counts)
    places = op.Range(0, reduce(op, "ReduceMax", counts, None, False), 1)
    index = op.Add(op.Unsqueeze(starts, [1]), places)
    inside = op.Less(index, op.Unsqueeze(ends, [1]))
    index = op.Min(index, op.Sub(op.Size(targets), 1))
    return op.Where(inside, op.Gather(targets, index, axis=0), blank)


def _with_blanks(op: Op, labels: ir.Value, blank: int) -> tuple[ir.Value, ir.Value]:
    """Labels with blanks around each, [N, 2 S + 1], and where one may skip the blank before it."""
    pairs = op.Unsqueeze(labels, [2])
    blanks = op.Expand(np.asarray(blank), op.Shape(pairs))
    batch = op.dim_vector(labels, 0)
    edge = op.Expand(np.asarray(blank), op.concat_dims([batch, 1]))
    size = static_size(labels, 1)
    width: Any = op.Mul(op.dim_vector(labels, 1), 2) if size is None else 2 * size
    flat = op.Reshape(op.Concat(blanks, pairs, axis=2), op.concat_dims([batch, width]))
    extended = op.Concat(flat, edge, axis=1)
    extended.shape = ir.Shape([None, None])
    earlier = op.Pad(extended, np.asarray([0, 2, 0, -2]), np.asarray(blank))
    differs = op.Not(op.Equal(extended, earlier))
    return extended, op.And(differs, op.Not(op.Equal(extended, blank)))


def _shifted(op: Op, x: ir.Value, by: int) -> ir.Value:
    return op.Pad(x, np.asarray([0, by, 0, -by]), np.asarray(-math.inf, x.dtype.numpy()))


def _log_sum(op: Op, terms: Sequence[ir.Value]) -> ir.Value:
    """``log(sum(exp(terms)))``, -inf where all are."""
    best = op.Max(*terms)
    lowest = np.asarray(-math.inf, best.dtype.numpy())
    base = op.Where(op.Equal(best, lowest), np.zeros([], best.dtype.numpy()), best)
    total = op.Sum(*(op.Exp(op.Sub(x, base)) for x in terms))
    return op.Add(op.Log(total), base)
