"""How a model's flat inputs and outputs nest in eager code."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bridge.errors import FeedError
from exporters.tracing.pytree import Tree, flatten, from_description

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bridge.feeds import TensorSpec

__all__ = ["Signature", "flatten_unsigned", "is_array"]

_PLAIN = (bool, int, float, str, type(None))


def is_array(x: Any) -> bool:
    """Whether ``x`` is a leaf of inputs: an array, a tensor, a number."""
    return hasattr(x, "__array__") or isinstance(x, bool | int | float)


class Signature:
    """How a model's flat inputs and outputs nest in eager code.

    Attributes:
        inputs: The structure of the arguments: a dict by parameter name.
        input_leaves: Positions among the leaves that are graph inputs.
        outputs: The structure of the result.
        output_leaves: Positions among the result's leaves that are graph outputs.
        constants: What stands at the other positions of the result.
        frozen: The numbers among the leaves that became part of the program.
        complex_outputs: Which graph outputs, by number, hold complex ones as pairs of real ones.
        gathering: The parameters that take further positional (``*args``) and keyword (``**kwargs``)
            arguments; None where there is no such parameter.
    """

    def __init__(
        self,
        inputs: Tree,
        input_leaves: Sequence[int],
        outputs: Tree,
        output_leaves: Sequence[int],
        constants: Mapping[int, Any],
        frozen: Mapping[int, Any] | None = None,
        complex_outputs: Sequence[int] = (),
        gathering: Sequence[str | None] = (None, None),
    ) -> None:
        self.inputs = inputs
        self.input_leaves = list(input_leaves)
        self.outputs = outputs
        self.output_leaves = list(output_leaves)
        self.constants = dict(constants)
        self.frozen = dict(frozen or {})
        self.complex_outputs = list(complex_outputs)
        self.gathering = tuple(gathering)
        self.parameters = [str(k) for k in inputs.keys]
        self._flat = all(c.kind == "leaf" for c in inputs.children) and len(
            self.input_leaves
        ) == len(inputs.children)
        self._defaults = self._frozen_parameters()
        self._single = outputs.kind == "leaf" and self.output_leaves == [0]
        self._plain_tuple = _is_plain_tuple(outputs) and self.output_leaves == list(
            range(len(outputs.children))
        )

    @classmethod
    def from_metadata(cls, text: str) -> Signature:
        """The signature that an exported model carries."""
        data = json.loads(text)
        return cls(
            from_description(data["inputs"]),
            data["input_leaves"],
            from_description(data["outputs"]),
            data["output_leaves"],
            {int(k): v for k, v in data["constants"].items()},
            {int(k): v for k, v in data.get("frozen", {}).items()},
            data.get("complex_outputs", []),
            data.get("gathering", (None, None)),
        )

    def _frozen_parameters(self) -> dict[str, Any]:
        """The parameters that are one frozen number each: they may be left out of a call."""
        found: dict[str, Any] = {}
        index = 0
        for name, child in zip(self.parameters, self.inputs.children, strict=True):
            if child.kind == "leaf" and index in self.frozen:
                found[name] = self.frozen[index]
            index += child.leaf_count
        return found

    def restore(self, values: Sequence[Any]) -> Any:
        """The result around the graph's outputs."""
        if self.complex_outputs:
            values = [_joined(x) if i in self.complex_outputs else x for i, x in enumerate(values)]
        if self._single:
            return values[0]
        if self._plain_tuple:
            return tuple(values)
        leaves = dict(self.constants)
        leaves.update(zip(self.output_leaves, values, strict=True))
        return self.outputs.unflatten([leaves[i] for i in sorted(leaves)])

    def arguments(self, values: Sequence[Any]) -> dict[str, Any]:
        """The arguments by parameter name that hold the graph's inputs ``values``."""
        leaves = dict(self.frozen)
        leaves.update(zip(self.input_leaves, values, strict=True))
        arguments: dict[str, Any] = self.inputs.unflatten([leaves[i] for i in sorted(leaves)])
        return arguments

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The graph's inputs among eager arguments.

        Raises:
            FeedError: The arguments do not have the exported structure, or one that the export
                froze has another value.
        """
        whole = self._flat and not kwargs and len(args) == len(self.parameters)
        if whole and all(map(is_array, args)):
            return list(args)
        nested = self._bind(args, kwargs)
        leaves, tree = flatten(nested, is_array)
        expected = list(self.inputs.paths())
        given = list(tree.paths())
        if given != expected:
            leaves = _in_order(leaves, given, expected)
        if len(leaves) != len(expected):
            raise FeedError(
                f"the arguments hold {len(leaves)} tensors and numbers, at the export there were "
                f"{len(expected)}: {', '.join('.'.join(map(str, p)) for p in expected)}"
            )
        for index, value in self.frozen.items():
            if leaves[index] != value:
                raise _frozen_error(".".join(map(str, expected[index])), value, leaves[index])
        return [leaves[i] for i in self.input_leaves]

    def _gather(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """The arguments with further ones where the model's parameters gather them."""
        positional, named = self.gathering
        if positional in self.parameters:
            place = self.parameters.index(positional)
            if len(args) > place:
                args = (*args[:place], tuple(args[place:]))
        if named in self.parameters:
            rest = {k: v for k, v in kwargs.items() if k not in self.parameters}
            kwargs = {k: v for k, v in kwargs.items() if k in self.parameters} | {named: rest}
        return args, kwargs

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        names = self.parameters
        takes = f"the model takes {', '.join(names)}"
        args, kwargs = self._gather(args, kwargs)
        if len(args) > len(names):
            raise FeedError(f"{len(args)} arguments given, {takes}")
        given = dict(zip(names, args, strict=False))
        doubled = [k for k in kwargs if k in given]
        if doubled:
            raise FeedError(f"{doubled[0]!r} is given twice, by position and by name")
        given.update(kwargs)
        nested: dict[str, Any] = {}
        for name, child in zip(names, self.inputs.children, strict=True):
            if name not in given and name in self._defaults:
                given[name] = self._defaults[name]
            if name not in given and child.leaf_count:
                raise FeedError(f"{name!r} is missing; {takes}")
            nested[name] = given.pop(name, child.original)
            if child.kind == "static":
                _require_same_static(name, child.original, nested[name])
        if given:
            raise FeedError(f"unknown {', '.join(given)}; {takes}")
        return nested


def flatten_unsigned(
    specs: Sequence[TensorSpec], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[Any]:
    """The inputs of a model without a signature: in order, or by name.

    Raises:
        FeedError: There are more or fewer, or one has a name that no input has.
    """
    names = [s.name for s in specs]
    unknown = [k for k in kwargs if k not in names]
    if unknown:
        raise FeedError(f"unknown {', '.join(unknown)}; the model takes {', '.join(names)}")
    leaves = list(args)
    if len(leaves) == 1 and isinstance(leaves[0], dict) and set(leaves[0]) == set(names):
        kwargs = {**leaves.pop(), **kwargs}
    if all(s.dtype is not None for s in specs):  # sequences are inputs as they stand
        leaves = flatten(leaves, is_array)[0]
    rest = names[len(leaves) :]
    if len(leaves) > len(names) or any(n not in rest for n in kwargs) or len(rest) != len(kwargs):
        raise FeedError(
            f"{len(leaves) + len(kwargs)} inputs given, the model takes {', '.join(names)}"
        )
    return leaves + [kwargs[n] for n in rest]


def _is_plain_tuple(tree: Tree) -> bool:
    plain = tree.kind == "tuple" and type(tree.original) is tuple
    return plain and all(c.kind == "leaf" for c in tree.children)


def _in_order(
    leaves: list[Any], given: Sequence[tuple[Any, ...]], expected: Sequence[tuple[Any, ...]]
) -> list[Any]:
    """Leaves in the order of the export; a dict's keys may come in another one.

    Raises:
        FeedError: A key is none that the export had.
    """
    if set(given) == set(expected):
        by_path = dict(zip(given, leaves, strict=True))
        return [by_path[p] for p in expected]
    for ours, theirs in zip(given, expected, strict=False):
        named = [(a, b) for a, b in zip(ours, theirs, strict=False) if a != b]
        if len(given) == len(expected) and any(isinstance(a, str) == isinstance(b, str)
                                               for a, b in named):  # fmt: skip
            raise FeedError(
                f"the arguments hold {'.'.join(map(str, ours))!r}, at the export there was "
                f"{'.'.join(map(str, theirs))!r}"
            )
    return leaves


def _joined(pairs: Any) -> Any:
    """Complex numbers from their real and imaginary parts along the last dim."""
    if hasattr(pairs, "is_complex"):
        import torch

        return torch.view_as_complex(pairs)
    return pairs.view(f"c{2 * pairs.itemsize}")[..., 0]


def _require_same_static(name: str, exported: Any, given: Any) -> None:
    """An argument that holds no tensor was part of the program: it cannot be another one now."""
    if isinstance(exported, _PLAIN) and isinstance(given, _PLAIN) and given != exported:
        raise _frozen_error(name, exported, given)


def _frozen_error(name: str, exported: Any, given: Any) -> FeedError:
    return FeedError(
        f"{name!r} is {given!r}, the model was exported with {exported!r} and cannot do otherwise",
        hint=f"export again with {name}={given!r}, or make it an input: give examples= that "
        "differ in it",
    )
