"""Export leaves a model as it found it: attributes, caches, random state, torch's flags."""

from __future__ import annotations

import contextlib
import random
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from exporters.pytorch.substitutes import substituted
from exporters.tracing.effects import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

__all__ = [
    "asked_of_compiling",
    "compiling",
    "exporting",
    "is_opaque",
    "is_told_of_compiling",
    "isolated",
    "untouched",
    "writes",
]


def is_opaque(x: Any) -> bool:
    """Objects whose attributes are not Python's to restore."""
    return isinstance(x, torch.Tensor | torch.dtype | torch.device | torch.Generator)


_lock = threading.Lock()
_exporting = 0
_flag_before = False
_stand_ins = contextlib.ExitStack()


class _Thread(threading.local):
    """What this thread tells libraries of a compilation, and whether they asked."""

    compiling = False
    asked = False


_thread = _Thread()


@contextlib.contextmanager
def compiling(*, told: bool = True) -> Iterator[None]:
    """Let ``torch.compiler.is_compiling()`` be true in exports of this thread."""
    before, _thread.compiling = _thread.compiling, told
    try:
        yield
    finally:
        _thread.compiling = before


def is_told_of_compiling() -> bool:
    """Whether ``torch.compiler.is_compiling()`` is true in exports of this thread."""
    return _thread.compiling


def asked_of_compiling() -> bool:
    """Whether ``torch.compiler.is_compiling()`` was called in an export since this was asked last."""
    asked, _thread.asked = _thread.asked, False
    return asked


_is_compiling = torch.compiler.is_compiling


def _told_of_compiling() -> bool:
    _thread.asked = True
    return _thread.compiling or _is_compiling()


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """Torch knows of an export while any thread is inside: ``torch.compiler.is_exporting()``.

    ``torch.compiler.is_compiling()`` is what :func:`compiling` says.
    """
    global _exporting, _flag_before
    with _lock:
        if _exporting == 0:
            _flag_before = torch.compiler._is_exporting_flag
            torch.compiler._is_exporting_flag = True
            _stand_ins.enter_context(substituted())
            torch.compiler.is_compiling = _told_of_compiling
        _exporting += 1
    try:
        yield
    finally:
        with _lock:
            _exporting -= 1
            if _exporting == 0:
                torch.compiler._is_exporting_flag = _flag_before
                torch.compiler.is_compiling = _is_compiling
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


def _call(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


@contextlib.contextmanager
def untouched(call: Callable[..., Any] = _call) -> Iterator[None]:
    """Take back what eager code writes to tensors that it did not make.

    Args:
        call: Makes each call of torch, given the function, its arguments and its keywords.
    """
    mode = _Writes(call)
    try:
        with mode:
            yield
    finally:
        with torch.no_grad():
            for x, before in mode.copies.values():
                if not torch.equal(x, before):
                    x.copy_(before)


class _Writes(TorchFunctionMode):
    """Copies a storage before the first write to it, unless it was made under the mode.

    Attributes:
        copies: A tensor of each such storage, and its values before.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self._call = call
        self.copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._made: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            self._keep(_written(func, args, kwargs))
        result = self._call(func, args, kwargs)
        with torch._C.DisableTorchFunction():
            given = {x.untyped_storage()._cdata for x in _strided((*args, *kwargs.values()))}
            self._made |= {x.untyped_storage()._cdata for x in _strided(result)} - given
        return result

    def _keep(self, written: Any) -> None:
        for x in _strided(written):
            storage = x.untyped_storage()
            if storage._cdata not in self._made and storage._cdata not in self.copies:
                elements = storage.nbytes() // x.itemsize
                whole = x.detach().new_empty(0).set_(storage, 0, (elements,), (1,))
                self.copies[storage._cdata] = (whole, whole.clone())


def writes(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call writes to its arguments."""
    return any(True for _ in _strided(_written(func, args, kwargs)))


def _strided(x: Any) -> Iterator[torch.Tensor]:
    if isinstance(x, tuple | list):
        for item in x:
            yield from _strided(item)
    elif isinstance(x, torch.Tensor) and _has_storage(x):
        yield x


def _has_storage(x: torch.Tensor) -> bool:
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(x)  # as in ``torch.vmap``
    return x.layout is torch.strided and not (x.is_nested or wrapped)


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a call writes to, with more than that where torch does not say it."""
    everything = (*args, *kwargs.values())
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        overloads = [func] if isinstance(func, torch._ops.OpOverload) else _overloads(func)
        return everything if any(f._schema.is_mutable for f in overloads) else ()
    name = getattr(func, "__name__", "")
    if name in _LIMITING and (args[3:4] or (kwargs.get("max_norm"),))[0] is not None:
        return everything
    if name in _WRITING:
        return everything
    in_place = name.endswith("_") and not name.endswith("__")
    return (args[:1] if in_place or name in _IN_PLACE else (), kwargs.get("out"))


def _overloads(packet: Any) -> list[Any]:
    return [getattr(packet, name) for name in packet.overloads()]


_WRITING = frozenset("batch_norm instance_norm native_batch_norm".split())  # to running statistics
_LIMITING = frozenset("embedding embedding_bag".split())  # write to the table
_IN_PLACE = frozenset({"__setitem__", *(f"__i{x}__" for x in (
    "add and floordiv lshift mod mul or pow rshift sub truediv xor".split()
))})  # fmt: skip
