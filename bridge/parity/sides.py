"""What can be compared: eager code and sessions, both as functions from named to named arrays."""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx_ir as ir

from bridge.errors import FeedError
from bridge.feeds import describe, is_torch, to_numpy, to_torch
from bridge.program import Program
from bridge.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from exporters.pytorch.frontend import TracedModel
    from exporters.pytorch.inputs import Arguments

__all__ = ["EagerSide", "SessionSide", "Side", "session_of"]


class Side(Protocol):
    """One side of a comparison."""

    @property
    def label(self) -> str:
        """What it is, for a report."""

    def run(self, feed: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Compute all outputs by name."""


def session_of(x: Any, **options: Any) -> Session:
    """A session of whatever can be run on ONNX Runtime: a session, a program, a model, a path."""
    return x if isinstance(x, Session) else Session(x, **options)


def is_eager(x: Any) -> bool:
    """Whether ``x`` is eager code rather than an ONNX model in some form."""
    return callable(x) and not isinstance(x, Session | Program | ir.Model)


class SessionSide:
    """A session as a side.

    Args:
        session: The session.
        label: What to call it in a report.
    """

    def __init__(self, session: Session, label: str | None = None) -> None:
        self.session = session
        settings = session.settings
        where = ",".join(p.label for p in settings.contract.providers)
        kind = "" if settings.optimization == "all" else f", optimization {settings.optimization}"
        self._label = label or f"{_name(session.source)} on {where}{kind}"

    @property
    def label(self) -> str:
        """The model and its provider."""
        return self._label

    def run(self, feed: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Run the session; inputs are matched by name, and by position where no name matches."""
        names = self.session.input_names
        if len(feed) == len(names) and not set(names) & set(feed):
            feed = dict(zip(names, feed.values(), strict=True))
        results = self.session.run(feed)
        return {name: to_numpy(x) for name, x in results.items()}


def _name(source: Any) -> str:
    if isinstance(source, str | os.PathLike):
        return os.path.basename(source)
    return (source.graph.name or "model") if isinstance(source, ir.Model) else "model"


class EagerSide:
    """Eager torch code as a side.

    Args:
        model: A module or a function over tensors.
        session: The session that it is compared with; says which arguments are inputs, and which
            results are outputs, and what they are called.
        arguments: The arguments that values are put into.
        traced: How the session's graph was made of it, if that is known.

    Attributes:
        positions: Which leaves of the arguments are the session's inputs.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        session: Session,
        arguments: Arguments,
        traced: TracedModel | None = None,
    ) -> None:
        self.model = model
        self.traced = traced
        self.session = session
        self.arguments = arguments
        self.positions = _input_positions(session, arguments)

    @property
    def label(self) -> str:
        """The model's name."""
        return f"eager {getattr(self.model, '__name__', type(self.model).__name__)}"

    def feed(self) -> dict[str, Any]:
        """The session's inputs among the arguments."""
        leaves = self.arguments.leaves
        return dict(
            zip(self.session.input_names, (leaves[i] for i in self.positions), strict=True)
        )

    def leaves(self, feed: Mapping[str, Any], dtype: torch.dtype | None = None) -> list[Any]:
        """The arguments' leaves with values of a feed in their places.

        Args:
            feed: Values by input name.
            dtype: What to make of floating-point tensors.
        """
        leaves = list(self.arguments.leaves)
        device = _device(self.model)
        for name, position in zip(self.session.input_names, self.positions, strict=True):
            value = feed[name]
            if isinstance(leaves[position], bool | int | float):
                leaves[position] = type(leaves[position])(to_numpy(value).item())
                continue
            tensor = value if is_torch(value) else to_torch(np.asarray(value, order="C"))
            if is_torch(leaves[position]) and leaves[position].is_complex():
                tensor = tensor if tensor.is_complex() else _complex(tensor)
            leaves[position] = tensor
        if device is not None:
            leaves = self._placed(leaves, device)
        if dtype is None:
            return leaves
        return [_widened(x, dtype) if is_torch(x) else x for x in leaves]

    def _placed(self, leaves: Sequence[Any], device: torch.device) -> list[Any]:
        """The leaves where the given arguments are, or all of them where the model is.

        Eager code may want some on the CPU, such as the lengths of packed sequences.
        """
        given = [x.device if is_torch(x) else None for x in self.arguments.leaves]
        kept = device in given
        return [
            x.to(place if kept else device) if is_torch(x) and place is not None else x
            for x, place in zip(leaves, given, strict=True)
        ]

    def run(self, feed: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Run eager code as it stands; model, arguments and random state stay as they were."""
        return self._named(call_eager(self.model, self.arguments, self.leaves(feed)))

    def run_wide(self, feed: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Run a copy of the eager code in float64.

        Raises:
            Exception: The code cannot be copied, or does not run in float64.
        """
        import torch

        model: Any = self.model
        if isinstance(model, torch.nn.Module):
            model = copy.deepcopy(model).double()
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            return self._named(call_eager(model, self.arguments, self.leaves(feed, torch.float64)))
        finally:
            torch.set_default_dtype(before)

    def _named(self, result: Any) -> dict[str, np.ndarray[Any, Any]]:
        """The leaves of the result that are outputs, by the session's names.

        Raises:
            FeedError: There are fewer or more tensors than the session has outputs.
        """
        from exporters.pytorch.inputs import is_leaf
        from exporters.tracing.pytree import flatten

        leaves = flatten(result, is_leaf)[0]
        names = self.session.output_names
        signature = self.session.signature
        tensors = [x for x in leaves if is_torch(x)]
        chosen = tensors
        if signature is not None and max(signature.output_leaves, default=0) < len(leaves):
            chosen = [leaves[i] for i in signature.output_leaves]
            chosen = chosen if len(tensors) <= len(chosen) else tensors
        if len(chosen) != len(names):
            raise FeedError(
                f"eager code returns {len(chosen)} tensors, the model has {len(names)} outputs: "
                f"{', '.join(names)}"
            )
        return {n: to_numpy(x) for n, x in zip(names, chosen, strict=True)}


def _complex(pairs: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.view_as_complex(pairs.contiguous())


def _widened(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if x.is_complex():
        return x.to(dtype.to_complex())
    return x.to(dtype) if x.is_floating_point() else x


def _input_positions(session: Session, arguments: Arguments) -> list[int]:
    """Which leaves of the arguments are the session's inputs, in the order of these."""
    signature = session.signature
    count = len(session.input_names)
    if signature is not None and max(signature.input_leaves, default=-1) < len(arguments.leaves):
        given, exported = list(arguments.tree.paths()), list(signature.inputs.paths())
        if given != exported and set(given) == set(exported):  # a dict's keys in another order
            return [given.index(exported[i]) for i in signature.input_leaves]
        return list(signature.input_leaves)
    positions = [i for i, x in enumerate(arguments.leaves) if is_torch(x)]
    if len(positions) != count:
        told = ", ".join(describe(arguments.leaves[i]) for i in positions)
        raise FeedError(
            f"the arguments hold {len(positions)} tensors ({told}), the model takes {count}: "
            f"{', '.join(session.input_names)}"
        )
    return positions


def _device(model: Any) -> Any:
    """Where a module's parameters are; None for what has none."""
    import torch

    if isinstance(model, torch.nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return None


def call_eager(model: Any, arguments: Arguments, leaves: Sequence[Any]) -> Any:
    """Call eager code and leave no sign of it: not in attributes, nor in tensors."""
    from exporters.pytorch.eager import run_eager

    return run_eager(model, arguments, leaves, exporting=False)
