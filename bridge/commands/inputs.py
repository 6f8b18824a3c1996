"""Inputs as a command line gives them: ``x=float32[batch=2, 3, 224, 224]``, ``mask=@mask.npy``."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from bridge.errors import FeedError
from bridge.parity.inputs import unreadable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

__all__ = ["GivenInput", "add_input_options", "given_inputs", "parse_input", "sizes"]

_SPEC = re.compile(
    r"^(?:(?P<name>[\w.]+)=)?(?P<dtype>[a-z]\w*)\[(?P<dims>[^\]]*)\](?:<(?P<below>\d+))?$"
)
_NAMED = re.compile(r"^(?:(?P<name>[\w.]+)=)?(?P<value>.*)$", re.DOTALL)
_NAMES = {"float32": "FLOAT", "float64": "DOUBLE", "float": "FLOAT", "int": "INT64"}
_HELP = """an input, once for each: DTYPE[DIMS] or NAME=DTYPE[DIMS] for random values, where a dim
is a size or SYMBOL=SIZE for one that may vary; "<N" behind it keeps integers below N;
NAME=@FILE.npy for values in a file; NAME=3 or NAME=true for a number"""


@dataclasses.dataclass(frozen=True, slots=True)
class GivenInput:
    """An input.

    Attributes:
        name: The parameter's or the graph input's name; None for a positional one.
        value: An array or a number.
        symbols: The symbol of each axis that may vary.
    """

    name: str | None
    value: Any
    symbols: dict[int, str]


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """Options that give inputs."""
    group = parser.add_argument_group("inputs")
    group.add_argument("--input", action="append", default=[], metavar="INPUT", help=_HELP)
    group.add_argument("--inputs", metavar="FILE.npz", help="arrays by input name")
    group.add_argument("--seed", type=int, default=0, help="of random values; 0 unless given")


def given_inputs(options: argparse.Namespace) -> list[GivenInput]:
    """The inputs that the options give."""
    rng = np.random.default_rng(options.seed)
    found = [parse_input(text, rng) for text in options.input]
    if options.inputs is not None:
        try:
            with np.load(options.inputs, allow_pickle=False) as file:
                found += [GivenInput(name, file[name], {}) for name in file.files]
        except (OSError, ValueError) as error:
            raise FeedError(
                f"cannot read arrays from {options.inputs}: {unreadable(error)}",
                hint="write one with numpy.savez(path, x=x), an array for each input",
            ) from error
    return found


def parse_input(text: str, rng: np.random.Generator) -> GivenInput:
    """One ``--input``.

    Raises:
        FeedError: It cannot be read.
    """
    matched = _SPEC.match(text.replace(" ", ""))
    if matched is not None:
        return _random(matched, text, rng)
    named = _NAMED.match(text)
    assert named is not None
    name, value = named["name"], named["value"]
    if value.startswith("@"):
        try:
            return GivenInput(name, np.load(value[1:], allow_pickle=False), {})
        except (OSError, ValueError) as error:
            raise FeedError(f"cannot read an array from {value[1:]}: {error}") from error
    try:
        number = json.loads(value)
    except ValueError:
        number = None
    if not isinstance(number, bool | int | float):
        raise FeedError(
            f"--input {text!r} cannot be read",
            hint='write "x=float32[batch=2,3,224,224]", "ids=int64[2,12]<30000", "x=@x.npy" or "n=3"',
        )
    return GivenInput(name, number, {})


def _random(matched: re.Match[str], text: str, rng: np.random.Generator) -> GivenInput:
    name = matched["dtype"]
    try:
        dtype = ir.DataType[_NAMES.get(name, name.upper())].numpy()
    except (KeyError, TypeError) as error:
        raise FeedError(f"--input {text!r}: ONNX has no element type {name!r}") from error
    shape: list[int] = []
    symbols: dict[int, str] = {}
    for axis, dim in enumerate(filter(None, matched["dims"].split(","))):
        symbol, separator, size = dim.rpartition("=")
        if not size.isdigit():
            raise FeedError(f"--input {text!r}: {dim!r} is no size", hint="write 2 or batch=2")
        shape.append(int(size))
        if separator:
            symbols[axis] = symbol
    if dtype.kind in "iub":
        values = rng.integers(0, int(matched["below"] or 2), shape).astype(dtype)
    else:
        values = rng.standard_normal(shape).astype(dtype)
    return GivenInput(matched["name"], values, symbols)


def sizes(texts: Sequence[str]) -> dict[str, int]:
    """``batch=4`` as sizes by symbol.

    Raises:
        FeedError: It cannot be read.
    """
    found = {}
    for text in texts:
        symbol, _, size = text.partition("=")
        if not size.isdigit():
            raise FeedError(f"--size {text!r} cannot be read", hint="write batch=4")
        found[symbol] = int(size)
    return found
