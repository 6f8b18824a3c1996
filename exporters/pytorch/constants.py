"""Parameters, buffers and other tensors that the graph holds as initializers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from onnx_ir.tensor_adapters import TorchTensor

if TYPE_CHECKING:
    import onnx_ir as ir

    from exporters.tracing.trace import Trace

__all__ = ["Constants", "flat_bytes"]

_SMALL = 64  # elements; small unnamed constants of equal value are stored once


class Constants:
    """Turns constant tensors into initializers, without copying them.

    Parameters and buffers keep their ``state_dict`` names; tied ones are stored once. A constant
    that is written to after the graph has captured it is copied first, and every tensor that
    existed before the trace is given its values back by :meth:`restore`.

    Args:
        trace: The trace whose graph holds them.
        named: Parameters and buffers by ``state_dict`` name.
    """

    def __init__(self, trace: Trace, named: dict[str, torch.Tensor]) -> None:
        self._trace = trace
        self._names: dict[int, str] = {}
        for name, tensor in named.items():
            self._names.setdefault(id(tensor), name)
        self._named = {id(t): t for t in named.values()}
        self._values: dict[int, tuple[torch.Tensor, int, ir.Value]] = {}
        self._captured: dict[int, list[TorchTensor]] = {}
        self._saved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def name(self, tensor: torch.Tensor) -> str | None:
        """The ``state_dict`` name of a parameter or buffer."""
        return self._names.get(id(tensor))

    def value(self, tensor: torch.Tensor) -> ir.Value:
        """The initializer that holds ``tensor``; runs with torch functions untraced."""
        known = self._values.get(id(tensor))
        if known is not None and known[1] == tensor._version:
            return known[2]
        value = self._transposed(tensor) or self._capture(tensor)
        self._values[id(tensor)] = (tensor, tensor._version, value)
        return value

    def _capture(self, tensor: torch.Tensor) -> ir.Value:
        name = self.name(tensor)
        build = self._trace.builder
        detached = tensor.detach()
        if detached.layout is not torch.strided:
            detached = detached.to_dense()
        if detached.is_neg() or detached.is_conj():
            detached = detached.resolve_neg().resolve_conj()
        if detached.is_complex():
            detached = torch.view_as_real(detached)
        if name is None and detached.numel() <= _SMALL:
            return build.constant(TorchTensor(detached).numpy().copy())
        data = TorchTensor(detached)
        self._captured.setdefault(detached.untyped_storage()._cdata, []).append(data)
        return build.initializer(data, name or "constant")

    def _transposed(self, tensor: torch.Tensor) -> ir.Value | None:
        """``Transpose`` of a parameter, where ``tensor`` is just that view of it."""
        base = tensor._base
        if base is None or self.name(base) is None or tensor.dim() != 2 or base.dim() != 2:
            return None
        if tensor.shape != base.shape[::-1] or tensor.stride() != base.stride()[::-1]:
            return None
        x = self.value(base)
        build = self._trace.builder
        return build.once(
            ("transpose", x), lambda block: build.emit("Transpose", x, perm=[1, 0], block=block), x
        )

    def before_write(self, tensor: torch.Tensor) -> None:
        """Save what an eager write to ``tensor`` is about to destroy."""
        storage = tensor.untyped_storage()
        for data in self._captured.pop(storage._cdata, ()):
            data._raw = data.raw.clone()
        if storage._cdata not in self._saved:
            flat = flat_bytes(tensor)
            self._saved[storage._cdata] = (flat, flat.clone())

    def was_written(self, tensor: torch.Tensor) -> bool:
        """Whether eager code has written to ``tensor`` since the trace began."""
        return tensor.untyped_storage()._cdata in self._saved

    def kept(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor``, or a copy if :meth:`restore` is going to change it."""
        return tensor.clone() if tensor.untyped_storage()._cdata in self._saved else tensor

    def restore(self) -> None:
        """Give every tensor that was written to the values it had before the trace."""
        with torch.no_grad():
            for storage, (flat, before) in self._saved.items():
                for data in self._captured.pop(storage, ()):  # the graph keeps what was written
                    data._raw = data.raw.clone()
                flat.copy_(before)
        self._saved.clear()


def flat_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """All bytes of the storage of ``tensor``."""
    storage = tensor.untyped_storage()
    whole: Any = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return whole.set_(storage, 0, (storage.nbytes(),))
