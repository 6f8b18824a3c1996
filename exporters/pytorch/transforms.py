"""``torch.func`` and derivatives inside of the exported code.

What these compute they compute below torch functions: batched or differentiated calls that Python
never makes. Torch can write them down as the operators that they come to (``make_fx``), with sizes
that stay symbols; the tracer then calls what is written down like any code of the user's.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch._functorch import eager_transforms, vmap
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from exporters.errors import UntraceableError, WorldError
from exporters.pytorch.code_exchange import calling, exchanged, original_of
from exporters.pytorch.handlers import sizes_of
from exporters.tracing.scalars import TracedScalar
from exporters.tracing.source import source_of_error
from exporters.tracing.trace import Interrupt, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import CodeType

    from exporters.pytorch.tracer import TorchTracer
    from exporters.tracing.source import Source

__all__ = ["staged_transforms", "written_down"]

_LOGGER = logging.getLogger("torch._subclasses.fake_tensor")
_TORCH = (os.path.dirname(torch.__file__) + os.sep,)
_TRANSFORM = (
    "torch cannot write this transform down",
    "write the function for whole batches, without branches on its values, or keep it out of the "
    "exported model",
)
_DERIVATIVES = (
    "torch cannot write down the derivatives that autograd is asked for here",
    "use torch.func.grad of a function without branches on its values, or keep training out of the "
    "exported model",
)


class _Captured(TorchFunctionMode):
    """Sees the traced tensors that a function reads besides its arguments.

    Attributes:
        found: These tensors, by identity.
        given: What stands for them, by identity.
    """

    def __init__(self, tracer: TorchTracer) -> None:
        super().__init__()
        self.tracer = tracer
        self.found: dict[int, torch.Tensor] = {}
        self.given: dict[int, torch.Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = self.replaced((args, kwargs or {}))
        return func(*args, **kwargs)

    def replaced(self, x: Any) -> Any:
        """A nest with what stands for its tensors."""
        return pytree.tree_map_only(torch.Tensor, self._replaced, x)

    def _replaced(self, x: torch.Tensor) -> torch.Tensor:
        if id(x) in self.given:
            return self.given[id(x)]
        if self.tracer.trace.record(x) is not None:
            self.found[id(x)] = x
        return x


def written_down(tracer: TorchTracer, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, by way of the operators that it comes to: autograd is asked for derivatives in it."""
    derived = torch.enable_grad()(function)  # exports run without
    return lambda *args, **kwargs: _call(tracer, derived, args, kwargs, _DERIVATIVES)


def _call(
    tracer: TorchTracer,
    function: Callable[..., Any],
    args: Any,
    kwargs: Mapping[str, Any],
    told: tuple[str, str] = _TRANSFORM,
) -> Any:
    """``function(*args, **kwargs)`` by way of the operators that it comes to."""
    leaves, structure = pytree.tree_flatten((tuple(args), dict(kwargs)))
    places = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor)]
    captured = _Captured(tracer)
    results: list[Any] = []

    def flat(*tensors: torch.Tensor) -> list[Any]:
        again = tracer.concrete(leaves, tracer.trace.active[0])
        for place, tensor in zip(places, tensors, strict=False):
            again[place] = tensor
        captured.given = dict(zip(captured.found, tensors[len(places) :], strict=False))
        call_args, call_kwargs = pytree.tree_unflatten(again, structure)
        with captured:
            made, shape = pytree.tree_flatten(function(*call_args, **call_kwargs))
        results[:] = [shape]
        return made

    handles = [leaves[i] for i in places]
    with _unseen(tracer, captured):
        try:
            with torch.random.fork_rng(devices=()):
                flat(*(x.detach().clone() for x in handles))
            for x in handles:
                captured.found.pop(id(x), None)
            handles += captured.found.values()
            graph = _graph(tracer, flat, handles)
        except Exception as error:
            first = str(error).strip().split("\n")[0]
            source = source_of_error(error, _TORCH)
            raise _refusal(tracer, told, f"{type(error).__name__}: {first}", source) from error
    with torch.no_grad():
        return pytree.tree_unflatten(list(graph(*handles)), results[0])


def _graph(
    tracer: TorchTracer, function: Callable[..., Any], tensors: Sequence[torch.Tensor]
) -> Callable[..., Any]:
    """What ``function`` computes of such tensors; their dynamic dims are symbols in it.

    In the last world, dynamic dims have equal sizes only if they are the same.
    """
    # sympy, which symbols are made of, takes long to import
    from torch._dispatch.python import enable_python_dispatcher
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import (
        DimDynamic,
        ShapeEnv,
        StatelessSymbolicContext,
    )

    mode = FakeTensorMode(
        shape_env=ShapeEnv(),
        allow_non_fake_inputs=True,
    )
    world = tracer.trace.active[-1]
    fakes = []
    for x in tensors:
        dims = [
            DimDynamic.DYNAMIC if isinstance(n, TracedScalar) else DimDynamic.STATIC
            for n in sizes_of(tracer, x)
        ]
        context: Any = StatelessSymbolicContext(dynamic_sizes=dims)
        concrete = tracer.concrete(x, world).detach()
        fakes.append(mode.from_tensor(concrete, symbolic_context=context))
    with enable_python_dispatcher():
        graph = make_fx(function, _allow_non_fake_inputs=True)(*fakes)
    graph.graph.eliminate_dead_code()
    sizes: list[Any] = [n for x in fakes for n in x.shape if isinstance(n, torch.SymInt)]
    fixed = [n.node.hint for n in sizes if n.node.maybe_as_int() is not None]
    if fixed:
        raise _refusal(tracer, _TRANSFORM, f"it fixes the sizes {fixed}")
    return torch.fx.Interpreter(graph).run  # its frames are torch's: calls have the user's line


@contextlib.contextmanager
def _unseen(tracer: TorchTracer, captured: _Captured) -> Iterator[None]:
    """Calls are eager ones: the tracer takes no note of them."""
    tracer.captured = captured
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own code
            _LOGGER.disabled = True  # what fails is told by an error
            yield
    finally:
        tracer.captured, _LOGGER.disabled = None, False


def _refusal(
    tracer: TorchTracer, told: tuple[str, str], reason: str, source: Source | None = None
) -> Interrupt:
    """Of one world it is a refusal for good; with several, other sizes may do."""
    what, hint = told
    error = UntraceableError if len(tracer.trace.active) == 1 else WorldError
    return Interrupt(
        error(f"{what}: {reason}", source=source or tracer.trace.position()[0], hint=hint)
    )


def _tracer() -> TorchTracer | None:
    """The tracer of this thread, if any."""
    trace = Trace.current()
    return None if trace is None or not trace.live else trace.frontend


def _staging(original: Callable[..., Any]) -> Callable[..., Any]:
    """``original``, or in a trace the operators that it comes to."""

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        tracer = _tracer()
        if tracer is None:
            return original(*args, **kwargs)
        if tracer.captured is not None:  # inside of what is being written down
            args, kwargs = tracer.captured.replaced((args, kwargs))
            return original(*args, **kwargs)
        if not tracer.trace.recording:
            (world,) = tracer.trace.active
            return original(*tracer.concrete(args, world), **tracer.concrete(kwargs, world))
        return _call(tracer, original, args, kwargs)

    return stand_in


def _records() -> bool:
    """Whether this thread's calls become nodes."""
    tracer = _tracer()
    return tracer is not None and tracer.captured is None


_VJP: Any = inspect.unwrap(eager_transforms._vjp_with_argnums)
_vjp_with_argnums: Any = original_of(_VJP)


def _vjp(func: Callable[..., Any], *primals: Any, **options: Any) -> Any:
    """``func(*primals)`` with the function that pulls cotangents back."""
    if not _records():
        return _vjp_with_argnums(func, *primals, **options)

    def pulled(cotangents: Any, *again: Any) -> Any:
        return _vjp_with_argnums(func, *again, **options)[1](cotangents)

    def pull_back(cotangents: Any, retain_graph: Any = True, create_graph: Any = None) -> Any:
        del retain_graph, create_graph
        return _staging(pulled)(cotangents, *primals)

    result = func(*primals)
    return (result[0], pull_back, result[1]) if options.get("has_aux") else (result, pull_back)


def _jacobian(original: Callable[..., Any]) -> Callable[..., Any]:
    """``jacrev`` or ``jacfwd``, of which the function that it makes is staged."""
    return lambda *args, **kwargs: _staging(original(*args, **kwargs))


_LINEARIZE: Any = eager_transforms.linearize
_linearize = original_of(_LINEARIZE)


def _linear(func: Callable[..., Any], *primals: Any) -> Any:
    """``func(*primals)`` with the function that pushes tangents forward."""
    if not _records():
        return _linearize(func, *primals)
    return func(*primals), lambda *tangents: torch.func.jvp(func, primals, tangents)[1]


_JACOBIANS: list[Any] = [eager_transforms.jacrev, eager_transforms.jacfwd]
_STAGED: list[Any] = [
    inspect.unwrap(f)
    for f in (
        vmap.vmap_impl,
        eager_transforms.grad_impl,
        eager_transforms.grad_and_value_impl,
        eager_transforms._jvp_with_argnums,
    )
]
_CODES: list[tuple[Any, CodeType]] = [
    *((f, calling(_staging(original_of(f)))) for f in _STAGED),
    *((f, calling(_jacobian(original_of(f)))) for f in _JACOBIANS),
    (_LINEARIZE, calling(_linear)),
    (_VJP, calling(_vjp)),
]


@contextlib.contextmanager
def staged_transforms() -> Iterator[None]:
    """Let ``torch.func`` be written down in a trace; outside of one it does what it does."""
    with exchanged(_CODES):
        yield
