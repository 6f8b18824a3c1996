"""``bridge.load``: a session of a model file, where and how a deployment wants it."""

from __future__ import annotations

import difflib
import inspect
from typing import TYPE_CHECKING, Any

from bridge.contracts import fastest
from bridge.deployment import deployment as named_deployment
from bridge.errors import FeedError
from bridge.providers import resolve
from bridge.session import Session

if TYPE_CHECKING:
    import os

    import onnx_ir as ir

    from bridge.program import Program

__all__ = ["load"]

_OPTIONS = [n for n in inspect.signature(Session).parameters if n not in ("model", "providers")]


def load(
    path: str | os.PathLike[str] | ir.Model | bytes | Program,
    *,
    providers: Any = None,
    deployment: str | None = None,
    **options: Any,
) -> Session:
    """A session of a model file.

    Args:
        path: The ``.onnx`` file; a program or a model in memory will do too.
        providers: ``"cpu"``, ``"cuda,cpu"``, ONNX Runtime's own names, or a policy such as
            ``"fastest"``; see :mod:`bridge.providers`. The CPU unless given.
        deployment: The name of a deployment in ``bridge.toml``, see :mod:`bridge.deployment`; what
            is given here takes the place of what is written there.
        **options: Further options of :class:`Session`.

    Raises:
        FeedError: There is no such option.
        ModelFileError: There is no such file, or it is no model.
        ProviderError: A provider cannot be had as asked for.
        RunError: ONNX Runtime refuses it.
    """
    chosen = named_deployment(deployment) if providers is None or deployment else None
    further: dict[str, Any] = {}
    if chosen is not None:
        providers = chosen.providers if providers is None else providers
        further = chosen.options
        options = {**chosen.session, **options}
    unknown = next((name for name in options if name not in _OPTIONS), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, _OPTIONS, 1)
        raise FeedError(
            f"a session has no option {unknown!r}; there are {', '.join(_OPTIONS)}",
            hint=f"did you mean {near[0]!r}?" if near else None,
        )
    contract = resolve("cpu" if providers is None else providers, further)
    if contract.fastest:
        session, measured = fastest(lambda c: Session(path, providers=c, **options))
        session.measured = measured
    else:
        session = Session(path, providers=contract, **options)
    if chosen is not None and chosen.require:
        session.require_placement(**chosen.require)
    return session
