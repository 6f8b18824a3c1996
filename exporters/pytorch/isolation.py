"""Export leaves a model as it found it: attributes, caches, random state, torch's flags."""

from __future__ import annotations

import contextlib
import random
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from exporters.pytorch.substitutes import substituted
from exporters.tracing.effects import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["exporting", "is_opaque", "isolated", "untouched"]


def is_opaque(x: Any) -> bool:
    """Objects whose attributes are not Python's to restore."""
    return isinstance(x, torch.Tensor | torch.dtype | torch.device | torch.Generator)


_lock = threading.Lock()
_exporting = 0
_flag_before = False
_stand_ins = contextlib.ExitStack()


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """Torch knows of an export while any thread is inside: ``torch.compiler.is_exporting()``.

    ``torch.compiler.is_compiling()`` stays false: what libraries leave to that answer is what a
    compiler without data-dependent control flow needs, and its graphs are larger (transformers 5.23
    then writes the masks of packed sequences that no input has).
    """
    global _exporting, _flag_before
    with _lock:
        if _exporting == 0:
            _flag_before = torch.compiler._is_exporting_flag
            torch.compiler._is_exporting_flag = True
            _stand_ins.enter_context(substituted())
        _exporting += 1
    try:
        yield
    finally:
        with _lock:
            _exporting -= 1
            if _exporting == 0:
                torch.compiler._is_exporting_flag = _flag_before
                _stand_ins.close()


@contextlib.contextmanager
def isolated(modules: Iterable[torch.nn.Module]) -> Iterator[list[str]]:
    """Run a model without leaving a trace in it, in torch or in a random number generator.

    Yields:
        A list that in the end names the generators outside of torch that the model drew from.
    """
    drawn: list[str] = []
    snapshot = Snapshot(modules, is_opaque, hooks=True)
    random_state = torch.get_rng_state()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    default_dtype = torch.get_default_dtype()
    try:
        with torch.no_grad():
            yield drawn
    finally:
        snapshot.restore()
        if random.getstate() != python_state:
            drawn.append("random")
            random.setstate(python_state)
        if any(map(np.any, map(np.not_equal, np.random.get_state(), numpy_state))):
            drawn.append("numpy.random")
            np.random.set_state(numpy_state)
        if not torch.equal(random_state, torch.get_rng_state()):
            torch.set_rng_state(random_state)
        if torch.get_default_dtype() != default_dtype:
            torch.set_default_dtype(default_dtype)


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Take back what eager code writes to tensors that it did not make."""
    writes = _Writes()
    try:
        with writes:
            yield
    finally:
        with torch.no_grad():
            for x, before in writes.copies.values():
                x.copy_(before)


class _Writes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Copies a storage before the first write to it, unless it was made under the mode.

    Attributes:
        copies: A tensor of each such storage, and its values before.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._made: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to be skipped, Dynamo would have to be imported, which takes a second

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        written = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
        if func.overloadpacket.__name__.endswith("batch_norm"):  # they do not declare it
            written += ["running_mean", "running_var"]
        if written:
            given = {**dict(zip((a.name for a in schema.arguments), args, strict=False)), **kwargs}
            for name in written:
                self._keep(given.get(name))
        result = func(*args, **kwargs)
        if not any(r.alias_info for r in schema.returns):
            for x in result if isinstance(result, tuple | list) else (result,):
                if type(x) is torch.Tensor and x.layout is torch.strided:
                    self._made.add(x.untyped_storage()._cdata)
        return result

    def _keep(self, x: Any) -> None:
        if isinstance(x, tuple | list):
            for item in x:
                self._keep(item)
        if not isinstance(x, torch.Tensor) or x.layout is not torch.strided:
            return
        storage = x.untyped_storage()
        if storage._cdata not in self._made and storage._cdata not in self.copies:
            whole = (
                x.detach().new_empty(0).set_(storage, 0, (storage.nbytes() // x.itemsize,), (1,))
            )
            self.copies[storage._cdata] = (whole, whole.clone())
