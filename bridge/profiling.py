"""Where a session spends its time, by node, module, operator and provider; what runs where."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.errors import ProviderError, RunError
from bridge.graph_index import GraphIndex, open_model
from bridge.providers import Provider

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bridge.graph_index import NodeInfo
    from bridge.session import Session

__all__ = ["NodeTime", "Placement", "Profile", "profile"]

_KERNEL = "_kernel_time"
_COPIES = ("MemcpyFromHost", "MemcpyToHost")
# Integers and booleans decide shapes; runtimes compute them on the CPU, where they are read.
_SHAPE_TYPES = ("INT64", "INT32", "BOOL")


@dataclasses.dataclass(frozen=True, slots=True)
class NodeTime:
    """The time that one node takes.

    Attributes:
        name: Its name in the graph that runs.
        op_type: Its operator; a runtime's own for nodes that it fused.
        provider: The provider's short name.
        module: Path of the eager module.
        source: File and line of the eager code.
        seconds: Per run in the median, nodes inside its subgraphs excluded.
        calls: Per run: more than 1 inside a loop.
    """

    name: str
    op_type: str
    provider: str
    module: str
    source: str | None
    seconds: float
    calls: float


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """Times of a session's nodes.

    Attributes:
        nodes: In the order in which they first ran.
        runs: How often the model was run.
        seconds: Wall time of a run in the median, profiling included.
    """

    nodes: list[NodeTime]
    runs: int
    seconds: float

    def _sum(self, key: Callable[[NodeTime], str]) -> dict[str, float]:
        totals: dict[str, float] = {}
        for node in self.nodes:
            totals[key(node)] = totals.get(key(node), 0.0) + node.seconds
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    def by_module(self, depth: int | None = None) -> dict[str, float]:
        """Seconds by module path, cut to ``depth`` parts."""
        return self._sum(lambda n: ".".join(n.module.split(".")[:depth]) or "(top)")

    def by_operator(self) -> dict[str, float]:
        """Seconds by operator."""
        return self._sum(lambda n: n.op_type)

    def by_provider(self) -> dict[str, float]:
        """Seconds by provider."""
        return self._sum(lambda n: n.provider)

    def to_dict(self) -> dict[str, Any]:
        """The profile as plain data."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        total = sum(n.seconds for n in self.nodes) or 1.0
        lines = [f"{1e3 * self.seconds:.3f} ms a run, {1e3 * total:.3f} ms of it in nodes"]
        for title, table in (
            ("module", self.by_module()),
            ("operator", self.by_operator()),
            ("provider", self.by_provider()),
        ):
            lines.append(f"by {title}:")
            for name, seconds in list(table.items())[:12]:
                lines.append(f"  {seconds / total:6.1%} {1e3 * seconds:9.3f} ms  {name}")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, slots=True)
class Placement:
    """Which provider runs what.

    Attributes:
        nodes: Names of the nodes by provider.
        shape_nodes: Names of those on the CPU that only compute shapes; they may always be there.
        copies: Copies between devices.
        copies_in_loops: Those of them that are repeated by a loop.
        seconds: Time per run by provider.
    """

    nodes: dict[str, list[str]]
    shape_nodes: list[str]
    copies: list[str]
    copies_in_loops: list[str]
    seconds: dict[str, float]

    def share(self, provider: str) -> float:
        """The share of nodes on a provider, those that only compute shapes left out of account."""
        label = Provider(provider).label
        exempt = set(self.shape_nodes)
        counts = {p: sum(n not in exempt for n in names) for p, names in self.nodes.items()}
        total = sum(counts.values())
        return counts.get(label, 0) / total if total else 1.0

    def to_dict(self) -> dict[str, Any]:
        """The placement as plain data."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = []
        for provider, names in self.nodes.items():
            line = f"{provider}: {len(names)} nodes ({self.share(provider):.1%})"
            if provider in self.seconds:
                line += f", {1e3 * self.seconds[provider]:.3f} ms"
            lines.append(line)
        lines.append(
            f"{len(self.copies)} copies between devices, {len(self.copies_in_loops)} in loops"
        )
        return "\n".join(lines)

    def require(self, *, copies_in_loops: int | None = None, **shares: float) -> None:
        """See that providers have their promised share of the nodes.

        Raises:
            ProviderError: One has less, or a loop copies more often than allowed; the message
                lists the nodes.
        """
        for label, promised in shares.items():
            if not isinstance(promised, int | float) or not 0 <= promised <= 1:
                raise ProviderError(
                    f"{label}={promised} is no share of the nodes", hint=f"write {label}=0.99"
                )
            share = self.share(label)
            if share < promised:
                exempt = set(self.shape_nodes)
                others = [
                    f"{name} ({provider})"
                    for provider, names in self.nodes.items()
                    if provider != label
                    for name in names
                    if name not in exempt
                ]
                raise ProviderError(
                    f"{label} has {share:.1%} of the nodes, {promised:.1%} were promised; "
                    f"elsewhere: {', '.join(others[:10])}{', ...' if len(others) > 10 else ''}",
                    hint=f"{label} has no kernel for these: export with an older opset, or "
                    f'optimize for it with bridge.optimize(program, target="{label}")',
                )
        if not isinstance(copies_in_loops, int | None):
            raise ProviderError(
                f"copies_in_loops is {copies_in_loops!r}", hint="write copies_in_loops=0"
            )
        if copies_in_loops is not None and len(self.copies_in_loops) > copies_in_loops:
            raise ProviderError(
                f"{len(self.copies_in_loops)} copies between devices in loops, {copies_in_loops} "
                f"allowed: {', '.join(self.copies_in_loops[:10])}",
                hint="keep the loop's condition and counter on the CPU, its body on one provider",
            )


def profile(session: Session, feed: Mapping[str, Any], runs: int) -> tuple[Profile, Placement]:
    """Run a twin of a session with ONNX Runtime's profiler."""
    with tempfile.TemporaryDirectory(prefix="bridge-") as folder:
        twin, graph = _twin(session, Path(folder))
        twin.run(feed)  # the first run allocates and tunes; it is in the file, and left out below
        times = []
        for _ in range(runs):
            started = time.perf_counter()
            twin.run(feed)
            times.append(time.perf_counter() - started)
        events = json.loads(Path(twin.runtime.end_profiling()).read_text())
    index = GraphIndex(session.running_model())
    nodes = _node_times(_by_run(events, runs), graph, index)
    found = Profile(nodes, runs, statistics.median(times))
    return found, placement(session, index, graph, found.by_provider())


def unmeasured_placement(session: Session) -> Placement:
    """What runs where, without the time that it takes."""
    with tempfile.TemporaryDirectory(prefix="bridge-") as folder:
        twin, graph = _twin(session, Path(folder))
        twin.runtime.end_profiling()
    return placement(session, GraphIndex(session.running_model()), graph, {})


def _twin(session: Session, folder: Path) -> tuple[Session, GraphIndex | None]:
    """A session that profiles itself, and the graph that it runs, unless that cannot be written."""
    optimized, prefix = folder / "optimized.onnx", str(folder / "profile")
    try:
        twin = session.with_settings(
            profile_prefix=prefix, optimized_path=str(optimized), cuda_graphs=False
        )
    except RunError:  # nodes that their provider compiles cannot be written down
        twin = session.with_settings(profile_prefix=prefix, cuda_graphs=False)
    return twin, GraphIndex(open_model(optimized)) if optimized.exists() else None


def _by_run(events: list[dict[str, Any]], runs: int) -> list[list[dict[str, Any]]]:
    """The kernels' events of each of the last ``runs`` runs."""
    starts = sorted(e["ts"] for e in events if e.get("name") == "model_run")[-runs:]
    found: list[list[dict[str, Any]]] = [[] for _ in starts]
    for event in events:
        number = bisect.bisect_right(starts, event["ts"]) - 1
        if number >= 0 and event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            found[number].append(event)
    return found


def _own_time(events: list[dict[str, Any]]) -> list[int]:
    """Microseconds of each event without the events inside of it: a Loop's without its body's."""
    own = [int(e["dur"]) for e in events]
    order = sorted(range(len(events)), key=lambda i: (events[i]["ts"], -events[i]["dur"]))
    stacks: dict[Any, list[int]] = collections.defaultdict(list)
    for i in order:
        stack = stacks[events[i]["tid"]]
        while stack and events[stack[-1]]["ts"] + events[stack[-1]]["dur"] <= events[i]["ts"]:
            stack.pop()
        if stack and events[stack[-1]]["args"].get("op_name") in ("If", "Loop", "Scan"):
            own[stack[-1]] -= int(events[i]["dur"])
        stack.append(i)
    return [max(0, us) for us in own]


def _node_times(
    runs: Sequence[list[dict[str, Any]]], graph: GraphIndex | None, index: GraphIndex
) -> list[NodeTime]:
    totals: dict[tuple[str, str, str], list[int]] = {}
    calls: collections.Counter[tuple[str, str, str]] = collections.Counter()
    for number, events in enumerate(runs):
        for event, us in zip(events, _own_time(events), strict=True):
            provider = Provider(event["args"].get("provider", "")).label
            key = (event["name"].removesuffix(_KERNEL), event["args"].get("op_name", ""), provider)
            totals.setdefault(key, [0] * len(runs))[number] += us
            calls[key] += 1
    nodes = []
    for key, times in totals.items():
        name, op_type, provider = key
        origin = _origin(name, graph, index)
        module, source = ("", None) if origin is None else (origin.module, origin.source)
        seconds = 1e-6 * statistics.median(times)
        nodes.append(
            NodeTime(name, op_type, provider, module, source, seconds, calls[key] / len(runs))
        )
    return nodes


def _origin(name: str, graph: GraphIndex | None, index: GraphIndex) -> NodeInfo | None:
    if graph is not None and name in graph.by_name:
        found = index.origin(graph.by_name[name].node)
        if found is not None:
            return found
    return index.by_name.get(name)


def assigned_nodes(session: Session) -> dict[str, list[str]] | None:
    """Names of the nodes by provider, as ONNX Runtime divided them; None if it does not tell."""
    tell = getattr(session.runtime, "get_provider_graph_assignment_info", None)
    if tell is None:
        return None
    nodes: dict[str, list[str]] = {}
    try:
        for part in tell():
            names = [n.name or n.op_type for n in part.get_nodes()]
            nodes.setdefault(Provider(part.ep_name).label, []).extend(names)
    except Exception:  # the entry that asks for it was left out of the session's own options
        return None
    return nodes


def shape_nodes(index: GraphIndex) -> list[str]:
    """Names of the nodes that make nothing but integers and booleans out of host memory."""
    return [
        info.name
        for info in index.nodes
        if all(v.dtype is not None and v.dtype.name in _SHAPE_TYPES for v in info.node.outputs)
    ]


def placement(
    session: Session, index: GraphIndex, graph: GraphIndex | None, seconds: dict[str, float]
) -> Placement:
    """What runs where."""
    nodes = assigned_nodes(session)
    if nodes is None:
        label = Provider(session.providers[0]).label
        nodes = {label: [info.name for info in index.nodes]}
    on_cpu = set(nodes.get("cpu", ()))
    copies = [i for i in graph.nodes if i.node.op_type in _COPIES] if graph is not None else []
    return Placement(
        nodes=nodes,
        shape_nodes=[n for n in shape_nodes(index) if n in on_cpu],
        copies=[i.name for i in copies],
        copies_in_loops=[i.name for i in copies if i.in_loop],
        seconds=seconds,
    )
