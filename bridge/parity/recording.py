"""Every tensor that eager code makes, operator by operator, in order.

A graph that somebody else's exporter made has names of its own, and operators that eager code has
as one: it is measured by the numbers that eager code makes on the way.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from bridge.feeds import is_torch, to_numpy
from bridge.parity.values import ValueStore
from exporters.tracing.pytree import flatten

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bridge.parity.sides import EagerSide

__all__ = ["record"]

_aten = torch.ops.aten
# Operators that exporters write as several: what lies between is recorded, too.
_COMPOUND = (
    _aten.gelu.default, _aten.silu.default, _aten.native_layer_norm.default, _aten.addmm.default,
    _aten.native_group_norm.default, _aten.hardswish.default, _aten.hardsigmoid.default,
    _aten.baddbmm.default, _aten.mish.default, _aten._softmax.default, _aten.leaky_relu.default,
    _aten.elu.default, _aten.glu.default, _aten._log_softmax.default,
)  # fmt: skip
_MOST = 2**33  # bytes that are recorded


def record(side: EagerSide, feed: Mapping[str, Any]) -> list[np.ndarray[Any, Any]]:
    """What eager code makes on some inputs, in the order in which it makes it.

    Args:
        side: The eager code.
        feed: The inputs by name.
    """
    recorder = _Recorder()
    with sdpa_kernel(SDPBackend.MATH), recorder:  # attention as products and a softmax
        side.run(feed)
    return list(recorder.store.values())


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.store = ValueStore()
        self.left = _MOST

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _COMPOUND:
            parts = torch._decomp.decomposition_table.get(func)
            # a part that fails is a part that nobody needs
            with contextlib.suppress(Exception), self:
                if parts is not None:
                    parts(*args, **kwargs)
        result = func(*args, **kwargs)
        for x in flatten(result, is_torch)[0]:
            self._keep(x)
        return result

    def _keep(self, x: Any) -> None:
        if not is_torch(x) or x.numel() < 2 or x.layout != torch.strided:
            return
        if x.is_complex():
            x = torch.view_as_real(x)
        if x.nbytes > self.left:
            return
        self.left -= x.nbytes
        array = np.array(to_numpy(x.detach()))  # later calls may write to it
        self.store.add(str(len(self.store)), array)
