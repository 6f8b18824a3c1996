"""Arguments for eager code, feeds for sessions, and the dims that vary, from command-line options."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.commands.inputs import given_inputs
from bridge.errors import FeedError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from bridge.commands.inputs import GivenInput
    from bridge.commands.targets import Target

__all__ = ["Example", "add_export_options", "example_of", "export_target", "feed_of"]


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """What eager code is called with.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        dynamic: Which dims vary, as ``dynamic_shapes``; None for none.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic: Any

    @property
    def is_empty(self) -> bool:
        """Whether nothing was given."""
        return not self.args and not self.kwargs


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Options of an export."""
    group = parser.add_argument_group("export")
    group.add_argument(
        "--dynamic", action="append", default=[], metavar="auto|NAME=AXIS:SYMBOL,...",
        help="dims that vary, for instance x=0:batch,2:height; auto for every dim that eager lets "
        "vary. Dims that --input gives a symbol vary too",
    )  # fmt: skip
    group.add_argument(
        "--script", choices=("auto", "explicit"), default="auto",
        help="whether functions that branch on data are compiled without being marked; auto unless given",
    )  # fmt: skip
    group.add_argument(
        "--state", choices=("fold", "io"), default="fold",
        help="whether buffers that forward writes to become inputs and outputs; fold unless given",
    )  # fmt: skip


def example_of(target: Target, options: argparse.Namespace) -> Example:
    """The arguments that the options give, or else those that the factory gives.

    Raises:
        FeedError: The options contradict themselves.
    """
    given = given_inputs(options)
    declared = _declared(getattr(options, "dynamic", []))
    if not given:
        return Example(target.args or (), target.kwargs, declared)
    positional = [g for g in given if g.name is None]
    named = {g.name: g for g in given if g.name is not None}
    args = tuple(_as_tensor(g.value) for g in positional)
    kwargs = {name: _as_tensor(g.value) for name, g in named.items()}
    if declared is None and any(g.symbols for g in given):
        declared = _symbols(target.model, positional, named, args, kwargs)
    return Example(args, kwargs, declared)


def _as_tensor(value: Any) -> Any:
    from bridge.feeds import to_torch

    return to_torch(value) if isinstance(value, np.ndarray) else value


def _symbols(
    model: Any,
    positional: Sequence[GivenInput],
    named: dict[str, GivenInput],
    args: Any,
    kwargs: Any,
) -> dict[str, dict[int, str]]:
    """Symbols by the names of the parameters that positional inputs go to."""
    from exporters.pytorch.inputs import bind

    names = [n for n in bind(model, args, kwargs).names if n not in named]
    pairs = [*zip(names, positional, strict=False), *named.items()]
    return {name: g.symbols for name, g in pairs if g.symbols}


def _declared(texts: Sequence[str]) -> Any:
    """``--dynamic`` as ``dynamic_shapes``."""
    if "auto" in texts:
        return "auto"
    found: dict[str, dict[int, str]] = {}
    for text in texts:
        name, _, dims = text.partition("=")
        for dim in dims.split(","):
            axis, _, symbol = dim.partition(":")
            if not axis.lstrip("-").isdigit() or not symbol:
                raise FeedError(
                    f"--dynamic {text!r} cannot be read", hint="write x=0:batch,2:height, or auto"
                )
            found.setdefault(name, {})[int(axis)] = symbol
    return found or None


def export_target(
    target: Target, example: Example, options: argparse.Namespace, /, **further: Any
) -> Any:
    """The program of an eager target."""
    from bridge.exporting import export

    return export(
        target.model,
        example.args,
        kwargs=example.kwargs,
        dynamic_shapes=example.dynamic,
        script=options.script,
        state=options.state,
        **further,
    )


def feed_of(session: Any, options: argparse.Namespace) -> dict[str, Any]:
    """A value for each input of a session: given ones, and made-up ones for the rest.

    Raises:
        FeedError: There is no such input.
    """
    from bridge.commands.inputs import sizes
    from bridge.parity.inputs import generate, generate_runnable

    feed: dict[str, Any] = {}
    names = iter(session.input_names)
    symbols = sizes(getattr(options, "size", []))
    known = {d for spec in session.inputs for d in spec.dims or () if isinstance(d, str)}
    for symbol in set(symbols) - known:
        raise FeedError(
            f"the model has no dim {symbol!r}; its dynamic dims are {', '.join(sorted(known)) or 'none'}"
        )
    for given in given_inputs(options):
        name = given.name or next((n for n in names if n not in feed), "")
        if name not in session.input_names:
            raise FeedError(
                f"the model has no input {name!r}; its inputs are {', '.join(session.input_names)}"
                if given.name
                else f"more inputs than the model has: {', '.join(session.input_names)}"
            )
        feed[name] = given.value
    for spec in session.inputs:
        if spec.name in feed:
            shape = np.shape(feed[spec.name])
            for dim, size in zip(spec.dims or (), shape, strict=False):
                if isinstance(dim, str):
                    symbols.setdefault(dim, size)
    if not feed and not symbols:
        return generate_runnable(session, seed=options.seed)
    missing = [s for s in session.inputs if s.name not in feed]
    return {**feed, **generate(missing, sizes=symbols, seed=options.seed)}
