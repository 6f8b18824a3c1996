"""What a program is exported and compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Case", "Inputs", "seeded"]

Inputs = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """One program.

    Attributes:
        make: Builds the function or module.
        example: What the trace sees.
        others: Inputs that it does not see: other sizes, branches and numbers of trips.
        dynamic: Which dims vary, as ``bridge.export`` takes it.
        large: Inputs of the size that the benchmark runs.
        examples: Further inputs that the trace sees.
        atol: Absolute tolerance, where rounding adds up over iterations.
    """

    make: Callable[[], Callable[..., Any]]
    example: Inputs
    others: tuple[Inputs, ...] = ()
    dynamic: Any = None
    large: Inputs | None = None
    examples: tuple[Inputs, ...] = ()
    atol: float = 1e-5


def seeded(make: Callable[[], Any]) -> Callable[[], Any]:
    """``make`` with the same random weights every time, in eval mode."""

    def build() -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = make()
        return made.eval() if isinstance(made, torch.nn.Module) else made

    return build


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normally distributed numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers from 0 to 1."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def integers(high: int, *shape: int, seed: int = 0) -> torch.Tensor:
    """Whole numbers below ``high``."""
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))
