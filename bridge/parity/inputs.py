"""Inputs to compare on: made from declarations, or varied from an example in sizes and values."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import FeedError, RunError, RunTimeoutError
from bridge.feeds import to_numpy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bridge.feeds import TensorSpec
    from bridge.session import Session

__all__ = [
    "Case",
    "generate",
    "generate_runnable",
    "resized",
    "save_cases",
    "unreadable",
    "varied",
]

_LARGEST = 2**28  # elements of a made-up input
_ACCEPTED = 5.0  # seconds: a model that runs so long has taken its inputs
_UNNAMED = 2  # the size of a dim without a name, and of one that nobody gave a size
_TRIED = (2, 8, 16, 32, 64, 128, 224)  # sizes of lengths, heights and widths, the cheapest first


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One set of inputs.

    Attributes:
        label: What is special about it: ``batch=1``.
        feed: A value for each input.
    """

    label: str
    feed: dict[str, Any]


def generate(
    specs: Sequence[TensorSpec], *, sizes: Mapping[str, int] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Random values for declared inputs: floats from a normal distribution, integers 0 and 1.

    Args:
        specs: The inputs.
        sizes: The size of each symbol; 2 unless given.
        seed: Of the random numbers.

    Raises:
        FeedError: An input is declared with a size that no memory holds, or is no tensor.
    """
    rng = np.random.default_rng(seed)
    feed: dict[str, Any] = {}
    for spec in specs:
        if spec.dtype is None and spec.type != "tensor(string)":
            raise FeedError(
                f"input {spec.name!r} is a {spec.type}, for which no values are made up",
                hint="give values for it",
            )
        if spec.dtype is None:
            feed[spec.name] = np.asarray(["text"], object)
            continue
        shape = [
            d if isinstance(d, int) else (sizes or {}).get(str(d), _UNNAMED)
            for d in spec.dims or ()
        ]
        if any(d < 0 for d in shape) or math.prod(d or 1 for d in shape) > _LARGEST:
            raise FeedError(
                f"input {spec.name!r} is declared as {spec}, too much to make values up for",
                hint="give values for it",
            )
        dtype = spec.dtype.numpy()
        if spec.dtype.is_floating_point():
            feed[spec.name] = rng.standard_normal(shape).astype(dtype)
        else:
            feed[spec.name] = rng.integers(0, 2, shape).astype(dtype)
    return feed


def generate_runnable(session: Session, *, seed: int = 0) -> dict[str, Any]:
    """Random inputs of sizes that a model accepts: it is run to find out.

    Raises:
        FeedError: None of the sizes that are tried is accepted.
    """
    symbols = {d: axis for s in session.inputs for axis, d in enumerate(s.dims or ())
               if isinstance(d, str)}  # fmt: skip
    refusal: RunError | None = None
    for size in _TRIED if any(symbols.values()) else _TRIED[:1]:
        sizes = {d: size for d, axis in symbols.items() if axis}  # a batch may stay small
        feed = generate(session.inputs, sizes=sizes, seed=seed)
        try:
            session.run(feed, timeout=_ACCEPTED)
        except RunTimeoutError:
            return feed
        except RunError as error:
            refusal = refusal or error
        else:
            return feed
    assert refusal is not None
    raise FeedError(
        f"the model does not run on made-up inputs: {refusal.message}", hint="give inputs that fit"
    ) from refusal


def symbols_of(specs: Sequence[TensorSpec], feed: Mapping[str, Any]) -> dict[str, int]:
    """The size of each symbol in a feed."""
    return {
        dim: size
        for spec in specs
        for dim, size in zip(spec.dims or (), np.shape(to_numpy(feed[spec.name])), strict=False)
        if isinstance(dim, str)
    }


def resized(
    specs: Sequence[TensorSpec], feed: Mapping[str, Any], sizes: Mapping[str, int]
) -> dict[str, Any]:
    """The feed with other sizes of symbols: values are repeated in turn, or left off.

    What is in order along an axis stays so: offsets, lengths, masks of padding, edges of bins.
    """
    found: dict[str, Any] = {}
    for spec in specs:
        x = to_numpy(feed[spec.name])
        for axis, dim in enumerate(spec.dims or ()):
            if isinstance(dim, str) and dim in sizes and x.shape[axis] != sizes[dim]:
                x = _resize(x, axis, sizes[dim])
        found[spec.name] = x
    return found


def _resize(x: np.ndarray[Any, Any], axis: int, size: int) -> np.ndarray[Any, Any]:
    before = x.shape[axis]
    if before == 0:
        shape = list(x.shape)
        shape[axis] = size
        return np.zeros(shape, x.dtype)
    if size > before and _is_ordered(x, axis):
        if x.dtype.kind != "f":
            return np.take(x, np.arange(size) * before // size, axis)
        places = np.linspace(0, before - 1, size)
        left = places.astype(int).clip(max=before - 2)
        low, high = np.take(x, left, axis), np.take(x, left + 1, axis)
        share = np.expand_dims(places - left, tuple(range(1, x.ndim - axis))).astype(x.dtype)
        with np.errstate(invalid="ignore"):
            finite = np.isfinite(low) & np.isfinite(high)
            return np.where(finite, low + (high - low) * share, low)
    return np.take(x, np.arange(size) % before, axis)


def _is_ordered(x: np.ndarray[Any, Any], axis: int) -> bool:
    """Whether values rise, or fall, along an axis, in all rows."""
    if x.dtype.kind not in "fiub" or x.shape[axis] < 2:
        return False
    low, high = (
        np.take(x, range(x.shape[axis] - 1), axis),
        np.take(x, range(1, x.shape[axis]), axis),
    )
    return bool((low <= high).all()) != bool((low >= high).all())


def varied(
    specs: Sequence[TensorSpec], feed: Mapping[str, Any], *, seed: int = 0
) -> Iterator[Case]:
    """Cases around an example: each symbol at 1, 0 and another size, and extreme values.

    Integers only move to other places, so that token ids and positions stay valid.
    """
    symbols = symbols_of(specs, feed)
    for symbol, size in symbols.items():
        for other in (1, size + 1, 2 * size + 1, 0):
            if other != size:
                yield Case(f"{symbol}={other}", resized(specs, feed, {symbol: other}))
    if len(symbols) > 1:
        sizes = {symbol: size + 1 + i for i, (symbol, size) in enumerate(symbols.items())}
        label = ", ".join(f"{k}={v}" for k, v in sizes.items())
        yield Case(label, resized(specs, feed, sizes))
    rng = np.random.default_rng(seed)
    for label, change in _VALUES.items():
        yield Case(label, {s.name: _change(s, feed[s.name], change, rng) for s in specs})


_VALUES: dict[str, Any] = {
    "other values": lambda x, rng: rng.permutation(x.reshape(-1)).reshape(x.shape),
    "zeros": lambda x, rng: np.zeros_like(x),
    "negated": lambda x, rng: -x,
    "large values": lambda x, rng: x * x.dtype.type(1e3),
    "tiny values": lambda x, rng: x * x.dtype.type(1e-4),
}


def _change(spec: TensorSpec, value: Any, change: Any, rng: np.random.Generator) -> Any:
    x = to_numpy(value)
    if spec.dtype is None or x.size == 0:
        return x
    if not spec.dtype.is_floating_point():
        return np.roll(x.reshape(-1), 1).reshape(x.shape)
    return change(x, rng)


def save_cases(path: str, cases: Sequence[Case]) -> None:
    """Write cases to an ``.npz`` file, from which :func:`load_cases` reads them."""
    arrays = {
        f"{i}/{c.label}/{name}": to_numpy(x)
        for i, c in enumerate(cases)
        for name, x in c.feed.items()
    }
    np.savez(path, **arrays)  # type: ignore[arg-type]


def unreadable(error: OSError | ValueError) -> str:
    """Why a file gives no arrays; numpy takes what it does not know for a pickle."""
    return "it is no .npz file" if isinstance(error, ValueError) else str(error.strerror or error)


def load_cases(path: str) -> list[Case]:
    """The cases in an ``.npz`` file; one that holds plain arrays by input name is one case."""
    cases: dict[str, Case] = {}
    try:
        opened = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise FeedError(
            f"cannot read arrays from {path}: {unreadable(error)}",
            hint="give the path of an .npz file: np.savez(path, x=x)",
        ) from error
    with opened as file:
        for key in file.files:
            number, _, rest = key.partition("/")
            label, _, name = rest.partition("/")
            if not name:
                number, label, name = "0", "given", key
            cases.setdefault(number, Case(label, {})).feed[name] = file[key]
    return list(cases.values())
