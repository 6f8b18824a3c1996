"""Stand-ins for what torch's own modules ask of values and could do without.

Torch's transformer layers look into a mask to see whether it happens to be causal, and its
recurrent layers check an initial state against a packed batch. In eager code that is cheap; in a
trace each is a question about data that no graph needs answered. Torch's fused path of transformer
layers gives way too: it writes zeros over padding, which the layers themselves do not.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.nn.modules import rnn, transformer

from exporters.pytorch.control_flow import staged_control_flow
from exporters.pytorch.optionals import call_either_way, may_be_none
from exporters.pytorch.torchscript import unscripted
from exporters.pytorch.transforms import staged_transforms
from exporters.tracing.scalars import TracedScalar
from exporters.tracing.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["substituted"]


def _depends_on_data(x: Any) -> bool:
    """Whether a tensor is traced, and its values are the inputs'."""
    trace = Trace.current()
    record = None if trace is None or x is None else trace.record(x)
    return record is not None and record.data


_detect_is_causal_mask = transformer._detect_is_causal_mask


def detect_is_causal_mask(
    mask: torch.Tensor | None, is_causal: Any = None, size: int | None = None
) -> bool:
    """As torch's, but a mask of unknown values is taken for what it is: a mask."""
    if is_causal is None and _depends_on_data(mask):
        return False
    return _detect_is_causal_mask(mask, is_causal, size)


def _checks(cls: type[rnn.RNNBase]) -> Any:
    original: Any = cls.check_forward_args

    def check_forward_args(self: Any, input: Any, hidden: Any, batch_sizes: Any) -> None:
        if not _depends_on_data(batch_sizes):
            original(self, input, hidden, batch_sizes)

    return check_forward_args


_scaled_dot_product_attention = F.scaled_dot_product_attention


def scaled_dot_product_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: Any = None,
    dropout_p: float = 0.0, is_causal: Any = False, **options: Any,
) -> torch.Tensor:  # fmt: skip
    """As torch's, whose parser takes no traced truth value for a flag: it becomes a mask."""
    if isinstance(is_causal, TracedScalar):
        if may_be_none(attn_mask):
            trace = Trace.current()
            assert trace is not None
            args = (query, key, value, attn_mask, dropout_p, is_causal)
            return call_either_way(trace, scaled_dot_product_attention, args, options, attn_mask)
        everything = torch.ones(
            query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device
        )
        allowed = everything.tril() | ~torch.tensor(is_causal, device=query.device)
        if attn_mask is None:
            attn_mask = allowed
        elif attn_mask.dtype == torch.bool:
            attn_mask = attn_mask & allowed
        else:
            attn_mask = attn_mask.masked_fill(~allowed, -torch.inf)
        is_causal = False
    return _scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, **options
    )


_range = torch.range


def range_to(start: Any, end: Any = None, step: Any = 1, **options: Any) -> torch.Tensor:
    """``torch.range``, which shows itself to no mode, by way of ``torch.arange``, which does."""
    if end is None:
        start, end = 0, start
    if not any(isinstance(x, TracedScalar) for x in (start, end, step)):
        return _range(start, end, step, **options)
    options["dtype"] = options.get("dtype") or torch.get_default_dtype()
    whole = torch.arange((end - start) // step + 1, dtype=torch.float64)
    return (whole * step + start).to(**options)


_check_with: Any = torch._check_with


def check_with(error_type: Any, cond: Any, message: Any) -> None:
    """As torch's, which takes no traced truth value: it is asked in every world.

    Checks of values are for eager; a graph has no exceptions.
    """
    if isinstance(cond, TracedScalar):
        cond = cond.record.data or bool(cond)
    _check_with(error_type, cond, message)


_T: Any = torch.Tensor
_as_subclass, _new_parameter = _T.as_subclass, torch.nn.Parameter.__new__


def _of_class(tensor: Any, make: Callable[[torch.Tensor], Any]) -> Any:
    """What shows itself to no mode: a traced tensor as one of another class, on the same memory."""
    trace = Trace.current()
    record = None if trace is None or not trace.live else trace.record(tensor)
    if trace is None or record is None:
        return make(tensor)
    shared = tensor.detach()
    record = trace.record(shared)
    assert record is not None
    record.worlds.update({w: make(t) for w, t in record.worlds.items()})
    made = make(shared)
    trace.attach(made, record)
    return made


def as_subclass(self: torch.Tensor, cls: Any) -> Any:
    """As torch's, and traced: torchvision's and users' own classes wrap with it."""
    return _of_class(self, lambda x: _as_subclass(x, cls))


def new_parameter(cls: Any, data: Any = None, requires_grad: Any = True) -> Any:
    """As torch's, and traced."""
    return _of_class(data, lambda x: _new_parameter(cls, x, requires_grad))


_SUBSTITUTES: tuple[tuple[Any, str, Any], ...] = (
    (F, "scaled_dot_product_attention", scaled_dot_product_attention),
    (torch, "range", range_to),
    (_T, "as_subclass", as_subclass),
    (torch.nn.Parameter, "__new__", staticmethod(new_parameter)),
    (torch, "_check_with", check_with),
    (transformer, "_detect_is_causal_mask", detect_is_causal_mask),
    (rnn.RNNBase, "check_forward_args", _checks(rnn.RNNBase)),
    (rnn.LSTM, "check_forward_args", _checks(rnn.LSTM)),
)


def _decoding(cls: Any) -> Any:
    original = cls.decode

    def decode(self: Any, rel_codes: torch.Tensor, boxes: Any) -> torch.Tensor:
        """As torchvision's, but no boxes have three dims like any number of boxes, not two."""
        trace = Trace.current()
        if trace is None or not trace.live:
            return original(self, rel_codes, boxes)
        decoded = self.decode_single(rel_codes.flatten(1), torch.cat(list(boxes)))
        return decoded.reshape(-1, decoded.shape[1] // 4, 4)

    return decode


def _of_torchvision() -> list[tuple[Any, str, Any]]:
    """Stand-ins for parts of torchvision, if it is in use."""
    utils = sys.modules.get("torchvision.models.detection._utils")
    return [] if utils is None else [(utils.BoxCoder, "decode", _decoding(utils.BoxCoder))]


def _guarding(module: Any) -> Any:
    original = module._guard_or

    def guard_or(a: Any, default: bool) -> Any:  # noqa: FBT001 - as torch calls it
        """As torch's, which takes no traced truth value: whoever branches on it asks."""
        return a if isinstance(a, TracedScalar) else original(a, default)

    return guard_or


def _of_symbolic_shapes() -> list[tuple[Any, str, Any]]:
    """Stand-ins for what code written for symbolic sizes asks of them, if torch has loaded that."""
    module = sys.modules.get("torch.fx.experimental.symbolic_shapes")
    if module is None or not hasattr(module, "_guard_or"):
        return []
    return [(module, "_guard_or", _guarding(module))]


@contextlib.contextmanager
def substituted() -> Iterator[None]:
    """Put the stand-ins in place; outside of a trace they do what torch's do."""
    stand_ins = [*_SUBSTITUTES, *_of_torchvision(), *_of_symbolic_shapes()]
    before = [(owner, name, vars(owner).get(name)) for owner, name, _ in stand_ins]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for owner, name, stand_in in stand_ins:
        setattr(owner, name, stand_in)
    try:
        with staged_control_flow(), staged_transforms(), unscripted():
            yield
    finally:
        for owner, name, original in before:
            if original is not None:
                setattr(owner, name, original)
            elif name in vars(owner):  # inherited from a class that cannot be written to
                delattr(owner, name)
        torch.backends.mha.set_fastpath_enabled(fused)
