"""What this machine's CPU does with products of 8-bit integers."""

from __future__ import annotations

import dataclasses
import functools
import platform
from pathlib import Path

__all__ = ["Processor", "this_processor"]

_CPUINFO = Path("/proc/cpuinfo")
_ADDS_IN_32_BITS = ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8")


@dataclasses.dataclass(frozen=True, slots=True)
class Processor:
    """How to quantize for a CPU.

    Attributes:
        name: The instructions that count.
        activation: dtype of activations that its kernels are fastest for.
        weight_most: The integer that the largest weight becomes.
        reason: Why.
    """

    name: str
    activation: str
    weight_most: int
    reason: str


def processor_of(machine: str, flags: frozenset[str]) -> Processor:
    """What is right for a machine type and its instruction sets."""
    if machine.lower() in ("arm64", "aarch64"):
        return Processor(
            machine, "uint8", 127, "ARM adds products in 32 bits, so nothing saturates"
        )
    found = [f for f in _ADDS_IN_32_BITS if f in flags]
    if found:
        return Processor(
            found[0], "uint8", 127,
            f"{found[0]} adds products of uint8 and int8 in 32 bits, so nothing saturates",
        )  # fmt: skip
    if "avx2" in flags or "avx512bw" in flags or "ssse3" in flags:
        name = next(f for f in ("avx512bw", "avx2", "ssse3") if f in flags)
        return Processor(
            name, "uint8", 63,
            f"{name} without VNNI adds two products of uint8 and int8 in 16 bits, which saturate "
            "at 32767: weights are kept within 63, at the cost of one of their 8 bits",
        )  # fmt: skip
    return Processor(
        machine or "unknown", "uint8", 63,
        "the instruction set is not known; weights are kept within 63, so that nothing saturates",
    )  # fmt: skip


@functools.cache
def this_processor() -> Processor:
    """This machine's."""
    try:
        text = _CPUINFO.read_text()
    except OSError:
        text = ""
    line = next((x for x in text.splitlines() if x.startswith(("flags", "Features"))), "")
    return processor_of(platform.machine(), frozenset(line.partition(":")[2].split()))
