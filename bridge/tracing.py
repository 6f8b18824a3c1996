"""``bridge.trace``: a module that runs on ONNX Runtime where eager would, and trains where eager would."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bridge.errors import FeedError
from bridge.exporting import export
from exporters.pytorch.inputs import modules_of, named_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bridge.program import Program

__all__ = ["TracedModule", "trace"]

_MOST_PROGRAMS = 8  # of one model, for inputs that no program takes


class TracedModule(torch.nn.Module):
    """An eager model with its exported forms.

    In eval mode calls run on ONNX Runtime. Where gradients are wanted, autograd gets them from
    eager code, run again when ``backward`` reaches it. In train mode eager code runs. After the
    weights have changed the model is traced anew before it runs on ONNX Runtime, and inputs that
    fit none of the programs (another element type, another structure, a size that is part of the
    program) get one of their own. Its ``state_dict`` is the eager model's, and so is every
    attribute that it does not have itself.

    Attributes:
        eager: The eager model.
        programs: The exported programs, the last one made first.
    """

    def __init__(self, eager: Callable[..., Any], make: Callable[..., Program]) -> None:
        super().__init__()
        self.eager = eager
        self._make = make
        self.programs = [make(None)]
        self._versions = self._state()
        self.training = eager.training if isinstance(eager, torch.nn.Module) else False
        if isinstance(eager, torch.nn.Module):
            self.register_state_dict_post_hook(_as_eager)  # type: ignore[no-untyped-call]
            self.register_load_state_dict_pre_hook(_from_eager)  # type: ignore[no-untyped-call]

    @property
    def program(self) -> Program:
        """The program made last."""
        return self.programs[0]

    def _tensors(self) -> list[torch.Tensor]:
        return list(named_tensors(modules_of(self.eager)).values())

    def _state(self) -> list[tuple[int, int]]:
        return [(t.data_ptr(), t._version) for t in self._tensors()]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            eager = self.__dict__.get("eager") or self.__dict__["_modules"].get("eager")
            if name.startswith("__") or not hasattr(eager, name):
                raise
            return getattr(eager, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run on ONNX Runtime or eagerly; see the class."""
        if self.training:
            return self.eager(*args, **kwargs)
        leaves = [
            x
            for x in torch.utils._pytree.tree_leaves((args, kwargs))
            if isinstance(x, torch.Tensor)
        ]
        wanted = [t for t in (*leaves, *self._tensors()) if t.requires_grad]
        if not (torch.is_grad_enabled() and wanted):
            return self._run(args, kwargs)
        return _with_gradients(self, args, kwargs)

    def _run(self, args: Any, kwargs: Any) -> Any:
        state = self._state()
        if state != self._versions:
            self.programs = [self._make(None)]
            self._versions = state
        for program in self.programs:
            try:
                return program(*args, **kwargs)
            except FeedError as error:
                misfit = error
        if len(self.programs) == _MOST_PROGRAMS:
            raise misfit
        self.programs.insert(0, self._make((args, kwargs)))
        return self.program(*args, **kwargs)


def _as_eager(
    module: torch.nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    for name in [n for n in state if n.startswith(f"{prefix}eager.")]:
        state[prefix + name[len(prefix) + len("eager.") :]] = state.pop(name)


def _from_eager(
    module: torch.nn.Module, state: dict[str, Any], prefix: str, *_: Any, **__: Any
) -> None:
    for name in [n for n in state if n.startswith(prefix)]:
        state[f"{prefix}eager.{name[len(prefix) :]}"] = state.pop(name)


class _Recomputed(torch.autograd.Function):
    """Outputs from ONNX Runtime, gradients from eager code that is run again."""

    @staticmethod
    def forward(ctx: Any, module: TracedModule, call: Any, *tensors: torch.Tensor) -> Any:
        args, kwargs, holder = call
        ctx.module, ctx.call, ctx.tensors = module, (args, kwargs), tensors
        result = module._run(args, kwargs)
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

    def make(call: tuple[Any, dict[str, Any]] | None) -> Program:
        inputs: dict[str, Any] = {"examples": examples, "kwargs": example_kwargs}
        positional, shapes = args, dynamic_shapes
        if call is not None:
            positional, inputs = call[0], {"kwargs": call[1]}
            shapes = "auto" if examples is not None else dynamic_shapes
        training = [m for r in modules_of(model).values() for m in r.modules() if m.training]
        for module in training:
            module.training = False
        try:
            return export(model, positional, dynamic_shapes=shapes, **inputs, **options)
        finally:
            for module in training:
                module.training = True

    return TracedModule(model, make)
