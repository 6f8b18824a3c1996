"""What to quantize how: the named recipes."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from bridge.errors import BridgeError

__all__ = ["AUTO", "RECIPES", "Recipe", "RecipeError", "find_recipe"]

Kind = Literal["static", "dynamic", "weights", "mixed", "precision"]
Correction = Literal["rtn", "mse", "hqq", "gptq"]
Format = Literal["fp16", "bf16"]


class RecipeError(BridgeError, ValueError):
    """A recipe that does not exist, or options that it does not take."""


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is quantized.

    Attributes:
        name: What reports call it.
        kind: ``static`` (calibrated activations), ``dynamic`` (activations as they come),
            ``weights`` (weights only), ``mixed`` (static convolutions, dynamic products) or
            ``precision`` (a shorter floating-point format).
        method: How a range is chosen from what calibration saw: ``minmax``, ``moving-average``,
            ``percentile``, ``entropy`` or ``mse``.
        symmetric: Whether zero points are the middle of the integers: of activations for
            ``static``, of weights for ``weights``.
        per_channel: Whether each output channel has a scale of its own.
        bits: Of weights, for ``weights``: 4 or 8.
        block_size: Inputs that share a scale, for ``weights``; None is 128 for products of 512
            inputs and more, else 32.
        correction: ``rtn`` (round to nearest), ``mse`` (the scale with the least squared error),
            ``hqq`` (half-quadratic) or ``gptq`` (by calibration), for ``weights``.
        embeddings: Whether embedding tables become 8-bit integers.
        smooth: Whether large activation channels are moved into the weights (SmoothQuant), for
            ``static`` and ``dynamic``; a number from 0 to 1 says how far.
        bias_correction: Whether biases make up for the mean error, for ``static``.
        format: ``fp16`` or ``bf16``, for ``precision``.
    """

    name: str
    kind: Kind
    method: str = "mse"
    symmetric: bool = False
    per_channel: bool = True
    bits: int = 8
    block_size: int | None = None
    correction: Correction = "mse"
    embeddings: bool = False
    smooth: float | None = None
    bias_correction: bool = False
    format: Format = "fp16"

    def __post_init__(self) -> None:
        """Check what cannot be checked by types."""
        if self.kind == "weights" and self.bits not in (4, 8):
            raise RecipeError(
                f"weights of {self.bits!r} bits have no kernel", hint="bits are 4 or 8"
            )
        if self.block_size not in (None, 16, 32, 64, 128, 256):
            raise RecipeError(
                f"blocks of {self.block_size} inputs have no kernel",
                hint="block_size is 16, 32, 64, 128 or 256",
            )
        for field, kinds in (("kind", Kind), ("correction", Correction), ("format", Format)):
            given, known = getattr(self, field), get_args(kinds)
            if given not in known:
                raise RecipeError(f"{field} is {given!r}", hint=f"there are {', '.join(known)}")
        if self.smooth is not None and not 0 <= self.smooth <= 1:
            raise RecipeError(f"smooth is {self.smooth}", hint="give a number from 0 to 1")

    @property
    def calibrated(self) -> bool:
        """Whether it needs calibration batches."""
        return (
            self.kind in ("static", "mixed")
            or self.correction == "gptq"
            or self.smooth is not None
        )


RECIPES = {
    r.name: r
    for r in (
        Recipe("int8-static", "static"),
        Recipe("int8-dynamic", "dynamic"),
        Recipe("int8-mixed", "mixed"),
        Recipe("int8-weights", "weights", symmetric=True, block_size=128, embeddings=True),
        Recipe("int4-weights", "weights", bits=4, embeddings=True),
        Recipe("fp16", "precision"),
        Recipe("bf16", "precision", format="bf16"),
    )
}
AUTO = "auto"


def find_recipe(recipe: str | Recipe, **changes: object) -> Recipe:
    """The recipe of that name, with some fields changed.

    Raises:
        RecipeError: There is none, or it has no such field.
    """
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise RecipeError(
                f"no recipe is called {recipe!r}", hint=f"there are {', '.join(RECIPES)}, {AUTO}"
            )
        recipe = RECIPES[recipe]
    known = {f.name for f in dataclasses.fields(Recipe)}
    unknown = [name for name in changes if name not in known]
    if unknown:
        raise RecipeError(
            f"a recipe has no field {', '.join(map(repr, unknown))}",
            hint=f"there are {', '.join(sorted(known))}",
        )
    return dataclasses.replace(recipe, **changes)  # type: ignore[arg-type]
