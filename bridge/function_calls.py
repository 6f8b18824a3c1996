"""Do a file's functions, written out where they are called, come to an end?

Runtimes write functions out when they load a model. One that calls itself would never end, and a
few that call each other twice would become more nodes than memory holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.wire import BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.wire import Reader

__all__ = ["check_calls"]

_MOST_NODES = 10_000_000
_GRAPH_NODE, _FUNCTION_NODE = 1, 7  # field numbers of onnx.proto
_NODE_OP_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_GRAPHS = (6, 11)
_FUNCTION_NAME, _FUNCTION_DOMAIN = 1, 10

Operator = tuple[str, str]  # domain and name; overloads are taken together


def check_calls(
    reader: Reader, graph: tuple[int, int], functions: Sequence[tuple[int, int]]
) -> None:
    """See that functions neither call themselves nor write out to more nodes than is sane.

    Args:
        reader: The file.
        graph: Where the main graph lies in it.
        functions: Where the functions lie in it.

    Raises:
        ModelFileError: They do.
    """
    calls: dict[Operator, dict[Operator, int]] = {}
    for start, end in functions:
        inside = calls.setdefault(_header(reader, start, end), {})
        for callee, count in _used(reader, start, end, _FUNCTION_NODE).items():
            inside[callee] = inside.get(callee, 0) + count
    sizes: dict[Operator, int] = {}
    for name in calls:
        _measure(reader, name, calls, sizes)
    used = _used(reader, *graph, _GRAPH_NODE)
    total = sum(count * sizes.get(callee, 1) for callee, count in used.items())
    reader.require(total <= _MOST_NODES, f"its functions write out to {total} nodes")


def _header(reader: Reader, start: int, end: int) -> Operator:
    name = domain = ""
    for number, wire, inner, stop in reader.fields(start, end):
        if wire == BYTES and number == _FUNCTION_NAME:
            name = reader.text(inner, stop)
        elif wire == BYTES and number == _FUNCTION_DOMAIN:
            domain = reader.text(inner, stop)
    return domain, name


def _used(reader: Reader, start: int, end: int, node_field: int) -> dict[Operator, int]:
    """How often each operator is used in a graph or a function, subgraphs included."""
    found: dict[Operator, int] = {}
    pending = [(start, end, node_field)]
    while pending:
        start, end, node_field = pending.pop()
        for number, wire, inner, stop in reader.fields(start, end):
            if number != node_field or wire != BYTES:
                continue
            name = domain = ""
            for part, _, begin, finish in reader.fields(inner, stop):
                if part == _NODE_OP_TYPE:
                    name = reader.text(begin, finish)
                elif part == _NODE_DOMAIN:
                    domain = reader.text(begin, finish)
                elif part == _NODE_ATTRIBUTE:
                    pending += [
                        (x, y, _GRAPH_NODE)
                        for n, w, x, y in reader.fields(begin, finish)
                        if n in _ATTRIBUTE_GRAPHS and w == BYTES
                    ]
            found[domain, name] = found.get((domain, name), 0) + 1
    return found


def _measure(
    reader: Reader,
    name: Operator,
    calls: dict[Operator, dict[Operator, int]],
    sizes: dict[Operator, int],
) -> None:
    """The nodes that a function writes out to, and those that it calls."""
    under_way = [name]
    while under_way:
        current = under_way[-1]
        missing = [c for c in calls[current] if c in calls and c not in sizes]
        if missing:
            told = f"its function {missing[0][1]!r} calls itself"
            reader.require(missing[0] not in under_way, told)
            under_way.append(missing[0])
            continue
        inside = calls[current].items()
        sizes[current] = sum(count * sizes.get(callee, 1) for callee, count in inside)
        under_way.pop()
