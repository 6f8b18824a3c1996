"""Seeing that a session runs where it was asked to run, and choosing where it runs fastest."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

from bridge.errors import BridgeError, ProviderError
from bridge.graph_index import GraphIndex
from bridge.parity.inputs import generate_runnable
from bridge.profiling import assigned_nodes, placement
from bridge.providers import CPU, Contract, candidates

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.session import Session

__all__ = ["fastest", "require_nodes"]

_RUNS = 5


def require_nodes(session: Session) -> None:
    """See that providers took the nodes that they were asked to take.

    Raises:
        ProviderError: The first provider took none, one has less than its promised share, or the
            CPU computes where it was not allowed to.
    """
    contract = session.settings.contract
    accelerators = [p for p in contract.providers if p.name != CPU]
    if not accelerators or not contract.enforced or assigned_nodes(session) is None:
        return
    index = GraphIndex(session.running_model())
    found = placement(session, index, None, {})
    first = accelerators[0]
    shares: Any = {p.label: p.share for p in accelerators if p.share}
    if not contract.cpu_allowed:
        on_cpu = [n for n in found.nodes.get("cpu", []) if n not in set(found.shape_nodes)]
        if on_cpu:
            raise ProviderError(
                f"{len(on_cpu)} nodes would run on the CPU, which {first.label!r} alone forbids: "
                f"{_told(on_cpu, index)}",
                hint=f'{first.label} has no kernel for these; allow it with providers="'
                f'{first.label},cpu", or export with an older opset',
            )
    elif found.share(first.label) == 0 and _counts(found.nodes, found.shape_nodes):
        nodes = [n for names in found.nodes.values() for n in names]
        raise ProviderError(
            f"{first.label} took none of the {len(nodes)} nodes: {_told(nodes, index)}",
            hint='ask for the CPU alone with providers="cpu"',
        )
    found.require(**shares)


def _counts(nodes: dict[str, list[str]], exempt: list[str]) -> bool:
    """Whether there is any node that does more than compute shapes."""
    return any(n not in set(exempt) for names in nodes.values() for n in names)


def _told(names: list[str], index: GraphIndex) -> str:
    kinds: dict[str, int] = {}
    for name in names:
        info = index.by_name.get(name)
        kind = name if info is None else info.node.op_type
        kinds[kind] = kinds.get(kind, 0) + 1
    listed = sorted(kinds.items(), key=lambda item: -item[1])[:8]
    more = ", ..." if len(kinds) > 8 else ""
    return ", ".join(f"{count} {kind}" for kind, count in listed) + more


def fastest(
    make: Callable[[Contract], Session], feed: dict[str, Any] | None = None
) -> tuple[Session, dict[str, float]]:
    """The session of the provider that runs a model fastest, and what was measured.

    Args:
        make: Makes a session under a contract.
        feed: What to run it on; made up unless given.

    Raises:
        ProviderError: No provider runs it.
    """
    measured: dict[str, float] = {}
    best: Session | None = None
    failures: list[str] = []
    for provider in candidates():
        providers = (provider,) if provider.name == CPU else (provider, candidates()[-1])
        try:
            session = make(Contract(providers, cpu_allowed=True))
            seconds = _seconds(session, feed)
        except BridgeError as error:
            failures.append(f"{provider.label}: {error}")
            continue
        if best is None or seconds < min(measured.values()):
            best = session
        measured[provider.label] = seconds
    if best is None:
        raise ProviderError("no provider runs the model:\n" + "\n".join(failures))
    return best, measured


def _seconds(session: Session, feed: dict[str, Any] | None) -> float:
    feed = generate_runnable(session) if feed is None else feed
    session.run(feed)
    times = []
    for _ in range(_RUNS):
        started = time.perf_counter()
        session.run(feed)
        times.append(time.perf_counter() - started)
    return statistics.median(times)
