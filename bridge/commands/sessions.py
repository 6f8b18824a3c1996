"""Options that say where and how a model runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from bridge.session import Session

__all__ = ["add_session_options", "open_session"]


def add_session_options(parser: argparse.ArgumentParser) -> None:
    """Options of a session."""
    group = parser.add_argument_group("session")
    group.add_argument(
        "--providers", metavar="P,...",
        help='"cuda,cpu", "cuda:1", "cuda>=0.95,cpu" or "fastest"; the CPU unless given',
    )  # fmt: skip
    group.add_argument("--deployment", metavar="NAME", help="a deployment in bridge.toml")
    group.add_argument("--threads", type=int, help="threads within an operator")
    group.add_argument(
        "--optimization", choices=("none", "basic", "extended", "all"),
        help="how much ONNX Runtime rewrites the graph; all unless given",
    )  # fmt: skip


def open_session(model: Any, options: argparse.Namespace, **further: Any) -> Session:
    """A session as the options want it."""
    from bridge.loading import load

    chosen = {k: getattr(options, k) for k in ("threads", "optimization") if getattr(options, k)}
    return load(
        model, providers=options.providers, deployment=options.deployment, **chosen, **further
    )
