"""Programs as people write them in eager PyTorch; none of them knows that it will be exported."""

from __future__ import annotations

from tests.script.programs import boxes, classic, containers, decoding, networks, numerics
from tests.script.programs.case import Case

__all__ = ["CASES", "Case"]

CASES: dict[str, Case] = {
    **decoding.CASES,
    **networks.CASES,
    **numerics.CASES,
    **classic.CASES,
    **boxes.CASES,
    **containers.CASES,
}
