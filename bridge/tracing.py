"""``bridge.trace``: a module that runs on ONNX Runtime where eager would, and trains where eager would."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bridge.exporting import export
from exporters.pytorch.inputs import modules_of, named_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bridge.program import Program

__all__ = ["TracedModule", "trace"]


class TracedModule(torch.nn.Module):
    """An eager model with its exported form.

    In eval mode calls run on ONNX Runtime. Where gradients are wanted, autograd gets them from
    eager code, run again when ``backward`` reaches it. In train mode eager code runs. After the
    weights have changed the model is traced anew before it runs on ONNX Runtime.

    Attributes:
        eager: The eager model.
        program: The current export.
    """

    def __init__(self, eager: Callable[..., Any], make: Callable[[], Program]) -> None:
        super().__init__()
        self.eager = eager
        self._make = make
        self.program = make()
        self._versions = self._state()
        self.training = eager.training if isinstance(eager, torch.nn.Module) else False

    def _tensors(self) -> list[torch.Tensor]:
        return list(named_tensors(modules_of(self.eager)).values())

    def _state(self) -> list[tuple[int, int]]:
        return [(t.data_ptr(), t._version) for t in self._tensors()]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run on ONNX Runtime or eagerly; see the class."""
        if self.training:
            return self.eager(*args, **kwargs)
        state = self._state()
        if state != self._versions:
            self.program = self._make()
            self._versions = state
        leaves = [
            x
            for x in torch.utils._pytree.tree_leaves((args, kwargs))
            if isinstance(x, torch.Tensor)
        ]
        wanted = [t for t in (*leaves, *self._tensors()) if t.requires_grad]
        if not (torch.is_grad_enabled() and wanted):
            return self.program(*args, **kwargs)
        return _with_gradients(self, args, kwargs)


class _Recomputed(torch.autograd.Function):
    """Outputs from ONNX Runtime, gradients from eager code that is run again."""

    @staticmethod
    def forward(ctx: Any, module: TracedModule, call: Any, *tensors: torch.Tensor) -> Any:
        args, kwargs, holder = call
        ctx.module, ctx.call, ctx.tensors = module, (args, kwargs), tensors
        result = module.program(*args, **kwargs)
        flat, spec = torch.utils._pytree.tree_flatten(result)
        holder.append(spec)
        ctx.mark_non_differentiable(
            *(t for t in flat if isinstance(t, torch.Tensor) and not t.is_floating_point())
        )
        return tuple(flat)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        args, kwargs = ctx.call
        with torch.enable_grad():
            result = ctx.module.eager(*args, **kwargs)
        flat = torch.utils._pytree.tree_leaves(result)
        pairs = [
            (y, g)
            for y, g in zip(flat, gradients, strict=True)
            if isinstance(y, torch.Tensor) and y.requires_grad and g is not None
        ]
        wanted = [t for t in ctx.tensors if t.requires_grad]
        found = iter(
            torch.autograd.grad(
                [y for y, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True
            )
            if pairs
            else [None] * len(wanted)
        )
        return (None, None, *(next(found) if t.requires_grad else None for t in ctx.tensors))


def _with_gradients(module: TracedModule, args: Any, kwargs: Any) -> Any:
    leaves = [
        x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)
    ]
    holder: list[Any] = []
    flat = _Recomputed.apply(  # type: ignore[no-untyped-call]
        module, (args, kwargs, holder), *leaves, *module._tensors()
    )
    return torch.utils._pytree.tree_unflatten(list(flat), holder[0])


def trace(
    model: Callable[..., Any],
    example_input: Any = None,
    *,
    example_kwargs: dict[str, Any] | None = None,
    dynamic_shapes: Any = "auto",
    examples: Sequence[Any] | None = None,
    **options: Any,
) -> TracedModule:
    """A drop-in replacement for an eager model that runs on ONNX Runtime.

    Args:
        model: ``nn.Module`` or function over tensors.
        example_input: Positional arguments of the example, as for :func:`bridge.export`.
        example_kwargs: Its keyword arguments.
        dynamic_shapes: Which dims vary. Unless given, every dim that eager lets vary does.
        examples: Further examples, from which the dynamic dims are inferred.
        **options: Further options of :func:`bridge.export`.

    Returns:
        A module with the eager model's parameters, see :class:`TracedModule`.

    Raises:
        ExportError: The model cannot become a graph.
        ParityError: The graph does not compute what eager computes.
    """
    args = () if example_input is None else example_input
    if examples is not None:
        dynamic_shapes = None

    def make() -> Program:
        training = [m for r in modules_of(model).values() for m in r.modules() if m.training]
        for module in training:
            module.training = False
        try:
            return export(
                model,
                args,
                kwargs=example_kwargs,
                dynamic_shapes=dynamic_shapes,
                examples=examples,
                **options,
            )
        finally:
            for module in training:
                module.training = True

    return TracedModule(model, make)
