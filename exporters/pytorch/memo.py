"""Calls of torch that took long, whose results serve again when the same call is made."""

from __future__ import annotations

import dataclasses
import heapq
import time
from typing import TYPE_CHECKING, Any

import torch

from exporters.pytorch.isolation import writes
from exporters.pytorch.unchecked import require_fitting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["CallMemo"]

_LONG = 5e-4  # seconds; what is shorter costs little more than to look it up
_LARGE = 4000  # elements of an argument; calls on less do not take long
_BYTES = 1 << 30
_TORCHS = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_PLAIN = (int, float, bool, str, complex, type(None), *_TORCHS)


@dataclasses.dataclass(slots=True, order=True)
class _Entry:
    worth: float  # seconds per byte
    size: int = dataclasses.field(compare=False)
    key: Any = dataclasses.field(compare=False)
    leaves: list[Any] = dataclasses.field(compare=False)
    versions: list[int] = dataclasses.field(compare=False)
    result: Any = dataclasses.field(compare=False)


class CallMemo:
    """Results of long calls: of convolutions, products, sorts.

    A model is traced anew for each function that has to be compiled, and compared with eager code.
    All of these runs make the same calls on the same tensors up to some place, and many after it.
    When there are too many of them for the memory, those go first that took the least time per byte.

    Attributes:
        remembers: Whether calls are looked up and kept; off until something runs a second time.
    """

    def __init__(self) -> None:
        self.remembers = False
        self._entries: dict[Any, list[_Entry]] = {}
        self._least: list[_Entry] = []  # a heap: the one that is worth the least first
        self._left = _BYTES

    def call(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """``func(*args, **kwargs)``."""
        require_fitting(func, args, kwargs)
        if not self.remembers or not any(map(_is_large, args)):
            return func(*args, **kwargs)
        if torch.is_grad_enabled() or writes(func, args, kwargs):
            return func(*args, **kwargs)
        leaves = list(_leaves((args, kwargs)))
        if not all(map(_is_comparable, leaves)):
            return func(*args, **kwargs)
        key = (func, *kwargs, *map(_kind, leaves))
        for entry in self._entries.get(key, ()):
            if all(map(_same, entry.leaves, leaves, entry.versions)):
                return _map(entry.result)
        drawn = torch.get_rng_state()
        started = time.perf_counter()
        result = func(*args, **kwargs)
        seconds = time.perf_counter() - started
        if seconds > _LONG and torch.equal(drawn, torch.get_rng_state()):
            self._keep(key, leaves, result, seconds)
        return result

    def _keep(self, key: Any, leaves: list[Any], result: Any, seconds: float) -> None:
        given = [x for x in leaves if isinstance(x, torch.Tensor)]
        made = list(_leaves(result))
        if not all(type(x) is torch.Tensor and _is_comparable(x) for x in made):
            return
        storages = {x.untyped_storage()._cdata for x in given}
        if any(x.untyped_storage()._cdata in storages for x in made):
            return
        size = sum(x.nbytes for x in (*given, *made) if not isinstance(x, torch.nn.Parameter))
        worth = seconds / (size + 1)
        while size > self._left and self._least and self._least[0].worth < worth:
            self._drop(heapq.heappop(self._least))
        if size > self._left:
            return
        versions = [x._version if isinstance(x, torch.Tensor) else 0 for x in leaves]
        entry = _Entry(worth, size, key, leaves, versions, _map(result))
        self._left -= size
        self._entries.setdefault(key, []).append(entry)
        heapq.heappush(self._least, entry)

    def _drop(self, entry: _Entry) -> None:
        self._left += entry.size
        self._entries[entry.key] = [e for e in self._entries[entry.key] if e is not entry]


def _leaves(x: Any) -> Iterator[Any]:
    if isinstance(x, tuple | list):
        for item in x:
            yield from _leaves(item)
    elif isinstance(x, dict):
        yield from _leaves(tuple(x.values()))
    else:
        yield x


def _is_large(x: Any) -> bool:
    """Whether a call may take long because of an argument."""
    if isinstance(x, torch.Tensor):
        return x.numel() >= _LARGE
    return isinstance(x, list | tuple) and any(map(_is_large, x))


def _is_comparable(x: Any) -> bool:
    if type(x) not in (torch.Tensor, torch.nn.Parameter):
        return isinstance(x, _PLAIN)
    dense = x.layout is torch.strided and x.device.type == "cpu"  # elsewhere calls do not wait
    return dense and not x.is_inference()  # which has no version


def _kind(x: Any) -> Any:
    return (x.shape, x.dtype, x.stride()) if isinstance(x, torch.Tensor) else (type(x), x)


def _same(a: Any, b: Any, version: int) -> bool:
    if not isinstance(a, torch.Tensor):
        return True  # it is part of the key
    if a._version != version:
        return False
    if a is b:
        return True
    if isinstance(a, torch.nn.Parameter) or isinstance(b, torch.nn.Parameter):
        return False
    return torch.equal(a, b)


def _map(result: Any) -> Any:
    """A copy that may be written to."""
    if isinstance(result, torch.Tensor):
        return result.clone()
    return type(result)(map(_map, result))
