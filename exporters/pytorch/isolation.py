"""Export leaves a model as it found it: attributes, caches, random state, torch's flags."""

from __future__ import annotations

import collections
import contextlib
import threading
import types
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["isolated"]

_ATOMS = (int, float, complex, str, bytes, bool, type(None), type, types.FunctionType,
          types.MethodType, types.BuiltinFunctionType, types.ModuleType, torch.Tensor,
          torch.dtype, torch.device)  # fmt: skip

_lock = threading.Lock()
_exporting = 0
_flag_before = False


class _Snapshot:
    """Containers and attributes that are reachable from modules, as they are now."""

    def __init__(self, roots: Iterable[Any]) -> None:
        self._saved: list[tuple[Any, Any]] = []
        self._alive: list[Any] = []
        self._seen: set[int] = set()
        pending = list(roots)
        while pending:
            x = pending.pop()
            if isinstance(x, _ATOMS) or id(x) in self._seen:
                continue
            self._seen.add(id(x))
            self._alive.append(x)
            pending += self._save(x)

    def _save(self, x: Any) -> list[Any]:
        if isinstance(x, dict):
            self._saved.append((x, dict(x)))
            inside = list(x.values())
        elif isinstance(x, list | collections.deque | set):
            self._saved.append((x, list(x)))
            inside = list(x)
        elif isinstance(x, tuple | frozenset):
            return list(x)
        else:
            inside = []
        attributes = getattr(x, "__dict__", None)
        if isinstance(attributes, dict) and id(attributes) not in self._seen:
            self._seen.add(id(attributes))
            self._saved.append((attributes, dict(attributes)))
            inside += attributes.values()
        return inside

    def restore(self) -> None:
        for container, before in self._saved:
            if isinstance(container, dict):
                if len(container) != len(before) or any(
                    container.get(k, container) is not v for k, v in before.items()
                ):
                    container.clear()
                    container.update(before)
            elif isinstance(container, set):
                if container != set(before):
                    container.clear()
                    container.update(before)
            elif len(container) != len(before) or any(
                a is not b for a, b in zip(container, before, strict=True)
            ):
                container.clear()
                container.extend(before)


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """``torch.compiler.is_exporting()`` answers True while any thread is inside."""
    global _exporting, _flag_before
    with _lock:
        if _exporting == 0:
            _flag_before = torch.compiler._is_exporting_flag
            torch.compiler._is_exporting_flag = True
        _exporting += 1
    try:
        yield
    finally:
        with _lock:
            _exporting -= 1
            if _exporting == 0:
                torch.compiler._is_exporting_flag = _flag_before


@contextlib.contextmanager
def isolated(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Run a model without leaving a trace in it or in torch."""
    snapshot = _Snapshot(modules)
    random_state = torch.get_rng_state()
    default_dtype = torch.get_default_dtype()
    try:
        with torch.no_grad():
            yield
    finally:
        snapshot.restore()
        if not torch.equal(random_state, torch.get_rng_state()):
            torch.set_rng_state(random_state)
        if torch.get_default_dtype() != default_dtype:
            torch.set_default_dtype(default_dtype)
