"""How many planted faults the locator names, and how long each takes.

Run with ``python -m tests.benchmarks locating``.
"""

from __future__ import annotations

import time

import bridge
from bridge.parity.checking import check
from tests.bridge.faults import FAULTS, attribute, operator, weight, with_readers
from tests.bridge.zoo import exported

# In a model of BERT-base's size, by the module that goes wrong.
FULL_SIZE = {
    "wrong eps": attribute("LayerNormalization", "epsilon", 1e-1, nth=12),
    "relu for gelu": operator("Gelu", "Relu", nth=6),
    "transposed weight": weight("bert.encoder.layer.5.attention.self.value.weight", lambda w: w.T),
}


def locate(model, candidate, args, guilty) -> tuple[bool, float]:
    """Whether a guilty node or a reader of what it makes is named, and the seconds it took."""
    started = time.perf_counter()
    divergence = check(model, bridge.Session(candidate), args).divergence
    seconds = time.perf_counter() - started
    named = divergence is not None and divergence.node in with_readers(candidate, set(guilty))
    return named, seconds


def small() -> dict[str, list[tuple[bool, float]]]:
    """Every fault of the tests, by model."""
    found: dict[str, list[tuple[bool, float]]] = {}
    for fault in FAULTS:
        model, args, program = exported(fault.model)
        planted = program.model.clone()
        guilty = fault.plant(planted)
        found.setdefault(fault.model, []).append(locate(model, planted, args, guilty))
    return found


def full_size() -> list[tuple[bool, float]]:
    """Faults in a model of BERT-base's size."""
    from tests.benchmarks.export import build

    model, args, dynamic = build("bert_base")
    program = bridge.export(model, args, dynamic_shapes=dynamic, verify=False)
    found = []
    for plant in FULL_SIZE.values():
        planted = program.model.clone()
        guilty = plant(planted)
        found.append(locate(model, planted, tuple(x[:1, :64] for x in args), guilty))
    return found


def main() -> None:
    """Print a Markdown table."""
    print(
        "| model | faults | located | median, s | slowest, s |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for name, rows in [*small().items(), ("BERT-base", full_size())]:
        seconds = sorted(s for _, s in rows)
        located = sum(named for named, _ in rows)
        print(
            f"| {name} | {len(rows)} | {located} | {seconds[len(seconds) // 2]:.2f} "
            f"| {seconds[-1]:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
