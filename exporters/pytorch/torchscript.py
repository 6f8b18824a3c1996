"""Modules made by ``torch.jit.script`` run as the Python that they were made of.

While torch exports, its scripted functions call their original; its scripted methods try to, with
one argument too many. A module that was loaded from a file has no original.
"""

from __future__ import annotations

import contextlib
import types
from typing import TYPE_CHECKING, Any

import torch

from exporters.errors import UntraceableError
from exporters.pytorch.inputs import modules_of
from exporters.tracing.trace import Interrupt, Trace

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["torchscript_traces", "unscripted"]


def torchscript_traces(model: Any) -> Iterator[str]:
    """The modules that ``torch.jit.trace`` made; its functions know their original."""
    for prefix, root in modules_of(model).items():
        for path, module in root.named_modules(prefix=prefix):
            if isinstance(module, torch.jit._trace.TracedModule):
                yield path or module.original_name


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """``module(*args)`` in Python."""
    original = getattr(vars(self).get("forward"), "__wrapped__", None)
    if not isinstance(original, types.MethodType):
        trace = Trace.current()
        source = None if trace is None else trace.position()[0]
        name = getattr(self, "original_name", type(self).__name__)
        raise Interrupt(
            UntraceableError(
                f"the TorchScript module {name} has no Python source: it was loaded from a file",
                source=source,
                hint="export the module that it was scripted from",
            )
        )
    owner: Any = original.__self__
    modes = {name: module.training for name, module in self.named_modules()}
    before = [(module, module.training) for module in owner.modules()]
    for name, module in owner.named_modules():
        module.training = modes.get(name, module.training)
    try:
        return torch.nn.Module.__call__(owner, *args, **kwargs)
    finally:
        for module, training in before:
            module.training = training


@contextlib.contextmanager
def unscripted() -> Iterator[None]:
    """Let scripted modules run in Python."""
    cls: Any = torch.jit._script.RecursiveScriptModule
    before = vars(cls).get("__call__")
    cls.__call__ = _call
    try:
        yield
    finally:
        if before is None:
            del cls.__call__
        else:
            cls.__call__ = before
